"""Pack the results of finished runs into one small archive.

    python examples/studies/pack.py RUNS... --output heads.tar.xz

The archive holds ``[regime/]arm/seed-N`` for every finished run in the folders, and the same runs give the
same bytes. Spectra, which are most of its size, are kept for the first seed of each arm. Absolute paths are
cut down to their last part.
"""

from __future__ import annotations

import argparse
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath

FILES = ("config.yaml", "finished.json", "outcomes.json", "run.json", "scores.json")
SPECTRUM = "spectrum.json"

_FOLDERS = re.compile(rb"(?<=[=\s\"'])/(?:[^/\n\"']+/)+")  # of an absolute path


def pack(runs: Iterable[Path], output: Path, spectra: int = 1) -> list[str]:
    """Write the archive.

    Args:
        runs: folders of a study, or of some of its runs.
        output: the archive, ``.tar.xz``.
        spectra: of how many seeds of each arm the spectra are kept.

    Returns:
        The names of the runs in it, sorted.

    Raises:
        ValueError: if there is no finished run, two runs are the same arm and seed, or a file is missing.
    """
    found: dict[PurePosixPath, Path] = {}
    for folder in sorted({path.parent.resolve() for top in runs for path in top.rglob("finished.json")}):
        plan = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        name = PurePosixPath(plan["regime"], plan["arm"], f"seed-{plan['seed']}")
        if (other := found.setdefault(name, folder)) != folder:
            raise ValueError(f"{other} and {folder} are both {str(name)!r}: give one of them")
    if not found:
        raise ValueError("there is no finished run: a run that came to its end has a finished.json")
    with tarfile.open(output, "w:xz", preset=9) as archive:
        for name in sorted(found):
            for file in _files(name, found, spectra):
                member = tarfile.TarInfo(str(name / file.name))  # of no user, at no time
                content = _read(file)
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    return [str(name) for name in sorted(found)]


def _files(name: PurePosixPath, found: dict[PurePosixPath, Path], spectra: int) -> Iterator[Path]:
    folder = found[name]
    yield from (folder / file for file in FILES)
    seeds = sorted((other for other in found if other.parent == name.parent), key=_seed)
    if name in seeds[:spectra] and (folder / SPECTRUM).exists():
        yield folder / SPECTRUM


def _seed(name: PurePosixPath) -> int:
    return int(name.name.removeprefix("seed-"))


def _read(file: Path) -> bytes:
    if not file.exists():
        raise ValueError(f"{file} is missing: train the run again, or leave it out")
    content = file.read_bytes()
    return _FOLDERS.sub(b"", content) if file.name in ("config.yaml", "run.json") else content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of a study, or of some of its runs")
    parser.add_argument("--output", type=Path, required=True, help="the archive, .tar.xz")
    parser.add_argument("--spectra", type=int, default=1, help="seeds of each arm whose spectra are kept")
    given = parser.parse_args()
    try:
        runs = pack(given.runs, given.output, given.spectra)
    except ValueError as error:
        raise SystemExit(f"pack: {error}") from error
    print(f"{given.output}: {len(runs)} runs, {given.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
