"""The subsets of scenes: a question about things and ground, and grounding."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import CROP, IMAGE, EvalRow, TrainRow, balanced, choice_rows, eval_row, question, train_row
from .scenes import Album, Scene, make_scenes
from .single import QUERIES
from .sources import YELLOW
from .split import Split, rng

TRAIN_SCENES = 1200
EVAL_SCENES = 300
CANDIDATES = 20
SAME_LABEL = 8  # grounding candidates that show the same thing in other scenes: the label alone finds 1 in 9
GROUND = question("How many things stand on the ground, and of which colour is it?")
PORTION = f"{IMAGE} Select the portion of the image that isolates the object labeled as "


class SceneSubsets:
    """Draws the scenes and builds their rows."""

    def __init__(self, split: Split, album: Album) -> None:
        known = [(r, c) for r in ("noto", "twemoji") for c in split.things if split.trains_on(r, c, YELLOW)]
        self.known = make_scenes(album, "scenes/train", known, TRAIN_SCENES)
        held_out = split.things_held_out
        self.held_out = make_scenes(album, "scenes/twemoji", [("twemoji", c) for c in held_out], EVAL_SCENES)
        self.fluent = make_scenes(album, "scenes/fluent", [("fluent", c) for c in held_out], EVAL_SCENES)

    def train(self) -> dict[str, list[TrainRow]]:
        """A question and two things to find in each scene; hard negatives come from the same scene."""
        random = rng("scene rows")
        rows: dict[str, list[TrainRow]] = {"ground": [], "crop": []}
        for scene in self.known:
            rows["ground"].append(train_row((GROUND, scene.path), (ground(scene), "")))
            for thing in random.sample(scene.things, 2):
                wrong = random.choice([other for other in scene.things if other != thing])
                query = PORTION + thing.concept.label, scene.path
                rows["crop"].append(train_row(query, (CROP, thing.crop), (CROP, wrong.crop)))
        return rows

    def evaluation(self) -> dict[str, list[EvalRow]]:
        """All evaluation subsets of scenes."""
        return {
            "ground": self._ground("ground", self.held_out),
            "ground_fluent": self._ground("ground_fluent", self.fluent),
            "crop": self._crop("crop", self.held_out),
            "crop_fluent": self._crop("crop_fluent", self.fluent),
        }

    def _ground(self, name: str, scenes: Sequence[Scene]) -> list[EvalRow]:
        chosen = balanced(scenes, ground, QUERIES, rng(name))
        return choice_rows(
            [((GROUND, scene.path), ground(scene)) for scene in chosen], map(ground, self.known)
        )

    def _crop(self, name: str, scenes: Sequence[Scene]) -> list[EvalRow]:
        """Neither the label alone nor the ground alone tells: each fits about half of the candidates."""
        random = rng(name)
        pairs = [(scene, thing) for scene in scenes for thing in scene.things]
        rows = []
        for scene, thing in balanced(pairs, lambda item: item[1].concept.code, QUERIES, random):
            own = [other for other in scene.things if other != thing]
            names = {other.concept.code for other in scene.things}
            elsewhere = [(s, t) for s, t in pairs if s.ground != scene.ground and t.concept == thing.concept]
            alike = [(s, t) for s, t in pairs if s.ground == scene.ground and t.concept.code not in names]
            chosen = random.sample(elsewhere, min(SAME_LABEL, len(elsewhere)))
            chosen += random.sample(alike, CANDIDATES - 1 - len(own) - len(chosen))
            crops = [t.crop for t in own] + [t.crop for _, t in chosen]
            query = PORTION + thing.concept.label, scene.path
            rows.append(eval_row(query, (CROP, thing.crop), [(CROP, crop) for crop in crops]))
        return rows


def ground(scene: Scene) -> str:
    """How many things stand on which ground."""
    return f"{('two', 'three', 'four')[len(scene.things) - 2]} on {scene.ground}"
