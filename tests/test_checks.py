"""The rules for arguments that the whole library shares."""

from __future__ import annotations

import math
import re
from typing import Literal

import pytest

from fanoise_lightning._checks import check_at_least, check_choice, check_names, check_positive


@pytest.mark.parametrize("choices", [Literal["a", "b"], ("a", "b")])
def test_a_choice_is_one_of_a_literal_or_a_sequence(choices: object) -> None:
    check_choice("law", "b", choices)
    message = "config.json: `law` must be one of 'a', 'b', got 'c'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_choice("law", "c", choices, "config.json: ")


@pytest.mark.parametrize("value", [1, 1.0, 7])
def test_a_number_from_the_least_up_passes(value: float) -> None:
    check_at_least("steps", value, 1)


@pytest.mark.parametrize("value", [0, -3, 0.99, math.nan])
def test_a_number_below_the_least_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"^subset `a`: `steps` must be at least 1, got {value}$"):
        check_at_least("steps", value, 1, "subset `a`: ")


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_a_positive_number_is_finite(value: float) -> None:
    check_positive("temperature", 1e-9)
    with pytest.raises(ValueError, match=f"^`temperature` must be positive and finite, got {value}$"):
        check_positive("temperature", value)


def test_names_come_back_as_a_list_in_their_own_order() -> None:
    assert check_names(iter(("b", "a")), {"a": 1, "b": 2, "c": 3}, "subset") == ["b", "a"]


@pytest.mark.parametrize(
    ("names", "known", "message"),
    [
        (["VOC2O07"], ["SUN397", "VOC2007"], "unknown subset `VOC2O07`; did you mean `VOC2007`"),
        (["a"], [], "unknown subset `a`; there are none"),
        (["a", "b", "a"], ["a", "b"], "subset `a` is given twice"),
    ],
)
def test_a_name_is_known_and_given_once(names: list[str], known: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_names(names, known, "subset")
