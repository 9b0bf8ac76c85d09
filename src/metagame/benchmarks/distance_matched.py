"""What finds annotated pairs beside closeness: their rank among pairs of the same distance, and what chance would find.

Most annotated pairs are neighbours, so that a ranking by closeness alone recalls most of them. Scores here are of
unordered pairs: of a second-order method max(|M_ij|, |M_ji|), of a first-order one |R_i + R_j|.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import comb

import numpy as np
from jaxtyping import Float

FEWEST = 3
"""Of a distance with fewer pairs in a prompt, no pair has a percentile."""

Pair = tuple[int, int]


def pair_scores(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The score of each unordered pair, symmetric: the larger of the sizes of its two entries."""
    size = np.abs(matrix)
    return np.maximum(size, size.T)


def closest_places(first: Sequence[int], second: Sequence[int]) -> Pair | None:
    """Of the places of two strings the two that are closest, the earlier of equally close ones; None without any.

    No method has a say in it, so that the same pair is compared for all.
    """
    return min(unordered_places(first, second), key=lambda pair: (abs(pair[0] - pair[1]), pair), default=None)


def unordered_places(first: Sequence[int], second: Sequence[int]) -> list[Pair]:
    """The places of two strings, one of each, every pair of places once."""
    return list({frozenset(pair): pair for pair in product(first, second) if pair[0] != pair[1]}.values())


def percentile(scores: Float[np.ndarray, "n n"], pair: Pair, same_words: Sequence[Pair] = ()) -> float | None:
    """The share of the other pairs of the same distance that score less, equal ones half: 0.5 by chance.

    None where fewer than :data:`FEWEST` pairs have that distance.

    Args:
        scores: of the unordered pairs, symmetric.
        pair: the places of the two words.
        same_words: other places of the same two words, which count neither way.
    """
    distance = abs(pair[0] - pair[1])
    others = _others(len(scores), distance, [pair, *same_words])
    if len(others) + 1 < FEWEST:
        return None
    own, values = scores[pair], np.array([scores[each] for each in others])
    return float((np.sum(values < own) + 0.5 * np.sum(values == own)) / len(values))


def _others(n: int, distance: int, without: Sequence[Pair]) -> list[Pair]:
    """The pairs of a distance but for some, whichever way round these are."""
    left_out = {frozenset(pair) for pair in without}
    pairs = ((i, i + distance) for i in range(n - distance))
    return [pair for pair in pairs if frozenset(pair) not in left_out]


def unordered_rank(scores: Float[np.ndarray, "n n"], pair: Pair) -> int:
    """1 + the number of unordered pairs that score more."""
    return 1 + int(np.sum(scores[np.triu_indices(len(scores), 1)] > scores[pair]))


def same_distance_recall(
    scores: Float[np.ndarray, "n n"], annotated: Sequence[Pair], most: int, same_words: Sequence[Pair] = ()
) -> float | None:
    """How often pairs that nobody annotated, of the annotated ones' distances, are among the ``most`` largest.

    The mean over the annotated pairs, each with the other pairs of its distance; None where there are none. Other
    places of annotated words, ``same_words``, count as annotated.
    """
    shares = []
    for a, b in annotated:
        if others := _others(len(scores), abs(a - b), [*annotated, *same_words]):
            shares.append(np.mean([unordered_rank(scores, pair) <= most for pair in others]))
    return float(np.mean(shares)) if shares else None


def chance_of_recall(n: int, most: int, symmetric: bool, n_places: int = 1) -> float:
    """How often a pair is among the ``most`` largest of the n(n-1) directed entries where these mean nothing.

    Of a matrix the better of two directions counts, so that a pair draws twice; in a symmetric one, of a first-order
    method, both directions have the same size and each pair fills two of the places. Two words that occur several times
    draw for each of their ``n_places``.
    """
    entries = n * (n - 1)
    if symmetric:
        return _chance_of_one(entries // 2, -(-most // 2), n_places)
    return _chance_of_one(entries, most, 2 * n_places)


def _chance_of_one(n: int, most: int, draws: int) -> float:
    """How often one of ``draws`` out of n things is among the first ``most`` of a random order."""
    return 1.0 - comb(n - draws, most) / comb(n, most) if most < n else 1.0
