"""Validation and test: one pass over what all subsets consist of, then a score for each."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from data_roots import eval_row, make_root, make_trainer, write_rows
from lightning.pytorch import Trainer
from processes import run_on_ranks
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fanoise_lightning import ContrastiveModule, Encoder, MMEBDataModule, PrecisionAtOne, Sample


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    greys = [-1 if sample.image is None else sample.image.getpixel((0, 0))[0] for sample in samples]
    texts = [zlib.crc32(sample.text.encode()) for sample in samples]
    return {"text": torch.tensor(texts), "grey": torch.tensor(greys)}


class Hashing(Encoder):
    """A fixed random vector for each text and grey: a row does not depend on its batch, bit for bit."""

    embedding_dim = 8
    collate = staticmethod(collate)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Counter[tuple[int, int]] = Counter()

    def forward(self, text: Tensor, grey: Tensor) -> Tensor:
        keys = list(zip(text.tolist(), grey.tolist(), strict=True))
        self.seen.update(keys)
        draws = [torch.Generator().manual_seed(1000 * t + g) for t, g in keys]
        return torch.stack([torch.randn(8, generator=draw) for draw in draws])


def evaluation_root(path: Path) -> Path:
    """Three subsets of 6, 6 and 23 queries, with 2 to 7 candidates, that share many sides."""
    make_root(path)
    table = json.loads((path / "subsets.json").read_text())
    table.append({"name": "many", "meta_task": "vqa", "distribution": "OOD"})
    (path / "subsets.json").write_text(json.dumps(table))
    candidates = [[(row + step) % 11 for step in range(2 + row % 6)] for row in range(23)]
    rows = [eval_row(row % 8, own, f"{row % 5}.png" if row % 3 else "") for row, own in enumerate(candidates)]
    write_rows(path / "eval" / "many.jsonl", rows)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return evaluation_root(tmp_path / "root")


def evaluate(
    root: Path,
    module: ContrastiveModule | None = None,
    trainer: Trainer | None = None,
    **options: Any,
) -> ContrastiveModule:
    module = module or ContrastiveModule(Hashing())
    data = MMEBDataModule(root, **{"num_workers": 0, "eval_batch_size": 5, **options})
    (trainer or make_trainer(root)).validate(module, data, verbose=False)
    return module


def scores(module: ContrastiveModule) -> dict[str, Any]:
    assert module.scoreboard is not None
    return module.scoreboard.to_dict()["subsets"]


def by_subset(root: Path) -> dict[str, dict[str, Any]]:
    """What PrecisionAtOne says of each subset by itself."""
    encoder, results = Hashing(), {}
    data = MMEBDataModule(root, num_workers=0, eval_batch_size=4, collate=collate)
    data.setup("predict")
    for loader in data.predict_dataloader():
        subset = loader.dataset
        metric = PrecisionAtOne(subset.queries, subset.candidates, name=subset.subset.name)  # type: ignore[attr-defined]
        for batch in loader:
            metric.update(F.normalize(encoder(**batch["inputs"]), dim=1), batch["index"])
        metric.compute()
        results[subset.subset.name] = metric.result._asdict()  # type: ignore[attr-defined,union-attr]
    return results


def test_one_pass_scores_each_subset_as_if_it_were_alone(root: Path) -> None:
    ours, alone = scores(evaluate(root)), by_subset(root)
    assert list(ours) == list(alone) == ["reading", "looking", "many"]
    for name, result in alone.items():
        assert {key: ours[name][key] for key in result} == result
    assert all(0 < result["precision"] < 1 for result in alone.values())


def test_what_subsets_share_is_encoded_once(root: Path) -> None:
    module = evaluate(root)
    assert set(module.encoder.seen.values()) == {1}
    rows = [json.loads(line) for file in (root / "eval").iterdir() for line in file.read_text().splitlines()]
    items = {(row["qry_text"].removeprefix("<|image_1|> "), row["qry_img_path"]) for row in rows}
    items |= {(text, "") for row in rows for text in row["tgt_text"]}
    assert len(module.encoder.seen) == len(items)


def test_the_speed_is_that_of_embedding_each_side_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.0])  # when the pass begins, and when all embeddings have arrived
    monkeypatch.setattr("fanoise_lightning.evaluation.scorer.perf_counter", lambda: next(clock))
    module = evaluate(root)
    assert module.scoreboard is not None
    assert module.scoreboard.sides_per_second == len(module.encoder.seen) / 4


def test_chosen_subsets_score_what_they_score_among_all(root: Path) -> None:
    everything = scores(evaluate(root))
    chosen = scores(evaluate(root, eval_subsets=["many", "reading"]))
    assert chosen == {name: everything[name] for name in ("reading", "many")}


def test_a_test_is_a_validation(root: Path) -> None:
    module = ContrastiveModule(Hashing())
    trainer = make_trainer(root)
    trainer.test(module, MMEBDataModule(root, num_workers=0), verbose=False)
    assert scores(module) == scores(evaluate(root))
    assert "test/precision_at_1/vqa/many" in trainer.callback_metrics


def test_a_broken_image_costs_each_subset_its_own_queries(root: Path) -> None:
    """It is the image of one query of `looking`, and of several of `many`."""
    (root / "images" / "3.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"subset `(looking|many)`, item .*3\.png") as caught:
        ours = scores(evaluate(root, max_skipped=0.9))
    assert (ours["reading"]["num_skipped"], ours["looking"]["num_skipped"]) == (0, 1)
    assert ours["many"]["num_skipped"] == sum(row % 5 == 3 and row % 3 > 0 for row in range(23))
    said = [str(warning.message) for warning in caught]
    assert [text for text in said if "subset 'looking': 1 of 12 texts and images have no embedding" in text]
    assert [text for text in said if "subset 'many': " in text and "no embedding" in text]
    assert not [text for text in said if "'reading'" in text]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_subset_without_one_readable_query_has_no_score(root: Path) -> None:
    for image in (root / "images").iterdir():
        image.unlink()
    ours = scores(evaluate(root, max_skipped=1.0, eval_batch_size=2))  # batches without one good item
    assert (ours["looking"]["precision"], ours["looking"]["num_skipped"]) == (None, 6)
    assert ours["reading"] == scores(evaluate(root, eval_subsets=["reading"]))["reading"]


def test_a_broken_encoder_is_an_error_that_names_the_subset(root: Path) -> None:
    class Broken(Hashing):
        def forward(self, text: Tensor, grey: Tensor) -> Tensor:
            return super().forward(text, grey).masked_fill((grey >= 0)[:, None], float("nan"))

    with pytest.raises(ValueError, match=r"subset 'looking': .* scores are not finite"):
        evaluate(root, ContrastiveModule(Broken()))


def test_loaders_of_something_else_are_refused(root: Path) -> None:
    loader = DataLoader(torch.zeros(4, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"EvalSuite\), got Tensor; use MMEBDataModule"):
        make_trainer(root).validate(ContrastiveModule(Hashing()), loader, verbose=False)


def test_the_scores_are_forgotten_and_the_embeddings_freed_before_the_next_pass(root: Path) -> None:
    module = evaluate(root)
    assert module._scorer is None
    first = scores(module)
    assert scores(evaluate(root, module)) == first


def test_two_processes_score_what_one_does(root: Path) -> None:
    """To the bit, with a number of items that does not divide, each encoding its half."""

    def on_rank(rank: int) -> tuple[dict[str, Any], int]:
        module = evaluate(root, trainer=make_trainer(root, devices=2, strategy="ddp"))
        return scores(module), sum(module.encoder.seen.values())

    alone = evaluate(root)
    number = len(alone.encoder.seen)
    assert number % 2 == 1
    assert run_on_ranks(on_rank, 2) == [(scores(alone), (number + 1) // 2)] * 2
