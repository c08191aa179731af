"""The bytes that ranks exchange in a step, counted in processes with gloo, beside the formula.

    OMP_NUM_THREADS=1 python benchmarks/traffic.py [--ranks 2 4] [--rows 32 256]

Counted are the tensors of every collective call, whoever makes it: the losses, FANoise, DDP, FSDP2. What a
rank sends follows from them for a ring: (W - 1) / W of what an all-gather returns or a reduce-scatter is
given, and twice that of an all-reduce.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from processes import run_on_ranks

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning import InfoNCE
from fanoise_lightning.callbacks._shapes import ShapeMemory
from fanoise_lightning.distributed import check_equal
from fanoise_lightning.training.grad_cache import embed_in_chunks

BLOCKS, CHUNKS = 4, 6


class Traffic(TorchDispatchMode):
    """Adds up what this rank sends in collective calls.

    Attributes:
        sent: bytes, by a ring.
        calls: how many calls of each kind there were.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks
        self.sent = 0.0
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._count(func.overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> None:
        share = (self.ranks - 1) / self.ranks
        if name == "_allgather_base_":  # (output, input, ...)
            self.sent += share * args[0].nbytes
        elif name == "_reduce_scatter_base_":
            self.sent += share * args[1].nbytes
        elif name == "allreduce_":
            self.sent += 2 * share * sum(x.nbytes for x in tree_iter(args[0]) if isinstance(x, Tensor))
        else:
            raise ValueError(f"no rule for the bytes of {name}")
        self.calls[name] = self.calls.get(name, 0) + 1


# What a rank sends in a step, in bytes. W ranks of B rows, D dimensions; float32 unless said otherwise.


def loss_bytes(ranks: int, rows: int, dim: int) -> int:
    """The targets forward, their gradients backward, and three sizes of the batch."""
    return (ranks - 1) * (2 * 4 * rows * dim + 3 * 8)


def global_noise_bytes(ranks: int, rows: int, dim: int) -> float:
    """Both sides: the features, or if it is smaller the D x D second moment in float64; and sizes."""
    joined = (ranks - 1) * 4 * rows * dim
    moment = 2 * (ranks - 1) / ranks * 8 * dim * dim
    return 2 * ((moment if moment_is_sent(ranks, rows, dim) else joined) + (ranks - 1) * 24)


def moment_is_sent(ranks: int, rows: int, dim: int) -> bool:
    """Whether global noise exchanges the second moment rather than the features."""
    return ranks * rows > dim


def ddp_bytes(ranks: int, trained: int) -> float:
    """The gradients."""
    return 2 * (ranks - 1) / ranks * 4 * trained


def fsdp_bytes(ranks: int, parameters: int, trained: int, size: int = 4) -> float:
    """The weights before the forward and the backward pass, and the gradients; the same for each chunk."""
    return (ranks - 1) / ranks * (2 * size * parameters + 4 * trained)


# The same, counted


def width_of(parameters: int) -> int:
    """The width of blocks of about that many parameters together, which all ranks can share equally."""
    return int((parameters / BLOCKS) ** 0.5) // 16 * 16


def network(parameters: int) -> nn.Sequential:
    """Blocks of about that many parameters."""
    width = width_of(parameters)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(BLOCKS)))


def loss_step(ranks: int, rows: int, dim: int, parameters: int) -> Callable[[], Any]:
    query, target = (F.normalize(torch.randn(rows, dim), dim=1).requires_grad_() for _ in range(2))
    return lambda: InfoNCE()(query, target).backward()


def noise_step(ranks: int, rows: int, dim: int, parameters: int) -> Callable[[], Any]:
    memory = ShapeMemory("sublinear", "paper", 0.0, 1, "global")
    features = F.normalize(torch.randn(rows, dim), dim=1)

    def run() -> None:
        check_equal((*features.shape, *features.shape), "shapes of features")  # as the callback does first
        for side in ("query", "target"):
            memory.shape(side, features, 0)

    return run


def ddp_step(ranks: int, rows: int, dim: int, parameters: int) -> Callable[[], Any]:
    wrapped = nn.parallel.DistributedDataParallel(network(parameters))
    return lambda: wrapped(torch.randn(rows, width_of(parameters))).sum().backward()


def sharded(ranks: int, parameters: int) -> nn.Sequential:
    model = network(parameters)
    mesh = init_device_mesh("cpu", (ranks,))
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    return model


def fsdp_step(ranks: int, rows: int, dim: int, parameters: int) -> Callable[[], Any]:
    model = sharded(ranks, parameters)
    return lambda: model(torch.randn(rows, width_of(parameters))).sum().backward()


def chunks_step(ranks: int, rows: int, dim: int, parameters: int) -> Callable[[], Any]:
    model = sharded(ranks, parameters)
    chunks = torch.randn(CHUNKS, 2, width_of(parameters)).unbind()
    return lambda: embed_in_chunks(model, [chunks], list(model.parameters()))[0].sum().backward()


STEPS = {
    "loss": loss_step,
    "global noise": noise_step,
    "DDP": ddp_step,
    "FSDP2": fsdp_step,
    "FSDP2, 6 chunks": chunks_step,
}
# In chunks, one block is gathered once more.
TOLERANCE = dict.fromkeys(STEPS, 0.001) | {"FSDP2, 6 chunks": 0.03}


def expected(name: str, ranks: int, rows: int, dim: int, parameters: int) -> float:
    trained = sum(p.numel() for p in network(parameters).parameters())
    return {
        "loss": lambda: loss_bytes(ranks, rows, dim),
        "global noise": lambda: global_noise_bytes(ranks, rows, dim),
        "DDP": lambda: ddp_bytes(ranks, trained),
        "FSDP2": lambda: fsdp_bytes(ranks, trained, trained),
        "FSDP2, 6 chunks": lambda: CHUNKS * fsdp_bytes(ranks, trained, trained),
    }[name]()


def count(name: str, ranks: int, rows: int, dim: int, parameters: int) -> tuple[float, dict[str, int]]:
    """The bytes that rank 0 sends in the third step of its kind, and the calls that it makes."""

    def step(rank: int) -> tuple[float, dict[str, int]]:
        torch.manual_seed(rank)
        run = STEPS[name](ranks, rows, dim, parameters)
        for _ in range(2):  # what is agreed upon once: DDP regroups its buckets before the second step
            run()
        with Traffic(ranks) as traffic:
            run()
        return traffic.sent, traffic.calls

    return run_on_ranks(step, ranks)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 256], help="of each rank")
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--parameters", type=int, default=200_000)
    add_options(parser)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, gloo, D = {options.dim}, {options.parameters:,} parameters")
    print(f"{'':16}{'W':>3}{'B':>5}{'kB sent':>10}{'formula':>10}  calls")
    figures = []
    for name in STEPS:
        for ranks in options.ranks:
            for rows in options.rows if name in ("loss", "global noise") else options.rows[:1]:
                sizes = (ranks, rows, options.dim, options.parameters)
                sent, calls = count(name, *sizes)
                formula, near = expected(name, *sizes), TOLERANCE[name]
                listed = ", ".join(f"{n} {call.strip('_')}" for call, n in calls.items())
                line = f"{name:16}{ranks:3}{rows:5}{sent / 1000:10.1f}{formula / 1000:10.1f}  {listed}"
                print(line, flush=True)
                title = f"{name}, {ranks} ranks of {rows} rows, bytes of the formula"
                figures.append(Figure(title, sent / formula, "x", at_least=1 - near, at_most=1 + near))
    write(figures, options.json)


if __name__ == "__main__":
    main()
