"""PrecisionAtOne does what torchmetrics and Lightning document of a metric."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from evaluation.subsets import brute_force, expected, subset
from lightning.pytorch import LightningModule, Trainer
from processes import run_on_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection, MetricTracker

from fanoise_lightning import PrecisionAtOne
from fanoise_lightning.evaluation.precision_at_one import SubsetResult

QUERIES, CANDIDATES, EMBEDDINGS = subset()
ITEMS = torch.arange(60)
EXPECTED = expected(QUERIES, CANDIDATES, EMBEDDINGS)


def batches(index: Tensor = ITEMS) -> Iterator[tuple[Tensor, Tensor]]:
    for part in index.split(13):
        yield EMBEDDINGS[part], part


def filled() -> PrecisionAtOne:
    metric = PrecisionAtOne(QUERIES, CANDIDATES)
    for embeddings, index in batches():
        metric.update(embeddings, index)
    return metric


def test_compute_returns_a_scalar_tensor_and_keeps_the_counts() -> None:
    metric = filled()
    assert metric.result is None
    value = metric.compute()
    assert (value.shape, value.dtype) == ((), torch.float32)
    assert metric.result is not None
    assert float(value) == pytest.approx(metric.result.precision) == pytest.approx(EXPECTED)
    assert metric.result.num_queries == len(QUERIES)


def test_the_best_of_several_epochs_is_the_highest() -> None:
    tracker = MetricTracker(PrecisionAtOne(torch.tensor([0]), torch.tensor([[1, 2]])), maximize=None)
    for target in (2, 1, 2):  # what the query is closest to
        tracker.increment()
        tracker.update(torch.eye(3)[[target, 1, 2]], torch.arange(3))
    assert tracker.best_metric(return_step=True) == (1.0, 1)


def test_forward_scores_its_batch_alone_and_adds_it() -> None:
    """Two items tell who wins the first query; the second has its ground truth in the next batch."""
    metric = PrecisionAtOne(torch.tensor([0, 1]), torch.tensor([[1, 0], [2, 0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the other items are missing is no news
        assert metric(torch.eye(2), torch.tensor([0, 1])) == 0
        assert metric.result == SubsetResult(0.0, num_queries=1, num_ties=0, num_skipped=1)
        assert metric(torch.tensor([[0.0, 1.0]]), torch.tensor([2])).isnan()
        assert metric.compute() == 0.5
    assert metric.result == SubsetResult(0.5, num_queries=2, num_ties=0, num_skipped=0)


def test_items_that_are_missing_in_the_end_are_still_a_warning_after_forward() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1, 2]]))
    metric(torch.eye(2), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="1 of 3 texts and images have no embedding"):
        metric.compute()


def test_reset_forgets_the_embeddings_and_keeps_the_result() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1, 2]]))
    metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.arange(3))
    assert metric.compute() == 0
    metric.reset()
    assert metric.result == SubsetResult(0.0, num_queries=1, num_ties=0, num_skipped=0)
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.arange(3))
    assert metric.compute() == 1


def test_updates_after_compute_count() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1, 2]]))
    metric.update(torch.eye(2), torch.tensor([0, 2]))
    with pytest.warns(UserWarning, match="no embedding"):
        assert metric.compute().isnan()
    metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert metric.compute() == 1


@pytest.mark.parametrize("computed", [False, True])
def test_a_copy_goes_on_by_itself(computed: bool) -> None:
    metric = filled()
    if computed:
        metric.compute()
    twin = copy.deepcopy(metric)
    metric.reset()
    assert twin.compute() == pytest.approx(EXPECTED)
    assert twin.result is not None


def test_it_can_be_saved_and_loaded() -> None:
    """As a Trainer with `ddp_spawn` does, and as data loader workers do."""
    metric, file = filled(), io.BytesIO()
    metric.compute()
    torch.save(metric, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.result == metric.result
    loaded.update(EMBEDDINGS[:1], ITEMS[:1])  # wrapped anew, and not the cached value
    assert loaded.compute() == pytest.approx(EXPECTED)


def test_a_collection_scores_two_subsets_of_the_same_items() -> None:
    """Equal states make one compute group: what is updated once, must be scored twice."""
    other_queries, other_candidates, _ = subset(seed=1)
    collection = MetricCollection(
        {
            "one": PrecisionAtOne(QUERIES, CANDIDATES),
            "other": PrecisionAtOne(other_queries, other_candidates),
        },
        prefix="val/",
    )
    values = {"val/one": EXPECTED, "val/other": expected(other_queries, other_candidates, EMBEDDINGS)}
    for _ in range(2):
        for embeddings, index in batches():
            collection.update(embeddings, index)
        assert collection.compute() == pytest.approx(values)
        assert collection["one"].result != collection["other"].result
        collection.reset()
    assert len(collection.compute_groups) == 1


class Logs(LightningModule):
    """Looks its embeddings up, and logs the metric object as Lightning documents."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(EMBEDDINGS.clone())
        self.p1 = PrecisionAtOne(QUERIES, CANDIDATES)
        self.seen: list[SubsetResult | None] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.table[batch[0]].square().sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.p1.update(self.table[batch[0]], batch[0])
        self.log("p1", self.p1, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.p1.compute()
            self.seen.append(self.p1.result)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.table], lr=0.0)


def trainer(**options: Any) -> Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    return Trainer(accelerator="cpu", max_epochs=2, **quiet, **options)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(ITEMS), batch_size=13)


def test_a_lightning_module_logs_the_metric_itself() -> None:
    module, fit = Logs(), trainer(num_sanity_val_steps=0)
    fit.fit(module, loader(), loader())
    assert float(fit.callback_metrics["p1"]) == pytest.approx(EXPECTED)
    assert [result.num_queries for result in module.seen if result] == [40, 40]
    assert fit.validate(module, loader(), verbose=False) == [{"p1": pytest.approx(EXPECTED)}]


class OnlyLogs(Logs):
    """Leaves `compute` and `reset` to Lightning."""

    def on_validation_epoch_end(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore:.*have no embedding:UserWarning")
def test_the_counts_can_be_read_after_lightning_has_reset_the_metric() -> None:
    """One item never arrives, and all candidates of one query tie."""
    module, run, lost = OnlyLogs(), trainer(), int(CANDIDATES[0, 0])
    tied = next(row for row in CANDIDATES.tolist() if lost not in row and min(row[:2]) >= 0)
    with torch.no_grad():
        module.table[[c for c in tied if c >= 0]] = module.table[tied[0]].clone()
    arriving = DataLoader(TensorDataset(ITEMS[lost != ITEMS]), batch_size=13)
    logged = run.validate(module, arriving, verbose=False)[0]["p1"]
    assert not module.p1.update_called  # it has been reset

    table = module.table.tolist()
    kept = [(q, row) for q, row in zip(QUERIES.tolist(), CANDIDATES.tolist()) if lost not in (q, row[0])]
    own = [[table[c] for c in row if c not in (-1, lost)] for _, row in kept]
    outcomes = brute_force([table[q] for q, _ in kept], own)
    ties = sum(0 < outcome < 1 for outcome in outcomes)
    assert len(kept) < len(QUERIES)
    assert ties > 0
    assert module.p1.result is not None
    assert module.p1.result[1:] == (len(kept), ties, len(QUERIES) - len(kept))
    assert module.p1.result.precision == pytest.approx(sum(outcomes) / len(outcomes)) == pytest.approx(logged)


@pytest.mark.filterwarnings("ignore:.*have no embedding:UserWarning")
def test_the_sanity_check_leaves_nothing_behind() -> None:
    fit = trainer(num_sanity_val_steps=1)
    module = Logs()
    fit.fit(module, loader(), loader())
    assert [result.num_queries for result in module.seen if result] == [40, 40]
    assert float(fit.callback_metrics["p1"]) == pytest.approx(EXPECTED)


@pytest.mark.parametrize("case", ["sharded", "one rank empty"])
def test_two_processes_compute_what_one_does(case: str) -> None:
    def rank_of(rank: int) -> tuple[float, SubsetResult | None]:
        if case == "sharded":
            index = torch.cat([torch.arange(rank, 60, 2), torch.tensor([0] * (1 + rank))])  # a sampler pads
        else:
            index = ITEMS if rank == 0 else ITEMS[:0]
        metric = PrecisionAtOne(QUERIES, CANDIDATES)
        for embeddings, part in batches(index) if len(index) else ():
            metric.update(embeddings, part)
        return float(metric.compute()), metric.result

    alone = filled()
    assert run_on_ranks(rank_of, 2) == [(float(alone.compute()), alone.result)] * 2
    assert alone.compute() == pytest.approx(EXPECTED)


def test_two_processes_log_what_one_does() -> None:
    """The Trainer's distributed sampler shards the items; the metric gathers them."""

    def on_rank(rank: int) -> float:
        run = trainer(devices=2, strategy="ddp")
        run.validate(Logs(), loader(), verbose=False)
        return float(run.callback_metrics["p1"])

    assert run_on_ranks(on_rank, 2) == pytest.approx([EXPECTED] * 2)
