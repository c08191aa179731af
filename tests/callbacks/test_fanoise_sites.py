"""Noise at the input or the output of a module inside the model."""

from __future__ import annotations

import copy

import torch
from lightning.pytorch import Callback, seed_everything
from noisy_sites import Outputs, Seen, fit, quiet
from plain_module import Pairs, PlainModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fanoise_lightning.callbacks import FANoise


def test_the_input_of_a_module_gets_noise_of_the_asked_amount():
    seed_everything(0, verbose=False)
    seen = Seen()
    fit(PlainModule(), FANoise(0.3, "uniform", "net", "input", energy="constant", seed=1), seen, steps=40)
    batches = list(DataLoader(Pairs(), batch_size=8))
    noises = [x - batches[i // 2 % 6][i % 2] for i, (x, _) in enumerate(seen.calls)]
    squares = torch.stack(noises).square().sum(-1).flatten()  # of noise rows
    standard_error = squares.std() / len(squares) ** 0.5
    assert abs(squares.mean() - 0.09) < 4 * standard_error
    assert len({x[0, 0].item() for x in noises}) == len(noises) == 80  # each call its own


def test_a_mask_before_the_features_is_passed_over():
    class Masks(nn.Linear):
        def forward(self, padding_mask, hidden):
            self.seen = padding_mask, hidden
            return super().forward(hidden)

    class Masked(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Masks(6, 8)

        def embed(self, x):
            self.x = x
            return F.normalize(self.net(padding_mask=torch.ones(8, 6), hidden=x), dim=1)

    module = fit(Masked(), FANoise(0.5, target="net", where="input"))
    mask, hidden = module.net.seen
    assert torch.equal(mask, torch.ones(8, 6))
    assert not torch.equal(hidden, module.x)


def test_tokens_are_rows():
    """Noise on (B, N, D) is shaped by the B N tokens: rank one tokens get rank one noise."""
    direction = F.normalize(torch.randn(4), dim=0)
    wrap = lambda x: x.view(len(x), 2, 4).mean(-1, keepdim=True) * direction  # noqa: E731
    module = fit(Outputs(wrap, lambda out: out), FANoise(0.5, target="part", where="output"))
    noise = torch.cat([a - wrap(b) for a, b in zip(module.after, module.before)]).flatten(0, 1)
    across = noise - (noise @ direction).outer(direction)
    assert noise.norm() > 1
    assert across.norm() < 1e-3 * noise.norm()


def test_evaluation_is_clean():
    module, seen = PlainModule(), Seen()
    callback = FANoise(0.5, target="net", where="input")
    trainer = quiet(callback, seen, max_steps=2, val_check_interval=1, limit_val_batches=1)
    loader = DataLoader(Pairs(), batch_size=8)
    trainer.fit(module, loader, loader)
    first = next(iter(loader))
    clean = [any(torch.equal(x, side) for side in first) for x, _ in seen.calls]
    assert clean == [False, False, True, True] * 2


def test_a_module_in_eval_mode_within_a_step_gets_no_noise():
    class Embeds(PlainModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.eval()
            with torch.no_grad():
                self.clean = self.net(batch[0]), F.linear(batch[0], self.net.weight, self.net.bias)
            self.train()
            return loss

    module = fit(Embeds(), FANoise(0.5, target="net", where="input"))
    assert torch.equal(*module.clean)


def test_gradients_are_those_of_a_network_with_that_noise():
    """Brute force: the noise that the module saw, as a constant."""
    module, seen = PlainModule(), Seen()
    twin = copy.deepcopy(module)
    gradients: list[Tensor] = []

    class Keep(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            gradients.append(pl_module.net.weight.grad.clone())

    fit(module, FANoise(0.5, target="net", where="input", seed=3), seen, Keep(), steps=1)
    (query, _), (target, _) = seen.calls
    twin.criterion(twin.embed(query), twin.embed(target)).backward()
    torch.testing.assert_close(gradients[0], twin.net.weight.grad)
