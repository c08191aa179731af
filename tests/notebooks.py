"""Run a notebook of the examples, and look into its kernel after the last cell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"


def run(name: str, probe: str, jupyter: Path, instead: dict[str, str] | None = None) -> SimpleNamespace:
    """Run a notebook in its own folder by this interpreter.

    Args:
        name: the file name of the notebook.
        probe: code to run after the last cell, which prints an object in JSON.
        jupyter: an empty folder for Jupyter's own files.
        instead: what replaces a text that is in one cell, as to train for fewer steps.

    Returns:
        The code cells with their outputs, ``cells``; new files in the folder, ``left``; and the members of
        what the probe printed.
    """
    kernel = jupyter / "kernels" / "under-test" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "under test", "language": "python"}))

    notebook = nbformat.read(FOLDER / name, as_version=4)
    for old, new in (instead or {}).items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        cell.source = cell.source.replace(old, new)
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    listing = sorted(FOLDER.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(jupyter))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(jupyter / "runtime"))
        patch.setenv("IPYTHONDIR", str(jupyter / "ipython"))
        patch.setenv("OMP_NUM_THREADS", "1")
        client = NotebookClient(
            notebook, timeout=300, kernel_name="under-test", resources={"metadata": {"path": FOLDER}}
        )
        client.execute()
    *cells, last = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = json.loads("".join(output.text for output in last.outputs if output.name == "stdout"))
    return SimpleNamespace(cells=cells, left=sorted(set(FOLDER.iterdir()) - set(listing)), **found)
