"""The figures of a checkpoint, from the features of one training batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from matplotlib.figure import Figure
from torch import Tensor

from fanoise_lightning.figures.gradient_bias import gradient_bias
from fanoise_lightning.figures.overlaps import overlaps
from fanoise_lightning.figures.spectra import noise_spectrum, side_spectrum
from fanoise_lightning.losses import InfoNCE
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.noise import Scaling, feature_noise
from fanoise_lightning.study.gallery import Gallery
from fanoise_lightning.training.embedding import eval_mode

__all__ = ["draw_checkpoint"]

_ALPHA = 0.1  # the paper's
_DRAWS = 10
_LAWS: tuple[Scaling, ...] = ("uniform", "linear", "sublinear")


def draw_checkpoint(
    gallery: Gallery,
    checkpoint: Path,
    config: Path,
    alpha: float | None = None,
) -> None:
    """Draw the figures that features give: those of the first training batch, in eval mode.

    Args:
        gallery: gets the figures.
        checkpoint: of a :class:`~fanoise_lightning.ContrastiveModule`.
        config: a config of ``fanoise fit``, of which the data module counts, or a data module alone.
        alpha: the noise level; by default the config's, or else 0.1.

    Raises:
        ValueError: if the config has no data module, or its batches have no queries and targets; if the
            checkpoint cannot be read, or its features are not finite.
        FileNotFoundError: if the config is missing.
    """
    options = _read(config)
    if alpha is None:
        known = (options.get("noise") or {}).get("alpha")
        alpha = float(known) if isinstance(known, int | float) and known > 0 else _ALPHA
    data = _data_module(options, config)
    module = ContrastiveModule.load_from_checkpoint(
        checkpoint, map_location="cpu", allow=options.get("allow") or ()
    )
    features = _features(module, data)
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor, law: Scaling) -> Tensor:
        return feature_noise(x, alpha, law, energy="constant", generator=generator)

    def spectra() -> tuple[Figure, Any]:
        known = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        step = known.get("global_step", 0)
        sides = {side: side_spectrum(x, x + noise(x, "uniform")) for side, x in features.items()}
        return noise_spectrum([{"step": step, "sides": sides}])

    def directions() -> tuple[Figure, Any]:
        query = features["query"]
        draws = {str(law): torch.stack([noise(query, law) for _ in range(_DRAWS)]) for law in _LAWS}
        return overlaps(query, draws)

    def gradients() -> tuple[Figure, Any]:
        if not isinstance(module.loss, InfoNCE):
            raise ValueError(f"theory is for InfoNCE, and the loss is {type(module.loss).__name__}")
        temperature = 1 / float(module.loss.scale)
        return gradient_bias(features["query"], features["target"], temperature)

    gallery.notes.append(f"noise on the features: alpha {alpha:g}, energy constant")
    gallery.add("noise_spectrum", spectra)
    gallery.add("overlaps", directions)
    gallery.add("gradient_bias", gradients)


def _read(config: Path) -> dict[str, Any]:
    if not config.is_file():
        raise FileNotFoundError(f"the config {config} does not exist")
    try:
        options = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"the config {config} cannot be read: {error}") from error
    if isinstance(options, dict) and "class_path" in options:
        return {"data": options}
    if not isinstance(options, dict) or not options.get("data"):
        raise ValueError(f"the config {config} has no data module: expected `data:` with a `class_path`")
    return options


def _data_module(options: dict[str, Any], config: Path) -> LightningDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    try:
        parsed = parser.parse_object({"data": options["data"]})
    except Exception as error:  # jsonargparse's own, of several kinds
        raise ValueError(f"the data module of {config}: {error}") from error
    data: LightningDataModule = parser.instantiate_classes(parsed).data
    return data


def _features(module: ContrastiveModule, data: Any) -> dict[str, Tensor]:
    """The unit features (B, D) of the queries and targets of the first training batch."""
    if getattr(data, "collate", None) is None:
        data.collate = module.collate
    data.num_workers = 0  # one batch
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    if not isinstance(batch, dict) or not {"query", "target"} <= batch.keys():
        raise ValueError(f"a batch of {type(data).__name__} has no 'query' and 'target' to embed")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    module = module.to(accelerator or torch.device("cpu"))
    with eval_mode(module), torch.no_grad():
        features = {side: module(batch[side]).float().cpu() for side in ("query", "target")}
    for side, x in features.items():
        if not x.isfinite().all():
            raise ValueError(f"the checkpoint's features of the {side} side are not finite")
    return features
