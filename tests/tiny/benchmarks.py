"""Explanations of given numbers, for benchmarks to score."""

from __future__ import annotations

import numpy as np

from metagame.contracts import Explanation
from metagame.meta import MetaAttributions


def explained(attribution=None, values=None, *, grid=None, order: int = 1) -> Explanation:
    """An explanation with these numbers, as a first-order and a second-order method give them.

    Args:
        attribution: of t targets.
        values: ``(t, n)``, or ``(t, n, n)`` at order 2.
        grid: of patches of one image; without it targets are named by number.
        order: of the values.
    """
    attribution, values = (None if each is None else np.asarray(each, float) for each in (attribution, values))
    n_targets, n_players = (len(attribution),) * 2 if values is None else values.shape[:2]
    players = tuple(f"player {number}" for number in range(n_players))
    targets = ("image",) if grid is not None else tuple(f"target {number}" for number in range(n_targets))
    names = {"players": players, "targets": targets, "grid": grid}
    meta = None if values is None else MetaAttributions(values, order=order, endogenous=grid is None, **names)
    return Explanation(**names, attribution=attribution, meta=meta)
