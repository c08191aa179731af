"""Runs of ``embed`` that are killed and started again, against one that is not: the same, bit for bit?

    python benchmarks/kill_embed.py [--kills 30] [--seed 0]

A catalogue of texts and pictures, one of them broken, in shards of 8 rows, through a tiny encoder. Each
folder is begun in a process of its own, and SIGKILL ends it and its workers at a random moment after its
first file is there; every third is killed twice. Then the same is run to its end, and every file is compared with
those of the run that nothing interrupted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fanoise_lightning import ContrastiveModule, OpenClipEncoder
from fanoise_lightning.search.embed import embed

ROWS, BROKEN = 240, 100
OPTIONS = {
    "text": "text",
    "image": "image",
    "id": "id",
    "batch_size": 4,
    "shard_size": 8,
    "num_workers": 1,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}


def catalogue(folder: Path) -> Path:
    """Texts, every other one with a picture."""
    draw = np.random.default_rng(0)
    rows = []
    for row in range(ROWS):
        name = f"{row}.png" if row % 2 == 0 else ""
        if name:
            pixels = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        rows.append({"id": f"sku-{row}", "text": f"thing {row}", "image": name})
    (folder / f"{BROKEN}.png").write_bytes(b"not a picture")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


def tiny_model(folder: Path) -> ContrastiveModule:
    """A two-tower model of two layers."""
    image = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    path = folder / "tiny-two-tower.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": image, "text_cfg": text}))
    torch.manual_seed(0)
    return ContrastiveModule(OpenClipEncoder(str(path)))


def run(module: ContrastiveModule, source: Path, out: Path, seconds: float | None = None) -> int | None:
    """One start, killed some seconds after it wrote its first file.

    Returns:
        How many shards there were; ``None`` if it came to its end.
    """

    def work() -> None:
        os.setpgid(0, 0)  # with its workers
        log = os.open(out.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        embed(module, source, out, **OPTIONS)

    process = multiprocessing.get_context("fork").Process(target=work)
    before = changes(out)
    process.start()
    while process.is_alive() and changes(out) == before:
        time.sleep(0.005)
    process.join(seconds)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        sys.exit(f"exit code {process.exitcode}:\n{(out.parent / 'log').read_text()[-2000:]}")
    return len(list(out.glob("*.safetensors"))) if process.exitcode else None


def changes(folder: Path) -> dict[str, int]:
    """When each file was written."""
    with suppress(FileNotFoundError):  # a temporary one may go meanwhile
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    return {}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent's OpenMP
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        module, source = tiny_model(root), catalogue(root)
        begin = time.perf_counter()
        run(module, source, root / "unbroken")
        whole = time.perf_counter() - begin
        expected = contents(root / "unbroken")
        print(f"unbroken: {len(expected)} files, {whole:.1f} s", flush=True)
        kills = partial = folders = 0
        while kills < given.kills:
            out = root / f"killed-{folders}"
            folders += 1
            shards: list[int] = []
            for _ in range(2 if folders % 3 == 0 else 1):
                if (found := run(module, source, out, draw.uniform(0, whole))) is None:
                    break  # it ended before
                shards.append(found)
            run(module, source, out)
            if contents(out) != expected:
                sys.exit(f"{out.name}, killed after {shards} shards, is NOT the same")
            kills += len(shards)
            partial += sum(0 < found < len(list(out.glob("*.safetensors"))) for found in shards)
            print(f"{out.name}: killed after {shards} shards: the same", flush=True)
        print(f"{kills} kills in {folders} folders, {partial} between first and last shard: all the same")


if __name__ == "__main__":
    main()
