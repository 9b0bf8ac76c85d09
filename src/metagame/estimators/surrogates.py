"""Games that are fitted to a sample of coalitions and whose own Shapley values are known: trees and smooth ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from metagame.estimators.boosting import boost, shapley_of
from metagame.estimators.coalition_sample import CoalitionSample
from metagame.estimators.gaussian_process import Kernel, OddKernel, Posterior, posterior
from metagame.estimators.problem import Problem
from metagame.estimators.trees import tree_weights
from metagame.games import Values

FOLDS = 5
ENTRIES_AT_ONCE = 4_000_000
"""Coalitions times ensembles of trees that grow at once."""
MOST_ROWS = 800
"""Of a Gaussian process, whose cost grows with their third power."""
SEARCHED_ROWS = 192
"""With which its widths are chosen."""
UNIFORM = (0.5, 1.0, 2.0, 4.0)
"""Sums of the widths that are tried when all players have the same."""
LARGEST = (0.15, 0.5, 0.9)
"""Largest widths that are tried when players have their own."""
LEAST_IMPORTANCE = 0.02
"""Of a player, relative to the most important one."""
OFFSETS = (0.0, 1.0)
"""Of kernels: interactions may be of who differs, or of who is there."""


@dataclass(frozen=True)
class Surrogate:
    """A game of one target, beyond the equal split of its total.

    Attributes:
        left_out: its values on the problem's rows, each from a fit without that row, ``(m,)``.
        phi: Shapley values of a fit to all rows, of sum 0, ``(p,)``.
    """

    left_out: Float[np.ndarray, " m"]
    phi: Float[np.ndarray, " p"]


@dataclass(frozen=True)
class Trees:
    """Boosted trees of all targets.

    Attributes:
        fitted: predictions of a fit to all rows, ``(k, t)``.
        left_out: predictions of fits to four fifths of the rows, on the others, ``(k, t)``; on the bounds of any fit.
        phi: Shapley values of the fit to all rows, ``(t, n)``.
    """

    fitted: Float[np.ndarray, "k t"]
    left_out: Float[np.ndarray, "k t"]
    phi: Float[np.ndarray, "t n"]

    def surrogate(self, problem: Problem, target: int) -> Surrogate:
        """That of one target; ``target`` counts within the problem."""
        column = problem.targets[target]
        phi = self.phi[column, problem.players]
        predicted = self.left_out[problem.rows, column]
        if problem.odd:
            predicted = (predicted - self.left_out[problem.rows + 1, column]) / 2
            start = -phi.sum() / 2
        else:
            start = self.fitted[1, column] - phi.sum()
        return Surrogate(predicted - start - problem.fraction * phi.sum(), phi - phi.mean())


def boosted_trees(sample: CoalitionSample, values: Values, endogenous: bool) -> Trees:
    """The trees of :func:`metagame.estimators.trees.trees`, fitted to all rows and with each fold left out in turn."""
    k, n = sample.coalitions.shape
    row = np.arange(-2, k)
    fold = np.where(row < 0, -1, (row // 2 if sample.paired else row) % FOLDS)[:k]
    kept = fold[:, None] != np.append(np.arange(FOLDS), FOLDS)
    fitted, left_out, phi = np.empty_like(values), np.empty_like(values), np.empty((values.shape[1], n))
    at_once = max(1, ENTRIES_AT_ONCE // (k * kept.shape[1]))
    for start in range(0, values.shape[1], at_once):
        targets = np.arange(start, min(start + at_once, values.shape[1]))
        weights = np.stack([tree_weights(sample, each if endogenous else None) for each in targets.tolist()], axis=1)
        forest = boost(
            sample.coalitions,
            np.repeat(values[:, targets], kept.shape[1], axis=1),
            (weights[:, :, None] * kept[:, None]).reshape(k, -1),
        )
        predictions = forest.predictions.reshape(k, len(targets), -1)
        fitted[:, targets] = predictions[:, :, -1]
        left_out[:, targets] = np.take_along_axis(predictions, fold[:, None, None], axis=2)[:, :, 0]
        phi[targets] = shapley_of(forest, n).reshape(len(targets), -1, n)[:, -1]
    return Trees(fitted, left_out, phi)


class Smooth:
    """Gaussian processes of a problem's games.

    With a common width of all players, and with widths of their own in proportion to the players' importance: their
    effects in the former, or the size of their values by trees. Widths and noise have the least leave-one-out loss, the
    widths on a part of the rows.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        p = len(problem.players)
        bounds = np.ones((1, p)) if problem.odd else np.array([[1.0] * p, [-1.0] * p])
        self.n_bounds = len(bounds)
        self.z = np.concatenate([bounds, np.where(problem.members, 1.0, -1.0)])
        self.y = np.concatenate([np.zeros((self.n_bounds, len(problem.total))), problem.beyond()])
        self.weights = np.append(np.zeros(self.n_bounds), problem.loss_weights)
        order = np.random.default_rng(0).permutation(np.arange(self.n_bounds, len(self.z)))
        self.order = np.append(np.arange(self.n_bounds), order)  # the bounds, which count in every fit, first
        self.searched = self.order[:SEARCHED_ROWS]
        self.uniform = {
            offset: [self._try(Kernel(np.full(p, min(total / p, 0.9)), offset)) for total in UNIFORM]
            for offset in OFFSETS
        }

    def surrogates(self, target: int, importance: Float[np.ndarray, " p"]) -> Iterator[Surrogate]:
        """Of one target; ``importance`` by trees."""
        for offset in OFFSETS:
            kernel, found = min(self.uniform[offset], key=lambda each: each[1].loss[target])
            if offset == 0:
                yield self._surrogate(kernel, target)
            yield self._surrogate(self._own_widths(kernel, found, target, importance), target)

    def _own_widths(self, kernel: Kernel, found: Posterior, target: int, importance: Float[np.ndarray, " p"]) -> Kernel:
        z, weights = self.z[self.searched], self.weights[self.searched]
        effects = self._of(kernel).effects(z, found.coefficients[:, target], z)
        tried = []
        for each in (np.sqrt(weights @ effects**2), importance):
            relative = LEAST_IMPORTANCE + (1 - LEAST_IMPORTANCE) * each / max(each.max(), 1e-300)
            tried += [self._try(Kernel(largest * relative, kernel.offset), target) for largest in LARGEST]
        return min(tried, key=lambda each: each[1].loss[0])[0]

    def _try(self, kernel: Kernel, target: int | None = None) -> tuple[Kernel, Posterior]:
        return kernel, self._posterior(kernel, self.searched, slice(None) if target is None else [target])

    def _posterior(self, kernel: Kernel, rows: Int[np.ndarray, " r"], targets: list[int] | slice) -> Posterior:
        z = self.z[rows]
        return posterior(self._of(kernel)(z, z), self.y[rows][:, targets], self.weights[rows])

    def _of(self, kernel: Kernel) -> Kernel | OddKernel:
        return OddKernel(kernel) if self.problem.odd else kernel

    def _surrogate(self, kernel: Kernel, target: int) -> Surrogate:
        rows = self.order[:MOST_ROWS]
        found = self._posterior(kernel, rows, [target])
        coefficients = found.coefficients[:, 0]
        left_out = np.empty(len(self.z))
        left_out[rows] = self.y[rows, target] - found.left_out[:, 0]
        others = self.order[MOST_ROWS:]
        left_out[others] = self._of(kernel)(self.z[others], self.z[rows]) @ coefficients
        phi = coefficients @ self._of(kernel).shapley(self.z[rows])
        return Surrogate(left_out[self.n_bounds :], phi - phi.mean())
