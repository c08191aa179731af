from __future__ import annotations

import pytest
import torch

from fanoise_lightning import seeds
from fanoise_lightning.seeds import seed_generators


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize("seed", [0, 7, 2**63, 2**64 - 1])
def test_generators_draw_what_they_draw_after_torchs_own_seed(
    monkeypatch: pytest.MonkeyPatch, accelerator: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    expected = torch.rand(3)
    monkeypatch.setattr(seeds, "_has_accelerator", lambda: accelerator)
    seed_generators(seed)
    assert torch.equal(torch.rand(3), expected)


def test_every_device_is_seeded_where_there_is_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", asked.append)
    monkeypatch.setattr(seeds, "_has_accelerator", lambda: True)
    seed_generators(7)
    assert asked == [7]
