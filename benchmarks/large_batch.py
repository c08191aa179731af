"""A large batch in chunks: the memory of a step, and its time against one without chunks.

    python benchmarks/large_batch.py [--chunk 16] [--rounds 10]

Memory: each size in a fresh process, the peak of the resident set over what it was before the step (model
and batch are there by then). Time: the same step without chunks, with ours, and with the GradCache of
sentence-transformers, in turns; the ratio to each of the others is the median of the rounds, beside the
least and the greatest. The encoder is a small vision transformer from random weights. Without sentence-
transformers it is an error.

By the number of operations, a step in chunks costs 4/3 of one without, less the second pass that the last
chunk is spared: a backward pass costs two forward passes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning import InfoNCE
from fanoise_lightning.training.grad_cache import embed_in_chunks

TEMPERATURE = 0.05


def build() -> nn.Module:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
    )
    return CLIPVisionModel(config)


def embed(encoder: nn.Module, pixels: Tensor) -> Tensor:
    return F.normalize(encoder(pixel_values=pixels).pooler_output, dim=1)


def whole(encoder: nn.Module, query: Tensor, target: Tensor) -> Tensor:
    return InfoNCE(TEMPERATURE)(embed(encoder, query), embed(encoder, target))


def chunked(encoder: nn.Module, query: Tensor, target: Tensor, chunk: int) -> Tensor:
    sides = [query.split(chunk), target.split(chunk)]
    return InfoNCE(TEMPERATURE)(*embed_in_chunks(partial(embed, encoder), sides, list(encoder.parameters())))


def sentence_transformers(chunk: int) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    class Model(nn.Sequential):
        """As much of a SentenceTransformer as the loss calls."""

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"sentence_embedding": embed(self[0], features["pixel_values"])}

    def step(encoder: nn.Module, query: Tensor, target: Tensor) -> Tensor:
        loss = CachedMultipleNegativesRankingLoss(Model(encoder), 1 / TEMPERATURE, mini_batch_size=chunk)
        return loss([{"pixel_values": query}, {"pixel_values": target}], torch.empty(0))

    return step


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_of_step(pairs: int, chunk: int) -> int:
    """Bytes that one step adds to the resident set at most."""
    encoder, query, target = build(), torch.randn(pairs, 3, 64, 64), torch.randn(pairs, 3, 64, 64)
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    chunked(encoder, query, target, chunk).backward() if chunk else whole(encoder, query, target).backward()
    done.set()
    thread.join()
    return peak - before


def memory(sizes: list[int], chunk: int) -> list[Figure]:
    print(f"{'pairs':>6} {'peak of a step, MB':>20}   (chunks of {chunk})")
    figures = []
    for pairs in sizes:
        call = [sys.executable, __file__, "--peak", str(pairs), "--chunk", str(chunk)]
        # what is freed goes back to the system at once, and does not count as resident
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
        result = subprocess.run(call, check=True, capture_output=True, text=True, env=environment)
        peak = int(result.stdout) / 2**20
        print(f"{pairs:6} {peak:20.0f}", flush=True)
        figures.append(Figure(f"peak of a step of {pairs} pairs in chunks of {chunk}", peak, "MB"))
    return figures


def compare(pairs: int, chunk: int, rounds: int, device: str, now: Callable[[], float]) -> list[Figure]:
    encoder = build().to(device)
    query, target = torch.randn(2, pairs, 3, 64, 64, device=device)
    ways: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
        "chunks": partial(chunked, chunk=chunk),
        "without chunks": whole,
        "sentence-transformers": sentence_transformers(chunk),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gradients: dict[str, Tensor] = {}
    for number in range(rounds + 1):  # the first to warm up
        for name in list(ways)[:: 1 if number % 2 else -1]:
            encoder.zero_grad()
            start = now()
            ways[name](encoder, query, target).backward()
            seconds[name].append(now() - start)
            gradients[name] = torch.cat(
                [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
            )
    expected = gradients["without chunks"]
    print(f"\n{pairs} pairs: seconds, chunks against each way, gradient's relative error")
    figures = []
    for name, times in seconds.items():
        error = (gradients[name] - expected).norm() / expected.norm()
        if name == "chunks":
            print(f"{name:24}{statistics.median(times[1:]):8.3f}{'':26}{error:10.1e}")
            continue
        ratios = sorted(a / b for a, b in zip(seconds["chunks"][1:], times[1:]))
        middle = statistics.median(ratios)
        spread = f"{middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{name:24}{statistics.median(times[1:]):8.3f}{spread:>26}{error:10.1e}")
        target = 1.3 if name == "without chunks" else 1.0
        title = f"a step in chunks of {chunk}, {pairs} pairs, of {name}"
        figures.append(Figure(title, middle, "x", ratios[0], ratios[-1], at_most=target))
    return figures


def clock(device: str, cpu_seconds: bool) -> Callable[[], float]:
    if device == "cuda":
        return lambda: (torch.cuda.synchronize(), time.perf_counter())[1]
    return time.process_time if cpu_seconds else time.perf_counter


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=128, help="of the comparison of times")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cpu-seconds", action="store_true", help="which vary less on a busy machine")
    add_options(parser, device=True)
    options = parser.parse_args()
    if options.peak:
        print(peak_of_step(options.peak, options.chunk))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}")
    figures = memory([64, 256, 1024], options.chunk) if options.device == "cpu" else []
    now = clock(options.device, options.cpu_seconds)
    figures += compare(options.pairs, options.chunk, options.rounds, options.device, now)
    write(figures, options.json)


if __name__ == "__main__":
    main()
