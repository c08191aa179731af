"""Checkpoints without frozen weights are loaded into what has these weights, and refused by all else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from training.frozen_weights import (
    assert_same,
    change_one_weight,
    data,
    disturb,
    of,
    save,
    trainer_of,
    with_frozen_towers,
)

from fanoise_lightning import (
    ContrastiveModule,
    TwoTowerEncoder,
    VisionLanguageEncoder,
)
from fanoise_lightning.training.trained_only import LEFT_OUT


@pytest.mark.parametrize("dora", [False, True])
def test_merged_adapters_are_neither_saved_nor_loaded(qwen, tmp_path, dora):
    """A checkpoint would hold the adapter twice, and a merged module would ignore that of a file."""
    module = disturb(of(VisionLanguageEncoder(qwen, lora={"r": 2, "dora": dora}), save_frozen=True))
    save(module, tmp_path / "whole.ckpt")
    embeddings = module.encode(["a red apple"])
    layers = [part for part in module.modules() if isinstance(part, BaseTunerLayer)]
    for layer in layers:
        layer.merge()
    with pytest.raises(ValueError, match=r"cannot be saved while adapters are merged into .*q_proj"):
        save(module, tmp_path / "merged.ckpt")
    with pytest.raises(ValueError, match="cannot be loaded while adapters are merged"):
        module.on_load_checkpoint(torch.load(tmp_path / "whole.ckpt", weights_only=True))
    for layer in layers:
        layer.unmerge()
    save(module, tmp_path / "unmerged.ckpt")
    loaded = ContrastiveModule.load_from_checkpoint(tmp_path / "unmerged.ckpt")
    torch.testing.assert_close(loaded.encode(["a red apple"]), embeddings, atol=1e-5, rtol=0)


def test_weights_that_were_trained_since_the_checkpoint_are_refused_by_the_reason(clip, tmp_path):
    module = of(with_frozen_towers(clip))
    save(module, tmp_path / "a.ckpt")
    disturb(module.requires_grad_(True))
    with pytest.raises(ValueError, match=r"trained, merged or converted .* `load_from_checkpoint`"):
        trainer_of(limit_val_batches=1).validate(module, data(), ckpt_path=tmp_path / "a.ckpt")
    assert_same(ContrastiveModule.load_from_checkpoint(tmp_path / "a.ckpt"), of(with_frozen_towers(clip)))


def test_a_model_that_has_changed_on_disk_is_refused(own_clip, tmp_path):
    path = tmp_path / "saved.ckpt"
    save(of(with_frozen_towers(own_clip)), path)
    change_one_weight(own_clip)
    message = (
        r"1 of the \d+ frozen weights .* not those it was trained with: .*\.layers\.0\.mlp\.fc1\.weight\. "
        rf"They were loaded from TwoTowerEncoder\('{own_clip}'\): restore its files"
    )
    for strict in (None, True, False):
        with pytest.raises(ValueError, match=message):
            ContrastiveModule.load_from_checkpoint(path, strict=strict)
    with pytest.raises(ValueError, match=message):
        trainer_of().fit(of(with_frozen_towers(own_clip)), data(), ckpt_path=path)


def test_a_copy_of_the_model_serves_as_well(clip, own_clip, tmp_path):
    module = disturb(of(with_frozen_towers(own_clip)))
    save(module, tmp_path / "saved.ckpt")
    change_one_weight(own_clip)
    loaded = ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt", encoder=TwoTowerEncoder(clip))
    assert_same(loaded, module)


def test_another_dtype_of_the_frozen_weights_is_refused(qwen, tmp_path):
    save(of(VisionLanguageEncoder(qwen, lora={"r": 2})), tmp_path / "saved.ckpt")
    encoder = VisionLanguageEncoder(qwen, lora={"r": 2}, dtype="bfloat16")
    with pytest.raises(ValueError, match="not those it was trained with"):
        ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt", encoder=encoder)


def test_an_encoder_without_what_was_left_out_is_refused(clip, qwen, tmp_path):
    save(of(TwoTowerEncoder(clip, lora={"r": 2})), tmp_path / "saved.ckpt")
    for other in (TwoTowerEncoder(clip), VisionLanguageEncoder(qwen)):
        with pytest.raises(ValueError, match=r"not have: encoder.* more; build the"):
            ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt", encoder=other)


def without_vision(folder: str) -> TwoTowerEncoder:
    encoder = with_frozen_towers(folder)
    encoder.network.vision_model = nn.Identity()
    return encoder


def test_what_fits_is_loaded_where_strict_is_false(clip, tmp_path):
    """Oracle: PyTorch's own loading of the weights that were trained."""
    path = tmp_path / "saved.ckpt"
    saved = save(disturb(of(with_frozen_towers(clip))), path)
    assert any(".vision_model." in name for name in saved[LEFT_OUT])
    expected, resumed = of(without_vision(clip)), of(without_vision(clip))
    expected.load_state_dict(saved["state_dict"], strict=False)
    with pytest.warns(
        UserWarning, match=r"not in the model state dict but in the checkpoint: .*vision_model.*k_proj.weight"
    ):
        loaded = ContrastiveModule.load_from_checkpoint(path, encoder=without_vision(clip), strict=False)
    assert_same(loaded, expected)
    resumed.strict_loading = False
    trainer_of().validate(resumed, data(), ckpt_path=path)
    assert_same(resumed, expected)
    resumed.strict_loading = True
    with pytest.raises(ValueError, match=r"does not have: .*vision_model.* `strict=False`"):
        trainer_of().validate(resumed, data(), ckpt_path=path)


def test_what_does_not_fit_is_refused_even_where_strict_is_false(own_clip, tmp_path):
    path = tmp_path / "saved.ckpt"
    save(of(with_frozen_towers(own_clip)), path)
    change_one_weight(own_clip)
    with pytest.raises(ValueError, match="not those it was trained with"):
        ContrastiveModule.load_from_checkpoint(path, encoder=without_vision(own_clip), strict=False)


def edit(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["state_dict"])
    torch.save(checkpoint, path)


def test_missing_and_unexpected_weights_are_still_found(clip, tmp_path):
    path, name = tmp_path / "saved.ckpt", "encoder.network.text_projection.weight"
    module = of(with_frozen_towers(clip))
    save(module, path)
    edit(path, lambda state: state.pop(name))
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}"'):
        ContrastiveModule.load_from_checkpoint(path)
    with pytest.raises(RuntimeError, match="Missing key"):
        trainer_of().fit(of(with_frozen_towers(clip)), data(), ckpt_path=path)
    save(module, path)
    edit(path, lambda state: state.update({"encoder.other": torch.ones(1)}))
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "encoder.other"'):
        ContrastiveModule.load_from_checkpoint(path)


def test_an_old_checkpoint_holds_its_frozen_weights_whatever_the_model_is_now(own_clip, tmp_path):
    """Of a version that left nothing out; oracle: the module that was saved."""
    module = disturb(of(with_frozen_towers(own_clip)))
    hyperparameters = {name: value for name, value in module.hparams.items() if name != "save_frozen"}
    old = {"state_dict": module.state_dict(), "hyper_parameters": hyperparameters}
    torch.save(old | {"pytorch-lightning_version": "2.6.6"}, tmp_path / "old.ckpt")
    change_one_weight(own_clip)
    loaded = ContrastiveModule.load_from_checkpoint(tmp_path / "old.ckpt")
    assert_same(loaded, module)
    loaded.encoder.network.vision_model.requires_grad_(False)
    loaded.encoder.network.text_model.requires_grad_(False)
    # what the model on disk has no more is kept from here on
    assert len(save(loaded, tmp_path / "new.ckpt")[LEFT_OUT]) > 0
    assert_same(ContrastiveModule.load_from_checkpoint(tmp_path / "new.ckpt"), module)
