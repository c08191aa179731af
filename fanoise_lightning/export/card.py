"""The README.md of an exported folder: the model card that the hub shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import ModelCardData

from fanoise_lightning.export.card_base import Origin
from fanoise_lightning.export.card_facts import Facts
from fanoise_lightning.export.card_markdown import bullets, escape
from fanoise_lightning.export.card_scores import eval_results, is_mmeb, overlap, score_table
from fanoise_lightning.export.card_training import describe_data, describe_noise, describe_recipe, noisy
from fanoise_lightning.export.usage import usage

__all__ = ["card"]

_FANOISE = """\
@inproceedings{fanoise,
  title = {{FANoise}: Singular Value-Adaptive Noise Modulation for Robust Multimodal Representation Learning},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year = {2026},
  url = {https://arxiv.org/abs/2511.20997}
}"""

_FLOORS = {
    "chance": "guesses",
    "constant": "gives every query the same answer",
    "blind": "is a model without the query pictures",
    "copy": "takes the candidate with the nearest pixels",
}

_MMEB = """\
@misc{vlm2vec,
  title = {{VLM2Vec}: Training Vision-Language Models for Massive Multimodal Embedding Tasks},
  year = {2024},
  url = {https://arxiv.org/abs/2410.05160}
}"""


def card(
    receipt: Mapping[str, Any],
    name: str,
    facts: Facts,
    base: Origin | None = None,
    data: Origin | None = None,
) -> str:
    """The model card: a header for the hub, how to use the folder, its scores, and how it was trained.

    What is not known is named as such, in one line for each section.

    Args:
        receipt: what ``verified.json`` says.
        name: the repository on the hub, as ``user/name``, or the name of the folder.
        facts: of the training.
        base: the pretrained model; ``None`` if the weights were random.
        data: where the training rows come from; ``None`` if that is not known.

    Returns:
        Markdown, in which texts from data are escaped.
    """
    header = _header(receipt, name, facts, base, data)
    sections = {
        "Use": _use(receipt, name),
        "Scores": _scores(facts),
        "Overlap with the evaluation data": overlap(facts.scores, facts.data),
        "Training": describe_recipe(facts),
        "Noise": describe_noise(facts),
        "Training data": describe_data(facts, data),
        "Licence": _licence(base, data),
        "Versions": _versions(receipt, facts),
        "Citation": "\n\n".join(f"```bibtex\n{entry}\n```" for entry in _citations(facts)),
    }
    start = [f"---\n{header}\n---", f"# {escape(name.rpartition('/')[2])}", _summary(receipt, facts, base)]
    shown = (f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return "\n\n".join([*start, *shown]) + "\n"


def _header(
    receipt: Mapping[str, Any], name: str, facts: Facts, base: Origin | None, data: Origin | None
) -> str:
    status = {reader: found["status"] for reader, found in receipt["readers"].items()}
    of_open_clip = "open_clip" in status
    libraries = ("open_clip", "sentence-transformers", "transformers", "onnxruntime")
    read_by = [name for name in libraries if status.get(name) == "verified"]
    library = next(iter(read_by or status))
    licences = base.licences if base is not None else ()
    results = None
    if facts.scores is not None:
        results = eval_results(facts.scores, None if data is None else data.hub_id or data.name)
    return ModelCardData(
        model_name=name.rpartition("/")[2] if results else None,  # of the results
        base_model=base.hub_id if base is not None else None,
        datasets=[data.hub_id] if data is not None and data.hub_id else None,
        eval_results=results or None,
        library_name=library,
        license=licences[0] if len(licences) == 1 else None,
        pipeline_tag="zero-shot-image-classification" if of_open_clip else "feature-extraction",
        tags=["feature-extraction", "multimodal", "fanoise-lightning"],
    ).to_yaml(line_break="\n")


def _summary(receipt: Mapping[str, Any], facts: Facts, base: Origin | None) -> str:
    start = "random weights" if base is None else escape(base.name)
    trained = f"trained from {start} for {facts.steps:,} steps" if facts.steps else f"from {start}"
    only = f" {_adapter(receipt['base'])}" if receipt["weights"] == "adapter" else ""
    return (
        f"{escape(receipt['family'])} embeddings of texts and pictures: {receipt['dimension']} dimensions, "
        f"unit length, {trained}, exported with fanoise-lightning.{only}"
    )


def _adapter(base: Mapping[str, Any]) -> str:
    """What an adapter alone has to be read with."""
    start = "This is the adapter alone: loading it loads that model too, and it gives these vectors only with"
    if "sha256" in base:
        files = ", ".join(f"{escape(name)} (SHA-256 {digest})" for name, digest in base["sha256"].items())
        return f"{start} {files} at the absolute path in `adapter_config.json`; nothing checks that."
    return f"{start} revision {escape(base['revision'] or 'unknown')} of it."


def _use(receipt: Mapping[str, Any], name: str) -> str:
    parts = []
    if receipt["steps"]:
        parts.append("Before a row is embedded:\n\n" + bullets(map(escape, receipt["steps"])))
    for reader, found in receipt["readers"].items():
        parts.append(f"### {reader}")
        if found["status"] != "verified":
            parts.append(f"Not verified: {escape(found['why'])}.")
            continue
        parts.append(
            f"Read back with version {escape(found['version'])}: the largest difference of any number of "
            f"{len(found['rows'])} kinds of rows is {found['largest_difference']:.1g}."
        )
        parts.append(f"```python\n{usage(reader, receipt, name)}```")
        if reader == "sentence-transformers":
            parts.append(
                "With `truncate_dim`, pass `normalize_embeddings=True`: cut vectors are not of unit length."
            )
            if prompts := receipt["prompts"]:
                names = ", ".join(f"`{prompt}`" for prompt in prompts)
                parts.append(
                    "Queries were trained with an instruction for each task, which "
                    f"`model.encode(queries, prompt_name=...)` puts before them: {names}."
                )
        if limits := found["cannot"]:
            lines = (escape(f"{kind}: {why}") for kind, why in limits.items())
            parts.append("What it reads differently:\n\n" + bullets(lines))
    return "\n\n".join(parts)


def _scores(facts: Facts) -> str:
    if facts.scores is None:
        return f"Not recorded: {escape(facts.no_scores)}."
    known = {name for part in facts.scores["subsets"].values() for name in part["floors"]}
    floors = "; ".join(f"*{name}* {what}" for name, what in _FLOORS.items() if name in known)
    about = (
        "Precision@1 in percent. The interval is for the sample of queries: training again would differ by "
        "more."
    )
    if floors:
        about += f" Floors: {floors}."
    return f"{about}\n\n{score_table(facts.scores)}"


def _licence(base: Origin | None, data: Origin | None) -> str:
    lines = ["Base model: none" if base is None else f"Base model, {_licences(base)}"]
    lines.append("Training data: unknown, fill in" if data is None else f"Training data, {_licences(data)}")
    if base is not None and len(base.licences) == 1:
        lines.append("The header of this card has the base model's: change it if the data ask for another")
    else:
        lines.append("The header of this card names none: fill in")
    return bullets(lines)


def _licences(origin: Origin) -> str:
    return f"{escape(origin.name)}: {escape(', '.join(origin.licences) or 'unknown, fill in')}"


def _versions(receipt: Mapping[str, Any], facts: Facts) -> str:
    made = {name.replace("_", "-"): version for name, version in receipt["made_with"].items()}
    lines = [f"Exported with {', '.join(f'{escape(name)} {escape(made[name])}' for name in made)}"]
    lines.append(f"Trained with Lightning {escape(facts.lightning or 'of an unknown version')}")
    lines.append(f"Weights: {escape(receipt['weights'])}, in {escape(receipt['dtype'])}; compared in float32")
    return bullets(lines)


def _citations(facts: Facts) -> Iterator[str]:
    if noisy(facts):
        yield _FANOISE
    if facts.scores is not None and is_mmeb(facts.scores):
        yield _MMEB
