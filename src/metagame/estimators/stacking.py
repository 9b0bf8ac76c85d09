"""Which surrogates to trust how much, and how much of what they leave is left to a regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from metagame.estimators.least_squares import LEAST_LEFT, sandwich
from metagame.estimators.problem import Problem
from metagame.estimators.surrogates import Surrogate

PENALTIES = (0.0, 0.03, 0.3, 3.0, 30.0, 300.0)
"""Of the ridge regression, relative to the mean squared contrast."""


@dataclass(frozen=True)
class Ridge:
    """A ridge regression of one target's values and its surrogates on the contrasts, for one penalty.

    The q columns are those of the values, then of each surrogate.

    Attributes:
        left_out: residuals of each row, from fits without it, ``(m, q)``.
        phi: of sum 0, ``(q, p)``.
    """

    left_out: Float[np.ndarray, "m q"]
    phi: Float[np.ndarray, "q p"]


class Ridges:
    """The ridge regressions of a problem's targets, which differ in what they are fitted to only.

    On the contrasts, and on powers of the size, of which no player has more than another.

    Attributes:
        influence: of a regression on the contrasts alone, without penalty: what a value adds to each player's value,
            ``(m, p)``.
    """

    influence: Float[np.ndarray, "m p"]

    def __init__(self, problem: Problem) -> None:
        p = len(problem.players)
        self.p = p
        self.x = np.concatenate([problem.contrasts, size_terms(problem)], axis=1)
        self.weighted = problem.weights[:, None] * self.x
        gram = self.x.T @ self.weighted
        scale = gram[:p, :p].trace() / p
        self.inverses, self.left = [], []
        for penalty in PENALTIES:
            penalised = gram.copy()
            penalised[:p, :p] += scale * (penalty * np.eye(p) + 1 / p)  # the latter for what contrasts cannot see
            inverse = np.linalg.pinv(penalised, rcond=1e-12, hermitian=True)
            leverage = np.einsum("kp,kp->k", self.weighted @ inverse, self.x)
            self.inverses.append(inverse)
            self.left.append(np.maximum(1 - leverage, LEAST_LEFT)[:, None])
        self.influence = self.weighted[:, :p] @ np.linalg.inv(gram[:p, :p] + scale / p)

    def fits(self, columns: Float[np.ndarray, "m q"]) -> list[Ridge]:
        """One for each penalty."""
        moments = columns.T @ self.weighted
        found = [moments @ inverse for inverse in self.inverses]
        return [
            Ridge((columns - self.x @ each.T) / left, each[:, : self.p])
            for each, left in zip(found, self.left, strict=True)
        ]

    def surrogate(self, problem: Problem, target: int) -> Surrogate:
        """The regression of a target's values whose penalty has the least leave-one-out loss."""
        values = problem.beyond(slice(target, target + 1))
        found = [(ridge.left_out[:, 0], ridge.phi[0]) for ridge in self.fits(values)]
        left_out, phi = min(found, key=lambda each: problem.loss_weights @ each[0] ** 2)
        return Surrogate(values[:, 0] - left_out, phi)


@dataclass(frozen=True)
class Candidates:
    """All that can be made of one target's game.

    Attributes:
        problem, target: the target counts within the problem.
        values: beyond what they were if all players were alike, ``(m,)``.
        surrogates: s of them.
        ridges: for each penalty.
        influence: as of :class:`Ridges`.
    """

    problem: Problem
    target: int
    values: Float[np.ndarray, " m"]
    surrogates: Sequence[Surrogate]
    ridges: Sequence[Ridge]
    influence: Float[np.ndarray, "m p"]

    def residuals(self, penalty: int) -> Float[np.ndarray, "m q"]:
        """Left out, such that their squares add up to the loss, relative to that of an equal split."""
        weights = self.problem.loss_weights
        scale = weights @ self.values**2
        return self.ridges[penalty].left_out * np.sqrt(weights / (scale or 1.0))[:, None]


def candidates(problem: Problem, target: int, surrogates: Sequence[Surrogate], ridges: Ridges) -> Candidates:
    """Of one target, with the regressions of what surrogates leave."""
    values = problem.beyond(slice(target, target + 1))[:, 0]
    columns = np.stack([values, *(each.left_out for each in surrogates)], axis=1)
    return Candidates(problem, target, values, surrogates, ridges.fits(columns), ridges.influence)


def size_terms(problem: Problem) -> Float[np.ndarray, "m c"]:
    """Polynomials of the size that are 0 for the empty and the grand coalition."""
    size = 2 * problem.fraction - 1
    cubic = size**3 - size
    return np.stack([cubic] if problem.odd else [size**2 - 1, cubic], axis=1)


def stack(each: Candidates) -> tuple[int, Float[np.ndarray, " s"]]:
    """Penalty (by its number) and weights of the surrogates of least leave-one-out loss.

    Weights are not negative and add up to 1. With less, noise would pull the values of players to each other.
    """
    tried = []
    for penalty in range(len(PENALTIES)):
        residuals = each.residuals(penalty)
        weights = _simplex_weights(residuals[:, 1:], residuals[:, 0])
        tried.append((((residuals[:, 0] - residuals[:, 1:] @ weights) ** 2).sum(), penalty, weights))
    _, penalty, weights = min(tried, key=lambda each: each[0])
    return penalty, weights


def share(each: Candidates) -> tuple[int, Float[np.ndarray, " s"]]:
    """The penalty of least leave-one-out loss where all surrogates count the same, and these weights."""
    weights = np.full(len(each.surrogates), 1 / len(each.surrogates))
    residuals = [each.residuals(penalty) @ np.append(1.0, -weights) for penalty in range(len(PENALTIES))]
    return int(np.argmin([(left**2).sum() for left in residuals])), weights


def _simplex_weights(columns: Float[np.ndarray, "m s"], values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " s"]:
    from scipy.optimize import nnls  # here, since importing it takes as long as all of metagame

    heavy = 1e4 * np.abs(columns).max(initial=1) * np.sqrt(len(columns))
    weights, _ = nnls(np.vstack([columns, np.full((1, columns.shape[1]), heavy)]), np.append(values, heavy))
    return weights / weights.sum()


def combined(
    each: Candidates, penalty: int, weights: Float[np.ndarray, " s"]
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Shapley values by the surrogates and the regression of what they leave, with standard errors.

    The errors are the sandwich of a regression without penalty, on what is left of values that are left out.
    """
    problem, ridge = each.problem, each.ridges[penalty]
    p = len(problem.players)
    signs = np.append(1.0, -weights)
    phi = problem.total[each.target] / p + signs @ ridge.phi
    phi += sum(
        (weight * surrogate.phi for weight, surrogate in zip(weights, each.surrogates, strict=True)), np.zeros(p)
    )
    return phi, sandwich(each.influence, (ridge.left_out @ signs)[:, None], problem.inclusion)[0]
