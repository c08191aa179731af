"""The notebook on theory runs without a network, and its lines and dots agree where theory holds."""

from __future__ import annotations

from types import SimpleNamespace

import nbformat
import pytest
from notebooks import FOLDER, run

PROBE = """
import json

strong = multiples >= 1.4
at = multiples[strong] * (rows * dim) ** 0.25
print(json.dumps({
    "cosines": torch.stack(overlaps)[strong].tolist(),
    "theory": predicted_overlaps(at, 1.0, rows, dim).tolist(),
    "lost": [x.item() for x, multiple in zip(overlaps, multiples) if multiple < 0.7],
    "tails": {
        law: (vectors[100:] @ directions[100:].T).square().mean(0).sum().item() / 150
        for law, vectors in noisy_vectors.items()
    },
    "energies": [theory[-1], float(measured[-1])],
    "shift": [float(along.mean()), error, (shifts[-1] @ query / unit).item()],
}))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> SimpleNamespace:
    return run("theory.ipynb", PROBE, tmp_path_factory.mktemp("jupyter"))


@pytest.mark.slow
def test_it_draws_five_figures_without_an_error_or_a_warning(executed):
    outputs = [output for cell in executed.cells for output in cell.outputs]
    assert [output.output_type for output in outputs] == ["display_data"] * 5
    assert all("image/png" in output.data for output in outputs)


@pytest.mark.slow
def test_it_leaves_nothing_behind(executed):
    assert executed.left == []


@pytest.mark.slow
def test_dots_and_lines_agree_where_theory_holds(executed):
    assert executed.cosines == pytest.approx(executed.theory, rel=0.06)
    assert max(executed.lost) < 0.25
    assert executed.energies[0] == pytest.approx(executed.energies[1], rel=0.05)


@pytest.mark.slow
def test_dots_and_lines_part_where_it_does_not(executed):
    mean, error, theory = executed.shift  # at a sigma of 1.5
    assert abs(mean - theory) > 5 * error


@pytest.mark.slow
def test_the_tail_is_kept_by_shaped_noise_alone(executed):
    assert executed.tails["uniform"] < executed.tails["sublinear"] < executed.tails["linear"]


def test_it_is_committed_without_outputs():
    code = [
        cell
        for cell in nbformat.read(FOLDER / "theory.ipynb", as_version=4).cells
        if cell.cell_type == "code"
    ]
    assert code
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
