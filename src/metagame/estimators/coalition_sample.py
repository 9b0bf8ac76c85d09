"""Coalitions that all targets share, and what each of them counts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from metagame.extras import needed_by
from metagame.games import Coalitions, all_coalitions


@dataclass(frozen=True)
class CoalitionSample:
    """Distinct coalitions and their weights: sum over rows of weight * g(S) estimates the sum of g over all S.

    Attributes:
        coalitions: bool ``(k, n)``; row 0 is empty, row 1 the grand coalition.
        weights: ``(k,)``; 1 where all coalitions of that size are in the sample.
        draws: how often each was drawn, ``(k,)``; 0 where it was not left to chance.
        paired: complements were drawn together.
    """

    coalitions: Coalitions
    weights: Float[np.ndarray, " k"]
    draws: Int[np.ndarray, " k"]
    paired: bool

    def restricted(self, rows: np.ndarray, players: np.ndarray) -> CoalitionSample:
        """The coalitions in ``rows``, of these players alone."""
        coalitions = self.coalitions[np.ix_(rows, players)]
        return CoalitionSample(coalitions, self.weights[rows], self.draws[rows], self.paired)


def least_budget(n: int) -> int:
    """The sizes 0, 1, n-1 and n, which every sample holds in full."""
    return min(2 * n + 2, 1 << n)


def draw_coalition_sample(n: int, budget: int, *, endogenous: bool, seed: int) -> CoalitionSample:
    """At most ``budget`` coalitions: sizes 0, 1, n-1, n in full, the others by Shapley kernel weights.

    Exogenous games take the kernel 1/(s(n-s)) with complements paired. In an endogenous game the coalition S serves the
    |S| targets in it, each with a subgame coalition of size |S|-1 among n-1 players: kernel 1/((s-1)(n-s)); complements
    would serve other targets and are not paired.
    """
    if budget >= 1 << n:
        coalitions = all_coalitions(n)
        sizes = np.arange(n + 1)
    else:
        sizes = np.array([0, 1, n - 1, n])
        coalitions = np.concatenate(
            [np.zeros((1, n), bool), np.ones((1, n), bool), np.eye(n, dtype=bool), ~np.eye(n, dtype=bool)]
        )
    coalitions = coalitions[np.argsort(np.isin(coalitions.sum(1), [0, n], invert=True), kind="stable")]
    weights, draws = np.ones(len(coalitions)), np.zeros(len(coalitions), int)
    left = budget - len(coalitions)
    if len(sizes) == n + 1 or left <= 0:
        return CoalitionSample(coalitions, weights, draws, not endogenous)

    with needed_by("estimator='regression' or 'trees'"):
        from shapiq.approximator.sampling import CoalitionSampler  # here, since importing it takes seconds

    size = np.arange(n + 1)
    middle = (size > 1) & (size < n - 1)
    kernel = np.zeros(n + 1)
    kernel[middle] = 1 / ((size[middle] - endogenous) * (n - size[middle]))
    sampler = CoalitionSampler(n, kernel, pairing_trick=not endogenous, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sampling might be inefficient|Not all budget is required", UserWarning)
        sampler.sample(left + 2)
    inner = middle[sampler.coalitions_size]
    left_to_chance = sampler.is_coalition_sampled[inner]
    return CoalitionSample(
        np.concatenate([coalitions, sampler.coalitions_matrix[inner]]),
        np.concatenate([weights, sampler.sampling_adjustment_weights[inner]]),
        np.concatenate([draws, np.where(left_to_chance, sampler.coalitions_counter[inner], 0)]),
        not endogenous,
    )
