"""The two parts of Phi-3.5-vision that transformers lacks: its LongRoPE and its image embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fanoise_lightning.encoders.phi3_vision.configuration import Phi3VConfig
from fanoise_lightning.encoders.phi3_vision.hd_transform import (
    LINE_SEPARATOR,
    TOKENS_PER_CROP,
    VIEW_SEPARATOR,
    hd_layout,
)

__all__ = ["Phi3VImageEmbedding", "Phi3VRotaryEmbedding"]


class Phi3VRotaryEmbedding(nn.Module):
    """Rotary embedding that chooses between LongRoPE's short and long frequencies.

    The choice depends on the last position of the padded batch, as in the published code: beyond
    ``original_max_position_embeddings`` (4096) every row gets the long frequencies, even a short one.

    The frequencies are a plain attribute rather than buffers, so that ``model.to(torch.bfloat16)`` leaves
    them in float32: rounding them would rotate distant tokens by whole radians.
    """

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        rope: dict[str, Any] = dict(config.rope_parameters or {})
        if rope["rope_type"] == "longrope":
            self.switch: int = rope["original_max_position_embeddings"]
            self.scaling: float
            init: Any = ROPE_INIT_FUNCTIONS["longrope"]
            short, self.scaling = init(config, torch.device("cpu"))
            long, _ = init(config, torch.device("cpu"), seq_len=self.switch + 1)
        else:
            dim = int(config.hidden_size // config.num_attention_heads * rope["partial_rotary_factor"])
            powers = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
            short = long = 1.0 / rope["rope_theta"] ** powers
            self.switch, self.scaling = config.max_position_embeddings, 1.0
        self.frequencies = torch.stack([short, long])  # (2, dim / 2)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B or 1, L, dim) of ``position_ids`` (B or 1, L), in the dtype of ``x``."""
        short, long = self.frequencies.to(x.device, non_blocking=True)
        frequencies = torch.where(position_ids.max() >= self.switch, long, short)  # a tensor: no device sync
        angles = (position_ids[..., None].float() * frequencies).repeat(1, 1, 2)
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)


class Phi3VImageEmbedding(nn.Module):
    """Turns crops into the vectors that stand for an image in the text."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        width = 4 * config.vision_config.hidden_size
        # The published keys start with "img_processor.vision_model."; a ModuleDict gives just that.
        self.img_processor = nn.ModuleDict(
            {"vision_model": CLIPVisionModel._from_config(config.vision_config)}
        )
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def patches(self, crops: Tensor) -> Tensor:
        """CLIP's patches (N, 576, C) of N crops (N, 3, 336, 336), at the input of its last layer."""
        clip: Any = self.img_processor["vision_model"]
        hidden = clip.pre_layrnorm(clip.embeddings(crops))
        for layer in clip.encoder.layers[:-1]:  # the model was trained on the second to last layer
            hidden = layer(hidden, None)
        return hidden[:, 1:]

    def forward(self, pixel_values: Tensor, grids: list[tuple[int, int]]) -> Tensor:
        """Vectors (T, D) of all images, one image after the other.

        Args:
            pixel_values: (n, M, 3, 336, 336): the global view of each image, its crops, padding.
            grids: rows and columns of crops of each of the n images.
        """
        device = pixel_values.device
        used = [i * pixel_values.shape[1] + k for i, (h, w) in enumerate(grids) for k in range(1 + h * w)]
        crops = pixel_values.flatten(0, 1)
        if len(used) < len(crops):
            crops = crops.index_select(0, torch.tensor(used).to(device, non_blocking=True))

        n = len(used)
        merged = (
            self.patches(crops).view(n, 12, 2, 12, 2, -1).transpose(2, 3).reshape(n * TOKENS_PER_CROP, -1)
        )
        separators = torch.stack([self.sub_GN.flatten(), self.glb_GN.flatten()]).to(merged.dtype)
        layout = _batch_layout(grids).to(device, non_blocking=True)
        return self.img_projection(torch.cat([merged, separators]).index_select(0, layout))


def _batch_layout(grids: list[tuple[int, int]]) -> Tensor:
    """The layouts of all images, as indices into [their merged patches | sub_GN | glb_GN]."""
    total = sum(1 + rows * columns for rows, columns in grids) * TOKENS_PER_CROP
    layouts, start = [], 0
    for rows, columns in grids:
        layout = hd_layout(rows, columns)
        layouts.append(layout + start * (layout >= 0))
        start += (1 + rows * columns) * TOKENS_PER_CROP
    joined = torch.cat(layouts)
    return joined.masked_fill_(joined == LINE_SEPARATOR, total).masked_fill_(
        joined == VIEW_SEPARATOR, total + 1
    )
