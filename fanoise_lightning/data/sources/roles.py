"""Which columns are the query, the target, the hard negatives, or the text, picture and id of an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fanoise_lightning._log import report
from fanoise_lightning.data.rows.columns import Kind
from fanoise_lightning.data.rows.records import PairColumns, Side
from fanoise_lightning.data.sources.negatives import NUMBERED
from fanoise_lightning.data.sources.source import Source

__all__ = ["ItemColumns", "choose_item", "choose_pair"]

Names = str | Sequence[str] | None

# the names of MMEB and of data sets for sentence-transformers
_QUERIES = ("qry", "query", "anchor", "question", "sentence1")
_TARGETS = (
    "pos",
    "positive",
    "positives",
    "target",
    "answer",
    "response",
    "document",
    "passage",
    "sentence2",
)
_NEGATIVES = ("neg", "negative", "negatives", "hard_negative", "hard_negatives")
_TEXTS = ("caption", "captions", "text", "title", "description", "prompt", "label")
_IDS = ("id", "_id", "key", "uid")
_ENDINGS = ("", "_text", "_image", "_image_path", "_img_path", "_path")


class ItemColumns(NamedTuple):
    """The columns of items."""

    item: Side
    id: str | None


def choose_pair(source: Source, query: Names, target: Names, negatives: Names) -> PairColumns:
    """The columns that were named, or else those that their names and kinds suggest, which is reported.

    Args:
        source: has the columns.
        query: a column of texts or of pictures, or one of each; ``None`` to guess both sides.
        target: the same.
        negatives: the same, of single values or lists; ``None`` for none, if the sides are given.

    Raises:
        ValueError: for columns that are missing or cannot be used, or if nothing can be guessed.
    """
    if (query is None) != (target is None):
        raise ValueError(f"`{source.name}`: pass `query` and `target` together, or neither")
    if query is not None:
        sides = [
            _side(source, name, names, lists=name == "negatives")
            for name, names in (("query", query), ("target", target), ("negatives", negatives))
        ]
        columns = PairColumns(*sides)
        if columns.query == columns.target:
            raise ValueError(f"`{source.name}`: `query` and `target` are the same column, {columns.query}")
        report(f"`{source.name}`: {_listed(columns)}")
        return columns
    guess = _guess_pair(source)
    if negatives is not None:
        guess = guess._replace(negatives=_side(source, "negatives", negatives, lists=True))
    report(
        f"`{source.name}`: {_listed(guess)}, by the names and contents of its columns"
        f"{_others(source, [name for side in guess for name in side])}; `query` and `target` choose others"
    )
    return guess


def _listed(columns: PairColumns) -> str:
    hard = f", negatives {columns.negatives}" if any(columns.negatives) else ""
    return f"query {columns.query}, target {columns.target}{hard}"


def choose_item(source: Source, text: str | None, image: str | None, id: str | None) -> ItemColumns:
    """The columns that were named, or else those that their names and kinds suggest, which is reported.

    Args:
        source: has the columns.
        text: the column of texts.
        image: the column of pictures. If neither is named, a column of pictures is taken, else one of texts.
        id: the column of ids.

    Raises:
        ValueError: for columns that are missing or cannot be used, or if nothing can be guessed.
    """
    if id is None:
        id = next((name for name in source.kinds if name.lower() in _IDS), None)
    elif id not in source.kinds:
        source.check([id])  # a number may be an id, which is neither text nor picture
    if text is not None or image is not None:
        source.check([name for name in (text, image) if name is not None])
        for argument, name, kind in (("text", text, "text"), ("image", image, "image")):
            if name is not None and source.kinds[name] != kind:
                found = _HOLDS[source.kinds[name]]
                raise ValueError(f"`{source.name}`: the column `{name}` of `{argument}` holds {found}")
        return ItemColumns(Side(text, image), id)
    texts, pictures = _usable(source.kinds)
    item = Side(image=pictures[0]) if len(pictures) == 1 else Side(text=_text_of(texts))
    if len(pictures) > 1 or not any(item):
        raise ValueError(f"{_unclear(source)}: pass `text`, `image` or both")
    report(
        f"`{source.name}`: items are {item}, ids {f'`{id}`' if id else 'the numbers of the rows'}"
        f"{_others(source, [*item, id])}; `text`, `image` and `id` choose others"
    )
    return ItemColumns(item, id)


_HOLDS: dict[Kind | None, str] = {
    "text": "texts",
    "image": "pictures",
    "texts": "lists of texts",
    "images": "lists of pictures",
}


def _side(source: Source, argument: str, names: Names, lists: bool) -> Side:
    names = [names] if isinstance(names, str) else list(names or ())
    source.check(names)
    side = Side()
    for name in names:
        kind = source.kinds[name]
        if kind in ("texts", "images") and not lists and len(names) > 1:
            raise ValueError(
                f"`{source.name}`: column `{name}` holds {_HOLDS[kind]}; a `{argument}` of a text and a "
                "picture has one of each: give each of a list a row"
            )
        role = "text" if kind in ("text", "texts") else "image"
        if (other := getattr(side, role)) is not None:
            raise ValueError(
                f"`{source.name}`: `{argument}` has two columns of {role}s, `{other}` and `{name}`; join "
                "them first"
            )
        side = side._replace(**{role: name})
    return side


def _usable(kinds: Mapping[str, Kind | None]) -> tuple[list[str], list[str]]:
    """The columns of single texts and of single pictures, without ids."""
    names = [name for name in kinds if name.lower() not in _IDS]
    return [name for name in names if kinds[name] == "text"], [
        name for name in names if kinds[name] == "image"
    ]


def _guess_pair(source: Source) -> PairColumns:
    kinds = source.kinds
    query, target = _named(kinds, _QUERIES), _named(kinds, _TARGETS, lists=True)
    if any(query) and any(target):
        return PairColumns(query, target, _named(kinds, _NEGATIVES, lists=True))
    texts, pictures = _usable(kinds)
    text = _text_of(texts or [name for name in kinds if kinds[name] == "texts"])
    if text is not None and len(pictures) == 1:
        return PairColumns(Side(text=text), Side(image=pictures[0]), Side())
    both = [name for name in kinds if name in (*texts, *pictures)]
    if len(both) == 2:
        sides = [Side(name) if name in texts else Side(None, name) for name in both]
        return PairColumns(sides[0], sides[1], Side())
    raise ValueError(f"{_unclear(source)}: pass `query` and `target`, each the name of a column")


def _named(kinds: Mapping[str, Kind | None], stems: Sequence[str], lists: bool = False) -> Side:
    """The text and the picture whose columns are named after the first of the `stems` that has any."""
    lower = {name.lower(): name for name in kinds}
    for stem in stems:
        names = [lower[stem + end] for end in _ENDINGS if stem + end in lower]
        allowed = {"text": ("text", "texts"), "image": ("image", "images")}
        found = {
            role: next((name for name in names if kinds[name] in those[: 2 if lists else 1]), None)
            for role, those in allowed.items()
        }
        if any(found.values()):
            return Side(**found)
    return Side()


def _text_of(texts: Sequence[str]) -> str | None:
    """The column of texts that is meant: by its name, or because it is the only one."""
    lower = {name.lower(): name for name in texts}
    named = next((lower[name] for name in _TEXTS if name in lower), None)
    return named or (texts[0] if len(texts) == 1 else None)


def _unclear(source: Source) -> str:
    columns = ", ".join(f"{name} ({_HOLDS.get(kind, 'neither')})" for name, kind in source.kinds.items())
    return f"`{source.name}`: its columns do not say what is what ({columns})"


def _others(source: Source, used: Sequence[str | None]) -> str:
    joined = any(name in used for name in _NEGATIVES)
    others = [name for name in source.kinds if name not in used and not (joined and NUMBERED.fullmatch(name))]
    return f" (not used: {', '.join(others)})" if others else ""
