"""Errors as people read them: one line for what a user can put right, a traceback for a bug."""

from __future__ import annotations

import dis
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

__all__ = ["DEBUG", "OneLineErrors", "Parser", "UserExit", "debugging", "is_users", "leave", "one_line"]

DEBUG = "FANOISE_DEBUG"

_PACKAGE = __name__.partition(".")[0]
_FOLDER = str(Path(__file__).parent)
_KINDS = (ValueError, TypeError, OSError, ImportError, RuntimeError)

# what torch makes of the error of a worker: the traceback as text, and the message after its last line
_WORKER = re.compile(
    r'^Caught \w+ in .*process .*File "([^"]+)", line \d+, in [^\n]+\n +(\w+).*?\n(?=\w)', re.S
)

_NO_ARGUMENT = re.compile(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted")
_NO_OPTION = re.compile(r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)")


class UserExit(SystemExit):
    """The end of a command with exit code 2; its text is the line that was printed."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 2


def debugging() -> bool:
    """Whether the user wants the traceback of every error: ``--debug``, or ``FANOISE_DEBUG=1``."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def leave(message: str) -> NoReturn:
    """Print ``fanoise: <message>`` to stderr, and end the command with exit code 2."""
    line = f"fanoise: {' '.join(message.split())}"
    print(line, file=sys.stderr)
    raise UserExit(line)


def is_users(error: BaseException) -> bool:
    """Whether an error is one that a user can put right, and not a bug.

    It is if a ``raise`` of this package said so, if the operating system refused something, or if Lightning
    found the trainer's options to contradict each other.
    """
    if type(error).__name__ == "MisconfigurationException" or isinstance(error, OSError):
        return True
    if not isinstance(error, _KINDS) or isinstance(error, NotImplementedError):
        return False
    if worker := _WORKER.match(str(error)):
        return worker[1].startswith(_FOLDER) and worker[2] == "raise"
    return _was_raised_here(error.__traceback__)


def _was_raised_here(traceback: TracebackType | None) -> bool:
    """Whether a traceback ends at a ``raise`` of this package; `int("a")` of its own is a bug."""
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    own = str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE or (
        frame.f_code.co_filename.startswith(_FOLDER)  # `python -m`
    )
    return own and frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def one_line(error: BaseException) -> str:
    """The message of an error, without line breaks and without the traceback of a worker.

    Example:
        >>> one_line(FileNotFoundError(2, "No such file or directory", "pairs.csv"))
        'pairs.csv: No such file or directory'
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if worker := _WORKER.match(text):
        text = text[worker.end() :].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


class OneLineErrors:
    """Lets a parser of jsonargparse end in one line instead of its usage; list it before the parser."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong with the command line, with the nearest option, and exit with code 2."""
        if not self.exit_on_error:  # type: ignore[attr-defined]
            super().error(message, ex)  # type: ignore[misc]
        if debugging():
            raise ValueError(message) from ex
        prog = self.prog.replace(" [options]", "")  # type: ignore[attr-defined]
        prog = "fanoise fit" if prog == "fanoise" else prog
        leave(_explain(message, sorted(_options(self)), prog))


class Parser(OneLineErrors, ArgumentParser):
    """jsonargparse's parser, with one-line errors."""


def _options(parser: Any) -> set[str]:
    """The options of a parser and of its subcommands, without dashes."""
    found: set[str] = set()
    for action in parser._actions:
        found.update(option.removeprefix("--") for option in action.option_strings if option[:2] == "--")
        if isinstance(action.choices, dict):
            found = found.union(*map(_options, action.choices.values()))
    return found


def _explain(message: str, options: list[str], prog: str) -> str:
    """What jsonargparse says, without the alternatives that nobody meant."""
    if found := _NO_ARGUMENT.search(message):
        path, name = found[1], found[2]
        return f"{path} has no argument `{name}`{_nearest(name, _arguments(path))}"
    if found := _NO_OPTION.search(message):
        shown = message if message.startswith("unrecognized") else f"unrecognized arguments: {found[1]}"
        near = _nearest(found[1], options, "--")
        return f"{shown}{near} (`{prog} --help` lists the options)"
    reasons = re.findall(r"^ *- (.+(?:\n {8,}.+)?)", message, re.MULTILINE)
    reasons = [reason for reason in reasons if "NoneType" not in reason and not reason.startswith("Does not")]
    key = re.match(r'Parser key "([^"]+)":', message)
    if not reasons or key is None:
        return message
    given = re.search(r"Given value: (.*)", message)
    got = f"; got {given[1]}" if given else ""
    return f"`{key[1]}`: {', or '.join(dict.fromkeys(reasons))}{got}"


def _arguments(path: str) -> list[str]:
    """The arguments of a class that jsonargparse has imported."""
    import inspect

    module, _, name = path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(cls).parameters) if isinstance(cls, type) else []


def _nearest(name: str, known: list[str], dashes: str = "") -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean `{dashes}{near[0]}`?" if near else ""
