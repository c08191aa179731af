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

from fanoise_lightning._names import HOME

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
_NO_CLASS = re.compile(r"dot import path string: (.+)|class_path '(.+)':\s+(?:No module|module '.*' has)")
_BASES = {"lightning.LightningDataModule": "PairDataModule", "fanoise_lightning.Encoder": "OpenClipEncoder"}
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "`true` or `false`",
    "str": "a text",
    "list": "a list such as `[a, b]`",
    "collections.abc.Sequence": "a list such as `[a, b]`",
    "tuple": "a list such as `[1, 2]`",
    "dict": "a dict such as `{a: 1}`",
}
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
    """What jsonargparse says, in the words of the command line and without what nobody meant."""
    keys, said = _innermost(message)
    option = f"`--{'.'.join(keys)}`"
    path = (re.findall(r"class_path '([\w.]+)'", message) or [""])[-1]
    if found := re.search(r"arguments are required: (.+)", said):
        names = found[1].split(", ")
        if not keys:
            needed = [f"`--{name}`" if name in options else f"`{name}`" for name in names]
            return f"{', '.join(needed)} missing (`{prog} --help` lists the options)"
        needed = [f"`--{'.'.join([*keys, name])}`" for name in names]
        return f"{path.rpartition('.')[2]} needs {' and '.join(needed)}"
    if found := _NO_ARGUMENT.search(message):
        if found[1] in _BASES:
            return f"name the {keys[-1].rpartition('.')[2]} first: {option[:-1]} {_BASES[found[1]]}`"
        return f"{found[1]} has no argument `{found[2]}`{_nearest(found[2], _arguments(found[1]))}"
    if found := _NO_OPTION.search(message):
        shown = message if message.startswith("unrecognized") else f"unrecognized arguments: {found[1]}"
        near = _nearest(found[1], options, "--")
        return f"{shown}{near} (`{prog} --help` lists the options)"
    given = re.search(r"(?:Got|Given) value: (.*)", said)
    got = f", got {given[1]}" if given else ""
    is_class = "Expected a path but" in said  # or the path of a config of one
    if not is_class and (expected := _expected(said)):
        return f"{option} must be {expected}{got}"
    if found := re.search(_NO_CLASS, said):
        name = found[1] or found[2]
        return f"{option}: there is no class `{name}`{_nearest(name.rpartition('.')[2], _classes())}"
    return f"{option}: {said.strip()}" if keys else message


def _innermost(message: str) -> tuple[list[str], str]:
    """The keys that lead to what is wrong, and what is said of the last of them."""
    keys = list(re.finditer(r'^( *)(?:- )?Parser key "([^"]+)":', message, re.MULTILINE))
    if not keys:
        return [], message
    deeper = rf"\n(?! {{{len(keys[-1][1]) + 1},}}|$)"  # the first line that is indented no more than the key
    said = re.split(deeper, message[keys[-1].end() :].replace("\n\n", "\n"))[0]
    return [key[2] for key in keys], said


def _expected(said: str) -> str:
    """The plain values that an option takes; of classes and None nothing."""
    kinds = re.findall(r"Expected a <class '([\w.]+)'>", said)
    literals = re.findall(r"typing\.Literal\[(.*?)\]", said)
    words = [f"`{value}`" for group in literals for value in re.findall(r"'([^']*)'", group)]
    words = list(dict.fromkeys(words))
    words += [word for kind, word in _WORDS.items() if kind in kinds]
    if "float" in kinds and "int" in kinds:
        words.remove(_WORDS["int"])
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _classes() -> list[str]:
    """The names of classes that an option may mean: this package's, and Lightning's callbacks and loggers."""
    foreign = (sys.modules.get(f"lightning.pytorch.{name}") for name in ("callbacks", "loggers"))
    return [
        name for name in (*HOME, *(name for m in foreign if m for name in m.__all__)) if name[0].isupper()
    ]


def _arguments(path: str) -> list[str]:
    """The arguments of a class that jsonargparse has imported."""
    import inspect

    module, _, name = path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(cls).parameters) if isinstance(cls, type) else []


def _nearest(name: str, known: list[str], dashes: str = "") -> str:
    near = get_close_matches(name.lower(), [other.lower() for other in known], n=1, cutoff=0.7)
    found = next((other for other in known if [other.lower()] == near), None)
    return f"; did you mean `{dashes}{found}`?" if found else ""
