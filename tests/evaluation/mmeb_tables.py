"""The tables of docs/mmeb.md, from what the code knows of MMEB."""

from __future__ import annotations

from collections.abc import Sequence

from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.evaluation.mmeb_published import _MEANS, _PUBLISHED, _SCORED, _subset_scores
from fanoise_lightning.subset import META_TASKS


def subset_table() -> str:
    """The subsets with VLM2Vec's published scores, in percent, as Markdown."""
    header = ["subset", "", "query → target", "training rows", "candidates", *_SCORED]
    scores = [_subset_scores(backbone) for backbone in _SCORED]
    lines = []
    for meta_task in META_TASKS:
        lines.append([f"**{meta_task}**", *[""] * (len(header) - 1)])
        for entry in CATALOG.values():
            if entry.meta_task == meta_task:
                modalities, rows = f"{entry.query} → {entry.target}", f"{entry.num_train:,}"
                facts = [entry.name, entry.distribution, modalities, rows, f"{entry.num_candidates:,}"]
                lines.append([*facts, *(f"{100 * score[entry.name]:.1f}" for score in scores)])
    return _markdown(header, lines)


def published_table() -> str:
    """The published means of each backbone, in percent, as Markdown."""
    lines = []
    for backbone, (means, overall) in _PUBLISHED.items():
        lines.append([backbone, *("-" if mean is None else f"{mean:.1f}" for mean in (*means, overall))])
    return _markdown(["backbone", *_MEANS, "overall, FANoise"], lines)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
