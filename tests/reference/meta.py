"""Slow twins of the metagames: Definition 2 and the exogenous Shapley value, one target and one coalition at a time."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np

from tests.reference.indices import row, shapley, subsets, without


def endogenous(values) -> np.ndarray:
    """Definition 2 on ``values[row(S), i]`` = phi_i(S): row i holds phi_{j->i}, phi_i({i}) on the diagonal."""
    n = len(values[0])
    return np.array(
        [[directional(values, i, j) if i != j else values[row((i,))][i] for j in range(n)] for i in range(n)]
    )


def directional(values, i: int, j: int):
    """phi_{j->i} = sum over T of [phi_i(T + i + j) - phi_i(T + i)] / ((n - 1) C(n - 2, |T|))."""
    n = len(values[0])
    total = 0
    for coalition in subsets(without(n, i, j)):
        gain = values[row((*coalition, i, j))][i] - values[row((*coalition, i))][i]
        total += Fraction(1, (n - 1) * comb(n - 2, len(coalition))) * gain
    return total


def endogenous_of_order(values, order: int, index) -> np.ndarray:
    """phi_{jk..->i}: for each target i, ``index`` of the game of the others with i fixed as present, entry by entry."""
    n = len(values[0])
    phi = np.zeros([n] * (order + 1))
    for i in range(n):
        others = without(n, i)
        nu = [values[row((*(others[k] for k in part), i))][i] for part in sorted(subsets(range(n - 1)), key=row)]
        found = index(nu, n - 1, order)
        for place in np.ndindex(*[n - 1] * order):
            phi[(i, *(others[k] for k in place))] = found[place]
        phi[(i,) * (order + 1)] = nu[0]
    return phi


def exogenous(values) -> np.ndarray:
    """All n players play on phi_i, for every target i: ``(t, n)``."""
    n = len(values).bit_length() - 1
    return np.array([shapley(values[:, target], n) for target in range(values.shape[1])])
