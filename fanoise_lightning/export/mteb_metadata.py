"""What mteb wants to know of MMEB's 36 subsets besides their rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from fanoise_lightning.subset import Subset

__all__ = ["mmeb_metadata"]

_CITATION = """
@inproceedings{jiang2025vlm2vec,
  author = {Jiang, Ziyan and Meng, Rui and Yang, Xinyi and Yavuz, Semih and Zhou, Yingbo and Chen, Wenhu},
  booktitle = {The Thirteenth International Conference on Learning Representations},
  title = {VLM2Vec: Training Vision-Language Models for Massive Multimodal Embedding Tasks},
  url = {https://arxiv.org/abs/2410.05160},
  year = {2025},
}
"""


class _Source(NamedTuple):
    """Domain and subtype in mteb's words, and mteb's own tasks over the same data, separated by spaces."""

    domain: str
    subtype: str
    tasks: str = ""


_OBJECTS, _SCENES, _ANSWERS = "Object recognition", "Scene recognition", "Question answering"
_PICTURES = "Image Text Retrieval"
_SOURCES = {
    "ImageNet-1K": _Source("Web", _OBJECTS, "Imagenet1k"),
    "N24News": _Source("News", "Topic classification"),
    "HatefulMemes": _Source("Social", "Sentiment/Hate speech", "HatefulMemesI2TRetrieval"),
    "VOC2007": _Source("Scene", _OBJECTS, "VOC2007.v2"),
    "SUN397": _Source("Scene", _SCENES, "SUN397"),
    "Place365": _Source("Scene", _SCENES),
    "ImageNet-A": _Source("Web", _OBJECTS),
    "ImageNet-R": _Source("Web", _OBJECTS),
    "ObjectNet": _Source("Scene", _OBJECTS),
    "Country211": _Source("Scene", _SCENES, "Country211"),
    "OK-VQA": _Source("Scene", _ANSWERS, "OKVQAIT2TRetrieval"),
    "A-OKVQA": _Source("Scene", _ANSWERS),
    "DocVQA": _Source("Non-fiction", _ANSWERS),
    "InfographicsVQA": _Source("Non-fiction", _ANSWERS),
    "ChartQA": _Source("Non-fiction", _ANSWERS),
    "Visual7W": _Source("Scene", _ANSWERS),
    "ScienceQA": _Source("Academic", _ANSWERS),
    "VizWiz": _Source("Scene", _ANSWERS, "VizWizIT2TRetrieval"),
    "GQA": _Source("Scene", _ANSWERS),
    "TextVQA": _Source("Scene", _ANSWERS),
    "VisDial": _Source("Scene", _PICTURES),
    "CIRR": _Source("Scene", _PICTURES, "CIRRIT2IRetrieval"),
    "VisualNews_t2i": _Source("News", _PICTURES, "VisualNewsT2IRetrieval"),
    "VisualNews_i2t": _Source("News", _PICTURES, "VisualNewsI2TRetrieval"),
    "MSCOCO_t2i": _Source("Scene", _PICTURES, "MSCOCOT2IRetrieval"),
    "MSCOCO_i2t": _Source("Scene", _PICTURES, "MSCOCOI2TRetrieval"),
    "NIGHTS": _Source("Scene", "Duplicate Image Retrieval", "NIGHTSI2IRetrieval"),
    "WebQA": _Source("Encyclopaedic", _PICTURES, "WebQAT2ITRetrieval"),
    "FashionIQ": _Source("E-commerce", _PICTURES, "FashionIQIT2IRetrieval"),
    "Wiki-SS-NQ": _Source("Encyclopaedic", _PICTURES),
    "OVEN": _Source("Encyclopaedic", _PICTURES, "OVENIT2ITRetrieval"),
    "EDIS": _Source("News", _PICTURES, "EDIST2ITRetrieval"),
    "MSCOCO": _Source("Scene", _OBJECTS),
    "RefCOCO": _Source("Scene", _OBJECTS),
    "RefCOCO-Matching": _Source("Scene", _OBJECTS),
    "Visual7W-Pointing": _Source("Scene", _OBJECTS),
}


def mmeb_metadata(subset: Subset) -> dict[str, Any]:
    """The fields of mteb's ``TaskMetadata`` that tell where a subset of MMEB comes from.

    Licence and date are those of MMEB's evaluation data; the pictures keep the licences of the data sets that
    they come from.

    Example:
        >>> mmeb_metadata(Subset("CIRR", "retrieval", "IND"))["adapted_from"]
        ['CIRRIT2IRetrieval']
    """
    source = _SOURCES[subset.name]
    return {
        "reference": "https://arxiv.org/abs/2410.05160",
        "date": ("2024-10-08", "2024-10-09"),
        "domains": [source.domain],
        "task_subtypes": [source.subtype],
        "license": "apache-2.0",
        "annotations_creators": "derived",
        "dialect": [],
        "sample_creation": "found",
        "bibtex_citation": _CITATION,
        "adapted_from": source.tasks.split() or None,
    }
