"""Swap members of drawn coalitions until every pair of players is together about equally often."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from metagame.games import Coalitions

MAX_SWEEPS = 12
CANDIDATES = 6
"""Members, and players outside, that are tried with each other."""


def balanced(
    coalitions: Coalitions, weights: Float[np.ndarray, " k"], free: Bool[np.ndarray, " k"], *, paired: bool
) -> Coalitions:
    """``coalitions`` of the same sizes, distinct as before, with a smaller imbalance.

    The imbalance is the squared Frobenius norm of the off-diagonal part of sum_r w_r z_r z_r^T, less its mean, with
    z = 1 for members and -1 for others: what a regression on z takes for effects of other players. Each ``free`` row in
    turn swaps the member and the outsider that lower it most, until a sweep changes little. ``paired``: a coalition's
    complement counts as the coalition itself.
    """
    n = coalitions.shape[1]
    coalitions = coalitions.copy()
    z = np.where(coalitions, 1.0, -1.0)
    moment = z.T @ (weights[:, None] * z)
    off = ~np.eye(n, dtype=bool)
    excess = np.where(off, moment - moment[off].mean(), 0.0) if n > 1 else moment
    known = {_name(row, paired) for row in coalitions}
    for _ in range(MAX_SWEEPS):
        before = (excess**2).sum()
        for row in np.flatnonzero(free):
            _swap(coalitions[row], z[row], weights[row], excess, known, paired)
        if (excess**2).sum() > 0.98 * before:
            break
    return coalitions


def _name(row: np.ndarray, paired: bool) -> bytes:
    return (row ^ row[0] if paired else row).tobytes()


def _swap(row: np.ndarray, z: np.ndarray, weight: float, excess: np.ndarray, known: set[bytes], paired: bool) -> None:
    """Do the best swap of one row, in place, if one lowers the imbalance and gives a new coalition."""
    n = len(z)
    pull = z * (excess @ z)
    members, others = np.flatnonzero(row), np.flatnonzero(~row)
    members = members[np.argsort(-pull[members], kind="stable")[:CANDIDATES]]
    others = others[np.argsort(-pull[others], kind="stable")[:CANDIDATES]]
    # z_i z_j = -1 of the pair itself stays: its part of both pulls does not count
    gain = pull[members, None] + pull[None, others] + 2 * excess[np.ix_(members, others)] - 2 * weight * (n - 2)
    for place in np.argsort(-gain, axis=None)[:CANDIDATES]:
        i, j = members[place // len(others)], others[place % len(others)]
        if gain.flat[place] <= 1e-9 * weight:
            return
        swapped = row.copy()
        swapped[[i, j]] = swapped[[j, i]]
        name = _name(swapped, paired)
        if name in known:
            continue
        known.remove(_name(row, paired))
        known.add(name)
        for player in (i, j):
            change = -2 * weight * z[player] * z
            change[[i, j]] = 0
            excess[player] += change
            excess[:, player] += change
        z[[i, j]] = z[[j, i]]
        row[:] = swapped
        return
