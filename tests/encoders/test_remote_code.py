"""Code in the folder of a model is refused at once: here the user answers yes to every question."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fanoise_lightning import ContrastiveModule, OpenClipEncoder, TwoTowerEncoder, VisionLanguageEncoder

CODE = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\nclass Theirs: pass\n"
# file, its key for the class, the Auto class
PARTS = {
    "processor": ("processor_config.json", "processor_class", "AutoProcessor"),
    "tokenizer": ("tokenizer_config.json", "tokenizer_class", "AutoTokenizer"),
    "image processor": ("preprocessor_config.json", "image_processor_type", "AutoImageProcessor"),
    "video processor": ("video_preprocessor_config.json", "video_processor_type", "AutoVideoProcessor"),
    "config": ("config.json", "transformers_version", "AutoConfig"),
    "model": ("config.json", "transformers_version", "AutoModel"),
}
REFUSED = pytest.raises(ValueError, match="asks for `trust_remote_code`: it needs Python code")


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    stdin = io.StringIO("y\n" * 99)
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield
    assert stdin.tell() == 0
    assert not list(tmp_path.rglob("imported"))


@pytest.fixture
def theirs(tmp_path: Path, tiny: Callable[[str], str]) -> Callable[..., Path]:
    """A copy of a tiny model in which one part asks for code."""

    def copied(family: str, part: str, inside: str | None = None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny(family), folder)
        (folder / "their_code.py").write_text(CODE)
        name, key, auto = PARTS[part]
        file = folder / name
        config = json.loads(file.read_text()) if file.is_file() else {}
        at = config[inside] if inside else config
        reference: Any = ["their_code.Theirs", None] if part == "tokenizer" else "their_code.Theirs"
        at |= {key: "Theirs", "auto_map": {auto: reference}}
        file.write_text(json.dumps(config))
        if (both := folder / "processor_config.json") != file and part.endswith("processor"):
            processor = json.loads(both.read_text())
            processor.pop(part.replace(" ", "_"), None)  # or this comes first
            both.write_text(json.dumps(processor))
        return folder

    return copied


@pytest.mark.parametrize("part", ["processor", "image processor"])
@pytest.mark.parametrize("build", ["alone", "by a checkpoint"])
def test_two_towers_refuse_it(theirs: Callable[..., Path], tmp_path: Path, part: str, build: str) -> None:
    folder = str(theirs("clip", part))
    with REFUSED as caught:
        if build == "alone":
            TwoTowerEncoder(folder)
        else:
            load(tmp_path, "fanoise_lightning.TwoTowerEncoder", folder)
    assert folder in str(caught.value)


@pytest.mark.parametrize("part", ["tokenizer", "config", "model"])
def test_two_towers_have_no_use_for_it(theirs: Callable[..., Path], part: str) -> None:
    TwoTowerEncoder(str(theirs("clip", part)))


def load(tmp_path: Path, encoder: str, model: str) -> None:
    """Load a checkpoint that names an encoder with a model."""
    described = {
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "encoder": {"class_path": encoder, "init_args": {"model": model}},
        "loss": {"class_path": "fanoise_lightning.InfoNCE"},
    }
    named = {"hyper_parameters": described, "state_dict": {}, "pytorch-lightning_version": "2.6.6"}
    torch.save(named, tmp_path / "named.ckpt")
    ContrastiveModule.load_from_checkpoint(tmp_path / "named.ckpt", strict=False)


@pytest.mark.parametrize("part", ["processor", "image processor", "video processor"])
def test_a_vision_language_model_of_a_known_type_refuses_it(theirs: Callable[..., Path], part: str) -> None:
    with REFUSED:
        VisionLanguageEncoder(str(theirs("qwen2_vl", part)), trust_remote_code=True)


@pytest.mark.parametrize("part", ["tokenizer", "config", "model"])
def test_a_vision_language_model_has_no_use_for_it(theirs: Callable[..., Path], part: str) -> None:
    VisionLanguageEncoder(str(theirs("qwen2_vl", part)))


def test_a_model_inside_a_model_is_refused_it(theirs: Callable[..., Path]) -> None:
    """The library does not pass `trust_remote_code` on to it."""
    folder = theirs("llava_next", "model", "vision_config")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoModel": f"{folder}--their_code.Theirs"}
    config["vision_config"] |= {"model_type": "clipseg_text_model", "auto_map": code}  # it has no AutoModel
    (folder / "config.json").write_text(json.dumps(config))
    with REFUSED:
        VisionLanguageEncoder(str(folder))


@pytest.fixture
def open_clip_folder(tiny_clip: str, tmp_path: Path) -> Callable[[str], str]:
    """An open_clip model whose text tower or tokenizer comes with code."""

    def written(part: str) -> str:
        config = json.loads(Path(tiny_clip).read_text())
        tower = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "hf_proj_type": "mlp"}
        config["text_cfg"] |= {"hf_tokenizer_name": str(tmp_path)} | (tower if part != "tokenizer" else {})
        described = {"model_cfg": config, "preprocess_cfg": {}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
        auto = {"config": "AutoConfig", "model": "AutoModel", "tokenizer": "AutoTokenizer"}[part]
        reference: Any = ["their_code.Theirs", None] if part == "tokenizer" else "their_code.Theirs"
        code = {"auto_map": {auto: reference}}
        kind = "clipseg_text_model" if part == "model" else "theirs"  # the former has no AutoModel
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **code}))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Theirs", **code}))
        (tmp_path / "their_code.py").write_text(CODE)
        return f"local-dir:{tmp_path}"

    return written


@pytest.mark.parametrize("part", ["config", "model", "tokenizer"])
@pytest.mark.parametrize("build", ["alone", "by a checkpoint"])
def test_open_clip_refuses_it(
    open_clip_folder: Callable[[str], str], tmp_path: Path, part: str, build: str
) -> None:
    model = open_clip_folder(part)
    with REFUSED as caught:
        if build == "alone":
            OpenClipEncoder(model)
        else:
            load(tmp_path, "fanoise_lightning.OpenClipEncoder", model)
    assert f"{model!r}, with " in str(caught.value)
