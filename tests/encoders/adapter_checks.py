"""What the tests of adapters share: what to embed, and peft's own model as the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS, make_image
from torch import nn
from transformers import AutoModelForImageTextToText

from fanoise_lightning import Sample
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder

Weights = dict[str, torch.Tensor]

families = pytest.mark.parametrize("family", sorted(BUILDERS))
SAMPLES = [
    Sample("a red apple"),
    Sample("what is it", make_image(60, 40)),
    Sample(image=make_image(50, 90, 1)),
]


def embed(encoder: VisionLanguageEncoder | TwoTowerEncoder) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval()(**encoder.collate(SAMPLES))


def trained(encoder: nn.Module) -> set[str]:
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def randomise(encoder: nn.Module) -> None:
    """Adapters begin with no effect: give them one."""
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def embed_by_peft(model: str, adapter: Path) -> torch.Tensor:
    """The embeddings of a vision-language model that peft has put an adapter on."""
    encoder = VisionLanguageEncoder(model)
    network = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(model), adapter)
    encoder.network.model = network.get_base_model().model
    return embed(encoder)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> str:
    """Change the weights of a saved adapter; its folder."""
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return str(folder)


def edit_config(folder: Path, **changes: object) -> str:
    """Change the configuration of a saved adapter; its folder."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)


def older_qwen(key: str) -> str:
    """A key of Qwen2-VL in the layout of the published VLM2Vec-Qwen2-VL."""
    return key.replace("model.language_model.", "model.").replace("model.model.visual.", "model.visual.")
