"""Images as the benchmark stores them: single emoji, scenes of two to four on a coloured ground, crops."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from .kinds import kind
from .sources import YELLOW, Concept, Images
from .split import rng

T = TypeVar("T")
GROUND = (240, 240, 240)  # of single images: light, and white parts still show
CELL = 48  # a scene is two by two cells, each holds one thing or none
GROUNDS = {
    "red": (225, 30, 40),
    "maroon": (115, 0, 25),
    "salmon": (255, 150, 130),
    "orange": (255, 135, 0),
    "brown": (130, 75, 25),
    "tan": (210, 175, 125),
    "cream": (255, 245, 200),
    "yellow": (255, 225, 20),
    "olive": (125, 125, 10),
    "lime": (175, 245, 30),
    "green": (20, 165, 50),
    "forest": (5, 75, 30),
    "mint": (165, 250, 195),
    "teal": (0, 130, 130),
    "turquoise": (40, 220, 210),
    "sky": (130, 200, 255),
    "blue": (20, 80, 235),
    "navy": (10, 15, 95),
    "lavender": (205, 180, 255),
    "purple": (125, 25, 165),
    "magenta": (240, 30, 200),
    "pink": (255, 185, 215),
    "white": (255, 255, 255),
    "silver": (185, 185, 185),
    "gray": (110, 110, 110),
    "black": (10, 10, 10),
}


@dataclass(frozen=True)
class Thing:
    """What stands in a scene, and the path of its crop."""

    concept: Concept
    crop: str


@dataclass(frozen=True)
class Scene:
    """An image's path, the name of its ground, and what stands on it."""

    path: str
    ground: str
    things: tuple[Thing, ...]


class Album:
    """The images that are asked for, encoded once, by their path in the zip."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._files: dict[str, bytes] = {}

    def emoji(self, renderer: str, concept: Concept, tone: int = YELLOW) -> str:
        """The path of a single emoji on the light ground, 64 x 64 pixels."""
        code = concept.codes[tone]
        path = f"{renderer}/{code}.webp"
        if path not in self._files:
            image = Image.new("RGBA", (64, 64), (*GROUND, 255))
            image.alpha_composite(self._images.get(renderer, code))
            self._add(path, image)
        return path

    def scene(
        self, name: str, things: Sequence[tuple[str, Concept]], ground: str, random: random.Random
    ) -> Scene:
        """A scene of 96 x 96 pixels with the things in cells drawn by chance, and a crop of each cell.

        Args:
            name: path of the scene without suffix; the crops' paths begin with it.
            things: (renderer, concept) of two to four things.
            ground: a name of ``GROUNDS``.
            random: draws the places, the sizes and a slight change of the ground.
        """
        colour = tuple(min(255, max(0, value + random.randint(-8, 8))) for value in GROUNDS[ground])
        image = Image.new("RGBA", (2 * CELL, 2 * CELL), (*colour, 255))
        placed = []
        for cell, (renderer, concept) in zip(random.sample(range(4), len(things)), things):
            left, top = CELL * (cell % 2), CELL * (cell // 2)
            size = random.randint(34, 44)
            at = (left + random.randint(2, CELL - 2 - size), top + random.randint(2, CELL - 2 - size))
            emoji = self._images.get(renderer, concept.code).resize((size, size), Image.Resampling.LANCZOS)
            image.alpha_composite(emoji, at)
            placed.append((concept, (left, top, left + CELL, top + CELL)))
        self._add(f"{name}.webp", image)
        kept = []
        for number, (concept, box) in enumerate(placed):
            self._add(f"{name}-{number}.webp", image.crop(box))
            kept.append(Thing(concept, f"{name}-{number}.webp"))
        return Scene(f"{name}.webp", ground, tuple(kept))

    def write(self, path: Path, names: Collection[str]) -> None:
        """These images as a zip: stored, sorted, one fixed time, so that equal input gives equal bytes."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(names):
                info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                info.create_system = 3
                info.external_attr = 0o644 << 16
                archive.writestr(info, self._files[name])

    def _add(self, path: str, image: Image.Image) -> None:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=80, method=6)
        self._files[path] = buffer.getvalue()


def make_scenes(album: Album, folder: str, pool: list[tuple[str, Concept]], count: int) -> list[Scene]:
    """``count`` scenes of two to four things of different kinds; grounds and things about equally often."""
    random = rng(f"scenes {folder}")
    grounds, things = _rounds(sorted(GROUNDS), random), _rounds(pool, random)
    scenes = []
    for number in range(count):
        chosen: list[tuple[str, Concept]] = []
        while len(chosen) < 2 + number % 3:
            thing = next(things)
            if kind(thing[1]) not in [kind(other) for _, other in chosen]:
                chosen.append(thing)
        scenes.append(album.scene(f"{folder}/{number:04d}", chosen, next(grounds), random))
    return scenes


def _rounds(items: Sequence[T], random: random.Random) -> Iterator[T]:
    """All items in a random order, then all again in another."""
    while True:
        yield from random.sample(items, len(items))
