"""Coalitions that all targets share, and what each of them counts."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Float, Int

from metagame.estimators.balance import balanced
from metagame.games import Coalitions, all_coalitions

ROWS_PER_PLAYER = 8
"""Drawn rows for each player, up to which they are balanced."""
LISTED = 4
"""A size is listed, rather than drawn until the rows are distinct, where so few times as many as are drawn exist."""


@dataclass(frozen=True)
class CoalitionSample:
    """Distinct coalitions, and what each of them stands for.

    Attributes:
        coalitions: bool ``(k, n)``; row 0 is empty, row 1 the grand coalition.
        shares: ``(k,)``: the mean of g over all coalitions of a size is estimated by the sum over its rows of
            share * g(S).
        inclusion: how probably each was drawn, ``(k,)``; 1 where all coalitions of its size are in the sample.
        paired: rows 2, 4, ... are followed by their complements, with which they were drawn.
    """

    coalitions: Coalitions
    shares: Float[np.ndarray, " k"]
    inclusion: Float[np.ndarray, " k"]
    paired: bool


def least_budget(n: int) -> int:
    """As many as the coalitions of size 0, 1, n-1 and n."""
    return min(2 * n + 2, 1 << n)


def draw_coalition_sample(n: int, budget: int, *, endogenous: bool, seed: int) -> CoalitionSample:
    """At most ``budget`` coalitions: the empty and the grand one, and others that serve all targets.

    Exogenous games take complements in pairs, of each size s in proportion to 1/sqrt(s(n-s)); with fewer than 4
    coalitions for each player all sizes 1 are among them, which determine a regression. In an endogenous game the
    coalition S serves the |S| targets in it, each with a subgame coalition of size |S|-1 among n-1 players: all sizes 1
    and n-1, the others in proportion to 1/sqrt((s-1)(n-s)), not paired, since complements would serve other targets.

    A size that is due as often as it has coalitions is taken in full. Where rows are few they are balanced
    (:func:`metagame.estimators.balance.balanced`). Then the players' labels are permuted, so that each coalition of a
    size that was drawn from is in the sample with the same probability.

    The last sample is kept, since the images of a benchmark often ask for the same one.
    """
    return deepcopy(_drawn(n, budget, endogenous, seed))


@lru_cache(maxsize=1)
def _drawn(n: int, budget: int, endogenous: bool, seed: int) -> CoalitionSample:
    rng = np.random.default_rng(seed)
    bounds = np.array([[False] * n, [True] * n])
    if budget >= 1 << n:
        return _everything(n, not endogenous)
    due, available = (_endogenous_due if endogenous else _exogenous_due)(n, budget)
    # systematic sampling: each size as often as it is due, rounded up or down
    counts = np.diff(np.floor(np.cumsum([0.0, *due]) + rng.uniform()).astype(int))
    counts = np.where(due >= available, available, np.minimum(counts, available)).astype(int)
    halved = not endogenous and n % 2 == 0
    drawn = [draw_of_size(rng, n, s, count, halved and 2 * s == n) for s, count in enumerate(counts.tolist())]
    rows = np.concatenate(drawn)
    shares = 1 / np.repeat(due, counts)  # by what is due rather than drawn: unbiased
    if halved:
        shares[2 * rows.sum(1) == n] /= 2  # both coalitions of a pair are of this size
    inclusion = np.repeat(np.minimum(due / np.maximum(available, 1), 1), counts)
    if len(rows) <= ROWS_PER_PLAYER * n:
        rows = balanced(rows, kernel(n, endogenous)[rows.sum(1)] * shares, inclusion < 1, paired=not endogenous)
    rows = rows[:, rng.permutation(n)]
    if not endogenous:
        rows = np.stack([rows, ~rows], 1).reshape(-1, n)
        shares, inclusion = np.repeat(shares, 2), np.repeat(inclusion, 2)
    ones = np.ones(2)
    return CoalitionSample(
        np.concatenate([bounds, rows]),
        np.concatenate([ones, shares]),
        np.concatenate([ones, inclusion]),
        paired=not endogenous,
    )


def _everything(n: int, paired: bool) -> CoalitionSample:
    coalitions = all_coalitions(n)
    half = coalitions[1 : max(1 << (n - 1), 1)]
    inner = np.stack([half, ~half], 1).reshape(-1, n) if paired else coalitions[1:-1]
    rows = np.concatenate([coalitions[[0, -1]], inner])
    shares = 1 / _n_subsets(n)[rows.sum(1)]
    return CoalitionSample(rows, shares, np.ones(1 << n), paired)


def kernel(n: int, endogenous: bool) -> Float[np.ndarray, " sizes"]:
    """Shapley kernel mass of each size of a game of n players, or of the subgames that a coalition serves."""
    size = np.arange(n + 1)
    product = (size - endogenous) * (n - size) * (size > endogenous)
    return np.divide(1.0, product, where=product > 0, out=np.zeros(n + 1))


def _exogenous_due(n: int, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """How many pairs are due of each size of their smaller half, and how many there are."""
    size = np.arange(n + 1)
    available = _n_subsets(n)
    if n % 2 == 0:
        available[n // 2] /= 2
    available[(size == 0) | (2 * size > n)] = 0
    in_full = (size == 1) if budget < 4 * n else np.zeros(n + 1, bool)
    return _due(np.sqrt(kernel(n, False)), available, in_full, (budget - 2) // 2), available


def _endogenous_due(n: int, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """How many coalitions are due of each size, and how many there are."""
    size = np.arange(n + 1)
    available = _n_subsets(n)
    available[[0, n]] = 0
    in_full = (size == 1) | (size == n - 1)
    return _due(np.sqrt(kernel(n, True)), available, in_full, budget - 2), available


def _n_subsets(n: int) -> Float[np.ndarray, " sizes"]:
    """How many coalitions there are of each size, as far as float64 goes."""
    return np.array([min(comb(n, size), 10**300) for size in range(n + 1)], float)


def _due(
    share: Float[np.ndarray, " s"], available: Float[np.ndarray, " s"], in_full: np.ndarray, total: int
) -> Float[np.ndarray, " s"]:
    """``total`` rows over the sizes in proportion to ``share``, with no more of a size than are available."""
    due = np.where(in_full, available, 0.0)
    open_sizes = ~in_full & (available > 0)
    while open_sizes.any():
        left = total - due[~open_sizes].sum()
        due[open_sizes] = left * share[open_sizes] / share[open_sizes].sum()
        over = open_sizes & (due >= available)
        if not over.any():
            break
        due[over] = available[over]
        open_sizes &= ~over
    return due


def draw_of_size(rng: np.random.Generator, n: int, size: int, count: int, halved: bool) -> Coalitions:
    """``count`` distinct coalitions of a size; ``halved``: of each pair of complements one, that with player 0."""
    n_drawn, size_drawn = (n - 1, size - 1) if halved else (n, size)
    n_subsets = comb(n_drawn, size_drawn)
    if n_subsets <= LISTED * count:
        listed = np.array(list(combinations(range(n_drawn), size_drawn)), int).reshape(n_subsets, size_drawn)
        members = listed[np.sort(rng.choice(n_subsets, count, replace=False))]
    else:
        members = _distinct_subsets(rng, n_drawn, size_drawn, count)
    rows = np.zeros((count, n), bool)
    rows[:, 0] = halved
    np.put_along_axis(rows[:, n - n_drawn :], members, True, axis=1)
    return rows


def _distinct_subsets(rng: np.random.Generator, n: int, size: int, count: int) -> Int[np.ndarray, "count size"]:
    found = np.empty((0, size), int)
    while len(found) < count:
        drawn = np.argsort(rng.random((count - len(found), n)), axis=1)[:, :size]
        found = np.concatenate([found, np.sort(drawn, axis=1)])
        _, first = np.unique(found, axis=0, return_index=True)
        found = found[np.sort(first)]
    return found
