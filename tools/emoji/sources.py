"""The four npm packages the benchmark is made of: fetching, checking, and reading what may be used.

Licence trap: the image packages also carry other vendors' images as fallbacks for what their own renderer
lacks. An image is read only if the package's ``emoji.json`` states that the renderer itself drew it. Flags
are skipped: Microsoft's Fluent set has no country flags, and the package does not document their origin.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

# name@version -> (file that `npm pack` writes, sha512 in the registry's own notation)
PACKAGES = {
    "emoji-datasource-google@16.0.0": (
        "emoji-datasource-google-16.0.0.tgz",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "emoji-datasource-twitter@16.0.0": (
        "emoji-datasource-twitter-16.0.0.tgz",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "@lobehub/fluent-emoji-3d@1.1.0": (
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
    "emojibase-data@17.0.0": (
        "emojibase-data-17.0.0.tgz",
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
}
RENDERERS = ("noto", "twemoji", "fluent")
TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
YELLOW = 0  # the tone of an image without a skin tone modifier
GROUPS_LEFT_OUT = ("component", "flags")
# words that distinguish variants of one concept: all variants are seen in training, or none
VARIANT_WORDS = frozenset(
    ("man", "woman", "person", "men", "women", "people", "boy", "girl", "face", "facing", "right", "left")
)


@dataclass(frozen=True)
class Concept:
    """One emoji: its Unicode sequence, its English names, and its images' codes by skin tone (0: none)."""

    code: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    codes: dict[int, str] = field(compare=False)

    @property
    def family(self) -> str:
        """What is common to the variants of a concept: ``man cook``, ``woman cook`` and ``cook``."""
        words = self.label.replace(":", "").replace(",", "").lower().split()
        return " ".join(word for word in words if word not in VARIANT_WORDS) or "person"


class Images:
    """Transparent images by (renderer, code), decoded on demand."""

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        self._files = files

    def has(self, code: str) -> bool:
        """Whether every renderer drew this sequence."""
        return all(code in self._files[renderer] for renderer in RENDERERS)

    def get(self, renderer: str, code: str) -> Image.Image:
        """The RGBA image, 64 x 64 pixels."""
        image = Image.open(io.BytesIO(self._files[renderer][code])).convert("RGBA")
        # a few Fluent files are 256 x 264: pad to a square rather than squeeze
        side = max(image.size)
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square if side == 64 else square.resize((64, 64), Image.Resampling.LANCZOS)

    def digest(self, renderer: str, code: str) -> str:
        """Equal for two sequences that a renderer draws alike, to the pixel."""
        return hashlib.sha256(self.get(renderer, code).tobytes()).hexdigest()


def fetch(cache: Path) -> dict[str, Path]:
    """The package files by ``name@version``, downloaded with ``npm pack`` into ``cache`` where missing.

    Raises:
        ValueError: a file's sha512 is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    paths = {}
    for package, (filename, expected) in PACKAGES.items():
        path = cache / filename
        if not path.exists():
            subprocess.run(["npm", "pack", package, "--pack-destination", str(cache)], check=True)
        found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        if found != expected:
            raise ValueError(
                f"{path}: sha512 {found} is not the pinned {expected}; delete the file and run again"
            )
        paths[package] = path
    return paths


def load(cache: Path) -> tuple[list[Concept], Images]:
    """All concepts that the three renderers draw, each with an image of its own, in Unicode order."""
    google, twitter, fluent, emojibase = (fetch(cache)[package] for package in PACKAGES)
    files = {
        "noto": _datasource(google, "google"),
        "twemoji": _datasource(twitter, "twitter"),
        "fluent": {
            _code(Path(n).stem): data for n, data in _members(fluent, "package/assets/", ".webp").items()
        },
    }
    names = _members(emojibase, "package/", ("en/data.json", "meta/groups.json"))
    images = Images(files)
    concepts = _concepts(
        json.loads(names["package/en/data.json"]), json.loads(names["package/meta/groups.json"]), images
    )
    return _without_doubles(concepts, images), images


def _members(path: Path, prefix: str, suffix: str | tuple[str, ...]) -> dict[str, bytes]:
    """The files of an archive, in one pass over it."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.startswith(prefix) and member.name.endswith(suffix):
                stream = archive.extractfile(member)
                if stream is not None:
                    found[member.name] = stream.read()
    return found


def _datasource(path: Path, vendor: str) -> dict[str, bytes]:
    """The images of an emoji-datasource package that ``vendor`` itself drew."""
    found = _members(path, "package/", (".png", "emoji.json"))
    own = {}
    for entry in json.loads(found["package/emoji.json"]):
        for cell in (entry, *entry.get("skin_variations", {}).values()):
            name = f"package/img/{vendor}/64/{cell['image']}"
            if cell[f"has_img_{vendor}"] and name in found:
                own[_code(cell["unified"])] = found[name]
    return own


def _code(sequence: str) -> str:
    """One spelling of a sequence for all packages, which differ in case and in variation selectors."""
    return sequence.lower().replace("-fe0f", "")


def _concepts(entries: list[dict[str, Any]], meta: dict[str, Any], images: Images) -> list[Concept]:
    concepts = []
    for entry in sorted((e for e in entries if "group" in e), key=lambda e: e["order"]):
        group, code = meta["groups"][str(entry["group"])], _code(entry["hexcode"])
        if group in GROUPS_LEFT_OUT or not images.has(code):
            continue
        codes = {YELLOW: code}
        for skin in entry.get("skins", ()):
            if isinstance(skin["tone"], int) and images.has(_code(skin["hexcode"])):
                codes[skin["tone"]] = _code(skin["hexcode"])
        concepts.append(
            Concept(
                code=code,
                label=entry["label"],
                tags=tuple(tag for tag in entry.get("tags", ()) if tag != entry["label"]),
                group=group,
                subgroup=meta["subgroups"][str(entry["subgroup"])],
                codes=codes,
            )
        )
    return concepts


def _without_doubles(concepts: list[Concept], images: Images) -> list[Concept]:
    """Drop what a renderer draws exactly as an earlier concept: two answers would be right."""
    drawn: set[tuple[str, str]] = set()
    kept = []
    for concept in concepts:
        codes = {}
        for tone, code in sorted(concept.codes.items()):
            marks = {(renderer, images.digest(renderer, code)) for renderer in RENDERERS}
            if not marks & drawn:
                drawn |= marks
                codes[tone] = code
        if YELLOW in codes:
            # a set of tones is all there or not there
            whole = codes if len(codes) == 1 + len(TONES) else {YELLOW: codes[YELLOW]}
            kept.append(replace(concept, codes=whole))
    return kept
