"""How each library embeds with an exported folder, as code to copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["usage"]

_SENTENCE_TRANSFORMERS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER")
vectors = model.encode(["a photo of two dogs"])
"""

_OPEN_CLIP = """\
import open_clip

model, _, transform = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer, model = open_clip.get_tokenizer("local-dir:FOLDER"), model.eval()
vectors = model.encode_text(tokenizer(["a photo of two dogs"]), normalize=True)
pictures = model.encode_image(transform(image)[None], normalize=True)
"""

_ONNXRUNTIME = """\
from fanoise_lightning import ContrastiveModule, OnnxTowers

model = ContrastiveModule(OnnxTowers("FOLDER"))
vectors = model.encode(["a photo of two dogs"])
pictures = model.encode([image])
"""

_GENERATIVE = """\
import torch
from torch.nn.functional import normalize
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("FOLDER")
model = AutoModelForImageTextToText.from_pretrained("FOLDER").eval().model
parts = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
inputs = processor.apply_chat_template(
    [[{"role": "user", "content": parts}]],
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    processor_kwargs={"padding": True},
)
"""
_PLAIN_POSITIONS = """\
ids = inputs["input_ids"]
inputs["position_ids"] = torch.arange(ids.shape[1]).expand(3, *ids.shape)
"""
_LAST = """\
hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"]
last = (mask * torch.arange(mask.shape[1])).argmax(1)
vectors = normalize(hidden[torch.arange(len(hidden)), last].float(), dim=1)
"""
_MEAN = """\
hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"]
mean = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
vectors = normalize(mean, dim=1)
"""

_TWO_TOWERS = """\
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

processor, model = AutoProcessor.from_pretrained("FOLDER"), AutoModel.from_pretrained("FOLDER").eval()
tokens = processor.tokenizer(
    ["a photo of two dogs"],
    padding=PADDING,
    truncation=True,
    max_length=LENGTH,
    return_tensors="pt",
)
vectors = normalize(model.get_text_features(TOKENS).pooler_output, dim=1)
inputs = processor.image_processor([image], return_tensors="pt")
pictures = normalize(model.get_image_features(**inputs).pooler_output, dim=1)
both = normalize(vectors + pictures, dim=1)
"""


def usage(reader: str, reading: Mapping[str, Any]) -> str:
    """Python code that embeds with a library; ``FOLDER`` is the folder, ``image`` a Pillow image.

    Args:
        reader: the library.
        reading: what it has to know, of the receipt.
    """
    imports = "".join(f"import {module}\n" for module in reading.get("imports", ()))
    if reader == "open_clip":
        return _OPEN_CLIP
    if reader == "onnxruntime":
        return _ONNXRUNTIME
    if reader == "sentence-transformers":
        return imports + _SENTENCE_TRANSFORMERS
    if "pooling" in reading:
        positions = _PLAIN_POSITIONS if reading["plain_positions"] else ""
        return imports + _GENERATIVE + positions + (_MEAN if reading["pooling"] == "mean" else _LAST)
    siglip = reading["siglip"]  # padded to one length, without a mask
    code = _TWO_TOWERS.replace("PADDING", '"max_length"' if siglip else "True")
    code = code.replace("TOKENS", 'input_ids=tokens["input_ids"]' if siglip else "**tokens")
    return code.replace("LENGTH", str(reading["max_text_length"]))
