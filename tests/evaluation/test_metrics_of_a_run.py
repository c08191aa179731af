"""Retrieval metrics of a run on pairs: logged, saved with the module, and on the board."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from fanoise_lightning import ContrastiveModule, Encoder, PairDataModule
from fanoise_lightning.callbacks import ScoreboardWriter

METRICS = ["recall_at_1", "recall_at_2", "median_rank"]


class Angles(Encoder):
    """Embeds the text "query 3" at 3 degrees and "target 3 is 7" at 7 degrees."""

    embedding_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def collate(self, samples):
        return {"degrees": torch.tensor([float(sample.text.split()[-1]) for sample in samples])}

    def forward(self, degrees):
        angle = self.scale * degrees.deg2rad()
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def pairs(path: Path, angles: list[tuple[float, float]]) -> Path:
    rows = [
        {
            "qry": f"query {query}",
            "pos_text": f"target {number} is {target}",
            "qry_image_path": "",
            "pos_image_path": "",
        }
        for number, (query, target) in enumerate(angles)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> PairDataModule:
    """Two right answers of the first query are nearest and farthest; the second's is third, after a tie."""
    train = pairs(tmp_path / "train.jsonl", [(200, 200), (210, 210), (220, 220), (230, 230)])
    val = pairs(tmp_path / "val.jsonl", [(0, 1), (0, 40), (30, 20), (31, 32), (14, 14)])
    options = {"num_candidates": None, "batch_size": 4, "num_workers": 0}
    return PairDataModule(train, val=val, **options)


def run(module: ContrastiveModule, data: PairDataModule, folder: Path) -> tuple[dict, str]:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[ScoreboardWriter()], **quiet)
    (values,) = trainer.validate(module, data, verbose=False)
    trainer.save_checkpoint(folder / "last.ckpt")
    return values, (folder / "scores.json").read_text()


def test_metrics_are_logged_written_and_printed(data: PairDataModule, tmp_path: Path, capsys) -> None:
    values, scores = run(ContrastiveModule(Angles(), metrics=METRICS), data, tmp_path)
    # the angles to the targets 1, 40, 20, 32, 14 of the queries at 0, 30, 31 and 14 degrees
    recalls = {"recall_at_1": [1 / 2, 0, 1, 1], "recall_at_2": [1 / 2, 1 / 2, 1, 1]}
    for name, own in recalls.items():
        assert values[f"val/{name}/overall"] == pytest.approx(sum(own) / 4)
    assert values["val/median_rank/overall"] == 1
    assert {key.split("/")[2] for key in values} == {"overall"}  # all means are the score of the only subset
    assert values["val/precision_at_1/overall"] == pytest.approx(3 / 4)
    subset = json.loads(scores)["scoreboard"]["subsets"]["validation"]
    chance = [2 / 5, 1 / 5, 1 / 5, 1 / 5]
    assert subset["floors"]["chance"] == pytest.approx(sum(chance) / 4)
    assert subset["metrics"]["recall_at_2"]["chance"] == pytest.approx(2 / 5)
    assert json.loads(scores)["history"][0]["metrics"]["median_rank"]["overall"] == 1
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["recall@2", "75.0", "30.1–95.4"] in lines


def test_metrics_are_an_option_of_the_module_that_a_checkpoint_keeps(
    data: PairDataModule, tmp_path: Path
) -> None:
    module = ContrastiveModule(Angles(), metrics=METRICS)
    values, _ = run(module, data, tmp_path)
    again = ContrastiveModule.load_from_checkpoint(tmp_path / "last.ckpt", encoder=Angles())
    assert again.metrics == METRICS
    assert run(again, data, tmp_path)[0] == values
    with pytest.raises(ValueError, match="got 'recall'"):
        ContrastiveModule(Angles(), metrics=["recall"])
