"""Slow twins of the measures at equal distance: one pair at a time."""

from __future__ import annotations

from itertools import combinations, permutations


def score(matrix, i, j) -> float:
    return max(abs(float(matrix[i][j])), abs(float(matrix[j][i])))


def pairs_at(n: int, distance: int) -> list[tuple[int, int]]:
    return [(i, j) for i, j in combinations(range(n), 2) if j - i == distance]


def percentile(matrix, a: int, b: int, same_words=()) -> float | None:
    n, total = len(matrix), 0.0
    left_out = {frozenset(pair) for pair in [(a, b), *same_words]}
    others = [pair for pair in pairs_at(n, abs(a - b)) if frozenset(pair) not in left_out]
    if len(others) < 2:
        return None
    for pair in others:
        if score(matrix, *pair) < score(matrix, a, b):
            total += 1
        elif score(matrix, *pair) == score(matrix, a, b):
            total += 0.5
    return total / len(others)


def rank(matrix, a: int, b: int) -> int:
    return 1 + sum(score(matrix, *pair) > score(matrix, a, b) for pair in combinations(range(len(matrix)), 2))


def same_distance_recall(matrix, annotated, most: int, same_words=()) -> float | None:
    known = {frozenset(pair) for pair in [*annotated, *same_words]}
    shares = []
    for a, b in annotated:
        others = [pair for pair in pairs_at(len(matrix), abs(a - b)) if frozenset(pair) not in known]
        if others:
            shares.append(sum(rank(matrix, *pair) <= most for pair in others) / len(others))
    return sum(shares) / len(shares) if shares else None


def chance(n: int, most: int, symmetric: bool, places=((0, 1),)) -> float:
    """By drawing the order of all entries, of a small matrix every one."""
    entries = [(i, j) for i in range(n) for j in range(n) if i != j]
    wanted = {*places, *((j, i) for i, j in places)}
    if symmetric:
        orders = permutations(combinations(range(n), 2))
        found = [any(2 * place < most and pair in wanted for place, pair in enumerate(order)) for order in orders]
    else:
        orders = permutations(entries)
        found = [bool(wanted & set(order[:most])) for order in orders]
    return sum(found) / len(found)
