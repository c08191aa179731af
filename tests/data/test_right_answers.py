"""No right answer of a query counts as a wrong candidate, whichever pair says so: against plain sets."""

from __future__ import annotations

import random
from typing import Any

import pytest
from data_roots import collate

from fanoise_lightning.data import PairDataModule

Texts = set[tuple[str, str]]


def dense(seed: int, count: int = 120) -> list[dict[str, str]]:
    """Pairs of few texts in both directions: they can only be split pair by pair."""
    draw = random.Random(seed)
    pairs = [(f"t{draw.randrange(12)}", f"t{draw.randrange(4, 20)}") for _ in range(count)]
    return [{"q": first, "t": second} for pair in pairs for first, second in (pair, pair[::-1])]


def set_up(rows: Any, **options: Any) -> PairDataModule:
    options = {"query": "q", "target": "t", "batch_size": 2, "num_workers": 0, "collate": collate, **options}
    data = PairDataModule(rows, **options)
    data.setup("fit")
    return data


def texts(rows: Any) -> Texts:
    return {(query.text, target.text) for query, target in zip(rows.queries, rows.targets)}


def candidates(data: PairDataModule) -> dict[str, tuple[set[str], set[str]]]:
    """The right and the wrong candidates of each query."""
    (part,) = data.eval_sets
    name = [reference.text for reference in part.items.to_list()]
    found = {}
    for row, (query, count) in enumerate(zip(part.queries.tolist(), part.num_right.tolist())):
        listed = [item for item in part.candidates[row].tolist() if item >= 0]
        pool = set(listed)
        if part.catalogue is not None:
            excluded = () if part.excluded is None else part.excluded[row].tolist()
            pool |= set(part.catalogue.tolist()) - {query} - set(excluded)
        assert name[query] not in found
        found[name[query]] = (
            {name[item] for item in listed[:count]},
            {name[i] for i in pool - set(listed[:count])},
        )
    return found


@pytest.mark.parametrize("num_candidates", [None, 6, 1000])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("own", [False, True])
def test_candidates_are_wrong_by_all_pairs(seed: int, num_candidates: int | None, own: bool) -> None:
    options: dict[str, Any] = {"val": dense(seed + 10, 30)} if own else {"val_fraction": 0.3}
    data = set_up(dense(seed), num_candidates=num_candidates, **options)
    trained = texts(data.train_set.subsets[0])
    held_out = {(row["q"], row["t"]) for row in options.get("val", dense(seed))}
    if not own:
        held_out -= trained
    pool = {target for _, target in held_out}
    found = candidates(data)
    excluded = 0
    for query, (right, wrong) in found.items():
        assert right == {target for other, target in held_out if other == query}
        known = {target for other, target in trained | held_out if other == query}
        allowed = pool - known - {query}
        excluded += len(pool & known - right - {query})
        if num_candidates is None:
            assert wrong == allowed
        else:
            assert wrong <= allowed
            assert len(wrong) == min(num_candidates - 1, len(allowed))
    assert excluded > 10
    chances = [len(right) / len(right | wrong) for right, wrong in found.values()]
    assert data.eval_sets[0].subset.floors["chance"] == pytest.approx(sum(chances) / len(chances))


def test_what_is_left_out_is_told() -> None:
    rows = [{"q": "mug", "t": "m1"}, {"q": "mug", "t": "m2"}, {"q": "cup", "t": "c1"}]
    val = [{"q": "mug", "t": "m3"}, {"q": "pot", "t": "m1"}, {"q": "jar", "t": "p1"}]
    with pytest.warns(
        UserWarning, match="of 1 queries, 1 candidates are left out that are right by training"
    ):
        data = set_up(rows, val=val)
    assert candidates(data)["mug"] == ({"m3"}, {"p1"})
    assert candidates(data)["pot"] == ({"m1"}, {"m3", "p1"})
