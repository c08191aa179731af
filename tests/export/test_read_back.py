"""Every family is exported, and every library gives the same vectors; those of a damaged folder differ."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export.tiny_encoders import OPTIONS, build, build_open_clip
from safetensors.torch import load_file, save_file

from fanoise_lightning.export.rotation import spectral_rotation
from fanoise_lightning.export.verify import BAR, Check, verify
from fanoise_lightning.export.write import write

pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.slow

ST, TRANSFORMERS, OPEN_CLIP = "sentence-transformers", "transformers", "open_clip"
ADAPTERS = {"qwen2_vl, adapter": "qwen2_vl", "clip, adapter": "clip"}  # alone, not merged
OF_OPEN_CLIP = {"open_clip": {}, "open_clip, merged": {"lora": {"r": 2}}}
ROTATED = {"qwen2_vl, rotated": "qwen2_vl", "clip, rotated": "clip"}
NAMES = [*OPTIONS, *ADAPTERS, *OF_OPEN_CLIP]

ALWAYS = {"text", "short text", "text in other scripts", "text with white space", "text with a prompt"}
PICTURES = {"picture", "grey picture", "text and picture", "two pictures", "picture with a prompt"}
EVERYWHERE = {"palette picture", "transparent picture", "turned picture", "name of a special token"}
NAME = "name of a picture file"  # for sentence-transformers, which then opens it
TWO_TOWERS = {"text and picture", "picture with a prompt"}
LIMITS = {  # what a library reads differently, beside these
    ("qwen2_vl, as VLM2Vec", ST): PICTURES | {"places in the text"},
    ("qwen2_vl, eos", TRANSFORMERS): {"long text"},
    ("qwen2_vl, eos", ST): {"long text"},
    ("llava_next", ST): {"long text"},
    ("siglip2", TRANSFORMERS): {"grey picture"},
    ("siglip2", ST): {"grey picture"} | TWO_TOWERS,
    **{(name, ST): TWO_TOWERS for name in ("clip", "clip, adapter", "siglip", "align")},
}


def edit(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Damage a JSON file of a folder."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return damage


def one_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.1.self_attn.o_proj" in name)
    weights[name][0, 0] += 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def one_rotation(folder: Path) -> None:
    file = folder / "2_Dense" / "model.safetensors"
    save_file({name: weight.T.contiguous() for name, weight in load_file(file).items()}, file)


def half_the_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def text_before_pictures(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text("{{- 'x' -}}" + file.read_text())


def mean_pooling(config: dict[str, Any]) -> None:
    config.update(pooling_mode_lasttoken=False, pooling_mode_mean_tokens=True)


DAMAGES: dict[str, tuple[str, Callable[[Path], None], dict[str, str]]] = {
    # of which folder, how, and why each library must refuse it; those that are not named read it as before
    "weight": ("qwen2_vl", one_weight, {TRANSFORMERS: "text: differs", ST: "text: differs"}),
    "half": ("clip", half_the_weights, {TRANSFORMERS: "cannot open", ST: "cannot open"}),
    "template": ("qwen2_vl", text_before_pictures, {TRANSFORMERS: "text: differs", ST: "text: differs"}),
    "pooling": ("qwen2_vl", edit("1_Pooling/config.json", mean_pooling), {ST: "text: differs"}),
    "rotation": ("clip, rotated", one_rotation, {ST: "text: differs"}),
    "length": (
        "qwen2_vl",
        edit("sentence_bert_config.json", lambda config: config.update(max_seq_length=61)),
        {ST: "long text: differs"},
    ),
    "padding": (
        "siglip",
        edit("sentence_bert_config.json", lambda config: config["processing_kwargs"]["text"].clear()),
        {ST: "short text: differs"},
    ),
    "colours": (
        "open_clip",
        edit("open_clip_config.json", lambda config: config["preprocess_cfg"]["mean"].reverse()),
        {OPEN_CLIP: "picture: differs"},
    ),
}


@pytest.fixture(scope="module")
def receipts(once: Callable[..., Any]) -> dict[str, Any]:
    """What each library reads in each folder. It takes seconds to import: one process reads all folders."""
    return once("exported", read_all)


def read_all(root: Path) -> dict[str, Any]:
    checks: dict[str, Check] = {}
    encoders: dict[str, Any] = {}
    for number, name in enumerate(NAMES):
        base, out = root / f"base{number}", root / f"out{number}"
        out.mkdir()
        if name in OF_OPEN_CLIP:
            encoder: Any = build_open_clip(base, **OF_OPEN_CLIP[name])
        else:
            encoder = build(base, ADAPTERS.get(name, name))
        encoders[name] = encoder
        before = copy.deepcopy(encoder.state_dict())
        modes = [part.training for part in encoder.modules()]
        checks[name], _ = write(encoder, out, merge=name not in ADAPTERS)
        after = encoder.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), name
        assert modes == [part.training for part in encoder.modules()]
    for name, base in ROTATED.items():
        (out := root / name).mkdir()
        rotation = spectral_rotation(torch.randn(99, encoders[base].embedding_dim))
        checks[name], _ = write(encoders[base], out, merge=True, rotation=rotation)
    for damage, (name, change, _) in DAMAGES.items():
        folder = Path(shutil.copytree(checks[name].folder, root / damage))
        change(folder)
        checks[damage] = replace(checks[name], folder=folder)
    found = dict(zip(checks, verify(list(checks.values())), strict=True))
    return found | {"checks": checks}


@pytest.mark.parametrize("name", NAMES)
def test_every_library_reads_the_same_vectors(receipts: dict[str, Any], name: str) -> None:
    assert receipts[name].keys() == ({OPEN_CLIP} if name in OF_OPEN_CLIP else {TRANSFORMERS, ST})
    for reader, receipt in receipts[name].items():
        assert receipt["status"] == "verified", (reader, receipt)
        assert receipt["rows"].keys() >= ALWAYS
        assert any(kind.startswith("batch of") for kind in receipt["rows"])
        assert receipt["largest_difference"] == max(receipt["rows"].values()) <= BAR
        opened = {NAME} if reader == ST and name != "qwen2_vl, as VLM2Vec" else set()  # which has texts only
        assert receipt["cannot"].keys() - EVERYWHERE == LIMITS.get((name, reader), set()) | opened


@pytest.mark.parametrize("name", ROTATED)
def test_sentence_transformers_rotates_and_transformers_does_not(receipts: dict[str, Any], name: str) -> None:
    check = receipts["checks"][name]
    assert (check.vectors @ check.written.rotation - check.vectors).abs().max() > 0.1
    for receipt in receipts[name].values():
        assert receipt["status"] == "verified", receipt


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_not_read_as_the_encoder(receipts: dict[str, Any], damage: str) -> None:
    expected = DAMAGES[damage][2]
    for reader, receipt in receipts[damage].items():
        if reader in expected:
            assert receipt["status"] == "failed"
            assert receipt["why"].removeprefix("it ").startswith(expected[reader]), receipt["why"]
        else:
            assert receipt["status"] == "verified"


def test_an_encoder_that_lets_special_tokens_act_is_read_alike(receipts: dict[str, Any]) -> None:
    for receipt in receipts["qwen2_vl, all weights"].values():
        assert receipt["cannot"].keys() - {NAME} == {"turned picture"}


def test_a_generative_model_reads_rows_of_every_kind_in_one_batch(receipts: dict[str, Any]) -> None:
    for name in ("qwen2_vl", "qwen2_5_vl"):
        rows = receipts[name][ST]["rows"]
        assert {"two pictures", "places in the text", "picture with a prompt", "long text"} <= rows.keys()
        assert "batch of 10 rows" in rows


def test_rows_that_the_encoder_refuses_are_not_compared(receipts: dict[str, Any]) -> None:
    for receipt in receipts["qwen3_vl"].values():
        assert "two pictures" not in receipt["rows"].keys() | receipt["cannot"].keys()
        assert "picture" in receipt["rows"]


def test_an_adapter_is_written_without_its_model_and_names_it(receipts: dict[str, Any]) -> None:
    for name in ADAPTERS:
        folder = receipts["checks"][name].folder
        assert not (folder / "model.safetensors").exists()
        base = Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
        assert (base / "model.safetensors").is_file()
        assert base.is_absolute()


def test_the_language_head_is_written(receipts: dict[str, Any]) -> None:
    """The encoder has none, and a model without it would generate at random."""
    folder = receipts["checks"]["qwen2_vl"].folder
    base = folder.with_name("base0")
    head = load_file(base / "model.safetensors")["lm_head.weight"]
    assert torch.equal(load_file(folder / "model.safetensors")["lm_head.weight"], head)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        "Qwen2VLForConditionalGeneration"
    ]
