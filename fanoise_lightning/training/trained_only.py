"""Checkpoints of what is trained: frozen pretrained weights come back with the model they are from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fanoise_lightning._lightning import load_checkpoint
from fanoise_lightning._log import report
from fanoise_lightning.distributed import rank
from fanoise_lightning.encoders.loading import listed
from fanoise_lightning.encoders.pretrained import PretrainedEncoder
from fanoise_lightning.encoders.source_weights import digest
from fanoise_lightning.training.describe import differences

__all__ = ["LEFT_OUT", "TrainedOnlyCheckpoints", "leave_out", "put_back"]

LEFT_OUT = "fanoise_lightning.left_out"
"""The key of a checkpoint under which are the names and the digests of the weights that it lacks."""

_STATES = ("state_dict", "current_model_state")  # the second is that of Lightning's WeightAveraging
_NOWHERE = torch.empty(0)  # stands for a weight that was left out and that the module lacks


class TrainedOnlyCheckpoints(LightningModule):
    """A module whose checkpoints lack the frozen weights that are loaded again with its encoder.

    Attributes:
        save_frozen: whether checkpoints hold them all the same.
    """

    save_frozen: bool = False
    _reported = False
    _changes = ""  # how the encoder differs from that of the checkpoint that is being loaded

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        _check_unmerged(self, "saved")
        # without a description, nobody knows where the encoder came from
        if self.save_frozen or "encoder" not in self.hparams:
            return
        size = leave_out(self, checkpoint)
        if size and not self._reported:
            report(
                f"checkpoints leave out {size / 1e6:,.1f} MB of frozen weights, which are loaded again "
                f"from {_sources(self)}; `save_frozen=True` keeps them"
            )
            self._reported = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        _check_unmerged(self, "loaded")
        changes = self._changes_since(checkpoint)
        with _naming_another_encoder(changes):
            put_back(self, checkpoint)
        self._changes = changes  # `load_state_dict` gets the weights alone

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in PyTorch, after :func:`put_back`.

        Raises:
            ValueError: if ``strict``, and the module lacks weights that a checkpoint left out.
            RuntimeError: if the weights do not fit. After :meth:`on_load_checkpoint`, both errors start with
                how the encoders differ.
        """
        changes, self._changes = self._changes, ""
        with _naming_another_encoder(changes):
            # Lightning tells `on_load_checkpoint` nothing about `strict`
            if strict and (absent := [name for name, value in state_dict.items() if value is _NOWHERE]):
                raise ValueError(
                    "the checkpoint leaves out frozen weights that this module does not have: "
                    f"{listed(absent, 3)}; build the module with the encoder of the checkpoint, or load with "
                    "`strict=False` what fits"
                )
            try:
                return super().load_state_dict(state_dict, strict, assign)
            except RuntimeError as error:  # torch names every weight
                raise RuntimeError(_abridged(str(error))) from None

    @property
    def strict_loading(self) -> bool:
        """As in Lightning, except for shards, whose checkpoint is checked here.

        Raises:
            ValueError: if ModelParallelStrategy is about to load a checkpoint that does not fit.
        """
        # That strategy asks for this, loads weights and optimiser, and only then calls
        # `on_load_checkpoint`: strictly, it would miss what is left out; otherwise, it checks nothing.
        strict = super().strict_loading
        checkpoint = self._checkpoint_for_shards()
        if not checkpoint:
            return strict
        if strict:
            with _naming_another_encoder(self._changes_since(checkpoint)):
                _check_keys(self, {*checkpoint[LEFT_OUT], *checkpoint["state_dict"]})
        if self.trainer.training:
            _check_optimizers(self, checkpoint)
        return False

    @strict_loading.setter
    def strict_loading(self, strict_loading: bool) -> None:
        LightningModule.strict_loading.fset(self, strict_loading)  # type: ignore[attr-defined]

    def _changes_since(self, checkpoint: Mapping[str, Any]) -> str:
        described = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY) or {}
        return differences(self.hparams.get("encoder"), described.get("encoder"))

    def _checkpoint_for_shards(self) -> dict[str, Any]:
        """What ModelParallelStrategy is about to load, without tensors, if something was left out."""
        path = self.trainer.ckpt_path if self.device_mesh is not None else None
        if path is None or not Path(path).is_file():
            return {}
        try:
            checkpoint = load_checkpoint(path, weights_only=True)
        except UnpicklingError:  # it holds objects: Lightning reads it, strictly, or says so
            return {}
        return checkpoint if LEFT_OUT in checkpoint else {}


def leave_out(module: nn.Module, checkpoint: dict[str, Any]) -> int:
    """Take the frozen weights out of a checkpoint that are bit for bit those an encoder was loaded with.

    Everything else stays: frozen weights that were drawn at random or have changed since, and all
    buffers, such as the statistics of batch norm. So does every weight of a sharded checkpoint.

    Args:
        module: the pretrained encoders in it know the digests of what they loaded.
        checkpoint: with the weights of `module`; what is left out is noted under `LEFT_OUT`.

    Returns:
        How many bytes were left out.
    """
    if rank():  # only rank 0 writes, except shards, which stay
        return 0
    states, loaded, size = _states(checkpoint), _loaded(module), 0
    left_out: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad or name not in loaded:
            continue
        for state in states:
            # what is about to be written is compared, not `parameter`: it may be an average
            if type(state.get(name)) is Tensor and digest(state[name]) == loaded[name]:
                left_out[name] = loaded[name]
                size += state.pop(name).nbytes
    if left_out:
        checkpoint[LEFT_OUT] = left_out
    return size


def put_back(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Add what :func:`leave_out` took out of a checkpoint, from the module that is to load it.

    Every rank must call it: sharded weights are gathered, one at a time. Where the module lacks a weight,
    an empty one takes its place, which loading finds unexpected if it is strict.

    Args:
        module: built as it was for the checkpoint.
        checkpoint: any; one from which nothing was left out stays as it is.

    Raises:
        ValueError: if the module has another weight in the place of one that was left out.
    """
    left_out: Mapping[str, str] = checkpoint.get(LEFT_OUT, {})
    own = dict(module.named_parameters(remove_duplicate=False))
    present = {name: found for name, found in left_out.items() if name in own}
    if different := [name for name, found in present.items() if digest(_whole(own[name])) != found]:
        raise ValueError(
            f"{len(different)} of the {len(left_out)} frozen weights that the checkpoint leaves out are "
            f"not those it was trained with: {listed(different, 3)}. They were loaded from "
            f"{_sources(module)}: restore its files, or pass `encoder=` built from a copy of them. If they "
            "were trained, merged or converted after that, load the checkpoint into a new module, with "
            "`load_from_checkpoint`. (With `save_frozen=True`, checkpoints hold the frozen weights.)"
        )
    for number, state in enumerate(_states(checkpoint)):
        for name in left_out.keys() - own.keys():
            state.setdefault(name, _NOWHERE)
        for name in present.keys() - state.keys():
            # a module loads its own weight at no cost; after the first state, it may hold another
            state[name] = own[name].detach().clone() if number else own[name]


@contextmanager
def _naming_another_encoder(changes: str) -> Iterator[None]:
    """Start errors with how the encoder differs from that of the checkpoint, if it does."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not changes:
            raise
        raise type(error)(
            f"the checkpoint is of another encoder: {changes}. Build the module with that encoder, or with "
            f"`load_from_checkpoint(path)`. {error}"
        ) from None


def _abridged(text: str) -> str:
    """The first lines of an error, cut."""
    lines = [shorten(line, 250, placeholder=" ...") for line in text.splitlines()]
    rest = [f"... {len(lines) - 4} more"] if len(lines) > 4 else []
    return "\n  ".join(lines[:4] + rest)


def _check_unmerged(module: nn.Module, what: str) -> None:
    """Raise ValueError if an adapter of peft is merged, which a checkpoint's weights do not tell."""
    merged = [name for name, part in module.named_modules() if getattr(part, "merged", False) is True]
    if merged:
        raise ValueError(
            f"a checkpoint cannot be {what} while adapters are merged into the weights of "
            f"{listed(merged, 3)}: they would be applied twice, or not at all. Unmerge them first "
            "(`unmerge_adapter()` of a peft model, or `unmerge()` of each layer)"
        )


def _states(checkpoint: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    return [checkpoint[key] for key in _STATES if key in checkpoint]


def _loaded(module: nn.Module) -> dict[str, str]:
    """The digest of every weight that the encoders in a module were loaded with, by name."""
    return {
        f"{prefix}.{name}" if prefix else name: found
        for prefix, part in module.named_modules()
        if isinstance(part, PretrainedEncoder)
        for name, found in part.loaded.items()
    }


def _sources(module: nn.Module) -> str:
    parts = [part for part in module.modules() if isinstance(part, PretrainedEncoder) and part.loaded]
    names = [(type(part).__name__, getattr(part, "model", None)) for part in parts]
    return ", ".join(name if model is None else f"{name}({model!r})" for name, model in names)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _check_keys(module: nn.Module, found: set[str]) -> None:
    own = set(module.state_dict())
    problems = [
        f"{what} ({listed(sorted(names), 3)})"
        for what, names in (("lacks", own - found), ("has more than the module", found - own))
        if names
    ]
    if problems:
        found_wrong = " and ".join(problems)
        raise ValueError(f"the weights of the checkpoint do not fit the module: it {found_wrong}")


def _check_optimizers(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    # with shards, Lightning numbers all parameters of the module, else those that the optimiser has
    trained = {number for number, parameter in enumerate(module.parameters()) if parameter.requires_grad}
    for state in checkpoint.get("optimizer_states", ()):
        numbers = {number for group in state["param_groups"] for number in group["params"]}
        if not numbers <= trained:
            raise ValueError(
                "the optimiser's states in the checkpoint are numbered otherwise than those of sharded "
                "weights: with frozen weights, a run with shards resumes only from a run with shards. "
                "Load the weights alone, with `load_from_checkpoint`"
            )
