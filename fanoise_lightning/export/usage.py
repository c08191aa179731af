"""Python that reads an exported folder, for the libraries that were seen to read it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["usage"]

_OPEN = 'image = Image.open("photo.jpg")'


def usage(reader: str, receipt: Mapping[str, Any], name: str) -> str:
    """Python that embeds a text, a picture, and both where the library can.

    Args:
        reader: a library that was verified.
        receipt: what ``verified.json`` says; rows that the library reads differently are not shown.
        name: the repository on the hub, as ``user/name``, or the name of the folder.
    """
    name = name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else "path/to/the/folder"
    write = {
        "sentence-transformers": _sentence_transformers,
        "transformers": _generative if "pooling" in receipt["reading"] else _two_towers,
        "open_clip": _open_clip,
        "onnxruntime": _onnxruntime,
    }[reader]
    lines = write(receipt["reading"], receipt["readers"][reader]["rows"], name)
    return "\n".join(line for line in lines if line is not None) + "\n"


def _sentence_transformers(reading: Any, rows: Mapping[str, Any], name: str) -> Iterable[str | None]:
    pictures = "picture" in rows
    return [
        *_imports(reading),
        "from PIL import Image" if pictures else None,
        "from sentence_transformers import SentenceTransformer",
        "",
        f"model = SentenceTransformer({json.dumps(name)})",
        _OPEN + _resized(reading) if pictures else None,
        'texts = model.encode([{"text": "Two dogs"}])',
        'pictures = model.encode([{"image": image}])' if pictures else None,
        _both('both = model.encode([{"text": "what is in it?", "image": image}])', rows),
        "model.similarity(texts, pictures)" if pictures else None,
    ]


def _generative(reading: Any, rows: Mapping[str, Any], name: str) -> Iterable[str | None]:
    length, place = reading["max_text_length"], json.dumps(name)
    positions = 'inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)'
    cut = f'processor_kwargs={{}} if image else {{"truncation": True, "max_length": {length}}},'
    return [
        *_imports(reading),
        "import torch",
        "from PIL import Image",
        "from torch.nn.functional import normalize",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        f"processor = AutoProcessor.from_pretrained({place})",
        f"model = AutoModelForImageTextToText.from_pretrained({place}).model.eval()",
        "",
        "",
        "def embed(text=None, image=None):",
        '    content = [{"type": "image", "image": image}] if image else []',
        '    content += [{"type": "text", "text": text}] if text else []',
        "    inputs = processor.apply_chat_template(",
        '        [[{"role": "user", "content": content}]],',
        "        tokenize=True,",
        "        return_dict=True,",
        '        return_tensors="pt",',
        f"        {cut}" if length else None,
        "    )",
        f"    {positions}" if reading["plain_positions"] else None,
        "    with torch.inference_mode():",
        "        hidden = model(**inputs, use_cache=False).last_hidden_state",
        f"    return normalize(hidden{'.mean(1)' if reading['pooling'] == 'mean' else '[:, -1]'}, dim=1)",
        "",
        "",
        _OPEN + _resized(reading),
        'texts = embed("Two dogs")',
        "pictures = embed(image=image)",
        _both('both = embed("what is in it?", image)', rows),
    ]


def _two_towers(reading: Any, rows: Mapping[str, Any], name: str) -> Iterable[str | None]:
    siglip, place = reading["siglip"], json.dumps(name)
    padding = '"max_length"' if siglip else "True"
    return [
        "import torch",
        "from PIL import Image",
        "from torch.nn.functional import normalize",
        "from transformers import AutoModel, AutoProcessor",
        "",
        f"processor = AutoProcessor.from_pretrained({place})",
        f"model = AutoModel.from_pretrained({place}).eval()",
        _OPEN,
        "tokens = processor.tokenizer(",
        f'    ["Two dogs"{".lower()" if siglip else ""}],',
        f"    padding={padding},",
        "    truncation=True,",
        f"    max_length={reading['max_text_length']},",
        '    return_tensors="pt",',
        ")",
        'del tokens["attention_mask"]  # it was trained without' if siglip else None,
        'pixels = processor.image_processor([image], return_tensors="pt")',
        "with torch.inference_mode():",
        "    texts = normalize(model.get_text_features(**tokens).pooler_output)",
        "    pictures = normalize(model.get_image_features(**pixels).pooler_output)",
        _both("both = normalize(texts + pictures)", rows),
    ]


def _open_clip(reading: Any, rows: Mapping[str, Any], name: str) -> Iterable[str | None]:
    place = json.dumps(f"{'hf-hub' if '/' in name else 'local-dir'}:{name}")
    return [
        "import open_clip",
        "import torch",
        "from PIL import Image",
        "from torch.nn.functional import normalize",
        "",
        f"model, _, transform = open_clip.create_model_and_transforms({place})",
        f"tokenizer = open_clip.get_tokenizer({place})",
        "model.eval()",
        _OPEN,
        "with torch.inference_mode():",
        '    texts = model.encode_text(tokenizer(["Two dogs"]), normalize=True)',
        "    pictures = model.encode_image(transform(image)[None], normalize=True)",
        _both("both = normalize(texts + pictures)", rows),
    ]


def _onnxruntime(reading: Any, rows: Mapping[str, Any], name: str) -> Iterable[str | None]:
    return [
        "from fanoise_lightning import ContrastiveModule, OnnxTowers",
        "from PIL import Image",
        "",
        f"model = ContrastiveModule(OnnxTowers({json.dumps(name)}))",
        _OPEN,
        'texts = model.encode(["Two dogs"])',
        "pictures = model.encode([image])",
        _both('both = model.encode([{"text": "what is in it?", "image": image}])', rows),
    ]


def _both(line: str, rows: Mapping[str, Any]) -> str | None:
    return line if "text and picture" in rows else None


def _resized(reading: Mapping[str, Any]) -> str:
    edge = reading.get("image_size")
    return f".resize(({edge}, {edge}), Image.Resampling.BICUBIC)" if edge else ""


def _imports(reading: Mapping[str, Any]) -> list[str]:
    return [f"import {module}  # pip install fanoise-lightning" for module in reading.get("imports", ())]
