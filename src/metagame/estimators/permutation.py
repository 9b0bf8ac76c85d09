"""Meta-attributions by sampling permutations."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from metagame.estimators.estimate import Estimate, require_sii, settle_budget
from metagame.estimators.replay import replay
from metagame.games import AttributionGame, Progress


def permutation(
    game: AttributionGame,
    *,
    endogenous: bool,
    order: int,
    index: str,
    budget: int | None,
    seed: int,
    progress: Progress | None = None,
) -> Estimate:
    """Walk through random permutations of the players; each walk gives a marginal contribution of every player.

    Exogenous: the mean marginal contribution (Castro et al., 2009). Endogenous: a walk serves every target i through
    the players j that come after it. With j at position q (from 0), the other predecessors of j are a uniform
    (q-1)-subset, met with probability q/(n(n-1)) where Definition 2 wants 1/(n-1): weight n/q, unbiased. What a walk's
    row then lacks of phi_i(N) - phi_i({i}) is spread evenly over the row (a control variate), so rows are efficient.
    Order 2: shapiq's permutation sampling of SII.

    The standard error is that of the mean over walks (NaN after a single walk, none at order 2).

    Raises:
        GameError: ``budget`` is below one walk.
    """
    n = game.n_players
    if order == 2:
        from shapiq.approximator import PermutationSamplingSII  # here, since importing it takes seconds

        require_sii("permutation", index)
        approximator = PermutationSamplingSII(n, max_order=2, index="SII", random_state=seed)
        budget = settle_budget("permutation", budget, approximator.iteration_cost + 2, n)
        return replay(game, approximator, budget - 1, progress)
    fixed = [np.zeros((1, n), bool), np.ones((1, n), bool), *([np.eye(n, dtype=bool)] if endogenous else [])]
    fixed = np.concatenate(fixed)
    sizes = np.arange(2 if endogenous else 1, n)
    budget = settle_budget("permutation", budget, len(fixed) + len(sizes), n)
    n_walks = (budget - len(fixed)) // len(sizes) if len(sizes) else 1
    ranks = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (n_walks, 1)), axis=1)
    prefixes = ranks[:, None, :] < sizes[:, None]
    values = game(np.concatenate([fixed, prefixes.reshape(-1, n)]), progress)
    empty, full, singles = values[0], values[1], values[2 : len(fixed)]

    chain = np.empty((n_walks, n + 1, values.shape[1]))
    chain[:, 0], chain[:, n] = empty, full
    chain[:, sizes] = values[len(fixed) :].reshape(n_walks, len(sizes), -1)
    if endogenous:
        chain[:, 1] = singles[np.argmin(ranks, axis=1)] if n > 1 else full
    marginals = np.take_along_axis(np.diff(chain, axis=1), ranks[:, :, None], axis=1).swapaxes(1, 2)
    own = np.diag(singles) if endogenous else None
    if endogenous and n > 1:
        marginals = _endogenous(marginals, ranks, full - own)
    phi = marginals.mean(0)
    error = marginals.std(0, ddof=1) / np.sqrt(n_walks) if n_walks > 1 else np.full_like(phi, np.nan)
    if endogenous:
        np.fill_diagonal(phi, own)
        np.fill_diagonal(error, 0.0)
    return Estimate(phi, full, empty, error)


def _endogenous(
    marginals: Float[np.ndarray, "w n n"], ranks: Int[np.ndarray, "w n"], total: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "w n n"]:
    """Weigh the marginal of j in the walk by n/q for the targets before j, then make each row sum to ``total``."""
    n = ranks.shape[1]
    after = ranks[:, :, None] < ranks[:, None, :]
    rows = marginals * after * (n / np.maximum(ranks, 1))[:, None, :]
    lack = (total - rows.sum(2)) / (n - 1)
    return rows + lack[:, :, None] * ~np.eye(n, dtype=bool)
