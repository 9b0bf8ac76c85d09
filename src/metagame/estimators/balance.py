"""Swap members of drawn coalitions until every pair of players is together about equally often."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from metagame.games import Coalitions

MAX_SWEEPS = 12
CANDIDATES = 6
"""Members, and players outside, that are tried with each other."""
MANY_PLAYERS = 128
"""From which on several pairs of them are swapped at once."""
MOST_PAIRS = 16
WORK = 4e9
"""Products of numbers that balancing may take: seconds."""


def balanced(
    coalitions: Coalitions, weights: Float[np.ndarray, " k"], free: Bool[np.ndarray, " k"], *, paired: bool
) -> Coalitions:
    """``coalitions`` of the same sizes, distinct as before, with a smaller imbalance.

    The imbalance is the squared Frobenius norm of the off-diagonal part of sum_r w_r z_r z_r^T, less its mean, with
    z = 1 for members and -1 for others: what a regression on z takes for effects of other players. Each ``free`` row in
    turn swaps the member and the outsider that lower it most (of 128 players on up to 16 of either), until a sweep
    changes little, or after as many rows as ``WORK`` allows. ``paired``: a coalition's complement counts as the
    coalition itself.
    """
    n = coalitions.shape[1]
    coalitions = coalitions.copy()
    z = np.where(coalitions, 1.0, -1.0)
    moment = z.T @ (weights[:, None] * z)
    off = ~np.eye(n, dtype=bool)
    excess = np.where(off, moment - moment[off].mean(), 0.0) if n > 1 else moment
    known = {_name(row, paired) for row in coalitions}
    left = int(WORK) // n**2
    for _ in range(MAX_SWEEPS):
        before = (excess**2).sum()
        rows = np.flatnonzero(free)[:left]
        for row in rows:
            _swap(coalitions[row], z[row], weights[row], excess, known, paired)
        left -= len(rows)
        if (excess**2).sum() >= 0.98 * before:
            break
    return coalitions


def _name(row: np.ndarray, paired: bool) -> bytes:
    return (row ^ row[0] if paired else row).tobytes()


def _swap(row: np.ndarray, z: np.ndarray, weight: float, excess: np.ndarray, known: set[bytes], paired: bool) -> None:
    """Do the best swap of one row, in place, if one lowers the imbalance and gives a new coalition."""
    pull = z * (excess @ z)
    for gain, players in (_single_pairs if len(z) < MANY_PLAYERS else _several_pairs)(row, z, weight, excess, pull):
        if gain <= 1e-9 * weight:
            return
        swapped = row.copy()
        swapped[players] ^= True
        name = _name(swapped, paired)
        if name in known:
            continue
        known.remove(_name(row, paired))
        known.add(name)
        others = z.copy()
        others[players] = 0
        excess[players] -= 2 * weight * z[players, None] * others
        excess[:, players] = excess[players].T
        z[players] *= -1
        row[:] = swapped
        return


def _single_pairs(
    row: np.ndarray, z: np.ndarray, weight: float, excess: np.ndarray, pull: np.ndarray
) -> Iterator[tuple[float, np.ndarray]]:
    """The best swaps of a member and an outsider, each with what it lowers the imbalance by, over 8 w."""
    members, others = (_largest(pull, inside, CANDIDATES) for inside in (row, ~row))
    # z_i z_j = -1 of the pair itself stays: its part of both pulls does not count
    gain = pull[members, None] + pull[None, others] + 2 * excess[np.ix_(members, others)] - 2 * weight * (len(z) - 2)
    for place in np.argsort(-gain, axis=None)[:CANDIDATES]:
        yield gain.flat[place], np.array([members[place // len(others)], others[place % len(others)]])


def _several_pairs(
    row: np.ndarray, z: np.ndarray, weight: float, excess: np.ndarray, pull: np.ndarray
) -> Iterator[tuple[float, np.ndarray]]:
    """Likewise of the c members and the c outsiders that pull most, for each c: of these changes the best first."""
    most = min(MOST_PAIRS, int(row.sum()), int((~row).sum()))
    players = np.stack([_largest(pull, inside, most) for inside in (row, ~row)], axis=1).ravel()
    size = np.arange(2, 2 * most + 1, 2)
    among = z[players, None] * excess[np.ix_(players, players)] * z[players]
    within = among.cumsum(0).cumsum(1).diagonal()[1::2]  # what players that change together do to each other stays
    gain = pull[players].cumsum()[1::2] - within - weight * size * (len(z) - size)
    for place in np.argsort(-gain)[:CANDIDATES]:
        yield gain[place], players[: size[place]]


def _largest(pull: np.ndarray, inside: np.ndarray, count: int) -> np.ndarray:
    players = np.flatnonzero(inside)
    return players[np.argsort(-pull[players], kind="stable")[:count]]
