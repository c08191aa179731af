"""The scoreboard in a model card: a table, the hub's evaluation results, and the overlap with training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult

from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.export.card_markdown import bullets, escape, table

__all__ = ["eval_results", "is_mmeb", "overlap", "score_table"]

Board = Mapping[str, Any]
"""What ``Scoreboard.to_dict`` gives."""


def score_table(board: Board) -> str:
    """The means, then the subsets: precision@1 with its interval and floors in percent, and other metrics."""
    means, subsets = board["means"], board["subsets"]
    floors = list(dict.fromkeys(name for part in subsets.values() for name in part["floors"]))
    metrics = list(dict.fromkeys(name for part in subsets.values() for name in part.get("metrics", {})))
    confidence = f"{100 * board['confidence']:g} %"
    header = ["", "", "precision@1", confidence, *floors, *metrics, "queries"]
    rows: list[list[object]] = []
    parts: list[tuple[str, str, Mapping[str, Any]]] = []
    if len(subsets) > 1:
        parts += [(_label(name), "", mean) for name, mean in means.items()]
    parts += [(name, f"{part['meta_task']}, {part['distribution']}", part) for name, part in subsets.items()]
    for name, kind, part in parts:
        known = part.get("metrics", {})
        rows.append(
            [
                name,
                kind,
                _percent(part["precision"]),
                "" if part["interval"] is None else "–".join(map(_percent, part["interval"])),
                *(_percent(part["floors"].get(floor)) for floor in floors),
                *(_value(metric, known.get(metric)) for metric in metrics),
                part.get("num_queries", ""),
            ]
        )
    text = table(header, rows, "ll" + "r" * (len(header) - 2))
    return "\n\n".join([text, *_counted(subsets)])


def is_mmeb(board: Board) -> bool:
    """Whether all subsets are MMEB's."""
    return bool(board["subsets"].keys() <= CATALOG.keys())


def eval_results(board: Board, dataset: str | None) -> list[EvalResult]:
    """The hub's form of the subsets' precision@1, as fractions.

    Args:
        board: the scoreboard.
        dataset: the data that was trained on, if the scores may be of its held-out part.
    """
    of_mmeb = is_mmeb(board)
    results = []
    for name, part in board["subsets"].items():
        if part["precision"] is None:
            continue
        results.append(
            EvalResult(
                task_type="retrieval",
                task_name=part["meta_task"],
                dataset_type="TIGER-Lab/MMEB-eval" if of_mmeb else dataset or name,
                dataset_name=f"MMEB {name}" if of_mmeb else name,
                dataset_config=name,
                dataset_split="test" if of_mmeb else None,
                metric_type="precision_at_1",
                metric_name="precision@1",
                metric_value=round(part["precision"], 4),
                metric_args={
                    "confidence": board["confidence"],
                    "interval": [round(limit, 4) for limit in part["interval"]],
                    "num_queries": part["num_queries"],
                },
            )
        )
    return results


def overlap(board: Board | None, data: Mapping[str, Any] | None) -> str:
    """What is known of the overlap of training and evaluation data."""
    if data is not None and data.get("overlap"):
        counts = data["overlap"].items()
        seen = [f"{count} of {total} {escape(name)}" for name, (count, total) in counts if total]
        return f"Of the held-out pairs, these were trained on too: {', '.join(seen)}."
    if board is None:
        return "Not known: no evaluation is recorded."
    subsets = board["subsets"]
    if data is None:
        seen = [name for name, part in subsets.items() if part["distribution"] == "IND"]
        what = "called in-distribution (IND), which is what such models are trained on; what this one was"
        return f"{_share(seen, subsets)} {what} trained on is not recorded."
    seen = [name for name in subsets if _train_name(name) in data["subsets"]]
    others = [name for name, part in subsets.items() if part["distribution"] == "IND" and name not in seen]
    lines = [f"{_share(seen, subsets)} of a data set whose training rows this model was trained on."]
    if others:
        lines.append(f"Called in-distribution (IND), but not trained on: {', '.join(map(escape, others))}.")
    lines.append("Whether single rows are in both parts of a data set was not checked.")
    return bullets(lines)


def _share(seen: list[str], subsets: Mapping[str, Any]) -> str:
    names = f" ({', '.join(map(escape, seen))})" if seen else ""
    return f"{len(seen)} of {len(subsets)} evaluation subsets{names} {'is' if len(seen) == 1 else 'are'}"


def _train_name(name: str) -> str | None:
    return CATALOG[name].train_name if name in CATALOG else name


def _counted(subsets: Mapping[str, Any]) -> Iterator[str]:
    for key, what in (("num_ties", "with a tie for the best score"), ("num_skipped", "not scored")):
        if counts := {name: part[key] for name, part in subsets.items() if part.get(key)}:
            listed = ", ".join(f"{escape(name)} {count}" for name, count in counts.items())
            yield f"Queries {what}: {listed}."


def _label(mean: str) -> str:
    name = mean.replace("_", " ")
    return name if name.startswith("mean") else f"mean: {name}"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _value(metric: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['value']:.1f}" if metric == "median_rank" else _percent(found["value"])
