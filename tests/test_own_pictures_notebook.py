"""The notebook from pictures to a search page runs without a network, and its model finds what it should."""

from __future__ import annotations

from types import SimpleNamespace

import nbformat
import pytest
from notebooks import FOLDER, run

NOTEBOOK = FOLDER / "own_pictures.ipynb"

# A fifth of the pictures, as what is asserted holds there too; and they stay until the probe has run.
SHORTER = {'.startswith("noto/")': '.startswith("noto/1f9")', "temporary.cleanup()": "kept = temporary"}

PROBE = """
import json

pictures = [folder / index.row(row).image for row in range(len(index))]
everything = module.encode(pictures)
wanted = module.encode("rainy weather")
print(json.dumps({
    "before": before,
    "after": after,
    "rows": len(index),
    "hits": search.search(wanted[None], k=5).rows[0].tolist(),
    "brute_force": (everything @ wanted).topk(5).indices.tolist(),
}))
temporary.cleanup()
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> SimpleNamespace:
    return run(NOTEBOOK.name, PROBE, tmp_path_factory.mktemp("jupyter"), SHORTER)


@pytest.mark.slow
def test_it_runs_without_an_error_and_leaves_nothing_behind(executed):
    outputs = [output for cell in executed.cells for output in cell.outputs]
    assert not [
        output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert executed.left == []


@pytest.mark.slow
def test_training_finds_more_of_the_held_out_pictures(executed):
    assert executed.after["recall@10"] > executed.before["recall@10"] + 0.15
    assert executed.after["median rank"] < executed.before["median rank"]


@pytest.mark.slow
def test_search_is_the_full_product(executed):
    assert executed.hits == executed.brute_force


def test_its_committed_outputs_hold_no_warnings_and_no_paths():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not [
        text for text in texts if any(word in text for word in ("/tmp", "/home", "Warning", "site-packages"))
    ]
    assert NOTEBOOK.stat().st_size < 400_000
