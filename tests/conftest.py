from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from foreign_code import PACKAGE


@pytest.fixture(scope="session", autouse=True)
def _autograd_without_threads() -> None:
    # Fake tensors, which torch.compile uses too, pretend that there is a CUDA device. If autograd started
    # after that, it would start a thread for it, and later tests in this process could not fork.
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Any]:
    """What a function makes in a folder, made by one of the processes that test, for all of them."""

    def made(name: str, make: Callable[[Path], Any]) -> Any:
        root = tmp_path_factory.getbasetemp()
        root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
        with FileLock(f"{root}.lock"):
            if not (file := root.with_suffix(".pt")).exists():
                shutil.rmtree(root, ignore_errors=True)  # of a process that failed
                root.mkdir()
                torch.save(make(root), file)
        return torch.load(file, weights_only=False)

    return made


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> str:
    """The path of an open_clip config whose model runs in milliseconds."""
    path = tmp_path_factory.mktemp("open_clip") / "tiny-two-tower.json"
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory) -> Path:
    """A small folder with MMEB-train/ and MMEB-eval/ as on the hub; for all tests: do not change it."""
    from data.snapshots import make_snapshot

    return make_snapshot(tmp_path_factory.mktemp("snapshot"))


@pytest.fixture
def their_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the package ``their_code``, which can be imported, and says so if it is."""
    folder = tmp_path / "their_code"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    sys.modules.pop("their_code", None)


@pytest.fixture(scope="session")
def saved_checkpoint(tiny_clip: str) -> dict[str, Any]:
    """A checkpoint of a module that was built in Python; for all tests: do not change it."""
    from fanoise_lightning import ContrastiveModule, InfoNCE, LinearWarmup, OpenClipEncoder

    module = ContrastiveModule(
        OpenClipEncoder(tiny_clip),
        InfoNCE(0.1),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        lr_scheduler=partial(LinearWarmup, warmup_steps=3),
    )
    return {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6.6",
    }


@pytest.fixture
def write_checkpoint(saved_checkpoint: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write that checkpoint with other hyperparameters, and return its path."""

    def changed(top: dict[str, Any] | None = None, **hyperparameters: Any) -> Path:
        checkpoint = copy.copy(saved_checkpoint) | (top or {})
        checkpoint["hyper_parameters"] = copy.deepcopy(saved_checkpoint["hyper_parameters"]) | hyperparameters
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return changed
