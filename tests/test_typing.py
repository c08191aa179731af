"""Type checkers see the callbacks as what they are, though their code lies outside the package's folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lightning's Callback is read, so that FANoise has a known base class; reading torch would take a minute.
CONFIG = """\
[mypy]
follow_imports = skip
[mypy-fanoise_lightning,fanoise_lightning.callbacks.*,fanoise_lightning.noise,fanoise_lightning.laws]
follow_imports = silent
[mypy-lightning.pytorch,lightning.pytorch.callbacks,lightning.pytorch.callbacks.callback]
follow_imports = silent
"""

USE = """\
import fanoise_lightning
from fanoise_lightning.callbacks import FANoise, SpectrumMonitor

FANoise(alpha=0.2, scaling="linear").relative.bit_length()
FANoise(alpha="loud")
FANoise(scaling="cubic")
FANoise(no_such_argument=1)
FANoise().nothing()
SpectrumMonitor(every_n_steps="often")
fanoise_lightning.FANoise(alpha="loud")
reveal_type(fanoise_lightning.FANoise())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / "fanoise_lightning" / "callbacks").is_dir(),
    reason="this checkout has no symbolic links (git's core.symlinks is false), so mypy sees no callbacks",
)
def test_mypy_reports_wrong_use_of_the_callbacks(tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(CONFIG)
    (tmp_path / "use.py").write_text(USE)
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "--cache-dir=cache", "use.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    reported = re.findall(r"^use\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    assert reported == [
        ("5", "arg-type"),
        ("6", "arg-type"),
        ("7", "call-arg"),
        ("8", "attr-defined"),
        ("9", "arg-type"),
        ("10", "arg-type"),
    ], done.stdout + done.stderr
    assert 'Revealed type is "fanoise_lightning.callbacks.fanoise.FANoise"' in done.stdout
