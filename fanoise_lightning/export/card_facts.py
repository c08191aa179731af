"""What a model card says of a training: read from a checkpoint and beside it, or from a module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import yaml

from fanoise_lightning._lightning import load_checkpoint
from fanoise_lightning.callbacks.fanoise import FANoise
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.training.checkpoints import naming_the_file
from fanoise_lightning.training.describe import with_public_paths

__all__ = ["Facts", "checkpoint_facts", "module_facts", "with_scores"]

CONFIG = "config.yaml"
SCORES = ("test_scores.json", "scores.json")


@dataclass(frozen=True)
class Facts:
    """A training as plain data; ``None`` is unknown.

    Args:
        model: how the module was built: encoder, loss, optimiser and schedule, each with ``class_path`` and
            ``init_args``, and ``chunk_size``.
        steps: optimiser steps that were taken.
        noise: the settings of each :class:`~fanoise_lightning.FANoise`; empty if there was none.
        data: what a data module says of its training rows, see ``ContrastiveDataModule.state_dict``.
        trainer: options of Lightning's trainer.
        seed: of the run.
        scores: ``Scoreboard.to_dict``.
        no_scores: why there are none.
        lightning: Lightning's version in training.
    """

    model: Mapping[str, Any] | None = None
    steps: int | None = None
    noise: list[Mapping[str, Any]] | None = None
    data: Mapping[str, Any] | None = None
    trainer: Mapping[str, Any] | None = None
    seed: int | None = None
    scores: Mapping[str, Any] | None = None
    no_scores: str = "none are known"
    lightning: str | None = None


def module_facts(module: ContrastiveModule) -> Facts:
    """What a module and the trainer that it is attached to know."""
    state: dict[str, Any] = {"hyper_parameters": dict(module.hparams)}
    options: dict[str, Any] | None = None
    try:
        trainer: Any = module.trainer
    except RuntimeError:  # not attached
        trainer = None
    if trainer is not None and trainer.global_step:
        noise = [callback for callback in trainer.callbacks if isinstance(callback, FANoise)]
        state |= {
            "global_step": trainer.global_step,
            "callbacks": {callback.state_key: callback.state_dict() for callback in noise},
            "pytorch-lightning_version": lightning.__version__,
        }
        if trainer.datamodule is not None:
            state["data"] = trainer.datamodule.state_dict()
        names = ("precision", "max_steps", "accumulate_grad_batches", "gradient_clip_val")
        options = {name: getattr(trainer, name) for name in names}
    facts = replace(_facts_of(state), trainer=options)
    if module.scoreboard_is_current:
        assert module.scoreboard is not None
        return replace(facts, scores=module.scoreboard.to_dict())
    if module.scoreboard is not None:
        return replace(facts, no_scores="the model was trained further since it was last evaluated")
    return facts


def checkpoint_facts(path: Path) -> Facts:
    """What a checkpoint knows, and the files of its run that are beside it or in the folder above.

    Args:
        path: the checkpoint.

    Raises:
        ValueError: if the checkpoint or a file beside it cannot be read.
    """
    with naming_the_file(path):
        state = load_checkpoint(path, weights_only=True)
    facts = _facts_of(state)
    folders = (path.absolute().parent, path.absolute().parent.parent)
    config = _config_beside(folders, facts)
    if config is not None:
        noise = facts.noise
        if noise is None or any("alpha" not in settings for settings in noise):  # not saved, or by 0.1
            noise = [{name: value for name, value in (config.get("noise") or {}).items() if name != "seed"}]
        seed = config.get("seed_everything")
        seed = None if isinstance(seed, bool) or not isinstance(seed, int) else seed
        facts = replace(facts, trainer=config.get("trainer"), noise=noise, seed=seed)
    found = [folder / name for folder in folders for name in SCORES if (folder / name).is_file()]
    others = []
    for file in found:
        scores = _read_scores(file)
        if scores["step"] == facts.steps:
            return _scored(facts, scores)
        others.append(f"{file.name} is of step {scores['step']}")
    if others:
        return replace(facts, no_scores=f"this is step {facts.steps}, and {', '.join(others)}")
    return facts


def with_scores(facts: Facts, file: Path) -> Facts:
    """Facts with the scores of a file that ``ScoreboardWriter`` wrote.

    Args:
        facts: of the model that was scored.
        file: ``scores.json`` or ``test_scores.json``.

    Raises:
        ValueError: if the file cannot be read, or has the scores of another training step.
    """
    scores = _read_scores(file)
    # an evaluation without a fit does not know the step
    if scores["step"] and facts.steps is not None and scores["step"] != facts.steps:
        raise ValueError(
            f"`{file}` has the scores after {scores['step']} steps, and the model was trained for "
            f"{facts.steps}: evaluate this one with `fanoise test --ckpt_path`, and pass what it writes"
        )
    return _scored(facts, scores)


def _scored(facts: Facts, scores: Mapping[str, Any]) -> Facts:
    seed = (scores.get("run") or {}).get("seed")
    return replace(facts, scores=scores["scoreboard"], seed=seed if facts.seed is None else facts.seed)


def _facts_of(state: Mapping[str, Any]) -> Facts:
    """What is in a checkpoint."""
    described = with_public_paths(dict(state.get("hyper_parameters") or {}))
    known = {name: described[name] for name in ("encoder", "loss", "optimizer") if name in described}
    rest = {name: described[name] for name in ("lr_scheduler", "chunk_size") if name in described}
    callbacks = state.get("callbacks")
    data = [part["trained_on"] for part in state.values() if isinstance(part, dict) and "trained_on" in part]
    return Facts(
        model=known | rest if known else None,
        steps=state.get("global_step"),
        noise=None if callbacks is None else [_noise(callbacks[key]) for key in _fanoise(callbacks)],
        data=data[0] if data else None,
        lightning=state.get("pytorch-lightning_version"),
    )


def _fanoise(callbacks: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in callbacks if key.startswith(f"{FANoise.__name__}-"))


def _noise(state: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the state of a callback; of version 0.1, that is the law alone."""
    scaling, energy = state["law"]
    settings = state.get("settings", {"scaling": scaling, "energy": energy})
    return {**settings, "skipped": state["skipped"]}


def _config_beside(folders: tuple[Path, ...], facts: Facts) -> dict[str, Any] | None:
    """The configuration of ``fanoise fit``, if it describes the same encoder."""
    for file in (folder / CONFIG for folder in folders):
        if not file.is_file():
            continue
        try:
            config = with_public_paths(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            why = f"`{file}` cannot be read as YAML: {error}"
            raise ValueError(f"{why}. Remove it, and its options are left out of the card") from error
        model = config.get("model") if isinstance(config, dict) else None
        encoder = (facts.model or {}).get("encoder")
        if isinstance(model, dict) and encoder is not None and model.get("encoder") == encoder:
            return config
    return None


def _read_scores(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no scoreboard `{file}`")
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        complete = isinstance(scores["step"], int) and {"subsets", "means"} <= scores["scoreboard"].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise ValueError(
            f"`{file}` is not a scoreboard: pass the scores.json or test_scores.json of ScoreboardWriter"
        )
    return scores
