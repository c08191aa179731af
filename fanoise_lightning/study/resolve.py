"""The configuration of each arm, before anything runs: finds wrong options, and arms that are alike."""

from __future__ import annotations

import difflib
import hashlib
import io
import re
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
    config, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(config), redirect_stderr(errors):
            FANoiseCLI(["fit", *options, "--print_config"])
    except SystemExit as end:
        if end.code:
            raise ValueError(f"{owner}: {_reason(errors.getvalue())}") from None
    return hashlib.sha256(config.getvalue().encode()).hexdigest()


def _reason(printed: str) -> str:
    """What the parser printed, without its usage, and the option that is nearest to an unknown one."""
    usage, found, reason = printed.partition("error: ")
    if not found:
        return printed.strip()
    known = re.findall(r"\[--([\w.]+)", usage)
    unknown = re.findall(r"--([\w.]+)", reason) if reason.startswith("unrecognized") else []
    near = [match for name in unknown[:1] for match in difflib.get_close_matches(name, known, n=1)]
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"{reason.strip()}{hint} (`fanoise fit --help` lists the options)"
