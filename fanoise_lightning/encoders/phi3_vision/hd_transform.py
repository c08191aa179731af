"""The HD transform of Phi-3.5-vision: how an image becomes crops, and crops become tokens.

1. An image is scaled, at its own aspect ratio, to the largest width of s x 336 pixels for which at most
   ``num_crops`` squares of 336 pixels cover it; the rest of its height is padded with white.
2. Each square is one crop, and the whole image, squeezed to 336 x 336, is one more: the global view.
3. CLIP makes 24 x 24 patches of each crop; four neighbours are merged into one token, 12 x 12 per crop.
4. The tokens are read line by line over the whole image, with a line separator after each line; then comes
   a view separator, and then the lines of the global view in the same way.

Portrait images are transposed before and after, so that width and height swap roles.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = [
    "CROP_SIZE",
    "LINE_SEPARATOR",
    "TOKENS_PER_CROP",
    "VIEW_SEPARATOR",
    "cut_crops",
    "hd_grid",
    "hd_layout",
    "hd_resize",
    "num_image_tokens",
]

CROP_SIZE = 336
EDGE = 12  # tokens along an edge of one crop
TOKENS_PER_CROP = EDGE * EDGE
LINE_SEPARATOR, VIEW_SEPARATOR = -1, -2  # how `hd_layout` encodes the learned vectors sub_GN and glb_GN


def hd_resized_size(width: int, height: int, num_crops: int) -> tuple[int, int]:
    """Width and height after resizing and before padding, for an image that is not higher than wide."""
    ratio = width / height
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= num_crops:
        scale += 1
    new_width = scale * CROP_SIZE
    # A strip more than num_crops * 336 times as long as wide would get a height of 0.
    return new_width, max(1, int(new_width / ratio))


def hd_grid(width: int, height: int, num_crops: int) -> tuple[int, int]:
    """Rows and columns of crops that an image of this size gets.

    Args:
        width: the width of the image in pixels.
        height: the height of the image in pixels.
        num_crops: the maximum number of crops of an image, not counting its global view.

    Example:
        >>> hd_grid(1920, 1080, num_crops=16)
        (3, 5)
    """
    if width < height:
        rows, columns = hd_grid(height, width, num_crops)
        return columns, rows
    new_width, new_height = hd_resized_size(width, height, num_crops)
    return math.ceil(new_height / CROP_SIZE), new_width // CROP_SIZE


def num_image_tokens(rows: int, columns: int) -> int:
    """The number of tokens of an image of rows x columns crops, with separators and global view.

    Example:
        >>> num_image_tokens(2, 2)
        757
    """
    return (rows * columns + 1) * TOKENS_PER_CROP + 1 + (rows + 1) * EDGE


def hd_resize(image: Image.Image, num_crops: int) -> Image.Image:
    """The image resized and padded with white, both edges multiples of 336 pixels."""
    image = image.convert("RGB")
    if image.width < image.height:
        # Transposed, not computed with width and height swapped: PIL rounds between its two passes.
        turned = hd_resize(image.transpose(Image.Transpose.TRANSPOSE), num_crops)
        return turned.transpose(Image.Transpose.TRANSPOSE)
    width, height = hd_resized_size(image.width, image.height, num_crops)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    padded = Image.new("RGB", (width, math.ceil(height / CROP_SIZE) * CROP_SIZE), "white")
    padded.paste(resized, (0, (padded.height - height) // 2))
    return padded


def cut_crops(image: Image.Image, mean: list[float], std: list[float]) -> Tensor:
    """The global view and the crops, row by row, of an image that :func:`hd_resize` made.

    Returns:
        Normalised pixels (1 + rows * columns, 3, 336, 336), float32.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    pixels.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))
    # Without antialiasing, and after the normalisation, as the model was trained.
    whole = F.interpolate(pixels[None], size=(CROP_SIZE, CROP_SIZE), mode="bicubic")
    rows, columns = pixels.shape[1] // CROP_SIZE, pixels.shape[2] // CROP_SIZE
    squares = pixels.view(3, rows, CROP_SIZE, columns, CROP_SIZE).permute(1, 3, 0, 2, 4)
    return torch.cat([whole, squares.reshape(-1, 3, CROP_SIZE, CROP_SIZE)])


@lru_cache(maxsize=256)
def hd_layout(rows: int, columns: int) -> Tensor:
    """Where each token of an image comes from.

    Returns:
        (T,) int64 on the CPU, T = :func:`num_image_tokens`. An entry >= 0 is crop * 144 + the token's place
        in that crop, row by row; crop 0 is the global view. Negative entries are the separators. The tensor
        is cached: do not change it.
    """
    crops = torch.arange(TOKENS_PER_CROP, (1 + rows * columns) * TOKENS_PER_CROP)
    lines = crops.view(rows, columns, EDGE, EDGE).transpose(1, 2).reshape(rows * EDGE, columns * EDGE)
    whole = torch.arange(TOKENS_PER_CROP).view(EDGE, EDGE)
    return torch.cat([_end_lines(lines), torch.tensor([VIEW_SEPARATOR]), _end_lines(whole)])


def _end_lines(lines: Tensor) -> Tensor:
    """The lines one after the other, with a line separator after each."""
    return F.pad(lines, (0, 1), value=LINE_SEPARATOR).flatten()
