from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from fanoise_lightning.data.mixing import MixingSampler, epoch_order, subset_weights

SIZES = [50, 30, 20]


def order(sizes: list[int], weights: list[float], **options: Any) -> np.ndarray:
    return epoch_order(sizes, weights, **{"batch": 10, "single": False, "seed": 1, "epoch": 0, **options})


def flat(batches: np.ndarray) -> list[tuple[int, int]]:
    return [tuple(place) for place in batches.reshape(-1, 2).tolist()]


class Rows(Dataset):
    def __len__(self) -> int:
        return sum(SIZES)


def sampler(**options: Any) -> MixingSampler:
    return MixingSampler(Rows(), SIZES, ["a", "b", "c"], **{"batch_size": 10, "seed": 1, **options})


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(sizes, st.integers(1, 10), st.booleans(), st.integers(0, 3))
def test_a_proportional_epoch_has_no_repeats(sizes: list[int], batch: int, single: bool, epoch: int) -> None:
    places = flat(order(sizes, [float(size) for size in sizes], batch=batch, single=single, epoch=epoch))
    assert len(set(places)) == len(places)
    assert all(row < sizes[subset] for subset, row in places)
    kept = sum(size // batch * batch for size in sizes) if single else sum(sizes) // batch * batch
    assert len(places) == kept


def test_a_proportional_epoch_sees_every_row_if_the_batches_divide_it() -> None:
    expected = {(subset, row) for subset, size in enumerate(SIZES) for row in range(size)}
    assert set(flat(order(SIZES, SIZES))) == expected


@given(sizes, st.lists(st.floats(0.1, 9), min_size=5, max_size=5), st.integers(1, 10))
def test_weights_are_shares_to_the_nearest_row(sizes: list[int], weights: list[float], batch: int) -> None:
    weights = weights[: len(sizes)]
    places = flat(order(sizes, weights, batch=batch))
    counts = Counter(subset for subset, _ in places)
    for subset, weight in enumerate(weights):
        assert abs(counts[subset] - len(places) * weight / sum(weights)) < 1


@given(sizes, st.integers(1, 10))
def test_no_row_comes_twice_before_all_came_once(sizes: list[int], batch: int) -> None:
    counts = Counter(flat(order(sizes, [1.0] * len(sizes), batch=batch)))
    for subset, size in enumerate(sizes):
        seen = [counts[subset, row] for row in range(size)]
        assert max(seen) - min(seen) <= 1


def test_single_takes_each_batch_from_one_subset_and_shuffles_them() -> None:
    batches = order(SIZES, SIZES, single=True)
    subsets = batches[:, :, 0]
    assert (subsets == subsets[:, :1]).all()
    assert Counter(subsets[:, 0].tolist()) == {0: 5, 1: 3, 2: 2}
    orders = {tuple(order(SIZES, SIZES, single=True, epoch=epoch)[:, 0, 0]) for epoch in range(5)}
    assert len(orders) > 1


def test_mixed_batches_mix() -> None:
    assert all(len(set(batch[:, 0])) > 1 for batch in order(SIZES, SIZES))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = order(SIZES, SIZES)
    assert (first == order(SIZES, SIZES)).all()
    assert (first != order(SIZES, SIZES, epoch=1)).any()
    assert (first != order(SIZES, SIZES, seed=2)).any()


def test_a_subset_of_weight_zero_is_left_out() -> None:
    for single in (False, True):
        batches = order(SIZES, [1.0, 0.0, 1.0], single=single)
        assert set(batches[..., 0].ravel()) == {0, 2}
        assert len(batches) == 7


def test_ranks_share_out_the_global_batch() -> None:
    for mode in ("mixed", "single"):
        whole = list(sampler(batch_size=10, batch_subsets=mode))
        halves = [list(sampler(batch_size=5, batch_subsets=mode, rank=rank, world_size=2)) for rank in (0, 1)]
        assert [first + second for first, second in zip(*halves)] == whole


def test_start_is_arithmetic() -> None:
    whole, late = list(sampler()), sampler()
    late.start = 4
    assert list(late) == whole[4:]
    assert len(late) == len(whole) == 10


def test_set_epoch_changes_the_order() -> None:
    later = sampler()
    later.set_epoch(1)
    assert list(later) != list(sampler())


def test_sampling_words_and_weights() -> None:
    names = ["a", "b"]
    assert subset_weights("proportional", names, [3, 5]) == [3, 5]
    assert subset_weights("uniform", names, [3, 5]) == [1, 1]
    assert subset_weights({"b": 2, "a": 0.5}, names, [3, 5]) == [0.5, 2]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ("random", "'random'"),
        ({"a": 1}, "no weight for subset `b`"),
        ({"a": 1, "bb": 1}, "unknown subset in `sampling` `bb`; did you mean `b`"),
        ({"a": 1, "b": -1}, "weight of `b`.*-1"),
        ({"a": 1, "b": float("nan")}, "weight of `b`.*nan"),
        ({"a": 0, "b": 0}, "every subset weight 0"),
    ],
)
def test_bad_sampling_is_named(sampling: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subset_weights(sampling, ["a", "b"], [1, 1])


def test_unknown_batch_subsets_is_named() -> None:
    with pytest.raises(ValueError, match=r"`batch_subsets`.*'blocks'"):
        sampler(batch_subsets="blocks")


def test_fewer_rows_than_a_global_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"100 rows, fewer than a global batch of 102 \(batch_size 51 x 2"):
        sampler(batch_size=51, world_size=2)
    with pytest.raises(ValueError, match="subset `c` has 20 rows, fewer than a global batch of 21"):
        sampler(batch_size=21, batch_subsets="single")
    assert len(sampler(batch_size=21, batch_subsets="single", sampling={"a": 1, "b": 1, "c": 0})) == 3
