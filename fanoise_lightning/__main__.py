"""``python -m fanoise_lightning``, the ``fanoise`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """The ``fanoise`` command: Lightning's subcommands, and those that are not methods of a trainer.

    Args:
        args: the command line; by default ``sys.argv[1:]``.
    """
    given = sys.argv[1:] if args is None else list(args)
    command, rest = given[:1], given[1:]
    if command == ["data"]:
        from fanoise_lightning.data.sources import download

        download.main(rest)
    elif command == ["study"]:
        from fanoise_lightning.study.study_command import main as study

        study(rest)
    elif command == ["compare"]:
        from fanoise_lightning.study.compare_command import main as compare

        compare(rest)
    elif command == ["figures"]:
        from fanoise_lightning.study.figures_command import main as figures

        figures(rest)
    elif command == ["embed"]:
        from fanoise_lightning.search.embed_command import main as embed

        embed(rest)
    elif command == ["search"]:
        from fanoise_lightning.search.search_command import main as search

        search(rest)
    else:
        from fanoise_lightning.cli import FANoiseCLI

        FANoiseCLI(args=None if args is None else given)


if __name__ == "__main__":
    main()
