from __future__ import annotations

import copy
import pickle

import pytest
import torch
from plain_module import PlainModule, Recorder, fit, hooks_of
from torch import nn
from torch.nn import functional as F

from fanoise_lightning import FeatureTap, InfoNCE
from fanoise_lightning.callbacks import FANoise

# The target


class Functional(PlainModule):
    def __init__(self) -> None:
        super().__init__()
        del self.criterion
        self.tap = FeatureTap()

    def compute_loss(self, batch):
        query, target = self.tap(self.embed(batch[0]), self.embed(batch[1]))
        return F.cross_entropy(query @ target.T / 0.1, torch.arange(len(query)))


def test_a_feature_tap_serves_a_functional_loss():
    noisy, clean = Functional(), Functional()
    fit(noisy, [FANoise(alpha=1.0)], max_steps=1)
    fit(clean, max_steps=1)
    assert noisy.losses != clean.losses


def test_keyword_arguments_are_found():
    class Keywords(PlainModule):
        def compute_loss(self, batch):
            return self.criterion(target=self.embed(batch[1]), query=self.embed(batch[0]))

    noisy, clean = Keywords(), PlainModule()
    fit(noisy, [FANoise(alpha=1.0, seed=0)], max_steps=3)
    fit(clean, [FANoise(alpha=1.0, seed=0)], max_steps=3)
    assert noisy.losses == clean.losses


def test_a_stock_loss_with_its_own_names_is_served():
    from open_clip.loss import ClipLoss

    class OpenClip(PlainModule):
        def compute_loss(self, batch):
            scale = torch.tensor(10.0)
            return self.criterion(self.embed(batch[0]), text_features=self.embed(batch[1]), logit_scale=scale)

    noisy, clean = OpenClip(ClipLoss()), OpenClip(ClipLoss())
    fit(noisy, [FANoise(alpha=1.0)], max_steps=1)
    fit(clean, max_steps=1)
    assert noisy.losses != clean.losses


def test_a_nested_target_is_named_by_its_path():
    class Wrapped(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = None
            self.heads = nn.ModuleDict({"main": InfoNCE(0.1)})

        def compute_loss(self, batch):
            return self.heads["main"](self.embed(batch[0]), self.embed(batch[1]))

    callback = FANoise(target="heads.main")
    fit(Wrapped(), [callback], max_steps=1)
    with pytest.raises(
        ValueError,
        match=r"'heads\.side' names no module of Wrapped; the children of 'heads' are: 'main' \(InfoNCE\)",
    ):
        fit(Wrapped(), [FANoise(target="heads.side")], max_steps=1)


def test_without_a_loss_module_the_error_shows_the_one_line_fix():
    class NoLoss(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = nn.CrossEntropyLoss()  # takes logits: noise on them would be wrong

    with pytest.raises(ValueError, match=r"'net' \(Linear\), 'criterion'(?s:.*)FeatureTap"):
        fit(NoLoss(), [FANoise()], max_steps=1)


def test_two_loss_modules_are_listed():
    module = PlainModule()
    module.aux_loss = InfoNCE()
    with pytest.raises(ValueError, match=r"'criterion' \(InfoNCE\), 'aux_loss' \(InfoNCE\)"):
        fit(module, [FANoise()], max_steps=1)


def test_a_target_that_is_never_called_is_warned_of_after_the_first_batch_and_at_the_end():
    module = PlainModule()
    module.unused_loss = InfoNCE()
    with pytest.warns(UserWarning, match="added no noise in") as warned:
        fit(module, [FANoise(target="unused_loss")])
    messages = [str(w.message) for w in warned if "added no noise" in str(w.message)]
    assert "the first training batch: 'unused_loss' was not called" in messages[0]
    assert "any of 6 training batches: 'unused_loss' was not called" in messages[1]


def test_a_loss_without_two_feature_matrices_is_named():
    class Vectors(PlainModule):
        def compute_loss(self, batch):
            return self.criterion(self.embed(batch[0])[0], self.embed(batch[1])[0])

    with pytest.raises(ValueError, match="found none in a call of Recorder"):
        fit(Vectors(Recorder()), [FANoise()], max_steps=1)


# Ways out


def test_the_hook_is_gone_after_the_fit():
    module = PlainModule()
    fit(module, [FANoise()])
    assert hooks_of(module) == 0


def test_the_hook_is_gone_after_an_exception():
    class Fails(PlainModule):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise RuntimeError("mid-step")

    module = Fails()
    with pytest.raises(RuntimeError, match="mid-step"):
        fit(module, [FANoise()])
    assert hooks_of(module) == 0


def test_a_callback_can_be_copied_pickled_and_used_again():
    callback = pickle.loads(pickle.dumps(copy.deepcopy(FANoise(seed=0))))
    first, second = PlainModule(), PlainModule()
    fit(first, [callback])
    fit(second, [callback])
    assert first.losses == second.losses


@pytest.mark.parametrize("where", ["module", "loss"])
def test_compiled_modules_get_the_noise(where):
    noisy, clean = PlainModule(), PlainModule()
    for module, callbacks in ((noisy, [FANoise(alpha=1.0)]), (clean, [])):
        if where == "loss":
            module.criterion = torch.compile(module.criterion, backend="eager")
            run = module
        else:
            run = torch.compile(module, backend="eager")
        fit(run, callbacks, max_steps=2)
    assert noisy.losses != clean.losses
