"""All that needs a GPU, written to one page: tests, accuracy, time of the noise, the real backbones.

    python benchmarks/gpu.py [--device cuda] [--out benchmarks/gpu.md] [--only PART ...]
    python benchmarks/gpu.py --device cpu --small --out FILE      # a rehearsal, in a minute

Parts: ``tests`` (tests/gpu), ``accuracy`` (the noise against a float64 SVD), ``draw`` (against SVD and eigh
on the device), ``recipes`` (the backbones at their real sizes with random weights: memory, pairs/s, share of
the noise), ``benchmarks`` (those that take ``--device``, at their own sizes: not with ``--small``). The page
is written after each part, and says which ones failed; so does the exit status.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import logging
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import transformers
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.clock import in_turns, synchronise
from benchmarks.figures import Figure, add_options, write
from benchmarks.noise_accuracy import SPECTRA, covariance, exact_covariance, make_features
from benchmarks.real_sizes import REAL_SIZES, RealSize, step_memory, tiny_models
from fanoise_lightning import ContrastiveModule, FANoise, InfoNCE, Sample, feature_noise
from fanoise_lightning.noise import noise_shape

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [(256, 1536), (256, 3584), (1024, 1536), (1024, 3584), (4096, 1536), (4096, 3584)]
SMALL_SHAPES = [(16, 24), (32, 16)]
PAPER_BATCH = 256  # pairs per GPU
GIB = 2**30
BENCHMARKS = ("noise", "overhead", "encoders", "large_batch", "tiled_loss", "growth --only step", "peers")


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Args:
        title: its heading.
        text: markdown below it.
        figures: what it measured.
        failed: whether something that should have worked did not.
    """

    title: str
    text: str
    figures: Sequence[Figure] = ()
    failed: bool = False


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Tests


def tests(options: argparse.Namespace) -> Part:
    """The outcome of tests/gpu, file by file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/gpu", f"--junitxml={report}"]
        environment = {**os.environ, "FANOISE_TEST_DEVICE": options.device}
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        return tests_of(report.read_text() if report.exists() else "<nothing/>")


def tests_of(report: str) -> Part:
    """The section of a JUnit report."""
    files: dict[str, list[int]] = {}
    notes: list[str] = []
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = case.get("classname", "").rpartition(".")[2]
        counts = files.setdefault(name, [0, 0, 0])
        kinds = [child.tag for child in case]
        failed, skipped = bool({"failure", "error"} & {*kinds}), "skipped" in kinds
        counts[2 if failed else 1 if skipped else 0] += 1
        if failed:
            notes.append(f"* failed: `{name}::{case.get('name')}`")
        elif skipped:
            notes.append(f"* skipped: `{name}::{case.get('name')}`, {case[0].get('message')}")
    rows = [[f"`{name}`", *map(str, counts)] for name, counts in files.items()]
    text = table(["file", "passed", "skipped", "failed"], rows)
    failed = not files or any(counts[2] for counts in files.values())
    return Part("Tests", "\n\n".join([text, "\n".join(notes)] if notes else [text]), failed=failed)


# The noise


def accuracy(options: argparse.Namespace) -> Part:
    """The error of the covariance of sublinear noise, on the device in float32."""
    ranks = (16,) if options.small else (64, 256, 1024)
    rows, figures = [], []
    for name in SPECTRA:
        line = [name]
        for rank in ranks:
            features = make_features(name, rank, 3 * rank // 2)
            expected = exact_covariance(features, "sublinear")
            shape = noise_shape(features.to(options.device)).to(torch.device("cpu"))
            error = 100 * ((covariance(shape) - expected).norm() / expected.norm()).item()
            figures.append(Figure(f"covariance, {name}, R = {rank}", error, "%"))
            line.append(f"{error:.5f}")
        rows.append(line)
    text = table(["spectrum", *(f"R = {rank}" for rank in ranks)], rows)
    return Part("The root against a float64 SVD: error of the covariance, %", text, figures)


def svd_noise(features: Tensor, alpha: float) -> Tensor:
    """The published formula, sublinear, as it stands."""
    _, s, vh = torch.linalg.svd(features, full_matrices=False)
    noise = torch.randn(len(features), len(s), device=features.device) * (s.sqrt() / s.sqrt().mean())
    return alpha / math.sqrt(features.shape[1]) * noise @ vh


def eigh_noise(features: Tensor, alpha: float) -> Tensor:
    """The same noise by eigh of the smaller Gram matrix, in float32."""
    wide = features.shape[0] <= features.shape[1]
    squares, vectors = torch.linalg.eigh(features @ features.T if wide else features.T @ features)
    s = squares.clamp_min(torch.finfo(squares.dtype).eps * squares.amax()).sqrt()
    noise = torch.randn(len(features), len(s), device=features.device) * s ** (-0.5 if wide else 0.5)
    noise = noise @ vectors.T @ features if wide else noise @ vectors.T
    return alpha / math.sqrt(features.shape[1]) / s.sqrt().mean() * noise


def draw(options: argparse.Namespace) -> Part:
    """One draw of sublinear noise, in turns."""
    rows, figures = [], []
    for batch, dim in SMALL_SHAPES if options.small else SHAPES:
        features = F.normalize(torch.randn(batch, dim) * torch.linspace(1, 0.05, dim), dim=1)
        features = features.to(options.device)
        sides = [lambda f=f, x=features: f(x, 0.1) for f in (feature_noise, svd_noise, eigh_noise)]
        times = in_turns(sides, options.rounds, options.device)
        line = [f"{batch} x {dim}", *(f"{1e3 * statistics.median(column):.2f}" for column in zip(*times))]
        for index, other in ((1, "svd"), (2, "eigh")):
            ratios = [turn[0] / turn[index] for turn in times]
            middle = statistics.median(ratios)
            name = f"one draw, {batch} x {dim}, of {other}"
            figures.append(Figure(name, middle, "x", min(ratios), max(ratios), at_most=1.0))
            line.append(f"{middle:.3f} ({min(ratios):.3f}–{max(ratios):.3f})")
        rows.append(line)
    head = ["B x D", "FANoise, ms", "SVD, ms", "eigh, ms", "ratio to SVD", "ratio to eigh"]
    return Part("One draw of sublinear noise", table(head, rows), figures)


# The real backbones


class Stopwatch(Callback):
    """The seconds of each step."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: list[float] = []

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = self._now()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(self._now() - self.start)


def make_batch(encoder: Any, pairs: int, chunk: int) -> dict[str, Any]:
    """Pairs of a picture with a question and an answer, in chunks, as the data module makes them."""
    texts = [
        f"Represent the given image with the following question: what is it, number {i}?"
        for i in range(pairs)
    ]
    pictures = [tiny_models.make_image(640, 480, seed) for seed in range(min(pairs, 16))]
    queries = [Sample(text, pictures[i % len(pictures)]) for i, text in enumerate(texts)]
    targets = [Sample(f"the answer to question {i}") for i in range(pairs)]
    sides = {"query": queries, "target": targets}
    return {
        side: [encoder.collate(samples[i : i + chunk]) for i in range(0, pairs, chunk)]
        for side, samples in sides.items()
    }


def train(size: RealSize, options: argparse.Namespace, folder: Path) -> tuple[list[float], int, Any, int]:
    """Steps of the recipe: their seconds, the bytes at the peak, the first chunk, the dimension."""
    changes = {"image_size": 112} if options.small and size.family == "qwen2_vl" else {}
    with size.encoder(folder, options.device, **changes) as encoder:
        batch = make_batch(encoder, options.pairs, size.chunk)
        watch, on_cuda = Stopwatch(options.device), options.device.startswith("cuda")
        trainer = Trainer(
            max_steps=options.rounds + 1,
            accelerator="gpu" if on_cuda else options.device,
            devices=1,
            precision="bf16-mixed",
            callbacks=[FANoise(alpha=0.1, seed=0), watch],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        module = ContrastiveModule(encoder, InfoNCE(0.02), chunk_size=size.chunk)
        batches: Any = [batch] * (options.rounds + 1)
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
        peak = torch.cuda.max_memory_allocated() if on_cuda else 0
        return watch.seconds[1:], peak, batch["query"][0], encoder.embedding_dim


def noise_seconds(dim: int, options: argparse.Namespace) -> float:
    """Of both sides of the paper's batch."""
    features = F.normalize(torch.randn(PAPER_BATCH, dim), dim=1).to(options.device)
    return 2 * statistics.median(
        times[0] for times in in_turns([lambda: feature_noise(features)], 10, options.device)
    )


def recipes(options: argparse.Namespace) -> Part:
    """The backbones with random weights: the memory of a step, pairs/s, the share of the noise."""
    rows, figures, failures = [], [], []
    runs = options.small or options.device != "cpu"
    for name in options.recipes:
        size = REAL_SIZES[name].tiny() if options.small else REAL_SIZES[name]
        predicted = step_memory(size, size.chunk, size.tokens)
        cells = [f"{predicted.weights / GIB:.2f}", f"{predicted.peak / GIB:.2f}"]
        figures.append(Figure(f"{name}, predicted peak", predicted.peak / GIB, "GiB"))
        measured = ["not run"] * 4
        if runs:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    steps, peak, chunk, dim = train(size, options, Path(folder))
            except Exception as error:  # such as a card too small for it: the others may fit
                failures.append(f"`{name}` failed: {_told(error)}")
                rows.append([f"`{name}`", f"{size.chunk} x {size.tokens}", *cells, *["failed"] * 4])
                release()
                continue
            per_pair = [step / options.pairs for step in steps]
            share = 100 * noise_seconds(dim, options) / (PAPER_BATCH * statistics.median(per_pair))
            rates = [1 / each for each in per_pair]
            rate = statistics.median(rates)
            figures += [
                Figure(f"{name}, pairs/s", rate, "pairs/s", min(rates), max(rates)),
                Figure(f"{name}, share of the noise", share, "%"),
            ]
            tokens = "x".join(map(str, chunk["input_ids"].shape))
            measured = [tokens, f"{peak / GIB:.2f}" if peak else "-", f"{rate:.2f}", f"{share:.3f}"]
            if peak:
                figures.append(Figure(f"{name}, peak", peak / GIB, "GiB"))
        rows.append([f"`{name}`", f"{size.chunk} x {size.tokens}", *cells, *measured])
        release()
    head = [
        *("recipe", "chunk x tokens", "weights, GiB", "peak predicted, GiB"),
        *("chunk run", "peak, GiB", "pairs/s", f"noise, % of a step of {PAPER_BATCH} pairs"),
    ]
    text = "\n\n".join([table(head, rows), *failures])
    return Part("The recipes' backbones, LoRA, bfloat16, random weights", text, figures, bool(failures))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:500]}"


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# The other benchmarks


def benchmarks(options: argparse.Namespace) -> Part:
    """What the benchmarks that take a device print."""
    texts, failed = [], False
    for given in options.benchmarks:
        name, *more = shlex.split(given)
        file = name if name.endswith(".py") else f"benchmarks/{name}.py"
        command = [file, *more, "--device", options.device]
        outcome, good = run_benchmark(command, options.timeout)
        failed |= not good
        texts.append(f"### `{shlex.join(['python', *command])}`\n\n{outcome}")
    return Part("Benchmarks", "\n\n".join(texts), failed=failed)


def run_benchmark(command: Sequence[str], timeout: int) -> tuple[str, bool]:
    """The output of a script as markdown, and whether it worked."""
    if not (ROOT / command[0]).exists():
        return "There is no such benchmark.", False
    try:
        result = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"Not done after {timeout} s.", False
    if result.returncode == 2 and "unrecognized arguments: --device" in result.stderr:
        return "It runs on the CPU only.", True
    if result.returncode:
        return f"Failed:\n\n```\n{result.stderr[-2000:].strip()}\n```", False
    return f"```\n{result.stdout.strip()}\n```", True


PARTS: dict[str, Callable[[argparse.Namespace], Part]] = {
    "tests": tests,
    "accuracy": accuracy,
    "draw": draw,
    "recipes": recipes,
    "benchmarks": benchmarks,
}


def machine(device: str) -> str:
    """The card, the versions and the date."""
    card = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        about = torch.cuda.get_device_properties(torch.device(device))
        card = f"{about.name}, {about.total_memory / GIB:.0f} GiB"
    versions = (
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, transformers {transformers.__version__}"
    )
    return f"{card}; {versions}; {datetime.date.today()}"


def page(parts: Sequence[Part], command: str, device: str) -> str:
    """The whole page."""
    sections = [f"## {part.title}\n\n{part.text}" for part in parts]
    return (
        "\n\n".join(["# On a GPU", f"`make gpu` runs `{command}`, here on {machine(device)}.", *sections])
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, device=True)
    parser.set_defaults(device="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.md")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--benchmarks", nargs="+", metavar="NAME")
    parser.add_argument("--recipes", nargs="+", choices=REAL_SIZES, default=[*REAL_SIZES], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=64, help="of a step of the recipes")
    parser.add_argument("--timeout", type=int, default=900, help="seconds of one benchmark")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script on a CPU")
    options = parser.parse_args(arguments)
    options.benchmarks = options.benchmarks or (() if options.small else BENCHMARKS)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    command = shlex.join(["python", "benchmarks/gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    parts: list[Part] = []
    for name in options.only:
        print(f"{name} ...", flush=True)
        try:
            parts.append(PARTS[name](options))
        except Exception as error:  # hours of other parts must not be lost
            parts.append(Part(name.capitalize(), f"Failed: {_told(error)}", failed=True))
        print(parts[-1].text, flush=True)
        options.out.write_text(page(parts, command, options.device))
        write([figure for part in parts for figure in part.figures], options.json)
    return int(any(part.failed for part in parts))


if __name__ == "__main__":
    sys.exit(main())
