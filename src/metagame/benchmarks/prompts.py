"""Prompts with pairs of words that interact, and how soon a method's strongest interactions find them (Figure 3)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, islice, product
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml
from jaxtyping import Float

from metagame.benchmarks.distance_matched import (
    chance_of_recall,
    closest_places,
    pair_scores,
    percentile,
    same_distance_recall,
    unordered_places,
    unordered_rank,
)
from metagame.benchmarks.pair_deletion import deletion_and_insertion
from metagame.benchmarks.reviews import Review, reviews
from metagame.contracts import WHOLE, Annotation, Benchmark, Explanation, Score
from metagame.errors import UserError
from metagame.models.classified import Classified
from metagame.models.language_model import AnsweredPrompt, Prompt

ANNOTATED = Path(__file__).with_name("annotated_prompts.yaml")
DISTANT = Path(__file__).with_name("distant_pairs.yaml")
DRAWS_PER_PROMPT = 100
"""Reviews to look at for each prompt, at most."""
SHARES = tuple(range(16))
"""Percentages of the n(n-1) directed pairs among which a pair is to be found."""
MATCHES = ("metagame", "own")
SYMMETRIC = 1e-6
"""The largest difference of a pair's two entries, in units of the matrix's largest, that is taken for rounding."""
CONTINUED = "##"
"""What WordPiece puts before tokens that continue a word."""
REVIEW = "review_"
"""What ids of reviews of the grammar begin with."""


@dataclass(frozen=True)
class AnnotatedPrompt(Prompt):
    """A prompt, and pairs of strings in it that interact.

    Attributes:
        id: of the sample.
        text: that the model answers.
        pairs: two strings each.
        source: the file of prompts that it is from; None where it is made here, or one's own.
        kinds: of the pairs, one each, such as negation; empty where the source has none.
    """

    id: str
    text: str
    pairs: tuple[tuple[str, str], ...] = ()
    source: Path | None = None
    kinds: tuple[str, ...] = ()

    def annotation(self) -> Annotation:
        """Its pairs."""
        return Annotation(pairs=self.pairs)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise UserError(f"benchmark.prompt={self.text!r} must be a text.")


def pairs_of(pairs: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """The pairs of a config or a file.

    Raises:
        UserError: they are no list of two strings each, or a pair is there twice.
    """
    if not _is_list(pairs) or not all(map(_is_pair, pairs)):
        raise UserError(f"benchmark.pairs={pairs!r} must be a list of pairs of strings, for example [[not, bad]].")
    known: set[frozenset[str]] = set()
    for first, second in pairs:
        either_way = frozenset({_plain(first), _plain(second)})
        if either_way in known:
            raise UserError(
                f"benchmark.pairs has {first!r} and {second!r} twice: name each pair once, in either order."
            )
        known.add(either_way)
    return tuple((first, second) for first, second in pairs)


def _is_pair(pair: Sequence[str]) -> bool:
    return _is_list(pair) and len(pair) == 2 and all(isinstance(each, str) and each.strip() for each in pair)


def _is_list(value: Sequence[Sequence[str]] | Sequence[str]) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def annotated_prompts() -> list[AnnotatedPrompt]:
    """The paper's 21 prompts (App. D.1)."""
    entries = yaml.safe_load(ANNOTATED.read_text(encoding="utf-8"))
    return [AnnotatedPrompt(each["id"], each["text"], pairs_of(each["pairs"]), ANNOTATED) for each in entries]


def distant_prompts() -> list[AnnotatedPrompt]:
    """153 prompts whose pairs stand 2 to 10 words apart, of 8 kinds.

    Differs from the paper: most of its pairs are neighbours, which a score that knows only positions finds first.
    """
    return [
        AnnotatedPrompt(
            each["id"],
            each["text"],
            pairs_of([pair["words"] for pair in each["pairs"]]),
            DISTANT,
            tuple(pair["kind"] for pair in each["pairs"]),
        )
        for each in yaml.safe_load(DISTANT.read_text(encoding="utf-8"))
    ]


def review_prompts(count: int, least: int, most: int, seed: int = 0, distance: int = 1) -> list[AnnotatedPrompt]:
    """Reviews that training never saw, with at least one pair that interacts by construction.

    Args:
        count: of the prompts.
        least: fewest words.
        most: most words.
        seed: of the reviews.
        distance: from the first to the second word of every pair, at least; 1 between neighbours.

    Raises:
        UserError: the grammar hardly makes reviews of so many words, or with pairs so far apart.
    """

    def fits(review: Review) -> bool:
        pairs = review.pairs()
        interacting = {place for pair in pairs for place in pair}
        apart = all(second - first >= distance for first, second in pairs)
        named_once = all(review.words.count(review.words[place]) == 1 for place in interacting)
        return least <= len(review.words) <= most and bool(interacting) and named_once and apart

    if count < 1:
        raise UserError(f"benchmark.prompts.count={count} must be a positive integer.")
    found: dict[str, Review] = {}
    for review in filter(fits, islice(reviews(seed, held_out=True), DRAWS_PER_PROMPT * count)):
        found[review.text] = review
        if len(found) == count:
            break
    if len(found) < count:
        raise UserError(
            f"only {len(found)} of benchmark.prompts.count={count} reviews of {least} to {most} words, with pairs"
            f" at least {distance} apart, were found: ask for fewer, for other lengths (least, most), or for"
            " closer pairs (distance)."
        )
    return [
        AnnotatedPrompt(
            f"{REVIEW}{number}",
            text,
            tuple((review.words[a], review.words[b]) for a, b in review.pairs()),
            kinds=tuple(review.kinds()),
        )
        for number, (text, review) in enumerate(found.items())
    ]


class Prompts(Benchmark[AnnotatedPrompt, AnsweredPrompt | Classified]):
    """The scores are Recall@K of the prompts' pairs, the recall of closeness and of chance, and the areas of deletion.

    Args:
        prompts: the samples.
        ids: the samples to use; if None, all of them.
        prompt, pairs: your own prompt and pairs, which replace all others; without pairs there is nothing to recall.
        match: at which position tables rank a pair that occurs several times: ``metagame``, where all methods use the
            position at which the metagame beside them ranks it best, as in the paper's code (its text does not say), or
            ``own``, where each method uses the position at which it ranks the pair best. Of several metagames a method
            uses its own one, otherwise Meta-AttnLRP. Scores always use ``own``; see
            :func:`metagame.report.recall.at_matches`.

    Raises:
        UserError: an id is unknown, your own pairs are not pairs, or ``match`` is neither.
    """

    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"ids", "match"})
    text_arguments: ClassVar[frozenset[str]] = frozenset({"prompt"})

    def __init__(
        self,
        prompts: Sequence[AnnotatedPrompt],
        ids: Sequence[str] | str | None = None,
        prompt: str | None = None,
        pairs: Sequence[Sequence[str]] | None = None,
        match: str = MATCHES[0],
    ) -> None:
        if match not in MATCHES:
            raise UserError(f"benchmark.match={match!r} is unknown: choose one of {', '.join(MATCHES)}.")
        self._samples = select_prompts(prompts, ids, prompt, pairs)

    def samples(self) -> list[AnnotatedPrompt]:
        return self._samples

    def files(self) -> Sequence[Path]:
        return sources(self._samples)

    def score(
        self,
        sample: AnnotatedPrompt,
        inputs: Mapping[str, AnsweredPrompt | Classified],
        explanations: Mapping[str, Explanation],
    ) -> dict[str, Score]:
        bound, explanation = inputs[WHOLE], explanations[WHOLE]
        n, matrix = len(bound.players), pair_matrix(explanation)
        at_matches, unmatched = pair_ranks(sample.pairs, bound.players, matrix)
        ranks = [min(each) for each in at_matches]
        scores: dict[str, Score] = {
            **recalls_of_ranks(ranks, n), "n_players": n, "ranks": ranks, "match_ranks": at_matches,
        }  # fmt: skip
        scores |= distance_matched(sample.pairs, bound.players, matrix, symmetric=_is_symmetric(explanation))
        scores["unmatched"] = [" + ".join(pair) for pair in unmatched]
        scores["ambiguous"] = [" + ".join(pair) for pair in sample.pairs if _is_ambiguous(pair, bound.players)]
        matched = [pair not in unmatched for pair in sample.pairs]
        scores["kinds"] = list(compress(sample.kinds, matched))
        scores |= deletion_and_insertion(bound, matrix)
        return scores | {"text": sample.text, "tokens": list(bound.players), "answer": bound.answer}

    def sample_scores(self, scores: Mapping[str, Score]) -> dict[str, float]:
        """The mean recall, ``area``, and the other numeric scores."""
        first = [name for name in ("area", "insertion", "deletion") if name in scores]
        numbers = super().sample_scores({name: scores[name] for name in (*first, *scores)})
        return _mean_recall(scores) | {CALLED.get(name, name): value for name, value in numbers.items()}


CALLED = {f"recall_{share}": f"recall at {share} %" for share in SHARES} | {
    "n_players": "players",
    "unordered": "recall, unordered",
    "same_distance": "recall, same-distance control",
    "apart": "recall, non-neighbours",
    "chance": "recall by chance",
    "chance_at_one": "recall by chance, at one place",
}
"""Scores by what tables call them."""


def _mean_recall(scores: Mapping[str, Score]) -> dict[str, float]:
    known = [value for share in SHARES[1:] if isinstance(value := scores.get(f"recall_{share}"), int | float)]
    return {"mean recall at 1 to 15 %": float(np.mean(known))} if known else {}


def distance_matched(
    pairs: Sequence[tuple[str, str]], tokens: Sequence[str], matrix: Float[np.ndarray, "n n"], *, symmetric: bool
) -> dict[str, Score]:
    """What recall leaves open: how much of it is closeness, and how much chance.

    ``distances`` and ``percentiles`` of the pairs, see :func:`metagame.benchmarks.distance_matched.percentile`; as
    means over K = 1 to 15 % ``unordered`` (recall among unordered pairs), ``same_distance`` (that of pairs which nobody
    annotated, at the same distances), ``apart`` (the recall of pairs that are no neighbours) and ``chance``, where two
    words that occur several times draw each time, as they do where their best place counts; ``chance_at_one`` is for
    one place.
    """
    n, size = len(tokens), pair_scores(matrix)
    words = [tuple(string_places(string, tokens) for string in pair) for pair in pairs]
    known = [closest_places(*each) for each in words]
    places = [place for place in known if place is not None]
    occurrences = [unordered_places(*each) for each, place in zip(words, known, strict=True) if place is not None]
    directed = [share for share in SHARES if share > 0]
    unordered = [max(1, round(share * n * (n - 1) / 200)) for share in directed]
    ranks = [unordered_rank(size, place) for place in places]
    control = [same_distance_recall(size, places, most, list(chain(*occurrences))) for most in unordered]
    found, _ = pair_ranks([pair for pair, place in zip(pairs, known, strict=True) if _is_apart(place)], tokens, matrix)
    apart = recalls_of_ranks([min(each) for each in found], n)

    def chance(counts: Sequence[int]) -> float | None:
        return _mean([chance_of_recall(n, most_pairs(share, n), symmetric, m) for share in directed for m in counts])

    return {
        "distances": [abs(a - b) for a, b in places],
        "percentiles": [percentile(size, *each) for each in zip(places, occurrences, strict=True)],
        "unordered": float(np.mean([[rank <= most for rank in ranks] for most in unordered])) if ranks else None,
        "same_distance": _mean([each for each in control if each is not None]),
        "apart": _mean([each for share in directed if (each := apart[f"recall_{share}"]) is not None]),
        "chance": chance([len(each) for each in occurrences]),
        "chance_at_one": chance([1] * len(occurrences)),
    }


def _is_ambiguous(pair: tuple[str, str], tokens: Sequence[str]) -> bool:
    """Whether the closest places of the two strings are not the only ones so close."""
    distances = [abs(a - b) for a, b in unordered_places(*(string_places(string, tokens) for string in pair))]
    return distances.count(min(distances, default=0)) > 1


def _is_symmetric(explanation: Explanation) -> bool:
    """Whether both directions of a pair have the same score: of first-order methods, and some metagames (Meta-SV)."""
    if explanation.meta is None or not explanation.meta.directed:
        return True
    matrix = explanation.meta.matrix()
    return np.allclose(matrix, matrix.T, rtol=0, atol=SYMMETRIC * np.abs(matrix).max())


def _is_apart(place: tuple[int, int] | None) -> bool:
    return place is not None and abs(place[0] - place[1]) > 1


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def recalls_of_ranks(ranks: Sequence[int], n: int) -> dict[str, float | None]:
    """Recall at each of :data:`SHARES`: the share of pairs whose rank is at most K; None without pairs."""
    return {
        f"recall_{share}": float(np.mean([rank <= most_pairs(share, n) for rank in ranks])) if ranks else None
        for share in SHARES
    }


def sources(prompts: Sequence[AnnotatedPrompt]) -> Sequence[Path]:
    """The files that the prompts are from."""
    return sorted({each.source for each in prompts if each.source is not None})


def select_prompts(
    prompts: Sequence[AnnotatedPrompt],
    ids: Sequence[str] | str | None,
    prompt: str | None,
    pairs: Sequence[Sequence[str]] | None,
) -> list[AnnotatedPrompt]:
    """One's own prompt if there is one, else those with the ids, else all."""
    if prompt is not None:
        return [_own_prompt(prompt, pairs or ())]
    if pairs is not None:
        raise UserError("benchmark.pairs needs a prompt: set benchmark.prompt, or leave out benchmark.pairs.")
    if ids is None:
        return list(prompts)
    wanted = list(dict.fromkeys([ids] if not isinstance(ids, Sequence) or isinstance(ids, str) else ids))
    known = {each.id: each for each in prompts}
    if not wanted:
        raise UserError(f"benchmark.ids is empty: choose some of {', '.join(known)}, or null for all.")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(
            f"benchmark.ids contains unknown names ({', '.join(map(str, unknown))}): choose some of {', '.join(known)}."
        )
    return [known[name] for name in wanted]


def _own_prompt(prompt: str, pairs: Sequence[Sequence[str]]) -> AnnotatedPrompt:
    own = AnnotatedPrompt(str(prompt), prompt, pairs_of(pairs))
    for string in (string for pair in own.pairs for string in pair):
        if _plain(string) not in _plain(prompt):
            raise UserError(
                f"benchmark.pairs has {string!r}, which is not in the prompt {prompt!r}: spell it as it is there."
            )
    return own


def pair_matrix(explanation: Explanation) -> Float[np.ndarray, "n n"]:
    """The score of each directed pair: a second-order method's entry j -> i, or R_i + R_j of a first-order one.

    Raises:
        UserError: the method has neither, or values of another order.
    """
    if explanation.meta is not None:
        return explanation.meta.matrix()
    if explanation.attribution is None:
        raise UserError("pairs of tokens are ranked by their values: choose a method that attributes tokens or pairs.")
    return explanation.attribution[:, None] + explanation.attribution[None, :]


def most_pairs(share: int, n: int) -> int:
    """K, of n players: ``share`` percent of the directed pairs, at least one unless ``share`` is 0."""
    return max(1, round(share * n * (n - 1) / 100)) if share else 0


def pair_ranks(
    pairs: Sequence[tuple[str, str]], tokens: Sequence[str], matrix: Float[np.ndarray, "n n"]
) -> tuple[list[list[int]], list[tuple[str, str]]]:
    """The ranks of each pair among all directed ones by size of the entry, and the pairs that are not in the prompt.

    A rank is 1 + the number of off-diagonal entries that are strictly larger; the better direction counts. There is one
    for each match, of which there are several where a string occurs more than once. A string of several tokens is
    represented by the first.
    """
    size = np.abs(matrix)
    others = np.sort(size[~np.eye(len(size), dtype=bool)])
    ranks, unmatched = [], []
    for pair in pairs:
        places = [(a, b) for a, b in product(*(string_places(string, tokens) for string in pair)) if a != b]
        if not places:
            unmatched.append(pair)
            continue
        entries = [max(size[a, b], size[b, a]) for a, b in places]
        ranks.append((1 + len(others) - np.searchsorted(others, entries, side="right")).tolist())
    return ranks, unmatched


def string_places(string: str, tokens: Sequence[str]) -> list[int]:
    """First tokens of the spans that spell ``string``: those that are it exactly, else those that contain it.

    Case, white space and the mark of WordPiece's continuations (``##ing``) do not count, and neither do accents where
    nothing spells the string with them; of several spans the shortest ones.
    """
    pieces = [token.removeprefix(CONTINUED) or token for token in tokens]
    for plain in (_plain, _without_accents):
        if found := _spans(plain(string), [plain(piece) for piece in pieces]):
            return found
    return []


def _spans(wanted: str, pieces: Sequence[str]) -> list[int]:
    exact: dict[int, list[int]] = {}
    around: dict[int, list[int]] = {}
    for start in range(len(pieces)):
        spelled = ""
        for stop in range(start, len(pieces)):
            spelled += pieces[stop]
            if wanted in spelled:
                found = exact if spelled == wanted else around
                found.setdefault(stop - start, []).append(start)
                break
    matches = exact or around
    return matches[min(matches)] if matches else []


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _without_accents(text: str) -> str:
    return _plain("".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each)))
