"""``fanoise export --rotate`` takes the rotation from a folder of embeddings of the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_two_towers import save_tiny

from fanoise_lightning import (
    ContrastiveModule,
    EmbeddingFolder,
    OpenClipEncoder,
    TwoTowerEncoder,
    embed,
    export_encoder,
    spectral_rotation,
)
from fanoise_lightning.export.export_command import rotation_of

COLOURS = ["red", "green", "blue", "black", "white", "grey", "brown", "pink"]


@pytest.fixture
def module(tmp_path: Path) -> ContrastiveModule:
    return ContrastiveModule(TwoTowerEncoder(save_tiny(tmp_path / "model", "clip")))


def test_the_folder_holds_the_rotation_of_a_sample(module: ContrastiveModule, tmp_path: Path) -> None:
    embed(module, COLOURS, tmp_path / "sample", dtype="float32", num_workers=0)
    rotation = rotation_of(tmp_path / "sample", module)
    expected = spectral_rotation(module.encode(COLOURS))
    cosines = (rotation * expected).sum(0)[:6]  # of eight rows; what is beyond them is arbitrary
    torch.testing.assert_close(cosines, torch.ones(6), atol=1e-3, rtol=0)
    receipt = export_encoder(module, tmp_path / "out", rotation=rotation, verify=False)
    assert receipt["rotated"]
    dense = json.loads((tmp_path / "out" / "modules.json").read_text())[-1]
    weight = load_file(tmp_path / "out" / dense["path"] / "model.safetensors")["linear.weight"]
    torch.testing.assert_close(weight, rotation.T)


def test_a_sample_of_another_model_is_refused(module: ContrastiveModule, tmp_path: Path) -> None:
    embed(module, COLOURS, tmp_path / "sample", num_workers=0)
    with torch.no_grad():
        module.encoder.network.text_projection.weight.add_(0.1)
    with pytest.raises(ValueError, match="sample` was embedded by another model"):
        rotation_of(tmp_path / "sample", module)
    assert len(EmbeddingFolder(tmp_path / "sample")) == len(COLOURS)


def test_what_is_no_rotation_is_refused(module: ContrastiveModule, tmp_path: Path) -> None:
    dim = module.encoder.embedding_dim
    with pytest.raises(ValueError, match=rf"must be \({dim}, {dim}\).*got \(3, 3\)"):
        export_encoder(module, tmp_path / "out", rotation=torch.eye(3))
    with pytest.raises(ValueError, match="not orthogonal"):
        export_encoder(module, tmp_path / "out", rotation=torch.ones(dim, dim))
    with pytest.raises(ValueError, match="not orthogonal"):
        export_encoder(module, tmp_path / "out", rotation=torch.full((dim, dim), torch.nan))
    assert not (tmp_path / "out").exists()


def test_open_clip_has_no_place_for_one(tiny_clip: str, tmp_path: Path) -> None:
    module = ContrastiveModule(OpenClipEncoder(tiny_clip))
    with pytest.raises(ValueError, match="open_clip has no place for a rotation"):
        export_encoder(module, tmp_path / "out", rotation=torch.eye(24))
