"""The tasks of mteb against the scoreboard, which has an implementation of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from fanoise_lightning import ContrastiveModule, MMEBDataModule, PairDataModule, Sample, TwoTowerEncoder
from fanoise_lightning.data.batches.skipped import TooManySkippedError
from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.export.mteb_encoder import MtebEncoder
from fanoise_lightning.export.mteb_tasks import mmeb_benchmark

mteb = pytest.importorskip("mteb")

SUBSETS = ["kind", "keywords", "renderer", "crop", "kind_fluent"]  # every category, both distributions


class Letters(Encoder):
    """Counts of letters beside small pictures, projected at random: no two samples embed alike."""

    embedding_dim = 16

    def __init__(self, collapsed: bool = False) -> None:
        super().__init__()
        self.collapsed = collapsed
        self.projection = torch.nn.Linear(256 + 192, self.embedding_dim, bias=False)
        torch.nn.init.normal_(self.projection.weight, generator=torch.Generator().manual_seed(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), self.embedding_dim) if self.collapsed else self.projection(x)

    @staticmethod
    def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        rows = []
        for sample in samples:
            text = np.bincount(np.frombuffer(sample.text.encode(), np.uint8), minlength=256)
            pictures = [np.asarray(image.resize((8, 8))).ravel() for image in sample.images]
            rows.append(np.concatenate([text, sum(pictures) / 64.0 if pictures else np.zeros(192)]))
        return {"x": torch.tensor(np.stack(rows), dtype=torch.float32)}


def scored(data: Any, encoder: Encoder) -> tuple[ContrastiveModule, Scoreboard]:
    module = ContrastiveModule(encoder)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    Trainer(accelerator="cpu", **quiet).validate(module, data, verbose=False)
    assert module.scoreboard is not None
    return module, module.scoreboard


def evaluated(model: Any, tasks: Any, cache: Any = None) -> Any:
    options = {"batch_size": 512, "show_progress_bar": False}
    return mteb.evaluate(model, tasks, cache=cache, show_progress_bar=False, encode_kwargs=options)


def results(found: Any) -> dict[str, dict[str, Any]]:
    return {task.task_name: task.scores["test"][0] for task in found.task_results}


def emoji(*subsets: str) -> MMEBDataModule:
    return MMEBDataModule("emoji", eval_subsets=subsets, num_workers=0)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scoreboard, Any, Any, Path]:
    """Some subsets on the scoreboard and in mteb: the board, the benchmark, mteb's results, its folder."""
    module, board = scored(emoji(*SUBSETS), Letters())
    benchmark, folder = mmeb_benchmark(emoji(*SUBSETS), "emoji"), tmp_path_factory.mktemp("mteb")
    model = MtebEncoder(module, "me/letters", training_datasets=["emoji-kind"])
    return board, benchmark, evaluated(model, benchmark, mteb.ResultCache(folder)), folder


def test_every_digit_is_the_scoreboards(both: tuple[Scoreboard, Any, Any, Path]) -> None:
    board, _, found, _ = both
    scores = results(found)
    assert {f"emoji-{s.name}": s.precision for s in board.subsets} == {
        name: score["precision_at_1"] for name, score in scores.items()
    }
    for subset in board.subsets:
        score = scores[f"emoji-{subset.name}"]
        assert score["main_score"] == subset.precision
        assert score["hit_rate_at_1"] == round(subset.precision, 5)  # mteb's own: nothing ties here
        assert (score["num_queries"], score["num_ties"], score["num_skipped"]) == (300, 0, 0)


def test_the_means_are_the_scoreboards(both: tuple[Scoreboard, Any, Any, Path]) -> None:
    board, benchmark, found, _ = both
    assert benchmark.get_score([found]) == {
        "me/letters": {name: mean.precision for name, mean in board.means.items()}
    }


def test_models_of_mteb_run(both: tuple[Scoreboard, Any, Any, Path]) -> None:
    _, benchmark, _, _ = both
    found = evaluated(mteb.get_model("mteb/baseline-random-encoder"), benchmark[0])
    (score,) = results(found).values()
    assert score["hit_rate_at_1"] == round(score["precision_at_1"], 5)
    assert score["precision_at_1"] < 0.1  # of 53 candidates


def test_a_mean_over_a_missing_task_is_unknown(both: tuple[Scoreboard, Any, Any, Path]) -> None:
    board, benchmark, found, _ = both
    part = found.model_copy(update={"task_results": found.task_results[1:]})
    means = benchmark.get_score([part])["me/letters"]
    unknown = {"vqa", "IND", "IND_shared", "overall", "mean_of_meta_tasks"}
    assert {name for name, mean in means.items() if mean is None} == unknown
    assert means["OOD"] == board.means["OOD"].precision
    with pytest.raises(ValueError, match="me/letters has no result of emoji-kind"):
        benchmark.get_score([part], raise_error=True)


def test_results_lie_where_mteb_looks_for_them(both: tuple[Scoreboard, Any, Any, Path]) -> None:
    _, benchmark, found, folder = both
    (written,) = folder.glob("results/me__letters/*")
    assert {f"emoji-{name}.json" for name in SUBSETS} <= {path.name for path in written.iterdir()}
    file = json.loads((written / "emoji-kind.json").read_text())
    assert file["dataset_revision"] == benchmark[0].metadata.revision
    exact = results(found)["emoji-kind"]["precision_at_1"]
    assert file["scores"]["test"][0]["main_score"] == round(exact, 6)  # as mteb writes all scores
    meta = json.loads((written / "model_meta.json").read_text())
    assert (meta["revision"], meta["training_datasets"]) == (written.name, ["emoji-kind"])


def test_what_queries_and_candidates_are_made_of(both: tuple[Scoreboard, Any, Any, Path]) -> None:
    _, benchmark, _, _ = both
    assert [task.metadata.category for task in benchmark] == ["it2t", "t2it", "it2it", "it2it", "it2t"]


def test_a_collapsed_encoder_scores_chance_here_and_by_ids_there() -> None:
    module, board = scored(emoji("kind"), Letters(collapsed=True))
    benchmark = mmeb_benchmark(emoji("kind"), "emoji")
    (score,) = results(evaluated(MtebEncoder(module, "me/collapsed"), benchmark)).values()
    assert score["precision_at_1"] == board.subsets[0].precision == pytest.approx(1 / 53, rel=1e-6)
    assert score["num_ties"] == 300
    tables = benchmark[0].reader.read()
    last = [max(tables["top_ranked"][query]) in right for query, right in tables["relevant_docs"].items()]
    assert score["hit_rate_at_1"] == round(float(np.mean(last)), 5)  # the candidate with the largest id


def test_several_right_answers_and_a_catalogue() -> None:
    targets = [chr(97 + n % 26) * (1 + n // 26) + "xyz"[n % 3] for n in range(60)]
    pairs = [{"query": f"q{n % 40}", "target": target} for n, target in enumerate(targets)]

    def data() -> PairDataModule:
        return PairDataModule(pairs[:4], "query", "target", num_candidates=None, num_workers=0, val=pairs)

    module, board = scored(data(), Letters())
    benchmark = mmeb_benchmark(data(), "mine")
    assert max(map(len, benchmark[0].reader.read()["relevant_docs"].values())) > 1
    (score,) = results(evaluated(MtebEncoder(module, "me/letters"), benchmark)).values()
    assert score["precision_at_1"] == board.subsets[0].precision > 0
    assert score["num_queries"] == board.subsets[0].num_queries


def test_answers_that_training_pairs_know_are_no_candidates() -> None:
    train = [{"query": f"abc{n}", "target": f"{n}cba"} for n in range(4)]  # the same letters: cosine 1
    pairs = [{"query": f"abc{n}", "target": f"abx{n}"} for n in range(4)]
    pairs += [{"query": f"other {n}", "target": f"{n}cba"} for n in range(4)]

    def data() -> PairDataModule:
        return PairDataModule(train, "query", "target", num_candidates=None, num_workers=0, val=pairs)

    module, board = scored(data(), Letters())
    benchmark = mmeb_benchmark(data(), "mine")
    tables = benchmark[0].reader.read()
    texts = dict(zip(tables["corpus"]["id"], tables["corpus"]["text"]))
    for query, text in zip(tables["queries"]["id"], tables["queries"]["text"]):
        candidates = {texts[item] for item in tables["top_ranked"][query]}
        known = {f"{text[-1]}cba"} if text.startswith("abc") else set()
        assert candidates == {pair["target"] for pair in pairs} - known
    (score,) = results(evaluated(MtebEncoder(module, "me/letters"), benchmark)).values()
    assert score["precision_at_1"] == board.subsets[0].precision > 0


def png(value: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    picture = np.full((9, 9, len(mode)), value, np.uint8)
    picture[value % 9, :4] = 255 - value
    Image.fromarray(picture, mode).save(file, "PNG")
    return file.getvalue()


def small_root(
    root: Path, rows: list[tuple[str, str, list[str], list[str]]], pictures: dict[str, bytes]
) -> Path:
    """A root in the library's layout with one evaluation subset, of JSON lines."""
    for folder in ("train", "eval", "images"):
        (root / folder).mkdir()
    (root / "subsets.json").write_text(
        json.dumps([{"name": "mine", "meta_task": "retrieval", "distribution": "OOD"}])
    )
    names = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
    lines = [json.dumps(dict(zip(names, row))) for row in rows]
    (root / "eval" / "mine.jsonl").write_text("\n".join(lines) + "\n")
    for name, data in pictures.items():
        (root / "images" / name).write_bytes(data)
    return root


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(6)]
    others = [[names[n - 1], names[n - 2], names[n - 3]] for n in range(6)]  # 2 is a query, and right for 3
    rows = [("find it", name, [""] * 3, candidates) for name, candidates in zip(names, others)]
    pictures = {name: png(40 * n) for n, name in enumerate(names)} | {"2.png": b"broken"}
    root = small_root(tmp_path, rows, pictures)

    def data() -> MMEBDataModule:
        return MMEBDataModule(root, num_workers=0, max_skipped=1.0)

    with pytest.warns(UserWarning, match="skipped|no embedding"):
        module, board = scored(data(), Letters())
    benchmark = mmeb_benchmark(data(), "mine")
    with pytest.warns(UserWarning, match=r"an image cannot be read and is skipped: .*2\.png"):
        (score,) = results(evaluated(MtebEncoder(module, "me/letters"), benchmark)).values()
    (subset,) = board.subsets
    assert score["precision_at_1"] == subset.precision
    assert (score["num_queries"], score["num_skipped"]) == (subset.num_queries, subset.num_skipped) == (4, 2)


class Picky(Letters):
    """Refuses pictures that are red."""

    @staticmethod
    def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        if any(image.getpixel((8, 8)) == (255, 0, 0) for sample in samples for image in sample.images):
            raise RuntimeError("no red")
        return Letters.collate(samples)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (("find", "red.png", ["a", "b"], ["", ""]), r"query 1, `red\.png`"),
        (("find", "", ["", ""], ["0.png", "red.png"]), r"a candidate, `red\.png`"),
    ],
)
def test_a_picture_that_the_encoder_refuses_is_named(tmp_path: Path, row: Any, named: str) -> None:
    red = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(red, "PNG")
    rows = [("find it", "0.png", ["a", "b"], ["", ""]), row]
    root = small_root(tmp_path, rows, {"0.png": png(0), "red.png": red.getvalue()})
    benchmark = mmeb_benchmark(MMEBDataModule(root, num_workers=0), "mine")
    with pytest.raises(ValueError, match=rf"mine-mine: {named}: the encoder refuses it: no red\. Replace"):
        evaluated(MtebEncoder(ContrastiveModule(Picky()), "me/picky"), benchmark)


def test_a_subset_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    root = small_root(tmp_path, [("", "0.png", ["a", "b"], ["", ""])], {"0.png": b"broken"})
    (task,) = mmeb_benchmark(MMEBDataModule(root, num_workers=0, max_skipped=1.0), "mine")
    match = r"subset `mine`: no query can be scored, .* `0\.png` .* Check the image root"
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match=match):
        task.load_data()


def test_too_many_broken_pictures_are_the_error_of_validation(tmp_path: Path) -> None:
    rows = [("find it", f"{n}.png", ["a", "b"], ["", ""]) for n in range(12)]
    pictures = {f"{n}.png": b"broken" if n in (2, 5, 6) else png(n) for n in range(12)}
    root = small_root(tmp_path, rows, pictures)  # 14 items
    (task,) = mmeb_benchmark(MMEBDataModule(root, num_workers=0, max_skipped=0.15), "mine")
    message = "3 evaluation items cannot be used, `max_skipped` allows 2"
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(TooManySkippedError, match=message) as ours,
    ):
        task.load_data()
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(TooManySkippedError, match=message) as theirs,
    ):
        scored(MMEBDataModule(root, num_workers=0, max_skipped=0.15), Letters())
    assert str(ours.value) == str(theirs.value)
    (task,) = mmeb_benchmark(MMEBDataModule(root, num_workers=0, max_skipped=0.22), "mine")
    with pytest.warns(UserWarning, match="subset `mine`: skipped 3 times, 3 of 14 evaluation items"):
        task.load_data()


def test_a_result_of_other_data_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    folder.mkdir()
    texts = ["red", "blue", "green", "grey"]
    rows = [(f"find {n}", f"{n}.png", texts[n:] + texts[:n], [""] * 4) for n in range(4)]
    root = small_root(folder, rows, {f"{n}.png": png(40 * n) for n in range(4)})
    model = MtebEncoder(ContrastiveModule(Letters()), "me/letters")
    cache = mteb.ResultCache(tmp_path / "cache")

    def run(**options: Any) -> tuple[Any, Any]:
        benchmark = mmeb_benchmark(MMEBDataModule(root, num_workers=0, **options), "mine")
        (found,) = (result := evaluated(model, benchmark, cache)).task_results
        assert found.dataset_revision == benchmark[0].metadata.revision
        return found, (benchmark, result)

    first, _ = run()
    again, _ = run()
    assert again.date == first.date is not None  # of the cache
    blind, (_, of_blind) = run(blind=True)
    small, _ = run(decode_size=4)
    lines = (root / "eval" / "mine.jsonl").read_text().splitlines()
    (root / "eval" / "mine.jsonl").write_text("\n".join(lines[1:]) + "\n")
    fewer, (benchmark, _) = run()
    assert fewer.scores["test"][0]["num_queries"] == 3
    assert len({found.dataset_revision for found in (first, blind, small, fewer)}) == 4
    with pytest.raises(ValueError, match="the result of mine-mine is of other data than this benchmark's"):
        benchmark.get_score([of_blind])


def test_texts_are_not_stripped(tmp_path: Path) -> None:
    root = small_root(tmp_path, [("find a ", "", ["a ", "a", " a"], [""] * 3)], {})
    module, board = scored(MMEBDataModule(root, num_workers=0), Letters())
    benchmark = mmeb_benchmark(MMEBDataModule(root, num_workers=0), "mine")
    (score,) = results(evaluated(MtebEncoder(module, "me/letters"), benchmark)).values()
    assert (score["precision_at_1"], score["num_ties"]) == (board.subsets[0].precision, 1)  # "a " and " a"
    assert board.subsets[0].num_ties == 1


def jpeg(orientation: int | None = None) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.linear_gradient("L").convert("RGB").resize((16, 8)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_pictures_stay_encoded_and_decode_to_ours(tmp_path: Path) -> None:
    sixteen = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(sixteen, "PNG")
    pictures = {
        "plain.jpg": jpeg(),
        "turned.jpg": jpeg(6),
        "glass.png": png(60, "RGBA"),
        "deep.png": sixteen.getvalue(),
    }
    rows = [("", name, ["a", "b"], ["", ""]) for name in pictures]
    data = MMEBDataModule(small_root(tmp_path, rows, pictures), num_workers=0)
    (task,) = mmeb_benchmark(data, "mine")
    queries = task.reader.read()["queries"]
    stored = [row["bytes"] for row in queries.data["image"].to_pylist()]
    assert stored[:2] == [pictures["plain.jpg"], pictures["turned.jpg"]]  # the file itself where it serves
    for name, image in zip(pictures, queries["image"]):
        ours = task.reader.dataset.store.open(name)
        assert (image.mode, image.size, image.tobytes()) == ("RGB", ours.size, ours.tobytes())


def test_all_of_mmeb_has_full_metadata(snapshot: Path) -> None:
    benchmark = mmeb_benchmark(MMEBDataModule(snapshot, train_subsets=[], num_workers=0))
    assert benchmark.name == "MMEB"
    assert [task.metadata.name for task in benchmark] == [f"MMEB-{name}" for name in CATALOG]
    known = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)}
    for task in benchmark:
        task.metadata._validate_metadata()
        assert task.metadata.is_filled()
        assert set(task.metadata.adapted_from or ()) <= known
    described = [task.metadata.description for task in benchmark]
    assert sum("in-distribution" in text for text in described) == 20


def test_subsets_that_are_not_mmebs_need_a_name() -> None:
    with pytest.raises(ValueError, match="the subsets kind are not MMEB's: pass `name`"):
        mmeb_benchmark(emoji("kind"))


@pytest.mark.parametrize("name", ["letters", "a/b/c", "/letters"])
def test_a_model_needs_an_organization(name: str) -> None:
    with pytest.raises(ValueError, match="`name` must be 'organization/model'"):
        MtebEncoder(ContrastiveModule(Letters()), name)


def test_the_revision_is_that_of_the_weights() -> None:
    module = ContrastiveModule(Letters())
    first = MtebEncoder(module, "me/letters").mteb_model_meta.revision
    assert MtebEncoder(module, "me/letters").mteb_model_meta.revision == first
    with torch.no_grad():
        module.encoder.get_parameter("projection.weight").mul_(2)
    assert MtebEncoder(module, "me/letters").mteb_model_meta.revision != first


def test_a_model_that_says_it_reads_texts_alone_is_refused() -> None:
    model = MtebEncoder(ContrastiveModule(Letters()), "me/letters")
    model.mteb_model_meta = model.mteb_model_meta.model_copy(update={"modalities": ["text"]})
    with pytest.raises(ValueError, match=r"kind has images, but .*\['text'\] alone, and mteb would drop"):
        evaluated(model, mmeb_benchmark(emoji("kind"), "emoji"))


def test_sentence_transformers_drops_no_picture_unseen(tmp_path: Path) -> None:
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer
    from tiny_two_towers import save_tiny

    folder, texts = save_tiny(tmp_path / "clip", "clip"), ["red", "a blue car", "two", "x"]
    pictures = {f"{n}.png": png(20 * n) for n in range(12)}
    rows = [("", name, texts[n % 4 :] + texts[: n % 4], [""] * 4) for n, name in enumerate(pictures)]
    (tmp_path / "root").mkdir()
    root = small_root(tmp_path / "root", rows, pictures)
    benchmark = mmeb_benchmark(MMEBDataModule(root, num_workers=0), "mine")
    assert benchmark[0].metadata.category == "i2t"

    # as it comes, its meta says that it reads texts, and mteb gives it nothing else
    model: Any = SentenceTransformer(folder, device="cpu")
    with pytest.raises(ValueError, match=r"none overlap|mteb would drop"):
        evaluated(model, benchmark)
    model = SentenceTransformerEncoderWrapper(model)
    meta = {"name": "me/clip", "revision": "1", "modalities": ["text", "image"]}
    model.mteb_model_meta = model.mteb_model_meta.model_copy(update=meta)
    (score,) = results(evaluated(model, benchmark)).values()
    module, board = scored(MMEBDataModule(root, num_workers=0), TwoTowerEncoder(folder))
    (ours,) = results(evaluated(MtebEncoder(module, "me/ours"), benchmark)).values()
    assert score["precision_at_1"] == ours["precision_at_1"] == board.subsets[0].precision


def test_a_sentence_transformer_is_refused_where_texts_remain(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from tiny_two_towers import save_tiny

    model = SentenceTransformer(save_tiny(tmp_path / "clip", "clip"), device="cpu")
    with pytest.raises(ValueError, match=r"emoji-caption has images, but .* wrap a SentenceTransformer"):
        evaluated(model, mmeb_benchmark(emoji("caption"), "emoji"))
