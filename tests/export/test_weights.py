"""An adapter is merged whatever it consists of; peft's own merge is the oracle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model

from fanoise_lightning.encoders.adapters import inject
from fanoise_lightning.export.weights import merge_adapter

TARGETS = ["q_proj", "v_proj"]
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "biases": {"bias": "lora_only"},
    "a layer saved whole": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [3, 5]},
    "rslora": {"use_rslora": True, "alpha_pattern": {"v_proj": 3}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_merged_weights_are_those_of_peft(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours, _ = tiny_models.qwen2_vl()
    ours = ours.eval()
    config = LoraConfig(r=2, target_modules=TARGETS, **settings)
    theirs = get_peft_model(copy.deepcopy(ours), copy.deepcopy(config))
    names = set(ours.state_dict())
    inject(ours, config)
    for model in (ours, theirs):
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        before = ours(input_ids=ids).logits
    merge_adapter(ours)
    merged = theirs.merge_and_unload().state_dict()
    assert ours.state_dict().keys() == names
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, merged[name], atol=1e-6, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(ours(input_ids=ids).logits, before, atol=1e-5, rtol=1e-4)
