"""``fanoise figures SOURCE --output DIR``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fanoise_lightning._checks import check_positive
from fanoise_lightning._user_errors import Parser
from fanoise_lightning.figures.spectra import noise_spectrum
from fanoise_lightning.figures.training_curves import training_curves
from fanoise_lightning.study.gallery import Gallery
from fanoise_lightning.study.records import SCORES

__all__ = ["draw", "main"]

SPECTRUM = "spectrum.json"


def main(args: Sequence[str]) -> None:
    """The ``fanoise figures`` command.

    Args:
        args: the command line after the command's name.

    Raises:
        ValueError: if the source gives none of the figures.
    """
    parser = Parser("fanoise figures", description="Draw the paper's figures from your runs.")
    parser.add_argument(
        "source", type=str, help="A study's folder, a run's, a spectrum.json or a checkpoint."
    )
    parser.add_argument("--output", type=str, required=True, help="A folder for PNG and figures.json.")
    parser.add_argument(
        "--config", type=str | None, default=None, help="Of a checkpoint: the data module, in YAML."
    )
    parser.add_argument(
        "--alpha", type=float | None, default=None, help="The noise level at which laws are compared."
    )
    parser.add_argument(
        "--baseline", type=str | None, default=None, help="Of a study: the arm to compare laws with."
    )
    parser.add_argument("--any_version", type=bool, default=False, help="Compare runs of any versions.")
    given = parser.parse_args(args)
    options = {name: getattr(given, name) for name in ("config", "alpha", "baseline", "any_version")}
    gallery = draw(Path(given.source).expanduser(), **options)
    folder = Path(given.output).expanduser()
    gallery.write(folder)
    for name in gallery.figures:
        print(f"{folder / f'{name}.png'}")
    for line in (*gallery.notes, *(f"no {name}: {why}" for name, why in gallery.missing.items())):
        print(line)
    if not gallery.figures:
        raise ValueError(f"{given.source} gives none of the figures")


def draw(
    source: Path,
    config: str | None = None,
    alpha: float | None = None,
    baseline: str | None = None,
    any_version: bool = False,
) -> Gallery:
    """Draw all figures that a source gives.

    Args:
        source: the folder of a study or a run, a ``spectrum.json``, or a checkpoint.
        config: of a checkpoint, the data module whose first training batch is embedded.
        alpha: the noise level at which laws are compared.
        baseline: of a study, the arm that laws are compared with.
        any_version: accept runs of different versions of this package.

    Raises:
        FileNotFoundError: if the source does not exist, or is a folder with neither runs nor spectra.
        ValueError: if a file is not what it should be; if a checkpoint comes without ``config``; if
            alpha is not positive.
    """
    gallery = Gallery()
    if alpha is not None:
        check_positive("alpha", alpha)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if source.is_dir():
        spectrum = source / SPECTRUM
        if any(file.parent != source for file in source.rglob(SCORES)):
            from fanoise_lightning.study.study_figures import draw_study  # needs scipy and statsmodels

            draw_study(gallery, source, baseline, alpha, any_version)
        elif spectrum.is_file():
            _draw_spectrum(gallery, spectrum)
        else:
            raise FileNotFoundError(f"{source} holds neither runs with {SCORES} nor a {SPECTRUM}")
    elif source.suffix == ".json":
        _draw_spectrum(gallery, source)
    elif config is None:
        raise ValueError(f"{source} is a checkpoint: pass `--config` too, for the data to embed")
    else:
        from fanoise_lightning.study.checkpoint_figures import draw_checkpoint  # imports encoders

        draw_checkpoint(gallery, source, Path(config).expanduser(), alpha)
    return gallery


def _draw_spectrum(gallery: Gallery, path: Path) -> None:
    try:
        records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["spectra"]
        for record in records:
            _ = record["step"], [spectrum["clean"] for spectrum in record["sides"].values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not what SpectrumMonitor writes: {error!r}") from error
    gallery.add("noise_spectrum", noise_spectrum, records)
    gallery.add("training_curves", training_curves, records)
