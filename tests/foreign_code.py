"""A package that says so if it is imported, called or built: what a checkpoint must not bring about."""

from __future__ import annotations

import sys
from pathlib import Path

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
RUNNER = {"class_path": "their_code.Runner"}
PACKAGE = """
from pathlib import Path
from torch import nn
from torch.optim import SGD
from fanoise_lightning import InfoNCE

Path(__file__).with_name("imported").touch()

class Loss(InfoNCE):
    def __init__(self, temperature: float, sizes: tuple[int, int], part: nn.Module | None = None):
        super().__init__(temperature)
        self.sizes, self.part = sizes, part

class Rate(SGD):
    pass

class Runner:
    def __init__(self, command: str = ""):
        Path(__file__).with_name("ran").touch()
    def __call__(self, *args):
        return self

def run(*args, **kwargs):
    Path(__file__).with_name("ran").touch()
"""


def nothing_happened(folder: Path) -> bool:
    """Whether ``their_code`` in this folder was neither imported nor run."""
    return "their_code" not in sys.modules and {file.name for file in folder.iterdir()} == {"__init__.py"}
