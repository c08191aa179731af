from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fanoise_lightning import FeatureTap, InfoNCE, noise
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.callbacks._shapes import ShapeMemory

DIM = 8


class Pairs(TensorDataset):
    def __init__(self, rows: int = 48) -> None:
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(rows, 6, generator=generator)
        super().__init__(query, query + 0.1 * torch.randn(rows, 6, generator=generator))


class PlainModule(LightningModule):
    """A user's module that has never heard of the library."""

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, DIM)
        self.criterion = InfoNCE(temperature=0.1) if loss is None else loss
        self.losses: list[float] = []
        self.val_losses: list[float] = []

    def embed(self, x):
        return F.normalize(self.net(x), dim=1)

    def compute_loss(self, batch):
        return self.criterion(self.embed(batch[0]), self.embed(batch[1]))

    def training_step(self, batch, batch_idx):
        loss = self.compute_loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.val_losses.append(self.compute_loss(batch).item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(nn.Module):
    """A loss that keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, query, target):
        self.calls.append((query.detach().clone(), target.detach().clone()))
        return (query * target).sum().square()


def fit(module, callbacks=(), max_steps=6, batch_size=8, ckpt_path=None, val=False, **kwargs):
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        callbacks=[*callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **{"num_sanity_val_steps": 0, **kwargs},
    )
    loader = DataLoader(Pairs(), batch_size=batch_size)
    trainer.fit(module, loader, DataLoader(Pairs(), batch_size=8) if val else None, ckpt_path=ckpt_path)
    return trainer


def hooks_of(module) -> int:
    return sum(len(m._forward_pre_hooks) for m in module.modules())


def noise_seen(callback: FANoise, steps: int = 1, **kwargs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The noise of each step: what the loss saw with the callback, less the clean embeddings."""
    module = PlainModule(Recorder())
    clean: list[tuple[torch.Tensor, torch.Tensor]] = []
    module.embed = lambda x, embed=module.embed: clean.append(embed(x)) or clean[-1]
    fit(module, [callback], max_steps=steps, **kwargs)
    pairs = zip(clean[::2], clean[1::2])
    return [(q - cq.detach(), t - ct.detach()) for (q, t), (cq, ct) in zip(module.criterion.calls, pairs)]


# What it adds


def test_the_loss_sees_the_noise_of_the_method():
    callback = FANoise(alpha=0.5, seed=3)
    module = PlainModule(Recorder())
    fit(module, [callback], max_steps=1)
    clean = PlainModule().embed(torch.stack([Pairs()[i][0] for i in range(8)])).detach()
    query_noise = module.criterion.calls[0][0] - clean
    # The same draw by the library's pure function: seed, rank 0, batch 0, call 0, side 0.
    generator = callback._generator.__func__(_with(callback, _calls=0), 0, 0, "query", torch.device("cpu"))
    assert torch.allclose(query_noise, noise.feature_noise(clean, 0.5, generator=generator), atol=1e-6)


def _with(callback, **attributes):
    twin = copy.copy(callback)
    twin.__dict__.update(attributes)
    return twin


def test_sides_batches_and_seeds_draw_different_noise():
    # Uniform noise does not depend on the features: equal draws would be equal noise.
    first = noise_seen(FANoise(scaling="uniform", seed=0), steps=2)
    other = noise_seen(FANoise(scaling="uniform", seed=1), steps=2)
    draws = [first[0][0], first[0][1], first[1][0], first[1][1], other[0][0]]
    for i, a in enumerate(draws):
        assert all(not torch.allclose(a, b) for b in draws[:i])


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
    fit(PlainModule(), [FANoise(every_n_steps=3)], max_steps=6)
    assert len(calls) == 2 * 2  # batches 0 and 3, two sides


def test_momentum_shapes_noise_by_the_average_of_the_batches():
    # Batches of two rows span two directions each: the average of many spans them all.
    single = noise_seen(FANoise(alpha=1.0, seed=0), steps=12, batch_size=2)
    moving = noise_seen(FANoise(alpha=1.0, seed=0, momentum=0.9), steps=12, batch_size=2)
    _, _, rows = torch.linalg.svd(single[-1][0], full_matrices=True)
    assert (moving[-1][0] @ rows[2:].T).norm() > 0.1 * moving[-1][0].norm()


def test_momentum_starts_with_the_shape_of_the_first_batch():
    x = PlainModule().embed(Pairs()[:8][0]).detach()
    (got,) = ShapeMemory("sublinear", "paper", 0.9, 1).shape("query", x, 0).factors
    expected = torch.linalg.multi_dot([*noise.noise_shape(x).factors, torch.eye(DIM)])
    # The far tail of an (8, 8) batch: squaring costs it a few digits.
    assert torch.allclose(got.T @ got, expected.T @ expected, atol=5e-3)


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
    with pytest.raises(ValueError, match=r"target='heads\.side' names no module of Wrapped.*'net', 'heads'"):
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


def test_a_target_that_is_never_called_ends_the_run_after_the_first_batch():
    module = PlainModule()
    module.unused_loss = InfoNCE()
    with pytest.raises(RuntimeError, match="unused_loss was not called"):
        fit(module, [FANoise(target="unused_loss")])


def test_a_loss_without_two_feature_matrices_is_named():
    class Vectors(PlainModule):
        def compute_loss(self, batch):
            return self.criterion(self.embed(batch[0])[0], self.embed(batch[1])[0])

    with pytest.raises(ValueError, match="Recorder was called with 0 of them"):
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


def test_two_instances_have_their_own_state():
    assert FANoise(sides=["query"]).state_key != FANoise(sides=["target"]).state_key


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


# Broken features


class BreaksAt(Callback):
    """Makes the embeddings of one batch bad."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.step:
            for x in batch:
                x.fill_(self.value)


class Careful(PlainModule):
    """Skips the update on a loss that is not finite; embeds without bias, so zeros stay zeros."""

    def embed(self, x):
        return F.linear(x, self.net.weight)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss.isfinite() else None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"every_n_steps": 2}, {"scaling": "uniform"}])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_broken_batch_passes_unchanged_and_is_counted(value, options):
    module = Careful(Recorder())
    callback = FANoise(alpha=1.0, **options)
    with pytest.warns(UserWarning, match="left 1 training batches without noise"):
        fit(module, [BreaksAt(2, value), callback], max_steps=5, log_every_n_steps=1)
    query = module.criterion.calls[2][0]
    assert torch.equal(query.nan_to_num(1e3), torch.full_like(query, value).nan_to_num(1e3)) or (
        value == math.inf and not query.isfinite().any()
    )
    assert int(callback._skipped) == 1
    for query, target in module.criterion.calls[3:]:
        assert query.isfinite().all()
        assert target.isfinite().all()


def test_a_finite_batch_stays_finite_where_the_decomposition_fails(monkeypatch):
    def fails(*args):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    module, callback = PlainModule(), FANoise()
    with pytest.warns(UserWarning, match="left 3 training batches"):
        fit(module, [callback], max_steps=3)
    clean = PlainModule()
    fit(clean, max_steps=3)
    assert module.losses == clean.losses


# Logging, resume, ranks


def test_rank_ratio_and_count_are_logged():
    trainer = fit(PlainModule(), [FANoise(alpha=0.5, scaling="uniform")], log_every_n_steps=1)
    metrics = trainer.callback_metrics
    assert 1 <= metrics["fanoise/effective_rank"] <= 8
    assert metrics["fanoise/noise_to_signal"].item() == pytest.approx(0.5, rel=0.3)  # unit rows
    assert metrics["fanoise/skipped_batches"] == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"every_n_steps": 4}, {"momentum": 0.5, "every_n_steps": 3}, {"seed": 5}],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, options):
    unbroken, stopped, resumed = PlainModule(), PlainModule(), PlainModule()
    options = {"alpha": 0.5, "seed": 11, **options}
    fit(unbroken, [FANoise(**options)], max_steps=12)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    fit(stopped, [FANoise(**options), checkpoint], max_steps=6)
    callback = FANoise(**options)
    fit(resumed, [callback], max_steps=12, ckpt_path=str(tmp_path / "last.ckpt"))
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert stopped.losses + resumed.losses == unbroken.losses


def test_an_unseeded_run_resumes_with_its_own_random_seed(tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    first = FANoise()
    fit(PlainModule(), [first, checkpoint], max_steps=2)
    second = FANoise()
    fit(PlainModule(), [second], max_steps=4, ckpt_path=str(tmp_path / "last.ckpt"))
    assert second._resolved_seed == first._resolved_seed
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]


class SaveNoise(Callback):
    """Writes what the loss of each rank saw."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        torch.save(pl_module.criterion.calls, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_ranks_draw_different_noise(tmp_path):
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        callbacks=[FANoise(alpha=1.0, seed=0), SaveNoise(tmp_path)],
        use_distributed_sampler=False,  # both ranks get the same rows: only the noise differs
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(PlainModule(Recorder()), DataLoader(Pairs(), batch_size=8))
    first, second = (torch.load(tmp_path / f"{rank}.pt")[0] for rank in (0, 1))
    assert not torch.allclose(first[0], second[0])


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
