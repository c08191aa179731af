"""Approximate search by faiss: near exact search, and refused where the index is of other embeddings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from search.folders import unit, write_folder

from fanoise_lightning.search import approximate
from fanoise_lightning.search.approximate import KINDS, ApproximateIndex
from fanoise_lightning.search.index import SearchIndex

ROWS = 1200


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards, enough for `ivfpq` to be tried."""
    pytest.importorskip("faiss", reason="faiss is not installed: pip install '.[search]'")
    monkeypatch.setattr(approximate, "_FEWEST", ROWS)
    return write_folder(tmp_path / "index", unit(ROWS, 32).half(), [800, 400])


@pytest.mark.parametrize(("kind", "recall"), [("hnsw", 0.99), ("ivfpq", 0.3)])
def test_it_finds_most_of_what_exact_search_finds_with_exact_scores(
    folder: Path, kind: KINDS, recall: float
) -> None:
    index, queries = SearchIndex(folder), unit(40, 32, seed=1)
    exact = index.search(queries)
    found = ApproximateIndex(index, kind).search(queries)
    common = [len({*a.tolist()} & {*b.tolist()}) / 10 for a, b in zip(exact.rows, found.rows)]
    assert sum(common) / len(common) >= recall  # 10 rows by chance: 0.01
    rows = torch.cat(list(index.folder.shards())).double()
    scores = (rows[found.rows] * index.unit(queries).double()[:, None]).sum(-1)
    assert torch.allclose(found.scores, scores, rtol=0, atol=1e-12)
    assert (found.scores.diff(dim=1) <= 0).all()


def test_an_index_is_built_once_and_refused_for_other_embeddings(folder: Path) -> None:
    ApproximateIndex(SearchIndex(folder), "hnsw")
    file = folder / "hnsw.faiss"
    built = file.stat().st_mtime_ns
    ApproximateIndex(SearchIndex(folder), "hnsw")
    assert file.stat().st_mtime_ns == built
    write_folder(folder, unit(ROWS, 32, seed=9).half(), [800, 400], model={"fingerprint": "e" * 32})
    with pytest.raises(ValueError, match=r"hnsw\.faiss. is an index of other embeddings .* remove it"):
        ApproximateIndex(SearchIndex(folder), "hnsw")
    file.unlink()
    queries = unit(5, 32, seed=1)
    found = ApproximateIndex(SearchIndex(folder), "hnsw").search(queries)
    assert found.rows[:, 0].tolist() == SearchIndex(folder).search(queries).rows[:, 0].tolist()


def test_a_damaged_index_is_named(folder: Path) -> None:
    ApproximateIndex(SearchIndex(folder), "hnsw")
    (folder / "hnsw.faiss").write_bytes(b"no index")
    with pytest.raises(ValueError, match=r"hnsw\.faiss. is damaged: remove it"):
        ApproximateIndex(SearchIndex(folder), "hnsw")


def test_a_small_catalogue_is_no_case_for_ivfpq(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install '.[search]'")
    index = SearchIndex(write_folder(tmp_path, unit(100, 32), [100]))
    with pytest.raises(ValueError, match=r"`ivfpq` needs 9,984 rows, .* has 100: use exact search"):
        ApproximateIndex(index, "ivfpq")
    assert not list(tmp_path.glob("*.faiss*"))


def test_without_faiss_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    index = SearchIndex(write_folder(tmp_path, unit(10, 8), [10]))
    with pytest.raises(ImportError, match=r"pip install 'fanoise-lightning\[search\]'"):
        ApproximateIndex(index, "hnsw")
