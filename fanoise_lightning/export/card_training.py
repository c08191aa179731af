"""How a model was trained, in a model card: recipe, noise, data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from fanoise_lightning.export.card_base import Origin
from fanoise_lightning.export.card_facts import Facts
from fanoise_lightning.export.card_markdown import bullets, escape, table

__all__ = ["describe_data", "describe_noise", "describe_recipe", "noisy"]


def describe_recipe(facts: Facts) -> str:
    """Loss, optimiser, schedule, steps and batch; and, in one line, what is not recorded."""
    lines = dict(_recipe(facts))
    text = bullets(f"{name}: {value}" for name, value in lines.items() if value is not None)
    missing = [name for name, value in lines.items() if value is None]
    unknown = f"Not recorded: {', '.join(missing).lower()}." if missing else ""
    return "\n\n".join(filter(None, [text, unknown]))


def describe_noise(facts: Facts) -> str:
    """The settings of FANoise."""
    if facts.noise is None:
        return "Not recorded."
    if not noisy(facts):
        return "None: the model was trained without FANoise."
    tables = []
    for noise in noisy(facts):
        rest = {name: value for name, value in noise.items() if name != "skipped"}
        rest = {"alpha": "not recorded", **rest}
        tables.append(table(["setting", "value"], [(name, _value(value)) for name, value in rest.items()]))
        if skipped := noise.get("skipped"):
            tables.append(f"Batches that got no noise, because their features were broken: {skipped}.")
    return "\n\n".join(tables)


def noisy(facts: Facts) -> list[Mapping[str, Any]]:
    """The settings of each FANoise that is known to have added noise."""
    return [noise for noise in facts.noise or [] if noise.get("alpha") != 0]


def describe_data(facts: Facts, origin: Origin | None) -> str:
    """The source, the subsets and their rows."""
    data = facts.data
    if data is None or origin is None:
        return "Not recorded: fill in."
    rows = {"rows": sum(data["subsets"].values())}
    if len(data["subsets"]) > 1:
        rows = data["subsets"]
    url = f" ([on the hub](https://huggingface.co/datasets/{origin.hub_id}))" if origin.hub_id else ""
    lines = [
        f"Source: {escape(origin.name)}{url}",
        f"Training rows: {', '.join(f'{escape(name)} {count:,}' for name, count in rows.items())}",
        f"Mixture: {escape(_value(data['sampling']))}, batches {escape(data['batch_subsets'])}",
        f"Pairs with the same target are no negatives in: {escape(data['mask_same_target'])}",
    ]
    if data["blind"]:
        lines.append("Query images were dropped")
    return bullets(lines)


def _recipe(facts: Facts) -> Iterator[tuple[str, str | None]]:
    model, data, trainer = facts.model or {}, facts.data, facts.trainer or {}
    yield "Loss", _built(model.get("loss"))
    yield "Optimizer", _built(model.get("optimizer"))
    yield "Schedule", "none" if model and not model.get("lr_scheduler") else _built(model.get("lr_scheduler"))
    yield "Steps", None if facts.steps is None else _steps(facts.steps, trainer)
    yield "Batch", None if data is None else _batch(data, trainer)
    if model:
        yield "GradCache", escape(f"chunks of {model['chunk_size']}") if model.get("chunk_size") else "no"
    encoder = (model.get("encoder") or {}).get("init_args") or {}
    if encoder.get("lora") is not None:
        yield "LoRA", escape(_value(encoder["lora"]) or "the defaults")
    yield "Precision", escape(trainer.get("precision") or "32-true") if trainer else None
    if trainer:
        yield "Gradient clipping", escape(trainer.get("gradient_clip_val") or "none")
    yield "Seed", None if facts.seed is None else str(facts.seed)


def _steps(steps: int, trainer: Mapping[str, Any]) -> str:
    planned = trainer.get("max_steps")
    return f"{steps:,} of {planned:,}" if isinstance(planned, int) and planned > steps else f"{steps:,}"


def _batch(data: Mapping[str, Any], trainer: Mapping[str, Any]) -> str:
    batch = f"{data['batch_size']:,} pairs on each of {data['processes']} processes"
    if data["processes"] == 1:
        batch = f"{data['batch_size']:,} pairs"
    accumulated = trainer.get("accumulate_grad_batches") or 1
    return batch if accumulated == 1 else escape(f"{batch}, gradients of {accumulated} accumulated")


def _built(part: Any) -> str | None:
    """``InfoNCE(temperature=0.02, ...)``, escaped; ``None`` if it is not described."""
    if not isinstance(part, Mapping) or "class_path" not in part:
        return None
    name = str(part["class_path"]).rpartition(".")[2]
    return escape(f"{name}({_value(part.get('init_args') or {})})")


def _value(value: Any) -> str:
    """A setting as text; of a path, the last part: the others are this machine's."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_value(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return str(value)
