"""Scoring against one exact product, and against a query at a time as MMEB's reference code scores.

    OMP_NUM_THREADS=1 python benchmarks/scoring.py [--rounds 5] [--json FILE] [--device cpu]

A subset has 1000 queries of 1000 candidates each, D = 1536: the same 1000 for all queries, or 1000 of each
query's own from a pool of 10,000. MMEB has 36 such subsets.

The product is that of the queries with all different candidates: both turned from the stored float32 into
float64, the dtype that decides ties, and multiplied. The naive loop takes the vectors of a query's candidates
from a dictionary, stacks and normalises them, and takes the best score [0]; its embeddings are in memory, so
that scoring alone is compared. A round runs all three in turn; on the CPU, seconds are CPU seconds. The
memory is the peak above the embeddings and the subset, in a process of its own.

References:
    [0] https://github.com/TIGER-AI-Lab/VLM2Vec/blob/v1/eval.py
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning.evaluation.embedding_table import Embeddings
from fanoise_lightning.evaluation.subset_ranks import subset_ranks

QUERIES, CANDIDATES, DIMENSION = 1000, 1000, 1536
POOLS = {"the same candidates": CANDIDATES, "own candidates of 10,000": 10_000}
SUBSETS = 36


def subset(pool: int, device: str) -> tuple[Embeddings, Tensor, Tensor]:
    """Random embeddings; the queries come first, and each has its right answer first among its candidates."""
    random = torch.Generator().manual_seed(0)
    rows = normalize(torch.randn(QUERIES + pool, DIMENSION, generator=random), dim=1)
    candidates = torch.stack([torch.randperm(pool, generator=random)[:CANDIDATES] for _ in range(QUERIES)])
    right = QUERIES + candidates[:, 0]
    rows[:QUERIES] = normalize(rows[:QUERIES] + 0.09 * rows[right], dim=1)
    embeddings = Embeddings(rows.to(device), torch.arange(len(rows), device=device))
    return embeddings, torch.arange(QUERIES), QUERIES + candidates


def ours(embeddings: Embeddings, queries: Tensor, candidates: Tensor) -> float:
    return float(subset_ranks(embeddings, queries, candidates).precision_at_one().mean())


def product(embeddings: Embeddings, queries: Tensor, candidates: Tensor) -> float:
    rows = embeddings.rows
    return float((rows[:QUERIES].double() @ rows[QUERIES:].double().T)[0, 0])


def naive(vectors: dict[tuple[str, str], np.ndarray], queries: list, candidates: list) -> float:
    """`vectors` by text and image, as the rows of MMEB name each candidate."""
    won = 0
    for query, own in zip(queries, candidates):
        query_vector, stacked = vectors[query], np.stack([vectors[key] for key in own])
        norms = np.linalg.norm(stacked, axis=1) * np.linalg.norm(query_vector)
        won += int(np.argmax(stacked @ query_vector / norms)) == 0
    return won / len(queries)


def seconds(run: Callable[[], float], device: str) -> tuple[float, float]:
    """The time of a run, and what it returns."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    result = run()  # a number, for which the host waits
    return clock() - start, result


def measure(name: str, pool: int, rounds: int, device: str) -> list[Figure]:
    embeddings, queries, candidates = subset(pool, device)
    keys = [(f"text {item}", f"images/{item}.jpg") for item in range(len(embeddings.rows))]
    vectors = dict(zip(keys, embeddings.rows.cpu().numpy()))
    asked = [keys[item] for item in queries.tolist()]
    listed = [[keys[item] for item in row] for row in candidates.tolist()]
    runs = (
        lambda: ours(embeddings, queries, candidates),
        lambda: product(embeddings, queries, candidates),
        lambda: naive(vectors, asked, listed),
    )
    found = [[seconds(run, device) for run in runs] for _ in range(rounds + 1)][1:]  # the first warms up
    scores = found[0][0][1], found[0][2][1]
    if abs(scores[0] - scores[1]) > 1e-9:
        raise SystemExit(f"{name}: precision@1 {scores[0]} by ours and {scores[1]} by the naive loop")
    mine, one, loop = ([row[place][0] for row in found] for place in range(3))
    print(
        f"{name:26}{statistics.median(mine):9.3f}{statistics.median(one):9.3f}{statistics.median(loop):9.3f}"
        f"{SUBSETS * statistics.median(mine):10.1f}",
        end="",
    )
    least = 16 if pool == CANDIDATES else 4  # of own candidates, the product alone is 6 times as fast
    return [
        ratio(f"scoring against one product, {name}", mine, one, at_most=2),
        ratio(f"the naive loop against scoring, {name}", loop, mine, at_least=least),
        Figure(f"scoring {SUBSETS} subsets, {name}", SUBSETS * statistics.median(mine), "s"),
    ]


def ratio(name: str, above: list[float], below: list[float], **target: float | None) -> Figure:
    ratios = [a / b for a, b in zip(above, below)]
    return Figure(name, statistics.median(ratios), "x", min(ratios), max(ratios), **target)


def memory(pool: int) -> float:
    """The MB that scoring takes at its peak."""
    embeddings, queries, candidates = subset(pool, "cpu")
    ctypes.CDLL(None).malloc_trim(0)  # else what the subset left behind would be used without being counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = peak()
    ours(embeddings, queries, candidates)
    return peak() - before


def peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser, device=True)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}, seconds")
    print(f"{'':26}{'ours':>9}{'product':>9}{'naive':>9}{'36 ours':>10}   ratios to product, of naive")
    figures = []
    for name, pool in POOLS.items():
        rows = measure(name, pool, options.rounds, options.device)
        print("   " + ",  ".join(f"{row.value:.2f} ({row.low:.2f}-{row.high:.2f})" for row in rows[:2]))
        figures += rows
        if options.device == "cpu" and Path("/proc/self/clear_refs").exists():
            with multiprocessing.get_context("spawn").Pool(1) as process:
                extra = process.apply(memory, [pool])
            print(f"{'':26}{extra:.0f} MB above the embeddings")
            figures.append(Figure(f"memory of scoring, {name}", extra, "MB", at_most=300))
    write(figures, options.json)


if __name__ == "__main__":
    main()
