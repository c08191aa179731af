"""What is computed again in the backward pass gets the same noise again."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import seed_everything
from noisy_sites import fit, same
from plain_module import PlainModule
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fanoise_lightning.callbacks import ExactResume, FANoise


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_part_is_computed_again_with_the_same_noise(use_reentrant):
    class Checkpointed(PlainModule):
        checkpointed = True

        def embed(self, x):
            x = x.requires_grad_()
            run = lambda x: F.normalize(torch.dropout(self.net(x), 0.3, True), dim=1)  # noqa: E731
            return checkpoint(run, x, use_reentrant=use_reentrant) if self.checkpointed else run(x)

    class Plain(Checkpointed):
        checkpointed = False

    seed_everything(0, verbose=False)  # ExactResume would draw a seed for each
    noise = FANoise(0.5, target="net", where="input", seed=3)
    runs = [fit(kind(), copy.deepcopy(noise), ExactResume()) for kind in (Checkpointed, Plain)]
    assert same(*runs)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_part_that_is_computed_again_with_other_random_numbers_is_an_error(use_reentrant):
    class Checkpointed(PlainModule):
        def embed(self, x):
            x = checkpoint(
                self.net, x.requires_grad_(), use_reentrant=use_reentrant, preserve_rng_state=False
            )
            return F.normalize(x, dim=1)

    with pytest.raises(RuntimeError, match=r"'net' is computed again .*`preserve_rng_state=True`"):
        fit(Checkpointed(), FANoise(0.5, target="net", where="input"))
