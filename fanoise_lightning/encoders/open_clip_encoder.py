"""Two-tower encoders from open_clip."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor
from torch.utils.data import default_collate

from fanoise_lightning.encoders.adapters import LoraOptions, add_lora
from fanoise_lightning.encoders.eight_bit import of_steps
from fanoise_lightning.encoders.hub import check_available
from fanoise_lightning.encoders.linear_attention import use_linear_attention
from fanoise_lightning.encoders.open_clip_tags import Interpolation, ResizeMode, create_model, repository_of
from fanoise_lightning.encoders.plain_text import PlainTexts
from fanoise_lightning.encoders.remote_code import refuse_code
from fanoise_lightning.encoders.source_weights import digests
from fanoise_lightning.encoders.towers import TowerCollate, TwoTowers

__all__ = ["OpenClipEncoder", "read_collate"]

_OWN_CONFIGS = Path(__file__).parent / "open_clip_configs"

_HUB = "hf-hub:"
_SCHEMES = (_HUB, "local-dir:")

# The loss owns the temperature; CoCa's decoder only writes captions.
_UNUSED = ("logit_scale", "logit_bias", "text_decoder")

# The blocks of open_clip's own transformers and of timm's, in both towers.
_LORA_TARGETS = (
    r"(?!text_decoder).*(resblocks\.\d+\.(attn\.(in|out)_proj|mlp\.c_(fc|proj))"
    r"|trunk\.blocks\.\d+\.(attn\.(qkv|[qkv]_proj|proj)|mlp\.fc\w+))"
)


class OpenClipEncoder(TwoTowers):
    """Any open_clip model, with its own tokenizer and image transform: CLIP, SigLIP, CoCa, EVA, ...

    The embedding of a sample with a text and an image is the sum of both towers' unit vectors. A text longer
    than the tower takes is cut, as in open_clip (after 77 tokens for CLIP); the limit is printed once.

    Weights need the image preprocessing and the activation that they were trained with. A tag brings both.
    For the path of a checkpoint, what all tags of the architecture have in common is used; if they differ,
    `quick_gelu` and the ``image_...`` options must say. What is used is printed once.

    Args:
        model: a name from ``open_clip.list_models()``, ``"emoji-resnet"`` (a small one for the embedded
            benchmark), ``"hf-hub:..."``, ``"local-dir:..."``, or the path of an open_clip JSON config.
        pretrained: a tag from ``open_clip.list_pretrained()`` or the path of a checkpoint; ``None`` starts
            from random weights.
        gradient_checkpointing: save memory at the cost of a second forward pass.
        lora: the settings of a fresh adapter, see :class:`LoraOptions`; ``{}`` is the paper's recipe. By
            default the adapter is put on the attention and the MLP of every block of both towers; ResNets and
            Hugging Face text towers stay frozen unless ``targets`` names their layers.
        image_mean: the mean of each of the three colours, 0 to 1, which is subtracted from an image.
        image_std: the standard deviation of each colour, by which the image is then divided.
        image_interpolation: ``"bicubic"`` or ``"bilinear"``.
        image_resize_mode: ``"shortest"`` scales an image by its shorter edge and crops it to the middle,
            ``"longest"`` scales it by its longer edge and pads it with black, ``"squash"`` gives up its
            aspect ratio.
        quick_gelu: whether the activation of the blocks is OpenAI's QuickGELU.
        split_special_tokens: read the names of special tokens in texts, such as ``<end_of_text>``, as text;
            ``False`` lets them act.

    Raises:
        ValueError: if the model is unknown, with the nearest names; if the JSON config is not an open_clip
            config; if an option has no such value; or if the tags of the architecture differ in an option
            that the path of a checkpoint leaves open.
        FileNotFoundError: if ``model`` is the path of a config that does not exist.

    Example:
        >>> encoder = OpenClipEncoder("ViT-B-32")                       # doctest: +SKIP
        >>> batch = encoder.collate([Sample(text="a cat")])             # doctest: +SKIP
        >>> encoder(**batch).shape                                      # doctest: +SKIP
        torch.Size([1, 512])
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        gradient_checkpointing: bool = False,
        lora: LoraOptions | None = None,
        image_mean: tuple[float, float, float] | None = None,
        image_std: tuple[float, float, float] | None = None,
        image_interpolation: Interpolation | None = None,
        image_resize_mode: ResizeMode | None = None,
        quick_gelu: bool | None = None,
        split_special_tokens: bool = True,
    ) -> None:
        super().__init__()
        import open_clip

        name = _register(model)
        self.model, self.pretrained = model, pretrained
        self.gradient_checkpointing, self.lora = gradient_checkpointing, lora
        self.image_mean, self.image_std = image_mean, image_std
        self.image_interpolation, self.image_resize_mode = image_interpolation, image_resize_mode
        self.quick_gelu, self.split_special_tokens = quick_gelu, split_special_tokens
        options = {
            "image_mean": image_mean,
            "image_std": image_std,
            "image_interpolation": image_interpolation,
            "image_resize_mode": image_resize_mode,
            "quick_gelu": quick_gelu,
        }
        _check_weights(name, pretrained)
        with _own_code_only(model, name):
            self.clip, transform = create_model(name, pretrained, options)
            tokenizer = open_clip.get_tokenizer(name)
        # of a hub or a folder, open_clip may have found no weights, and started from random ones
        loaded = digests(self.clip) if pretrained and not model.startswith(_SCHEMES) else {}
        self.embedding_dim = open_clip.get_model_config(name)["embed_dim"]
        if lora is not None:
            use_linear_attention(self.clip)
            add_lora(self.clip, lora, _LORA_TARGETS)
        self.remember(loaded)
        self.freeze(self.clip, _UNUSED)
        if gradient_checkpointing:
            self.clip.set_grad_checkpointing(True)
        self.collate: TowerCollate = _OpenClipCollate(transform, tokenizer, split_special_tokens)
        self.report_towers(model, self.collate.context_length)
        self.train()  # as open_clip returns models, except for what is frozen

    def encode_text(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        # CoCa normalises by default
        return self.clip.encode_text(input_ids, normalize=False)

    def encode_image(self, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        dtype = next(self.clip.visual.parameters()).dtype
        return self.clip.encode_image(pixel_values.to(dtype), normalize=False)


class _OpenClipCollate(TowerCollate):
    """open_clip's tokenizer and evaluation transform."""

    def __init__(
        self, preprocess: Callable[[Any], Tensor], tokenizer: Any, split_special_tokens: bool
    ) -> None:
        from torchvision.transforms import CenterCrop

        if split_special_tokens:
            _read_as_text(tokenizer)
        steps = getattr(preprocess, "transforms", ())
        super().__init__(any(isinstance(step, CenterCrop) for step in steps))
        self.preprocess, self.tokenizer = preprocess, tokenizer
        self.context_length = tokenizer.context_length

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        return {"input_ids": self.tokenizer(texts)}

    def transform(self, images: list[Image]) -> dict[str, Tensor]:
        if (in_8_bits := of_steps(self.preprocess)) is not None:
            return in_8_bits(images)
        # `default_collate` stacks in shared memory in a worker
        return {"pixel_values": default_collate([self.preprocess(image) for image in images])}


def read_collate(folder: str, split_special_tokens: bool) -> TowerCollate:
    """What :class:`OpenClipEncoder` collates with, from a folder that open_clip reads, without its weights.

    Raises:
        ValueError: if it asks to run code.
        OSError: if the folder has no config or tokenizer.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name = f"local-dir:{folder}"
    config = json.loads(Path(folder, "open_clip_config.json").read_text(encoding="utf-8"))
    size = config["model_cfg"]["vision_cfg"].get("image_size", 224)
    images = PreprocessCfg(**config["preprocess_cfg"] | {"size": size})
    with _own_code_only(name, name):
        tokenizer = open_clip.get_tokenizer(name)
    return _OpenClipCollate(image_transform_v2(images, is_train=False), tokenizer, split_special_tokens)


def _read_as_text(tokenizer: Any) -> None:
    """Make one of open_clip's tokenizers read the names of its special tokens as text."""
    import open_clip
    import regex

    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        names = "|".join(tokenizer.decoder[number] for number in tokenizer.all_special_ids)
        words = tokenizer.pat.pattern.removeprefix(f"{names}|")
        tokenizer.pat = regex.compile(words, regex.IGNORECASE)
    else:
        tokenizer.tokenizer = PlainTexts(tokenizer.tokenizer)


def _own_code_only(model: str, name: str) -> AbstractContextManager[None]:
    """Refuse the code of the Hugging Face text tower and tokenizer that a model's config names."""
    import open_clip

    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    named = [repr(text[key]) for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)]
    # open_clip passes these arguments on to transformers
    if (text.get("tokenizer_kwargs") or {}).get("trust_remote_code"):
        raise ValueError(
            f"the open_clip config of {model!r} asks to run the Python code that comes with its tokenizer, "
            "which is never run: choose a model whose tokenizer is part of transformers"
        )
    return refuse_code(f"the open_clip model {model!r}" + (f", with {' and '.join(named)}," if named else ""))


def _check_weights(name: str, pretrained: str | None) -> None:
    """Refuse weights that are not here and cannot be downloaded."""
    import open_clip

    if name.startswith(_HUB):
        check_available(name.removeprefix(_HUB))
    elif pretrained and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        if not open_clip.get_pretrained_cfg(name, pretrained) and not name.startswith(_SCHEMES):
            raise ValueError(
                f"`pretrained` {pretrained!r} is neither a file nor one of the tags of {name}: "
                f"{', '.join(tags) or 'it has none'}"
            )
        if repository := repository_of(name, pretrained):
            check_available(repository)


def _register(model: str) -> str:
    """The name by which open_clip knows the model: registers a path, refuses an unknown name."""
    import difflib

    import open_clip

    if model.startswith(_SCHEMES):
        return model
    open_clip.add_model_config(_OWN_CONFIGS)
    if model.endswith(".json"):
        path = Path(model)
        if not path.is_file():
            raise FileNotFoundError(f"there is no open_clip config at {model!r}")
        open_clip.add_model_config(path)
        if path.stem not in open_clip.list_models():
            raise ValueError(
                f"{model!r} is not an open_clip config, which has the keys 'embed_dim', 'vision_cfg' and "
                "'text_cfg'"
            )
        return path.stem
    known = open_clip.list_models()
    if model not in known:
        near = ", ".join(difflib.get_close_matches(model, known, 3)) or "see open_clip.list_models()"
        raise ValueError(f"open_clip knows no model {model!r}; the nearest: {near}")
    return model
