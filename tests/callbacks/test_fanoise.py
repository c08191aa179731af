from __future__ import annotations

import math

import pytest
import torch
from plain_module import DIM, Pairs, PlainModule, Recorder, fit, noise_seen

from fanoise_lightning import noise
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.callbacks._shapes import ShapeMemory
from fanoise_lightning.seeds import derive_seed

# What it adds


def test_the_loss_sees_the_noise_of_the_method():
    callback = FANoise(alpha=0.5, seed=3)
    module = PlainModule(Recorder())
    fit(module, [callback], max_steps=1)
    clean = PlainModule().embed(torch.stack([Pairs()[i][0] for i in range(8)])).detach()
    query_noise = module.criterion.calls[0][0] - clean
    # The same draw by the library's pure function: seed, rank 0, instance 0, batch 0, call 0, side 0.
    generator = torch.Generator().manual_seed(derive_seed(3, 0, 0, 0, 0, 0))
    assert torch.allclose(query_noise, noise.feature_noise(clean, 0.5, generator=generator), atol=1e-6)


def test_sides_batches_and_seeds_draw_different_noise():
    # Uniform noise does not depend on the features: equal draws would be equal noise.
    first = noise_seen(FANoise(scaling="uniform", seed=0), steps=2)
    other = noise_seen(FANoise(scaling="uniform", seed=1), steps=2)
    draws = [first[0][0], first[0][1], first[1][0], first[1][1], other[0][0]]
    for i, a in enumerate(draws):
        assert all(not torch.allclose(a, b) for b in draws[:i])


def test_every_epoch_draws_different_noise():
    class Still(PlainModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Still(Recorder())
    fit(module, [FANoise(scaling="uniform", seed=0)], max_steps=12)  # two epochs of six batches
    queries = torch.stack([query for query, _ in module.criterion.calls])
    assert (queries[:6] - queries[6:]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_only_the_named_side_gets_noise():
    query, target = noise_seen(FANoise(sides=["target"]))[0]
    assert not query.any()
    assert target.any()


def test_renormalized_rows_keep_the_norm_of_the_clean_rows():
    module = PlainModule(Recorder())
    fit(module, [FANoise(alpha=2.0, renormalize=True)], max_steps=1)
    query, _ = module.criterion.calls[0]
    assert torch.allclose(query.norm(dim=1), torch.ones(8), atol=1e-5)


def test_warm_up_raises_the_level_linearly():
    noises = noise_seen(FANoise(alpha=1.0, scaling="uniform", warmup_steps=4, seed=0), steps=6)
    full = noise_seen(FANoise(alpha=1.0, scaling="uniform", seed=0), steps=6)
    ratios = [(a[0].norm() / b[0].norm()).item() for a, b in zip(noises, full)]
    assert ratios == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-3)


def test_no_gradient_flows_through_the_noise():
    # d(loss)/d(features) with constant noise: at the noisy point, by autograd, without the callback.
    module = PlainModule(Recorder())
    fit(module, [FANoise(alpha=0.5, seed=0)], max_steps=1)
    (query, target), batch = module.criterion.calls[0], Pairs()[:8]
    twin = PlainModule()
    q, t = twin.embed(batch[0]), twin.embed(batch[1])
    loss = ((q + (query - q).detach()) * (t + (target - t).detach())).sum().square()
    loss.backward()
    stepped = twin.net.weight - 0.1 * twin.net.weight.grad
    assert torch.allclose(module.net.weight, stepped, atol=1e-5)


def test_every_n_steps_decomposes_only_every_nth_batch(monkeypatch):
    calls = []
    original = noise.noise_shape
    monkeypatch.setattr(
        "fanoise_lightning.callbacks._shapes.noise_shape", lambda *a: calls.append(1) or original(*a)
    )
    callback = FANoise(every_n_steps=3)
    fit(PlainModule(), [callback], max_steps=6)
    assert len(calls) == 2 * 2  # batches 0 and 3, two sides
    kept = callback.state_dict()["shapes"].values()
    assert [len(factors) for _, factors in kept] == [1, 1]  # one product for each batch in between


def test_momentum_shapes_noise_by_the_average_of_the_batches():
    # Batches of two rows span two directions each: the average of many spans them all.
    single = noise_seen(FANoise(alpha=1.0, seed=0), steps=12, batch_size=2)
    moving = noise_seen(FANoise(alpha=1.0, seed=0, momentum=0.9), steps=12, batch_size=2)
    _, _, rows = torch.linalg.svd(single[-1][0], full_matrices=True)
    assert (moving[-1][0] @ rows[2:].T).norm() > 0.1 * moving[-1][0].norm()


def test_momentum_starts_with_the_shape_of_the_first_batch():
    x = torch.randn(24, DIM, generator=torch.Generator().manual_seed(0))
    (factor,) = ShapeMemory("sublinear", "paper", 0.9, 1).shape("query", x, 0).factors
    _, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    scale = s.sqrt() / s.sqrt().mean()
    expected = v.T @ torch.diag(scale**2) @ v
    assert torch.allclose((factor.T @ factor).double(), expected, atol=1e-4)


# When it adds


def test_validation_and_the_sanity_check_see_clean_features():
    noisy, clean = PlainModule(), PlainModule()
    for module, callbacks in ((noisy, [FANoise(alpha=5.0)]), (clean, [])):
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        module.configure_optimizers = lambda m=module: torch.optim.SGD(m.parameters(), lr=0.0)
        module.training_step = lambda batch, i, m=module: m.compute_loss(batch).requires_grad_()
        fit(module, callbacks, val=True, val_check_interval=3, num_sanity_val_steps=2)
    assert noisy.val_losses == clean.val_losses
    assert len(noisy.val_losses) == 2 + 2 * 6


def test_noise_is_there_although_the_module_is_in_eval_mode():
    module = PlainModule(Recorder()).eval()
    callback = FANoise(alpha=1.0)
    fit(module, [callback], max_steps=1)
    assert (module.criterion.calls[0][0].norm(dim=1) - 1).abs().max() > 0.01


# The constructor


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", -1.0),
        ("alpha", math.nan),
        ("scaling", "cubic"),
        ("energy", "loud"),
        ("sides", ()),
        ("sides", "query"),
        ("sides", ("query", "key")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("every_n_steps", 0),
        ("warmup_steps", -1),
        ("seed", -1),
    ],
)
def test_a_bad_argument_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"`{name}`") as error:
        FANoise(**{name: value})
    assert str(value) in str(error.value) or repr(value) in str(error.value)
