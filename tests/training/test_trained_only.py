"""Checkpoints without the frozen weights that are loaded again with their encoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_two_towers
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from fanoise_lightning import (
    CachedFeatures,
    ContrastiveModule,
    Encoder,
    InfoNCE,
    MMEBDataModule,
    OpenClipEncoder,
    TwoTowerEncoder,
    VisionLanguageEncoder,
)
from fanoise_lightning.__main__ import main
from fanoise_lightning.training.trained_only import LEFT_OUT

LARGE = 256  # bytes: smaller weights are always saved


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> str:
    return tiny_models.save_tiny(tmp_path_factory.mktemp("qwen2_vl"), "qwen2_vl")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return tiny_two_towers.save_tiny(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture
def own_clip(clip: str, tmp_path: Path) -> str:
    """A copy of the model that the test may change."""
    return str(shutil.copytree(clip, tmp_path / "own_clip"))


def change_one_weight(folder: str) -> None:
    file = Path(folder) / "model.safetensors"
    weights = load_file(file)
    weights["text_model.encoder.layers.0.mlp.fc1.weight"][3, 5] += 2**-20
    save_file(weights, file, {"format": "pt"})


def with_frozen_towers(folder: str) -> TwoTowerEncoder:
    """CLIP of which only the two projections are trained."""
    encoder = TwoTowerEncoder(folder)
    encoder.network.vision_model.requires_grad_(False)
    encoder.network.text_model.requires_grad_(False)
    return encoder


def of(encoder: Encoder, **options: Any) -> ContrastiveModule:
    return ContrastiveModule(encoder, InfoNCE(0.1), optimizer=partial(torch.optim.AdamW, lr=1e-2), **options)


def trainer_of(*callbacks: Any, **options: Any) -> Trainer:
    off = ("logger", "enable_progress_bar", "enable_model_summary")
    return Trainer(
        **{
            "callbacks": list(callbacks),
            "accelerator": "cpu",
            "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
            "limit_val_batches": 0,
            "max_steps": 3,
            **dict.fromkeys(off, False),
            **options,
        }
    )


def data() -> MMEBDataModule:
    """Eight batches an epoch."""
    return MMEBDataModule(
        "emoji",
        train_subsets=["renderer"],
        eval_subsets=["renderer"],
        num_samples=32,
        batch_size=4,
        num_workers=0,
    )


def save(module: ContrastiveModule, path: Path) -> dict[str, Any]:
    """Write a checkpoint of a module that was not trained; what is in the file."""
    trainer = trainer_of()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)


def disturb(module: nn.Module) -> nn.Module:
    """Training, as far as a checkpoint is concerned: what is not frozen changes."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return module


def assert_same(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


def large(parameters: Iterator[tuple[str, nn.Parameter]], trained: bool) -> set[str]:
    return {n for n, p in parameters if p.requires_grad is trained and p.numel() * p.element_size() > LARGE}


BUILDERS: dict[str, Callable[[str, str, Path], Encoder]] = {
    "lora": lambda qwen, clip, folder: VisionLanguageEncoder(qwen, lora={"r": 2}),
    "lora of bfloat16": lambda qwen, clip, folder: VisionLanguageEncoder(
        qwen, lora={"r": 2}, dtype="bfloat16"
    ),
    "dora": lambda qwen, clip, folder: TwoTowerEncoder(clip, lora={"r": 2, "dora": True}),
    "frozen towers": lambda qwen, clip, folder: with_frozen_towers(clip),
    "frozen vision": lambda qwen, clip, folder: VisionLanguageEncoder(qwen, freeze_vision=True),
    "cached features": lambda qwen, clip, folder: CachedFeatures(TwoTowerEncoder(clip), folder, "mlp"),
}


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


KINDS = ["lora", "frozen towers", "cached features"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_as_one_that_was_not(qwen, clip, tmp_path, kind):
    def fit(steps: int, *callbacks: Any, ckpt_path: Path | None = None, **options: Any) -> ContrastiveModule:
        seed_everything(0, verbose=False)
        module = of(BUILDERS[kind](qwen, clip, tmp_path / "features"), **options)
        trainer_of(*callbacks, max_steps=steps).fit(module, data(), ckpt_path=ckpt_path)
        return module

    unbroken = fit(11, save_frozen=True)
    fit(5, ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=5))
    last = tmp_path / "last.ckpt"
    assert torch.load(last, weights_only=True)[LEFT_OUT]
    assert_same(fit(11, ckpt_path=last), unbroken)


def test_a_moving_average_of_the_weights_is_resumed_too(clip, tmp_path):
    def fit(steps: int, *callbacks: Any, ckpt_path: Path | None = None) -> ContrastiveModule:
        seed_everything(0, verbose=False)
        module, averaging = of(TwoTowerEncoder(clip, lora={"r": 2})), EMAWeightAveraging(decay=0.8)
        trainer = trainer_of(averaging, *callbacks, max_steps=steps)
        trainer.fit(module, data(), ckpt_path=ckpt_path)
        return module

    unbroken = fit(7)
    fit(5, ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=5))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not saved[LEFT_OUT].keys() & saved["current_model_state"].keys()
    assert_same(fit(7, ckpt_path=tmp_path / "last.ckpt"), unbroken)


def test_a_trained_module_is_tested_from_its_best_checkpoint(clip, tmp_path):
    module = of(with_frozen_towers(clip))
    trainer = trainer_of(ModelCheckpoint(tmp_path, every_n_train_steps=2), limit_test_batches=1.0)
    trainer.fit(module, data())
    first = trainer.test(module, data(), ckpt_path="best", verbose=False)
    fresh = ContrastiveModule.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert trainer_of(limit_test_batches=1.0).test(fresh, data(), verbose=False) == first


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


def test_the_command_leaves_frozen_weights_out_too(clip, own_clip, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's
    recipe = Path(__file__).parents[2] / "examples" / "configs" / "emoji.yaml"

    def run(command: str, *more: str) -> None:
        options = [
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--trainer.max_steps=2",
        ]
        options += ["--data.init_args.num_workers=0", "--data.init_args.batch_size=8"]
        options += [
            f"--trainer.logger.init_args.save_dir={tmp_path}",
            "--data.init_args.eval_subsets=[renderer]",
        ]
        main([command, f"--config={recipe}", *options, *more])

    encoder = ["--model.encoder=fanoise_lightning.TwoTowerEncoder", "--model.encoder.lora={r: 2}"]
    own = [*encoder, f"--model.encoder.model={own_clip}"]
    run("fit", *own, "--trainer.limit_val_batches=0")
    path = next(tmp_path.rglob("last.ckpt"))
    saved = torch.load(path, weights_only=True)
    assert not [name for name in saved["state_dict"] if "base_layer.weight" in name]
    run("validate", *own, f"--ckpt_path={path}")
    change_one_weight(own_clip)
    with pytest.raises(SystemExit, match="not those it was trained with"):
        run("validate", *own, f"--ckpt_path={path}")
    run("fit", *encoder, f"--model.encoder.model={clip}", "--model.save_frozen=true")
    whole = max(tmp_path.rglob("last.ckpt"), key=lambda file: file.stat().st_mtime)
    assert LEFT_OUT not in torch.load(whole, weights_only=True)
