"""The notebook runs from top to bottom without a network, and what it shows holds."""

from __future__ import annotations

from types import SimpleNamespace

import nbformat
import pytest
from notebooks import FOLDER, run

NOTEBOOK = FOLDER / "fine_tune.ipynb"

# Half the training of the notebook, which is most of the time that it takes: what is asserted holds early on.
SHORTER = {"max_steps=100": "max_steps=50", '"max_epochs": 10': '"max_epochs": 5'}

# Runs after the last cell: what the tests look at, out of the kernel.
PROBE = """
import numpy as np
from fanoise_lightning.noise import feature_noise

def _entropy_rank(matrix):
    values = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))

def _weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.encoder.parameters()])

print(json.dumps({
    "scores": {title: [row.precision for row in board] for title, board in boards.items()},
    "chance": [float(value) for value in chance],
    "counts": [row.num_queries for row in boards["before"]],
    "intervals_hold": all(
        row.interval[0] <= row.precision <= row.interval[1] for board in boards.values() for row in board
    ),
    "ranks": {f"{title} {side}": value for (title, side), value in ranks.items()},
    "images_rank": _entropy_rank(noisy.encode(images)),
    "moved": {
        title: float((_weights(module) - _weights(before)).norm()) for title, module in modules.items()
    },
    "apart": float((_weights(plain) - _weights(noisy)).norm()),
    "noise": [side for record in monitor.spectra for side in record["sides"].values()],
    "hits": text_hits,
    "brute_force": sorted(
        range(len(images)),
        key=lambda row: -float(noisy.encode([images[row]])[0] @ noisy.encode([Sample(text="a heart")])[0]),
    )[: len(text_hits)],
    "recall": float(np.mean([row in search(Sample(text=text))[0] for row, text in enumerate(captions)])),
    "left_over": folder.exists(),
}))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> SimpleNamespace:
    """The notebook, and what the probe found in it."""
    return run(NOTEBOOK.name, PROBE, tmp_path_factory.mktemp("jupyter"), SHORTER)


@pytest.mark.slow
def test_it_runs_without_an_error(executed):
    outputs = [output for cell in executed.cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if "Traceback" in output.get("text", "")]


@pytest.mark.slow
def test_it_leaves_nothing_behind(executed):
    assert executed.left == []
    assert not executed.left_over


@pytest.mark.slow
def test_each_run_scores_above_chance_on_each_question(executed):
    assert executed.counts == [130, 300, 300]
    assert executed.chance == pytest.approx([1 / 130, 0.01, 0.02], abs=1e-3)
    assert executed.intervals_hold
    for title in ("without noise", "with noise"):
        for score, chance in zip(executed.scores[title], executed.chance, strict=True):
            assert score > 4 * chance, title


@pytest.mark.slow
def test_both_runs_start_from_one_model_and_part_by_the_noise(executed):
    assert executed.moved["before"] == 0
    assert min(executed.moved["without noise"], executed.moved["with noise"]) > 0
    assert executed.apart > 0


@pytest.mark.slow
def test_the_noise_has_the_length_that_was_asked_for(executed):
    assert executed.noise
    for side in executed.noise:
        energy = sum(value**2 for value in side["noise"]) / side["batch_size"]  # of a row, on average
        assert energy == pytest.approx(0.5**2, rel=0.15)


@pytest.mark.slow
def test_the_effective_ranks_are_those_of_an_exact_svd(executed):
    assert set(executed.ranks) == {
        f"{title} {side}" for title in executed.scores for side in ("images", "captions")
    }
    assert all(1 < rank < 130 for rank in executed.ranks.values())
    assert executed.ranks["with noise images"] == pytest.approx(executed.images_rank, rel=1e-3)


@pytest.mark.slow
def test_the_search_is_exact_and_finds_held_out_images_by_their_captions(executed):
    assert executed.hits == executed.brute_force
    assert executed.recall > 0.25  # six hits of 130: chance is 0.05


def test_it_is_committed_with_its_outputs():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 6
    assert NOTEBOOK.stat().st_size < 600_000


def test_its_committed_outputs_hold_no_warnings_and_no_paths():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    for word in ("/home", "/tmp", "/root", "/Users", "site-packages", "Warning", ":\\"):
        assert not [text for text in texts if word in text], word
