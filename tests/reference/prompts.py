"""Slow twins of Recall@K and of pair deletion and insertion: loops over spans, entries and pairs, one at a time."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if not letter.isspace())


def places(string: str, tokens) -> list[int]:
    """First tokens of the shortest spans that are the string, or else that contain it."""
    n = len(tokens)
    spans = [(start, stop) for start in range(n) for stop in range(start + 1, n + 1)]
    exact = [span for span in spans if plain("".join(tokens[slice(*span)])) == plain(string)]
    containing = [span for span in spans if plain(string) in plain("".join(tokens[slice(*span)]))]
    matching = exact or containing
    return [span[0] for span in matching if length(span) == min(map(length, matching))]


def length(span) -> int:
    return span[1] - span[0]


def second_order_entries(matrix) -> dict:
    n = len(matrix)
    return {(i, j): abs(float(matrix[i][j])) for i in range(n) for j in range(n) if i != j}


def first_order_entries(first) -> dict:
    n = len(first)
    return {(i, j): abs(float(first[i]) + float(first[j])) for i in range(n) for j in range(n) if i != j}


def ranks(pairs, tokens, entries) -> tuple[list, list]:
    """The better rank of both directions, at each match of each pair, and the pairs that match nothing."""
    found, unmatched = [], []
    for one, other in pairs:
        matches = [(a, b) for a in places(one, tokens) for b in places(other, tokens) if a != b]
        candidates = [min(rank(entries, (a, b)), rank(entries, (b, a))) for a, b in matches]
        if candidates:
            found.append(candidates)
        else:
            unmatched.append((one, other))
    return found, unmatched


def rank(entries, place) -> int:
    larger = 0
    for each in entries.values():
        if each > entries[place]:
            larger += 1
    return 1 + larger


def most_pairs(share: int, n: int) -> int:
    """K; exact fractions, halves to the even number; none at 0."""
    return 0 if share == 0 else max(1, round(Fraction(share, 100) * n * (n - 1)))


def recall(found, share: int, n: int) -> float | None:
    if not found:
        return None
    return sum(1 for each in found if min(each) <= most_pairs(share, n)) / len(found)


def deletion_and_insertion(value, matrix) -> tuple[float, float]:
    """Mean of the value of those that are present, along both curves; ``value`` takes the set of players present."""
    shares, deletion, insertion = curves(value, matrix)
    return area(list(zip(shares, deletion, strict=True))), area(list(zip(shares, insertion, strict=True)))


def curves(value, matrix) -> tuple[list, list, list]:
    """The share of players touched after each pair that touches a new one, and the values without and with them."""
    n = len(matrix)
    everyone, touched = set(range(n)), set()
    points = [(0.0, value(everyone), value(set()))]
    for pair in strongest_first(matrix):
        if not set(pair) <= touched:
            touched |= set(pair)
            points.append((len(touched) / n, value(everyone - touched), value(touched)))
    shares, deletion, insertion = (list(each) for each in zip(*points, strict=True))
    return shares, deletion, insertion


def strongest_first(matrix) -> list:
    """Unordered pairs by the larger of their two entries; of equal ones the first in reading order."""
    n = len(matrix)
    left = [(a, b) for a in range(n) for b in range(a + 1, n)]
    ordered = []
    while left:
        best = left[0]
        for pair in left:
            if strength(matrix, pair) > strength(matrix, best):
                best = pair
        ordered.append(best)
        left.remove(best)
    return ordered


def strength(matrix, pair) -> float:
    a, b = pair
    return max(abs(float(matrix[a][b])), abs(float(matrix[b][a])))


def area(curve) -> float:
    """Below a piecewise linear curve of points (x, y)."""
    total = 0.0
    for (left, low), (right, high) in pairwise(curve):
        total += (right - left) * (low + high) / 2
    return total
