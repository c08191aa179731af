"""The answers of the questions about single images, in plain words."""

from __future__ import annotations

from .sources import TONES, YELLOW, Concept

# what one would call the things of a Unicode subgroup; subgroups without a plain word are skipped
_KINDS = {
    "happy face": "face-smiling face-affection face-tongue",
    "unhappy face": "face-concerned face-negative face-unwell",
    "doubtful or tired face": "face-neutral-skeptical face-sleepy",
    "costume or monster": "face-costume",
    "cat face": "cat-face",
    "heart": "heart",
    "hand": "hand-fingers-open hand-fingers-partial hand-single-finger hand-fingers-closed hands",
    "part of the body": "body-parts",
    "person at work": "person-role",
    "person making a gesture": "person-gesture",
    "person doing sport": "person-sport",
    "person from a tale": "person-fantasy",
    "family or couple": "family",
    "mammal": "animal-mammal",
    "bird": "animal-bird",
    "reptile": "animal-reptile",
    "sea animal": "animal-marine",
    "insect": "animal-bug",
    "flower": "plant-flower",
    "plant": "plant-other",
    "fruit": "food-fruit",
    "vegetable": "food-vegetable",
    "dish": "food-prepared food-asian",
    "sweet": "food-sweet",
    "drink": "drink",
    "building": "place-building place-religious",
    "landscape": "place-map place-geographic",
    "land vehicle": "transport-ground",
    "boat": "transport-water",
    "aircraft": "transport-air",
    "clock": "time",
    "weather or sky": "sky-weather",
    "festive thing": "event",
    "sports gear": "sport",
    "toy or game": "game",
    "clothing": "clothing",
    "musical instrument": "musical-instrument",
    "electronic device": "phone computer",
    "lamp or camera": "light-video",
    "book or paper": "book-paper",
    "office thing": "office writing",
    "mail": "mail",
    "money": "money",
    "tool": "tool",
    "household thing": "household",
    "warning sign": "warning transport-sign",
    "arrow": "arrow",
    "religious symbol": "religion",
    "zodiac sign": "zodiac",
    "player button": "av-symbol",
    "number key": "keycap",
    "letters": "alphanum",
    "geometric shape": "geometric",
}
KINDS = {subgroup: kind for kind, subgroups in _KINDS.items() for subgroup in subgroups.split()}

_PERSONS = {
    "person": "portrait of a {}",
    "person-gesture": "{} making a gesture",
    "person-role": "{} at work",
    "person-fantasy": "{} from a tale",
    "person-activity": "{} in everyday life",
    "person-sport": "{} doing sport",
    "person-resting": "{} at rest",
}


def body(concept: Concept) -> str | None:
    """What has the skin: ``hand``, ``man``, ``woman`` or ``person``; None if it is something else."""
    if concept.subgroup.startswith("hand"):
        return "hand"
    if not concept.subgroup.startswith("person") or concept.subgroup == "person-symbol":
        return None
    words = concept.label.replace(":", "").lower().split()
    if "man" in words:
        return "man"
    return "woman" if "woman" in words else "person"


def kind(concept: Concept) -> str | None:
    """What kind of thing it is, or None where there is no plain word."""
    return KINDS.get(concept.subgroup)


def person(concept: Concept) -> str | None:
    """Man, woman or person, and what for; None for anything else."""
    who = body(concept)
    return _PERSONS[concept.subgroup].format(who) if who in ("man", "woman", "person") else None


def skin(concept: Concept, tone: int) -> str:
    """Who has which skin, of a concept with skin tones."""
    return f"{body(concept)} with {'yellow' if tone == YELLOW else TONES[tone]} skin"
