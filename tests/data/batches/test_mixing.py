from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch.utils.data import Dataset

from fanoise_lightning.data.batches.mixing import (
    BatchSubsets,
    MixingSampler,
    Sampling,
    epoch_order,
    subset_weights,
)

SIZES = [50, 30, 20]


def order(sizes: list[int], weights: list[float], **options: Any) -> np.ndarray:
    return epoch_order(sizes, weights, **{"batch": 10, "block": 1, "seed": 1, "epoch": 0, **options})


def flat(batches: np.ndarray) -> list[tuple[int, int]]:
    return [tuple(place) for place in batches.reshape(-1, 2).tolist()]


class Rows(Dataset):
    def __len__(self) -> int:
        return sum(SIZES)


def rows(sampler: MixingSampler) -> list[list[tuple[int, int]]]:
    return [batch.rows for batch in sampler]


def sampler(**options: Any) -> MixingSampler:
    return MixingSampler(Rows(), SIZES, ["a", "b", "c"], **{"batch_size": 10, "seed": 1, **options})


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


blocks = st.tuples(st.integers(1, 6), st.integers(1, 4))  # rows of a block, blocks of a batch


@given(sizes, blocks, st.integers(0, 3))
def test_a_proportional_epoch_has_no_repeats(sizes: list[int], blocks: tuple[int, int], epoch: int) -> None:
    block, count = blocks
    places = flat(order(sizes, sizes, batch=block * count, block=block, epoch=epoch))
    assert len(set(places)) == len(places)
    assert all(row < sizes[subset] for subset, row in places)
    whole_blocks = sum(size // block for size in sizes)
    assert len(places) == whole_blocks // count * count * block


def test_a_proportional_epoch_sees_every_row_if_the_batches_divide_it() -> None:
    expected = {(subset, row) for subset, size in enumerate(SIZES) for row in range(size)}
    assert set(flat(order(SIZES, SIZES))) == expected


@given(sizes, st.lists(st.floats(0.1, 9), min_size=5, max_size=5), blocks)
def test_weights_are_shares_to_the_nearest_block(
    sizes: list[int], weights: list[float], blocks: tuple[int, int]
) -> None:
    weights, (block, count) = weights[: len(sizes)], blocks
    places = flat(order(sizes, weights, batch=block * count, block=block))
    counts = Counter(subset for subset, _ in places)
    for subset, weight in enumerate(weights):
        assert abs(counts[subset] - len(places) * weight / sum(weights)) < block


@given(sizes, blocks)
def test_a_proportional_share_is_of_whole_blocks(sizes: list[int], blocks: tuple[int, int]) -> None:
    block, count = blocks
    places = flat(order(sizes, sizes, batch=block * count, block=block))
    counts = Counter(subset for subset, _ in places)
    total = sum(size // block for size in sizes)
    for subset, size in enumerate(sizes):
        assert abs(counts[subset] - len(places) * (size // block) / max(total, 1)) < block


@given(sizes, blocks, st.integers(1, 3))
def test_blocks_are_of_one_subset_and_equal_on_every_rank(
    sizes: list[int], blocks: tuple[int, int], world: int
) -> None:
    block, count = blocks
    assume(min(sizes) >= block * world and sum(size // (block * world) for size in sizes) >= count)
    names = list(map(str, sizes))
    ranks = [
        list(
            MixingSampler(
                range(sum(sizes)),  # type: ignore[arg-type]
                sizes,
                [f"{number}:{name}" for number, name in enumerate(names)],
                batch_subsets=block,
                batch_size=block * count,
                seed=3,
                rank=rank,
                world_size=world,
            )
        )
        for rank in range(world)
    ]
    subsets = [[[subset for subset, _ in batch.rows] for batch in batches] for batches in ranks]
    assert all(rank == subsets[0] for rank in subsets)
    for batch in subsets[0]:
        assert all(len(set(batch[first : first + block])) == 1 for first in range(0, len(batch), block))
    places = [place for batches in ranks for batch in batches for place in batch.rows]
    assert len(set(places)) == len(places) == len(ranks[0]) * block * count * world


@given(sizes, blocks)
def test_no_row_comes_twice_before_all_came_once(sizes: list[int], blocks: tuple[int, int]) -> None:
    block, count = blocks
    counts = Counter(flat(order(sizes, [1.0] * len(sizes), batch=block * count, block=block)))
    for subset, size in enumerate(sizes):
        seen = [counts[subset, row] for row in range(size)]
        assert max(seen) - min(seen) <= 1


def test_single_takes_each_batch_from_one_subset_and_shuffles_them() -> None:
    batches = order(SIZES, SIZES, block=10)
    subsets = batches[:, :, 0]
    assert (subsets == subsets[:, :1]).all()
    assert Counter(subsets[:, 0].tolist()) == {0: 5, 1: 3, 2: 2}
    orders = {tuple(order(SIZES, SIZES, block=10, epoch=epoch)[:, 0, 0]) for epoch in range(5)}
    assert len(orders) > 1


def test_mixed_batches_mix() -> None:
    assert all(len(set(batch[:, 0])) > 1 for batch in order(SIZES, SIZES))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = order(SIZES, SIZES)
    assert (first == order(SIZES, SIZES)).all()
    assert (first != order(SIZES, SIZES, epoch=1)).any()
    assert (first != order(SIZES, SIZES, seed=2)).any()


def test_a_subset_of_weight_zero_is_left_out() -> None:
    for block in (1, 5, 10):
        batches = order(SIZES, [1.0, 0.0, 1.0], block=block)
        assert set(batches[..., 0].ravel()) == {0, 2}
        assert len(batches) == 7


def test_ranks_share_out_the_global_batch() -> None:
    for mode in ("mixed", "single"):
        whole = rows(sampler(batch_size=10, batch_subsets=mode))
        halves = [rows(sampler(batch_size=5, batch_subsets=mode, rank=rank, world_size=2)) for rank in (0, 1)]
        assert [first + second for first, second in zip(*halves)] == whole


# batches of an earlier release: a run that was started with it goes on with the same rows
def test_the_order_of_mixed_and_single_batches_is_kept() -> None:
    assert next(iter(sampler(batch_size=4, rank=1, world_size=2))).rows == [(0, 42), (0, 45), (2, 4), (0, 38)]
    single = sampler(batch_size=4, rank=1, world_size=2, batch_subsets="single", sampling="uniform")
    assert next(iter(single)).rows == [(1, 16), (1, 2), (1, 24), (1, 29)]


def test_start_is_arithmetic() -> None:
    whole, late = rows(sampler()), sampler()
    late.start = 4
    assert rows(late) == whole[4:]
    assert len(late) == len(whole) == 10


def test_set_epoch_changes_the_order() -> None:
    later = sampler()
    later.set_epoch(1)
    assert rows(later) != rows(sampler())


def test_sampling_words_and_weights() -> None:
    names = ["a", "b"]
    assert subset_weights("proportional", names, [3, 5]) == [3, 5]
    assert subset_weights("uniform", names, [3, 5]) == [1, 1]
    assert subset_weights({"b": 2, "a": 0.5}, names, [3, 5]) == [0.5, 2]


temperatures = st.floats(0.05, 50)


@given(sizes, temperatures)
def test_a_temperature_is_a_root_of_the_sizes(sizes: list[int], temperature: float) -> None:
    weights = np.array(subset_weights(temperature, list(map(str, sizes)), sizes))
    logs = np.log(np.array(sizes) / max(sizes)) / temperature
    np.testing.assert_allclose(weights / weights.max(), np.exp(logs), rtol=1e-9)


def test_temperature_1_is_proportional_and_a_large_one_uniform() -> None:
    assert rows(sampler(sampling=1.0)) == rows(sampler(sampling="proportional"))
    assert rows(sampler(sampling=math.inf)) == rows(sampler(sampling="uniform"))
    assert subset_weights(0.01, ["a", "b"], [1000, 999]) == pytest.approx([1, 0.999**100])  # no overflow


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ("random", "'random'"),
        ({"a": 1}, "no weight for subset `b`"),
        ({"a": 1, "bb": 1}, "unknown subset in `sampling` `bb`; did you mean `b`"),
        ({"a": 1, "b": -1}, "weight of `b`.*-1"),
        ({"a": 1, "b": float("nan")}, "weight of `b`.*nan"),
        ({"a": 0, "b": 0}, "every subset weight 0"),
        (0, "temperature must be greater than 0, got 0"),
        (-1.5, "temperature.*-1.5"),
        (float("nan"), "temperature.*nan"),
        (True, "got True"),
    ],
)
def test_bad_sampling_is_named(sampling: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subset_weights(sampling, ["a", "b"], [1, 1])


@pytest.mark.parametrize("wrong", ["blocks", 0, -5, 3, 20, 2.0, True])
def test_a_block_that_does_not_divide_the_batch_is_named(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"`batch_subsets`.*divides `batch_size` 10, got {wrong!r}"):
        sampler(batch_subsets=wrong)


def test_fewer_rows_than_a_global_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"100 rows, fewer than a global batch of 102 \(batch_size 51 x 2"):
        sampler(batch_size=51, world_size=2)
    with pytest.raises(ValueError, match="subset `c` has 20 rows, fewer than a global batch of 21"):
        sampler(batch_size=21, batch_subsets="single")
    assert len(sampler(batch_size=21, batch_subsets="single", sampling={"a": 1, "b": 1, "c": 0})) == 3
    with pytest.raises(ValueError, match="subset `c` has 20 rows, fewer than a block of 22"):
        sampler(batch_size=44, batch_subsets=22)
    with pytest.raises(ValueError, match=r"have 90 rows in whole blocks of 15, fewer than .* batch of 105"):
        sampler(batch_size=105, batch_subsets=15)


@pytest.mark.parametrize(("value", "parsed"), [("2", 2.0), ("1.5", 1.5), ("uniform", "uniform")])
def test_the_command_line_takes_a_temperature(value: str, parsed: float | str) -> None:
    parser = ArgumentParser()
    parser.add_argument("--sampling", type=Sampling)
    parser.add_argument("--batch_subsets", type=BatchSubsets)
    assert parser.parse_args([f"--sampling={value}"]).sampling == parsed
    assert parser.parse_args(['--sampling={"a": 1, "b": 2}']).sampling == {"a": 1.0, "b": 2.0}
    assert parser.parse_args(["--batch_subsets=4"]).batch_subsets == 4
    assert parser.parse_args(["--batch_subsets=single"]).batch_subsets == "single"
