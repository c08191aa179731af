"""A large batch in chunks: the memory of a step, and its time against one without chunks.

    python benchmarks/large_batch.py [--chunk 16] [--rounds 10]

Memory: each size in a fresh process, the peak of the resident set over what it was before the step (model and
batch are there by then). Time: the same step without chunks, with ours, and with the GradCache of
sentence-transformers (if it is installed), in turns, medians of the ratios round by round. The encoder is a
small vision transformer from random weights.
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


def sentence_transformers(chunk: int) -> Callable[[nn.Module, Tensor, Tensor], Tensor] | None:
    try:
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    except ImportError:
        return None

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


def memory(sizes: list[int], chunk: int) -> None:
    print(f"{'pairs':>6} {'peak of a step, MB':>20}   (chunks of {chunk})")
    for pairs in sizes:
        call = [sys.executable, __file__, "--peak", str(pairs), "--chunk", str(chunk)]
        # what is freed goes back to the system at once, and does not count as resident
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
        result = subprocess.run(call, check=True, capture_output=True, text=True, env=environment)
        peak = int(result.stdout)
        print(f"{pairs:6} {peak / 2**20:20.0f}", flush=True)


def compare(pairs: int, chunk: int, rounds: int) -> None:
    encoder, query, target = build(), torch.randn(pairs, 3, 64, 64), torch.randn(pairs, 3, 64, 64)
    ways: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor] | None] = {
        "without chunks": whole,
        "chunks": partial(chunked, chunk=chunk),
        "sentence-transformers": sentence_transformers(chunk),
    }
    seconds: dict[str, list[float]] = {name: [] for name, way in ways.items() if way is not None}
    gradients: dict[str, Tensor] = {}
    for number in range(rounds + 1):
        for name in list(seconds)[:: 1 if number % 2 else -1]:
            encoder.zero_grad()
            start = time.perf_counter()
            ways[name](encoder, query, target).backward()  # type: ignore[misc]
            seconds[name].append(time.perf_counter() - start)
            gradients[name] = torch.cat(
                [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
            )
    expected = gradients["without chunks"]
    print(f"\n{pairs} pairs: seconds, ratios to each way (medians round by round), gradient's relative error")
    for name, times in seconds.items():
        ratios = [
            statistics.median(a / b for a, b in zip(times[1:], other[1:])) for other in seconds.values()
        ]
        columns = " ".join(f"{ratio:6.2f}" for ratio in ratios)
        error = (gradients[name] - expected).norm() / expected.norm()
        print(f"{name:24} {statistics.median(times[1:]):8.3f} {columns} {error:10.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=128, help="of the comparison of times")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak_of_step(options.peak, options.chunk))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    memory([64, 256, 1024], options.chunk)
    compare(options.pairs, options.chunk, options.rounds)


if __name__ == "__main__":
    main()
