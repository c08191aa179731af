"""Precision@1 as published on MMEB: of VLM2Vec (arXiv 2410.05160), FANoise (arXiv 2511.20997) and others."""

from __future__ import annotations

from collections.abc import Mapping

from fanoise_lightning._checks import check_names
from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.evaluation.scores import ReferenceScores, group_by_mean

__all__ = ["BACKBONES", "BASELINES", "all_published", "published"]

# VLM2Vec's scores per subset, in percent, with each of these backbones.
_SCORED = ("LLaVA-1.6-HR", "Qwen2-VL-2B", "Qwen2-VL-7B")
_SUBSET_SCORES = """
ImageNet-1K        74.5  77.5  80.1
N24News            80.3  73.7  79.7
HatefulMemes       67.9  58.3  69.7
VOC2007            91.5  74.3  80.7
SUN397             75.8  73.8  77.4
Place365           44.0  35.3  37.4
ImageNet-A         43.6  50.9  58.1
ImageNet-R         79.8  84.7  73.9
ObjectNet          39.6  37.1  40.1
Country211         14.7  21.5  29.8
OK-VQA             69.0  48.5  56.8
A-OKVQA            54.4  39.5  47.3
DocVQA             52.0  82.5  89.7
InfographicsVQA    30.7  47.7  60.0
ChartQA            34.8  42.3  56.9
Visual7W           49.8  51.2  52.7
ScienceQA          42.1  30.7  38.5
VizWiz             43.0  38.6  39.9
GQA                61.2  48.3  55.1
TextVQA            62.0  63.3  71.6
VisDial            80.9  74.3  81.9
CIRR               49.9  46.8  51.1
VisualNews_t2i     75.4  73.1  80.5
VisualNews_i2t     80.0  73.7  81.2
MSCOCO_t2i         75.7  73.4  77.2
MSCOCO_i2t         73.1  68.5  73.9
NIGHTS             65.5  66.3  67.6
WebQA              87.6  85.9  88.3
FashionIQ          16.2  14.0  17.1
Wiki-SS-NQ         60.2  54.2  62.3
OVEN               56.5  68.3  66.5
EDIS               87.8  81.2  85.7
MSCOCO             80.6  66.5  75.7
RefCOCO            88.7  80.9  87.6
RefCOCO-Matching   84.0  75.7  84.6
Visual7W-Pointing  90.9  68.3  81.0
"""

# In percent: VLM2Vec's means in the order of _MEANS (None: not published), then FANoise's overall mean.
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
"""The mean precision@1 over all subsets, a fraction, of the models that VLM2Vec was compared with; zero-shot
unless fine-tuned."""

_MEMBERS = {
    mean: [subset.name for subset in subsets]
    for mean, subsets in group_by_mean(entry.subset for entry in CATALOG.values()).items()
}


def published(backbone: str) -> dict[str, ReferenceScores]:
    """The published precision@1 of ``"VLM2Vec"`` and ``"FANoise"`` on MMEB with a backbone.

    VLM2Vec's means are known for all backbones, its scores per subset for LLaVA-1.6-HR and Qwen2-VL. For
    FANoise only the mean over all subsets is known.

    Args:
        backbone: one of :data:`BACKBONES`.

    Raises:
        ValueError: if it is not, naming the nearest.

    Example:
        >>> published("Qwen2-VL-2B")["FANoise"].means["overall"]
        0.611
    """
    check_names([backbone], BACKBONES, "backbone")
    means, overall = _PUBLISHED[backbone]
    known = {name: _fraction(mean) for name, mean in zip(_MEANS, means) if mean is not None}
    return {
        "VLM2Vec": ReferenceScores(_subset_scores(backbone), known, _MEMBERS),
        "FANoise": ReferenceScores({}, {"overall": _fraction(overall)}, _MEMBERS),
    }


def all_published() -> dict[str, ReferenceScores]:
    """All published models, by names such as ``"VLM2Vec, Qwen2-VL-2B"`` and ``"CLIP"``."""
    models = {
        f"{method}, {backbone}": scores
        for backbone in BACKBONES
        for method, scores in published(backbone).items()
    }
    return models | {
        name: ReferenceScores({}, {"overall": overall}, _MEMBERS) for name, overall in BASELINES.items()
    }


def _subset_scores(backbone: str) -> dict[str, float]:
    if backbone not in _SCORED:
        return {}
    column = 1 + _SCORED.index(backbone)
    rows = [line.split() for line in _SUBSET_SCORES.strip().splitlines()]
    return {row[0]: _fraction(float(row[column])) for row in rows}


def _fraction(percent: float) -> float:
    return round(percent / 100, 4)  # 0.601, not 0.6009999999999999
