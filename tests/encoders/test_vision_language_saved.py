from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS, make_image

from fanoise_lightning import Sample
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder

families = pytest.mark.parametrize("family", sorted(BUILDERS))
SAMPLES = [
    Sample("a red apple"),
    Sample(image=make_image(60, 40, 0)),
    Sample("what is it", make_image(50, 90, 1)),
]


def embed(encoder: VisionLanguageEncoder, samples: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        return encoder(**encoder.collate(samples))


@pytest.mark.parametrize("tied", [False, True])
@families
def test_a_saved_checkpoint_holds_the_trained_weights_and_the_language_head(tiny, tmp_path, family, tied):
    source = transformers.AutoModelForImageTextToText.from_pretrained(tiny(family))
    folder = tiny(family)
    if tied:
        folder = shutil.copytree(folder, tmp_path / "tied")
        config = json.loads((folder / "config.json").read_text())
        for part in (config, config.get("text_config", {})):
            part["tie_word_embeddings"] = True
        (folder / "config.json").write_text(json.dumps(config))
        weights = load_file(folder / "model.safetensors")
        weights = {name: value for name, value in weights.items() if not name.endswith("lm_head.weight")}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    encoder = VisionLanguageEncoder(str(folder))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01)
    encoder.save_pretrained(tmp_path / "saved")
    loader = transformers.AutoModelForImageTextToText
    model, info = loader.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    expected = model.get_input_embeddings() if tied else source.lm_head
    assert torch.equal(model.lm_head.weight, expected.weight)
    again = VisionLanguageEncoder(str(tmp_path / "saved"))
    assert torch.equal(embed(again, SAMPLES), embed(encoder, SAMPLES))


def test_a_saved_adapter_comes_alone(tiny, tmp_path):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), lora={"r": 2})
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    encoder.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    again = VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(tmp_path))
    torch.testing.assert_close(embed(again, SAMPLES), embed(encoder, SAMPLES), atol=1e-6, rtol=0)
