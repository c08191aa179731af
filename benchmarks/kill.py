"""Runs that are killed and started again, against a run that is not: are the weights the same, bit for bit?

    python benchmarks/kill.py [--kills 30] [--seed 0]

A small job on the embedded benchmark: dropout, accumulation, a schedule, FANoise, checkpoints every other
step, validation in the middle of an accumulation; and another with workers, GradCache and noise shaped by a
moving average. Each start is the same command, in a new process, that SIGKILL ends: at any moment, in a
validation, or in the middle of writing a checkpoint. After a few kills the run is left to end, and its last
checkpoint is compared with that of the unbroken run: weights, optimiser, schedule, noise, place in the data.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten_with_path

from fanoise_lightning.cli import FANoiseCLI
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.training.checkpoints import AtomicCheckpointIO

STEPS = 12
KILLS_A_RUN = 5
PHASES = ("start", "step", "validation", "checkpoint", "between")  # between two of the others
VARIANTS = {
    "plain": [],
    "workers": [
        "--data.init_args.num_workers=1",
        "--model.chunk_size=4",
        "--noise.momentum=0.9",
        "--noise.every_n_steps=2",
    ],
}


def command(folder: Path, *more: str) -> list[str]:
    """The one command, for the first start and every other."""
    image = {
        "image_size": 32,
        "layers": 2,
        "width": 16,
        "head_width": 8,
        "patch_size": 8,
        "patch_dropout": 0.5,
    }
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
    config = {"embed_dim": 16, "vision_cfg": image, "text_cfg": text}
    model = folder.parent / "tiny-two-tower.json"
    model.write_text(json.dumps(config))
    return [
        "fit",
        f"--config={Path(__file__).parents[1] / 'examples' / 'configs' / 'emoji.yaml'}",
        f"--model.encoder.init_args.model={model}",
        "--model.lr_scheduler.init_args.warmup_steps=4",
        "--data.init_args.batch_size=8",
        "--data.init_args.eval_batch_size=8",
        "--data.init_args.train_subsets=[renderer, caption]",
        "--data.init_args.num_samples=44",  # 11 batches an epoch: the last accumulation of each is short
        "--data.init_args.num_workers=0",
        "--data.init_args.eval_subsets=[renderer]",
        "--trainer.accelerator=cpu",
        f"--trainer.max_steps={STEPS}",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.val_check_interval=5",
        "--trainer.limit_val_batches=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.callbacks.init_args.every_n_train_steps=2",
        f"--trainer.logger.init_args.save_dir={folder}",
        "--trainer.logger.init_args.version=run",
        "--ckpt_path=last",
        *more,
    ]


class Process:
    """One start of the command, killed or not.

    Args:
        arguments: the command.
        log: what it prints is appended here.
        kill_in: a phase and a number: kill it in its n-th validation batch, or checkpoint.
    """

    def __init__(self, arguments: list[str], log: Path, kill_in: tuple[str, int] | None = None) -> None:
        context = multiprocessing.get_context("fork")
        self.phase = context.Value("i", 0)
        self.process = context.Process(target=self._run, args=(arguments, log, kill_in))
        self.process.start()

    def wait(self, seconds: float | None = None) -> str | None:
        """Kill it some seconds after its first step began. In which phase it died; None if it has ended."""
        while self.process.is_alive() and not self.phase.value:
            time.sleep(0.01)
        self.began = time.perf_counter()
        self.process.join(seconds)
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
        if self.process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the run failed with exit code {self.process.exitcode}")
        return PHASES[self.phase.value] if self.process.exitcode else None

    def _run(self, arguments: list[str], log: Path, kill_in: tuple[str, int] | None) -> None:
        os.setpgid(0, 0)  # with its workers
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        self._watch(ContrastiveModule, "training_step", "step", kill_in)
        self._watch(ContrastiveModule, "validation_step", "validation", kill_in)
        self._watch(AtomicCheckpointIO, "save_checkpoint", "checkpoint", kill_in)
        FANoiseCLI(arguments)

    def _watch(self, owner: type, method: str, phase: str, kill_in: tuple[str, int] | None) -> None:
        run: Callable[..., Any] = getattr(owner, method)
        calls = itertools.count(1)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.phase.value = PHASES.index(phase)
            if kill_in == (phase, next(calls)):
                if phase != "checkpoint":
                    os.kill(os.getpid(), signal.SIGKILL)
                torch.save = _save_half
            result = run(*args, **kwargs)
            self.phase.value = PHASES.index("between")
            return result

        setattr(owner, method, watched)


def _save_half(checkpoint: Any, file: Any, save: Callable[..., None] = torch.save) -> None:
    buffer = io.BytesIO()
    save(checkpoint, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def kill_somewhere(start: Callable[..., Process], draw: random.Random, seconds: float) -> str | None:
    """Start the command and kill it: two times of five in a chosen phase, else at any moment of its life."""
    phase = draw.choice(["checkpoint", "validation", None, None, None])
    if phase is not None:
        return start((phase, draw.randint(1, 5))).wait()
    return start().wait(draw.uniform(0, seconds))


def final_state(folder: Path) -> dict[str, Any]:
    """What the last checkpoint says of the run, by name."""
    checkpoint = torch.load(folder / "emoji" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    noise = [state for name, state in checkpoint["callbacks"].items() if name.startswith("FANoise")]
    loops = checkpoint["loops"]["fit_loop"]
    state = {
        name: checkpoint[name] for name in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
    }
    state |= {"noise": noise, "data": loops["state_dict"], "batches": loops["epoch_loop.batch_progress"]}
    return {"".join(map(str, path)): value for path, value in tree_flatten_with_path(state)[0]}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names under which two states are not the same, bit for bit."""
    return [
        name
        for name in {**one, **other}
        if name not in one
        or name not in other
        or not (
            torch.equal(one[name], other[name]) if torch.is_tensor(one[name]) else one[name] == other[name]
        )
    ]


def unbroken_run(root: Path, variant: str) -> tuple[dict[str, Any], float]:
    """How it ends, and how many seconds after its first step."""
    folder = root / variant
    process = Process(command(folder, *VARIANTS[variant]), root / "log")
    process.wait()
    seconds = time.perf_counter() - process.began
    print(f"{variant}: the unbroken run takes {seconds:.1f} s from its first step on", flush=True)
    return final_state(folder), seconds


def killed_run(root: Path, number: int, most: int, draw: random.Random, unbroken: Any) -> list[str]:
    """Kill a run a few times, let it end, and compare: in which phases it was killed."""
    folder = root / f"run-{number}"
    variant, (expected, seconds) = unbroken
    start = partial(Process, command(folder, *VARIANTS[variant]), root / "log")
    phases: list[str] = []
    while len(phases) < most and (phase := kill_somewhere(start, draw, seconds)) is not None:
        phases.append(phase)
    start().wait()
    wrong = differences(expected, final_state(folder))
    if wrong:
        sys.exit(
            f"run {number} ({variant}), killed in {phases}, differs in {wrong[0]} and {len(wrong) - 1} more"
        )
    print(f"run {number} ({variant}): killed in {', '.join(phases) or 'nothing'}: the same state", flush=True)
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    draw = random.Random(options.seed)
    start = time.perf_counter()
    kills: Counter[str] = Counter()
    sys.argv = ["fanoise"]  # Lightning warns of ours
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent's OpenMP
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        _, *arguments, _ = command(root / "built")
        FANoiseCLI(arguments, run=False)  # imports what each process would import
        unbroken = [(variant, unbroken_run(root, variant)) for variant in options.variants]
        for number in itertools.count():
            most = min(KILLS_A_RUN, options.kills - kills.total())
            if not most:
                break
            kills.update(killed_run(root, number, most, draw, unbroken[number % len(unbroken)]))
    phases = ", ".join(f"{count} in {phase}" for phase, count in kills.most_common())
    took = time.perf_counter() - start
    print(f"{kills.total()} kills ({phases}), as many exact continuations, in {took:.0f} s")


if __name__ == "__main__":
    main()
