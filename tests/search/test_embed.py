"""``embed``: what it writes, that it continues, and what it refuses."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import run_on_ranks
from search.catalogues import BROKEN, OPTIONS, ROWS, contents, write_catalogue

from fanoise_lightning import ContrastiveModule, OpenClipEncoder, Sample
from fanoise_lightning.search.embed import embed
from fanoise_lightning.search.folder import EmbeddingFolder


@pytest.fixture(scope="module")
def module(tiny_clip: str) -> ContrastiveModule:
    torch.manual_seed(0)
    return ContrastiveModule(OpenClipEncoder(tiny_clip))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("catalogue"))


@pytest.fixture(scope="module")
def unbroken(
    module: ContrastiveModule, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> EmbeddingFolder:
    return embed(module, source, tmp_path_factory.mktemp("unbroken") / "index", **OPTIONS)


def test_each_row_has_its_id_and_the_embedding_that_encode_gives(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder
) -> None:
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    del lines[BROKEN]
    samples = [
        Sample(line["text"], source.parent / line["image"] if line["image"] else None) for line in lines
    ]
    embeddings = torch.cat(list(unbroken.shards()))
    assert embeddings.dtype == torch.float16
    torch.testing.assert_close(embeddings.float(), module.encode(samples), atol=1e-3, rtol=0)
    assert unbroken.columns.to_pylist() == lines
    assert unbroken.row(BROKEN)._asdict() == lines[BROKEN]


def test_the_manifest_says_what_was_embedded_and_what_was_not(
    unbroken: EmbeddingFolder, source: Path
) -> None:
    manifest = unbroken.manifest
    assert len(unbroken) == manifest["rows"] == ROWS - 1
    assert [shard["rows"] for shard in manifest["shards"]] == [8, 7, 6]
    (skipped,) = manifest["skipped"]
    assert skipped["id"] == f"sku-{BROKEN}"
    assert f"{BROKEN}.png" in skipped["reason"]
    assert (manifest["dimension"], manifest["dtype"], manifest["normalized"]) == (24, "float16", True)
    assert manifest["image_root"] == str(source.parent)
    assert manifest["model"]["description"]["class_path"] == "fanoise_lightning.OpenClipEncoder"
    assert {path.suffix for path in unbroken.path.iterdir()} == {".json", ".parquet", ".safetensors"}
    assert not (unbroken.path / "unfinished.json").exists()


def test_float32_is_exact(module: ContrastiveModule, tmp_path: Path) -> None:
    texts = [f"thing {row}" for row in range(5)]
    folder = embed(
        module,
        texts,
        tmp_path / "index",
        **{**OPTIONS, "text": None, "image": None, "id": None},
        dtype="float32",
    )
    torch.testing.assert_close(torch.cat(list(folder.shards())), module.encode(texts))
    assert folder.columns["id"].to_pylist() == ["0", "1", "2", "3", "4"]


def test_rows_of_like_cost_go_together_and_are_written_in_their_order(
    module: ContrastiveModule, tmp_path: Path
) -> None:
    texts = ["ant bee cat dog", "a b", "one two three four five", "red", "x y z", "six"]
    seen: list[int] = []
    handle = module.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(int((kwargs["input_ids"] != 0).sum(1).max())), with_kwargs=True
    )
    options = {**OPTIONS, "text": None, "image": None, "id": None, "batch_size": 2, "shard_size": 4}
    try:
        folder = embed(module, texts, tmp_path / "index", **options, dtype="float32")
    finally:
        handle.remove()
    long, short, _ = seen  # the tokens of the longest text in each batch: two of the first shard, and one
    assert short < long
    assert folder.columns["text"].to_pylist() == texts
    torch.testing.assert_close(torch.cat(list(folder.shards())), module.encode(texts))


def embed_until(replaced: int, done: bool, *args: Any, **options: Any) -> None:
    """Embed in a process that is killed before (or right after) it puts its n-th file in place."""

    def run() -> None:
        torch.set_num_threads(1)
        left = replaced
        replace = os.replace

        def watched(*paths: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0 and not done:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = watched  # type: ignore[assignment]
        embed(*args, **options)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_the_manifest_of_shards_that_were_removed_is_not_that_of_new_ones(
    module: ContrastiveModule, tmp_path: Path
) -> None:
    options = {**OPTIONS, "text": None, "image": None, "id": None}
    embed(module, [f"thing {row}" for row in range(8)], tmp_path / "index", **options)
    for shard in (tmp_path / "index").glob("*.safetensors"):
        shard.unlink()
    others = [f"other {row}" for row in range(16)]  # the first of two shards would do for the old manifest
    embed_until(3, True, module, others, tmp_path / "index", **options)  # the header, and that shard
    with pytest.raises(FileNotFoundError, match="unfinished"):
        EmbeddingFolder(tmp_path / "index")


def embedded_rows(module: ContrastiveModule, run: Any) -> int:
    """How many texts the encoder embeds meanwhile."""
    count = 0

    def add(_: Any, args: Any, kwargs: dict[str, Any], output: torch.Tensor) -> None:
        nonlocal count
        count += len(output)

    handle = module.encoder.register_forward_hook(add, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return count


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_like_an_unbroken_one(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    # files: the mark, rows and embeddings of each of 3 shards, the manifest
    embed_until(3, False, module, source, out, **OPTIONS)  # the rows are there, the embeddings half
    assert {path.suffix for path in out.iterdir()} == {".json", ".lock", ".parquet", ".tmp"}
    with pytest.raises(FileNotFoundError, match="is unfinished: run the same `fanoise embed` again"):
        EmbeddingFolder(out)
    embed_until(5, True, module, source, out, **OPTIONS)  # two shards
    again = embedded_rows(module, lambda: embed(module, source, out, **OPTIONS))
    assert again == 6  # of the third shard alone
    assert contents(out) == contents(unbroken.path)


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True], ids=["before the manifest", "after it"])
def test_a_run_killed_at_the_manifest_embeds_nothing_again(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, tmp_path: Path, done: bool
) -> None:
    out = tmp_path / "index"
    embed_until(8, done, module, source, out, **OPTIONS)
    assert embedded_rows(module, lambda: embed(module, source, out, **OPTIONS)) == 0
    assert contents(out) == contents(unbroken.path)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, tmp_path: Path
) -> None:
    out = tmp_path / "index"

    def run(rank: int) -> int:
        return embedded_rows(module, lambda: embed(module, source, out, **OPTIONS, devices=2, strategy="ddp"))

    assert run_on_ranks(run, 2) == [8 + 6, 7]  # shards 0 and 2, and 1 without the broken picture
    assert contents(out) == contents(unbroken.path)


@pytest.mark.slow
def test_two_processes_continue_what_one_began(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    embed_until(3, True, module, source, out, **OPTIONS)  # the mark, and both files of shard 0

    def run(rank: int) -> int:
        return embedded_rows(module, lambda: embed(module, source, out, **OPTIONS, devices=2, strategy="ddp"))

    assert run_on_ranks(run, 2) == [6, 7]  # shard 2, and 1 without the broken picture
    assert contents(out) == contents(unbroken.path)


@pytest.mark.slow
def test_two_runs_at_once_in_one_folder_are_refused_until_the_first_is_killed(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, tmp_path: Path
) -> None:
    out, context = tmp_path / "index", multiprocessing.get_context("fork")
    begun = context.Event()

    def run() -> None:
        torch.set_num_threads(1)
        module.encoder.register_forward_hook(lambda *_: (begun.set(), signal.pause()))
        embed(module, source, out, **{**OPTIONS, "num_workers": 2})  # workers, which outlive it for a while

    first = context.Process(target=run)
    first.start()
    assert begun.wait(60)
    with pytest.raises(OSError, match=rf"another `fanoise embed` is writing to `{out}`: wait for its end"):
        embed(module, source, out, **OPTIONS)
    first.kill()
    first.join()
    embed(module, source, out, **OPTIONS)
    assert contents(out) == contents(unbroken.path)


def test_rows_without_text_and_picture_are_listed_like_broken_pictures(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, tmp_path: Path
) -> None:
    lines = source.read_text().splitlines()
    lines.insert(3, json.dumps({"id": "blank", "text": " ", "image": ""}))
    lines.append(json.dumps({"id": "nothing"}))
    changed = source.parent / "with_empty.jsonl"
    changed.write_text("\n".join(lines))
    folder = embed(module, changed, tmp_path / "index", **OPTIONS)
    assert len(folder) == len(unbroken)
    reasons = {skipped["id"]: skipped["reason"] for skipped in folder.manifest["skipped"]}
    assert list(reasons) == ["blank", "nothing", f"sku-{BROKEN}"]
    assert reasons["nothing"] == f"`{changed}`, line {ROWS + 2}: it has neither text nor picture"


def test_a_temporary_file_of_somebody_else_is_kept(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder
) -> None:
    theirs, ours = unbroken.path / "notes.tmp", unbroken.path / "00000.parquet.123.tmp"
    theirs.touch()
    ours.touch()
    embed(module, source, unbroken.path, **OPTIONS)
    assert theirs.exists()
    assert not ours.exists()
    theirs.unlink()


@pytest.mark.parametrize(("name", "near"), [("device", "; did you mean `devices`"), ("fast_dev_run", "")])
def test_an_argument_that_the_trainer_lacks_or_that_leaves_rows_out_is_refused(
    module: ContrastiveModule, source: Path, tmp_path: Path, name: str, near: str
) -> None:
    with pytest.raises(ValueError, match=rf"unknown argument of `trainer` `{name}`{near}"):
        embed(module, source, tmp_path / "index", **OPTIONS, **{name: 1})
    assert not (tmp_path / "index").exists()


def test_a_folder_to_write_to_that_is_a_file_is_refused(
    module: ContrastiveModule, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "index").write_text("mine")
    with pytest.raises(OSError, match=r"index` is a file: name a folder"):
        embed(module, source, tmp_path / "index", **OPTIONS)
    assert (tmp_path / "index").read_text() == "mine"


def test_a_finished_folder_is_left_alone(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(unbroken.path)
    with caplog.at_level(logging.INFO, "fanoise_lightning"):
        assert embedded_rows(module, lambda: embed(module, source, unbroken.path, **OPTIONS)) == 0
    assert "is complete: nothing is left to embed" in caplog.text
    assert contents(unbroken.path) == before


@pytest.mark.parametrize("name", ["00001.parquet", "00001.safetensors"])
def test_a_shard_that_was_lost_is_written_again(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, name: str
) -> None:
    before = contents(unbroken.path)
    (unbroken.path / name).unlink()
    assert embedded_rows(module, lambda: embed(module, source, unbroken.path, **OPTIONS)) == 7
    assert contents(unbroken.path) == before


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"batch_size": 8}, {"precision": "bf16-mixed"}])
def test_a_folder_that_was_written_otherwise_is_refused(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, options: dict[str, Any]
) -> None:
    before = contents(unbroken.path)
    with pytest.raises(ValueError, match=rf"was begun with another `{next(iter(options))}`"):
        embed(module, source, unbroken.path, **{**OPTIONS, **options})
    assert contents(unbroken.path) == before


def test_a_folder_of_another_model_is_refused(
    tiny_clip: str, source: Path, unbroken: EmbeddingFolder
) -> None:
    other = ContrastiveModule(OpenClipEncoder(tiny_clip))
    with pytest.raises(ValueError, match=rf"another `model`: '{unbroken.fingerprint}', now '\w{{32}}'"):
        embed(other, source, unbroken.path, **OPTIONS)


def test_a_folder_of_another_source_is_refused(
    module: ContrastiveModule, source: Path, unbroken: EmbeddingFolder, tmp_path: Path
) -> None:
    changed = source.parent / "changed.jsonl"
    changed.write_text(source.read_text().replace("number 7", "number seven"))
    with pytest.raises(
        ValueError, match=r"was begun with another `source`: '.*catalogue\.jsonl', now '.*changed"
    ):
        embed(module, changed, unbroken.path, **OPTIONS)


def test_a_source_that_has_changed_is_said_with_its_rows(module: ContrastiveModule, tmp_path: Path) -> None:
    source = tmp_path / "texts.csv"
    source.write_text("text\na\nb\nc\n")
    options = {**OPTIONS, "image": None, "id": None}
    embed(module, source, tmp_path / "index", **options)
    source.write_text("text\na\nb\n")
    with pytest.raises(ValueError, match=r"texts\.csv` has changed since .* was begun: 3 rows then, 2 now"):
        embed(module, source, tmp_path / "index", **options)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "64", 64, "transformer-engine"])
def test_a_precision_that_leaves_the_module_converted_is_refused(
    module: ContrastiveModule, source: Path, tmp_path: Path, precision: Any
) -> None:
    with pytest.raises(ValueError, match=rf"`precision` '{precision}' would leave the module converted"):
        embed(module, source, tmp_path / "index", **OPTIONS, precision=precision)
    assert not (tmp_path / "index").exists()


def test_a_row_whose_embedding_is_zero_is_skipped_with_the_reason(
    module: ContrastiveModule, source: Path, tmp_path: Path
) -> None:
    handle = module.encoder.register_forward_hook(lambda *args: args[-1].index_fill(0, torch.tensor([1]), 0))
    try:
        folder = embed(
            module,
            ["a", "b", "c"],
            tmp_path / "index",
            **{**OPTIONS, "text": None, "image": None, "id": None},
        )
    finally:
        handle.remove()
    assert folder.columns["id"].to_pylist() == ["0", "2"]
    assert folder.manifest["skipped"] == [{"id": "1", "reason": "its embedding is zero"}]
    torch.testing.assert_close(
        torch.cat(list(folder.shards())).float().norm(dim=1), torch.ones(2), atol=1e-3, rtol=0
    )


def test_a_trained_module_without_its_checkpoint_is_warned_of(
    module: ContrastiveModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "pairs_seen", 8)
    options = {**OPTIONS, "text": None, "image": None, "id": None}
    with pytest.warns(UserWarning, match="pass it as `checkpoint`"):
        embed(module, ["a"], tmp_path / "index", **options)
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint `gone\.ckpt`"):
        embed(module, ["a"], tmp_path / "other", **options, checkpoint="gone.ckpt")


def test_nothing_but_our_own_lines_are_printed(
    module: ContrastiveModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        embed(module, ["a"], tmp_path / "index", **{**OPTIONS, "text": None, "image": None, "id": None})
    assert {record.name for record in caplog.records} == {"fanoise_lightning"}
    assert not [line for line in warned if "LeafSpec" in str(line.message)]


def test_a_local_model_is_found_from_any_directory(
    tiny_clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path(tiny_clip)
    monkeypatch.chdir(config.parent)
    module = ContrastiveModule(OpenClipEncoder(config.name))
    folder = embed(module, ["a"], tmp_path / "index", **{**OPTIONS, "text": None, "image": None, "id": None})
    assert folder.manifest["model"]["description"]["init_args"]["model"] == str(config.resolve())


def test_a_run_that_wrote_no_shard_may_be_started_otherwise(
    module: ContrastiveModule, source: Path, tmp_path: Path
) -> None:
    """Such as with a smaller batch, after it did not fit the memory."""
    embed_until(1, True, module, source, tmp_path / "index", **OPTIONS)
    assert len(embed(module, source, tmp_path / "index", **{**OPTIONS, "batch_size": 2})) == ROWS - 1


def test_a_folder_with_other_files_is_refused(module: ContrastiveModule, source: Path) -> None:
    before = contents(source.parent)
    with pytest.raises(ValueError, match=r"holds `1\.png`, which is not ours"):
        embed(module, source, source.parent, **OPTIONS)
    assert contents(source.parent) == before


def test_an_id_that_is_given_twice_is_refused_before_anything_is_written(
    module: ContrastiveModule, source: Path, tmp_path: Path
) -> None:
    path = source.parent / "twice.jsonl"
    path.write_text(source.read_text().replace('"sku-9"', '"sku-2"'))
    with pytest.raises(ValueError, match=r"'sku-2' is given twice.*line 3\b.*line 10\b"):
        embed(module, path, tmp_path / "index", **OPTIONS)
    assert not (tmp_path / "index").exists()


def test_if_no_row_can_be_embedded_that_is_an_error(module: ContrastiveModule, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"not a picture")
    rows = [{"id": name, "text": "", "image": str(tmp_path / f"{name}.png")} for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"none of the 2 rows could be embedded \(the first, 'a'.*a\.png"):
        embed(module, rows, tmp_path / "index", **OPTIONS)
    with pytest.raises(FileNotFoundError, match="is unfinished"):
        EmbeddingFolder(tmp_path / "index")


def test_an_embedding_that_is_not_finite_is_refused_with_its_id(
    module: ContrastiveModule, source: Path, tmp_path: Path
) -> None:
    handle = module.encoder.register_forward_hook(lambda *args: args[-1] * float("nan"))
    try:
        with pytest.raises(ValueError, match=r"row 0 \(id 'sku-0'\) is not finite, nor are 3 more"):
            embed(module, source, tmp_path / "index", **OPTIONS)
    finally:
        handle.remove()


def test_a_disk_that_is_too_small_is_said_before_anything_is_embedded(
    module: ContrastiveModule, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="has 0 MB left, and the embeddings take"):
        embed(module, source, tmp_path / "index", **OPTIONS)
