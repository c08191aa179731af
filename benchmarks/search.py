"""Search in a million rows: time of a query and memory, against one product in memory and faiss.

    python benchmarks/search.py [--rows 1000000] [--rounds 20] [--folder DIR]
    python benchmarks/search.py --kinds [--rows 50000]

Random unit vectors in float16, 512 dimensions, in shards as ``fanoise embed`` writes them. Each contender
runs in a process of its own and answers the same queries in turn: ours from the shards, block by block;
numpy by one product with all rows in float32, and `argpartition`; faiss, if installed, with its flat
index in float32. Seconds are the median and the least of all queries, CPU seconds those of all threads;
the ratio is to ours. Memory is the peak of the resident set, all imports included; recall is against
our hits.

`--kinds` compares the kinds of index instead, on rows in clusters, as embeddings of pictures lie: each row
is the middle of one of 500 clusters plus noise of the same length, in 64 directions of the 512. 200 others
of the same kind are the queries. Recall is the share of the exact ten nearest rows that are found; a
query's time is that of one alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning.search.approximate import KINDS, ApproximateIndex
from fanoise_lightning.search.folder import EmbeddingFolder, write_shard
from fanoise_lightning.search.index import SearchIndex

DIMENSION, SHARD, K = 512, 4096, 10
CLUSTERS, DIRECTIONS = 500, 64  # of --kinds


def independent(rows: int, random: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, DIMENSION, generator=random)


def clustered(rows: int, random: torch.Generator) -> torch.Tensor:
    fixed = torch.Generator().manual_seed(2)
    middles = F.normalize(torch.randn(CLUSTERS, DIRECTIONS, generator=fixed), dim=1)
    plane = torch.linalg.qr(torch.randn(DIMENSION, DIRECTIONS, generator=fixed)).Q
    own = middles[torch.randint(CLUSTERS, (rows,), generator=random)]
    return (own + torch.randn(rows, DIRECTIONS, generator=random) / DIRECTIONS**0.5) @ plane.T


def write_folder(folder: Path, rows: int, draw: Callable[[int, torch.Generator], torch.Tensor]) -> None:
    random = torch.Generator().manual_seed(0)
    shards = []
    for start in range(0, rows, SHARD):
        n = min(SHARD, rows - start)
        ids = pa.array([str(start + i) for i in range(n)])
        vectors = F.normalize(draw(n, random), dim=1).half()
        name = f"{len(shards):05d}"
        write_shard(folder, name, vectors, pa.table({"id": ids, "text": ids, "image": [""] * n}), {})
        shards.append({"name": name, "rows": n})
    manifest = {
        "format": 1,
        "model": {"fingerprint": "random", "description": {}, "checkpoint": None},
        "dimension": DIMENSION,
        "dtype": "float16",
        "normalized": True,
        "rows": rows,
        "source": "random",
        "image_root": None,
        "shards": shards,
        "skipped": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def queries(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, DIMENSION, generator=torch.Generator().manual_seed(1)), dim=1)


def ours(folder: Path) -> Callable[[torch.Tensor], Any]:
    index = SearchIndex(folder)
    return lambda query: index.search(query, K).rows


def product(folder: Path) -> Callable[[torch.Tensor], Any]:
    rows = torch.cat([shard.float() for shard in EmbeddingFolder(folder).shards()]).numpy()

    def search(query: torch.Tensor) -> Any:
        scores = query.numpy() @ rows.T
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.take_along_axis(scores, best, 1).argsort(1)[:, ::-1]
        return torch.from_numpy(np.take_along_axis(best, order, 1))

    return search


def flat(folder: Path) -> Callable[[torch.Tensor], Any]:
    import faiss

    index = faiss.IndexFlatIP(DIMENSION)
    for shard in EmbeddingFolder(folder).shards():
        index.add(shard.float().numpy())
    return lambda query: torch.from_numpy(index.search(query.numpy(), K)[1])


def hnsw(folder: Path) -> Callable[[torch.Tensor], Any]:
    index = ApproximateIndex(SearchIndex(folder), "hnsw")
    return lambda query: index.search(query, K).rows


def ivfpq(folder: Path) -> Callable[[torch.Tensor], Any]:
    index = ApproximateIndex(SearchIndex(folder), "ivfpq")
    return lambda query: index.search(query, K).rows


CONTENDERS = {"fanoise": ours, "numpy float32": product, "faiss flat": flat, "hnsw": hnsw, "ivfpq": ivfpq}


def serve(name: str, folder: Path, count: int, pipe: Any) -> None:
    """Answer by number of the query, or all at once; then say how much memory that took."""
    asked, began = queries(count), time.perf_counter()
    search = CONTENDERS[name](folder)
    search(asked[:1])
    pipe.send(time.perf_counter() - began)
    while (number := pipe.recv()) is not None:
        part = asked if number < 0 else asked[number : number + 1]
        start, cpu = time.perf_counter(), time.process_time()
        rows = search(part)
        pipe.send((time.perf_counter() - start, time.process_time() - cpu, rows.tolist()))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def kinds(folder: Path, queries: torch.Tensor) -> list[Figure]:
    """The exact search, and each approximate one: built in turn, then asked query by query."""
    exact = SearchIndex(folder)
    expected = exact.search(queries, K).rows.tolist()
    print(f"{'':8}{'recall@10':>10}{'MB':>8}{'build, CPU s':>14}{'ms a query':>12}")
    figures = []
    for kind in ("exact", *get_args(KINDS)):
        cpu = time.process_time()
        index = exact if kind == "exact" else ApproximateIndex(exact, kind)
        cpu = time.process_time() - cpu
        files = folder.glob("*.safetensors" if kind == "exact" else f"{kind}.faiss")
        size = sum(file.stat().st_size for file in files) / 1e6
        found, times = [], []
        for query in queries:
            start = time.perf_counter()
            found.append(index.search(query[None], K).rows[0].tolist())
            times.append(time.perf_counter() - start)
        recall = statistics.mean(len(set(a) & set(b)) / K for a, b in zip(found, expected))
        middle = 1e3 * statistics.median(times)
        print(f"{kind:8}{recall:10.3f}{size:8.1f}{cpu:14.1f}{middle:12.1f}", flush=True)
        if kind != "exact":
            figures.append(Figure(f"recall@10 of {kind}, {len(exact.folder):,} rows", recall))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help="a million, with --kinds 50,000")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64, help="queries that are answered together")
    parser.add_argument("--folder", type=Path, help="kept for the next time")
    parser.add_argument("--only", nargs="*", help="the contenders")
    parser.add_argument("--kinds", action="store_true", help="compare the kinds of index")
    add_options(parser)
    given = parser.parse_args()
    rows = given.rows or (50_000 if given.kinds else 1_000_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "manifest.json").exists():
            write_folder(folder, rows, clustered if given.kinds else independent)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, ", end="")
        print(f"{EmbeddingFolder(folder).manifest['rows']:,} x {DIMENSION} float16")
        if given.kinds:
            asked = F.normalize(clustered(200, torch.Generator().manual_seed(1)), dim=1)
            figures = kinds(folder, asked)
        else:
            figures = compare(folder, given.rounds, given.batch, given.only)
    write(figures, given.json)


def compare(folder: Path, rounds: int, batch: int, only: list[str] | None) -> list[Figure]:
    names = only or ["fanoise", "numpy float32"]
    if not only and importlib.util.find_spec("faiss"):
        names += ["faiss flat"]
    context, pipes, times, cpu, first = multiprocessing.get_context("spawn"), {}, {}, {}, {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, folder, max(rounds, batch), theirs), daemon=True)
        process.start()
        first[name], times[name], cpu[name] = pipes[name].recv(), [], []
    found: dict[str, list[list[int]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:  # in turn: the machine's load is the same for each
            pipes[name].send(number)
            seconds, used, rows = pipes[name].recv()
            times[name].append(seconds)
            cpu[name].append(used)
            found[name] += rows
    titles = f"{'s a query':>10} {'min':>6} {'cpu s':>6} {'ratio':>6} {f's of {batch}':>10}"
    print(f"{'':14} {titles} {'start s':>8} {'GB':>5} {'recall@10':>10}")
    figures = []
    for name in names:
        pipes[name].send(-1)
        together, _, _ = pipes[name].recv()
        pipes[name].send(None)
        peak = pipes[name].recv()
        ratio = statistics.median(a / b for a, b in zip(times[name], times[names[0]]))
        same = [len(set(a) & set(b)) / K for a, b in zip(found[name], found[names[0]])]
        print(
            f"{name:14} {statistics.median(times[name]):10.3f} {min(times[name]):6.3f} "
            f"{statistics.median(cpu[name]):6.2f} {ratio:6.2f} {together:10.2f} "
            f"{first[name]:8.1f} {peak:5.2f} {statistics.mean(same):10.3f}"
        )
        if name == "fanoise":
            low, middle, high = min(times[name]), statistics.median(times[name]), max(times[name])
            figures.append(Figure("a search, 1 query", middle, "s", low, high, at_most=0.3))
            figures.append(Figure("memory of a search", peak, "GB", at_most=1.5))
    return figures


if __name__ == "__main__":
    main()
