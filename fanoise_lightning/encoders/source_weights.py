"""Digests of pretrained weights: they tell, much later, whether a weight is still what was loaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from xxhash import xxh3_128

__all__ = ["digest", "digests"]

_SMALL = 256  # bytes; an entry with the name and the digest of a weight takes about as many


def digest(tensor: Tensor) -> str:
    """32 hexadecimal digits of a tensor's dtype, shape and bytes, on whichever device it is.

    Example:
        >>> ones = torch.ones(2, 3)
        >>> digest(ones) == digest(ones.clone()), digest(ones) == digest(ones.bfloat16())
        (True, False)
    """
    found = xxh3_128(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digests(network: nn.Module) -> dict[nn.Parameter, str]:
    """The digest of every parameter of a network that was just loaded.

    Left out are those of a few bytes, and parameters of other classes, such as quantised ones.

    Args:
        network: every weight of it comes from a file, none is drawn at random.
    """
    return {
        parameter: digest(parameter)
        for parameter in network.parameters()
        if type(parameter) is nn.Parameter and parameter.nbytes > _SMALL
    }
