"""The families in a real fit on the embedded benchmark."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer, seed_everything
from tiny_models import BUILDERS, make_image
from torch.utils.data import DataLoader

from fanoise_lightning import ContrastiveModule, Encoder, InfoNCE, MMEBDataModule, Sample
from fanoise_lightning.data.rows.records import EvalRows
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder

families = pytest.mark.parametrize("family", sorted(BUILDERS))
SUBSETS = ["renderer", "subgroup"]


class Watch(Callback):
    """Every loss, and whether the adapter's dropout was on in every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.dropout: set[bool] = set()
        self.vision: set[bool] = set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        modules = dict(pl_module.encoder.network.model.named_modules())
        self.dropout |= {m.training for n, m in modules.items() if n.endswith("lora_dropout.default")}
        self.vision |= {m.training for n, m in modules.items() if n.startswith(("visual", "vision"))}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())


def module_of(folder: str, **options) -> ContrastiveModule:
    seed_everything(0, verbose=False)
    encoder = VisionLanguageEncoder(folder, **options)
    return ContrastiveModule(encoder, InfoNCE(0.1), optimizer=partial(torch.optim.AdamW, lr=5e-3))


class FewQueries(MMEBDataModule):
    """The first queries of each evaluation subset."""

    def read_eval(self) -> list[EvalRows]:
        return [self._cut(rows, 8) for rows in super().read_eval()]

    def _cut(self, rows: EvalRows, count: int) -> EvalRows:
        queries, candidates = rows.queries[:count], rows.candidates[:count]
        used = np.unique(np.concatenate([queries, candidates.ravel()]))
        numbers = (np.searchsorted(used, part) for part in (queries, candidates))
        return EvalRows(rows.subset, rows.items.take(used), *numbers)


def embeddings(module: ContrastiveModule) -> torch.Tensor:
    samples = [Sample("a red apple"), Sample("what is it", make_image()), Sample(image=make_image(50, 90, 1))]
    with torch.no_grad():
        return module.eval()(module.collate(samples))


@pytest.mark.slow
@families
def test_a_lora_fit_learns_is_scored_and_comes_back_from_its_checkpoint(tiny, family, tmp_path):
    module, watch = module_of(tiny(family), lora={"r": 8, "dropout": 0.05}), Watch()
    rows = 8 if family == "phi3_v" else 16  # its images have 313 tokens here, the others' a dozen
    data = FewQueries(
        "emoji", rows, 32, train_subsets=SUBSETS, eval_subsets=["kind"], num_samples=32, num_workers=0
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=16,
        logger=False,
        callbacks=[watch],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    assert sum(watch.losses[-4:]) < 0.9 * sum(watch.losses[:4])
    assert watch.dropout == {True}
    assert watch.vision == {False}

    trainer.validate(module, data, verbose=False)
    (row,) = module.scoreboard.subsets
    assert (row.name, 0 <= row.precision <= 1) == ("kind", True)

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = ContrastiveModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    torch.testing.assert_close(embeddings(again), embeddings(module), atol=1e-5, rtol=0)
    fresh = module_of(tiny(family), lora={"r": 8, "dropout": 0.05})
    assert (embeddings(fresh) - embeddings(module)).abs().max() > 0.01


def test_full_training_moves_the_language_part_alone_where_vision_is_frozen(tiny):
    module = module_of(tiny("qwen2_vl"), freeze_vision=True, gradient_checkpointing=True)
    before = {name: p.detach().clone() for name, p in module.encoder.named_parameters()}
    data = MMEBDataModule("emoji", 8, train_subsets=SUBSETS, num_samples=16, num_workers=0)
    Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    ).fit(module, data)
    moved = {n for n, p in module.encoder.named_parameters() if not torch.equal(p, before[n])}
    assert any("language_model" in name for name in moved)
    assert not any("visual" in name for name in moved)


def test_the_collate_runs_in_a_worker(tiny):
    collate = VisionLanguageEncoder(tiny("qwen2_vl")).collate
    samples = [Sample("a cat"), Sample("b", make_image()), Sample(image=make_image(50, 90, 1)), Sample("c")]
    loader = DataLoader(samples, 2, collate_fn=collate, num_workers=1, multiprocessing_context="spawn")
    for found, expected in zip(loader, [collate(samples[:2]), collate(samples[2:])], strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_config_builds_the_encoder(tiny):
    parser = ArgumentParser()
    parser.add_subclass_arguments(Encoder, "encoder")
    arguments = {"model": tiny("qwen2_vl"), "lora": {"r": 2, "targets": ["q_proj"]}, "image_size": "low"}
    path = "fanoise_lightning.encoders.vision_language.VisionLanguageEncoder"
    config = parser.parse_object({"encoder": {"class_path": path, "init_args": arguments}})
    encoder = parser.instantiate_classes(config).encoder
    assert encoder.lora == {"r": 2, "targets": ["q_proj"]}
    assert encoder.collate.edge == 336
