"""Slow twin of the pointing game's recognition: one word and one patch at a time, from its definition."""

from __future__ import annotations


def recognition(maps, side: int) -> float | None:
    """``maps[p][t]`` is the map of word t at patch p of a grid of ``side`` rows in reading order."""
    correct = wrong = 0.0
    for t in range(len(maps[0])):
        for p in range(side * side):
            value = float(maps[p][t])
            if in_quadrant(p, t, side):
                correct += max(value, 0.0)
                wrong += max(-value, 0.0)
            else:
                correct += max(-value, 0.0)
                wrong += max(value, 0.0)
    if correct + wrong == 0:
        return None
    return correct / (correct + wrong)


def in_quadrant(p: int, t: int, side: int) -> bool:
    """Whether patch p lies in the quadrant of word t: upper left, upper right, lower left, lower right."""
    upper, left = p // side < side // 2, p % side < side // 2
    if t == 0:
        return upper and left
    if t == 1:
        return upper and not left
    if t == 2:
        return not upper and left
    return not upper and not left
