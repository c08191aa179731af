"""The embedded benchmark as it lies in the package: layout, splits, licences, floors."""

from __future__ import annotations

import functools
import io
import itertools
import json
import re
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

import fanoise_lightning
from fanoise_lightning.data.sources.subsets_json import read_subsets
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import SubsetScore
from tools.emoji import rows as rows_module
from tools.emoji import scenes, sources, split
from tools.emoji import subsets as builder

ROOT = Path(fanoise_lightning.__file__).parent / "data" / "emoji"
TRAIN_COLUMNS = {"qry", "qry_image_path", "pos_text", "pos_image_path"}
NEGATIVE_COLUMNS = {"neg_text", "neg_image_path"}
EVAL_COLUMNS = {"qry_text", "qry_img_path", "tgt_text", "tgt_img_path"}
# where a task has few natural answers, chance is above 5 %: the card says so
CHANCE_ABOVE_5_PERCENT = {"group"}
# a query text up to the name of the object to find
INSTRUCTION = re.compile(r".*labeled as |.*")


def _read(folder):
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((ROOT / folder).glob("*.parquet"))}


@pytest.fixture(scope="module")
def train():
    return _read("train")


@pytest.fixture(scope="module")
def evaluation():
    return _read("eval")


@pytest.fixture(scope="module")
def subsets():
    return {
        subset["name"]: subset for subset in json.loads((ROOT / "subsets.json").read_text(encoding="utf-8"))
    }


@pytest.fixture(scope="module")
def archive():
    with zipfile.ZipFile(ROOT / "images.zip") as opened:
        yield opened


@pytest.fixture(scope="module")
def train_images(train):
    columns = ("qry_image_path", "pos_image_path", "neg_image_path")
    return {row.get(column) for rows in train.values() for row in rows for column in columns} - {"", None}


@pytest.fixture(scope="module")
def eval_images(evaluation):
    rows = [row for rows in evaluation.values() for row in rows]
    return {path for row in rows for path in (row["qry_img_path"], *row["tgt_img_path"])} - {""}


def _emoji(images):
    """(renderer, code) of the single emoji among image paths."""
    return {tuple(path.removesuffix(".webp").split("/")) for path in images if not path.startswith("scenes/")}


def test_it_stays_within_15_megabytes():
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 15e6


def test_every_row_has_the_columns_of_mmeb(train, evaluation):
    for name, rows in train.items():
        assert set(rows[0]) in (TRAIN_COLUMNS, TRAIN_COLUMNS | NEGATIVE_COLUMNS), name
    for name, rows in evaluation.items():
        assert set(rows[0]) == EVAL_COLUMNS, name


def test_every_side_has_text_or_image_and_the_placeholder_stands_with_a_image(train, evaluation):
    sides = [(row["qry"], row["qry_image_path"]) for rows in train.values() for row in rows]
    sides += [(row["pos_text"], row["pos_image_path"]) for rows in train.values() for row in rows]
    for row in (row for rows in evaluation.values() for row in rows):
        sides += [(row["qry_text"], row["qry_img_path"]), *zip(row["tgt_text"], row["tgt_img_path"])]
    for text, image in set(sides):
        assert text
        assert text.startswith("<|image_1|>") == bool(image), (text, image)


def test_meta_tasks_and_distributions_are_all_covered(subsets, evaluation):
    assert set(subsets) == set(evaluation)
    assert len(subsets) >= 14
    for distribution in ("IND", "OOD"):
        chosen = [s for s in subsets.values() if s["distribution"] == distribution]
        assert {s["meta_task"] for s in chosen} == {"classification", "vqa", "retrieval", "grounding"}
        assert len(chosen) >= 5


def test_an_in_distribution_subset_has_training_rows_and_no_other_has(subsets, train):
    assert set(train) == {name for name, s in subsets.items() if s["distribution"] == "IND"}
    assert min(len(rows) for rows in train.values()) >= 1000


def test_every_subset_has_300_queries_with_different_candidates(evaluation):
    for name, rows in evaluation.items():
        assert len(rows) == 300, name
        for row in rows:
            candidates = list(zip(row["tgt_text"], row["tgt_img_path"], strict=True))
            assert len(set(candidates)) == len(candidates) >= 2, (name, row["qry_text"])
        assert len({(row["qry_text"], row["qry_img_path"]) for row in rows}) == 300, name


def test_candidates_of_a_query_look_different(evaluation, archive):
    look = {name: archive.read(name) for name in archive.namelist()}
    for name, rows in evaluation.items():
        for row in rows:
            candidates = [(text, look.get(path)) for text, path in zip(row["tgt_text"], row["tgt_img_path"])]
            assert len(set(candidates)) == len(candidates), (name, row["qry_text"], row["qry_img_path"])


def test_the_zip_holds_what_the_rows_name_and_nothing_else(train_images, eval_images, archive):
    assert set(archive.namelist()) == train_images | eval_images


def test_every_image_opens_at_its_size(archive):
    for name in archive.namelist():
        image = Image.open(io.BytesIO(archive.read(name)))
        side = 64 if not name.startswith("scenes/") else 48 if "-" in name else 96
        assert (image.size, image.mode, image.format) == ((side, side), "RGB", "WEBP"), name


def test_the_zip_is_stored_and_sorted_with_fixed_times(archive):
    names = archive.namelist()
    assert names == sorted(names)
    for info in archive.infolist():
        assert (info.compress_type, info.date_time) == (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))
        assert not Path(info.filename).is_absolute()
        assert ".." not in info.filename


def test_no_evaluation_image_is_trained_on(train_images, eval_images, archive):
    assert not train_images & eval_images
    # nor a copy of one under another name
    assert not {archive.read(p) for p in train_images} & {archive.read(p) for p in eval_images}


def test_fluent_and_unseen_concepts_are_never_trained_on(train_images, evaluation):
    trained = _emoji(train_images)
    assert {renderer for renderer, _ in trained} == {"noto", "twemoji"}
    codes = {code for _, code in trained}
    for name in ("subgroup_unseen", "renderer_unseen"):
        for row in evaluation[name]:
            shown = _emoji({row["qry_img_path"], *row["tgt_img_path"]} - {""})
            assert not {code for _, code in shown} & codes, name


def test_in_distribution_concepts_are_trained_on_as_noto(train_images, evaluation):
    codes = {code for _, code in _emoji(train_images)}
    for name in ("subgroup", "group", "kind", "caption"):
        assert {code for _, code in _emoji({row["qry_img_path"] for row in evaluation[name]})} <= codes, name


def test_the_truth_is_what_training_says_of_the_same_concept(train, evaluation):
    for name in ("subgroup", "group", "kind", "caption"):
        answers = {Path(row["qry_image_path"]).stem: row["pos_text"] for row in train[name]}
        for base in (name, f"{name}_fluent"):
            for row in evaluation.get(base, ()):
                assert row["tgt_text"][0] == answers[Path(row["qry_img_path"]).stem], base


def test_the_truth_shows_the_same_sequence_or_the_wanted_tone(evaluation):
    for name in ("renderer", "renderer_fluent", "renderer_unseen"):
        for row in evaluation[name]:
            assert Path(row["qry_img_path"]).stem == Path(row["tgt_img_path"][0]).stem
            assert Path(row["qry_img_path"]).parent != Path(row["tgt_img_path"][0]).parent
    modifiers = {"light": "-1f3fb", "medium-light": "-1f3fc", "medium": "-1f3fd", "medium-dark": "-1f3fe"}
    modifiers |= {"dark": "-1f3ff", "yellow": ""}
    for row in evaluation["recolour"]:
        wanted = modifiers[row["qry_text"].split()[-2]]
        plain, target = re.sub("-1f3f[b-f]", "", row["qry_img_path"]), row["tgt_img_path"][0]
        assert re.sub("-1f3f[b-f]", "", target) == plain
        assert "".join(re.findall("-1f3f[b-f]", target)) == wanted


def test_the_answer_occurs_in_training(train, evaluation):
    for name in ("subgroup", "group", "kind", "person", "skin_tone", "ground"):
        learned = {row["pos_text"] for row in train[name]}
        assert {row["tgt_text"][0] for row in evaluation[name]} <= learned, name


def test_grounding_has_candidates_of_the_same_scene_and_of_the_same_thing(evaluation):
    for name in ("crop", "crop_fluent"):
        for row in evaluation[name]:
            scene = row["qry_img_path"].removesuffix(".webp")
            assert row["tgt_img_path"][0].startswith(f"{scene}-")
            assert any(path.startswith(f"{scene}-") for path in row["tgt_img_path"][1:])


def test_floors_are_chance_and_the_best_constant_answer(subsets, evaluation):
    for name, rows in evaluation.items():
        chance, answers = 0.0, Counter()
        for row in rows:
            contents = list(zip(row["tgt_text"], row["tgt_img_path"]))
            chance += 1 / len(contents)
            answers[contents[0]] += 1
        assert subsets[name]["floors"]["chance"] == pytest.approx(chance / len(rows), abs=1e-4)
        best = max(hits / len(rows) for hits in answers.values())
        assert subsets[name]["floors"]["constant"] == pytest.approx(best, abs=1e-4)
        assert (chance / len(rows) > 0.05 + 1e-9) == (name in CHANCE_ABOVE_5_PERCENT), name


def test_blind_floors_are_those_that_were_measured(subsets):
    path = ROOT / "blind.json"
    measured = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    assert {n: s["floors"]["blind"] for n, s in subsets.items() if "blind" in s["floors"]} == measured


def test_the_builder_writes_the_file_that_is_shipped(tmp_path):
    for name in ("eval", "images.zip"):
        (tmp_path / name).symlink_to(ROOT / name)
    builder.write_subsets(tmp_path)
    assert (tmp_path / "subsets.json").read_bytes() == (ROOT / "subsets.json").read_bytes()


def test_copy_floors_are_those_of_the_nearest_pixels(subsets, evaluation, archive):
    """In floating point, by a distance and a reduction of scenes that are torch's."""

    @functools.cache
    def pixels(path):
        image = np.array(Image.open(io.BytesIO(archive.read(path))))
        return torch.from_numpy(image).double().permute(2, 0, 1)

    for name, rows in evaluation.items():
        if not all(row["qry_img_path"] and all(row["tgt_img_path"]) for row in rows):
            assert "copy" not in subsets[name]["floors"], name
            continue
        right = 0
        for row in rows:
            candidates = torch.stack([pixels(path) for path in row["tgt_img_path"]])
            query = pixels(row["qry_img_path"])
            query = torch.nn.functional.adaptive_avg_pool2d(query, candidates.shape[-2:])
            right += torch.cdist(query.reshape(1, -1), candidates.flatten(1)).argmin() == 0
        assert subsets[name]["floors"]["copy"] == pytest.approx(float(right / len(rows)), abs=1e-4), name


def test_only_recolour_has_the_image_of_the_query_among_the_wrong_candidates(subsets, evaluation, archive):
    look = {name: archive.read(name) for name in archive.namelist()}
    for name, rows in evaluation.items():
        own = [
            look.get(row["qry_img_path"]) in [look.get(p) for p in row["tgt_img_path"] if p] for row in rows
        ]
        assert all(own) if name == "recolour" else not any(own), name
    assert subsets["recolour"]["floors"]["copy"] == 0
    assert not any(row["qry_img_path"] == row["tgt_img_path"][0] for row in evaluation["recolour"])


def test_a_copy_that_ties_with_the_truth_counts_as_its_share():
    look = {"black": 0, "grey": 100, "light": 200}
    images = {name: np.full((4, 4, 3), value, np.int32) for name, value in look.items()}

    def row(query, *targets):
        return {"qry_text": "", "qry_img_path": query, "tgt_text": [""] * 3, "tgt_img_path": list(targets)}

    rows = [
        row("grey", "black", "light", "light"),  # three are equally near
        row("light", "black", "grey", "grey"),
        row("grey", "grey", "black", "light"),
        row("black", "light", "grey", "black"),
    ]
    assert builder.floors(rows, images.__getitem__)["copy"] == pytest.approx(
        (1 / 3 + 0 + 1 + 0) / 4, abs=1e-4
    )


def test_a_shared_task_asks_the_same_in_both_distributions(subsets, evaluation):
    """The same question, with as many candidates, and the same answers where they are words."""
    tasks = {}
    for name, subset in subsets.items():
        if "task" in subset:
            assert subset["distribution"] not in tasks.setdefault(subset["task"], {}), name
            tasks[subset["task"]][subset["distribution"]] = name
    assert set(tasks) == {"subgroup", "kind", "skin_tone", "ground", "caption", "renderer", "crop"}
    for pair in tasks.values():
        assert set(pair) == {"IND", "OOD"}
        first, second = evaluation[pair["IND"]], evaluation[pair["OOD"]]
        asked = [{INSTRUCTION.match(row["qry_text"]).group() for row in rows} for rows in (first, second)]
        assert asked[0] == asked[1]
        assert len(asked[0]) == 1
        assert {len(row["tgt_text"]) for row in first} == {len(row["tgt_text"]) for row in second}
        assert subsets[pair["IND"]]["meta_task"] == subsets[pair["OOD"]]["meta_task"]
        if subsets[pair["IND"]]["meta_task"] in ("classification", "vqa"):
            assert set(first[0]["tgt_text"]) == set(second[0]["tgt_text"])


def test_the_scoreboard_has_the_shared_tasks_and_fits_a_terminal():
    described = read_subsets(ROOT / "subsets.json").values()
    board = Scoreboard([SubsetScore.of(subset, torch.ones(300)) for subset in described])
    assert board.means["IND_shared"].num_subsets == board.means["OOD_shared"].num_subsets == 7
    console = Console(width=300, file=io.StringIO(), record=True)
    console.print(board.table())
    assert max(map(len, console.export_text().rstrip().splitlines())) <= 80


def test_the_card_has_the_floors_of_the_file(subsets):
    lines = [line.strip("| ").split(" | ") for line in (ROOT / "README.md").read_text("utf-8").splitlines()]
    names = ["chance", "constant", "copy", "blind"]
    card = {line[0]: line[-4:] for line in lines if len(line) == 9 and line[0] in subsets}
    for name, subset in subsets.items():
        known = [f"{100 * subset['floors'][n]:.1f}" if n in subset["floors"] else "-" for n in names]
        assert card[name] == known, name


def test_a_candidate_twice_is_an_error():
    with pytest.raises(ValueError, match="twice"):
        rows_module.eval_row(("q", ""), ("a", ""), [("b", ""), ("a", "")])


def test_balanced_draws_each_key_about_equally():
    drawn = rows_module.balanced(["a"] * 50 + ["b"] * 5 + ["c"] * 3, str, 12, split.rng("test"))
    assert Counter(drawn) == {"a": 5, "b": 4, "c": 3}


def test_a_changed_package_is_refused(tmp_path):
    for filename, _ in sources.PACKAGES.values():
        (tmp_path / filename).write_bytes(b"something else")
    with pytest.raises(ValueError, match="sha512"):
        sources.fetch(tmp_path)


def test_fallback_images_of_other_vendors_are_not_read(tmp_path):
    def cell(code, own):
        return {"unified": code, "image": f"{code.lower()}.png", "has_img_google": own}

    tones = {"1F3FB": cell("1F590-1F3FB", True), "1F3FF": cell("1F590-1F3FF", False)}
    entries = [cell("1F590-FE0F", True) | {"skin_variations": tones}, cell("1F9FF", False)]
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        images = [entry["image"] for entry in (*entries, *tones.values())]
        files = {"emoji.json": json.dumps(entries).encode()}
        files |= {f"img/google/64/{name}": name.encode() for name in images}
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert set(sources._datasource(path, "google")) == {"1f590", "1f590-1f3fb"}


def test_variants_of_a_concept_are_all_seen_or_all_unseen():
    codes = itertools.count()

    def concept(label, subgroup, group):
        code = str(next(codes))
        return sources.Concept(code, label, (), group, subgroup, {sources.YELLOW: code})

    jobs = [f"job{i}" for i in range(50)]
    people = [
        concept(who + job, "person-role", "people-body") for job in jobs for who in ("", "man ", "woman ")
    ]
    things = [
        concept("".join(letters), "tool", "objects")
        for letters in itertools.islice(itertools.product("abcdef", repeat=3), 200)
    ]
    drawn = split.Split(people + things)
    assert len(drawn.unseen) == 0.2 * len(people + things)
    assert not {c.family for c in drawn.seen} & {c.family for c in drawn.unseen}
    assert not any(drawn.trains_on("fluent", c) for c in drawn.seen)
    assert all(drawn.trains_on("noto", c) for c in drawn.seen)
    held_out = [c for c in drawn.seen if not drawn.trains_on("twemoji", c)]
    assert held_out == drawn.held_out != []


def test_a_crop_is_the_part_of_the_scene_that_shows_the_thing():
    files = {}
    for code, colour in (("a", (255, 0, 0, 255)), ("b", (0, 0, 255, 255))):
        buffer = io.BytesIO()
        Image.new("RGBA", (64, 64), colour).save(buffer, "PNG")
        files[code] = buffer.getvalue()
    concepts = [sources.Concept(c, c, (), "objects", "tool", {sources.YELLOW: c}) for c in "ab"]
    album = scenes.Album(sources.Images({"noto": files}))
    scene = album.scene("s/0", [("noto", c) for c in concepts], "white", split.rng("test"))
    for thing, expected in zip(scene.things, ((255, 0, 0), (0, 0, 255))):
        crop = Image.open(io.BytesIO(album._files[thing.crop]))
        assert crop.getpixel((24, 24)) == pytest.approx(expected, abs=12)
        assert crop.getpixel((0, 0)) == pytest.approx((255, 255, 255), abs=20)


def test_every_source_has_its_licence_notice():
    notices = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "LICENSES").glob("*.txt")}
    assert "Apache License" in notices["noto-emoji"]
    assert "creativecommons.org/licenses/by/4.0" in notices["twemoji"]
    assert "Changes made" in notices["twemoji"]
    assert "Microsoft" in notices["fluent-emoji"]
    assert "Miles Johnson" in notices["emojibase-data"]
