"""Meta-attributions by sampling permutations."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from metagame.estimators.estimate import (
    Estimate,
    Rules,
    require_scope,
    settle_budget,
    t_factor,
    too_few_for_an_error,
)
from metagame.estimators.exact import enumerate_all
from metagame.games import AttributionGame, Coalitions, Values
from metagame.indices import ksv_of_sii

TINY = 1e-20
"""Of the largest variance: rounding."""


def permutation(game: AttributionGame, rules: Rules) -> Estimate:
    """Walk through random permutations of the players; each walk gives a marginal contribution of every player.

    Exogenous: the mean marginal contribution (Castro et al., 2009). Endogenous: a walk serves every target i through
    the players j that come after it. With j at position q (from 0), the other predecessors of j are a uniform
    (q-1)-subset, which occurs with probability q/(n(n-1)), whereas Definition 2 requires 1/(n-1). The weight n/q
    therefore makes the estimate unbiased. The difference between a walk's row sum and phi_i(N) - phi_i({i}) is spread
    evenly over the row (a control variate), so rows are efficient. Order 2: SII (or k-SV, which is computed from it)
    from the discrete derivatives of neighbours in a walk. Walks come in blocks in which every pair is adjacent equally
    often. (shapiq's sampler leaves this to chance, and pairs that are never adjacent get 0.)

    The standard error is that of the mean over walks (at order 2 over blocks) by Student's t; it is None after a single
    one, and at order 1 below 8 coalitions per player. A player whose contributions are all equal gets the mean variance
    of the other players, since a few walks do not show that the contributions never differ.

    Raises:
        GameError: the budget is below one walk (at order 2, one block).
    """
    require_scope("permutation", rules)
    return (_play_pairs if rules.order == 2 else _play_players)(game, rules)


def _play_players(game: AttributionGame, rules: Rules) -> Estimate:
    n, endogenous = game.n_players, rules.endogenous
    rng = np.random.default_rng(rules.seed)
    bounds = np.array([[False] * n, [True] * n])
    fixed = np.concatenate([bounds, np.eye(n, dtype=bool)]) if endogenous else bounds
    sizes = np.arange(2 if endogenous else 1, n)
    budget = settle_budget("permutation", rules.budget, min(len(fixed) + len(sizes), 1 << n), n)
    if budget >= 1 << n:
        return enumerate_all(game, rules)
    ranks = _affordable_walks(rng, n, sizes, budget - len(fixed))
    n_walks = len(ranks)
    prefixes = ranks[:, None, :] < sizes[:, None]
    values = _distinct(game, np.concatenate([fixed, prefixes.reshape(n_walks * len(sizes), n)]), rules)
    empty, full, singles = values[0], values[1], values[2 : len(fixed)]

    chain = np.empty((n_walks, n + 1, values.shape[1]))
    chain[:, 0] = empty
    if endogenous:
        chain[:, 1] = singles[np.argmin(ranks, axis=1)]
    chain[:, sizes] = values[len(fixed) :].reshape(n_walks, len(sizes), values.shape[1])
    chain[:, n] = full
    marginals = _by_player(ranks, chain).swapaxes(1, 2)
    own = np.diag(singles)
    if endogenous and n > 1:
        marginals = _endogenous(marginals, ranks, full - own)
    phi, error = marginals.mean(0), None
    note = too_few_for_an_error(n, budget)
    if not note:
        variance = marginals.var(0, ddof=1)
        np.copyto(variance, variance.mean(1, keepdims=True), where=variance < TINY * variance.max(1, keepdims=True))
        error = t_factor(n_walks) * np.sqrt(variance / n_walks)
    if endogenous:
        np.fill_diagonal(phi, own)
        if error is not None:
            np.fill_diagonal(error, 0.0)
    return Estimate(phi, full, empty, error, note)


def _affordable_walks(
    rng: np.random.Generator, n: int, sizes: Int[np.ndarray, " s"], budget: int
) -> Int[np.ndarray, "w n"]:
    """The place of each player in as many walks as have no more than ``budget`` distinct prefixes of these sizes.

    Walks share prefixes, which cost nothing again; four times as many as could be had without that are the most.
    """
    ranks = rng.permuted(np.tile(np.arange(n), (4 * (budget // len(sizes)), 1)), axis=1)
    prefixes = ranks[:, None, :] < sizes[:, None]
    _, first = np.unique(np.packbits(prefixes, axis=2).reshape(-1, -(-n // 8)), axis=0, return_index=True)
    n_new = np.bincount(first // len(sizes), minlength=len(ranks))
    return ranks[: np.searchsorted(n_new.cumsum(), budget, side="right")]


def _distinct(game: AttributionGame, coalitions: Coalitions, rules: Rules) -> Values:
    """Values of coalitions that may be repeated, each of them evaluated once."""
    distinct, row = np.unique(coalitions, axis=0, return_inverse=True)
    return game(distinct, rules.progress)[row.ravel()]


def _by_player(ranks: Int[np.ndarray, "w n"], chain: Float[np.ndarray, "w n+1 t"]) -> Float[np.ndarray, "w n t"]:
    """The marginal contribution of each player, from the values along each walk."""
    return np.take_along_axis(np.diff(chain, axis=1), ranks[:, :, None], axis=1)


def _endogenous(
    marginals: Float[np.ndarray, "w n n"], ranks: Int[np.ndarray, "w n"], total: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "w n n"]:
    """Weigh the marginal of j in the walk by n/q for the targets before j, then make each row sum to ``total``."""
    n = ranks.shape[1]
    after = ranks[:, :, None] < ranks[:, None, :]
    rows = marginals * after * (n / np.maximum(ranks, 1))[:, None, :]
    lack = (total - rows.sum(2)) / (n - 1)
    return rows + lack[:, :, None] * ~np.eye(n, dtype=bool)


def _play_pairs(game: AttributionGame, rules: Rules) -> Estimate:
    n = game.n_players
    rng = np.random.default_rng(rules.seed)
    block = _zigzags(n)
    steps = np.arange(n - 1)
    cost = 2 * len(block) * len(steps)
    budget = settle_budget("permutation", rules.budget, min(2 + cost, 1 << n), n)
    if budget >= 1 << n:
        return enumerate_all(game, rules)
    n_blocks = max(1, (budget - 2) // max(cost, 1))
    walks = np.concatenate([rng.permutation(n)[block] for _ in range(n_blocks)])
    ranks = np.argsort(walks, axis=1)
    # of each step q: the prefix with q + 1 players, and the one with q players and the next but one
    prefixes = ranks[:, None, :] <= steps[:, None]
    detours = (ranks[:, None, :] < steps[:, None]) | (ranks[:, None, :] == steps[:, None] + 1)
    asked = np.stack([prefixes, detours]).reshape(2 * len(walks) * len(steps), n)
    values = _distinct(game, np.concatenate([[[False] * n, [True] * n], asked]), rules)
    n_targets = values.shape[1]
    inner, aside = values[2:].reshape(2, len(walks), len(steps), n_targets)

    chain = np.empty((len(walks), n + 1, n_targets))
    chain[:, 0], chain[:, 1:n], chain[:, n] = values[0], inner, values[1]
    derivative = chain[:, 2:] - chain[:, 1:-1] - aside + chain[:, :-2]
    samples = np.zeros((n_blocks, n, n, n_targets))
    which = np.repeat(np.arange(n_blocks), len(block))[:, None]
    np.add.at(samples, (which, walks[:, :-1], walks[:, 1:]), derivative)
    samples = (samples + samples.swapaxes(1, 2)) * (n / (2 * len(block)))
    samples[:, np.arange(n), np.arange(n)] = _by_player(ranks, chain).reshape(n_blocks, -1, n, n_targets).mean(1)
    samples = np.moveaxis(samples, -1, 1)
    if rules.index == "ksv":
        samples = ksv_of_sii(samples)
    if n_blocks == 1:
        return Estimate(samples.mean(0), values[1], values[0], None, "a standard error needs two blocks of walks")
    error = t_factor(n_blocks) * samples.std(0, ddof=1) / np.sqrt(n_blocks)
    return Estimate(samples.mean(0), values[1], values[0], error)


def _zigzags(n: int) -> Int[np.ndarray, "w n"]:
    """Walks 0, 1, -1, 2, -2, ... mod n and rotations of it: every pair is neighbours in one walk (two for odd n).

    The decomposition of the complete graph into paths (Walecki); n even takes n/2 rotations, n odd all n.
    """
    step = np.arange(n)
    zigzag = np.where(step % 2, (step + 1) // 2, -(step // 2))
    rotations = np.arange(n // 2 if n % 2 == 0 else n)
    return (zigzag + rotations[:, None]) % n
