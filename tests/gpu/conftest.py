"""Tests that run on any device: ``FANOISE_TEST_DEVICE=cuda``, or by default on the CPU."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get("FANOISE_TEST_DEVICE", "cpu"))


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device of a test that has no counterpart on the CPU."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device: FANOISE_TEST_DEVICE=cuda")
    return device
