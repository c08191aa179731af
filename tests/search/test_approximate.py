"""Approximate search by faiss: near exact search, and refused where the index is of other embeddings."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize(
    ("kind", "recall"), [("hnsw", 0.99), ("int8", 0.99), ("binary", 0.3), ("ivfpq", 0.3)]
)
def test_it_finds_most_of_what_exact_search_finds_with_exact_scores(
    folder: Path, kind: KINDS, recall: float
) -> None:
    index, queries = SearchIndex(folder), unit(40, 32, seed=1)
    exact = index.search(queries)
    found = ApproximateIndex(index, kind).search(queries)
    common = [len({*a.tolist()} & {*b.tolist()}) / 10 for a, b in zip(exact.rows, found.rows)]
    assert sum(common) / len(common) >= recall  # 10 rows by chance: 0.01
    rows = torch.nn.functional.normalize(torch.cat(list(index.folder.shards())).double(), dim=1)
    scores = (rows[found.rows] * index.unit(queries).double()[:, None]).sum(-1)
    assert torch.allclose(found.scores, scores, rtol=0, atol=1e-12)
    assert (found.scores.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("kind", ["hnsw", "binary"])
def test_it_takes_what_exact_search_takes(folder: Path, kind: KINDS) -> None:
    index, (query,) = ApproximateIndex(SearchIndex(folder), kind), unit(1, 32, seed=1).numpy()
    one, several = index.search(query, 3), index.search(query[None], 3)
    assert one.rows.equal(several.rows[0])
    assert one.scores.equal(several.scores[0])
    assert index.search(query, ROWS + 1).rows.sort().values.equal(torch.arange(ROWS))
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        index.search(query, 0)


@pytest.mark.parametrize("left", ["", "{"])
def test_what_a_killed_run_left_of_an_index_is_named(folder: Path, left: str) -> None:
    ApproximateIndex(SearchIndex(folder), "int8")
    (folder / "int8.json").write_text(left)
    with pytest.raises(ValueError, match=r"int8.faiss` is an index of other embeddings .*: remove it"):
        ApproximateIndex(SearchIndex(folder), "int8")


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


@pytest.mark.parametrize("kind", ["hnsw", "binary"])
def test_a_damaged_index_is_named(folder: Path, kind: KINDS) -> None:
    ApproximateIndex(SearchIndex(folder), kind)
    (folder / f"{kind}.faiss").write_bytes(b"no index")
    with pytest.raises(ValueError, match=rf"{kind}\.faiss. is damaged: remove it"):
        ApproximateIndex(SearchIndex(folder), kind)


def test_binary_rows_are_the_signs_in_whole_bytes(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed: pip install '.[search]'")
    rows = unit(50, 20)
    index = ApproximateIndex(SearchIndex(write_folder(tmp_path, rows, [50])), "binary")
    bits = np.unpackbits(faiss.vector_to_array(index._search.xb).reshape(50, 3), axis=1)
    assert (bits[:, :20] == (rows > 0).numpy()).all()
    assert not bits[:, 20:].any()
    assert index.search(rows, 1).rows[:, 0].tolist() == list(range(50))


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
