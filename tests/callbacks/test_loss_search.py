"""Which module is the contrastive loss."""

from __future__ import annotations

import pytest
import torch
from plain_module import PlainModule
from torch import nn

from fanoise_lightning import FeatureTap, InfoNCE, SigmoidLoss
from fanoise_lightning.callbacks._loss_search import find_loss, words


def module_of(**children: nn.Module) -> PlainModule:
    module = PlainModule()
    del module.criterion
    for name, child in children.items():
        setattr(module, name, child)
    return module


class CLIPLoss(nn.Module):
    def forward(self, image_features, text_features):
        return (image_features * text_features).sum()


class OtherLoss(nn.Module):
    def forward(self, x, y):
        return (x - y).square().sum()


class ReconLoss(nn.Module):
    def forward(self, images, reconstructed):
        return (images - reconstructed).square().mean()


class SoftTargetCrossEntropy(nn.Module):
    def forward(self, x, y):
        return (x * y).sum()


class OwnInfoNCE(nn.CrossEntropyLoss):
    """A contrastive loss that computes with the class it inherits from."""

    def forward(self, query, target):
        return super().forward(query @ target.T, torch.arange(len(query)))


@pytest.mark.parametrize(
    ("path", "children"),
    [
        ("criterion", {"criterion": CLIPLoss()}),
        ("clip", {"clip": CLIPLoss()}),
        ("nce", {"nce": CLIPLoss()}),
        ("head", {"head": InfoNCE()}),
        ("loss_fn", {"loss_fn": SigmoidLoss()}),
        ("criterion", {"criterion": nn.TripletMarginLoss()}),
        ("criterion", {"criterion": nn.CosineEmbeddingLoss()}),
        ("criterion", {"criterion": OwnInfoNCE()}),
        ("loss", {"loss": CLIPLoss(), "gloss_encoder": nn.Linear(2, 2), "lossless_codec": nn.Linear(2, 2)}),
        ("loss", {"loss": CLIPLoss(), "loss_projection": nn.Linear(2, 2)}),
        ("loss", {"loss": CLIPLoss(), "recon_loss": nn.MSELoss(), "class_loss": nn.CrossEntropyLoss()}),
        ("loss", {"loss": CLIPLoss(), "recon": ReconLoss(), "soft_loss": SoftTargetCrossEntropy()}),
        ("loss", {"loss": CLIPLoss(), "aux_loss": nn.KLDivLoss(), "smooth_loss": nn.SmoothL1Loss()}),
        ("losses.0", {"losses": nn.ModuleList([CLIPLoss(), nn.MSELoss()])}),
        ("losses.main", {"losses": nn.ModuleDict({"main": CLIPLoss(), "recon": ReconLoss()})}),
        ("heads.a.criterion", {"heads": nn.ModuleDict({"a": nn.ModuleDict({"criterion": CLIPLoss()})})}),
        ("tap", {"tap": FeatureTap(), "recon_loss": ReconLoss(), "loss": CLIPLoss()}),
    ],
)
def test_the_contrastive_loss_is_found(path, children):
    assert find_loss(module_of(**children))[0] == path


def test_one_loss_under_two_paths_is_one():
    loss = InfoNCE(0.1)
    assert find_loss(module_of(criterion=loss, losses=nn.ModuleList([loss]))) == ("criterion", loss)


@pytest.mark.parametrize(
    "children",
    [
        {"gloss_encoder": nn.Linear(2, 2)},
        {"lossless_codec": nn.Linear(2, 2)},
        {"losses": nn.ModuleList([nn.Linear(2, 2)])},
        {"recon_loss": nn.MSELoss()},
        {"recon_loss": torch.compile(nn.MSELoss(), backend="eager")},
        {"criterion": torch.compile(nn.CrossEntropyLoss(), backend="eager")},
        {"recon_loss": ReconLoss()},
        {"criterion": nn.BCEWithLogitsLoss()},
        {"criterion": SoftTargetCrossEntropy()},
        *({f"{name}_loss": OtherLoss()} for name in ("distillation", "kd", "perceptual", "rmse")),
        *({f"{name}_loss": OtherLoss()} for name in ("consistency", "charbonnier", "l2", "smooth_l1")),
    ],
)
def test_what_is_no_contrastive_loss_is_not_taken_for_one(children):
    with pytest.raises(ValueError, match="no child that looks like a contrastive loss"):
        find_loss(module_of(**children))


def test_every_stock_loss_of_torch_is_one_of_labels_or_is_known_to_be_of_features():
    of_features = {"TripletMarginLoss", "TripletMarginWithDistanceLoss", "CosineEmbeddingLoss"}
    for name in torch.nn.modules.loss.__all__:
        kind = getattr(torch.nn.modules.loss, name)
        loss = kind.__new__(kind)
        nn.Module.__init__(loss)  # some want arguments
        found = module_of(loss=loss)
        if name in of_features:
            assert find_loss(found)[0] == "loss"
        else:
            with pytest.raises(ValueError, match="no child"):
                find_loss(found)


def test_words_of_identifiers():
    assert words("NTXentLoss") == ["nt", "xent", "loss"]
    assert words("InfoNCE") == ["info", "nce"]
    assert words("CLIPLoss") == ["clip", "loss"]
    assert words("heads.closs_2loss") == ["heads", "closs", "2", "loss"]
    assert words("SmoothL1Loss") == ["smooth", "l1", "loss"]
    assert words("l2_loss.pool2") == ["l2", "loss", "pool", "2"]
