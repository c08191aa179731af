"""Collated images in DataLoader workers: written once, where the main process reads them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_two_towers
import torch
from tiny_models import make_image
from torch.utils.data import DataLoader

from fanoise_lightning import Sample, TwoTowerEncoder


@pytest.mark.parametrize("family", tiny_two_towers.BUILDERS)
def test_images_are_stacked_in_shared_memory(tiny: Callable[[str], str], family: str) -> None:
    collate = TwoTowerEncoder(tiny(family)).collate
    samples = [Sample(image=make_image(60, 40, number)) for number in range(3)]
    expected = collate.image_processor(images=[sample.image for sample in samples], return_tensors="pt")

    def collate_and_look(samples: list[Sample]) -> tuple[dict[str, torch.Tensor], bool]:
        batch = collate(samples)
        images = batch["pixels"] if "pixels" in batch else batch["pixel_values"]
        return batch, images.is_shared()

    options = {"batch_size": 3, "collate_fn": collate_and_look}
    loader = DataLoader(samples, num_workers=1, multiprocessing_context="fork", **options)
    (here, is_shared), (there, was_shared) = next(iter(DataLoader(samples, **options))), next(iter(loader))
    assert (is_shared, was_shared) == (False, True)
    here, there = collate.to_floats(here), collate.to_floats(there)
    for name, values in expected.items():
        assert torch.equal(here[name], values)
        assert torch.equal(there[name], values)
        assert here[name].dtype == there[name].dtype == values.dtype
