"""The subsets of single images: training rows and evaluation rows of classification, VQA and retrieval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .kinds import kind, person, skin
from .rows import (
    IMAGE,
    REPRESENT,
    EvalRow,
    Side,
    TrainRow,
    balanced,
    choice_rows,
    eval_row,
    question,
    train_row,
)
from .scenes import Album
from .sources import TONES, YELLOW, Concept
from .split import Split, rng

QUERIES = 300
RETRIEVAL_CANDIDATES = 100
RENDERER_CANDIDATES = 50
COMPOSED_CANDIDATES = 20
Shown = tuple[str, Concept, int]  # renderer, concept, tone: one image
Answer = Callable[[Concept, int], "str | None"]

# text of the query, and the answer to it from concept and tone
CHOICES: dict[str, tuple[str, Answer]] = {
    "subgroup": (
        f"{IMAGE} Represent the given image for classification.",
        lambda c, _: c.subgroup.replace("-", " "),
    ),
    "group": (
        f"{IMAGE} Identify the group of things shown in the image.",
        lambda c, _: c.group.replace("-", " and "),
    ),
    "kind": (question("What kind of thing is shown?"), lambda c, _: kind(c)),
    "person": (question("Is it a man, a woman or a person, and doing what?"), lambda c, _: person(c)),
    "skin_tone": (question("Whose skin is shown, and of which tone?"), skin),
}
CAPTION = f"{IMAGE} Find an image caption describing the given emoji."
KEYWORDS = "Find me an emoji that matches the given keywords: "
RENDERER = f"{IMAGE} Find the same emoji drawn in another style."
RECOLOUR = f"{IMAGE} Given an image, find the same emoji with the described change: "


class SingleSubsets:
    """Builds the rows from who may be trained on (``split``) and the images (``album``)."""

    def __init__(self, split: Split, album: Album) -> None:
        self.split, self.album = split, album
        self.base: list[Shown] = [(r, c, YELLOW) for c in split.seen for r in ("noto", "twemoji")]
        self.tones: list[Shown] = [(r, c, t) for c in split.toned for t in TONES for r in ("noto", "twemoji")]
        self.known = {shown for shown in self.base + self.tones if split.trains_on(*shown)}
        everyone = split.seen + split.unseen
        self.answers = {
            name: {answer for c in everyone for t in c.codes if (answer := ask(c, t))}
            for name, (_, ask) in CHOICES.items()
            if name != "skin_tone"
        }
        self.answers["skin_tone"] = {skin(c, t) for c in split.toned for t in c.codes}

    def train(self) -> dict[str, list[TrainRow]]:
        """All training subsets of single images."""
        toned = {c.code for c in self.split.toned}
        base = [shown for shown in self.base if shown in self.known]
        skins = [s for s in self.base + self.tones if s in self.known and s[1].code in toned]
        images = {"person": base + [s for s in skins if s[2] != YELLOW], "skin_tone": skins}
        rows = {}
        for name, (text, ask) in CHOICES.items():
            rows[name] = [
                train_row((text, self._path(shown)), (answer, ""))
                for shown in images.get(name, base)
                if (answer := ask(shown[1], shown[2]))
            ]
        rows["caption"] = [train_row((CAPTION, self._path(s)), (caption(s[1]), "")) for s in base]
        rows["keywords"] = [
            train_row((KEYWORDS + keywords(s[1]), ""), self._side(s)) for s in base if len(s[1].tags) > 1
        ]
        rows["renderer"] = self._train_renderer()
        rows["recolour"] = self._train_recolour(skins)
        return rows

    def evaluation(self) -> dict[str, list[EvalRow]]:
        """All evaluation subsets of single images."""
        split = self.split
        held_out: list[Shown] = [("twemoji", c, YELLOW) for c in split.held_out]
        fluent: list[Shown] = [("fluent", c, YELLOW) for c in split.held_out]
        unseen: list[Shown] = [("twemoji", c, YELLOW) for c in split.unseen]
        skins: list[Shown] = [
            ("twemoji", c, t) for c in split.toned for t in c.codes if not split.trains_on("twemoji", c, t)
        ]
        fluent_skins: list[Shown] = [("fluent", c, t) for c in split.toned for t in c.codes]
        return {
            "subgroup": self._choice("subgroup", held_out),
            "group": self._choice("group", held_out),
            "kind": self._choice("kind", held_out),
            "person": self._choice("person", skins),
            "skin_tone": self._choice("skin_tone", skins),
            "caption": self._captions("caption", held_out),
            "keywords": self._keywords("keywords", held_out),
            "renderer": self._held_out_tones(),
            "recolour": self._recolour("recolour", [s for s in skins if s[1] in split.held_out]),
            "subgroup_fluent": self._choice("subgroup", fluent, "_fluent"),
            "subgroup_unseen": self._choice("subgroup", unseen, "_unseen"),
            "kind_fluent": self._choice("kind", fluent, "_fluent"),
            "skin_tone_fluent": self._choice("skin_tone", fluent_skins, "_fluent"),
            "caption_fluent": self._captions("caption_fluent", fluent),
            "renderer_fluent": self._renderer("renderer_fluent", list(zip(fluent, held_out))),
            "renderer_unseen": self._renderer(
                "renderer_unseen", [(shown, ("noto", shown[1], YELLOW)) for shown in unseen]
            ),
        }

    def _path(self, shown: Shown) -> str:
        return self.album.emoji(*shown)

    def _side(self, shown: Shown) -> Side:
        return REPRESENT, self._path(shown)

    def _train_renderer(self) -> list[TrainRow]:
        rows = []
        for shown in self.base + self.tones:
            other: Shown = ("twemoji" if shown[0] == "noto" else "noto", *shown[1:])
            if shown in self.known and other in self.known:
                rows.append(train_row((RENDERER, self._path(shown)), self._side(other)))
        return rows

    def _train_recolour(self, skins: list[Shown]) -> list[TrainRow]:
        rows = []
        random = rng("recolour train")
        for shown in skins:
            others = [s for s in skins if s[:2] == shown[:2] and s != shown]
            for target in random.sample(others, min(2, len(others))):
                wrong = random.choice([s for s in [shown, *others] if s != target])
                query = RECOLOUR + change(target), self._path(shown)
                rows.append(train_row(query, self._side(target), self._side(wrong)))
        return rows

    def _choice(self, name: str, images: Sequence[Shown], suffix: str = "") -> list[EvalRow]:
        text, ask = CHOICES[name]
        asked = [(shown, answer) for shown in images if (answer := ask(shown[1], shown[2]))]
        chosen = balanced(asked, lambda item: item[1], QUERIES, rng(name + suffix))
        return choice_rows(
            [((text, self._path(shown)), answer) for shown, answer in chosen], self.answers[name]
        )

    def _captions(self, name: str, images: list[Shown]) -> list[EvalRow]:
        random = rng(name)
        rows = []
        for shown in random.sample(images, min(QUERIES, len(images))):
            others = [caption(s[1]) for s in images if s[1] != shown[1]]
            chosen = random.sample(others, RETRIEVAL_CANDIDATES - 1)
            rows.append(
                eval_row((CAPTION, self._path(shown)), (caption(shown[1]), ""), [(o, "") for o in chosen])
            )
        return rows

    def _keywords(self, name: str, images: list[Shown]) -> list[EvalRow]:
        random = rng(name)
        rows = []
        asked = [s for s in images if len(s[1].tags) > 1]
        for shown in random.sample(asked, min(QUERIES, len(asked))):
            words = set(keywords(shown[1]).split(", "))
            # what half of the keywords fit as well could be called right, too
            others = [
                s
                for s in images
                if s != shown and 2 * len(words & {*s[1].tags, s[1].label, *s[1].label.split()}) < len(words)
            ]
            chosen = random.sample(others, RETRIEVAL_CANDIDATES - 1)
            rows.append(
                eval_row(
                    (KEYWORDS + keywords(shown[1]), ""), self._side(shown), [self._side(o) for o in chosen]
                )
            )
        return rows

    def _renderer(self, name: str, pairs: list[tuple[Shown, Shown]]) -> list[EvalRow]:
        random = rng(name)
        rows = []
        for query, target in random.sample(pairs, min(QUERIES, len(pairs))):
            others = random.sample([t for _, t in pairs if t != target], RENDERER_CANDIDATES - 1)
            rows.append(
                eval_row((RENDERER, self._path(query)), self._side(target), [self._side(o) for o in others])
            )
        return rows

    def _held_out_tones(self) -> list[EvalRow]:
        """The other renderer's image of a tone held out in both, among the same tone of other concepts."""
        random = rng("renderer")
        both = [(c, t) for c in self.split.toned for t in TONES if not self.split.trains_on("noto", c, t)]
        rows = []
        for concept, tone in random.sample(both, min(QUERIES, len(both))):
            renderers = random.sample(("noto", "twemoji"), 2)
            own = [(c, t) for c, t in both if c == concept and t != tone]
            same = [(c, t) for c, t in both if c != concept and t == tone]
            others = [*own, *random.sample(same, RENDERER_CANDIDATES - 1 - len(own))]
            rows.append(
                eval_row(
                    (RENDERER, self._path((renderers[0], concept, tone))),
                    self._side((renderers[1], concept, tone)),
                    [self._side((renderers[1], c, t)) for c, t in others],
                )
            )
        return rows

    def _recolour(self, name: str, images: list[Shown]) -> list[EvalRow]:
        """Distractors: the same one in all other tones, and the wanted tone on others."""
        random = rng(name)
        changes = [(s, t) for s in images for t in images if s[1] == t[1] and s != t]
        rows = []
        for query, target in balanced(changes, lambda item: item[1][2], QUERIES, random):
            own = [s for s in images if s[1] == target[1] and s != target]
            same = [s for s in images if s[1] != target[1] and s[2] == target[2]]
            others = [*own, *random.sample(same, COMPOSED_CANDIDATES - 1 - len(own))]
            text = RECOLOUR + change(target)
            rows.append(
                eval_row((text, self._path(query)), self._side(target), [self._side(o) for o in others])
            )
        return rows


def caption(concept: Concept) -> str:
    """The name and up to three keywords."""
    tags = rng(f"caption {concept.code}").sample(concept.tags, min(3, len(concept.tags)))
    return f"{concept.label}: {', '.join(tags)}" if tags else concept.label


def keywords(concept: Concept) -> str:
    """Up to five keywords, in an order of chance."""
    return ", ".join(rng(f"keywords {concept.code}").sample(concept.tags, min(5, len(concept.tags))))


def change(target: Shown) -> str:
    """The wanted skin in words."""
    return f"{'yellow' if target[2] == YELLOW else TONES[target[2]]} skin"
