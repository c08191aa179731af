"""The configuration of each arm, before anything runs: finds wrong options, and arms that are alike."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from fanoise_lightning.cli import FANoiseCLI
from fanoise_lightning.study.plan import Study

__all__ = ["fingerprints"]


def fingerprints(study: Study) -> dict[tuple[str, str], str]:
    """A fingerprint of the whole configuration of each (regime, arm), without the seed.

    Raises:
        ValueError: if ``fanoise fit`` does not accept the options of an arm; if an arm other than the
            baseline changes nothing; if two arms or two regimes are alike.
    """
    found: dict[tuple[str, str], str] = {}
    regimes: dict[str, str] = {}
    for regime, around in (study.regimes or {"": {}}).items():
        where = f" in regime {regime!r}" if regime else ""
        unchanged = _fingerprint(study.options(around), f"the study's config{where}")
        if (other := regimes.setdefault(unchanged, regime)) != regime:
            raise ValueError(f"the regimes {other!r} and {regime!r} are alike: every run would be done twice")
        seen: dict[str, str] = {}
        for arm, changes in study.arms.items():
            own = _fingerprint(study.options({**around, **changes}), f"arm {arm!r}{where}")
            if own == unchanged and arm != study.baseline:
                raise ValueError(f"arm {arm!r}{where} changes nothing: the config has these values already")
            if (other := seen.setdefault(own, arm)) != arm:
                raise ValueError(
                    f"the arms {other!r} and {arm!r} are alike{where}: they would be the same training"
                )
            found[regime, arm] = own
    return found


def _fingerprint(options: Sequence[str], owner: str) -> str:
    config = io.StringIO()
    try:
        with redirect_stdout(config), redirect_stderr(io.StringIO()):
            FANoiseCLI(["fit", *options, "--print_config"])
    except SystemExit as end:
        if end.code:
            raise ValueError(f"{owner}: {str(end).removeprefix('fanoise: ')}") from None
    return hashlib.sha256(config.getvalue().encode()).hexdigest()
