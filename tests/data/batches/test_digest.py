"""The fingerprint of an evaluation: equal if it asks the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from fanoise_lightning.data.batches.evaluation import EvalDataset, EvalSuite
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.records import EvalRows
from fanoise_lightning.data.rows.references import References
from fanoise_lightning.subset import Subset


def rows(*texts: str) -> EvalRows:
    items = References(pa.array(texts, pa.large_string()), pa.array([""] * len(texts), pa.large_string()))
    return EvalRows(Subset("a", "vqa", "IND"), items, np.array([0, 1]), np.array([[2, 0], [0, 2]]))


def digest(*parts: EvalRows) -> str:
    return EvalSuite([EvalDataset(part, ImageStore()) for part in parts]).digest


def test_what_asks_the_same_has_one_fingerprint_and_any_change_another() -> None:
    base = rows("one", "two", "three")
    known = digest(base)
    assert known == digest(rows("one", "two", "three"))
    others = [
        digest(rows("one", "two", "four")),
        digest(replace(base, queries=np.array([1, 0]))),
        digest(replace(base, candidates=np.array([[2, 1], [0, 2]]))),
        digest(replace(base, subset=Subset("b", "vqa", "IND"))),
        digest(base, replace(base, subset=Subset("b", "vqa", "IND"))),
    ]
    assert len({known, *others}) == 6
