"""Tests that run on any device: ``FANOISE_TEST_DEVICE=cuda``, or by default on the CPU."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _autograd_without_threads() -> None:
    # Fake tensors pretend that there is a CUDA device. If autograd started after that, it would start a
    # thread for it, and later tests in this process could not fork.
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get("FANOISE_TEST_DEVICE", "cpu"))


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device of a test that has no counterpart on the CPU."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device: FANOISE_TEST_DEVICE=cuda")
    return device
