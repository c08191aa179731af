"""``fanoise compare RUNS... --baseline ARM``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fanoise_lightning._log import report
from fanoise_lightning._user_errors import Parser
from fanoise_lightning.callbacks._files import whole_file, write_json
from fanoise_lightning.figures.forest import draw_forest
from fanoise_lightning.study.comparison import compare
from fanoise_lightning.study.plan import parse_seeds
from fanoise_lightning.study.report import as_dict, forest_rows, markdown, notes, table

__all__ = ["main"]


def main(args: Sequence[str]) -> None:
    """The ``fanoise compare`` command.

    Args:
        args: the command line after the command's name.

    Raises:
        ValueError: if the runs cannot be compared.
        FileNotFoundError: if there are none.
    """
    parser = Parser("fanoise compare", description="Compare arms with a baseline, paired by seed.")
    parser.add_argument("runs", type=str, nargs="+", help="Folders of runs, or folders that contain them.")
    parser.add_argument("--baseline", type=str, required=True, help="An arm, or a pattern such as 'none*'.")
    parser.add_argument(
        "--by", type=str, default="overall", help="The mean that decides: overall, IND, OOD ..."
    )
    parser.add_argument("--select", type=str | None, default=None, help="Seeds to choose with, such as 0-3.")
    parser.add_argument("--confirm", type=str | None, default=None, help="Seeds to confirm with: 4-11.")
    parser.add_argument("--common_seeds", type=bool, default=False, help="Compare on the seeds in common.")
    parser.add_argument("--any_version", type=bool, default=False, help="Compare runs of any versions.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="A folder for Markdown, JSON, figure."
    )
    given = parser.parse_args(args)
    comparison = compare(
        given.runs,
        given.baseline,
        by=given.by,
        select=parse_seeds(given.select) if given.select else (),
        confirm=parse_seeds(given.confirm) if given.confirm else (),
        common_seeds=given.common_seeds,
        any_version=given.any_version,
    )
    console = Console()
    console.print(table(comparison), *notes(comparison), sep="\n")
    if given.output is not None:
        folder = Path(given.output).expanduser()
        write_json(folder / "comparison.json", as_dict(comparison), indent=1)
        with whole_file(folder / "comparison.md") as file:
            file.write_text(markdown(comparison), encoding="utf-8")
        figure, _ = draw_forest(forest_rows(comparison), f"{comparison.by}, against {comparison.baseline!r}")
        with whole_file(folder / "comparison.png") as file:
            figure.savefig(file, format="png", dpi=150)
        report(f"wrote to {folder}: comparison.json, comparison.md, comparison.png")
