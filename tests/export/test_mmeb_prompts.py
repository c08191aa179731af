"""Instructions of MMEB's subsets have names in sentence-transformers, and give our vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.cards import RECEIPT
from export.tiny_encoders import build
from PIL import Image

from fanoise_lightning import ContrastiveModule, Sample, export_encoder
from fanoise_lightning.export import export_encoder as exporting
from fanoise_lightning.export.card import card
from fanoise_lightning.export.card_facts import Facts
from fanoise_lightning.export.mmeb_prompts import mmeb_prompts

DATA = {
    "source": "hf://TIGER-Lab",
    "subsets": {"ImageNet_1K": 10, "MSCOCO_t2i": 20, "WebQA": 30, "mine": 40},
    "batch_size": 8,
    "processes": 1,
    "sampling": "proportional",
    "batch_subsets": 1,
    "mask_same_target": "rows",
    "blind": False,
}
CAPTION = "Find me an everyday image that matches the given caption: "
CLASSES = "Represent the given image for classification."


def test_prompts_are_the_instructions_of_what_was_trained_on() -> None:
    texts = {"MSCOCO_t2i": CAPTION, "WebQA": "Find a Wikipedia image that answers this question: "}
    assert mmeb_prompts(DATA, pictures=False) == texts
    assert mmeb_prompts(DATA, pictures=True) == {"ImageNet-1K": CLASSES, **texts}
    assert mmeb_prompts({"subsets": {"emoji": 3}}, pictures=True) == mmeb_prompts(None, pictures=True) == {}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "clip"])
def test_a_prompt_by_name_gives_the_vectors_of_a_training_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    models = pytest.importorskip("sentence_transformers")
    encoder = build(tmp_path / "base", family)
    monkeypatch.setattr(exporting, "_facts", lambda *args: Facts(data=DATA))
    export_encoder(encoder, tmp_path / "out", verify=False)
    theirs = models.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    rows: list[tuple[Any, Sample, str]] = [("two dogs", Sample(CAPTION + "two dogs"), "MSCOCO_t2i")]
    if family == "qwen2_vl":  # the other drops the prompt of a picture
        image = Image.fromarray(pixels)
        rows.append(({"image": image}, Sample(f"<|image_1|> {CLASSES}", [image]), "ImageNet-1K"))
    for row, query, name in rows:
        found = torch.from_numpy(theirs.encode([row], prompt_name=name, normalize_embeddings=True))
        ours = ContrastiveModule(encoder).encode([query])
        torch.testing.assert_close(found, ours, atol=1e-5, rtol=0)
    assert sorted(json.loads((tmp_path / "out" / "verified.json").read_text())["prompts"]) == sorted(
        theirs.prompts.keys() - {"query", "document"}
    )


def test_the_card_lists_the_prompts() -> None:
    reader = {"status": "verified", "version": "6", "largest_difference": 0.0, "rows": {}, "cannot": {}}
    text = card({**RECEIPT, "readers": {"sentence-transformers": reader}}, "m", Facts())
    assert "`model.encode(queries, prompt_name=...)` puts before them: `NIGHTS`." in text
