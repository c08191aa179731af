"""Exact search, against a full sort by numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from search.folders import unit, write_folder
from torch import Tensor

from fanoise_lightning.search import index as index_module
from fanoise_lightning.search.index import SearchIndex


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks and batches of queries in a small catalogue."""
    for name, size in (("_BLOCK", 64), ("_QUERIES", 7), ("_PAIRS", 50)):
        monkeypatch.setattr(index_module, name, size)


def cosines(queries: Tensor, rows: Tensor) -> NDArray[np.float64]:
    """(Q, N), of unit queries in float32, as documented."""
    q = torch.nn.functional.normalize(queries.double(), dim=1).float().double().numpy()
    r = torch.nn.functional.normalize(rows.double(), dim=1).numpy()
    return (q[:, None, :] * r[None]).sum(-1)


def full_sort(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.stack([np.lexsort((np.arange(scores.shape[1]), -row)) for row in scores])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("k", [1, 10, 100, 5000])
def test_hits_are_those_of_a_full_sort(dtype: torch.dtype, k: int, tmp_path: Path) -> None:
    rows, queries = unit(1000, 24).to(dtype), 3 * unit(20, 24, seed=1)
    index = SearchIndex(write_folder(tmp_path, rows, [1, 0, 650, 349]))
    scores, found = index.search(queries, k)
    expected = full_sort(cosines(queries, rows))[:, :k]
    assert found.tolist() == expected.tolist()
    assert np.allclose(scores, np.take_along_axis(cosines(queries, rows), expected, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(800, 50), (60, 7)])  # many blocks, and one
def test_rows_that_differ_less_than_float32_can_say_are_in_order(n: int, k: int, tmp_path: Path) -> None:
    base = unit(1, 512)
    rows = (base + 1e-7 * torch.randn(n, 512, generator=torch.Generator().manual_seed(1))).float()
    query = base + unit(1, 512, seed=2)
    scores = cosines(query, rows)
    # the oracle can tell them apart, and float32 cannot
    assert len(np.unique(scores)) == n
    assert len(np.unique((rows @ torch.nn.functional.normalize(query, dim=1).T).numpy())) < n / 2
    _, found = SearchIndex(write_folder(tmp_path, rows, [n])).search(query, k)
    assert found.tolist() == full_sort(scores)[:, :k].tolist()


def test_of_equal_rows_the_lower_comes_first(tmp_path: Path) -> None:
    few = unit(5, 24)
    which = torch.randint(5, (1003,), generator=torch.Generator().manual_seed(2))
    index = SearchIndex(write_folder(tmp_path, few[which].half(), [500, 503]))
    _, found = index.search(few, 300)
    for query, rows in enumerate(found):
        same = (which == query).nonzero()[:, 0]
        assert rows[: len(same)].tolist() == same[:300].tolist()


def test_of_equal_rows_that_two_threads_found_the_lower_comes_first() -> None:
    one, other = (
        index_module._Found(torch.tensor([0]), torch.tensor([row]), torch.tensor([0.5])) for row in (5, 2)
    )
    assert index_module._keep([one, other], 1).row.tolist() == [2]


def test_rows_that_are_all_the_same_are_found_in_order(tmp_path: Path) -> None:
    index = SearchIndex(write_folder(tmp_path, unit(1, 24).half().repeat(1000, 1), [1000]))
    assert index.search(unit(9, 24, seed=3), 12).rows.tolist() == [list(range(12))] * 9


def test_a_better_row_at_the_end_of_a_shard_is_found(tmp_path: Path) -> None:
    query, others = unit(1, 24), unit(999, 24, seed=5)
    rows = torch.cat([others[: 999 - 350], query, others[999 - 350 :]])
    assert SearchIndex(write_folder(tmp_path, rows, [650, 350])).search(query, 1).rows.tolist() == [[649]]


def test_scores_are_cosines_of_the_stored_rows_whatever_their_lengths(tmp_path: Path) -> None:
    rows = unit(500, 24) * torch.linspace(0.991, 1.009, 500).view(2, 250).T.reshape(500, 1)
    index = SearchIndex(write_folder(tmp_path, rows, [500]))
    scores, found = index.search(rows[:9], 500)
    expected = cosines(rows[:9], rows)
    assert found.tolist() == full_sort(expected).tolist()
    assert np.allclose(scores, np.take_along_axis(expected, found.numpy(), 1), rtol=0, atol=1e-12)
    assert scores.max() < 1 + 1e-7


@pytest.mark.parametrize("length", [1e-42, 1e-30, 1e30, 1e60])
def test_a_query_may_have_any_length(length: float, tmp_path: Path) -> None:
    rows = unit(100, 24)
    index = SearchIndex(write_folder(tmp_path, rows, [100]))
    queries = rows[:5].double() * length
    if length < 1e38:
        assert torch.allclose(index.search(queries.float(), 1).scores, torch.ones(5, 1).double(), atol=0.1)
    scores, found = index.search(queries, 1)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.allclose(scores, torch.ones(5, 1).double(), atol=1e-6)


def test_an_array_and_a_single_query_are_searched_like_a_tensor(tmp_path: Path) -> None:
    index, queries = SearchIndex(write_folder(tmp_path, unit(100, 24), [100])), unit(3, 24, seed=1)
    expected = index.search(queries, 4)
    for given in (queries.numpy(), queries.tolist(), queries.double()):
        assert index.search(given, 4).rows.tolist() == expected.rows.tolist()
    for query in (queries[1], queries[1].numpy()):
        scores, rows = index.search(query, 4)
        assert (scores.tolist(), rows.tolist()) == (expected.scores[1].tolist(), expected.rows[1].tolist())


def places(scores: NDArray[np.float64], own: int) -> tuple[int, int]:
    """How many scores are before one and its ties, and how many tie, counted one by one."""
    top = max(score for score in scores if score <= scores[own] + 1e-6)
    better = sum(score > scores[own] + 1e-6 for score in scores)
    return better, sum(top - 1e-6 <= score <= scores[own] + 1e-6 for score in scores)


def test_ranks_are_places_in_a_full_sort_and_equal_rows_tie(tmp_path: Path) -> None:
    rows = unit(900, 24).half()
    rows[450:] = rows[:450]  # each twice
    queries = unit(40, 24, seed=1)
    own = torch.randint(900, (40,), generator=torch.Generator().manual_seed(3))
    found = SearchIndex(write_folder(tmp_path, rows, [899, 1])).ranks(queries, own)
    scores = cosines(queries, rows)
    expected = [places(line, int(row)) for line, row in zip(scores, own)]
    assert list(zip(found.better.tolist(), found.tied.tolist())) == expected
    assert set(found.tied.tolist()) == {2}
    assert np.allclose(found.scores, scores[np.arange(40), own], rtol=0, atol=1e-12)


def test_ranks_of_rows_that_nearly_tie_reach_down_from_the_best_of_them(tmp_path: Path) -> None:
    cosine = 0.5 + 1e-4 * torch.rand(300, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.stack([cosine, (1 - cosine.square()).sqrt(), *torch.zeros(2, 300)], 1).float()
    query = torch.tensor([[1.0, 0, 0, 0]])
    found = SearchIndex(write_folder(tmp_path, rows, [300])).ranks(query.expand(300, 4), torch.arange(300))
    scores = cosines(query, rows)[0]
    expected = [places(scores, row) for row in range(300)]
    assert list(zip(found.better.tolist(), found.tied.tolist())) == expected
    assert len(set(found.tied.tolist())) > 1


def test_ranks_count_each_row_once_where_float32_begins_to_doubt(tmp_path: Path) -> None:
    """A row is certainly better or looked at exactly, never both or neither."""
    scores = [torch.tensor(0.5)]
    while len(scores) < 120:
        scores.append(torch.nextafter(scores[-1], torch.tensor(1.0)))
    cosine = torch.stack(scores)
    rows = torch.stack([cosine, (1 - cosine.double().square()).sqrt().float(), *torch.zeros(2, 120)], 1)
    found = SearchIndex(write_folder(tmp_path, rows, [120])).ranks(torch.eye(4)[:1], torch.tensor([0]))
    assert int(found.better + found.tied) == 120


def test_places_are_of_one_row_for_each_query(tmp_path: Path) -> None:
    index = SearchIndex(write_folder(tmp_path / "index", unit(9, 4), [9]))
    with pytest.raises(ValueError, match=r"`rows` must be \(3,\), one for each query, got \(1,\)"):
        index.ranks(unit(3, 4), torch.tensor([5]))


def test_an_empty_catalogue_and_no_queries(tmp_path: Path) -> None:
    empty = SearchIndex(write_folder(tmp_path / "empty", torch.empty(0, 24), []))
    assert empty.search(unit(3, 24)).rows.shape == (3, 0)
    index = SearchIndex(write_folder(tmp_path / "full", unit(5, 24), [5]))
    assert index.search(torch.empty(0, 24)).rows.shape == (0, 5)
    assert index.ranks(torch.empty(0, 24), torch.empty(0, dtype=torch.int64)).better.shape == (0,)


def test_settings_for_speed_change_no_hit_and_are_left_as_they_were(tmp_path: Path) -> None:
    rows, queries = unit(1000, 64), unit(8, 64, seed=1)
    index = SearchIndex(write_folder(tmp_path, rows, [1000]))
    torch.set_float32_matmul_precision("medium")
    threads = torch.get_num_threads()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = index.search(queries).rows
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_num_threads() == threads
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.tolist() == full_sort(cosines(queries, rows))[:, :10].tolist()


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    rows = unit(100, 24)
    index = SearchIndex(write_folder(tmp_path / "a", rows, [100]))
    with pytest.raises(ValueError, match=r"of shape \(Q, 24\).*got \(2, 12\).*model of the folder"):
        index.search(unit(2, 12))
    with pytest.raises(ValueError, match="query 1 is zero or not finite"):
        index.search(torch.stack([rows[0], torch.zeros(24)]))
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        index.search(rows, 0)
    with pytest.raises(ValueError, match=r"`rows` must be from 0 to 99, got \[100\]"):
        index.ranks(rows[:1], torch.tensor([100]))
    for text in ("a red mug", ["a red mug"]):
        with pytest.raises(TypeError, match=r"got (str|list): embed it first with `module\.encode`"):
            index.search(text)


@pytest.mark.parametrize(("length", "shown"), [(torch.nan, "nan"), (6e4, "6e.04"), (1.02, "1.02"), (0, "0")])
def test_a_row_that_is_not_of_unit_length_is_refused(length: float, shown: str, tmp_path: Path) -> None:
    """The bound on rounding would not hold."""
    rows = unit(100, 24)
    rows[70] *= length
    broken = SearchIndex(write_folder(tmp_path, rows, [60, 40]))
    for call in (broken.search, lambda query: broken.ranks(query, torch.tensor([1]))):
        with pytest.raises(ValueError, match=rf"row 70 of .* has the length {shown}, not 1"):
            call(unit(1, 24))


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        SearchIndex(tmp_path)
    write_folder(tmp_path, unit(10, 8), [10])
    (tmp_path / "00000.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match=r"00000\.safetensors. is damaged"):
        SearchIndex(tmp_path).search(unit(1, 8))
