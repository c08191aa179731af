"""Rows with MMEB's columns, and how their queries and candidates are drawn."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

Side = tuple[str, str]  # text, path of the image ("" for none)
TrainRow = dict[str, str]
EvalRow = dict[str, str | list[str]]
T = TypeVar("T")

IMAGE = "<|image_1|>"
REPRESENT = f"{IMAGE} Represent the given image."
CROP = f"{IMAGE} Represent the given cropped image of the object."


def question(text: str) -> str:
    """The query text of all VQA subsets."""
    return f"{IMAGE} Represent the given image with the following question: {text}"


def train_row(query: Side, target: Side, negative: Side | None = None) -> TrainRow:
    """A pair, with a hard negative where the task has one."""
    row = {"qry": query[0], "qry_image_path": query[1], "pos_text": target[0], "pos_image_path": target[1]}
    if negative is not None:
        row |= {"neg_text": negative[0], "neg_image_path": negative[1]}
    return row


def eval_row(query: Side, truth: Side, others: Iterable[Side]) -> EvalRow:
    """A query and its candidates, the ground truth at index 0.

    Raises:
        ValueError: a candidate occurs twice, so that the truth would not be the only right answer.
    """
    candidates = [truth, *others]
    if len(set(candidates)) < len(candidates):
        raise ValueError(f"query {query}: a candidate occurs twice in {candidates}")
    texts, paths = [text for text, _ in candidates], [path for _, path in candidates]
    return {"qry_text": query[0], "qry_img_path": query[1], "tgt_text": texts, "tgt_img_path": paths}


def choice_rows(queries: Iterable[tuple[Side, str]], answers: Iterable[str]) -> list[EvalRow]:
    """Queries that all choose among the same answers."""
    ordered = sorted(set(answers))
    return [
        eval_row(query, (answer, ""), [(other, "") for other in ordered if other != answer])
        for query, answer in queries
    ]


def balanced(items: Sequence[T], key: Callable[[T], Hashable], count: int, random: random.Random) -> list[T]:
    """Up to ``count`` items, the keys as evenly as they go, so that no answer is right much more often."""
    piles: dict[Hashable, list[T]] = defaultdict(list)
    for item in random.sample(items, len(items)):
        piles[key(item)].append(item)
    chosen: list[T] = []
    while len(chosen) < count and any(piles.values()):
        for pile in piles.values():
            if pile and len(chosen) < count:
                chosen.append(pile.pop())
    return chosen
