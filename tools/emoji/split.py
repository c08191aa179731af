"""Which images may be trained on: by concept, by renderer, by skin tone.

* About a fifth of the concepts (whole families) is never trained on, in any renderer.
* Of the others, every Noto image is for training, and most Twemoji images; the rest is held out.
* Of the concepts with skin tones, two tones each are held out in both renderers.
* Fluent is never trained on.
"""

from __future__ import annotations

import random
from collections import defaultdict

from .kinds import KINDS, body
from .sources import TONES, YELLOW, Concept

SEED = 42
UNSEEN_SHARE = 0.2
HELD_OUT_SHARE = 0.24  # of the seen concepts' Twemoji images
TONED_HELD_OUT_SHARE = 0.35
HELD_OUT_TONES = 2
SCENE_THINGS = 120  # concepts that stand in scenes; half of them with their Twemoji image held out
SCENE_GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")


def rng(name: str) -> random.Random:
    """A random generator for each purpose, so that a change in one place leaves the others alone."""
    return random.Random(f"{SEED}:{name}")


class Split:
    """Who is trained on and who is not."""

    def __init__(self, concepts: list[Concept]) -> None:
        unseen_families = _unseen_families(concepts)
        self.unseen = [c for c in concepts if c.family in unseen_families]
        self.seen = [c for c in concepts if c.family not in unseen_families]
        self.toned = [c for c in self.seen if len(c.codes) > 1 and body(c) is not None]
        nameable = [
            c
            for c in self.seen
            if c.group in SCENE_GROUPS and c.subgroup in KINDS and c.label.isalpha() and c.label.islower()
        ]
        self.things = rng("things").sample(nameable, SCENE_THINGS)
        toned, things = {c.code for c in self.toned}, {c.code for c in self.things}
        plain = [c for c in self.seen if c.code not in toned | things]
        self._held_out = (
            _sample("plain", plain, HELD_OUT_SHARE)
            | _sample("toned", self.toned, TONED_HELD_OUT_SHARE)
            | _sample("things", self.things, 0.5)
        )
        self._held_out_tones = {
            c.code: frozenset(rng(f"tones {c.code}").sample(sorted(TONES), HELD_OUT_TONES))
            for c in self.toned
        }
        self.things_held_out = [c for c in self.things if c.code in self._held_out]
        self.held_out = [c for c in self.seen if c.code in self._held_out]

    def trains_on(self, renderer: str, concept: Concept, tone: int = YELLOW) -> bool:
        """Whether this image of a seen concept is for training."""
        if renderer == "fluent" or tone in self._held_out_tones.get(concept.code, ()):
            return False
        return renderer == "noto" or concept.code not in self._held_out


def _unseen_families(concepts: list[Concept]) -> set[str]:
    """A share of the families of every subgroup, so that each subgroup keeps something to learn from."""
    families: dict[str, list[str]] = defaultdict(list)
    for concept in concepts:
        if concept.family not in families[concept.subgroup]:
            families[concept.subgroup].append(concept.family)
    unseen: set[str] = set()
    seen: set[str] = set()
    for subgroup, names in families.items():
        drawn = rng(f"unseen {subgroup}").sample(names, round(UNSEEN_SHARE * len(names)))
        unseen |= set(drawn)
        seen |= set(names) - set(drawn)
    return unseen - seen  # a family that spans two subgroups stays on one side


def _sample(name: str, concepts: list[Concept], share: float) -> set[str]:
    codes = [c.code for c in concepts]
    return set(rng(f"held out {name}").sample(codes, round(share * len(codes))))
