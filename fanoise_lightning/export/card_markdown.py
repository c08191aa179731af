"""Markdown that data cannot break: names come from files that others wrote."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

__all__ = ["bullets", "escape", "table"]

# a backslash before punctuation is that character itself, everywhere but in code; `html.escape` does the rest
_MARKUP = re.compile(r"[!#$*\[\\\]^_`{|}~]|(?<=\w):(?=//)|(?<=\bwww)\.|^[-+=](?=\s|$|[-=])|^\d+[.)](?=\s)")


def escape(text: object) -> str:
    r"""A text as Markdown shows it: no markup, no HTML, no link, on one line.

    Example:
        >>> escape("VisualNews_t2i <b>"), escape("a | b")
        ('VisualNews\\_t2i &lt;b&gt;', 'a \\| b')
    """
    line = "".join(char if char.isprintable() else " " for char in str(text))
    line = html.escape(" ".join(line.split()), quote=False)
    return _MARKUP.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def bullets(items: Iterable[str]) -> str:
    """A list of Markdown texts."""
    return "\n".join(f"- {item}" for item in items)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """A table, whose cells are escaped.

    Args:
        header: a name for each column.
        rows: as many cells each.
        align: ``l`` or ``r`` for each column; by default all are left.
    """
    marks = ["---:" if side == "r" else "---" for side in align or "l" * len(header)]
    lines = [map(escape, header), marks, *(map(escape, row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
