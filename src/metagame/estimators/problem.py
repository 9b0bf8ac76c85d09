"""What is fitted: the values that a sample of coalitions gives of each target's game."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from metagame.estimators.coalition_sample import CoalitionSample, kernel
from metagame.games import Values


@dataclass(frozen=True)
class Problem:
    """Games of p players on the same m coalitions, whose Shapley values are sought.

    Of an exogenous game its odd part (v(S) - v(N - S))/2, which has the same Shapley value, on one coalition of each
    pair; of an endogenous game of one target its subgame nu(T) = phi_i(T + i).

    Attributes:
        targets, players: which targets and players of the metagame these are, ``(t,)`` and ``(p,)``.
        rows: of the sample that were drawn, ``(m,)``.
        members: ``(m, p)``.
        values: ``(m, t)``.
        start, total: value of the empty coalition, and of the grand one less that, ``(t,)``.
        weights: Shapley kernel of each row times its share, ``(m,)``.
        inclusion: as of the sample, ``(m,)``.
        odd: values change their sign with the complement.
    """

    targets: Int[np.ndarray, " t"]
    players: Int[np.ndarray, " p"]
    rows: Int[np.ndarray, " m"]
    members: Bool[np.ndarray, "m p"]
    values: Float[np.ndarray, "m t"]
    start: Float[np.ndarray, " t"]
    total: Float[np.ndarray, " t"]
    weights: Float[np.ndarray, " m"]
    inclusion: Float[np.ndarray, " m"]
    odd: bool

    @property
    def fraction(self) -> Float[np.ndarray, " m"]:
        """Of the players that are present."""
        return self.members.mean(1)

    def beyond(self, part: slice = slice(None)) -> Float[np.ndarray, "m part"]:
        """The values of some targets less what they were if all players were alike."""
        return self.values[:, part] - self.start[part] - self.fraction[:, None] * self.total[part]

    @property
    def contrasts(self) -> Float[np.ndarray, "m p"]:
        """1_S - |S|/p: what the differences of players' values count in what is beyond."""
        return self.members - self.fraction[:, None]

    @property
    def loss_weights(self) -> Float[np.ndarray, " m"]:
        """What squared residuals count in the error of Shapley values: w^2 s(p-s), of sum 1."""
        p = len(self.players)
        weights = self.weights**2 * self.fraction * (1 - self.fraction) * p**2
        return weights / weights.sum()


def problems(sample: CoalitionSample, values: Values) -> Iterator[Problem]:
    """One for all targets of an exogenous game, one for each target of an endogenous one."""
    n = sample.coalitions.shape[1]
    if sample.paired:
        yield _exogenous(sample, values, n)
        return
    singles = np.flatnonzero(sample.coalitions.sum(1) == 1)
    own = singles[np.argmax(sample.coalitions[singles], axis=0)]
    for target in range(n):
        yield _endogenous(sample, values, target, int(own[target]))


def _exogenous(sample: CoalitionSample, values: Values, n: int) -> Problem:
    rows = np.arange(2, len(values), 2)
    total = values[1] - values[0]
    odd = values[2::2] - values[3::2]
    odd /= 2  # in place, as the array may be large
    members = sample.coalitions[rows]
    return Problem(
        np.arange(values.shape[1]), np.arange(n), rows, members, odd, -total / 2, total,
        kernel(n, False)[members.sum(1)] * sample.shares[rows], sample.inclusion[rows], odd=True,
    )  # fmt: skip


def _endogenous(sample: CoalitionSample, values: Values, target: int, own: int) -> Problem:
    n = values.shape[1]
    players = np.flatnonzero(np.arange(n) != target)
    size = sample.coalitions.sum(1)
    rows = np.flatnonzero(sample.coalitions[:, target] & (size > 1) & (size < n))
    # of the subgame's size s - 1 the sample has as many rows as of size s, times s/n
    weights = kernel(n - 1, False)[size[rows] - 1] * sample.shares[rows] * n / size[rows]
    nu = values[:, [target]]
    return Problem(
        np.array([target]), players, rows, sample.coalitions[np.ix_(rows, players)], nu[rows], nu[own],
        nu[1] - nu[own], weights, sample.inclusion[rows], odd=False,
    )  # fmt: skip
