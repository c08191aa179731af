"""MMEB as a table: its 36 subsets, their training configs, and the scores that were published on them.

MMEB is the Massive Multimodal Embedding Benchmark of Jiang et al., "VLM2Vec: Training Vision-Language Models
for Massive Multimodal Embedding Tasks", arXiv 2410.05160; FANoise is arXiv 2511.20997.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fanoise_lightning._checks import check_names
from fanoise_lightning.evaluation.scores import ReferenceScores
from fanoise_lightning.subset import META_TASKS, Subset

__all__ = [
    "BACKBONES",
    "BASELINES",
    "CATALOG",
    "TRAIN_NAMES",
    "CatalogEntry",
    "by_train_name",
    "published",
    "published_table",
    "subset_table",
]

# I is an image, T a text. Training rows in thousands, rounded; 0 where MMEB does not train on the subset.
# Behind the bar precision@1 in percent, of VLM2Vec with LLaVA-1.6 HR, Qwen2-VL-2B and Qwen2-VL-7B.
_TABLE = """
ImageNet-1K        classification  IND  I    T    100  1000  |  74.5  77.5  80.1
N24News            classification  IND  I+T  T     49    24  |  80.3  73.7  79.7
HatefulMemes       classification  IND  I    T      8     2  |  67.9  58.3  69.7
VOC2007            classification  IND  I    T      8    20  |  91.5  74.3  80.7
SUN397             classification  IND  I    T     20   397  |  75.8  73.8  77.4
Place365           classification  OOD  I    T      0   365  |  44.0  35.3  37.4
ImageNet-A         classification  OOD  I    T      0  1000  |  43.6  50.9  58.1
ImageNet-R         classification  OOD  I    T      0   200  |  79.8  84.7  73.9
ObjectNet          classification  OOD  I    T      0   313  |  39.6  37.1  40.1
Country211         classification  OOD  I    T      0   211  |  14.7  21.5  29.8
OK-VQA             vqa             IND  I+T  T      9  1000  |  69.0  48.5  56.8
A-OKVQA            vqa             IND  I+T  T     17  1000  |  54.4  39.5  47.3
DocVQA             vqa             IND  I+T  T     40  1000  |  52.0  82.5  89.7
InfographicsVQA    vqa             IND  I+T  T     24  1000  |  30.7  47.7  60.0
ChartQA            vqa             IND  I+T  T     28  1000  |  34.8  42.3  56.9
Visual7W           vqa             IND  I+T  T     70  1000  |  49.8  51.2  52.7
ScienceQA          vqa             OOD  I+T  T      0  1000  |  42.1  30.7  38.5
VizWiz             vqa             OOD  I+T  T      0  1000  |  43.0  38.6  39.9
GQA                vqa             OOD  I+T  T      0  1000  |  61.2  48.3  55.1
TextVQA            vqa             OOD  I+T  T      0  1000  |  62.0  63.3  71.6
VisDial            retrieval       IND  T    I    123  1000  |  80.9  74.3  81.9
CIRR               retrieval       IND  I+T  I     26  1000  |  49.9  46.8  51.1
VisualNews_t2i     retrieval       IND  T    I    100  1000  |  75.4  73.1  80.5
VisualNews_i2t     retrieval       IND  I    T    100  1000  |  80.0  73.7  81.2
MSCOCO_t2i         retrieval       IND  T    I    100  1000  |  75.7  73.4  77.2
MSCOCO_i2t         retrieval       IND  I    T    113  1000  |  73.1  68.5  73.9
NIGHTS             retrieval       IND  I    I     16  1000  |  65.5  66.3  67.6
WebQA              retrieval       IND  T    I+T   17  1000  |  87.6  85.9  88.3
FashionIQ          retrieval       OOD  I+T  I      0  1000  |  16.2  14.0  17.1
Wiki-SS-NQ         retrieval       OOD  T    I      0  1000  |  60.2  54.2  62.3
OVEN               retrieval       OOD  I+T  I+T    0  1000  |  56.5  68.3  66.5
EDIS               retrieval       OOD  T    I+T    0  1000  |  87.8  81.2  85.7
MSCOCO             grounding       IND  I+T  I    100  1000  |  80.6  66.5  75.7
RefCOCO            grounding       OOD  I+T  I      0  1000  |  88.7  80.9  87.6
RefCOCO-Matching   grounding       OOD  I+T  I+T    0  1000  |  84.0  75.7  84.6
Visual7W-Pointing  grounding       OOD  I+T  I      0  1000  |  90.9  68.3  81.0
"""
_SCORED = ("LLaVA-1.6-HR", "Qwen2-VL-2B", "Qwen2-VL-7B")

_TRAIN_NAMES = {"ImageNet-1K": "ImageNet_1K"}  # the others are trained and evaluated under one name

# What a query text of the training split "original" begins with, to the space. WebQA's queries have no
# image and carry the placeholder all the same.
_ABOUT_A_IMAGE = "<|image_1|> Represent the given image with the following question: "
_INSTRUCTIONS = {
    "ImageNet-1K": "<|image_1|> Represent the given image for classification.",
    "N24News": "<|image_1|> Represent the given news image with the following caption for domain "
    "classification: ",
    "HatefulMemes": "<|image_1|> Represent the given image for binary classification to determine whether it "
    "constitutes hateful speech or not.",
    "VOC2007": "<|image_1|> Identify the object shown in the image",
    "SUN397": "<|image_1|> Identify the scene shown in the image.",
    "OK-VQA": _ABOUT_A_IMAGE,
    "A-OKVQA": _ABOUT_A_IMAGE,
    "DocVQA": _ABOUT_A_IMAGE,
    "InfographicsVQA": _ABOUT_A_IMAGE,
    "ChartQA": _ABOUT_A_IMAGE,
    "Visual7W": _ABOUT_A_IMAGE,
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

# Percent: VLM2Vec's means in the order of _MEANS (None: not published), and FANoise's mean over all subsets.
_MEANS = ("classification", "vqa", "retrieval", "grounding", "IND", "OOD", "overall")
_PUBLISHED: dict[str, tuple[tuple[float | None, ...], float]] = {
    "Phi-3.5-V": ((54.8, 54.9, 62.3, 79.5, 66.5, 52.0, 60.1), 60.8),
    "LLaVA-1.6-LR": ((54.7, 50.3, 56.2, 64.0, 61.0, 47.5, 55.0), 59.2),
    "LLaVA-1.6-HR": ((61.2, 49.9, 67.4, 86.1, 67.5, 57.1, 62.9), 66.4),
    "Qwen2-VL-2B": ((59.0, 49.4, 65.4, 73.4, None, None, 60.1), 61.1),
    "Qwen2-VL-7B": ((62.6, 57.8, 69.9, 81.7, 72.2, 57.8, 65.8), 66.6),
}

BACKBONES = tuple(_PUBLISHED)
"""The backbones that :func:`published` knows."""

BASELINES: Mapping[str, float] = {
    "CLIP": 0.378,
    "OpenCLIP": 0.397,
    "SigLIP": 0.348,
    "BLIP-2": 0.252,
    "MagicLens": 0.278,
    "E5-V": 0.133,
    "UniIR": 0.447,
    "CLIP, fine-tuned": 0.454,
    "OpenCLIP, fine-tuned": 0.472,
}
"""The mean precision@1 over all subsets, a fraction, of models that VLM2Vec was compared with; zero-shot if
not said otherwise."""


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
        num_train: about how many training rows it has, to the thousand.
        num_candidates: of each query.
        instruction: what a training query's text begins with, placeholder included; ``""`` if not trained on.
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
        """As the data modules take it, with chance as a floor."""
        return Subset(self.name, self.meta_task, self.distribution, {"chance": 1 / self.num_candidates})


def _rows() -> list[tuple[list[str], list[float]]]:
    """The table's fields before the bar, and the scores behind it as fractions."""
    halves = [line.split("|") for line in _TABLE.strip().splitlines()]
    return [(facts.split(), [_fraction(float(s)) for s in scores.split()]) for facts, scores in halves]


def _fraction(percent: float) -> float:
    return round(percent / 100, 4)  # 0.601, not 0.6009999999999999


def _entry(
    name: str, meta_task: str, distribution: str, query: str, target: str, train: str, candidates: str
) -> CatalogEntry:
    return CatalogEntry(
        name,
        meta_task,
        distribution,
        query,
        target,
        train_name=_TRAIN_NAMES.get(name, name) if int(train) else None,
        num_train=1000 * int(train),
        num_candidates=int(candidates),
        instruction=_INSTRUCTIONS.get(name, ""),
    )


CATALOG: Mapping[str, CatalogEntry] = {facts[0]: _entry(*facts) for facts, _ in _rows()}
"""MMEB's 36 subsets by their evaluation names, in the order of its tables."""

TRAIN_NAMES: list[str] = [entry.train_name for entry in CATALOG.values() if entry.train_name]
"""The configs of the 20 training subsets."""


def by_train_name(name: str) -> CatalogEntry:
    """The subset with the training config `name`.

    Raises:
        ValueError: if there is none, with the nearest name.

    Example:
        >>> by_train_name("ImageNet_1K").name
        'ImageNet-1K'
    """
    check_names([name], TRAIN_NAMES, "MMEB training subset")
    return next(entry for entry in CATALOG.values() if entry.train_name == name)


def published(backbone: str) -> dict[str, ReferenceScores]:
    """What was published for a backbone on MMEB: precision@1 of ``"VLM2Vec"`` and of ``"FANoise"``.

    VLM2Vec's scores per subset are known for LLaVA-1.6-HR and Qwen2-VL, its means for all backbones; of
    FANoise the mean over all subsets.

    Args:
        backbone: one of :data:`BACKBONES`.

    Raises:
        ValueError: if it is another, with the nearest name.

    Example:
        >>> published("Qwen2-VL-2B")["FANoise"].means["overall"]
        0.611
    """
    check_names([backbone], BACKBONES, "backbone")
    means, overall = _PUBLISHED[backbone]
    subsets: dict[str, float] = {}
    if backbone in _SCORED:
        column = _SCORED.index(backbone)
        subsets = {facts[0]: scores[column] for facts, scores in _rows()}
    known = {name: _fraction(mean) for name, mean in zip(_MEANS, means) if mean is not None}
    return {
        "VLM2Vec": ReferenceScores(subsets, known, _MEMBERS),
        "FANoise": ReferenceScores({}, {"overall": _fraction(overall)}, _MEMBERS),
    }


def _members() -> dict[str, Sequence[str]]:
    members: dict[str, list[str]] = {}
    for entry in CATALOG.values():
        for mean in (entry.meta_task, entry.distribution, "overall"):
            members.setdefault(mean, []).append(entry.name)
    return {name: tuple(subsets) for name, subsets in members.items()}


_MEMBERS = _members()


def subset_table() -> str:
    """The subsets with VLM2Vec's published scores, in percent, as Markdown."""
    header = ["subset", "", "query → target", "training rows", "candidates", *_SCORED]
    scores = [published(backbone)["VLM2Vec"].subsets for backbone in _SCORED]
    lines = []
    for meta_task in META_TASKS:
        lines.append([f"**{meta_task}**", *[""] * (len(header) - 1)])
        for entry in CATALOG.values():
            if entry.meta_task == meta_task:
                sides, rows = f"{entry.query} → {entry.target}", f"{entry.num_train:,}"
                facts = [entry.name, entry.distribution, sides, rows, f"{entry.num_candidates:,}"]
                lines.append([*facts, *(f"{100 * score[entry.name]:.1f}" for score in scores)])
    return _markdown(header, lines)


def published_table() -> str:
    """The published means of each backbone, in percent, as Markdown."""
    lines = []
    for backbone in BACKBONES:
        vlm2vec, fanoise = published(backbone).values()
        means = [*(vlm2vec.means.get(name) for name in _MEANS), fanoise.means["overall"]]
        lines.append([backbone, *("-" if mean is None else f"{100 * mean:.1f}" for mean in means)])
    return _markdown(["backbone", *_MEANS, "overall, FANoise"], lines)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
