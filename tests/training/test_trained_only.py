"""Checkpoints leave out the frozen weights that are loaded again with their encoder, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_two_towers
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from training.frozen_weights import (
    BUILDERS,
    assert_same,
    disturb,
    large,
    of,
    save,
    with_frozen_towers,
)
from transformers import AutoModelForImageTextToText

from fanoise_lightning import (
    CachedFeatures,
    ContrastiveModule,
    Encoder,
    InfoNCE,
    OpenClipEncoder,
    TwoTowerEncoder,
    VisionLanguageEncoder,
)
from fanoise_lightning.training.trained_only import LEFT_OUT


@pytest.mark.parametrize("kind", BUILDERS)
def test_frozen_weights_are_left_out_and_come_back(qwen, clip, tmp_path, kind):
    module = disturb(of(BUILDERS[kind](qwen, clip, tmp_path / "features")))
    saved = save(module, tmp_path / "small.ckpt")
    left_out = large(module.named_parameters(), trained=False)
    assert left_out
    assert saved["state_dict"].keys() == module.state_dict().keys() - left_out
    assert saved[LEFT_OUT].keys() == left_out
    assert_same(ContrastiveModule.load_from_checkpoint(tmp_path / "small.ckpt"), module)


@pytest.mark.parametrize("kind", BUILDERS)
def test_all_weights_are_saved_on_request(qwen, clip, tmp_path, kind):
    module = disturb(of(BUILDERS[kind](qwen, clip, tmp_path / "features"), save_frozen=True))
    saved = save(module, tmp_path / "whole.ckpt")
    assert saved["state_dict"].keys() == module.state_dict().keys()
    assert LEFT_OUT not in saved
    loaded = ContrastiveModule.load_from_checkpoint(tmp_path / "whole.ckpt")
    assert_same(loaded, module)
    assert loaded.save_frozen


def test_a_lora_checkpoint_is_about_as_large_as_its_adapter(qwen, tmp_path):
    module = of(VisionLanguageEncoder(qwen, lora={"r": 2}))
    saved = save(module, tmp_path / "small.ckpt")["state_dict"]
    adapter = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    rest = sum(value.nbytes for name, value in saved.items() if name not in adapter)
    whole = sum(value.nbytes for value in module.state_dict().values())
    assert rest < 0.02 * whole


def whole(encoder: Encoder, tmp_path: Path) -> bool:
    module = of(encoder)
    saved = save(module, tmp_path / "saved.ckpt")
    assert_same(ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt", encoder=encoder), module)
    return saved["state_dict"].keys() == module.state_dict().keys() and LEFT_OUT not in saved


def test_nothing_is_left_out_where_everything_is_trained(clip, qwen, tmp_path):
    assert whole(TwoTowerEncoder(clip), tmp_path)
    assert whole(VisionLanguageEncoder(qwen), tmp_path)


def test_frozen_weights_that_were_drawn_at_random_are_saved(tiny_clip, tmp_path):
    encoder = OpenClipEncoder(tiny_clip)
    encoder.clip.visual.requires_grad_(False)
    assert whole(encoder, tmp_path)
    assert whole(CachedFeatures(OpenClipEncoder(tiny_clip), tmp_path), tmp_path)
    assert whole(OpenClipEncoder(tiny_clip, lora={}), tmp_path)


def test_an_adapter_that_is_frozen_later_is_saved(clip, tmp_path):
    encoder = TwoTowerEncoder(clip, lora={"r": 2})
    disturb(encoder)
    encoder.requires_grad_(False)
    module = of(encoder)
    module.loss = InfoNCE(0.1, learnable_temperature=True)
    adapter = {name for name in module.state_dict() if "lora_" in name}
    assert adapter <= save(module, tmp_path / "saved.ckpt")["state_dict"].keys()


def test_weights_of_open_clip_from_a_file_are_left_out(tiny_clip, tmp_path):
    torch.manual_seed(0)
    torch.save(OpenClipEncoder(tiny_clip).clip.state_dict(), tmp_path / "weights.pt")
    for lora in (None, {"r": 2}):
        encoder = OpenClipEncoder(tiny_clip, pretrained=str(tmp_path / "weights.pt"), lora=lora)
        if lora is None:
            encoder.clip.visual.requires_grad_(False)
        module = disturb(of(encoder))
        saved = save(module, tmp_path / "saved.ckpt")
        assert saved[LEFT_OUT].keys() == large(module.named_parameters(), trained=False)
        assert_same(ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt"), module)


class Foreign(Encoder):
    """An encoder of which only the user knows how it is built."""

    def __init__(self, inner: TwoTowerEncoder, unknown: object) -> None:
        super().__init__()
        self.inner, self.collate, self.embedding_dim = inner, inner.collate, inner.embedding_dim

    def forward(self, **batch: Tensor) -> Tensor:
        return self.inner(**batch)


def test_nothing_is_left_out_of_an_encoder_without_a_description(clip, tmp_path):
    assert whole(Foreign(with_frozen_towers(clip), object()), tmp_path)


def test_frozen_weights_that_have_changed_are_saved(clip, tmp_path):
    module = of(with_frozen_towers(clip))
    name = "encoder.network.text_model.encoder.layers.0.mlp.fc1.weight"
    module.get_parameter(name).data[3, 5] += 2**-20
    saved = save(module, tmp_path / "saved.ckpt")
    assert name in saved["state_dict"]
    assert saved[LEFT_OUT].keys() == large(module.named_parameters(), trained=False) - {name}
    assert_same(ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt"), module)


def test_weights_that_were_trained_and_then_frozen_are_saved(clip, tmp_path):
    module = disturb(of(TwoTowerEncoder(clip)))
    module.encoder.network.vision_model.requires_grad_(False)
    assert LEFT_OUT not in save(module, tmp_path / "saved.ckpt")
    assert_same(ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt"), module)


def test_the_statistics_of_a_frozen_batch_norm_are_saved(tmp_path):
    align = tiny_two_towers.save_tiny(tmp_path / "align", "align")
    encoder = TwoTowerEncoder(align, lora={"r": 2})
    norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        norm.running_mean += 1.0  # as in a train mode that a user has turned on
        norm.num_batches_tracked += 1
    module = disturb(of(encoder))
    assert save(module, tmp_path / "saved.ckpt")[LEFT_OUT]
    assert_same(ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt"), module)


def test_what_is_left_out_is_reported_once(clip, tmp_path, caplog):
    module = of(with_frozen_towers(clip))
    with caplog.at_level("INFO", logger="fanoise_lightning"):
        save(module, tmp_path / "one.ckpt")
        save(module, tmp_path / "two.ckpt")
    lines = [line for line in caplog.messages if "leave out" in line]
    assert len(lines) == 1
    frozen = large(module.named_parameters(), trained=False)
    size = sum(module.get_parameter(name).numel() * 4 for name in frozen)
    assert f"checkpoints leave out {size / 1e6:.1f} MB" in lines[0]
    assert f"TwoTowerEncoder('{clip}')" in lines[0]


def test_frozen_weights_that_an_adapter_has_changed_are_saved(qwen, tmp_path):
    """PiSSA takes its part out of the weights; another machine may compute it with other rounding."""
    network = AutoModelForImageTextToText.from_pretrained(qwen)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
    get_peft_model(network, config).save_pretrained(tmp_path / "adapter")
    module = of(VisionLanguageEncoder(qwen, adapter=str(tmp_path / "adapter")))
    saved = save(module, tmp_path / "saved.ckpt")
    changed = {name for name in large(module.named_parameters(), trained=False) if "base_layer" in name}
    assert len(changed) == 4  # two of each of two layers
    assert changed <= saved["state_dict"].keys()
    assert saved[LEFT_OUT].keys() == large(module.named_parameters(), trained=False) - changed
    assert_same(ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt"), module)
