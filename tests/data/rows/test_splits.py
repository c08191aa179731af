"""What a split of pairs keeps apart, against searches and plain sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fanoise_lightning.data.rows.splits import Pairs, connect, count_candidates, split

edges = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=25)


@given(edges)
def test_components_are_those_of_a_search(edges: list[tuple[int, int]]) -> None:
    roots = connect(*np.array(edges).T)

    def reached(start: int) -> set[int]:
        found, front = {start}, [start]
        while front:
            node = front.pop()
            new = {b for a, b in edges if a == node} | {a for a, b in edges if b == node}
            front += new - found
            found |= new
        return found

    for node in {node for edge in edges for node in edge}:
        assert {other for other in range(len(roots)) if roots[other] == roots[node]} == reached(node)


def random_pairs(edges: list[tuple[int, int]]) -> Pairs:
    queries, targets = np.array(edges).T
    none = np.full(len(edges), -1)
    return Pairs(queries, targets + 5, none, none)  # some are queries and targets


@given(edges, st.floats(0.1, 0.9), st.integers(0, 3))
def test_a_split_keeps_what_it_says(edges: list[tuple[int, int]], fraction: float, seed: int) -> None:
    pairs = random_pairs(edges)
    found = split(pairs, fraction, seed)
    if found is None:
        return
    mine, others = pairs.take(found.held_out), pairs.take(~found.held_out)
    assert len(mine) >= round(fraction * len(pairs)) / 2
    assert len(others) > 0
    assert (count_candidates(mine) > 1).mean() >= 0.9
    nodes = [{*part.queries.tolist(), *part.targets.tolist()} for part in (mine, others)]
    if found.by.startswith("connected"):
        assert not nodes[0] & nodes[1]
    if found.by == "query":
        assert not set(mine.queries) & set(others.queries)
    if found.by == "target":
        assert not set(mine.targets) & set(others.targets)
    directed = [set(zip(part.queries.tolist(), part.targets.tolist())) for part in (mine, others)]
    assert not {(b, a) for a, b in directed[0]} & directed[1]
    assert not directed[0] & directed[1]


@given(edges)
def test_candidates_are_counted_as_they_are_drawn(edges: list[tuple[int, int]]) -> None:
    pairs = random_pairs(edges)
    targets = list(zip(pairs.queries.tolist(), pairs.targets.tolist()))
    wrong = [
        {b for _, b in targets} - {b for a, b in targets if a == query} - {query} for query, _ in targets
    ]
    assert count_candidates(pairs).tolist() == [len(others) + 1 for others in wrong]
