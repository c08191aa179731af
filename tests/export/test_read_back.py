"""Every family is exported, and every library that reads it gives the same vectors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from export.tiny_encoders import OPTIONS, build, build_open_clip

from fanoise_lightning.export.verify import BAR, verify
from fanoise_lightning.export.write import write

pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.slow

OPEN_CLIP = {"open_clip": {}, "open_clip, merged": {"lora": {"r": 2}}}
ALWAYS = {"text", "short text", "text with white space", "text with a prompt"}
# what a library cannot read as the encoder does, beside transparency, EXIF and names of special tokens
PICTURES = {"picture", "grey picture", "text and picture", "two pictures", "picture with a prompt"}
ST, TRANSFORMERS = "sentence-transformers", "transformers"
LIMITS = {
    ("qwen2_vl, as VLM2Vec", ST): PICTURES | {"places in the text"},
    ("qwen2_vl, eos", TRANSFORMERS): {"long text"},
    ("qwen2_vl, eos", ST): {"long text"},
    ("llava_next", ST): {"long text"},
    ("siglip2", TRANSFORMERS): {"grey picture"},
    ("siglip2", ST): {"grey picture", "text and picture"},
    **{(name, ST): {"text and picture"} for name in ("clip", "siglip", "align")},
}
EVERYWHERE = {"transparent picture", "turned picture", "name of a special token"}


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each library reads in each folder: the libraries take seconds to import, so all folders at once."""
    root, checks = tmp_path_factory.mktemp("exported"), {}
    for number, name in enumerate([*OPTIONS, *OPEN_CLIP]):
        base, out = root / f"base{number}", root / f"out{number}"
        out.mkdir()
        encoder = build(base, name) if name in OPTIONS else build_open_clip(base, **OPEN_CLIP[name])
        before = copy.deepcopy(encoder.state_dict())
        modes = [part.training for part in encoder.modules()]
        checks[name], _ = write(encoder, out, merge=True)
        after = encoder.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), name
        assert modes == [part.training for part in encoder.modules()]
    return dict(zip(checks, verify(list(checks.values())), strict=True))


@pytest.mark.parametrize("name", [*OPTIONS, *OPEN_CLIP])
def test_every_library_reads_the_same_vectors(receipts: dict[str, Any], name: str) -> None:
    expected = {"open_clip"} if name in OPEN_CLIP else {TRANSFORMERS, ST}
    assert receipts[name].keys() == expected
    for reader, receipt in receipts[name].items():
        assert receipt["status"] == "verified"
        assert receipt["rows"].keys() >= ALWAYS
        assert any(kind.startswith("batch of") for kind in receipt["rows"])
        assert receipt["largest_difference"] == max(receipt["rows"].values()) <= BAR
        assert receipt["cannot"].keys() - EVERYWHERE == LIMITS.get((name, reader), set())


def test_an_encoder_that_lets_special_tokens_act_is_read_alike(receipts: dict[str, Any]) -> None:
    for receipt in receipts["qwen2_vl, all weights"].values():
        assert receipt["cannot"].keys() == {"turned picture"}


def test_a_generative_model_reads_rows_of_every_kind_in_one_batch(receipts: dict[str, Any]) -> None:
    for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        rows = receipts[name][ST]["rows"]
        assert {"two pictures", "places in the text", "picture with a prompt", "long text"} <= rows.keys()
        assert "batch of 9 rows" in rows


def test_adapters_alone_are_read_with_their_model(tmp_path: Path) -> None:
    checks = []
    for number, name in enumerate(("qwen2_vl", "clip")):
        out = tmp_path / f"out{number}"
        out.mkdir()
        checks.append(write(build(tmp_path / f"base{number}", name), out, merge=False)[0])
        assert (out / "adapter_model.safetensors").is_file()
        assert not (out / "model.safetensors").exists()
    for receipt in verify(checks):
        assert {reader["status"] for reader in receipt.values()} == {"verified"}
