"""Games that are fitted to a sample of coalitions and whose own Shapley values are known: trees and smooth ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from metagame.estimators.boosting import boost, shapley_of
from metagame.estimators.coalition_sample import CoalitionSample
from metagame.estimators.gaussian_process import Kernel, OddKernel, Process
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
LEAST_SHARE = 0.01
"""With less a width does not count in a mean."""
LEAST_IMPORTANCE = 0.02
"""Of a player, relative to the most important one."""
OFFSETS = (0.0, 1.0)
"""Of kernels: interactions may be of who differs, or of who is there."""


@dataclass(frozen=True)
class Grid:
    """What is tried of Gaussian processes.

    Attributes:
        common: sums of the widths where all players have the same.
        largest: largest widths where players have their own.
        noises: variances of the noise, relative to that of a value.
    """

    common: Sequence[float]
    largest: Sequence[float]
    noises: Sequence[float]


COARSE = Grid((0.5, 1.0, 2.0, 4.0), (0.15, 0.5, 0.9), (1e-9, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0))
"""For choosing one: among more, noise decides."""
FINE = Grid((0.25, *COARSE.common), (0.05, *COARSE.largest), (*COARSE.noises, 3e-2, 3e-1))
"""For a mean, in which those of little evidence hardly count."""


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


@dataclass(frozen=True)
class Tried:
    """A Gaussian process with each noise of the grid, on some rows.

    Attributes:
        kernel: of the game, of which the process may be the odd part.
        process: on the rows.
        values: of t targets, ``(r, t)``.
        losses, log_evidence: see :class:`metagame.estimators.gaussian_process.Process`, ``(noises, t)``.
    """

    kernel: Kernel
    process: Process
    values: Float[np.ndarray, "r t"]
    losses: Float[np.ndarray, "noises t"]
    log_evidence: Float[np.ndarray, "noises t"]

    def of(self, target: int) -> Tried:
        """The same of one target."""
        one = slice(target, target + 1)
        return Tried(self.kernel, self.process, self.values[:, one], self.losses[:, one], self.log_evidence[:, one])


class Smooth:
    """Gaussian processes of a problem's games.

    With a common width of all players, and with widths of their own in proportion to the players' importance: their
    effects in the former, or the size of their values by trees. Widths are compared on a part of the rows.
    """

    def __init__(self, problem: Problem, grid: Grid = COARSE) -> None:
        self.problem = problem
        self.grid = grid
        p = len(problem.players)
        bounds = np.ones((1, p)) if problem.odd else np.array([[1.0] * p, [-1.0] * p])
        self.n_bounds = len(bounds)
        self.z = np.concatenate([bounds, np.where(problem.members, 1.0, -1.0)])
        self.y = np.concatenate([np.zeros((self.n_bounds, len(problem.total))), problem.beyond()])
        self.weights = np.append(np.zeros(self.n_bounds), problem.loss_weights)
        order = np.random.default_rng(0).permutation(np.arange(self.n_bounds, len(self.z)))
        self.order = np.append(np.arange(self.n_bounds), order)  # the bounds, which count in every fit, first
        self.common = {
            offset: [self._try(Kernel(np.full(p, min(total / p, 0.9)), offset), SEARCHED_ROWS) for total in grid.common]
            for offset in OFFSETS
        }

    def chosen(self, target: int, importance: Float[np.ndarray, " p"]) -> Iterator[Surrogate]:
        """Of one target, those of least leave-one-out loss; ``importance`` by trees."""
        for offset, common in self.common.items():
            best = min((each.of(target) for each in common), key=_least_loss)
            if offset == 0:
                yield self._of_least_loss(best, target)
            own = self._own_widths(best, int(best.losses.argmin()), target, importance)
            yield self._of_least_loss(min(own, key=_least_loss), target)

    def averaged(self, target: int, importance: Float[np.ndarray, " p"]) -> Iterator[Surrogate]:
        """Of one target, the mean of those with a common width, and the mean of those with widths of their own.

        Each counts in proportion to its evidence, which is less noisy than a leave-one-out loss where rows are few.
        """
        common, own = [], []
        for tried in self.common.values():
            mine = [each.of(target) for each in tried]
            best = max(mine, key=lambda each: each.log_evidence.max())
            common += mine
            own += self._own_widths(best, int(best.log_evidence.argmax()), target, importance)
        for tried in (common, own):
            likely = [each for each, shares in zip(tried, _shares(tried), strict=True) if shares.sum() >= LEAST_SHARE]
            fitted = [self._fitted(each, target) for each in likely]
            yield self._surrogate(fitted, _shares(fitted), target)

    def _own_widths(self, common: Tried, noise: int, target: int, importance: Float[np.ndarray, " p"]) -> list[Tried]:
        rows, kernel = self.order[:SEARCHED_ROWS], common.kernel
        coefficients = common.process.coefficients(common.values, noise)[:, 0]
        effects = self._of(kernel).effects(self.z[rows], coefficients, self.z[rows])
        tried = []
        for each in (np.sqrt(self.weights[rows] @ effects**2), importance):
            relative = LEAST_IMPORTANCE + (1 - LEAST_IMPORTANCE) * each / max(each.max(), 1e-300)
            tried += [Kernel(largest * relative, kernel.offset) for largest in self.grid.largest]
        return [self._try(each, SEARCHED_ROWS, target) for each in tried]

    def _try(self, kernel: Kernel, n_rows: int, target: int | None = None) -> Tried:
        rows = self.order[:n_rows]
        z, values = self.z[rows], self.y[rows][:, slice(None) if target is None else [target]]
        process = Process(self._of(kernel)(z, z), self.grid.noises)
        return Tried(kernel, process, values, process.losses(values, self.weights[rows]), process.log_evidence(values))

    def _fitted(self, tried: Tried, target: int) -> Tried:
        """On as many rows as may be."""
        return tried if len(self.order) <= SEARCHED_ROWS else self._try(tried.kernel, MOST_ROWS, target)

    def _of(self, kernel: Kernel) -> Kernel | OddKernel:
        return OddKernel(kernel) if self.problem.odd else kernel

    def _of_least_loss(self, tried: Tried, target: int) -> Surrogate:
        fitted = self._fitted(tried, target)
        return self._surrogate([fitted], np.eye(len(self.grid.noises))[[fitted.losses.argmin()]], target)

    def _surrogate(self, fitted: Sequence[Tried], shares: Float[np.ndarray, "k noises"], target: int) -> Surrogate:
        """The mean of several fits, of which each counts its share."""
        rows, others = self.order[:MOST_ROWS], self.order[MOST_ROWS:]
        predicted, phi = np.zeros(len(self.z)), np.zeros(len(self.problem.players))
        for each, of_noises in zip(fitted, shares, strict=True):
            kernel, coefficients = self._of(each.kernel), np.zeros(len(rows))
            for noise in np.flatnonzero(of_noises).tolist():
                coefficients += of_noises[noise] * each.process.coefficients(each.values, noise)[:, 0]
                left = each.process.left_out(each.values, noise)[:, 0]
                predicted[rows] += of_noises[noise] * (self.y[rows, target] - left)
            predicted[others] += kernel(self.z[others], self.z[rows]) @ coefficients
            phi += coefficients @ kernel.shapley(self.z[rows])
        return Surrogate(predicted[self.n_bounds :], phi - phi.mean())


def _least_loss(tried: Tried) -> float:
    return float(tried.losses.min())


def _shares(tried: Sequence[Tried]) -> Float[np.ndarray, "k noises"]:
    """What each counts with each noise: in proportion to its evidence."""
    log_evidence = np.stack([each.log_evidence[:, 0] for each in tried])
    evidence = np.exp(log_evidence - log_evidence.max())
    return evidence / evidence.sum()
