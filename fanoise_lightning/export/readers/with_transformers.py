"""Read exported folders with transformers alone."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F


def main(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    import transformers

    return {"version": transformers.__version__, "results": [read(job) for job in jobs]}


def read(job: dict[str, Any]) -> Any:
    try:
        for name in job.get("imports", ()):  # a model type that is not part of transformers
            sys.path.append(job["path"])
            import_module(name)
        reader: Any = Generative(job) if "pooling" in job else TwoTowers(job)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [embed(reader, job, batch) for batch in job["batches"]]


@torch.inference_mode()
def embed(reader: Any, job: dict[str, Any], batch: list[int]) -> Any:
    try:
        found = reader([job["rows"][number] for number in batch])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return F.normalize(found.float(), dim=1).tolist()


def pictures(row: dict[str, Any], job: dict[str, Any]) -> list[Image.Image]:
    images: list[Any] = [Image.open(Path(job["pictures"]) / name) for name in row["images"]]
    if edge := job.get("image_size"):
        images = [image.resize((edge, edge), Image.Resampling.BICUBIC) for image in images]
    return images


class Generative:
    def __init__(self, job: dict[str, Any]) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.job = job
        self.processor = AutoProcessor.from_pretrained(job["folder"])
        network = AutoModelForImageTextToText.from_pretrained(job["folder"], dtype=torch.float32)
        self.model = network.eval().model

    def __call__(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        length = self.job["max_text_length"]
        cut = {"truncation": True, "max_length": length} if length else {}
        if any(row["images"] for row in rows):
            cut = {}  # it would cut pictures
        inputs = self.processor.apply_chat_template(
            [self.message(row) for row in rows],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, **cut},
        )
        if self.job["plain_positions"]:
            ids = inputs["input_ids"]
            inputs["position_ids"] = torch.arange(ids.shape[1]).expand(3, *ids.shape)
        hidden = self.model(**inputs, use_cache=False).last_hidden_state
        mask = inputs["attention_mask"]
        if self.job["pooling"] == "mean":
            return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        last = (mask * torch.arange(mask.shape[1])).argmax(1)
        return hidden[torch.arange(len(hidden)), last]

    def message(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        parts = [{"type": "image", "image": image} for image in pictures(row, self.job)]
        parts += [{"type": "text", "text": row["text"]}] if row["text"] else []
        system = [{"type": "text", "text": row["prompt"]}]
        first = [{"role": "system", "content": system}] if row["prompt"] else []
        return [*first, {"role": "user", "content": parts}]


class TwoTowers:
    def __init__(self, job: dict[str, Any]) -> None:
        from transformers import AutoModel, AutoProcessor

        self.job = job
        self.processor = AutoProcessor.from_pretrained(job["folder"])
        self.model = AutoModel.from_pretrained(job["folder"], dtype=torch.float32).eval()

    def __call__(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        parts: list[list[torch.Tensor]] = [[] for _ in rows]
        texts: dict[int, Any] = {n: t for n, row in enumerate(rows) if (t := row["prompt"] + row["text"])}
        images: dict[int, Any] = {n: p[0] for n, row in enumerate(rows) if (p := pictures(row, self.job))}
        for chosen, tower in ((texts, self.texts), (images, self.images)):
            if chosen:
                for n, vector in zip(chosen, F.normalize(tower(list(chosen.values())), dim=1)):
                    parts[n].append(vector)
        return torch.stack([torch.stack(own).sum(0) for own in parts])

    def texts(self, texts: list[str]) -> torch.Tensor:
        siglip = self.job["siglip"]
        tokens = self.processor.tokenizer(
            [text.lower() for text in texts] if siglip else texts,
            padding="max_length" if siglip else True,
            truncation=True,
            max_length=self.job["max_text_length"],
            return_tensors="pt",
        )
        names = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        return self.model.get_text_features(**{name: tokens[name] for name in names}).pooler_output

    def images(self, images: list[Any]) -> torch.Tensor:
        inputs = self.processor.image_processor(images, return_tensors="pt")
        return self.model.get_image_features(**inputs).pooler_output


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
