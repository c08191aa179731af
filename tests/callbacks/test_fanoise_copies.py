"""A module with hooks of ours is copied, pickled and saved as one without them."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from lightning.pytorch import Callback
from plain_module import Pairs, PlainModule, fit
from torch.utils.data import DataLoader

from fanoise_lightning.callbacks import FANoise, SpectrumMonitor

WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "deepcopy of a copy": lambda module: copy.deepcopy(copy.deepcopy(module)),
}


class OpenFile(Pairs):
    """A data set that can be neither copied nor pickled."""

    def __init__(self, path) -> None:
        super().__init__()
        self.file = path.open("w")


class Teacher(Callback):
    """Copies the module in the middle of the fit, and trains on with the loss of both."""

    def __init__(self, way) -> None:
        self.way = way
        self.copied: PlainModule | None = None
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            self.copied = self.way(pl_module)
        if batch_idx >= 2:
            self.losses.append(self.copied.compute_loss(batch).item())  # trainer.training is on
            clean = PlainModule()
            clean.load_state_dict(self.copied.state_dict())
            assert self.losses[-1] == clean.compute_loss(batch).item()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("callback", [FANoise(alpha=2.0, seed=0), SpectrumMonitor(every_n_steps=1)])
def test_a_copy_in_the_middle_of_a_fit_is_clean_and_the_original_goes_on(tmp_path, way, callback):
    data = DataLoader(OpenFile(tmp_path / "open"), batch_size=8)
    alone, copied, teacher = PlainModule(), PlainModule(), Teacher(WAYS[way])
    options = {"default_root_dir": tmp_path, "data": data}
    fit(alone, [callback], **options)
    fit(copied, [callback, teacher], **options)
    assert alone.losses == copied.losses
    assert len(teacher.losses) == 4
    seen = sum(
        len(pickle.dumps(hook)) for m in teacher.copied.modules() for hook in m._forward_pre_hooks.values()
    )
    assert seen < 200  # what is left of the hook holds neither trainer nor data


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "make", [lambda: FANoise(alpha=2.0, seed=0), lambda: SpectrumMonitor(every_n_steps=1)]
)
def test_a_module_that_holds_its_callback_can_be_copied(tmp_path, way, make):
    class Holder(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.noise = make()

        def configure_callbacks(self):
            return [self.noise]

    Holder.__qualname__ = "Holder"
    globals()["Holder"] = Holder  # for pickle
    data = DataLoader(OpenFile(tmp_path / "open"), batch_size=8)
    teacher = Teacher(WAYS[way])
    fit(Holder(), [teacher], default_root_dir=tmp_path, data=data)
    assert len(teacher.losses) == 4


def test_a_copy_can_be_saved_and_loaded_where_the_package_is_not_installed(tmp_path, monkeypatch):
    class Save(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.save(pl_module.head, tmp_path / "head.pt")

    module = PlainModule(loss=torch.nn.CosineEmbeddingLoss())
    module.head = torch.nn.Sequential(module.criterion)
    module.compute_loss = lambda batch: module.criterion(
        module.embed(batch[0]), module.embed(batch[1]), torch.ones(len(batch[0]))
    )
    fit(module, [FANoise(), Save()], max_steps=1)
    for name in [name for name in sys.modules if name.partition(".")[0] == "fanoise_lightning"]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    head = torch.load(tmp_path / "head.pt", weights_only=False)
    x = torch.eye(3)
    assert head[0](x, x, torch.ones(3)) == 0
