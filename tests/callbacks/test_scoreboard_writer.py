from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fanoise_lightning._version import __version__
from fanoise_lightning.callbacks.scoreboard_writer import ScoreboardWriter
from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.evaluation.mmeb_published import published
from fanoise_lightning.evaluation.ranks import rank
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import SubsetScore
from fanoise_lightning.subset import Subset

MEANS_OF_CIRR = ("retrieval", "IND", "overall", "mean_of_meta_tasks")
OUTCOMES = torch.tensor([1.0, 0.0] * 50)


class Scored(LightningModule):
    """Keeps a scoreboard, as ContrastiveModule does: a score of 0.1 more at each validation."""

    def __init__(self) -> None:
        super().__init__()
        self.scoreboard: Scoreboard | None = None
        self.layer = nn.Linear(2, 1)
        self.validations = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validations += 1
            score = self.validations / 10
            self.scoreboard = Scoreboard([SubsetScore("CIRR", "retrieval", "IND", score, 100)])

    def on_test_epoch_end(self) -> None:
        self.scoreboard = Scoreboard([SubsetScore("FashionIQ", "retrieval", "OOD", 0.7, 100)])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader:
    return DataLoader(torch.ones(4, 2), batch_size=2)  # type: ignore[arg-type]


def trainer(root: Path, *callbacks: Any, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"enable_checkpointing": False, "max_epochs": 2, **quiet, **settings}
    return Trainer(accelerator="cpu", default_root_dir=root, callbacks=list(callbacks), **settings)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_validation_is_written_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = Scored()
    trainer(tmp_path, ScoreboardWriter()).fit(module, loader(), loader())
    written = read(tmp_path / "scores.json")
    assert module.scoreboard is not None
    assert written["scoreboard"] == module.scoreboard.to_dict()
    assert (written["step"], written["epoch"]) == (4, 1)
    printed = capsys.readouterr().out
    assert "validation, step 2" in printed
    assert "validation, step 4" in printed
    assert "CIRR" in printed


def test_the_history_holds_every_validation(tmp_path: Path) -> None:
    trainer(tmp_path, ScoreboardWriter()).fit(Scored(), loader(), loader())
    history = read(tmp_path / "scores.json")["history"]
    assert [(entry["step"], entry["epoch"], entry["means"]["overall"]) for entry in history] == [
        (2, 0, 0.1),
        (4, 1, 0.2),
    ]


def test_the_history_survives_a_resume(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    trainer(tmp_path, ScoreboardWriter(), keep, enable_checkpointing=True, max_epochs=1).fit(
        Scored(), loader(), loader()
    )
    trainer(tmp_path, ScoreboardWriter()).fit(
        Scored(), loader(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert [entry["step"] for entry in read(tmp_path / "scores.json")["history"]] == [2, 4]


def fit(root: Path, folder: Path | None = None, path: Path | None = None, **options: Any) -> None:
    keep = ModelCheckpoint(folder, save_last=True)
    trainer(root, ScoreboardWriter(path), keep, enable_checkpointing=True, max_epochs=1).fit(
        Scored(), loader(), loader(), **options
    )


@pytest.mark.parametrize("place", ["the root", "a folder", "beside the scores"])
def test_a_fit_leaves_no_scores_beside_another_runs_checkpoints(tmp_path: Path, place: str) -> None:
    folder = None if place == "the root" else tmp_path / "kept"
    path = tmp_path / "kept" if place == "beside the scores" else None
    fit(tmp_path, folder, path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"\.ckpt is another run's"):
        fit(tmp_path, folder, path)
    if path is not None:  # nor where they are the scores' neighbours alone
        with pytest.raises(ValueError, match=r"\.ckpt is another run's"):
            fit(tmp_path, tmp_path / "elsewhere", path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_folder_is_used_again_by_the_run_that_used_it(tmp_path: Path) -> None:
    fit(tmp_path)
    fit(tmp_path, ckpt_path="last", weights_only=True)
    twice = trainer(tmp_path / "twice", ScoreboardWriter(), enable_checkpointing=True, max_epochs=1)
    twice.fit(Scored(), loader(), loader())
    twice.fit_loop.max_epochs = 2
    twice.fit(Scored(), loader(), loader())
    assert read(tmp_path / "twice" / "scores.json")["step"] == 4


def test_an_evaluation_may_write_to_the_folder_of_a_run(tmp_path: Path) -> None:
    fit(tmp_path)
    trainer(tmp_path, ScoreboardWriter()).validate(Scored(), loader(), verbose=False)
    trainer(tmp_path, ScoreboardWriter()).test(Scored(), loader(), verbose=False)


def test_the_sanity_check_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Unlucky(Scored):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise RuntimeError("after the sanity check")

    module = Unlucky()
    module.scoreboard = Scoreboard([SubsetScore("CIRR", "retrieval", "IND", 0.5, 100)])
    with pytest.raises(RuntimeError, match="after the sanity check"):
        trainer(tmp_path, ScoreboardWriter()).fit(module, loader(), loader())
    assert "CIRR" not in capsys.readouterr().out
    assert not (tmp_path / "scores.json").exists()


def test_a_test_has_a_file_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, ScoreboardWriter(str(tmp_path / "out"))).test(Scored(), loader(), verbose=False)
    assert list(read(tmp_path / "out" / "test_scores.json")["scoreboard"]["subsets"]) == ["FashionIQ"]
    assert not (tmp_path / "out" / "scores.json").exists()
    assert "FashionIQ" in capsys.readouterr().out


def test_the_speed_is_printed_and_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Fast(Scored):
        def on_test_epoch_end(self) -> None:
            super().on_test_epoch_end()
            assert self.scoreboard is not None
            self.scoreboard = Scoreboard(self.scoreboard.subsets, sides_per_second=1234.5678)

    files = []
    for module in (Scored(), Fast()):
        trainer(tmp_path, ScoreboardWriter()).test(module, loader(), verbose=False)
        files.append(read(tmp_path / "test_scores.json"))
    assert files[0] == files[1]
    assert capsys.readouterr().out.count("1,235 queries and targets embedded per second") == 1


def test_by_default_it_writes_beside_the_log(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="run", version="a")
    trainer(tmp_path, ScoreboardWriter(), logger=logger).validate(Scored(), loader(), verbose=False)
    assert (tmp_path / "run" / "a" / "scores.json").exists()


def test_a_fast_dev_run_prints_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, ScoreboardWriter(), fast_dev_run=True).fit(Scored(), loader(), loader())
    assert "CIRR" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.json"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scores.json").write_text("old")

    def full_disk(self: Path, *args: Any, **kwargs: Any) -> int:
        self.touch()
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        trainer(tmp_path, ScoreboardWriter()).validate(Scored(), loader(), verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert (tmp_path / "scores.json").read_text() == "old"


def test_a_module_without_scoreboard_is_refused(tmp_path: Path) -> None:
    module = Scored()
    del module.scoreboard
    with pytest.raises(ValueError, match="`scoreboard`, which Scored does not have"):
        trainer(tmp_path, ScoreboardWriter()).validate(module, loader(), verbose=False)


def test_published_scores_stand_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = ScoreboardWriter(published="Qwen2-VL-2B")
    trainer(tmp_path, writer).validate(Scored(), loader(), verbose=False)
    only_cirr = {"subsets": {"CIRR": 0.468}, "means": dict.fromkeys(MEANS_OF_CIRR, 0.468)}
    assert read(tmp_path / "scores.json")["published"] == {
        "backbone": "Qwen2-VL-2B",
        "VLM2Vec": only_cirr,
        "FANoise": {"subsets": {}, "means": {}},  # known over all 36 subsets only
    }
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [line for line in lines if line[:1] == ["CIRR"]]
    assert row[-3:] == ["46.8", "-", "100"]


def test_the_run_and_what_each_query_scored_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Each(Scored):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("train/loss", 0.25)
            return super().training_step(batch, batch_idx)

        def on_validation_epoch_end(self) -> None:
            self.log("val/other", 0.5)
            outcomes = torch.tensor([1, 0, 0.5, torch.nan])
            self.scoreboard = Scoreboard([SubsetScore.of(CATALOG["CIRR"].subset, outcomes)])

    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    trainer(tmp_path, ScoreboardWriter()).fit(Each(), loader(), loader())
    assert read(tmp_path / "outcomes.json") == {"step": 4, "outcomes": {"CIRR": [1, 0, 0.5, None]}}
    written = read(tmp_path / "scores.json")
    assert written["run"] == {"seed": 7, "version": __version__, "data": None}
    assert written["metrics"] == {"train/loss": 0.25}


def test_a_scoreboard_without_outcomes_writes_none(tmp_path: Path) -> None:
    trainer(tmp_path, ScoreboardWriter()).fit(Scored(), loader(), loader())
    assert not (tmp_path / "outcomes.json").exists()


def test_published_means_stand_beside_a_whole_evaluation(tmp_path: Path) -> None:
    class Whole(Scored):
        def on_validation_epoch_end(self) -> None:
            self.scoreboard = Scoreboard([SubsetScore.of(e.subset, OUTCOMES) for e in CATALOG.values()])

    trainer(tmp_path, ScoreboardWriter(published="Phi-3.5-V")).validate(Whole(), loader(), verbose=False)
    written = read(tmp_path / "scores.json")["published"]
    assert written["FANoise"]["means"] == {"overall": 0.608}
    assert (written["VLM2Vec"]["means"]["IND"], written["VLM2Vec"]["means"]["overall"]) == (0.665, 0.601)
    assert written["VLM2Vec"]["means"]["mean_of_meta_tasks"] == pytest.approx(0.62875)


def test_scores_of_other_subsets_have_nothing_published_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Own(Scored):
        def on_validation_epoch_end(self) -> None:
            self.scoreboard = Scoreboard([SubsetScore.of(Subset("emoji", "retrieval", "IND", {}), OUTCOMES)])

    trainer(tmp_path, ScoreboardWriter(published="Phi-3.5-V")).validate(Own(), loader(), verbose=False)
    assert "none of these subsets is one of MMEB's" in capsys.readouterr().out.replace("\n", " ")
    assert read(tmp_path / "scores.json")["receipts"] == {}


def test_without_a_backbone_nothing_is_said_of_published_scores(tmp_path: Path) -> None:
    trainer(tmp_path, ScoreboardWriter()).validate(Scored(), loader(), verbose=False)
    assert "published" not in read(tmp_path / "scores.json")


def test_an_unknown_backbone_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="unknown backbone `Qwen2-VL`; did you mean `Qwen2-VL-"):
        ScoreboardWriter(published="Qwen2-VL")


def whole(difference: float = 0.0) -> type[Scored]:
    """Scores all of MMEB as published for Qwen2-VL-7B, and GQA off by some points."""
    scores = dict(published("Qwen2-VL-7B")["VLM2Vec"].subsets)
    scores["GQA"] += difference
    kinds = [entry.subset for entry in CATALOG.values()]

    class Whole(Scored):
        def on_test_epoch_end(self) -> None:
            self.scoreboard = Scoreboard(
                [SubsetScore(s.name, s.meta_task, s.distribution, scores[s.name], 1000) for s in kinds]
            )

    return Whole


def test_receipts_say_which_published_scores_are_near(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = ScoreboardWriter(published="Qwen2-VL-7B")
    trainer(tmp_path, writer).test(whole(0.10)(), loader(), verbose=False)
    receipts = read(tmp_path / "test_scores.json")["receipts"]
    near = receipts["VLM2Vec, Qwen2-VL-7B"]
    assert near["num_inside"] == 35
    assert near["subsets"]["GQA"] == {"published": 0.551, "difference": pytest.approx(0.1), "inside": False}
    assert receipts["CLIP"]["means"]["overall"]["inside"] is False
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "VLM2Vec, Qwen2-VL-7B: 35 of 36 subsets inside (4 may be outside by chance)" in printed
    assert "GQA +10.0" in printed
    assert "overall within sampling error of: VLM2Vec, Qwen2-VL-7B" in printed


def test_a_file_for_the_leaderboard(tmp_path: Path) -> None:
    class Ranked(Scored):
        def on_test_epoch_end(self) -> None:
            ranks = rank(torch.tensor([[0.5, 0.1], [0.2, 0.6]]), torch.ones(2, 1, dtype=torch.bool))
            self.scoreboard = Scoreboard([SubsetScore.of_ranks(CATALOG["CIRR"].subset, ranks)])

    file = tmp_path / "board" / "Ours-2B.json"
    with pytest.warns(UserWarning, match=r"Ours-2B\.json is not complete .* it lacks ImageNet-1K, N24News"):
        trainer(tmp_path, ScoreboardWriter(leaderboard=file)).test(Ranked(), loader(), verbose=False)
    written = read(file)
    assert written["metadata"]["model_name"] == "Ours-2B"
    assert written["metadata"]["data_source"] == "Self-Reported"
    cirr = written["metrics"]["image"]["CIRR"]
    assert (cirr["hit@1"], cirr["num_pred"], cirr["num_data"]) == (0.5, 2, 2)


def test_scores_are_written_even_if_the_leaderboard_cannot_take_them(tmp_path: Path) -> None:
    writer = ScoreboardWriter(leaderboard=tmp_path / "Ours.json")
    with pytest.raises(ValueError, match="subset 'FashionIQ' was scored without ranks"):
        trainer(tmp_path, writer).test(Scored(), loader(), verbose=False)
    assert (tmp_path / "test_scores.json").exists()
    assert not (tmp_path / "Ours.json").exists()


def test_the_leaderboards_file_may_be_in_the_home_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ScoreboardWriter(leaderboard="~/Ours.json").leaderboard == tmp_path / "Ours.json"


def test_a_folder_for_the_leaderboard_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder: name a file in it, <model>\.json"):
        ScoreboardWriter(leaderboard=tmp_path)
