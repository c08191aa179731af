from __future__ import annotations

from functools import partial

import pytest
import torch
from processes import run_on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from toy_encoder import ToyEncoder

from fanoise_lightning import ContrastiveModule, InfoNCE, MMEBDataModule, Pair, Sample
from fanoise_lightning.data.batches.refusals import Read
from fanoise_lightning.data.batches.training import PairCollate
from fanoise_lightning.distributed import all_reduce_sum
from fanoise_lightning.training.grad_cache import embed_in_chunks


def gradients(encoder: nn.Module, embed, sides: list, loss: nn.Module, chunked: bool) -> dict[str, Tensor]:
    parameters = list(encoder.parameters())
    if chunked:
        embedded = embed_in_chunks(embed, sides, parameters)
    else:
        embedded = [torch.cat([embed(chunk) for chunk in chunks]) for chunks in sides]
    encoder.zero_grad(), loss.zero_grad()
    loss(*embedded).backward()
    return {name: p.grad for name, p in nn.ModuleList([encoder, loss]).named_parameters()}


def unit(encoder: nn.Module, x: Tensor) -> Tensor:
    return F.normalize(encoder(x), dim=1)


def sides() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(1)
    query, target, negatives = torch.randn(3, 12, 8, dtype=torch.double)
    return [query.split(5), target.split(4), negatives[:7].split(4)]  # the last chunks are smaller


@pytest.mark.parametrize("dropout", [nn.Identity(), nn.Dropout(0.5)])
def test_gradients_are_those_of_the_whole_batch_with_the_same_dropout(dropout):
    torch.manual_seed(0)
    encoder, loss = ToyEncoder(dropout), InfoNCE(0.1, learnable_temperature=True)
    expected, actual = (
        (torch.manual_seed(2), gradients(encoder, partial(unit, encoder), sides(), loss, chunked))[1]
        for chunked in (False, True)
    )
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-6, atol=1e-9)


def test_chunks_that_only_frozen_parts_embed_have_no_gradient_to_give():
    torch.manual_seed(0)
    towers, loss = nn.ModuleDict({"text": ToyEncoder(), "image": ToyEncoder()}), InfoNCE(0.1)
    towers["text"].requires_grad_(False)
    chunks = [[(("text", "image")[i % 2], x) for i, x in enumerate(side)] for side in sides()]

    def embed(chunk: tuple[str, Tensor]) -> Tensor:
        return unit(towers[chunk[0]], chunk[1])

    expected, actual = (gradients(towers, embed, chunks, loss, chunked) for chunked in (False, True))
    for name, gradient in expected.items():
        assert (gradient is None) == name.startswith("0.text")
        torch.testing.assert_close(actual[name], gradient, rtol=1e-6, atol=1e-9)


def test_the_replay_leaves_the_random_numbers_where_they_were():
    encoder = ToyEncoder(nn.Dropout(0.5))
    embedded = embed_in_chunks(partial(unit, encoder), sides(), list(encoder.parameters()))
    torch.rand(3)  # as a loss may
    state = torch.get_rng_state()
    InfoNCE(0.1)(*embedded).backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_that_share_a_gradient_do_not_share_its_sum():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(8, 24, dtype=torch.double)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.a + self.b)

    encoder = Sum()
    expected, actual = (
        gradients(encoder, partial(unit, encoder), sides(), InfoNCE(0.1), chunked)
        for chunked in (False, True)
    )
    torch.testing.assert_close(actual, expected)


def test_every_chunk_is_embedded_twice_but_for_the_last_whose_graph_is_kept():
    encoder, seen = ToyEncoder(), []

    def embed(x: Tensor) -> Tensor:
        seen.append((len(x), torch.is_grad_enabled()))
        return unit(encoder, x)

    gradients(encoder, embed, sides(), InfoNCE(0.1), chunked=True)
    sizes = [5, 5, 2, 4, 4, 4, 4, 3]
    again = [(size, True) for size in reversed(sizes)]  # the last chunk is the first of both
    assert seen == [*((size, False) for size in sizes[:-1]), *again]


def test_a_graph_that_is_retained_gives_the_same_gradients_again():
    torch.manual_seed(0)
    encoder = ToyEncoder(nn.Dropout(0.5))
    embedded = embed_in_chunks(partial(unit, encoder), sides(), list(encoder.parameters()))
    loss, found = InfoNCE(0.1)(*embedded), []
    for _ in range(2):
        encoder.zero_grad()
        loss.backward(retain_graph=True)
        found.append([p.grad for p in encoder.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk", [3, 4, 12])
def test_gradients_under_autocast_are_those_of_the_whole_batch(chunk):
    """Autocast keeps converted weights: those of the chunks without a graph must not serve the last."""
    torch.manual_seed(0)
    encoder, loss = ToyEncoder().float(), InfoNCE(0.1)
    rows = [side.split(chunk) for side in torch.randn(2, 12, 8)]

    def step(chunked: bool) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return gradients(encoder, partial(unit, encoder), rows, loss, chunked)

    expected, actual = step(False), step(True)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=0.05 * float(gradient.abs().max()))


def test_frozen_and_unused_parameters_are_left_alone():
    encoder = ToyEncoder()
    encoder.layers[0].weight.requires_grad_(False)
    encoder.unused = nn.Parameter(torch.zeros(2))
    grads = gradients(encoder, partial(unit, encoder), sides(), InfoNCE(0.1), chunked=True)
    assert grads["0.layers.0.weight"] is None
    assert grads["0.unused"] is None
    assert grads["0.layers.0.bias"].abs().sum() > 0


def test_the_second_pass_runs_under_the_autocast_of_the_first():
    encoder, seen = ToyEncoder().float(), []

    def embed(x: Tensor) -> Tensor:
        embedding = encoder(x.float())
        seen.append((embedding.dtype, torch.get_autocast_dtype("cpu")))
        return F.normalize(embedding.float(), dim=1)

    with torch.autocast("cpu", torch.bfloat16):
        loss = InfoNCE(0.1)(*embed_in_chunks(embed, sides(), list(encoder.parameters())))
    loss.backward()
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 15


@pytest.mark.parametrize("deep", [False, True])
def test_reentrant_checkpoints_are_refused(deep):
    """Autograd takes the parameters in them for unused: the encoder would not be trained at all."""
    from torch.utils.checkpoint import checkpoint

    encoder = ToyEncoder()
    first = encoder.layers[0] if deep else nn.Identity()
    rest = encoder.layers[1:] if deep else encoder.layers

    def embed(x: Tensor) -> Tensor:
        x = first(x).detach().requires_grad_()  # as transformers' `enable_input_require_grads` does
        return F.normalize(checkpoint(rest, x, use_reentrant=True), dim=1)

    with pytest.raises(RuntimeError, match=r"no gradients out of reentrant .* `checkpoint\(.*=False"):
        gradients(encoder, embed, sides(), InfoNCE(0.1), chunked=True)


def test_inside_of_checkpointed_and_compiled_encoders():
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    encoder, loss = ToyEncoder(nn.Dropout(0.5)), InfoNCE(0.1)
    compiled = torch.compile(encoder, backend="aot_eager")
    embeds = [
        lambda x: F.normalize(checkpoint(encoder, x, use_reentrant=False), dim=1),
        lambda x: F.normalize(compiled(x), dim=1),
    ]
    torch.manual_seed(2)
    expected = gradients(encoder, partial(unit, encoder), sides(), loss, chunked=False)
    for embed in embeds:
        torch.manual_seed(2)
        actual = gradients(encoder, embed, sides(), loss, chunked=True)
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-6, atol=1e-9)


def test_ddp_reduces_each_gradient_once_a_step():
    def train(rank: int, chunked: bool) -> int:
        torch.manual_seed(0)
        module = Step(ToyEncoder(), chunked)
        ddp, calls = DistributedDataParallel(module), []

        def count(state, bucket):
            calls.append(bucket.buffer().numel())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        ddp.register_comm_hook(None, count)
        ddp(sides()).backward()
        return sum(calls)

    parameters = sum(p.numel() for p in ToyEncoder().parameters())
    assert run_on_ranks(train, 2, True) == run_on_ranks(train, 2, False) == [parameters] * 2


class Step(nn.Module):
    def __init__(self, encoder: nn.Module, chunked: bool) -> None:
        super().__init__()
        self.encoder, self.chunked = encoder, chunked

    def forward(self, sides: list) -> Tensor:
        embed = partial(unit, self.encoder)
        if self.chunked:
            embedded = embed_in_chunks(embed, sides, list(self.encoder.parameters()))
        else:
            embedded = [torch.cat([embed(chunk) for chunk in chunks]) for chunks in sides]
        return InfoNCE(0.1)(*embedded)


def test_sharded_parameters_get_the_gradients_of_replicated_ones():
    def train(rank: int, sharded: bool) -> Tensor:
        torch.manual_seed(0)
        encoder = ToyEncoder()
        if sharded:
            mesh = init_device_mesh("cpu", (2,))
            for part in (encoder.layers[0], encoder.layers[3], encoder):
                fully_shard(part, mesh=mesh)
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5)
        for step in range(3):
            torch.manual_seed(10 * step + rank)
            rows = [torch.randn(8, 8, dtype=torch.double).split(3) for _ in range(2)]
            grads = gradients(encoder, partial(unit, encoder), rows, InfoNCE(0.1), chunked=sharded)
            if not sharded:
                for gradient in grads.values():
                    gradient.copy_(all_reduce_sum(gradient) / 2)
            optimizer.step()
        weights = [p.full_tensor() if sharded else p for p in encoder.parameters()]
        return torch.cat([weight.detach().flatten() for weight in weights])

    expected, actual = (run_on_ranks(train, 2, sharded) for sharded in (False, True))
    for one, other in zip(actual, expected):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_batch_that_is_not_in_chunks_is_an_error_that_says_what_to_do():
    module = ContrastiveModule(ToyEncoder(), chunk_size=4)
    batch = {side: {"x": torch.zeros(8, 8)} for side in ("query", "target")}
    message = (
        "chunk_size=4, each side of a batch must be a list of collated chunks: use MMEBDataModule or "
        "PairDataModule, or remove `chunk_size`$"
    )
    with pytest.raises(TypeError, match=message):
        module.training_step(batch, 0)


@pytest.mark.parametrize("chunk_size", [0, (4, 0), (-1, 4)])
def test_a_chunk_has_a_pair_at_least(chunk_size):
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1"):
        ContrastiveModule(ToyEncoder(), chunk_size=chunk_size)


def test_batch_norm_in_chunks_is_warned_of():
    module = ContrastiveModule(ToyEncoder(nn.BatchNorm1d(32)), chunk_size=4)
    with pytest.warns(UserWarning, match="batch norm sees chunks of 4 instead of the batch"):
        module.on_fit_start()


def test_pairs_are_collated_in_chunks_of_each_sides_size():
    collate = PairCollate(lambda samples: {"n": torch.tensor([len(s.text) for s in samples])}, (2, 3))
    pairs = [Pair(Sample("q" * n), Sample("t" * n), (Sample("n" * n),)) for n in range(1, 6)]
    batch = collate(Read(pairs, []))
    chunks = {
        side: [chunk["n"].tolist() for chunk in batch[side]] for side in ("query", "target", "negatives")
    }
    assert chunks == {
        "query": [[1, 2], [3, 4], [5]],
        "target": [[1, 2, 3], [4, 5]],
        "negatives": [[1, 2, 3], [4, 5]],
    }


def test_the_data_module_leaves_chunks_on_the_host():
    data = MMEBDataModule("emoji")
    batch = {"query": [{"x": torch.zeros(1)}], "target": [{"x": torch.zeros(1)}], "target_id": torch.zeros(1)}
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["target_id"].device.type == "meta"
    assert moved["query"] is batch["query"]
    assert moved["target"] is batch["target"]
