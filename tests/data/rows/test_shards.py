"""Rows from the middle of a shard, against slices of a list."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fanoise_lightning.data.rows.columns import Columns
from fanoise_lightning.data.rows.shards import CHUNK, FileRows

COLUMNS: Columns = {"qry": "text"}
SIZE, GROUP = 250, 100
ROWS = [f"q{number}" for number in range(SIZE)]


@pytest.fixture(params=["parquet", "jsonl"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> FileRows:
    """Parquet in row groups of 100, 100 and 50 rows; a JSON-lines file is one shard."""
    file = tmp_path / f"s.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.table({"qry": ROWS}), file, row_group_size=GROUP)
    else:
        file.write_text("".join(json.dumps({"qry": text}) + "\n" for text in ROWS))
    return FileRows([file], COLUMNS)


@pytest.mark.parametrize("limit", [None, 1, CHUNK, CHUNK + 7, 2 * SIZE])
@pytest.mark.parametrize("skip", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, GROUP - 1, SIZE])
def test_a_shard_is_read_from_any_row_to_any_row(rows: FileRows, skip: int, limit: int | None) -> None:
    per_shard = GROUP if rows.num_shards > 1 else SIZE
    for shard in range(rows.num_shards):
        tables = list(rows.read(shard, skip, limit))
        found = [text for table in tables for text in table["qry"].to_pylist()]
        whole = ROWS[shard * per_shard :][:per_shard]
        assert found == whole[skip:][:limit]
        assert max((len(table) for table in tables), default=0) <= CHUNK
        # lines are counted from 1
        numbers = [row - (rows.num_shards == 1) for table in tables for row in table["row"].to_pylist()]
        assert [f"q{number}" for number in numbers] == found


def test_rows_are_counted_over_all_shards(rows: FileRows) -> None:
    assert rows.num_rows == SIZE
