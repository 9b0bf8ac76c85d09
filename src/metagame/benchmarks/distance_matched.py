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
    places = [(abs(a - b), a, b) for a, b in product(first, second) if a != b]
    return min(places)[1:] if places else None


def percentile(scores: Float[np.ndarray, "n n"], pair: Pair) -> float | None:
    """The share of the other pairs of the same distance that score less, equal ones half: 0.5 by chance.

    None where fewer than :data:`FEWEST` pairs have that distance.
    """
    distance = abs(pair[0] - pair[1])
    same = np.diagonal(scores, distance)
    if len(same) < FEWEST:
        return None
    own = scores[pair]
    return float((np.sum(same < own) + 0.5 * (np.sum(same == own) - 1)) / (len(same) - 1))


def unordered_rank(scores: Float[np.ndarray, "n n"], pair: Pair) -> int:
    """1 + the number of unordered pairs that score more."""
    return 1 + int(np.sum(scores[np.triu_indices(len(scores), 1)] > scores[pair]))


def same_distance_recall(scores: Float[np.ndarray, "n n"], annotated: Sequence[Pair], most: int) -> float | None:
    """How often pairs that nobody annotated, of the annotated ones' distances, are among the ``most`` largest.

    The mean over the annotated pairs, each with the other pairs of its distance; None where there are none.
    """
    taken = {frozenset(pair) for pair in annotated}
    shares = []
    for a, b in annotated:
        distance = abs(a - b)
        others = [(i, i + distance) for i in range(len(scores) - distance)]
        others = [pair for pair in others if frozenset(pair) not in taken]
        if others:
            shares.append(np.mean([unordered_rank(scores, pair) <= most for pair in others]))
    return float(np.mean(shares)) if shares else None


def chance_of_recall(n: int, most: int, symmetric: bool) -> float:
    """How often a pair is among the ``most`` largest of the n(n-1) directed entries where these mean nothing.

    Of a matrix the better of two directions counts, so that a pair draws twice; in a symmetric one, of a first-order
    method, both directions have the same size and each pair fills two of the places.
    """
    entries = n * (n - 1)
    if symmetric:
        return min(1.0, -(-most // 2) / (entries / 2))
    return 1.0 - comb(entries - 2, most) / comb(entries, most)
