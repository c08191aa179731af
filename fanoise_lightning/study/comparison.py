"""Arms against a baseline, paired by seed and query."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from fanoise_lightning._checks import check_names
from fanoise_lightning.evaluation.scores import group_by_mean
from fanoise_lightning.study.effects import Effect, effect
from fanoise_lightning.study.records import Failure, Record, read_runs

__all__ = ["ArmEffects", "Comparison", "check_alike", "compare", "mean_groups", "mean_score"]

LEVEL = 0.05
Arms = dict[str, dict[int, Record]]  # by seed


@dataclass(frozen=True)
class ArmEffects:
    """An arm against the baseline.

    Args:
        arm: its name.
        seeds: what is paired.
        means: the effect on each meta-task, on IND and OOD, on the tasks that both share, and overall.
        subsets: the effect on each subset.
        p_value: of the mean that decides, corrected for the number of arms (Holm); ``None`` if unknown.
        skipped: how many pairs of outcomes were not compared, because one run skipped the query.
        alike: whether every outcome equals the baseline's.
    """

    arm: str
    seeds: tuple[int, ...]
    means: Mapping[str, Effect]
    subsets: Mapping[str, Effect]
    p_value: float | None
    skipped: int
    alike: bool


@dataclass(frozen=True)
class Comparison:
    """Arms against a baseline.

    Args:
        baseline: the arm that the others are compared with.
        by: the mean that decides, such as ``"overall"`` or ``"OOD_shared"``.
        confidence: of each interval, so that all of them hold together with 95 % (Bonferroni).
        scores: the baseline's score on each mean, over the seeds.
        arms: the others.
        failures: runs that failed, and are not part of it.
        selected_on: the seeds on which baseline and arm were chosen; empty if they were not.
    """

    baseline: str
    by: str
    confidence: float
    scores: Mapping[str, float]
    arms: Sequence[ArmEffects]
    failures: Sequence[Failure] = ()
    selected_on: tuple[int, ...] = ()


def compare(
    runs: Iterable[str | Path],
    baseline: str,
    *,
    by: str = "overall",
    select: Sequence[int] = (),
    confirm: Sequence[int] = (),
    common_seeds: bool = False,
    any_version: bool = False,
) -> Comparison:
    """Compare arms with a baseline, from what their runs wrote.

    Args:
        runs: folders of runs, or folders that contain them. An arm is the folder above its runs.
        baseline: the name of an arm, or a pattern such as ``"no noise*"``. Of several that match, the best
            one on the seeds of ``select`` counts.
        by: the mean that decides: ``"overall"``, ``"IND"``, ``"OOD"``, ``"IND_shared"``, ``"OOD_shared"``, or
            a meta-task.
        select: choose the best baseline and the best other arm on these seeds ...
        confirm: ... and compare only these two, on these other seeds.
        common_seeds: compare arms that lack some seeds on those that they have.
        any_version: compare runs of different versions of this package.

    Raises:
        FileNotFoundError: if there are no runs.
        ValueError: if no arm is the baseline, two runs are the same arm and seed, runs were evaluated on
            different data or made by different versions, seeds do not pair, or the seeds to select and to
            confirm overlap.

    Example:
        >>> compare(["runs"], baseline="no noise").arms[0].means["OOD"].difference    # doctest: +SKIP
        0.021
    """
    records, failures = read_runs(runs)
    arms = _by_arm(records)
    check_alike(records, any_version)
    groups = mean_groups(records[0], by) if records else {}
    bases, others = _split(arms, baseline)
    if select or confirm:
        bases, others = _select(arms, bases, others, groups[by], select, confirm)
    elif len(bases) > 1:
        raise ValueError(
            f"several arms match the baseline {baseline!r}: {', '.join(bases)}; pass `select` too"
        )
    base = arms[bases[0]]
    if confirm:
        base = _only(bases[0], base, confirm)
    confidence = 1 - LEVEL / max(len(others), 1)
    effects = []
    for name in others:
        arm = _only(name, arms[name], confirm) if confirm else arms[name]
        seeds = _paired(name, arm, bases[0], base, common_seeds)
        effects.append(_effects(name, [arm[s] for s in seeds], [base[s] for s in seeds], groups, confidence))
    scores = {
        mean: fmean(mean_score(record, subsets) for record in base.values())
        for mean, subsets in groups.items()
    }
    corrected = _corrected(effects, by)
    return Comparison(bases[0], by, confidence, scores, corrected, failures, tuple(select))


def _by_arm(records: Sequence[Record]) -> Arms:
    if not records:
        raise FileNotFoundError("no run has scores: all of them failed")
    arms: Arms = {}
    for record in records:
        known = arms.setdefault(record.arm, {}).setdefault(record.seed, record)
        if known is not record:
            raise ValueError(
                f"{known.folder} and {record.folder} are both arm {record.arm!r} with seed {record.seed}: "
                "give one of them"
            )
    return arms


def check_alike(records: Sequence[Record], any_version: bool) -> None:
    """Raise ValueError unless all runs were evaluated on the same data, by the same version."""
    first = records[0]
    for record in records[1:]:
        pair = f"{first.folder} and {record.folder}"
        if record.kinds.keys() != first.kinds.keys():
            differ = sorted(record.kinds.keys() ^ first.kinds.keys())
            raise ValueError(f"{pair} were evaluated on different subsets: {', '.join(differ)}")
        if record.data != first.data:
            raise ValueError(
                f"{pair} were evaluated on different data, though the subsets have the same names"
            )
        for name, outcomes in record.outcomes.items():
            if np.isnan(outcomes).all() != np.isnan(first.outcomes[name]).all():
                raise ValueError(f"{pair}: only one of them scored any query of subset {name!r}")
            if len(outcomes) != len(first.outcomes[name]):
                counts = f"{len(first.outcomes[name])} and {len(outcomes)}"
                raise ValueError(f"{pair} have {counts} queries in subset {name!r}")
        if record.version != first.version and not any_version:
            raise ValueError(
                f"{pair} were made by versions {first.version} and {record.version} of this package; pass "
                "`any_version` to compare them all the same"
            )


def mean_groups(record: Record, by: str = "overall") -> dict[str, list[str]]:
    """The subsets that each mean is over; ValueError if `by` is not one of the means."""
    scored = [kind for name, kind in record.kinds.items() if not np.isnan(record.outcomes[name]).all()]
    groups = {mean: [subset.name for subset in own] for mean, own in group_by_mean(scored).items()}
    check_names([by], groups, "mean")
    return groups


def _split(arms: Arms, baseline: str) -> tuple[list[str], list[str]]:
    bases = [name for name in arms if name == baseline] or [n for n in arms if fnmatchcase(n, baseline)]
    if not bases:
        near = difflib.get_close_matches(baseline, arms, n=1, cutoff=0.0)[0]
        known = ", ".join(map(repr, arms))
        raise ValueError(f"no arm matches the baseline {baseline!r}; did you mean {near!r}? Arms: {known}")
    others = [name for name in arms if name not in bases]
    if not others:
        raise ValueError(f"every arm matches the baseline {baseline!r}: there is nothing to compare it with")
    return bases, others


def _select(
    arms: Arms,
    bases: Sequence[str],
    others: Sequence[str],
    subsets: Sequence[str],
    select: Sequence[int],
    confirm: Sequence[int],
) -> tuple[list[str], list[str]]:
    """The best baseline and the best other arm on the seeds to select with."""
    if not (select and confirm):
        raise ValueError(
            "`select` and `confirm` go together: seeds to choose with, and others to confirm with"
        )
    if both := sorted(set(select) & set(confirm)):
        raise ValueError(
            f"the seeds {both} are both to select and to confirm: what was chosen on them is biased"
        )

    def score(name: str) -> float:
        return fmean(mean_score(record, subsets) for record in _only(name, arms[name], select).values())

    return [max(bases, key=score)], [max(others, key=score)]


def _only(name: str, arm: dict[int, Record], seeds: Sequence[int]) -> dict[int, Record]:
    if missing := sorted(set(seeds) - set(arm)):
        raise ValueError(f"arm {name!r} has no run with the seeds {missing}")
    return {seed: arm[seed] for seed in seeds}


def _paired(
    name: str, arm: dict[int, Record], base_name: str, base: dict[int, Record], common_seeds: bool
) -> list[int]:
    if arm.keys() != base.keys() and not common_seeds:
        raise ValueError(
            f"arm {name!r} has the seeds {sorted(arm)}, the baseline {base_name!r} {sorted(base)}: run what "
            "is missing, or pass `common_seeds`"
        )
    seeds = sorted(arm.keys() & base.keys())
    if not seeds:
        raise ValueError(f"arm {name!r} and the baseline {base_name!r} have no seed in common")
    return seeds


def mean_score(record: Record, subsets: Sequence[str]) -> float:
    """The unweighted mean over some subsets, a fraction."""
    return fmean(float(np.nanmean(record.outcomes[name])) for name in subsets)


def _effects(
    name: str,
    arm: Sequence[Record],
    base: Sequence[Record],
    groups: Mapping[str, Sequence[str]],
    confidence: float,
) -> ArmEffects:
    differences: dict[str, NDArray[np.float64]] = {}
    for subset in groups["overall"]:
        stacks = [np.stack([record.outcomes[subset] for record in runs]) for runs in (arm, base)]
        differences[subset] = stacks[0] - stacks[1]
        if np.isnan(differences[subset]).all(axis=1).any():
            raise ValueError(f"arm {name!r}: no query of subset {subset!r} was scored in both runs of a seed")
    means = {mean: effect({s: differences[s] for s in own}, confidence) for mean, own in groups.items()}
    subsets = {subset: effect({subset: differences[subset]}, confidence) for subset in differences}
    skipped = sum(int(np.isnan(d).sum()) for d in differences.values())
    alike = not any(np.nan_to_num(d).any() for d in differences.values())
    return ArmEffects(name, tuple(record.seed for record in arm), means, subsets, None, skipped, alike)


def _corrected(arms: Sequence[ArmEffects], by: str) -> list[ArmEffects]:
    known = [arm.means[by].p_value for arm in arms]
    tested = [p for p in known if p is not None]
    if not tested:
        return list(arms)
    corrected = iter(multipletests(tested, alpha=LEVEL, method="holm")[1])
    return [arm if p is None else replace(arm, p_value=float(next(corrected))) for arm, p in zip(arms, known)]
