from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from toy_encoder import ToyEncoder

from fanoise_lightning import (
    ContrastiveModule,
    Encoder,
    InfoNCE,
    LinearWarmup,
    MMEBDataModule,
    OpenClipEncoder,
)
from fanoise_lightning.__main__ import main
from fanoise_lightning.callbacks import FANoise

SUBSETS = ["renderer", "subgroup"]


def data(**options) -> MMEBDataModule:
    options = {"train_subsets": SUBSETS, "num_samples": 64, "batch_size": 16, "num_workers": 0, **options}
    return MMEBDataModule("emoji", eval_subsets=SUBSETS, **options)


def build(config: str, seed: int = 0, **options) -> ContrastiveModule:
    seed_everything(seed, verbose=False)
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    return ContrastiveModule(OpenClipEncoder(config), InfoNCE(0.1), **{"optimizer": optimizer, **options})


def make_trainer(**options) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in options.get("callbacks", [])),
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_steps": 2,
    }
    return Trainer(**{**defaults, **options})


def embeddings(module: ContrastiveModule) -> torch.Tensor:
    datamodule = data(collate=module.collate)
    datamodule.setup("validate")
    dataset = datamodule.eval_sets[0]
    with torch.no_grad():
        return module.eval()(module.collate([dataset[i][1] for i in range(6)]))


def test_a_fit_lowers_the_loss_and_logs_what_the_field_watches(tiny_clip):
    module = build(tiny_clip)
    trainer = make_trainer(max_steps=24, log_every_n_steps=1)
    losses: list[float] = []
    module.on_train_batch_end = lambda outputs, batch, batch_idx: losses.append(outputs["loss"].item())
    trainer.fit(module, data())
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    metrics = trainer.callback_metrics
    assert 0 <= metrics["train/accuracy"] <= 1
    assert metrics["train/logit_scale"].item() == pytest.approx(10)
    assert metrics["train/pairs_per_second"] > 0


def test_the_scoreboard_is_a_brute_force_over_rows(tiny_clip):
    module, datamodule = build(tiny_clip), data()
    trainer = make_trainer(limit_val_batches=1.0)
    trainer.validate(module, datamodule, verbose=False)
    for dataset, row in zip(datamodule.eval_sets, module.scoreboard.subsets, strict=True):
        correct = 0.0
        with torch.no_grad():
            samples = [dataset[i][1] for i in range(len(dataset))]
            parts = [samples[start : start + 50] for start in range(0, len(samples), 50)]
            vectors = torch.cat([module(module.collate(part)) for part in parts]).double()
        for query, candidates in zip(dataset.queries.tolist(), dataset.candidates.tolist()):
            scores = vectors[[c for c in candidates if c >= 0]] @ vectors[query]
            winners = (scores >= scores.max() - 1e-6).nonzero().flatten().tolist()
            correct += (0 in winners) / len(winners)
        assert row.name == dataset.subset.name
        assert row.precision == pytest.approx(correct / len(dataset.queries), abs=0.004)
    assert trainer.callback_metrics["val/precision_at_1/overall"].item() == pytest.approx(
        sum(row.precision for row in module.scoreboard.subsets) / 2, abs=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_of_16_bits_become_unit_vectors_of_32(dtype: torch.dtype) -> None:
    """Lengths that 16 bits round differently would rank the candidates of a query."""
    features = torch.randn(64, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    encoder = ToyEncoder()
    encoder.layers = nn.Identity()
    vectors = ContrastiveModule(encoder)({"x": features})
    expected = features.double() / features.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(vectors.double(), expected, atol=1e-7, rtol=0)


def test_the_sanity_check_leaves_no_scores(tiny_clip):
    module = build(tiny_clip)
    make_trainer(
        max_steps=1,
        num_sanity_val_steps=1,
        limit_val_batches=1,
        val_check_interval=100,
        check_val_every_n_epoch=None,
    ).fit(module, data(batch_size=64))
    assert module.scoreboard is None


@pytest.mark.parametrize("learnable", [False, True])
def test_a_checkpoint_reloads_alone_to_the_same_embeddings(tiny_clip, tmp_path, learnable):
    seed_everything(0, verbose=False)
    module = ContrastiveModule(
        OpenClipEncoder(tiny_clip),
        InfoNCE(0.1, learnable_temperature=learnable),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        lr_scheduler=partial(LinearWarmup, warmup_steps=1),
    )
    trainer = make_trainer()
    trainer.fit(module, data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)  # nothing in it but plain data and tensors
    again = ContrastiveModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(embeddings(module), embeddings(again))
    assert again.loss.temperature == 0.1
    assert again.loss.learnable_temperature is learnable
    again_optimizer = again._optimizer([nn.Parameter(torch.zeros(1))])
    assert isinstance(again_optimizer, torch.optim.SGD)
    assert again_optimizer.defaults["lr"] == 0.5


def test_an_encoder_that_cannot_be_described_is_given_at_loading(tiny_clip, tmp_path):
    class Wrapped(Encoder):  # keeps no constructor arguments
        def __init__(self, inner: OpenClipEncoder) -> None:
            super().__init__()
            self.module, self.collate, self.embedding_dim = inner, inner.collate, inner.embedding_dim

        def forward(self, **batch):
            return self.module(**batch)

    module = ContrastiveModule(Wrapped(OpenClipEncoder(tiny_clip)))
    trainer = make_trainer()
    trainer.fit(module, data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt does not describe its encoder: pass `encoder=`"):
        ContrastiveModule.load_from_checkpoint(tmp_path / "last.ckpt")
    again = ContrastiveModule.load_from_checkpoint(
        tmp_path / "last.ckpt", encoder=Wrapped(OpenClipEncoder(tiny_clip))
    )
    assert torch.equal(embeddings(module), embeddings(again))


def test_an_encoder_that_comes_in_eval_mode_is_trained_in_train_mode(tiny_clip):
    module = build(tiny_clip)
    module.encoder.eval()
    make_trainer().fit(module, data())
    assert module.encoder.clip.visual.training


def test_the_schedule_steps_once_a_step_and_ends_with_the_training(tiny_clip):
    module = build(tiny_clip, lr_scheduler=partial(LinearWarmup, warmup_steps=4))
    rates = []
    module.on_train_batch_start = lambda batch, batch_idx: rates.append(
        module.optimizers().param_groups[0]["lr"]
    )
    make_trainer(max_steps=8).fit(module, data())
    expected = [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    assert rates == pytest.approx([1e-3 * factor for factor in expected])


def test_hard_negatives_reach_the_loss(tiny_clip):
    seen = []

    class Loss(nn.Module):
        def forward(self, query, target, negatives=None):
            seen.append(negatives)
            return InfoNCE()(query, target, negatives)

    module = ContrastiveModule(OpenClipEncoder(tiny_clip), Loss())
    batch = data(collate=module.collate)
    batch.setup("fit")
    first = next(iter(batch.train_dataloader()))
    first["negatives"] = first["target"]
    module.log = lambda *args, **kwargs: None
    module.trainer = make_trainer(log_every_n_steps=100)
    module.training_step(first, 0)
    assert seen[0].shape == (16, 24)


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_and_resume_in_the_middle_of_an_epoch_equals_no_stop_bit_for_bit(tiny_clip, tmp_path, workers):
    def fit(steps: int, **options) -> tuple[ContrastiveModule, Trainer]:
        module = build(tiny_clip)
        trainer = make_trainer(max_steps=steps, callbacks=[FANoise(alpha=0.5), *options.pop("callbacks", [])])
        trainer.fit(module, data(num_workers=workers), **options)
        return module, trainer

    unbroken, _ = fit(11)  # 8 batches an epoch
    fit(5, callbacks=[ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=5)])
    resumed, _ = fit(11, ckpt_path=str(tmp_path / "last.ckpt"))
    for (name, value), other in zip(
        unbroken.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("arguments", [{"warmup_steps": -1}, {"warmup_steps": 5, "total_steps": 4}])
def test_a_schedule_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match="warmup_steps"):
        LinearWarmup(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **arguments)


def remote_checkpoint(tiny_clip, folder):
    """A checkpoint that describes an encoder with code of its own, and asks to have it run."""
    model = folder / "evil"
    model.mkdir()
    (model / "modeling.py").write_text('raise SystemExit("remote code ran")')
    brings = {"auto_map": {"AutoProcessor": "modeling.Processor"}}
    (model / "config.json").write_text(json.dumps({"model_type": "evil", **brings}))
    (model / "processor_config.json").write_text(json.dumps(brings))
    trainer, module = make_trainer(max_steps=1), build(tiny_clip)
    trainer.fit(module, data())
    trainer.save_checkpoint(folder / "evil.ckpt")
    checkpoint = torch.load(folder / "evil.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["encoder"] = {
        "class_path": "fanoise_lightning.VisionLanguageEncoder",
        "init_args": {"model": str(model), "trust_remote_code": True},
    }
    torch.save(checkpoint, folder / "evil.ckpt")
    return folder / "evil.ckpt"


@pytest.mark.parametrize("trust", ["false", "true", 1, None], ids=repr)
def test_only_true_trusts_remote_code(tiny_clip, tmp_path, trust):
    path = remote_checkpoint(tiny_clip, tmp_path)
    with pytest.raises(ValueError, match="asks to run the Python code that comes with"):
        ContrastiveModule.load_from_checkpoint(path, trust_remote_code=trust)


def test_a_checkpoint_cannot_ask_for_remote_code(tiny_clip, tmp_path, monkeypatch):
    path = remote_checkpoint(tiny_clip, tmp_path)
    with pytest.raises(ValueError, match="asks to run the Python code that comes with"):
        ContrastiveModule.load_from_checkpoint(path)
    with pytest.raises(SystemExit, match="remote code ran"):  # the refusal is all that stood before it
        ContrastiveModule.load_from_checkpoint(path, trust_remote_code=True)
    config = Path(__file__).parents[1] / "examples" / "configs" / "emoji.yaml"
    monkeypatch.setattr("sys.argv", ["fanoise"])
    with pytest.raises(SystemExit, match=r"evil\.ckpt asks to run the Python code"):
        main(["validate", f"--config={config}", f"--ckpt_path={path}"])
