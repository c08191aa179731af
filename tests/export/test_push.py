"""A folder that a library was seen to read is pushed whole; any other push leaves hub and folder as they are.

The hub is a local HTTP server (`fake_model_hub`), which `huggingface_hub` itself talks to.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from export.fake_model_hub import TOKEN, FakeModelHub
from huggingface_hub import ModelCard

from fanoise_lightning.__main__ import main
from fanoise_lightning.export.push import check_push, push_folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModelHub]:
    with FakeModelHub().running() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported folder; of its files only the receipt is read."""
    folder = tmp_path / "my-model"
    (folder / "1_Pooling").mkdir(parents=True)
    readers = {
        "open_clip": {"status": "verified"},
        "transformers": {"status": "unverified", "why": "missing"},
    }
    (folder / "verified.json").write_text(json.dumps({"readers": readers}))
    (folder / "README.md").write_text("---\nlibrary_name: open_clip\n---\n# my-model\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_repository_holds_what_the_folder_holds(hub: FakeModelHub, folder: Path) -> None:
    assert push_folder(folder, "me/my-model") == f"{hub.url}/me/my-model"
    repository = hub.repositories["me/my-model"]
    assert repository["private"] is False
    assert repository["files"] == {**contents(folder), ".gitattributes": b"old"}


def test_a_private_repository_is_created_as_one(hub: FakeModelHub, folder: Path) -> None:
    push_folder(folder, "me/my-model", private=True)
    assert hub.repositories["me/my-model"]["private"] is True


def test_what_an_earlier_push_left_is_removed(hub: FakeModelHub, folder: Path) -> None:
    hub.add("me/my-model", "verified.json", "adapter_model.safetensors", ".gitattributes", private=True)
    push_folder(folder, "me/my-model", private=True)
    assert hub.repositories["me/my-model"]["files"].keys() == {*contents(folder), ".gitattributes"}


def test_another_model_is_not_overwritten(hub: FakeModelHub, folder: Path) -> None:
    hub.add("me/my-model", "model.safetensors", "README.md")
    with pytest.raises(
        ValueError, match=r"me/my-model holds another model, with model\.safetensors and no ver"
    ):
        push_folder(folder, "me/my-model")
    assert set(hub.repositories["me/my-model"]["files"].values()) == {b"old"}


def test_a_public_repository_is_not_used_for_a_private_push(hub: FakeModelHub, folder: Path) -> None:
    hub.add("me/my-model", "README.md")
    with pytest.raises(ValueError, match="me/my-model is public; nothing was uploaded"):
        push_folder(folder, "me/my-model", private=True)
    assert hub.repositories["me/my-model"]["files"] == {"README.md": b"old"}


@pytest.mark.parametrize("refuses", ["repos/create", "models/me/my-model$", "/preupload/", "/commit/"])
def test_a_refused_push_leaves_the_folder_and_says_how_to_repeat_it(
    hub: FakeModelHub, folder: Path, refuses: str
) -> None:
    before, hub.refuses = contents(folder), refuses
    command = rf"push it with `hf upload me/my-model {folder} \. --private`"
    with pytest.raises(
        OSError, match=rf"the push to me/my-model failed .*403.* is complete: {command}"
    ) as error:
        push_folder(folder, "me/my-model", private=True)
    assert contents(folder) == before
    shown = "".join(traceback.format_exception(error.value))
    assert "refused: Bearer <token>" in shown  # the server quotes the request
    assert TOKEN not in shown


def test_a_hub_that_cannot_be_reached_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(OSError, match=r"the push to me/my-model failed \(ConnectError"):
        push_folder(folder, "me/my-model")


def test_a_folder_that_no_library_has_read_is_not_pushed(hub: FakeModelHub, folder: Path) -> None:
    readers = {"open_clip": {"status": "unverified", "why": "it was exported with `verify=False`"}}
    (folder / "verified.json").write_text(json.dumps({"readers": readers}))
    with pytest.raises(ValueError, match="was not pushed: no library was seen to read it"):
        push_folder(folder, "me/my-model")
    assert hub.requests == []


@pytest.mark.parametrize(("base", "refused"), [("/home/me/qwen", True), ("Qwen/Qwen2-VL-2B-Instruct", False)])
def test_an_adapter_of_a_model_on_this_machine_is_not_pushed(
    hub: FakeModelHub, folder: Path, base: str, refused: bool
) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    if refused:
        with pytest.raises(ValueError, match="belongs to `/home/me/qwen`, which only this machine has"):
            push_folder(folder, "me/my-model")
        assert hub.requests == []
    else:
        push_folder(folder, "me/my-model")


@pytest.mark.parametrize("name", ["my-model", "a/b/c", "me/my model", "me/", ""])
def test_a_name_that_is_no_repository_is_refused(hub: FakeModelHub, name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a repository"):
        check_push(name)


def test_a_push_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PermissionError, match="needs a token that may write there: run `hf auth login`"):
        check_push("me/my-model")


# The command


@pytest.fixture
def checkpoint(saved_checkpoint: dict[str, Any], tmp_path: Path) -> str:
    torch.save(saved_checkpoint, tmp_path / "last.ckpt")
    return str(tmp_path / "last.ckpt")


def test_the_command_pushes_what_it_exported(
    hub: FakeModelHub, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"text": 0.0, "picture": 0.0, "text and picture": 0.0}
    found = {"status": "verified", "version": "3", "largest_difference": 0.0, "rows": rows, "cannot": {}}
    # libraries that read folders have their own tests, and take seconds to import
    monkeypatch.setattr(
        "fanoise_lightning.export.export_encoder.read_back", lambda checks: [{"open_clip": found}]
    )
    out = tmp_path / "out"
    main(["export", checkpoint, str(out), "--push_to_hub=me/my-model", "--private"])
    files = hub.repositories["me/my-model"]["files"]
    assert files == {**contents(out), ".gitattributes": b"old"}
    card = ModelCard(files["README.md"].decode())
    assert "# my-model" in card.text
    assert '"hf-hub:me/my-model"' in card.text
    for content in files.values():
        assert TOKEN.encode() not in content
        assert str(tmp_path.parent).encode() not in content  # paths of this machine


def test_the_command_exports_nothing_for_a_push_that_cannot_succeed(checkpoint: str, tmp_path: Path) -> None:
    for options in (["--push_to_hub=my-model"], ["--private"]):
        with pytest.raises(SystemExit):
            main(["export", checkpoint, str(tmp_path / "out"), *options])
        assert not (tmp_path / "out").exists()
