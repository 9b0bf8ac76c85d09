"""shapiq's single-output approximators on a game with many targets, for the price of one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import product

import numpy as np
from jaxtyping import Float

from metagame.estimators.estimate import Estimate
from metagame.games import AttributionGame, Coalitions, Progress, Values


def requested_coalitions(approximator, budget: int) -> Coalitions:
    """The distinct coalitions that ``approximator`` asks for; its choice does not depend on the values it gets."""
    asked = []

    def record(coalitions: np.ndarray) -> np.ndarray:
        asked.append(np.atleast_2d(coalitions).astype(bool))
        return np.zeros(len(asked[-1]))

    deepcopy(approximator).approximate(budget, record)
    return np.unique(np.concatenate(asked), axis=0)


def pairwise(approximator, budget: int, lookup: Callable[[Coalitions], Values], n_targets: int) -> np.ndarray:
    """Index of every target, ``(t, n, n)`` at order 2, ...: the approximator runs once per target on known values."""
    n, order = approximator.n, approximator.max_order
    phi = np.zeros((n_targets, *[n] * order))
    for target in range(n_targets):
        result = deepcopy(approximator).approximate(
            budget, lambda coalitions, target=target: lookup(np.atleast_2d(coalitions).astype(bool))[:, target]
        )
        for players, value in result.interactions.items():
            for place in product(players, repeat=order):
                if set(place) == set(players):
                    phi[target, *place] = value
    return phi


class Lookup:
    """Values of the coalitions that were evaluated, found again by coalition."""

    def __init__(self, coalitions: Coalitions, values: Values) -> None:
        self._row = {coalition.tobytes(): row for row, coalition in enumerate(coalitions)}
        self._values = values

    def __call__(self, coalitions: Coalitions) -> Float[np.ndarray, "k t"]:
        return self._values[[self._row[coalition.tobytes()] for coalition in coalitions]]


def with_bounds(coalitions: Coalitions) -> Coalitions:
    """``coalitions`` without repeats, behind the empty one (row 0) and the grand one (row 1)."""
    size = coalitions.sum(1)
    n = coalitions.shape[1]
    return np.concatenate([np.zeros((1, n), bool), np.ones((1, n), bool), coalitions[(size > 0) & (size < n)]])


def run_approximator(game: AttributionGame, approximator, budget: int, progress: Progress | None) -> Estimate:
    """Evaluate once what ``approximator`` asks for and the grand coalition, then fit every target."""
    coalitions = with_bounds(requested_coalitions(approximator, budget))
    values = game(coalitions, progress)
    phi = pairwise(approximator, budget, Lookup(coalitions, values), values.shape[1])
    return Estimate(phi, values[1], values[0], error_note="shapiq's approximators have no standard error")
