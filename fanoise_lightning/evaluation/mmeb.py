"""MMEB's 36 subsets, and the training configs of those that it trains on.

MMEB is the Massive Multimodal Embedding Benchmark of Jiang et al., "VLM2Vec: Training Vision-Language Models
for Massive Multimodal Embedding Tasks", arXiv 2410.05160.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fanoise_lightning._checks import check_names
from fanoise_lightning.subset import Subset

__all__ = ["CATALOG", "TRAIN_NAMES", "CatalogEntry", "by_train_name"]

# Name, meta-task, distribution, query, target (I is an image, T a text), training rows in thousands (rounded;
# 0 if MMEB does not train on the subset), candidates of a query.
_TABLE = """
ImageNet-1K        classification  IND  I    T    100  1000
N24News            classification  IND  I+T  T     49    24
HatefulMemes       classification  IND  I    T      8     2
VOC2007            classification  IND  I    T      8    20
SUN397             classification  IND  I    T     20   397
Place365           classification  OOD  I    T      0   365
ImageNet-A         classification  OOD  I    T      0  1000
ImageNet-R         classification  OOD  I    T      0   200
ObjectNet          classification  OOD  I    T      0   313
Country211         classification  OOD  I    T      0   211
OK-VQA             vqa             IND  I+T  T      9  1000
A-OKVQA            vqa             IND  I+T  T     17  1000
DocVQA             vqa             IND  I+T  T     40  1000
InfographicsVQA    vqa             IND  I+T  T     24  1000
ChartQA            vqa             IND  I+T  T     28  1000
Visual7W           vqa             IND  I+T  T     70  1000
ScienceQA          vqa             OOD  I+T  T      0  1000
VizWiz             vqa             OOD  I+T  T      0  1000
GQA                vqa             OOD  I+T  T      0  1000
TextVQA            vqa             OOD  I+T  T      0  1000
VisDial            retrieval       IND  T    I    123  1000
CIRR               retrieval       IND  I+T  I     26  1000
VisualNews_t2i     retrieval       IND  T    I    100  1000
VisualNews_i2t     retrieval       IND  I    T    100  1000
MSCOCO_t2i         retrieval       IND  T    I    100  1000
MSCOCO_i2t         retrieval       IND  I    T    113  1000
NIGHTS             retrieval       IND  I    I     16  1000
WebQA              retrieval       IND  T    I+T   17  1000
FashionIQ          retrieval       OOD  I+T  I      0  1000
Wiki-SS-NQ         retrieval       OOD  T    I      0  1000
OVEN               retrieval       OOD  I+T  I+T    0  1000
EDIS               retrieval       OOD  T    I+T    0  1000
MSCOCO             grounding       IND  I+T  I    100  1000
RefCOCO            grounding       OOD  I+T  I      0  1000
RefCOCO-Matching   grounding       OOD  I+T  I+T    0  1000
Visual7W-Pointing  grounding       OOD  I+T  I      0  1000
"""

# The training configs that are not named as in evaluation.
_TRAIN_NAMES = {"ImageNet-1K": "ImageNet_1K"}

# How query texts of the training split "original" begin, up to and including the space. WebQA's queries have
# no image, but carry the placeholder.
_ABOUT_AN_IMAGE = "<|image_1|> Represent the given image with the following question: "
_INSTRUCTIONS = {
    "ImageNet-1K": "<|image_1|> Represent the given image for classification.",
    "N24News": "<|image_1|> Represent the given news image with the following caption for domain "
    "classification: ",
    "HatefulMemes": "<|image_1|> Represent the given image for binary classification to determine whether it "
    "constitutes hateful speech or not.",
    "VOC2007": "<|image_1|> Identify the object shown in the image",
    "SUN397": "<|image_1|> Identify the scene shown in the image.",
    "OK-VQA": _ABOUT_AN_IMAGE,
    "A-OKVQA": _ABOUT_AN_IMAGE,
    "DocVQA": _ABOUT_AN_IMAGE,
    "InfographicsVQA": _ABOUT_AN_IMAGE,
    "ChartQA": _ABOUT_AN_IMAGE,
    "Visual7W": _ABOUT_AN_IMAGE,
    "VisDial": "Represent the given dialogue about an image, which is used for image retrieval: ",
    "CIRR": "<|image_1|> Given an image, find a similar everyday image with the described changes: ",
    "VisualNews_t2i": "Retrieve an image of this news caption. ",
    "VisualNews_i2t": "<|image_1|> Find a caption for the news in the given photo.",
    "MSCOCO_t2i": "Find me an everyday image that matches the given caption: ",
    "MSCOCO_i2t": "<|image_1|> Find an image caption describing the given everyday image.",
    "NIGHTS": "<|image_1|> Find a day-to-day image that looks similar to the provided image.",
    "WebQA": "<|image_1|> Find a Wikipedia image that answers this question: ",
    "MSCOCO": "<|image_1|> Select the portion of the image that isolates the object labeled as ",
}


@dataclass(frozen=True)
class CatalogEntry:
    """What is known of one of MMEB's subsets before its rows are read.

    Args:
        name: its config in the evaluation data.
        meta_task: ``"classification"``, ``"vqa"``, ``"retrieval"`` or ``"grounding"``.
        distribution: ``"IND"`` if MMEB trains on it, else ``"OOD"``.
        query: what a query is: ``"I"`` an image, ``"T"`` a text (besides the instruction), ``"I+T"`` both.
        target: what a target is.
        train_name: its config in the training data; ``None`` if there is none.
        num_train: how many training rows it has, to the nearest thousand.
        num_candidates: how many candidates a query has.
        instruction: how the text of a training query begins, placeholder included; ``""`` if MMEB does not
            train on it.
    """

    name: str
    meta_task: str
    distribution: str
    query: str
    target: str
    train_name: str | None
    num_train: int
    num_candidates: int
    instruction: str

    @property
    def subset(self) -> Subset:
        """The subset as the data modules take it, with chance as a floor."""
        return Subset(self.name, self.meta_task, self.distribution, {"chance": 1 / self.num_candidates})


def _entry(line: str) -> CatalogEntry:
    name, meta_task, distribution, query, target, thousands, candidates = line.split()
    num_train = 1000 * int(thousands)
    return CatalogEntry(
        name,
        meta_task,
        distribution,
        query,
        target,
        train_name=_TRAIN_NAMES.get(name, name) if num_train else None,
        num_train=num_train,
        num_candidates=int(candidates),
        instruction=_INSTRUCTIONS.get(name, ""),
    )


_ENTRIES = [_entry(line) for line in _TABLE.strip().splitlines()]

CATALOG: Mapping[str, CatalogEntry] = {entry.name: entry for entry in _ENTRIES}
"""MMEB's 36 subsets by their evaluation names, in the order of its tables."""

TRAIN_NAMES: list[str] = [entry.train_name for entry in _ENTRIES if entry.train_name]
"""The configs of the 20 training subsets."""


def by_train_name(name: str) -> CatalogEntry:
    """The subset with a training config.

    Args:
        name: the training config.

    Raises:
        ValueError: if there is no such config, naming the nearest.

    Example:
        >>> by_train_name("ImageNet_1K").name
        'ImageNet-1K'
    """
    check_names([name], TRAIN_NAMES, "MMEB training subset")
    return next(entry for entry in _ENTRIES if entry.train_name == name)
