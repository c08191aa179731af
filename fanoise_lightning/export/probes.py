"""The rows that an exported folder is compared on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fanoise_lightning.sample import Sample

__all__ = ["Probe", "draw_pictures", "probes"]

_ORIENTATION = 0x0112  # EXIF tag; 6 is a quarter turn


@dataclass(frozen=True)
class Probe:
    """One row.

    Args:
        kind: what it is, for the receipt.
        text: its text.
        images: the files of its pictures.
        prompt: what a reader is given as the prompt, and belongs right before the text.
    """

    kind: str
    text: str = ""
    images: tuple[str, ...] = ()
    prompt: str = ""

    def sample(self, folder: Path) -> Sample:
        """What our own encoder is given, with the pictures from a folder."""
        return Sample(self.prompt + self.text, [str(folder / name) for name in self.images] or None)


def probes(several_images: bool, special_token: str, long_text: str) -> list[Probe]:
    """The rows for an encoder.

    Args:
        several_images: whether a row may have more than one picture, and places for them in its text.
        special_token: the name of a special token that it reads as text; ``""`` if it would act.
        long_text: a text that is cut.
    """
    rows = [
        Probe("text", "a photo of two dogs"),
        Probe("short text", "."),
        Probe("text with white space", " two  spaces,\tand an end "),
        Probe("text in other scripts", "Zwei HUNDE im Gras, 两只狗, É 🐕"),
        Probe("text with a prompt", "two dogs", prompt="Find a picture of "),
        Probe("name of a picture file", "wide.png"),  # readers find that file where they are started
        Probe("long text", long_text),
        Probe("picture", images=("wide.png",)),
        Probe("grey picture", images=("grey.png",)),
        Probe("palette picture", images=("palette.png",)),
        Probe("transparent picture", images=("transparent.png",)),
        Probe("turned picture", images=("turned.png",)),
        Probe("text and picture", "what is in it?", ("tall.png",)),
        Probe("picture with a prompt", images=("tall.png",), prompt="Represent the picture."),
    ]
    if special_token:
        rows.append(Probe("name of a special token", f"a {special_token} in a text"))
    if several_images:
        rows += [
            Probe("two pictures", "what differs?", ("wide.png", "tall.png")),
            Probe("places in the text", "<|image_1|>\nis it <|image_2|>?", ("wide.png", "tall.png")),
        ]
    return rows


def draw_pictures(folder: Path) -> None:
    """Write the pictures of the rows: noise, so that no two of them are alike."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 4), dtype=np.uint8)
    Image.fromarray(colours[0, :40, :60, :3]).save(folder / "wide.png")
    Image.fromarray(colours[1, :90, :56, :3]).save(folder / "tall.png")
    Image.fromarray(colours[2, :50, :50, 0]).save(folder / "grey.png")
    Image.fromarray(colours[1, :60, :60, :3]).quantize(64).save(folder / "palette.png")
    Image.fromarray(colours[2, :48, :64]).save(folder / "transparent.png")
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    Image.fromarray(colours[0, 50:, :60, :3]).save(folder / "turned.png", exif=exif)
