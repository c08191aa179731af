"""What data and evaluation share about an evaluation subset: its name, kind, floors and task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fanoise_lightning._checks import check_choice

__all__ = ["DISTRIBUTIONS", "META_TASKS", "Subset", "check_meta_task", "check_subset_name"]

META_TASKS = ("classification", "vqa", "retrieval", "grounding")
DISTRIBUTIONS = ("IND", "OOD")


@dataclass(frozen=True)
class Subset:
    """What is known of an evaluation subset besides its rows.

    Args:
        name: the name of its file under ``eval/``.
        meta_task: ``"classification"``, ``"vqa"``, ``"retrieval"`` or ``"grounding"``.
        distribution: ``"IND"`` if the training pairs come from the same source, else ``"OOD"``.
        floors: the precision@1 (0 to 1) of models that understand nothing, by name, such as ``"chance"``.
        task: the name of what is asked, if one subset of each distribution asks it, such as ``"caption"``;
            ``None`` if there is no such pair of subsets.

    Raises:
        ValueError: if a field has any other value.

    Example:
        >>> Subset("SUN397", "classification", "IND", {"chance": 1 / 397}).meta_task
        'classification'
    """

    name: str
    meta_task: str
    distribution: str
    floors: Mapping[str, float] = field(default_factory=dict, hash=False)
    task: str | None = None

    def __post_init__(self) -> None:
        check_subset_name(self.name)
        check_meta_task(self.name, self.meta_task)
        check_choice("distribution", self.distribution, DISTRIBUTIONS, f"subset `{self.name}`: ")
        if not isinstance(self.floors, Mapping):
            raise ValueError(f"subset `{self.name}`: `floors` must map names to numbers, got {self.floors!r}")
        for key, value in self.floors.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"subset `{self.name}`: floor `{key}` must be in 0..1, got {value!r}")
        if self.task is not None and (not isinstance(self.task, str) or not self.task):
            raise ValueError(f"subset `{self.name}`: `task` must be a name or null, got {self.task!r}")


def check_subset_name(name: Any) -> None:
    """Raise ValueError if a subset cannot have this name."""
    if not isinstance(name, str) or not name or "/" in name or "\\" in name:
        raise ValueError(f"the `name` of a subset must be usable as a file name, got {name!r}")


def check_meta_task(name: str, meta_task: Any) -> None:
    """Raise ValueError if a subset cannot have this meta-task."""
    check_choice("meta_task", meta_task, META_TASKS, f"subset `{name}`: ")
