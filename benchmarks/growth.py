"""How time and memory grow: of a step with the batch, of reading, evaluation and search with the rows.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--only step ranks ...] [--figure docs/images/growth.svg]

Times are CPU seconds, on a GPU those of the clock. Beside each stands what a formula says. The constants of
the formulas (seconds of a product, of R^3 in ``eigh``, of a logit, of a random
number) are measured once, at one size; times of rows are those of the largest size in proportion. ``ranks``
counts bytes, see benchmarks/traffic.py; ``beyond`` is the formulas alone, at sizes that nobody here can run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import pairs, search, traffic
from benchmarks.clock import in_turns
from benchmarks.figures import Figure, add_options, write
from benchmarks.tensor_memory import peak_bytes
from fanoise_lightning import InfoNCE, feature_noise
from fanoise_lightning.evaluation.embedding_table import EmbeddingTable
from fanoise_lightning.evaluation.subset_ranks import subset_ranks
from fanoise_lightning.losses import tiled
from fanoise_lightning.newton_schulz import _RIDGE, _steps
from fanoise_lightning.search.index import SearchIndex

BATCHES = [64, 128, 256, 512, 1024, 2048, 4096]
MB = 1e6
EPS = torch.finfo(torch.float32).eps


def timed(sides: Sequence[Callable[[], Any]], rounds: int, device: str = "cpu") -> list[list[float]]:
    """Seconds of each side, round by round."""
    return in_turns(sides, rounds, device, time.process_time if device == "cpu" else time.perf_counter)


# A step


@dataclass(frozen=True)
class Machine:
    """Seconds of one unit of work.

    Args:
        single: of a multiplication and addition in float32.
        eigh: of R^3 in ``eigh``, float32.
        logit: of a logit through the softmax and back.
        normal: of a random number.
    """

    single: float
    eigh: float
    logit: float
    normal: float

    @classmethod
    def measure(cls, size: int = 768) -> Machine:
        """Of this machine's CPU."""
        x = torch.randn(size, size)
        gram, labels = x @ x.T, torch.arange(size)
        logits = x.clone().requires_grad_()
        sides: list[Callable[[], Any]] = [
            lambda: x @ x,
            lambda: torch.linalg.eigh(gram),
            lambda: F.cross_entropy(20.0 * logits, labels, reduction="sum").backward(),
            lambda: torch.randn(size, size),
        ]
        single, eigh, logit, normal = map(statistics.median, zip(*timed(sides, 5)))
        cube, square = size**3, size**2
        return cls(single / cube, eigh / cube, logit / square, normal / square)

    def noise(self, batch: int, dim: int) -> float:
        """Seconds of sublinear noise for both sides: a Gram matrix, its root, random numbers times it.

        In float32, for features without weak directions, which would be decomposed again in float64.
        """
        rank, longer = min(batch, dim), max(batch, dim)
        gram = rank**2 * longer * (0.625 if rank > 128 else 1.0)  # stripes up to the diagonal
        products = rank**3 + (batch * rank * (rank + dim) if batch <= dim else batch * dim * dim)
        side = self.single * (gram + products) + self.eigh * rank**3 + self.normal * batch * rank
        return 2 * side

    def loss(self, batch: int, dim: int) -> float:
        """Seconds of InfoNCE: one product forward and two backward, and the softmax."""
        return self.single * 3 * batch**2 * dim + self.logit * batch**2

    def predict(self, batch: int, dim: int) -> dict[str, float]:
        """Seconds of the loss, the noise and both."""
        loss, noise = self.loss(batch, dim), self.noise(batch, dim)
        return {"loss": loss, "noise": noise, "both": loss + noise}


def features(batch: int, dim: int, device: str) -> list[Tensor]:
    decay = torch.linspace(1, 0.05, dim)
    sides = (F.normalize(torch.randn(batch, dim) * decay, dim=1) for _ in range(2))
    return [side.to(device).requires_grad_() for side in sides]


def peaks(batch: int, dim: int) -> dict[str, float]:
    """Bytes at the peak: noise and matrices of rank R; gradients and three times a block of logits."""
    noise = 14 * batch * dim + 8 * min(batch, dim) ** 2
    loss = 8 * batch * dim + 12 * min(batch**2, tiled.MAX_LOGITS)
    return {"noise": noise, "loss": loss, "both": loss + 8 * batch * dim}


def runs_of(batch: int, dim: int, device: str) -> dict[str, Callable[[], Any]]:
    """The loss, forward and backward; the noise of both sides; and both."""
    sides = features(batch, dim, device)

    def noisy() -> list[Tensor]:
        return [side + feature_noise(side) for side in sides]

    def loss(query: Tensor, target: Tensor) -> None:
        torch.autograd.grad(InfoNCE()(query, target), sides)

    return {"loss": lambda: loss(*sides), "noise": noisy, "both": lambda: loss(*noisy())}


def step(options: argparse.Namespace) -> list[Figure]:
    """Time and memory of the loss, the noise and both, by batch."""
    machine = Machine.measure() if options.device == "cpu" else None
    if machine is not None:
        rank_cubed = machine.eigh / machine.single
        print(f"{2e-9 / machine.single:.0f} GFLOP/s; eigh {2 * rank_cubed:.0f} R^3 FLOP")
    print(f"D = {options.dim}, for loss, noise and both: ms, in brackets by the formula; MB at the peak")
    figures = []
    for batch in options.batches:
        runs = runs_of(batch, options.dim, options.device)
        times = timed([*runs.values()], options.rounds, options.device)
        predicted = machine.predict(batch, options.dim) if machine is not None else {}
        memory = peaks(batch, options.dim)
        line = f"{batch:6}"
        for (name, run), column in zip(runs.items(), zip(*times)):
            middle, peak = statistics.median(column), peak_bytes(run, options.device)
            title = f"{name}, batch {batch}"
            figures.append(Figure(f"{title}, ms", 1e3 * middle, "ms", 1e3 * min(column), 1e3 * max(column)))
            figures.append(Figure(f"{title}, MB", peak / MB, "MB"))
            line += f"  {1e3 * middle:8.2f}"
            if name in predicted:
                ratios = [once / predicted[name] for once in column]
                spread = statistics.median(ratios), "x", min(ratios), max(ratios)
                figures.append(Figure(f"{title}, of the formula", *spread))
                line += f" ({1e3 * predicted[name]:8.2f})"
            line += f" {peak / MB:6.1f} ({memory[name] / MB:5.1f})"
        print(line, flush=True)
    return figures


# Ranks


def ranks(options: argparse.Namespace) -> list[Figure]:
    """Bytes between ranks: counted in processes of their own, which must not inherit threads."""
    file = Path(__file__).with_name("traffic.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "figures.json"
        subprocess.run([sys.executable, file, f"--json={found}"], check=True, env=environment)
        return [Figure(**figure) for figure in json.loads(found.read_text())]


# Rows


def in_proportion(
    what: str,
    unit: str,
    sizes: Sequence[int],
    columns: Sequence[Sequence[float]],
    law: Callable[[int], float] = float,
) -> list[Figure]:
    """Print and return times by size, beside those that follow from the largest by a law."""
    figures = []
    last = statistics.median(columns[-1])
    print(f"{what}: {1e6 * last / sizes[-1]:.3g} us for each {unit}")
    for size, column in zip(sizes, columns):
        formula = last * law(size) / law(sizes[-1])
        print(f"{size:10,} {statistics.median(column):10.4f} s ({formula:.4f})", flush=True)
        spread = statistics.median(column), "s", min(column), max(column)
        figures.append(Figure(f"{what}, {size:,} {unit}s", *spread))
    return figures


def reading(options: argparse.Namespace) -> list[Figure]:
    """From a file of JSON lines to the first batch, less what a file of hardly any rows takes."""
    seconds: dict[int, list[float]] = {rows: [] for rows in (1000, *options.rows)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(min(options.rounds, 2)):  # most of it is importing
            for rows, column in seconds.items():
                file = Path(folder) / f"{rows}.jsonl"
                if not file.exists():
                    pairs.write(file, rows)
                command = [sys.executable, pairs.__file__, "--measure", str(file)]
                found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                column.append(float(found.split()[-2]))
    start = statistics.median(seconds.pop(1000))
    columns = [[max(once - start, 0.0) for once in column] for column in seconds.values()]
    return in_proportion("reading", "row", options.rows, columns)


def evaluation(options: argparse.Namespace) -> list[Figure]:
    """Precision@1 of 200 queries whose candidates are all items."""
    columns = []
    for count in options.items:
        table = EmbeddingTable(count)
        table.update(F.normalize(torch.randn(count, 512), dim=1), torch.arange(count))
        queries = torch.arange(200)
        answers = (queries + 200)[:, None]
        everything = torch.arange(count)
        run = partial(subset_ranks, catalogue=everything, excluded=queries[:, None])
        sides = [partial(run, table.compute(), queries, answers)]
        columns.append([once for (once,) in timed(sides, options.rounds)])
    return in_proportion("evaluation, 200 queries", "candidate", options.items, columns)


def searching(options: argparse.Namespace) -> list[Figure]:
    """The ten nearest of one query, and of 64, in shards of 512 dimensions in float16."""
    alone, together = [], []
    for rows in options.vectors:
        with tempfile.TemporaryDirectory() as folder:
            search.write_folder(Path(folder), rows, search.independent)
            index, asked = SearchIndex(folder), search.queries(64)
            sides = [partial(index.search, asked[:count], 10) for count in (1, 64)]
            one, many = zip(*timed(sides, options.rounds))
        alone.append(one)
        together.append(many)
    figures = in_proportion("search, 1 query", "row", options.vectors, alone)
    return figures + in_proportion("search, 64 queries", "row", options.vectors, together)


# Beyond


def beyond(options: argparse.Namespace) -> list[Figure]:
    """What the formulas say of many GPUs: work of a rank in TFLOP, what it sends in MB, what it holds."""
    dim, weights, trained = 1536, 2_208_985_600, 9_232_384  # Qwen2-VL-2B and its adapter
    head = ("W", "B", "W B", "loss", "noise", "global", "logits", "loss", "global", "DDP", "FSDP2")
    print(f"D = {dim}: TFLOP of loss, noise, global noise; MB of all logits; MB sent for each")
    print(" ".join(f"{name:>8}" for name in head))
    for count, batch in ((8, 256), (64, 512), (64, 256), (256, 128)):
        whole = count * batch
        cells = [
            6 * batch * whole * dim / 1e12,
            2 * noise_flops(batch, dim) / 1e12,
            2 * global_noise_flops(count, batch, dim) / 1e12,
            4 * batch * whole / MB,
            traffic.loss_bytes(count, batch, dim) / MB,
            traffic.global_noise_bytes(count, batch, dim) / MB,
            traffic.ddp_bytes(count, trained) / MB,
            traffic.fsdp_bytes(count, weights, trained, size=2) / MB,
        ]
        print(f"{count:8} {batch:8} {whole:8} " + " ".join(f"{cell:8.3g}" for cell in cells), flush=True)
    return []


def noise_flops(rows: int, dim: int) -> float:
    """Of one side on a GPU: the orthogonal factor of (R, M), a root of (R, R), random numbers times both."""
    rank, longer = min(rows, dim), max(rows, dim)
    factor = (4 * len(_steps(8 * EPS, 8 * EPS)) + 2) * rank**2 * longer
    draw = 2 * rows * rank * (rank + dim) if rows <= dim else 2 * rows * dim**2
    return factor + root_flops(rank, torch.float32) + draw


def root_flops(rank: int, dtype: torch.dtype) -> float:
    """Of the square root of an (R, R) matrix."""
    steps = _steps((2 * _RIDGE[dtype]) ** 0.5, 8 * torch.finfo(dtype).eps)
    return (6 * len(steps) + 4) * rank**3


def global_noise_flops(ranks: int, rows: int, dim: int) -> float:
    """Of one side on one rank: of all ranks' features, or of the (D, D) sum of their second moments."""
    if not traffic.moment_is_sent(ranks, rows, dim):
        return noise_flops(ranks * rows, dim)
    roots = root_flops(dim, torch.float64) + root_flops(dim, torch.float32)
    return 2 * rows * dim**2 + roots + 2 * rows * dim**2


PARTS = {
    "step": step,
    "ranks": ranks,
    "reading": reading,
    "evaluation": evaluation,
    "search": searching,
    "beyond": beyond,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, device=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 200_000, 400_000], help="to read")
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 10_000, 100_000], help="to rank")
    parser.add_argument("--vectors", type=int, nargs="+", default=[20_000, 80_000, 320_000], help="to search")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--figure", type=Path, help="draw the step there")
    options = parser.parse_args(arguments)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}")
    figures = []
    for name in options.only:
        print(f"\n{name}", flush=True)
        figures += PARTS[name](options)
    write(figures, options.json)
    if options.figure is not None:
        draw(figures, options.batches, options.figure)


def draw(figures: Sequence[Figure], batches: Sequence[int], file: Path) -> None:
    """The times of a step by batch; dashed, the formulas."""
    from matplotlib.figure import Figure as Canvas

    from fanoise_lightning.figures.style import tidy

    known = {figure.name: figure.value for figure in figures}
    canvas = Canvas(figsize=(5.2, 3.4), layout="constrained")
    ax = canvas.subplots()
    for name, colour in (("loss", "#0072B2"), ("noise", "#009E73"), ("both", "#555555")):
        times = [known[f"{name}, batch {batch}, ms"] for batch in batches]
        ax.loglog(batches, times, "o-", color=colour, ms=4, label=name)
        if f"{name}, batch {batches[0]}, of the formula" in known:
            ratios = [known[f"{name}, batch {batch}, of the formula"] for batch in batches]
            ax.loglog(batches, [t / r for t, r in zip(times, ratios)], "--", color=colour, lw=1)
    ax.set(xlabel="batch", ylabel="ms a step", xticks=batches, xticklabels=batches)
    ax.minorticks_off()
    ax.legend(frameon=False)
    tidy(ax)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
