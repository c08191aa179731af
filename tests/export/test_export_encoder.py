"""What is exported appears whole under its name, with a receipt; what cannot be exported leaves nothing."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import tiny_two_towers
from export.tiny_encoders import build, build_open_clip
from toy_encoder import ToyEncoder

from fanoise_lightning import ContrastiveModule, TwoTowerEncoder, export_encoder
from fanoise_lightning.__main__ import main
from fanoise_lightning.export import export_encoder as exporting
from fanoise_lightning.export import verify as verifying
from fanoise_lightning.export.staging import check_out, whole_folder


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_a_checkpoint_is_exported_by_the_command(
    write_checkpoint: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import open_clip
    import torch

    checkpoint, out = write_checkpoint(), tmp_path / "there" / "out"
    main(["export", str(checkpoint), str(out)])
    assert left(out.parent) == ["out"]
    assert left(out) == ["README.md", "open_clip_config.json", "open_clip_model.safetensors", "verified.json"]
    receipt = json.loads((out / "verified.json").read_text())
    assert receipt["readers"]["open_clip"]["status"] == "verified"
    assert receipt["readers"]["open_clip"]["version"] == open_clip.__version__
    assert f"to `{out}`: open_clip {open_clip.__version__} reads the same vectors" in caplog.text
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(["a red mug"])
    with torch.inference_mode():
        theirs = model.eval().encode_text(tokens, normalize=True)
    ours = ContrastiveModule.load_from_checkpoint(checkpoint).encode(["a red mug"])
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)


def test_without_verification_the_receipt_says_so(tmp_path: Path) -> None:
    encoder = build_open_clip(tmp_path / "base")
    out = tmp_path / "out"
    out.mkdir()  # an empty folder will do
    receipt = export_encoder(encoder, out, verify=False)
    assert receipt == json.loads((out / "verified.json").read_text())
    assert receipt["readers"]["open_clip"]["status"] == "unverified"
    assert "Not verified" in (out / "README.md").read_text()


def test_a_library_that_is_not_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    receipt = export_encoder(build_open_clip(tmp_path / "base"), tmp_path / "out")
    assert receipt["readers"]["open_clip"] == {"status": "unverified", "why": "open_clip is not installed"}
    assert (tmp_path / "out" / "open_clip_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyboardInterrupt(), None),
        (OSError(errno.ENOSPC, "No space left on device"), "MB are free"),
        (RuntimeError("killed"), "killed"),
    ],
)
def test_whatever_happens_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str | None
) -> None:
    def fail(checks: Any) -> Any:
        assert (checks[0].folder / "open_clip_model.safetensors").is_file()
        raise error

    monkeypatch.setattr(exporting, "read_back", fail)
    with pytest.raises(type(error), match=message):
        export_encoder(build_open_clip(tmp_path / "base"), tmp_path / "out")
    assert left(tmp_path) == ["base"]


def test_other_vectors_are_an_error_that_names_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = {"open_clip": {"status": "failed", "version": "3", "why": "text: differs by 0.1"}}
    monkeypatch.setattr(exporting, "read_back", lambda checks: [failed])
    with pytest.raises(ValueError, match=r"nothing was exported: open_clip 3 .* text: differs by 0.1"):
        export_encoder(build_open_clip(tmp_path / "base"), tmp_path / "out")
    assert left(tmp_path) == ["base"]


@pytest.mark.slow
def test_a_library_that_hangs_or_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_open_clip(tmp_path / "base")
    monkeypatch.setattr(verifying, "TIMEOUT", 0.01)
    with pytest.raises(RuntimeError, match=r"open_clip took more than 0.01 s"):
        export_encoder(encoder, tmp_path / "out")
    monkeypatch.undo()
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "with_open_clip.py").write_text("raise MemoryError('too large')")
    monkeypatch.setattr(verifying, "_SCRIPTS", scripts)
    with pytest.raises(RuntimeError, match=r"open_clip ended without .*: MemoryError: too large"):
        export_encoder(encoder, tmp_path / "out")
    assert left(tmp_path) == ["base", "scripts"]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    encoder = build_open_clip(tmp_path / "base")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out` is not empty: name a new or an empty folder"):
        export_encoder(encoder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"mine.txt` is a file"):
        export_encoder(encoder, tmp_path / "out" / "mine.txt")
    with pytest.raises(OSError, match=r"mine.txt"):
        export_encoder(encoder, tmp_path / "out" / "mine.txt" / "below")
    assert left(tmp_path / "out") == ["mine.txt"]


def test_a_symbolic_link_to_an_empty_folder_stays(tmp_path: Path) -> None:
    encoder = build_open_clip(tmp_path / "base")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export_encoder(encoder, tmp_path / "link", verify=False)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "verified.json").is_file()
    assert left(tmp_path) == ["base", "link", "real"]


def test_the_longest_name_that_the_disk_takes_will_do(tmp_path: Path) -> None:
    with whole_folder(tmp_path / ("x" * 255)):
        pass
    assert left(tmp_path) == ["x" * 255]


def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^`\.` is the current folder: name another one"):
        check_out(".")
    with pytest.raises(OSError, match=f"File name too long.*{'x' * 256}"):
        check_out("x" * 256)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"^`file/below` cannot be a folder: `.*/file` is a file$"):
        check_out("file/below")
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may do everything
    with pytest.raises(PermissionError, match=r"^`a/b` cannot be written: you may not write to `.*`$"):
        check_out("a/b")
    assert left(tmp_path) == ["file"]


def test_the_command_looks_at_the_folder_before_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "no.ckpt"), str(tmp_path / "file")])
    assert capsys.readouterr().err.endswith("file` is a file: name a new or an empty folder\n")


def test_an_adapter_alone_says_which_weights_it_belongs_to(tmp_path: Path) -> None:
    encoder = build(tmp_path / "base", "clip")
    receipt = export_encoder(encoder, tmp_path / "out", merge=False, verify=False)
    expected = sha256((tmp_path / "base" / "model.safetensors").read_bytes()).hexdigest()
    assert receipt["base"] == {"sha256": {"model.safetensors": expected}}
    assert expected in (tmp_path / "out" / "README.md").read_text()
    assert "base" not in export_encoder(encoder, tmp_path / "merged", verify=False)


def test_weights_of_several_dtypes_are_named(tmp_path: Path) -> None:
    encoder = build(tmp_path / "base", "clip")
    encoder.network.vision_model.bfloat16()
    with pytest.raises(ValueError, match="weights in bfloat16 and float32, and cannot embed with them"):
        export_encoder(encoder, tmp_path / "out", verify=False)
    assert left(tmp_path) == ["base"]


def test_an_encoder_that_diverged_is_refused(tmp_path: Path) -> None:
    encoder = build_open_clip(tmp_path / "base")
    encoder.clip.text_projection.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="vectors that are not finite"):
        export_encoder(encoder, tmp_path / "out")
    assert left(tmp_path) == ["base"]


@pytest.mark.parametrize("family", ["blip", "blip-2"])
def test_towers_that_no_library_loads_are_refused(tmp_path: Path, family: str) -> None:
    encoder = TwoTowerEncoder(tiny_two_towers.save_tiny(tmp_path / "base", family))
    with pytest.raises(ValueError, match=f"a {family} model cannot be exported: .* Families that can: CLIP"):
        export_encoder(encoder, tmp_path / "out")
    assert left(tmp_path) == ["base"]


def test_an_encoder_of_ones_own_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a ToyEncoder cannot be exported: .* VisionLanguageEncoder"):
        export_encoder(ContrastiveModule(ToyEncoder()), tmp_path / "out")
    assert not left(tmp_path)


def test_an_adapter_alone_needs_an_adapter_and_a_library_for_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the encoder has no adapter"):
        export_encoder(build_open_clip(tmp_path / "base"), tmp_path / "out", merge=False)
    with pytest.raises(ValueError, match="open_clip cannot read an adapter"):
        export_encoder(build_open_clip(tmp_path / "other", lora={"r": 2}), tmp_path / "out", merge=False)
    assert left(tmp_path) == ["base", "other"]


@pytest.mark.parametrize("merge", [True, False])
def test_a_model_that_has_gone_is_named(tmp_path: Path, merge: bool) -> None:
    encoder = build(tmp_path / "base", "qwen2_vl")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*base' with a model"):
        export_encoder(encoder, tmp_path / "out", merge=merge)
    assert not left(tmp_path)


def test_the_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "no.ckpt"), str(tmp_path / "out")])
    assert capsys.readouterr().err.splitlines() == [f"fanoise: there is no checkpoint `{tmp_path}/no.ckpt`"]
