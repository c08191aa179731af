"""FSDP2: the encoder's parameters, gradients and optimiser states in shards, a part on each rank."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from fanoise_lightning.distributed import all_reduce_sum, world_size

__all__ = ["average_gradients", "repeated_blocks", "shard"]


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a module over all ranks, block by block: a block's parameters are whole only while it runs.

    What is in no block (embeddings, projections) is gathered once for the whole forward pass. Scalars stay
    whole on every rank.

    Args:
        module: is run by calling it, on every rank.
        mesh: that of Lightning's ``ModelParallelStrategy``.

    Raises:
        ValueError: if the mesh splits anything but the data.
    """
    if isinstance(module, FSDPModule):  # by an earlier fit
        return
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"the encoder is sharded over data_parallel ranks alone, but the mesh is {mesh}: take "
            f"ModelParallelStrategy(data_parallel_size={mesh.size()}, tensor_parallel_size=1)"
        )
    scalars = {parameter for parameter in module.parameters() if parameter.dim() == 0}  # FSDP2 takes none
    for part in (*repeated_blocks(module), module):
        fully_shard(part, mesh=mesh["data_parallel"], ignored_params=scalars)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Take the mean over the ranks where FSDP2 does not: of parameters that are not sharded.

    Call it once for each optimiser step, on every rank.
    """
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            parameter.grad = all_reduce_sum(parameter.grad) / world_size()


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a network's towers: children of one class, two or more, of a list; not what is in them.

    Example:
        >>> tower = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), num_layers=3)
        >>> [type(block).__name__ for block in repeated_blocks(tower)]
        ['TransformerEncoderLayer', 'TransformerEncoderLayer', 'TransformerEncoderLayer']
    """
    blocks: list[nn.Module] = []
    for child in module.children():
        members = list(child.children()) if isinstance(child, (nn.ModuleList, nn.Sequential)) else []
        if len(members) > 1 and len({type(member) for member in members}) == 1:
            blocks += members
        else:
            blocks += repeated_blocks(child)
    return blocks
