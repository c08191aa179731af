"""The processes of runs: what they answer, and how they are ended."""

from __future__ import annotations

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fanoise_lightning.study import worker as module
from fanoise_lightning.study.run import LOG
from fanoise_lightning.study.worker import Worker

DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
TALKATIVE = """
import sys
print("hello from a module that is imported", flush=True)
for line in sys.stdin:
    print("more", flush=True)
    print(-9, flush=True)
"""


def use(monkeypatch: pytest.MonkeyPatch, program: str, forks: bool) -> Worker:
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", program))
    worker = Worker({})
    worker._forks = forks
    return worker


def test_a_run_that_does_not_end_when_asked_is_killed(monkeypatch, tmp_path):
    worker = use(monkeypatch, DEAF, forks=False)
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(worker.run, tmp_path)
        while not (tmp_path / LOG).exists() or "ready" not in (tmp_path / LOG).read_text():
            time.sleep(0.05)
        worker.stop(patience=0.2)
        assert code.result(10) == -signal.SIGKILL


def test_what_a_module_prints_is_not_an_exit_code(monkeypatch, tmp_path):
    worker = use(monkeypatch, TALKATIVE, forks=True)
    assert [worker.run(tmp_path), worker.run(tmp_path)] == [-9, -9]
    worker.stop()


@pytest.mark.parametrize("forks", [False, True])
def test_nothing_is_started_after_the_end(monkeypatch, tmp_path, forks):
    worker = use(monkeypatch, "open('started', 'w')", forks)
    monkeypatch.chdir(tmp_path)
    worker.stop()
    assert worker.run(tmp_path) == -signal.SIGTERM
    assert not (tmp_path / "started").exists()
