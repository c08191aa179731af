"""The figures of a study, from what its runs wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fanoise_lightning.figures.alpha_curves import alpha_curves
from fanoise_lightning.figures.law_bars import law_bars
from fanoise_lightning.study.comparison import check_alike, compare, mean_groups, mean_score
from fanoise_lightning.study.gallery import Gallery
from fanoise_lightning.study.noise_options import NoiseLines, noise_lines
from fanoise_lightning.study.records import Record, read_runs

__all__ = ["draw_study"]

_MEANS = ("IND", "OOD", "overall")


def draw_study(
    gallery: Gallery,
    folder: Path,
    baseline: str | None = None,
    alpha: float | None = None,
    any_version: bool = False,
) -> None:
    """Draw the figures that a study gives.

    Args:
        gallery: gets the figures.
        folder: of the study, or of one of its regimes.
        baseline: the arm that laws are compared with; by default the one without noise.
        alpha: at which laws are compared; by default the smallest of those that most laws have.
        any_version: accept runs of different versions of this package.

    Raises:
        FileNotFoundError: if the folder has no runs.
        ValueError: if a file is not what a run writes, or no run has scores.
    """
    records, failures = read_runs([folder])
    if not records:
        raise ValueError(f"no run in {folder} has scores: all of them failed")
    arms: dict[str, list[Record]] = {}
    for record in records:
        arms.setdefault(record.arm, []).append(record)
    lines = noise_lines(records)
    gallery.notes += [f"a run failed: {failure.folder}: {failure.error}" for failure in failures]
    gallery.notes += [f"not drawn: {reason}" for reason in lines.left_out]

    def curves() -> tuple[Figure, Any]:
        check_alike(records, any_version)
        return alpha_curves(_scores(lines, arms))

    def bars() -> tuple[Figure, Any]:
        return _bars(lines, folder, baseline, alpha, any_version)

    gallery.add("alpha_curves", curves)
    gallery.add("law_bars", bars)


def _scores(
    lines: NoiseLines, arms: Mapping[str, Sequence[Record]]
) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Mean to line to alpha to the score of each seed."""
    _check_noise(lines)
    groups = mean_groups(next(iter(arms.values()))[0])
    return {
        mean: {
            line: {
                alpha: [mean_score(record, groups[mean]) for record in arms[arm]]
                for alpha, arm in by_alpha.items()
            }
            for line, by_alpha in lines.lines.items()
        }
        for mean in _MEANS
        if mean in groups
    }


def _bars(
    lines: NoiseLines, folder: Path, baseline: str | None, alpha: float | None, any_version: bool
) -> tuple[Figure, Any]:
    _check_noise(lines)
    alpha = _common_alpha(lines) if alpha is None else alpha
    chosen = {line: by_alpha[alpha] for line, by_alpha in lines.lines.items() if alpha in by_alpha}
    if not chosen or alpha == 0:
        known = sorted({a for by_alpha in lines.lines.values() for a in by_alpha if a})
        choices = ", ".join(f"{a:g}" for a in known)
        raise ValueError(f"no arm has alpha {alpha:g}: choose one of {choices}")
    if baseline is None:
        clean = next((by_alpha[0.0] for by_alpha in lines.lines.values() if 0.0 in by_alpha), None)
        if clean is None:
            raise ValueError("no arm without noise is otherwise like the others: pass `--baseline`")
        baseline = clean
    comparison = compare([folder], baseline, common_seeds=True, any_version=any_version)
    last = ("IND", "OOD", "IND_shared", "OOD_shared", "overall")
    means = [*(mean for mean in comparison.scores if mean not in last), *last]
    means = [mean for mean in means if mean in comparison.scores]
    effects = {arm.arm: arm.means for arm in comparison.arms}
    differences = {
        line: {mean: (effects[arm][mean].difference, effects[arm][mean].seeds) for mean in means}
        for line, arm in chosen.items()
        if arm in effects
    }
    level = f"{100 * comparison.confidence:.3g} % for other seeds"
    return law_bars(differences, f"alpha {alpha:g} less {comparison.baseline!r}, {level}")


def _common_alpha(lines: NoiseLines) -> float:
    """The smallest of the alphas that most lines have."""
    alphas = sorted(alpha for by_alpha in lines.lines.values() for alpha in by_alpha if alpha)
    return max(dict.fromkeys(alphas), key=alphas.count)


def _check_noise(lines: NoiseLines) -> None:
    if not lines.lines:
        reasons = "; ".join(lines.left_out)
        raise ValueError(f"no arm has noise with a known alpha{': ' if reasons else ''}{reasons}")
