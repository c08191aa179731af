"""Whether the devices that a recipe asks for are there."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

__all__ = ["check_devices"]


def check_devices(accelerator: Any, devices: Any) -> None:
    """Refuse a recipe for GPUs on a machine without them; Lightning would, once all is downloaded and built.

    Args:
        accelerator: the trainer's option; anything but the name of a GPU passes.
        devices: the trainer's option; a number of GPUs, or anything else.

    Raises:
        ValueError: with what to pass instead.

    Example:
        >>> check_devices("cpu", 8)
    """
    if accelerator not in ("gpu", "cuda"):
        return
    found = CUDAAccelerator.auto_device_count()
    if not found and not (accelerator == "gpu" and MPSAccelerator.is_available()):
        raise ValueError(
            f"`trainer.accelerator` is {accelerator!r}, and torch finds no GPU on this machine: run it "
            "on one with a GPU and its driver (`nvidia-smi` lists it), or pass `--trainer.accelerator=cpu "
            "--trainer.precision=32-true --trainer.devices=1` to try it slowly"
        )
    wanted = int(devices) if isinstance(devices, (int, str)) and str(devices).isdigit() else 0
    if found and wanted > found:
        raise ValueError(
            f"`trainer.devices` is {wanted}, and this machine has {found} GPU{'s' if found > 1 else ''}: "
            f"pass `--trainer.devices={found}`"
        )
