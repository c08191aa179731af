"""Reports are printed once, by one process, and can be silenced."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

REPORT = "from fanoise_lightning._log import report; report('a line')"
ENCODER = "from fanoise_lightning import OpenClipEncoder as E; E('emoji-resnet')"
OURS = "import logging; ours = logging.getLogger('fanoise_lightning'); "
CONFIGURED = "import logging; logging.basicConfig(level='INFO'); "


def output(code: str, **environment: str) -> str:
    """What a process prints, on both streams."""
    known = {name: value for name, value in os.environ.items() if "RANK" not in name and "SLURM" not in name}
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**known, **environment}, capture_output=True, text=True, check=True
    )
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("before", ["", CONFIGURED, "import logging; logging.warning('sets up the root'); "])
def test_a_line_is_printed_once(before: str) -> None:
    assert output(before + REPORT).count("a line") == 1


def test_logging_that_is_configured_later_prints_it_once() -> None:
    assert output(f"{REPORT}; {CONFIGURED}report('another')").count("another") == 1


@pytest.mark.parametrize("before", ["", CONFIGURED])
def test_an_encoder_reports_each_thing_once(before: str) -> None:
    printed = output(before + ENCODER)
    assert printed.count("parameters are trained") == 1
    assert printed.count("images are resized") == 1


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_only_rank_0_reports(name: str) -> None:
    assert "a line" in output(REPORT, **{name: "0"})
    assert output(REPORT, **{name: "1"}) == ""


def test_the_global_rank_counts_before_the_local_one() -> None:
    assert output(REPORT, RANK="8", LOCAL_RANK="0") == ""


@pytest.mark.parametrize("before", ["", "import fanoise_lightning._log; "])
def test_a_handler_of_the_application_prints_it_instead(before: str) -> None:
    assert output(f"{before}{OURS}ours.addHandler(logging.StreamHandler()); {REPORT}").count("a line") == 1


@pytest.mark.parametrize("before", ["", CONFIGURED, "import fanoise_lightning._log; "])
def test_an_application_can_silence_it(before: str) -> None:
    assert output(f"{before}{OURS}ours.setLevel('WARNING'); {REPORT}") == ""


def test_a_handler_that_drops_lines_silences_it() -> None:
    handler = "import fanoise_lightning._log; " + OURS + "ours.addHandler(logging.NullHandler()); "
    assert output(handler + REPORT) == ""


def test_on_the_command_line_no_library_changes_how_lines_look() -> None:
    command = "from fanoise_lightning._log import stay_unconfigured; stay_unconfigured(); import logging; "
    library = "logging.info('of open_clip'); logging.warning('careful'); "
    assert output(f"{command}{library}{REPORT}") == "careful\na line\n"


def test_reporting_needs_no_torch() -> None:
    assert output(f"{REPORT}; import sys; assert 'torch' not in sys.modules") == "a line\n"
