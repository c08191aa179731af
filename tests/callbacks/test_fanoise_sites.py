"""Noise at the input or the output of a module inside the model."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from plain_module import Pairs, PlainModule
from processes import run_on_ranks
from test_fanoise_ranks import TRAINING
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers.modeling_outputs import BaseModelOutput

from fanoise_lightning import ContrastiveModule, Encoder, InfoNCE, LinearAlpha
from fanoise_lightning.callbacks import ExactResume, FANoise
from fanoise_lightning.callbacks._shapes import ShapeMemory
from fanoise_lightning.callbacks._sites import InnerSite
from fanoise_lightning.callbacks._source import NoiseSource
from fanoise_lightning.training.grad_cache import embed_in_chunks


class Seen(Callback):
    """What a module was called with, noise included, and what it returned, before the noise of its output."""

    def __init__(self, path: str = "net") -> None:
        self.path = path
        self.calls: list[tuple[Tensor, Any]] = []

    def on_train_start(self, trainer, pl_module) -> None:
        module = pl_module.get_submodule(self.path)
        module.register_forward_hook(lambda _, args, output: self.calls.append((args[0].detach(), output)))


def quiet(*callbacks: Callback, **options: Any) -> Trainer:
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **dict.fromkeys(off, False), **options)


def fit(module: Any, *callbacks: Callback, steps: int = 3, **options: Any) -> Any:
    quiet(*callbacks, max_steps=steps, **options).fit(module, DataLoader(Pairs(), batch_size=8))
    return module


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


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


class Outputs(PlainModule):
    """Its part returns the features in some container."""

    def __init__(self, wrap: Any, unwrap: Any) -> None:
        super().__init__()
        self.part = nn.Identity()
        self.part.forward = wrap
        self.unwrap = unwrap
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []

    def embed(self, x: Tensor) -> Tensor:
        features = self.net(x)
        after = self.unwrap(self.part(features))
        self.before.append(features.detach())
        self.after.append(after.detach())
        return F.normalize(after.reshape(len(x), -1), dim=1)


Named = namedtuple("Named", ["count", "features"])


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda x: x, lambda out: out),
        (lambda x: x.view(len(x), 2, 4), lambda out: out),
        (lambda x: (torch.arange(3), x), lambda out: out[1]),
        (lambda x: [x, None], lambda out: out[0]),
        (lambda x: {"mask": torch.ones(2, 2, dtype=torch.bool), "features": x}, lambda out: out["features"]),
        (lambda x: Named(3, x), lambda out: out.features),
        (lambda x: BaseModelOutput(last_hidden_state=x), lambda out: out.last_hidden_state),
    ],
    ids=["tensor", "tokens", "tuple", "list", "dict", "named tuple", "model output"],
)
def test_the_first_floating_matrix_of_an_output_gets_noise(wrap, unwrap):
    module = fit(Outputs(wrap, unwrap), FANoise(0.5, target="part", where="output", seed=0))
    assert len(module.after) == 6
    for before, after in zip(module.before, module.after):
        assert not torch.equal(before, after.reshape(before.shape))


def test_logits_and_masks_are_passed_over_and_the_line_names_what_is_clean(caplog):
    wrap = lambda x: {"logits_per_text": x @ x.T, "text_embeds": x, "image_embeds": x}  # noqa: E731
    module = Outputs(wrap, lambda out: out["text_embeds"] + 0 * out["logits_per_text"])
    with caplog.at_level("INFO"):
        fit(module, FANoise(0.5, target="part", where="output", relative=True))
    assert not torch.equal(module.before[0], module.after[0])
    (line,) = [record.getMessage() for record in caplog.records if "FANoise" in record.getMessage()]
    assert line.endswith("on the output of 'part', `text_embeds`; `image_embeds` stays clean")


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


class Drops(Encoder):
    embedding_dim = 8

    def __init__(self, **checkpointing: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 8)
        self.drop = nn.Dropout(0.3)
        self.checkpointing = checkpointing

    def run(self, x: Tensor) -> Tensor:
        return self.drop(self.head(x))

    def forward(self, x: Tensor) -> Tensor:
        if not self.checkpointing:
            return self.run(x)
        return checkpoint(self.run, x.requires_grad_(), **self.checkpointing)


class Contrasts(ContrastiveModule):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        query, target = ({"x": x} for x in batch)
        if self.chunk_size:
            query, target = ([{"x": x} for x in side["x"].split(3)] for side in (query, target))
        return super().training_step({"query": query, "target": target}, batch_idx)


def contrasts(chunk_size: int | None = None) -> Contrasts:
    return Contrasts(Drops(), InfoNCE(0.1), chunk_size=chunk_size)


def test_both_passes_of_grad_cache_see_the_same_noise():
    seen = Seen("encoder.head")
    fit(contrasts(3), FANoise(0.5, target="encoder.head", where="input"), seen, steps=2)
    chunks = 2 * 3  # of queries and targets
    for step in range(2):
        calls = [x for x, _ in seen.calls[2 * chunks * step :][: 2 * chunks]]
        assert all(torch.equal(a, b) for a, b in zip(calls[:chunks], calls[chunks:], strict=True))


def test_gradients_of_grad_cache_are_those_of_the_whole_batch_with_that_noise():
    encoder, loss = nn.Linear(6, 8), InfoNCE(0.1)
    sides = [side.split(3) for side in torch.randn(2, 8, 6)]
    noisy: list[Tensor] = []

    def embed(x: Tensor) -> Tensor:
        x = x + 0.3 * torch.randn(()) * torch.ones_like(x)
        noisy.append(x)
        return F.normalize(encoder(x), dim=1)

    loss(*embed_in_chunks(embed, sides, list(encoder.parameters()))).backward()
    found = encoder.weight.grad.clone()
    encoder.weight.grad = None
    query, target = (F.normalize(encoder(torch.cat(noisy[i : i + 3])), dim=1) for i in (0, 3))
    loss(query, target).backward()
    torch.testing.assert_close(found, encoder.weight.grad)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("side", ["query", "target"])
def test_one_side_alone(chunk_size, side):
    seen = Seen("encoder.head")
    fit(
        contrasts(chunk_size), FANoise(0.5, target="encoder.head", where="input", sides=[side]), seen, steps=1
    )
    clean = torch.cat(list(next(iter(DataLoader(Pairs(), batch_size=8)))))
    found = torch.cat([x for x, _ in seen.calls])[: len(clean)]  # the first pass
    equal = [torch.equal(*part) for part in zip(clean.split(8), found.split(8))]
    assert equal == [side == "target", side == "query"]


@pytest.mark.parametrize("side", ["query", "target"])
@pytest.mark.parametrize(("chunk_size", "use_reentrant"), [(None, True), (None, False), (3, False)])
def test_one_side_alone_in_a_checkpointed_part(chunk_size, use_reentrant, side):
    """In the backward pass nobody says which side is computed again."""

    def run(**checkpointing: Any) -> nn.Module:
        seed_everything(0, verbose=False)
        noise = FANoise(0.5, target="encoder.head", where="input", sides=[side])
        return fit(Contrasts(Drops(**checkpointing), InfoNCE(0.1), chunk_size=chunk_size), noise)

    assert same(run(use_reentrant=use_reentrant), run())


def test_one_side_in_a_module_that_does_not_say_which_is_an_error():
    with pytest.raises(ValueError, match=r"cannot know for which side 'net' is called"):
        fit(PlainModule(), FANoise(target="net", where="input", sides=["query"]))


class Save(Callback):
    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.fit_loop.total_batch_idx}.ckpt")


class Loader(DataLoader):
    """Continues where it stopped."""

    place = 0

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number >= self.place % len(self):
                self.place = number + 1
                yield batch

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_sees_the_noise_of_an_unbroken_one(tmp_path, accumulate):
    def run(*callbacks: Callback, ckpt_path: Any = None) -> Any:
        module = contrasts()
        seed_everything(0 if ckpt_path is None else 1, verbose=False)
        noise = FANoise(LinearAlpha(0.0, 0.5, 4), target="encoder.head", where="output")
        trainer = quiet(noise, *callbacks, max_epochs=2, accumulate_grad_batches=accumulate)
        trainer.fit(module, Loader(Pairs(), batch_size=8), ckpt_path=ckpt_path)
        return module

    unbroken = run(Save(tmp_path))
    for number in range(12):
        assert same(run(ckpt_path=tmp_path / f"{number}.ckpt"), unbroken), number


class Net(nn.Module):
    """What DDP wraps: a module with the site inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_under_ddp_each_rank_has_its_own_noise_and_gradients_are_averaged():
    def run(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        source = NoiseSource(ShapeMemory("sublinear", "paper", 0.0, 1), lambda step: 0.5)
        source.begin(SimpleNamespace(**TRAINING), (0, rank, 0))
        owner, seen = Net(), []
        InnerSite("net", owner.net, owner, "input", source, ("query", "target"), False).attach()
        owner.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        ddp = nn.parallel.DistributedDataParallel(owner)
        torch.manual_seed(0)  # the same on all ranks, as seed_everything leaves it
        ddp(torch.ones(4, 6)).square().sum().backward()
        alone = Net()
        alone(seen[0]).square().sum().backward()
        return seen[0], owner.net.weight.grad, alone.net.weight.grad

    (x0, both, one), (x1, both1, other) = run_on_ranks(run, 2)
    assert not torch.equal(x0, x1)
    torch.testing.assert_close(both, (one + other) / 2)
    torch.testing.assert_close(both, both1)


def test_a_compiled_encoder_gets_noise():
    module, seen = PlainModule(), Seen()
    module.net.compile(backend="eager")
    fit(module, FANoise(0.5, target="net", where="input"), seen, steps=1)
    clean = next(iter(DataLoader(Pairs(), batch_size=8)))[0]
    assert not torch.equal(seen.calls[0][0], clean)


def test_a_copy_of_the_module_is_clean():
    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            x = torch.ones(2, 6)
            for twin in (copy.deepcopy(pl_module.net), pickle.loads(pickle.dumps(pl_module.net))):
                assert torch.equal(twin(x), F.linear(x, twin.weight, twin.bias))

    fit(PlainModule(), FANoise(0.5, target="net", where="input"), Copies(), steps=1)


def test_it_is_logged_and_told(caplog):
    class Logged(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            self.metrics = dict(trainer.callback_metrics)

    logged = Logged()
    with caplog.at_level("INFO"):
        noises = (
            FANoise(0.1, relative=True),
            FANoise(0.3, "uniform", "net", "input", energy="constant", relative=True),
        )
        fit(PlainModule(), *noises, logged, log_every_n_steps=1)
    lines = [record.getMessage() for record in caplog.records if "FANoise" in record.getMessage()]
    assert lines[0] == "FANoise: uniform noise, alpha=0.3, on the input of 'net'"
    assert logged.metrics["fanoise-1/noise_to_signal"] == pytest.approx(0.3, rel=0.3)
    assert {
        "fanoise/noise_to_signal",
        "fanoise-1/effective_rank",
        "fanoise-1/skipped_batches",
    } <= logged.metrics.keys()


def test_broken_features_pass_and_are_counted():
    class Broken(PlainModule):
        def embed(self, x):
            return super().embed(x * (torch.nan if self.trainer.global_step == 1 else 1))

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if loss.isfinite() else None

    trainer = quiet(FANoise(0.5, target="net", where="input"), max_epochs=1, limit_train_batches=3)
    with pytest.warns(UserWarning, match="left 2 training batches without noise"):
        trainer.fit(Broken(), DataLoader(Pairs(), batch_size=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": None}, r"where='input' needs `target`"),
        ({"momentum": 0.9}, r"momentum=0.9 is for the noise at the loss"),
        ({"every_n_steps": 2}, r"every_n_steps=2 is for the noise at the loss"),
        ({"scope": "global"}, r"scope='global' is for the noise at the loss"),
        ({"negatives": False}, r"negatives=False is for the noise at the loss"),
        ({"where": "inside"}, r"`where` must be one of 'loss', 'input', 'output', got 'inside'"),
    ],
)
def test_options_of_the_loss_are_refused_inside(options, message):
    with pytest.raises(ValueError, match=message):
        FANoise(**{"target": "net", "where": "input", **options})


def test_an_unknown_module_is_named():
    with pytest.raises(ValueError, match=r"target='nett' names no module of PlainModule; .*: 'net'"):
        fit(PlainModule(), FANoise(target="nett", where="input"))


def test_a_module_without_features_is_an_error():
    with pytest.raises(ValueError, match=r"no floating tensor .* in the output of 'part': int"):
        fit(Outputs(lambda x: len(x), lambda out: torch.ones(8, 8)), FANoise(target="part", where="output"))
