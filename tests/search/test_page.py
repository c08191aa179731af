"""The page of a search: well formed, escaped, on its own; and in a real browser where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fanoise_lightning.search.answers import Answer, Hit, Right, metrics, worst_first
from fanoise_lightning.search.folder import Row
from fanoise_lightning.search.page import Side, search_page
from fanoise_lightning.search.pictures import Pictures
from fanoise_lightning.search.queries import Query

EVIL = '"><script>alert(1)</script>&amp;<img src=http://evil/>\x00\ud800'
VOID = {"meta", "img", "br"}
BROWSER = os.environ.get("FANOISE_BROWSER") or (
    sys.executable if importlib.util.find_spec("PySide6") else None
)


class Reader(HTMLParser):
    """Every tag with its attributes; an unclosed one is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    """A comparison of two folders for two queries, with a broken picture and texts of an attacker."""
    Image.effect_noise((400, 300), 200).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    rows = [Row("a", EVIL, "a.png"), Row(EVIL, "x" * 10_000, "b.png"), Row("c", EVIL, "")]
    hits = tuple(Hit(i, 1 / i, row, row.id == "a") for i, row in enumerate(rows, 1))
    good, bad = Answer(hits, (Right(0, 1, 1, rows[0]),)), Answer(hits[1:], (Right(899, 1, 0.1, rows[0]),))
    queries = [Query("red"), Query(EVIL, tmp_path / "a.png", ("a",))]
    sides = [
        Side(n, EVIL, a, Pictures(tmp_path)) for n, a in (("after", [good, bad]), ("before", [bad, good]))
    ]
    return search_page(queries, *sides)


def test_it_is_well_formed_and_asks_for_nothing(page: str) -> None:
    page.encode("utf-8")
    tags = Reader(page).tags
    assert ("html", {"lang": "en"}) in tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "base", "form", "object", "embed"}
    for _, attributes in tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in page
    assert "@import" not in page


def test_every_picture_has_a_text_and_a_bounded_size(page: str) -> None:
    pictures = [attributes for tag, attributes in Reader(page).tags if tag == "img"]
    assert pictures
    for attributes in pictures:
        assert attributes["alt"]
        assert len(attributes["src"] or "") < 20_000


def test_texts_of_others_are_text(page: str) -> None:
    words = Reader(page).words
    assert '"><script>alert(1)</script>&amp;<img src=http://evil/>\ufffd\ufffd' in words
    assert "x" * 301 not in page


def test_a_missing_picture_has_its_place_and_is_said(page: str) -> None:
    words = Reader(page).words
    assert "picture missing" in words
    assert "1 picture could not be read" in words


def test_the_worst_query_comes_first_with_its_right_answer(page: str) -> None:
    words = Reader(page).words
    assert words.index("1 → 900") < words.index("900 → 1")
    assert "900 ✓ right" in words


def test_metrics_by_hand() -> None:
    row = Row("a", "", "")
    answers = [
        Answer((), tuple(Right(rank - 1, 1, 0, row) for rank in ranks)) for ranks in ([1, 7], [4], [20], [])
    ]
    found = metrics(answers)
    assert found["recall@1"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert found["recall@5"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["recall@10"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["MRR"] == pytest.approx((1 + 1 / 4 + 1 / 20) / 3)
    assert found["median rank"] == 4
    assert worst_first(answers) == [2, 1, 0, 3]


def ranked(rank: int) -> Answer:
    """One hit, and the right answer at a rank."""
    rows = Row("a", "", ""), Row("b", "", "")
    return Answer((Hit(1, 0.9, rows[0], rank == 1),), (Right(rank - 1, 1, 0.1, rows[1]),))


def compared(before: int, after: int) -> str:
    sides = [Side(name, "", [ranked(rank)], Pictures(None)) for name, rank in (("a", after), ("b", before))]
    return search_page([Query("red")], *sides)


def test_a_change_is_marked_as_better_or_worse() -> None:
    better, worse = compared(4, 2), compared(2, 4)
    assert ": 1 better, 0 worse, 0 alike" in better
    assert ": 0 better, 1 worse, 0 alike" in worse
    for part in ("<span{}>4 → 2</span>", "<td{}>+25.0</td>", "<td{}>-2.0</td>"):  # rank, MRR, median rank
        assert part.format(' class="better"') in better
    for part in ("<span{}>2 → 4</span>", "<td{}>-25.0</td>", "<td{}>+2.0</td>"):
        assert part.format(' class="worse"') in worse


def test_a_right_answer_that_is_no_hit_is_listed_apart() -> None:
    assert compared(1, 2).count('class="right apart"') == 1
    assert compared(1, 1).count('class="right apart"') == 0


def test_a_long_list_is_cut_and_that_is_said() -> None:
    side = Side("index", "", [Answer(())] * 101, Pictures(None))
    page = search_page([Query(f"query {i}") for i in range(101)], side)
    assert page.count("<section") == 100
    assert "The first 100 of 101 queries." in page


def test_of_equal_ranks_the_one_that_was_better_before_comes_first() -> None:
    after, before = map(ranked, (5, 5, 9)), map(ranked, (3, 1, 2))
    assert worst_first(list(after), list(before)) == [2, 1, 0]


@pytest.mark.skipif(
    BROWSER is None, reason="no browser: install PySide6, or set FANOISE_BROWSER to a Python with it"
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it(page: str, scheme: str, width: int, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    script = Path(__file__).with_name("browser.py")
    command = [str(BROWSER), str(script), str(file), str(tmp_path / "page.png"), str(width), "800", scheme]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["overflow"] == 0
    assert seen["broken"] == 0
    assert seen["requests"] == [file.as_uri()]
    dark = [sum(map(int, seen[name][4:-1].split(","))) < 384 for name in ("ground", "ink")]
    assert dark == ([True, False] if scheme == "dark" else [False, True])
