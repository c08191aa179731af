"""The card says what is known, names what is not, and shows texts from data as text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from export.cards import RECEIPT, plain, sections, tags
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from fanoise_lightning import FANoise
from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import SubsetScore
from fanoise_lightning.export.card import card
from fanoise_lightning.export.card_base import Origin
from fanoise_lightning.export.card_facts import Facts
from fanoise_lightning.export.card_markdown import escape

OUTCOMES = torch.tensor([1.0] * 40 + [0.0] * 60)


def board(*names: str) -> dict[str, Any]:
    """The scores of subsets of MMEB, as JSON: 40 of 100 right."""
    return Scoreboard([SubsetScore.of(CATALOG[name].subset, OUTCOMES) for name in names]).to_dict()


BASE = Origin("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-2B-Instruct", ("apache-2.0",))
DATA = Origin("TIGER-Lab/MMEB-train", "TIGER-Lab/MMEB-train")
FACTS = Facts(
    model={
        "encoder": {"class_path": "fanoise_lightning.VisionLanguageEncoder", "init_args": {"lora": {"r": 8}}},
        "loss": {"class_path": "fanoise_lightning.InfoNCE", "init_args": {"temperature": 0.02}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-05}},
        "lr_scheduler": {"class_path": "fanoise_lightning.LinearWarmup", "init_args": {"warmup_steps": 200}},
        "chunk_size": 4,
    },
    steps=2000,
    noise=[{**FANoise(alpha=0.1, scope="global").state_dict()["settings"], "skipped": 3}],
    data={
        "source": "hf://datasets/TIGER-Lab",
        "subsets": {"ImageNet_1K": 100_000, "OK-VQA": 9_000},
        "batch_size": 256,
        "processes": 8,
        "sampling": "proportional",
        "batch_subsets": "mixed",
        "mask_same_target": "none",
        "blind": False,
    },
    trainer={"precision": "bf16-mixed", "max_steps": 4000, "gradient_clip_val": 1.0},
    seed=42,
    scores=board("ImageNet-1K", "OK-VQA", "N24News", "GQA"),
    lightning="2.6.6",
)


def test_the_header_is_what_the_hub_reads() -> None:
    header = ModelCard(card(RECEIPT, "me/my-model", FACTS, BASE, DATA)).data
    assert header.library_name == "transformers"  # sentence-transformers was not seen to read it
    assert header.pipeline_tag == "feature-extraction"
    assert header.base_model == "Qwen/Qwen2-VL-2B-Instruct"
    assert header.datasets == ["TIGER-Lab/MMEB-train"]
    assert header.license == "apache-2.0"
    results = {result.dataset_config: result for result in header.eval_results}
    assert results.keys() == {"ImageNet-1K", "OK-VQA", "N24News", "GQA"}
    for result in results.values():
        assert result.dataset_type == "TIGER-Lab/MMEB-eval"
        assert result.metric_value == 0.4
        assert result.metric_args["interval"] == pytest.approx(
            [0.3094, 0.4980], abs=1e-4
        )  # Wilson, 40 of 100


def test_the_table_has_scores_intervals_and_floors() -> None:
    text = sections(card(RECEIPT, "m", FACTS, BASE, DATA))["Scores"]
    rows = [
        [plain(cell.strip()) for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    header = rows[0]
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows[2:]}
    assert found["GQA"]["precision@1"] == "40.0"
    assert found["GQA"]["95 %"] == "30.9–49.8"
    assert found["GQA"]["chance"] == "0.1"
    assert found["N24News"]["chance"] == f"{100 / 24:.1f}"
    assert found["mean: overall"]["precision@1"] == "40.0"
    assert found["mean: IND"]["queries"] == ""


def test_training_is_told_from_what_is_known() -> None:
    text = sections(card(RECEIPT, "m", FACTS, BASE, DATA))
    recipe = plain(text["Training"])
    for line in (
        "Loss: InfoNCE(temperature=0.02)",
        "Optimizer: AdamW(lr=2e-05)",
        "Schedule: LinearWarmup(warmup_steps=200)",
        "Steps: 2,000 of 4,000",
        "Batch: 256 pairs on each of 8 processes",
        "GradCache: chunks of 4",
        "LoRA: r=8",
        "Precision: bf16-mixed",
        "Seed: 42",
    ):
        assert line in recipe
    assert "Not recorded" not in recipe
    assert "ImageNet_1K 100,000, OK-VQA 9,000" in plain(text["Training data"])
    noise = plain(text["Noise"])
    for line in ("| alpha | 0.1 |", "| scaling | sublinear |", "| energy | paper |", "| scope | global |"):
        assert line in noise
    assert "no noise, because their features were broken: 3." in noise
    assert "arxiv.org/abs/2511.20997" in text["Citation"]
    assert "arxiv.org/abs/2410.05160" in text["Citation"]
    assert "Training data, TIGER-Lab/MMEB-train: unknown, fill in" in plain(text["Licence"])


def test_the_overlap_is_by_the_subsets_that_were_trained_on() -> None:
    text = plain(sections(card(RECEIPT, "m", FACTS, BASE, DATA))["Overlap with the evaluation data"])
    assert "2 of 4 evaluation subsets (ImageNet-1K, OK-VQA) are of a data set whose training rows" in text
    assert "not trained on: N24News." in text


def test_the_overlap_of_held_out_pairs_is_counted() -> None:
    data = {**(FACTS.data or {}), "overlap": {"queries": [0, 10], "targets": [3, 9], "images": [0, 0]}}
    text = sections(card(RECEIPT, "m", replace(FACTS, data=data)))["Overlap with the evaluation data"]
    assert text == "Of the held-out pairs, these were trained on too: 0 of 10 queries, 3 of 9 targets."


def test_what_is_not_known_is_one_line_in_each_section() -> None:
    whole = card(RECEIPT, "m", Facts())
    text = sections(whole)
    assert text["Scores"] == "Not recorded: none are known."
    assert text["Training"] == "Not recorded: loss, optimizer, schedule, steps, batch, precision, seed."
    assert text["Noise"] == "Not recorded."
    assert text["Training data"] == "Not recorded: fill in."
    assert text["Overlap with the evaluation data"] == "Not known: no evaluation is recorded."
    assert "Citation" not in text
    header = ModelCard(whole).data
    assert header.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert (header.base_model, header.datasets, header.license, header.eval_results) == (None,) * 4
    assert not any("None" in part for title, part in text.items() if title != "Use")


def test_a_run_without_noise_is_no_fanoise() -> None:
    for noise in ([], [FANoise(alpha=0).state_dict()["settings"]]):
        text = sections(card(RECEIPT, "m", replace(FACTS, noise=noise, scores=None)))
        assert text["Noise"] == "None: the model was trained without FANoise."
        assert "Citation" not in text


def test_a_library_that_did_not_read_the_folder_has_no_block_of_python() -> None:
    text = sections(card(RECEIPT, "m", FACTS))["Use"]
    of_transformers, of_the_other = text.split("### sentence-transformers")
    assert of_transformers.count("```python") == 1
    assert "turned picture: its EXIF orientation is ignored" in of_transformers
    assert of_the_other.strip() == "Not verified: sentence-transformers is not installed."


EVIL = "<script>alert(1)</script> | [x](javascript:1) ![i](https://e.org/i.png) `c` **b** https://e.org <!--"


def test_shorter_vectors_of_sentence_transformers_have_to_be_normalised() -> None:
    readers = {"sentence-transformers": RECEIPT["readers"]["transformers"]}
    assert "normalize_embeddings=True" in card({**RECEIPT, "readers": readers}, "m", FACTS)
    assert "normalize_embeddings" not in card(RECEIPT, "m", FACTS)  # nobody saw it read the folder


def test_an_adapter_alone_names_the_revision_of_its_model() -> None:
    receipt = {**RECEIPT, "weights": "adapter", "base": {"revision": "12ab34"}}
    assert "only with revision 12ab34 of it" in card(receipt, "m", FACTS, BASE)


def test_texts_from_data_stay_text() -> None:
    """Every text that a checkpoint, a file of scores or a library's error can bring."""
    scores = board("GQA")
    part = scores["subsets"].pop("GQA")
    scores["subsets"] = {EVIL: {**part, "meta_task": EVIL, "floors": {EVIL: 0.1}}, f"{EVIL}2": part}
    scores["means"] = {EVIL: scores["means"]["overall"]}
    evil_part = {"class_path": f"a.{EVIL}", "init_args": {EVIL: EVIL}}
    facts = replace(
        FACTS,
        model={"loss": evil_part, "optimizer": evil_part, "encoder": {"init_args": {"lora": {"r": EVIL}}}},
        noise=[{"alpha": EVIL, EVIL: EVIL}],
        data={**(FACTS.data or {}), "subsets": {EVIL: 1, "b": 2}, "sampling": {EVIL: 1.0}},
        trainer={"precision": EVIL},
        scores=scores,
        lightning=EVIL,
    )
    reader = {**RECEIPT["readers"]["transformers"], "cannot": {EVIL: EVIL}, "version": EVIL}
    failed = {"status": "unverified", "why": EVIL}
    readers = {"transformers": reader, "sentence-transformers": failed}
    receipt = {**RECEIPT, "readers": readers, "family": EVIL, "steps": [EVIL], "made_with": {EVIL: EVIL}}
    origin = Origin(EVIL, None, (EVIL,))
    text = card(receipt, EVIL, facts, origin, origin)
    body = text.partition("\n---\n")[2]
    harmless = card(RECEIPT, "m", FACTS, BASE, Origin("pairs.csv")).partition("\n---\n")[2]
    assert tags(body) <= tags(harmless) | {"text_special"}
    assert tags(body).isdisjoint({"html_inline", "html_block", "link_open", "image", "strong_open"})
    assert "https://e.org" not in body  # which readers with bare links would make one
    assert ModelCard(text).data.eval_results[0].dataset_config == EVIL


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_an_escaped_text_is_read_as_itself(text: str) -> None:
    seen = "".join(char if char.isprintable() else " " for char in text)
    assert plain(escape(text)) == " ".join(seen.split())
