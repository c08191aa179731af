"""``python -m fanoise_lightning``, the ``fanoise`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from fanoise_lightning._log import stay_unconfigured
from fanoise_lightning._user_errors import DEBUG, debugging, is_users, leave, one_line
from fanoise_lightning._version import __version__

__all__ = ["COMMANDS", "main"]

_TRAINER = "fanoise_lightning.cli"

COMMANDS = {
    "fit": (_TRAINER, "train an encoder, with FANoise"),
    "validate": (_TRAINER, "score an encoder on the validation data"),
    "test": (_TRAINER, "score an encoder on the test data"),
    "predict": (_TRAINER, "embed the evaluation data"),
    "embed": ("fanoise_lightning.search.embed_command", "embed a catalogue into a folder, for search"),
    "search": ("fanoise_lightning.search.search_command", "search an embedded catalogue"),
    "export": ("fanoise_lightning.export.export_command", "write a folder that other libraries read"),
    "data": ("fanoise_lightning.data.sources.download", "download MMEB and check it"),
    "study": ("fanoise_lightning.study.study_command", "run every arm of a study under every seed"),
    "compare": ("fanoise_lightning.study.compare_command", "compare runs, paired by seed and query"),
    "figures": ("fanoise_lightning.study.figures_command", "draw the figures of a study, run or checkpoint"),
}
"""The module of each subcommand, whose ``main`` takes the arguments after its name, and what it does."""


def main(args: Sequence[str] | None = None) -> None:
    """The ``fanoise`` command.

    What a user can put right is one line on stderr and exit code 2; with ``--debug`` or ``FANOISE_DEBUG=1``
    it is a traceback, as bugs are always.

    Args:
        args: the command line; by default ``sys.argv[1:]``.

    Raises:
        SystemExit: with code 2 for an error of the user's, with the line as its text; with 130 after Ctrl-C.
    """
    if args is None and "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ[DEBUG] = "1"  # for the processes that Lightning starts, too
    if os.getcwd() not in sys.path:  # last, so that no file there hides a package
        sys.path.append(os.getcwd())
    given = sys.argv[1:] if args is None else list(args)
    stay_unconfigured()
    try:
        _dispatch(given)
    except KeyboardInterrupt:
        if debugging():
            raise
        print("fanoise: interrupted", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as of a shell
    except Exception as error:
        if debugging() or not is_users(error):
            raise
        leave(one_line(error))


def _dispatch(given: list[str]) -> None:
    command, *rest = given or ["--help"]
    if command in ("-h", "--help"):
        print(_help())
    elif command == "--version":
        print(f"fanoise {__version__}")
    elif command in COMMANDS or command.startswith("-"):  # the trainer's options may come first
        module = COMMANDS.get(command, (_TRAINER, ""))[0]
        import_module(module).main(given if module == _TRAINER else rest)
    else:
        near = get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        leave(f"unknown command `{command}`; {hint}`fanoise --help` lists the commands")


def _help() -> str:
    lines = [f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fanoise COMMAND [options]",
            "",
            "Train and evaluate embedding models with FANoise.",
            "",
            "commands (`fanoise COMMAND --help` for more):",
            *lines,
            "",
            "options:",
            "  --version  print the version",
            "  --debug    show the traceback of an error (or set FANOISE_DEBUG=1)",
            "",
            "`fanoise fit --data PairDataModule --data.source FILE --print_config` prints a recipe",
            "for your data; without `--data`, that of the embedded benchmark.",
        ]
    )


if __name__ == "__main__":
    main()
