"""The formulas of docs/growth.md: bytes between ranks as counted, and the script from end to end."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import growth, traffic
from benchmarks.tensor_memory import TensorMemory, peak_bytes
from fanoise_lightning import feature_noise


@pytest.mark.parametrize("name", traffic.STEPS)
@pytest.mark.parametrize(("ranks", "rows"), [(2, 8), (2, 32), (3, 16)])
def test_ranks_exchange_the_bytes_of_the_formula(name, ranks, rows):
    sizes = (ranks, rows, 48, 48 * 48 * traffic.BLOCKS)
    sent, calls = traffic.count(name, *sizes)
    assert sent == pytest.approx(traffic.expected(name, *sizes), rel=traffic.TOLERANCE[name])
    assert sum(calls.values()) > 0


def test_a_step_takes_the_memory_of_the_formula():
    for batch, dim in ((64, 512), (512, 512), (1024, 256)):
        memory, runs = growth.peaks(batch, dim), growth.runs_of(batch, dim, "cpu")
        for name in ("loss", "noise", "both"):
            assert 0.5 < peak_bytes(runs[name]) / memory[name] < 1.5, (name, batch)


def test_the_memory_of_tensors_is_counted_while_they_live():
    x = torch.zeros(1000)  # its storage was there before
    with TensorMemory() as memory:
        y = x + 1
        assert memory.now == 4000
        z = y.view(10, 100)  # the same storage
        del y
        assert memory.now == 4000
        z = z.double()  # both, for a moment
        assert (memory.now, memory.peak) == (8000, 12000)
        x.detach()
        assert memory.now == 8000
        del z
    assert memory.now == 0


def test_the_products_of_the_devices_route_are_those_of_the_formula(monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode

    from fanoise_lightning import spectrum

    monkeypatch.setattr(spectrum, "_by_products", lambda x: True)
    for rows, dim in ((24, 40), (40, 24)):
        with FlopCounterMode(display=False) as counter:
            feature_noise(torch.randn(rows, dim))
        assert counter.get_total_flops() == pytest.approx(growth.noise_flops(rows, dim), rel=1e-6)


def test_every_part_prints_its_figures(tmp_path, capfd):
    out, drawing = tmp_path / "growth.json", tmp_path / "growth.svg"
    sizes = {"batches": [8, 16], "dim": [12], "items": [400, 500], "vectors": [50, 90]}
    options = [word for name, values in sizes.items() for word in (f"--{name}", *map(str, values))]
    only = ["--only", "step", "evaluation", "search", "beyond"]  # reading starts processes, ranks is above
    growth.main([*options, *only, "--rounds=1", f"--json={out}", f"--figure={drawing}"])
    figures = {figure["name"]: figure["value"] for figure in json.loads(out.read_text())}
    assert figures["loss, batch 16, ms"] > 0
    assert figures["evaluation, 200 queries, 500 candidates"] > 0
    assert figures["search, 64 queries, 90 rows"] > 0
    assert "</svg>" in drawing.read_text()
    assert "32768" in capfd.readouterr().out
