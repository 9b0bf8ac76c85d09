"""Sentences whose verb agrees with the subject, across nouns of the other number: is the subject found?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from metagame.benchmarks.prompts import string_places
from metagame.contracts import WHOLE, Benchmark, Explanation, Score
from metagame.errors import UserError
from metagame.models.language_model import AnsweredPrompt, Prompt

NOUNS = (
    ("author", "authors"), ("teacher", "teachers"), ("doctor", "doctors"), ("farmer", "farmers"),
    ("manager", "managers"), ("writer", "writers"), ("artist", "artists"), ("officer", "officers"),
    ("student", "students"), ("parent", "parents"), ("neighbor", "neighbors"), ("friend", "friends"),
    ("king", "kings"), ("boy", "boys"), ("girl", "girls"), ("driver", "drivers"),
    ("lawyer", "lawyers"), ("actor", "actors"), ("worker", "workers"), ("player", "players"),
    ("leader", "leaders"), ("member", "members"), ("expert", "experts"), ("guest", "guests"),
)  # fmt: skip
"""Singular and plural of people, so that each may stand beside each."""
OPENINGS = ("The", "I think the", "They say the", "You told me that the")
"""So that the subject's place does not give it away."""
PREPOSITIONS = ("near", "behind", "beside", "with", "across from")
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))
NUMBERS = ("singular", "plural")
MOST_ATTRACTORS = 3


@dataclass(frozen=True)
class AgreementSentence(Prompt):
    """A sentence up to its verb.

    Attributes:
        id: of the sample.
        text: that the verb follows.
        subject: the noun that the verb agrees with.
        attractors: the nouns between them, all of the other number.
        number: of the subject, one of :data:`NUMBERS`.
        verb: the form that agrees, with its space.
        foil: the form that does not.
    """

    id: str
    text: str
    subject: str
    attractors: tuple[str, ...]
    number: str
    verb: str
    foil: str

    def contrast(self) -> tuple[str, str]:
        return self.verb, self.foil


def agreement_sentences(per_kind: int, seed: int = 0) -> list[AgreementSentence]:
    """``per_kind`` sentences for each number of the subject and each of 0 to 3 attractors, the kinds in turn.

    Words are drawn at random. No noun occurs twice in a sentence, and no sentence occurs twice with the same verb. The
    subject is preceded by 1 to 5 words.

    Raises:
        UserError: there are not that many sentences.
    """
    most = len(NOUNS) * len(VERBS)  # that begin alike, without an attractor
    if not 1 <= per_kind <= most:
        raise UserError(f"benchmark.sentences.per_kind={per_kind} must be from 1 to {most}.")
    kinds = [(n_attractors, number) for n_attractors in range(MOST_ATTRACTORS + 1) for number in range(2)]
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, str], AgreementSentence] = {}
    for place in range(per_kind):
        for n_attractors, number in kinds:
            sentence = _draw(rng, n_attractors, number, place)
            while (sentence.text, sentence.verb) in found:
                sentence = _draw(rng, n_attractors, number, place)
            found[sentence.text, sentence.verb] = sentence
    return list(found.values())


def _draw(rng: np.random.Generator, n_attractors: int, number: int, place: int) -> AgreementSentence:
    nouns = [NOUNS[noun] for noun in rng.choice(len(NOUNS), n_attractors + 1, replace=False)]
    subject, attractors = nouns[0][number], tuple(noun[1 - number] for noun in nouns[1:])
    text = " ".join(
        [f"{rng.choice(OPENINGS)} {subject}", *(f"{rng.choice(PREPOSITIONS)} the {noun}" for noun in attractors)]
    )
    forms = VERBS[rng.integers(len(VERBS))]
    name = f"{n_attractors}_{NUMBERS[number]}_{place}"
    return AgreementSentence(name, text, subject, attractors, NUMBERS[number], forms[number], forms[1 - number])


class Agreement(Benchmark[AgreementSentence, AnsweredPrompt]):
    """How well relevances of the verb's logit minus the foil's find the subject, and how pairs influence each other.

    ``reciprocal_rank`` is that of the subject among the tokens by relevance, the largest first. ``mass`` is the share
    of the positive relevance that lies on the subject; None if no relevance is positive. ``top_1`` and ``top_2`` say
    whether the subject is among the first one or two tokens. Tokens with equal relevances share the mean of their
    ranks. With a metagame, ``on_subject`` is the sum over the attractors a of phi_{a->s}, their influence on the
    subject's attribution, and ``by_subject`` is the sum of phi_{s->a}; both are None without attractors, or if an
    attractor is several tokens, which ``split_attractors`` then lists. ``margin`` is the difference of the logits.

    A sentence whose subject is several tokens has no scores, and ``skipped`` says so.

    Args:
        sentences: the samples.
    """

    def __init__(self, sentences: Sequence[AgreementSentence]) -> None:
        self.sentences = sentences

    def samples(self) -> Sequence[AgreementSentence]:
        return self.sentences

    def score(
        self,
        sample: AgreementSentence,
        inputs: Mapping[str, AnsweredPrompt],
        explanations: Mapping[str, Explanation],
    ) -> dict[str, Score]:
        bound, explanation = inputs[WHOLE], explanations[WHOLE]
        if explanation.attribution is None:
            raise UserError("benchmark=agreement scores tokens: choose a method that attributes tokens.")
        tokens = bound.players
        common: dict[str, Score] = {
            "attractors": len(sample.attractors), "number": sample.number, "text": sample.text, "tokens": list(tokens),
            "answer": f"{sample.verb.strip()} (not {sample.foil.strip()})",
            "margin": float(bound.values(np.ones((1, len(tokens)), bool))[0]),
        }  # fmt: skip
        subject = _only_token(sample.subject, tokens)
        if subject is None:
            return common | {"skipped": sample.subject}
        scores = common | {"skipped": None} | evidence_scores(explanation.attribution, subject)
        if explanation.meta is None:
            return scores
        others = [_only_token(noun, tokens) for noun in sample.attractors]
        places = [place for place in others if place is not None]
        if not places or len(places) < len(others):
            split = [noun for noun, place in zip(sample.attractors, others, strict=True) if place is None]
            return scores | {"on_subject": None, "by_subject": None, "split_attractors": split}
        matrix = explanation.meta.matrix()
        return scores | {
            "on_subject": float(matrix[subject, places].sum()), "by_subject": float(matrix[places, subject].sum()),
        }  # fmt: skip


def evidence_scores(relevance: Float[np.ndarray, " n"], place: int) -> dict[str, float | None]:
    """``reciprocal_rank``, ``mass``, ``top_1`` and ``top_2`` of the token at ``place``, see :class:`Agreement`."""
    above, equal = (relevance > relevance[place]).sum(), (relevance == relevance[place]).sum()
    rank = above + (equal + 1) / 2
    positive = relevance.clip(min=0)
    return {
        "reciprocal_rank": float(1 / rank),
        "mass": float(positive[place] / positive.sum()) if positive.any() else None,
        "top_1": float(rank <= 1),
        "top_2": float(rank <= 2),
    }


def _only_token(word: str, tokens: Sequence[str]) -> int | None:
    """The place of the token that is the word; None where it is several tokens."""
    places = string_places(word, tokens)
    return places[0] if places and tokens[places[0]].strip() == word else None
