"""The HTML page of a search: one file, no script, nothing from elsewhere.

Captions, ids and queries are data of others: `_escaped` is the only way of a text into the page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from fanoise_lightning.search.answers import Answer, Hit, Right, metrics, worst_first
from fanoise_lightning.search.pictures import Pictures, data_uri
from fanoise_lightning.search.queries import Query

__all__ = ["MOST_QUERIES", "Side", "search_page"]

MOST_QUERIES = 100  # on a page: a browser shows it at once, and it can be mailed
_MOST_MISSING = 20  # pictures that are listed
_LONGEST = 300  # characters of a text

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1 dir="auto">{title}</h1>
{head}</header>
<main>
{body}</main>
<footer>Written by fanoise search. Scores are cosines.</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Side:
    """The answers of one folder.

    Args:
        name: what the page calls it.
        about: the folder, in a line.
        answers: to each query.
        pictures: opens the folder's.
    """

    name: str
    about: str
    answers: Sequence[Answer]
    pictures: Pictures


def search_page(queries: Sequence[Query], after: Side, before: Side | None = None) -> str:
    """A page that shows what was found; the worst answered query first, where right answers are known.

    Args:
        queries: what was searched for.
        after: the answers.
        before: the answers of another folder, to compare with.

    Returns:
        HTML.
    """
    sides = [after] if before is None else [before, after]
    order = worst_first(after.answers, None if before is None else before.answers)[:MOST_QUERIES]
    sections = [_section(queries[number], number, sides, len(queries) > 1) for number in order]
    if len(queries) == 1:
        title = queries[0].text.strip() or "Search by a picture"
    else:
        title = f"{len(queries):,} queries" + (f", {before.name} and {after.name}" if before else "")
    head = [f'<p class="about">{_escaped(_about(side, len(sides)))}</p>' for side in sides]
    if any(answer.right for answer in after.answers):
        head.append(_summary(sides))
    if len(order) < len(queries):
        known = any(answer.right for answer in after.answers)
        head.append(_note(f"The {'worst' if known else 'first'} {len(order)} of {len(queries):,} queries."))
    missing = {path: why for side in sides for path, why in side.pictures.missing.items()}
    if missing:
        head.append(_missing(missing))
    return _PAGE.format(
        title=_escaped(title), style=_style(), head="\n".join(head) + "\n", body="\n".join(sections) + "\n"
    )


def _about(side: Side, sides: int) -> str:
    return side.about if sides == 1 else f"{side.name}: {side.about}"


def _summary(sides: Sequence[Side]) -> str:
    """The table of metrics; with two sides, also how they differ."""
    known = sum(bool(answer.right) for answer in sides[-1].answers)
    tables = [metrics(side.answers) for side in sides]
    head = "".join(f'<th scope="col">{_escaped(side.name)}</th>' for side in sides)
    rows = []
    for name in tables[-1]:
        is_rank = name == "median rank"
        cells = [f"{table[name]:,.1f}" if is_rank else f"{100 * table[name]:.1f} %" for table in tables]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        if len(sides) == 2:
            change = tables[1][name] - tables[0][name]
            shown = f"{change:+,.1f}" if is_rank else f"{100 * change:+.1f}"
            row += f"<td{_judged(-change if is_rank else change)}>{shown}</td>"
        rows.append(f'<tr><th scope="row">{name}</th>{row}</tr>')
    caption = f"{known:,} queries with a known right answer"
    if len(sides) == 2:
        head += '<th scope="col">change</th>'
        pairs = [(a.rank, b.rank) for a, b in zip(sides[0].answers, sides[1].answers) if a.rank and b.rank]
        up, down = sum(b < a for a, b in pairs), sum(b > a for a, b in pairs)
        caption += f": {up:,} better, {down:,} worse, {len(pairs) - up - down:,} alike"
    return (
        f'<table><caption>{caption}</caption><thead><tr><th scope="col">metric</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _section(query: Query, number: int, sides: Sequence[Side], titled: bool) -> str:
    columns = []
    for side in sides:
        heading = f"<h3>{_escaped(side.name)}</h3>" if len(sides) > 1 else ""
        columns.append(f"<div>{heading}{_list(side.answers[number], side.pictures)}</div>")
    kind = "sides two" if len(sides) > 1 else "sides"
    asked = _asked(query, [side.answers[number] for side in sides], titled)
    return f'<section class="query">{asked}<div class="{kind}">{"".join(columns)}</div></section>'


def _asked(query: Query, answers: Sequence[Answer], titled: bool) -> str:
    """The query itself, and where its right answer is."""
    picture = ""
    if query.image is not None:
        image = query.sample().images[0]
        picture = f'<img src="{data_uri(image, 128)}" alt="the picture searched with" decoding="async">'
    text = f'<h2 dir="auto">{_escaped(query.text.strip() or "(a picture)")}</h2>' if titled else ""
    ranks = [answer.rank for answer in answers]
    place = ""
    if ranks[-1] is not None:
        change = (ranks[0] or 0) - ranks[-1]
        shown = " → ".join(_place(rank) for rank in ranks if rank is not None)
        place = f"<p>right answer at rank <span{_judged(change)}>{shown}</span></p>"
    return f'<div class="asked">{picture}<div>{text}{place}</div></div>' if picture or text or place else ""


def _list(answer: Answer, pictures: Pictures) -> str:
    """The hits, and behind them the first right row if none of them is right."""
    items = [_item(hit, pictures, "right" if hit.right else "") for hit in answer.hits]
    if answer.right and not any(hit.right for hit in answer.hits):
        items.append(_item(answer.right[0], pictures, "right apart"))
    return f"<ol>{''.join(items)}</ol>" if items else '<p class="about">The catalogue is empty.</p>'


def _place(rank: float) -> str:
    """A place; with ties, a mean of several."""
    return f"{rank:,.1f}".removesuffix(".0")


def _item(hit: Hit | Right, pictures: Pictures, kind: str) -> str:
    row, mark = hit.row, " ✓ right" if kind else ""
    text = _escaped(row.text)
    if not row.image:
        tile = f'<div class="tile words"><span dir="auto">{text}</span></div>'
    elif uri := pictures.thumbnail(row.image):
        alt = text or f"picture {_escaped(row.id)}"
        tile = f'<div class="tile"><img src="{uri}" alt="{alt}" loading="lazy" decoding="async"></div>'
    else:
        tile = '<div class="tile missing"><span>picture missing</span></div>'
    words = f'<span class="text" dir="auto">{text}</span>' if row.image and row.text else ""
    return (
        f'<li class="{kind}"><figure>{tile}<figcaption><span class="place"><b>{_place(hit.rank)}{mark}</b>'
        f'<span>{hit.score:.3f}</span></span>{words}<span class="id">{_escaped(row.id)}</span>'
        "</figcaption></figure></li>"
    )


def _missing(missing: dict[str, str]) -> str:
    lines = [f"<li>{_escaped(path)}: {_escaped(why)}</li>" for path, why in missing.items()][:_MOST_MISSING]
    if len(missing) > len(lines):
        lines.append(f"<li>and {len(missing) - len(lines):,} more</li>")
    many = "1 picture" if len(missing) == 1 else f"{len(missing):,} pictures"
    listed = f"<summary>{many} could not be read</summary><ul>{''.join(lines)}</ul>"
    return f'<details class="note">{listed}</details>'


def _note(text: str) -> str:
    return f'<p class="note">{_escaped(text)}</p>'


def _judged(change: float) -> str:
    return "" if not change else f' class="{"better" if change > 0 else "worse"}"'


def _escaped(text: str) -> str:
    """A text of others, as text: cut, without characters that HTML or UTF-8 does not have."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return html.escape(
        re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
    )


def _style() -> str:
    return files("fanoise_lightning.search").joinpath("page.css").read_text(encoding="utf-8")
