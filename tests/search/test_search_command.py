"""``fanoise search``: what it prints and writes is what a full product of the embeddings gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from search.catalogues import BROKEN, ROWS, write_catalogue

from fanoise_lightning.__main__ import main
from fanoise_lightning.search.folder import EmbeddingFolder
from fanoise_lightning.search.model import model_of_recipe

ON_CPU = ["--num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
COLUMNS = ["--text=text", "--image=image", "--id=id"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_clip: str) -> Path:
    """A catalogue, and folders of two models, ``index`` and ``other``."""
    place = tmp_path_factory.mktemp("search")
    source = write_catalogue(place)
    for name, model in (("index", tiny_clip), ("other", "emoji-resnet")):
        encoder = {"class_path": "fanoise_lightning.OpenClipEncoder", "init_args": {"model": model}}
        recipe = place / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({"model": {"encoder": encoder}}))
        options = [f"--out={place / name}", f"--config={recipe}", "--dtype=float32", *COLUMNS, *ON_CPU]
        main(["embed", str(source), *options])
    return place


def ranking(place: Path, query: object) -> list[str]:
    """The ids of all rows, best first, by a full product in float64."""
    folder = EmbeddingFolder(place / "index")
    rows = torch.cat(list(folder.shards())).double()
    wanted = torch.as_tensor(model_of_recipe(place / "index.yaml").encode(query)).double()
    return [folder.row(int(row)).id for row in (rows @ wanted).argsort(descending=True, stable=True)]


def printed(capsys: pytest.CaptureFixture[str], *args: object) -> list[str]:
    """The ids in the table that a search prints, in its order."""
    capsys.readouterr()
    main(["search", *map(str, args)])
    return [word for word in capsys.readouterr().out.split() if word.startswith("sku-")]


def test_a_text_and_a_picture_find_what_a_full_product_finds(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(capsys, place / "index", "thing number 3", "--k=5") == ranking(place, "thing number 3")[:5]
    picture = place / "4.png"
    assert printed(capsys, place / "index", f"--image={picture}", "--k=3") == ranking(place, picture)[:3]
    both = {"text": "thing number 4", "image": picture}
    found = printed(capsys, place / "index", "thing number 4", f"--image={picture}", "--k=4")
    assert found == ranking(place, both)[:4]


def test_the_broken_picture_is_no_hit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, place / "index", "thing", "--k=100")
    assert sorted(found) == sorted(f"sku-{row}" for row in range(ROWS) if row != BROKEN)


def test_a_page_compares_two_folders(place: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries.jsonl"
    rows = [{"text": f"thing number {row}", "right": f"sku-{row}"} for row in (0, 2, 3)]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "page.html"
    options = [f"--queries={queries}", f"--against={place / 'other'}", f"--html={page}"]
    main(["search", str(place / "index"), *options])
    text = page.read_text()
    assert all(row["text"] in text for row in rows)
    assert "data:image/" in text


def test_pictures_outside_the_image_root_are_not_in_the_page_unless_asked_for(
    place: Path, tmp_path: Path
) -> None:
    """A catalogue of someone else must not bring any picture of this machine into a page."""
    moved, page = tmp_path / "index", tmp_path / "page.html"
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(place / "index", moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps({**manifest, "image_root": str(tmp_path / "elsewhere")}))
    for file in moved.glob("*.parquet"):
        rows = pq.read_table(file).to_pylist()
        named = [{**row, "image": row["image"] and str(place / row["image"])} for row in rows]
        pq.write_table(pa.Table.from_pylist(named), file)
    options = ["search", str(moved), "thing", "--k=100", f"--html={page}"]
    main(options)
    assert "data:image/" not in page.read_text()
    assert "outside the image root" in page.read_text()
    main([*options, f"--image_root={place}"])
    assert page.read_text().count("data:image/") == sum(row % 3 == 1 for row in range(ROWS)) - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["index"], "the query is empty"),
        (["index", " "], "the query is empty"),
        (["index", "a", "--k=0"], "`k` must be at least 1"),
        (["index", "a", "--queries=q.txt"], "not both"),
        (["gone", "a"], "gone"),
        (["index", "a", "--image=gone.png"], "gone.png"),
        (["index", "a", "--image_root=gone"], "image root `gone`"),
        (["index", "--queries=gone.txt"], "gone.txt"),
        (["index", "a", "--html=other"], "`--html` is a folder, `other`: name a file"),
        (["index", "--queries=unknown.csv"], "sku-999"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    Path("unknown.csv").write_text("text,right\na,sku-999\n")
    with pytest.raises(SystemExit) as end:
        main(["search", *options])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("fanoise: ")
    assert message in line


def test_another_model_is_refused(place: Path, tmp_path: Path) -> None:
    manifest = json.loads((place / "index" / "manifest.json").read_text())
    manifest["model"]["description"]["init_args"]["model"] = "emoji-resnet"
    moved = tmp_path / "index"
    moved.mkdir()
    for file in (place / "index").iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match="embedded by another model than this one"):
        main(["search", str(moved), "a"])
