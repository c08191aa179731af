"""The spectral rotation is the right singular basis, and loses the least of any rotation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from fanoise_lightning.export.rotation import spectral_rotation


@pytest.fixture
def embeddings() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 12, generator=generator) @ torch.randn(12, 12, generator=generator)


def test_it_is_the_svd_of_numpy(embeddings):
    rotation = spectral_rotation(embeddings).double()
    values = np.linalg.svd(embeddings.double().numpy(), compute_uv=False)
    energy = (embeddings.double() @ rotation).square().sum(0).sqrt()
    np.testing.assert_allclose(energy, values, rtol=1e-5)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(12, dtype=torch.float64), atol=1e-6, rtol=0)


def test_scores_stay(embeddings):
    rotated = embeddings @ spectral_rotation(embeddings)
    torch.testing.assert_close(rotated @ rotated.T, embeddings @ embeddings.T, rtol=1e-5, atol=1e-4)


def test_no_other_rotation_keeps_more_in_the_first_dimensions(embeddings):
    kept = (embeddings @ spectral_rotation(embeddings)).square().sum(0).cumsum(0)
    others = [torch.eye(12), *torch.from_numpy(ortho_group.rvs(12, 50, random_state=0)).float()]
    for other in others:
        assert ((embeddings @ other).square().sum(0).cumsum(0) <= kept * (1 + 1e-5)).all()


def test_fewer_rows_than_dimensions_give_a_whole_basis():
    rotation = spectral_rotation(torch.randn(3, 12, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(12), atol=1e-5, rtol=0)


def test_signs_do_not_depend_on_the_sample(embeddings):
    torch.testing.assert_close(spectral_rotation(embeddings), spectral_rotation(-embeddings))
    assert (
        spectral_rotation(embeddings).gather(0, spectral_rotation(embeddings).abs().argmax(0)[None]) > 0
    ).all()


@pytest.mark.parametrize("bad", [torch.zeros(0, 4), torch.zeros(4), torch.full((2, 4), torch.nan)])
def test_what_is_no_sample_of_embeddings_is_refused(bad):
    with pytest.raises(ValueError, match="finite numbers, at least one row"):
        spectral_rotation(bad)
