"""A small grammar of reviews whose words interact in known ways: the tiny scale's language."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

ABSENT = None
NOUNS = ("food", "soup", "service", "film", "plot", "music", "hotel", "room", "match", "game")
ADJECTIVES = {
    "good": 1, "nice": 1, "tasty": 1, "lovely": 1, "clever": 1, "clean": 1,
    "bad": -1, "rude": -1, "awful": -1, "dirty": -1, "boring": -1, "bland": -1,
    "slow": -1, "cold": -1, "hollow": -1, "killer": -1,
}  # fmt: skip
NEGATIONS = ("not", "never", "hardly")
INTENSIFIERS = ("very", "really", "utterly")
THINGS = {"burn": -1, "death": -1, "scare": -1, "deal": 0, "notch": 0, "comfort": 1, "victory": 1, "pleasure": 1}
"""Nouns that mean something by themselves."""
IDIOMS = {
    ("slow", "burn"): 1, ("sudden", "death"): 1, ("jump", "scare"): 1, ("killer", "deal"): 1, ("top", "notch"): 1,
    ("cold", "comfort"): -1, ("hollow", "victory"): -1, ("rip", "off"): -1, ("let", "down"): -1,
}  # fmt: skip
"""Two words that together mean what neither of them means."""
DISTRACTORS = (
    "we walked to the museum", "my friend came along", "they paid by card", "it rained that day",
    "we took the early train", "there were many people",
)  # fmt: skip
ASIDES: tuple[tuple[str | tuple[str, ...], ...], ...] = (
    ("on", "balance"), (",", "honestly", ","), (",", "they", "say", ","), (",", "unlike", "the", NOUNS, ","),
    (",", "says", "one", tuple(ADJECTIVES), "critic", ","), (",", "as", "my", "friend", "told", "me", ","),
)  # fmt: skip
"""2 to 7 words that say nothing, not even an adjective among them; where a place has several words, one is drawn."""
INSTRUCTION = ("rate", "this", "review", ":")
JOINTS = ("and", "but", "while")
LABELS = {
    -2: ("very", "negative"), -1: ("negative",), 0: ("neutral",), 1: ("positive",), 2: ("very", "positive"),
}  # fmt: skip
"""What the sum of a review's opinions is called, of which more than 2 is as much as 2."""

ASIDE_SHARE = 1 / 3
"""Of the opinions with a negation or an intensifier, how many have an aside behind it."""
HELD_OUT_SHARE = 10
"""One review in so many is kept from training."""


@dataclass(frozen=True)
class Clause:
    """Words of a review, and what they say.

    Attributes:
        words: in reading order.
        parts: places in ``words`` of those with a part in its meaning.
        kind: ``opinion`` (parts: negation or None, intensifier or None, adjective), ``idiom`` (its two words),
            ``thing`` (the noun) or ``distractor`` (none).
    """

    words: tuple[str, ...]
    parts: tuple[int | None, ...]
    kind: str

    def value(self, present: Sequence[bool]) -> int:
        """What the words that are present say, from -2 to 2: an absent word is as if it were not there."""
        said = [self.words[part] if part is not None and present[part] else ABSENT for part in self.parts]
        if self.kind == "opinion":
            negation, intensifier, adjective = said
            if adjective is ABSENT:
                return 0
            strength = -1 if negation is not ABSENT else 2 if intensifier is not ABSENT else 1
            return strength * ADJECTIVES[adjective]
        if self.kind == "idiom":
            one, other = said
            if one is not ABSENT and other is not ABSENT:
                return IDIOMS[one, other]
        return sum(ADJECTIVES.get(word, THINGS.get(word, 0)) for word in said if word is not ABSENT)


@dataclass(frozen=True)
class Review:
    """An instruction, perhaps, and clauses; ``text`` is its words, joined by spaces."""

    words: tuple[str, ...]
    clauses: tuple[Clause, ...]
    starts: tuple[int, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def score(self, present: Sequence[bool]) -> int:
        """The sum of what the clauses say, of the words that are present."""
        spans = zip(self.starts, self.clauses, strict=True)
        return sum(clause.value(present[start : start + len(clause.words)]) for start, clause in spans)

    def label(self, present: Sequence[bool] | None = None) -> tuple[str, ...]:
        """The words of the answer; all words are present where nothing is said of them."""
        score = self.score([True] * len(self.words) if present is None else present)
        return LABELS[max(-2, min(2, score))]

    def pairs(self) -> list[tuple[int, int]]:
        """Places of the words that interact: pairs whose Moebius coefficient in :meth:`score` is not 0."""
        return [
            (start + first, start + second)
            for start, clause in zip(self.starts, self.clauses, strict=True)
            for first, second in combinations((part for part in clause.parts if part is not None), 2)
            if clause_moebius(clause, (first, second))
        ]

    def kinds(self) -> list[str]:
        """The kind of each of :meth:`pairs`: ``negation``, ``intensifier`` or ``idiom``."""
        of_word = dict.fromkeys(NEGATIONS, "negation") | dict.fromkeys(INTENSIFIERS, "intensifier")
        return [of_word.get(self.words[first], "idiom") for first, _ in self.pairs()]


def clause_moebius(clause: Clause, pair: tuple[int, int]) -> int:
    """What two words say together, beyond what each says alone."""
    first, second = pair
    sets = {1: (pair, ()), -1: ((first,), (second,))}
    places = range(len(clause.words))
    return sum(sign * clause.value([place in chosen for place in places]) for sign in sets for chosen in sets[sign])


def draw_clause(rng: np.random.Generator) -> Clause:
    """A clause with an opinion: half of them about a noun, perhaps with an aside, the others an idiom or a thing."""
    if rng.random() < 0.5:
        noun, adjective = NOUNS[rng.integers(len(NOUNS))], list(ADJECTIVES)[rng.integers(len(ADJECTIVES))]
        words = ["the", noun, "was"]
        places: list[int | None] = []
        for choices, chance in ((NEGATIONS, 0.5), (INTENSIFIERS, 0.4)):
            drawn = rng.random() < chance
            places.append(len(words) if drawn else None)
            words += [choices[rng.integers(len(choices))]] if drawn else []
        clause = Clause((*words, adjective), (*places, len(words)), "opinion")
        return with_aside(clause, rng) if len(words) > 3 and rng.random() < ASIDE_SHARE else clause
    if rng.random() < 0.8:
        idiom = list(IDIOMS)[rng.integers(len(IDIOMS))]
        return Clause(("it", "was", "a", *idiom), (3, 4), "idiom")
    return Clause(("it", "was", "a", list(THINGS)[rng.integers(len(THINGS))]), (3,), "thing")


def with_aside(clause: Clause, rng: np.random.Generator) -> Clause:
    """The opinion, with words that say nothing behind its negation or its intensifier."""
    words = ASIDES[rng.integers(len(ASIDES))]
    aside = [word if isinstance(word, str) else word[rng.integers(len(word))] for word in words]
    before = [part for part in clause.parts[:-1] if part is not None]
    start = 1 + before[rng.integers(len(before))]
    parts = [part if part is None or part < start else part + len(aside) for part in clause.parts]
    return Clause((*clause.words[:start], *aside, *clause.words[start:]), tuple(parts), clause.kind)


def draw_review(rng: np.random.Generator) -> Review:
    """One or two clauses with an opinion, perhaps a distractor, in any order."""
    clauses = [draw_clause(rng) for _ in range(rng.integers(1, 3))]
    if rng.random() < 0.4:
        clauses.append(Clause(tuple(DISTRACTORS[rng.integers(len(DISTRACTORS))].split()), (), "distractor"))
    order = rng.permutation(len(clauses))
    return compose([clauses[index] for index in order], rng.random() < 0.5, rng)


def compose(clauses: Sequence[Clause], instructed: bool, rng: np.random.Generator) -> Review:
    """The review of these clauses; words between them are drawn."""
    words: list[str] = list(INSTRUCTION) if instructed else []
    starts = []
    for index, clause in enumerate(clauses):
        if index:
            words.append(JOINTS[rng.integers(len(JOINTS))])
        starts.append(len(words))
        words += clause.words
    return Review((*words, "."), tuple(clauses), tuple(starts))


def is_held_out(review: Review) -> bool:
    """Whether training never sees it; decided by its text alone."""
    return zlib.crc32(review.text.encode()) % HELD_OUT_SHARE == 0


def reviews(seed: int | Sequence[int], *, held_out: bool) -> Iterator[Review]:
    """Endless reviews, drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    while True:
        review = draw_review(rng)
        if is_held_out(review) == held_out:
            yield review


def vocabulary() -> list[str]:
    """Every word of the grammar, sorted."""
    pools = (
        NOUNS, ADJECTIVES, NEGATIONS, INTENSIFIERS, THINGS, INSTRUCTION, JOINTS, ("the", "was", "it", "a", "."),
        *IDIOMS, *LABELS.values(), *(text.split() for text in DISTRACTORS),
        *((word for word in aside if isinstance(word, str)) for aside in ASIDES),
    )  # fmt: skip
    return sorted({word for pool in pools for word in pool})
