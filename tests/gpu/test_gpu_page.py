"""The script that measures a GPU runs from end to end on the CPU, with tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks import gpu
from benchmarks.noise_accuracy import exact_covariance

ROOT = Path(__file__).parents[2]
TRIES = ["--device", "cpu", "--small", "--rounds", "1", "--pairs", "2", "--recipes", "qwen2_vl_2b"]

REPORT = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_noise" name="test_a"/>
<testcase classname="tests.gpu.test_noise" name="test_b"><skipped message="needs a CUDA device"/></testcase>
<testcase classname="tests.gpu.test_encoders" name="test_c"><failure message="no"/></testcase>
</testsuite></testsuites>"""


def test_the_page_has_every_part(tmp_path):
    out, figures = tmp_path / "gpu.md", tmp_path / "gpu.json"
    files = [tmp_path / name for name in ("good.py", "old.py", "bad.py")]
    files[0].write_text("print('12 ms')")
    files[1].write_text("import argparse; argparse.ArgumentParser().parse_args()")
    files[2].write_text("raise RuntimeError('no memory')")
    parts = ["accuracy", "draw", "recipes", "benchmarks"]
    arguments = [*TRIES, f"--out={out}", f"--json={figures}", "--only", *parts]
    assert gpu.main([*arguments, "--benchmarks", *map(str, files[:2])]) == 0
    page = out.read_text()
    assert page.startswith("# On a GPU\n")
    assert page.count("\n## ") == len(parts)
    for expected in (
        torch.__version__,
        "12 ms",
        "runs on the CPU only",
        "`qwen2_vl_2b`",
    ):
        assert expected in page
    found = {figure["name"]: figure for figure in json.loads(figures.read_text())}
    assert found["qwen2_vl_2b, pairs/s"]["value"] > 0
    assert found["covariance, i^-1, R = 16"]["value"] < 0.1
    assert {"one draw, 16 x 24, of svd", "one draw, 32 x 16, of eigh"} <= set(found)
    assert gpu.main([*TRIES, f"--out={out}", "--only", "benchmarks", "--benchmarks", str(files[2])]) == 1
    assert "no memory" in out.read_text()
    assert gpu.main([*TRIES, f"--out={out}", "--only", "benchmarks", "--benchmarks", "absent"]) == 1
    assert "no such benchmark" in out.read_text()
    files[2].write_text("import time; time.sleep(60)")
    arguments = [*TRIES, f"--out={out}", "--only", "benchmarks", "--benchmarks", str(files[2])]
    assert gpu.main([*arguments, "--timeout", "1"]) == 1
    assert "Not done after 1 s" in out.read_text()


def test_a_part_that_fails_is_on_the_page_beside_the_others(tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no memory left")

    out, figures = tmp_path / "gpu.md", tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "train", fail)
    monkeypatch.setitem(gpu.PARTS, "accuracy", fail)
    parts = ["accuracy", "recipes", "draw"]
    assert gpu.main([*TRIES, f"--out={out}", f"--json={figures}", "--only", *parts]) == 1
    page = out.read_text()
    assert page.count("\n## ") == len(parts)
    assert "Failed: OutOfMemoryError: no memory left" in page
    assert "`qwen2_vl_2b` failed: OutOfMemoryError: no memory left" in page
    assert "one draw, 16 x 24, of svd" in figures.read_text()


def test_the_outcome_of_tests_is_counted_file_by_file():
    part = gpu.tests_of(REPORT)
    assert part.failed
    assert "| `test_noise` | 1 | 1 | 0 |" in part.text
    assert "| `test_encoders` | 0 | 0 | 1 |" in part.text
    assert "skipped: `test_noise::test_b`, needs a CUDA device" in part.text
    assert "failed: `test_encoders::test_c`" in part.text
    assert not gpu.tests_of(
        REPORT.replace("<failure", "<properties").replace("/failure>", "/properties>")
    ).failed
    assert gpu.tests_of("<nothing/>").failed  # pytest did not start


@pytest.mark.parametrize("draw", [gpu.svd_noise, gpu.eigh_noise])
@pytest.mark.parametrize(("rows", "dim"), [(12, 20), (20, 12)])
def test_what_the_draw_is_compared_with_is_the_same_noise(draw, rows, dim):
    torch.manual_seed(0)
    x = F.normalize(torch.randn(rows, dim), dim=1)
    noise = torch.cat([draw(x, 0.5) for _ in range(1000)]).double()
    expected = exact_covariance(x, "sublinear") * (0.5**2 / dim)
    error = (noise.T @ noise / len(noise) - expected).norm() / expected.norm()
    assert error < 0.1


def test_the_committed_page_says_on_which_machine_it_ran_or_that_it_did_not():
    page = (ROOT / "benchmarks" / "gpu.md").read_text()
    assert "make gpu" in page
    assert "Not run" in page or "GiB; torch" in page
