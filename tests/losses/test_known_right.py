"""What losses and accuracy take for right: loops over a global matrix whose identities are letters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_on_ranks
from torch.nn import functional as F

from fanoise_lightning.evaluation.batch_accuracy import batch_accuracy
from fanoise_lightning.losses import InfoNCE, SigmoidLoss, tiled
from fanoise_lightning.losses.known_right import Identities

LOSSES = {
    "InfoNCE": lambda: InfoNCE(0.3, learnable_temperature=True),
    "symmetric": lambda: InfoNCE(0.3, symmetric=True, learnable_temperature=True),
    "SigmoidLoss": SigmoidLoss,
}


@dataclass
class World:
    """Pairs and hard negatives of all ranks in a row, by name; ``?`` is like no other.

    The same letter is the same text and image, whether as a query, a target or a hard negative.
    """

    queries: str
    targets: str
    negatives: str = ""
    mask_pairs: str = ""  # y or n for each pair
    per_rank: tuple[int, ...] = ()  # how many hard negatives each rank has

    def knows(self, row: int, column: int) -> bool:
        """Whether a candidate (targets, then negatives) is no negative of a query, besides its own target."""
        candidates = self.targets + self.negatives
        if column == row:
            return False
        if candidates[column] == self.queries[row] != "?":
            return True
        if column < len(self.targets) and "n" in self.mask_pairs[row : row + 1]:
            return False
        return any(
            (k == row or self.queries[k] == self.queries[row] != "?")
            and (k == column or self.targets[k] == candidates[column] != "?")
            for k in range(len(self.queries))
        )

    def knows_back(self, row: int, column: int) -> bool:
        """The same of a target and the query of another pair."""
        if column == row:
            return False
        if self.queries[column] == self.targets[row] != "?":
            return True
        if "n" in self.mask_pairs[row : row + 1]:
            return False
        return any(
            (k == row or self.targets[k] == self.targets[row] != "?")
            and (k == column or self.queries[k] == self.queries[column] != "?")
            for k in range(len(self.queries))
        )

    def features(self, rank: int = 0, ranks: int = 1) -> list[torch.Tensor]:
        sizes = self.per_rank if ranks > 1 else (len(self.negatives),)
        rows, first = len(self.queries) // ranks, sum(sizes[:rank])
        parts = [
            vectors(len(self.queries), 1)[rank * rows : (rank + 1) * rows],
            vectors(len(self.queries), 2)[rank * rows : (rank + 1) * rows],
            vectors(len(self.negatives), 3)[first : first + sizes[rank]],
        ]
        return [part.clone().requires_grad_() for part in parts]

    def ids(self, rank: int = 0, ranks: int = 1) -> Identities:
        sizes = self.per_rank if ranks > 1 else (len(self.negatives),)
        rows, first = len(self.queries) // ranks, sum(sizes[:rank])
        own = slice(rank * rows, (rank + 1) * rows)
        numbers = [numbered(text) for text in (self.targets[own], self.queries[own])]
        hard = numbered(self.negatives[first : first + sizes[rank]])
        flags = torch.tensor([flag == "y" for flag in self.mask_pairs[own]]) if self.mask_pairs else None
        return Identities(numbers[0], hard, numbers[1], flags)


def numbered(names: str) -> torch.Tensor:
    return torch.tensor([-1 if name == "?" else 2**62 + ord(name) for name in names], dtype=torch.long)


def vectors(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)), dim=1)


def by_loop(name: str, world: World) -> float:
    query, target, hard = (x.detach().double() for x in world.features())
    candidates, total, rows = torch.cat([target, hard]), 0.0, range(len(query))
    if name == "SigmoidLoss":
        for i in rows:
            for j in range(len(candidates)):
                if not world.knows(i, j):
                    logit = 10 * float(query[i] @ candidates[j]) - 10
                    total += math.log1p(math.exp(-logit if i == j else logit))
        return total / len(query)

    def one_way(left, right, knows):
        loss = 0.0
        for i in rows:
            logits = [float(left[i] @ right[j]) / 0.3 for j in range(len(right)) if not knows(i, j)]
            loss += math.log(sum(map(math.exp, logits))) - float(left[i] @ right[i]) / 0.3
        return loss / len(query)

    forward = one_way(query, candidates, world.knows)
    return (forward + one_way(target, query, world.knows_back)) / 2 if name == "symmetric" else forward


def accuracy_by_loop(world: World, query, target, hard) -> float:
    candidates, total = [*target, *hard], 0.0
    for i, q in enumerate(query):
        scores = {
            j: float(q.double() @ c.double()) for j, c in enumerate(candidates) if not world.knows(i, j)
        }
        best = [j for j, score in scores.items() if score >= max(scores.values()) - 1e-6]
        total += (i in best) / len(best)
    return total / len(query)


def loss_of(name: str, world: World, rank: int = 0, ranks: int = 1) -> list[torch.Tensor]:
    """The loss, and the gradients of features and parameters."""
    loss, features = LOSSES[name](), world.features(rank, ranks)
    value = loss(*features, **world.ids(rank, ranks)._asdict())
    return [value.detach(), *torch.autograd.grad(value, [*features, *loss.parameters()], allow_unused=True)]


@st.composite
def worlds(draw, ranks: int = 1) -> World:
    rows = ranks * draw(st.integers(1 if ranks > 1 else 2, 4))
    per_rank = tuple(draw(st.integers(0, 3)) for _ in range(ranks))
    negatives = draw(st.text("ABp?", min_size=sum(per_rank), max_size=sum(per_rank)))
    flags = draw(st.sampled_from(["", "yn"]))
    queries = draw(st.sampled_from(["pq?", "ABp?"]))  # some are targets or hard negatives too
    return World(
        draw(st.text(queries, min_size=rows, max_size=rows)),
        draw(st.text("ABC?", min_size=rows, max_size=rows)),
        negatives,
        draw(st.text(flags, min_size=rows, max_size=rows)) if flags else "",
        per_rank,
    )


@settings(max_examples=150, deadline=None)
@given(worlds(), st.sampled_from(sorted(LOSSES)))
def test_losses_leave_out_what_is_known_to_be_right(world, name):
    assert loss_of(name, world)[0].item() == pytest.approx(by_loop(name, world), rel=1e-4, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(worlds(), st.data())
def test_accuracy_leaves_it_out_and_shares_ties(world, data):
    corners = torch.eye(3)
    draw = lambda size: corners[[data.draw(st.integers(0, 2)) for _ in range(size)]]  # noqa: E731
    sides = draw(len(world.queries)), draw(len(world.queries)), draw(len(world.negatives))
    ours = batch_accuracy(*sides, ids=world.ids())
    assert ours.item() == pytest.approx(accuracy_by_loop(world, *sides), abs=1e-6)


# Each line is one of the ways in which a candidate can be right
KINDS = [
    ("the own target again in another pair", World("pq", "AA"), {(0, 1), (1, 0)}),
    ("a hard negative of the row", World("pq", "AB", "A"), {(0, 2)}),
    ("another target of the same query", World("pp", "AB"), {(0, 1), (1, 0)}),
    (
        "a hard negative that is another target of the same query",
        World("ppq", "ABC", "B"),
        {(0, 1), (1, 0), (0, 3), (1, 3)},
    ),
    ("a third pair tells of it", World("ppq", "ABA"), {(0, 2), (2, 0), (0, 1), (1, 0), (1, 2)}),
    ("hard negatives of unknown targets", World("pq", "??", "AA"), set()),
    ("nothing is known", World("??", "??", "??"), set()),
    ("rows without a mask for pairs", World("pq", "AA", "A", "yn"), {(0, 1), (0, 2), (1, 2)}),
    ("pairs are not read backwards", World("ABp", "BCA"), {(0, 2), (1, 0)}),
    ("both directions of a pair", World("AB", "BA"), {(0, 1), (1, 0)}),
    ("the query itself as a hard negative", World("AB", "CD", "AB"), {(0, 2), (1, 3)}),
    (
        "the query itself, in rows without a mask for pairs",
        World("ABp", "BAA", "A", "nnn"),
        {(0, 1), (0, 2), (0, 3), (1, 0), (1, 3), (2, 3)},
    ),
    ("the query itself as its own target", World("AB", "AC"), set()),
    ("unknown queries and targets are not the same", World("??", "??", "?"), set()),
]


@pytest.mark.parametrize(("world", "right"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_each_kind_of_known_right(world, right):
    """Features by which the loss of a row is the logarithm of how many candidates it has."""
    rows, columns = len(world.queries), len(world.targets + world.negatives)
    assert {(i, j) for i in range(rows) for j in range(columns) if world.knows(i, j)} == right
    query, target, hard = (
        x.zero_() for x in (vectors(rows, 0), vectors(rows, 0), vectors(columns - rows, 0))
    )
    loss = InfoNCE(1.0)(query, target, hard, **world.ids()._asdict())
    left = [columns - sum(i == row for i, _ in right) for row in range(rows)]
    assert loss.item() == pytest.approx(sum(map(math.log, left)) / rows, abs=1e-6)


def test_the_own_target_is_never_left_out():
    query = torch.eye(3).requires_grad_()
    ids = torch.zeros(3, dtype=torch.long)
    for loss in (InfoNCE(1.0, symmetric=True), SigmoidLoss()):
        value = loss(query, torch.eye(3), torch.eye(3), target_ids=ids, negative_ids=ids, query_ids=ids)
        expected = 0.0 if isinstance(loss, InfoNCE) else math.log(2)  # of each pair alone: its logit is 0
        assert value.item() == pytest.approx(expected, abs=1e-6)


WORLDS = [
    World("pqpr", "ABCA", "AB?", "", (2, 1)),
    World("pqpr", "A?CA", "C", "ynyn", (0, 1)),
    World("ppqq??", "ABABAA", "BA", "", (2, 0)),
    World("pq?p", "ABBC", "", "", (0, 0)),
    World("pAqB", "ApBq", "Bp", "", (1, 1)),
    World("pA?A", "ApA?", "?pA", "nnyn", (0, 3)),
]


@pytest.mark.parametrize("rows_per_block", [None, 1])
def test_ranks_are_one_joined_batch(rows_per_block, monkeypatch):
    cases = [(name, world) for name in LOSSES for world in WORLDS]
    if rows_per_block:
        monkeypatch.setattr(tiled, "MIN_ROWS", rows_per_block)
        monkeypatch.setattr(tiled, "MAX_LOGITS", 1)

    def run(rank):
        losses = [loss_of(name, world, rank, 2) for name, world in cases]
        options = [(world.features(rank, 2), world.ids(rank, 2)) for world in WORLDS]
        return losses, [batch_accuracy(*sides, ids=ids, gather=True) for sides, ids in options]

    results = run_on_ranks(run, 2)
    for case, (name, world) in enumerate(cases):
        first, second = (result[0][case] for result in results)
        assert (first[0] + second[0]).item() / 2 == pytest.approx(by_loop(name, world), rel=1e-4)
        for k, grad in enumerate(loss_of(name, world)[1:]):  # of queries, targets, hard negatives, parameters
            if grad is not None:
                pair = first[1 + k], second[1 + k]
                joined = torch.cat(pair) if k < 3 else sum(pair)
                assert torch.allclose(joined / 2, grad, atol=1e-5), (name, world, k)
    for case, world in enumerate(WORLDS):
        expected = accuracy_by_loop(world, *(x.detach() for x in world.features()))
        assert sum(float(result[1][case]) for result in results) / 2 == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_ids_may_be_missing_on_a_rank(name):
    """The rank without them has hard negatives, and is like no other."""
    whole = World("pq??", "AB??", "B?A?", "", (1, 3))
    told = World("pq??", "AB??", "B???", "", (1, 3))

    def run(rank):
        ids = whole.ids(rank, 2)._asdict() if rank == 0 else {}
        return LOSSES[name]()(*whole.features(rank, 2), **ids).detach()

    assert sum(run_on_ranks(run, 2)).item() / 2 == pytest.approx(by_loop(name, told), rel=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "negative_ids",
            torch.zeros(2).long(),
            r"`negative_ids` of shape \(3,\) and an integer dtype, got \(2,\)",
        ),
        ("query_ids", torch.zeros(4), r"`query_ids` of shape \(4,\) and an integer dtype, got .*float32"),
        ("target_ids", torch.zeros(4).bool(), "an integer dtype, got .*bool"),
        ("mask_pairs", torch.zeros(4).long(), r"`mask_pairs` of shape \(4,\) and dtype bool, got .*int64"),
    ],
)
@pytest.mark.parametrize("loss", [InfoNCE(), SigmoidLoss()])
def test_numbers_that_do_not_fit_are_named(loss, field, value, message):
    with pytest.raises(ValueError, match=message):
        loss(vectors(4, 0), vectors(4, 1), vectors(3, 2), **{field: value})


def test_a_perfect_encoder_has_no_loss_on_two_labels_with_the_other_as_hard_negative():
    labels = torch.arange(64) % 2
    query, hard = torch.eye(4)[labels], torch.eye(4)[1 - labels]
    ids = {"target_ids": labels, "negative_ids": 1 - labels}
    assert InfoNCE(0.02)(query, query, hard, **ids).item() == pytest.approx(0, abs=1e-6)
    assert batch_accuracy(query, query, hard, ids=Identities(**ids)) == 1
    assert batch_accuracy(query, query, hard) == 1 / 64  # nobody said that they are the same: ties


def test_accuracy_counts_hard_negatives_and_holds_no_whole_matrix(monkeypatch):
    query = torch.eye(6)
    better = torch.stack([query[0], query[1]])
    assert batch_accuracy(query, query * 0.9, better).item() == pytest.approx(4 / 6)
    shapes = []
    monkeypatch.setattr("fanoise_lightning.evaluation.batch_accuracy.MAX_LOGITS", 12)
    original = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: shapes.append(a.shape) or original(a, b))
    assert batch_accuracy(query, query).item() == 1
    assert [tuple(shape) for shape in shapes] == [(2, 6)] * 3


def test_accuracy_of_a_broken_encoder_is_nan_and_no_error():
    query = torch.eye(3)
    query[1] = torch.nan
    assert batch_accuracy(query, torch.eye(3)).isnan()


def test_accuracy_knows_ties_under_autocast():
    query = F.normalize(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    nearly = F.normalize(query + 1e-2 * query.roll(1, 0), dim=1)  # the same in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert batch_accuracy(query, query, nearly) == 1
        assert batch_accuracy(query, query, query) == 0.5
