"""What a training step logs of a perfect encoder, and what a loss is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from processes import run_on_ranks
from torch import nn
from torch.nn.functional import normalize

from fanoise_lightning import ContrastiveModule, Encoder, InfoNCE, PairDataModule
from fanoise_lightning.evaluation.batch_accuracy import batch_accuracy
from fanoise_lightning.losses import SigmoidLoss
from fanoise_lightning.losses.known_right import Identities
from fanoise_lightning.training.identities import loss_options


class Perfect(Encoder):
    """Embeds a text by its last word: an axis for each."""

    embedding_dim = 16

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def collate(self, samples):
        return {"word": torch.tensor([int(sample.text.split()[-1]) for sample in samples])}

    def forward(self, word):
        return self.scale * torch.eye(16)[word]


class Plain(nn.Module):
    """Somebody's loss that knows no ids, no ranks and no scale."""

    def forward(self, query, target, negatives=None):
        return 1 - (query * target).sum(1).mean()


def quiet_trainer(**options) -> Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    return Trainer(accelerator="cpu", log_every_n_steps=1, limit_val_batches=0, **quiet, **options)


def two_labels(folder: Path, hard: bool = True) -> Path:
    """Pairs of two labels, whose hard negative is the other label."""
    rows = [
        {"qry": f"query {n} of {n % 2}", "qry_image_path": "", "pos_text": f"{n % 2}", "pos_image_path": ""}
        | ({"neg_text": f"{1 - n % 2}", "neg_image_path": ""} if hard else {})
        for n in range(160)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


def logged(path: Path, loss: nn.Module, **options) -> dict[str, float]:
    data = PairDataModule(path, num_workers=0, **{"batch_size": 64, **options})
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(ContrastiveModule(Perfect(), loss), data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("max_logits", [2**21, 70])  # in one block, and in blocks of 2 queries
def test_the_accuracy_is_that_of_a_loop_over_queries(max_logits, monkeypatch):
    monkeypatch.setattr("fanoise_lightning.evaluation.batch_accuracy.MAX_LOGITS", max_logits)
    generator = torch.Generator().manual_seed(0)
    target, hard, error = (normalize(torch.randn(n, 8, generator=generator)) for n in (25, 5, 25))
    query, ids = normalize(target + error), torch.arange(25) // 2
    won = []
    for q, own, number in zip(query.double(), target.double(), ids):
        rivals = torch.cat([target[ids != number], hard]).double()
        won.append(bool((rivals @ q < own @ q).all()))
    found = batch_accuracy(query, target, hard, ids=Identities(target_ids=ids))
    assert found.item() == pytest.approx(sum(won) / 25)
    assert 0.2 < found < 0.8


@pytest.mark.parametrize("hard", [False, True])
def test_a_perfect_encoder_of_two_labels_has_no_loss_and_all_accuracy(tmp_path, hard):
    metrics = logged(two_labels(tmp_path, hard), InfoNCE(0.02, symmetric=True))
    assert metrics["train/loss"] == pytest.approx(0, abs=1e-5)
    assert metrics["train/accuracy"] == 1


@pytest.mark.parametrize("loss", [InfoNCE(0.02), InfoNCE(0.02, symmetric=True), SigmoidLoss(0.02, -25)])
def test_both_directions_of_a_pair_are_not_each_others_negatives(tmp_path, loss):
    rows = [(f"text {n}", f"caption {n}") for n in range(16)]
    rows += [(target, query) for query, target in rows]
    names = ("qry", "qry_image_path", "pos_text", "pos_image_path")
    lines = [json.dumps(dict(zip(names, (query, "", target, "")))) for query, target in rows]
    (tmp_path / "both.jsonl").write_text("\n".join(lines))
    metrics = logged(tmp_path / "both.jsonl", loss, val_fraction=0.2, batch_size=26)
    assert metrics["train/loss"] == pytest.approx(0, abs=1e-5)
    assert metrics["train/accuracy"] == 1


def test_without_a_mask_its_accuracy_is_that_of_drawing_among_ties(tmp_path):
    metrics = logged(two_labels(tmp_path, hard=False), InfoNCE(0.02), mask_same_target="none")
    assert metrics["train/accuracy"] == pytest.approx(2 / 64, abs=1e-3)  # 32 pairs of each label, about


def test_a_loss_that_knows_no_ids_is_trained_and_measured(tmp_path):
    metrics = logged(two_labels(tmp_path), Plain())
    assert metrics["train/accuracy"] == 1
    assert "train/logit_scale" not in metrics


def options_for(loss: nn.Module) -> dict[str, list]:
    batch = {
        "target_id": torch.tensor([3, 4]),
        "query_id": torch.tensor([5, 6]),
        "negative_id": torch.tensor([4]),
        "mask_pairs": torch.tensor([True, False]),
    }
    return {name: x.tolist() for name, x in loss_options(loss, batch).items()}


@pytest.mark.parametrize("loss", [InfoNCE(), SigmoidLoss(), torch.compile(InfoNCE())])
def test_a_loss_is_told_all_that_it_knows(loss):
    ids = {"target_ids": [3, 4], "negative_ids": [4], "query_ids": [5, 6]}
    assert options_for(loss) == {**ids, "mask_pairs": [True, False]}


def test_a_loss_of_target_ids_alone_masks_where_pairs_are_masked():
    class Wrapper(nn.Module):
        def forward(self, query, target, negatives=None, target_ids=None):
            return InfoNCE()(query, target, negatives, target_ids)

    assert options_for(Wrapper()) == {"target_ids": [3, -1]}
    assert options_for(Plain()) == {}


@pytest.mark.parametrize(("gather", "expected"), [(True, [0.5, 0.75]), (False, [0.75, 1])])
def test_accuracy_counts_the_candidates_of_other_ranks_where_the_loss_does(gather, expected):
    """Both ranks have a target 1, and rank 0 has a hard negative that is like its target 0: ties."""
    words = [[0, 1], [1, 2]]

    def run(rank):
        module, values = ContrastiveModule(Perfect(), InfoNCE(gather=gather)), {}
        module.log = lambda name, value, **_: values.update({name: float(value)})
        module._trainer = type("Stub", (), {"world_size": 2})()
        sides = [torch.eye(16)[words[rank]]] * 2
        if rank == 0:
            sides.append(torch.eye(16)[[0]])
        module._log_statistics(sides, {})
        return values["train/accuracy"]

    assert run_on_ranks(run, 2) == pytest.approx(expected)


def test_nothing_is_gathered_but_at_the_log_interval(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "fanoise_lightning.module.batch_accuracy", lambda *a, **k: calls.append(1) or torch.ones(())
    )
    trainer = quiet_trainer(max_steps=4)
    trainer.log_every_n_steps = 2
    trainer.fit(
        ContrastiveModule(Perfect(), InfoNCE()),
        PairDataModule(two_labels(tmp_path), batch_size=16, num_workers=0),
    )
    assert len(calls) == 2
