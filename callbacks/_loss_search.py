"""Finds the module of a LightningModule that computes the contrastive loss."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from torch import nn
from torch.nn.modules import loss as torch_losses
from torchmetrics import Metric

from fanoise_lightning.losses import FeatureTap

REMEDY = """\
Name it, FANoise(target="path.to.loss"), where the loss is a module called with the two feature matrices; or,
where the loss is computed by functions, mark the place with one line:

    self.tap = FeatureTap()                       # in __init__; from fanoise_lightning import FeatureTap
    query, target = self.tap(query, target)       # right before the loss"""

_LOSS = {"loss", "losses", "criterion", "nce", "infonce", "ntxent"}
_CONTRASTIVE = {"contrastive", "nce", "infonce", "ntxent", "xent", "clip", "siglip", "simclr", "triplet"}
# Losses of labels, reconstructions and teachers: noise on what they compare would be silently wrong.
_OTHER_LOSS = {
    *("recon", "reconstruction", "regression", "mse", "rmse", "mae", "l1", "l2"),
    *("huber", "smooth", "charbonnier"),
    *("perceptual", "lpips", "ssim", "consistency", "distill", "distillation", "kd", "commitment", "vq"),
    *("classification", "classifier", "cls", "ce", "bce", "entropy", "nll", "focal", "dice", "iou", "ctc"),
    *("kl", "kld", "jsd", "adversarial", "gan"),
}
_OF_FEATURES = (nn.TripletMarginLoss, nn.TripletMarginWithDistanceLoss, nn.CosineEmbeddingLoss)
_OF_LABELS = {
    value.forward
    for value in vars(torch_losses).values()
    if isinstance(value, type) and issubclass(value, nn.Module) and value not in _OF_FEATURES
} - {nn.Module.forward}


def find_loss(pl_module: nn.Module, target: str | None = None) -> tuple[str, nn.Module]:
    """The path and the module that is called with the features of the contrastive loss.

    Args:
        pl_module: the LightningModule.
        target: the dotted path of the module below ``pl_module``; ``None`` takes the only
            :class:`~fanoise_lightning.FeatureTap`, or else the only child with the word loss, criterion or
            NCE in its name or class, children in ``ModuleList`` and ``ModuleDict`` included. Losses of labels
            and regression losses do not count, nor do modules that are called with one argument.

    Raises:
        ValueError: unless there is exactly one such module; the message lists the candidates and shows the
            one-line fix.
    """
    if target is not None:
        return find_module(pl_module, target)
    owner, children = type(pl_module).__name__, _children(pl_module)
    taps = [(name, module) for name, module in pl_module.named_modules() if isinstance(module, FeatureTap)]
    paths: dict[nn.Module, str] = {}
    for name, module in taps or _losses(pl_module):
        paths.setdefault(module, name)  # one module may have several
    candidates = [(name, module) for module, name in paths.items()]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(f"{name!r} ({type(module).__name__})" for name, module in candidates)
        raise ValueError(f"{owner} has several loss modules: {listed}.\n{REMEDY}")
    raise ValueError(
        f"{owner} has no child that looks like a contrastive loss (children: {children}).\n{REMEDY}"
    )


def find_module(pl_module: nn.Module, target: str) -> tuple[str, nn.Module]:
    """A path and the module that it names.

    Raises:
        ValueError: if it names none; the message lists the children of the last module on the path.
    """
    try:
        return target, pl_module.get_submodule(target)
    except AttributeError:
        pass
    names: list[str] = []
    module = pl_module
    for name in target.split("."):
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            break
        names.append(name)
        module = child
    owner = f"the children of '{'.'.join(names)}'" if names else "its children"
    raise ValueError(
        f"target={target!r} names no module of {type(pl_module).__name__}; {owner} are: {_children(module)}"
    )


def _children(module: nn.Module) -> str:
    return (
        ", ".join(f"{name!r} ({type(child).__name__})" for name, child in module.named_children()) or "none"
    )


def words(name: str) -> list[str]:
    """The words of an identifier, in lower case: neither ``gloss_encoder`` nor ``lossless`` has "loss".

    Example:
        >>> words("NTXentLoss"), words("heads.clip_loss2"), words("SmoothL1")
        (['nt', 'xent', 'loss'], ['heads', 'clip', 'loss', '2'], ['smooth', 'l1'])
    """
    return [
        word.lower() for word in re.findall(r"[lL][12](?![a-z0-9])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    ]


def _losses(parent: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, module in parent.named_children():
        name = f"{path}.{name}" if path else name
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            yield from _losses(module, name)
        elif _looks_like_loss(name, module):
            yield name, module


def _looks_like_loss(path: str, module: nn.Module) -> bool:
    module = getattr(module, "_orig_mod", module)  # of a compiled one
    if isinstance(module, Metric) or type(module).forward in _OF_LABELS or not _takes_two(module):
        return False
    said = {*words(path), *words(type(module).__name__)}
    return bool(said & _LOSS) and bool(said & _CONTRASTIVE or not said & _OTHER_LOSS)


def _takes_two(module: nn.Module) -> bool:
    try:
        kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    except (TypeError, ValueError):  # not a Python function
        return True
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return len(kinds) > 1 or any(kind in starred for kind in kinds)
