"""Meta-attributions by weighted regression (KernelSHAP)."""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from metagame.estimators.coalition_sample import CoalitionSample, draw_coalition_sample, least_budget
from metagame.estimators.estimate import Estimate, Rules, require_shapley, settle_budget, too_few_for_an_error
from metagame.estimators.exact import enumerate_all
from metagame.estimators.shapiq_bridge import run_approximator
from metagame.extras import needed_by
from metagame.games import AttributionGame, Values

if TYPE_CHECKING:  # importing it takes seconds
    from shapiq.approximator import KernelSHAPIQ, RegressionFSII


LEAST_LEFT = 0.05
"""Of a residual, of a coalition that determines its own fit."""


def regression(game: AttributionGame, rules: Rules) -> Estimate:
    """Fit every target by least squares with Shapley kernel weights; efficiency is a constraint.

    KernelSHAP (Lundberg and Lee, 2017), on one sample of coalitions for all targets. shapiq's sampler draws the sample;
    shapiq's own KernelSHAP has one target, shares nothing between endogenous subgames and reports no error. Order 2:
    shapiq's KernelSHAP-IQ for SII and k-SV; from order 2 on its regression for FSII.

    The standard error is the sandwich estimate over what was drawn (pairs of complements count as one draw), with the
    residuals that leaving each out would give (HC3; MacKinnon and White, 1985); zero where everything was enumerated,
    None from order 2 on and below 8 coalitions for each player.

    Raises:
        GameError: the budget is below the coalitions of size 0, 1, n-1 and n (from order 2 on: below two per unknown).
        UserError: shapiq is not installed.
    """
    n = game.n_players
    # shapiq's KernelSHAP-IQ of triples is far off even with nine tenths of all coalitions
    require_shapley("regression", rules, pairs=("sii", "ksv", "fsii"), max_order=n if rules.index == "fsii" else 2)
    least = least_pairwise_budget(n, rules.order) if rules.order > 1 else least_budget(n)
    budget = settle_budget("regression", rules.budget, least, n)
    if budget >= 1 << n:
        return enumerate_all(game, rules)
    if rules.order > 1:
        approximator = kernel_shap_iq(n, rules.seed, rules.order, rules.index or "sii")
        return run_approximator(game, approximator, budget, rules.progress)
    sample = draw_coalition_sample(n, budget, endogenous=rules.endogenous, seed=rules.seed)
    values = game(sample.coalitions, rules.progress)
    fit = fit_endogenous if rules.endogenous else fit_exogenous
    phi, error = fit(sample, values)
    note = too_few_for_an_error(n, budget)
    return Estimate(phi, values[1], values[0], None if note else error, note)


def kernel_shap_iq(n: int, seed: int, order: int = 2, index: str = "sii") -> KernelSHAPIQ | RegressionFSII:
    """Shapiq's regression for an index of this order: ``sii``, ``ksv`` or ``fsii``."""
    with needed_by(f"order={order} of estimator='regression' or 'trees'"):
        from shapiq.approximator import KernelSHAPIQ, RegressionFSII

    if index == "fsii":
        return RegressionFSII(n, max_order=order, pairing_trick=True, random_state=seed)
    name = "SII" if index == "sii" else "k-SII"
    return KernelSHAPIQ(n, max_order=order, index=name, pairing_trick=True, random_state=seed)


def least_pairwise_budget(n: int, order: int = 2) -> int:
    """Two coalitions for each unknown of a regression of this order, or all of them."""
    return min(2 * sum(comb(n, size) for size in range(order + 1)), 1 << n)


def fit_exogenous(sample: CoalitionSample, values: Values) -> tuple[Float[np.ndarray, "t n"], Float[np.ndarray, "t n"]]:
    """Shapley values of all targets over all n players, with standard errors; one factorisation serves the targets."""
    total = values[1] - values[0]
    phi, error = _constrained_fit(sample, sample.coalitions, values - values[0], total)
    return phi.T, error.T


def fit_endogenous(
    sample: CoalitionSample, values: Values
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """Definition 2 for every target from the shared sample: rows that contain i, as coalitions of the other players."""
    n = values.shape[1]
    phi, error = np.zeros((n, n)), np.zeros((n, n))
    for target in range(n):
        seen = np.flatnonzero(sample.coalitions[:, target])
        others = np.arange(n) != target
        nu = values[seen, target]
        size = sample.coalitions[seen].sum(1)
        own = phi[target, target] = nu[size == 1][0]
        if n == 1:
            continue
        sub = sample.restricted(seen, others)
        row, row_error = _constrained_fit(sub, sub.coalitions, (nu - own)[:, None], nu[size == n] - own)
        phi[target, others], error[target, others] = row[:, 0], row_error[:, 0]
    return phi, error


def kernel_weights(sample: CoalitionSample) -> Float[np.ndarray, " k"]:
    """Shapley kernel of each coalition times what it counts in the sample; 0 for the empty and the grand one."""
    from scipy.special import comb  # here, since importing it takes as long as all of metagame

    m = sample.coalitions.shape[1]
    size = sample.coalitions.sum(1)
    inner = (size > 0) & (size < m)
    kernel = np.zeros(len(size))
    kernel[inner] = (m - 1) / (comb(m, size[inner]) * size[inner] * (m - size[inner]))
    return kernel * sample.weights


def _constrained_fit(
    sample: CoalitionSample, present: np.ndarray, nu: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares ``(m, t)`` with coefficients summing to ``total``; the last one is eliminated."""
    m = present.shape[1]
    if m == 1:
        return total[None, :].copy(), np.zeros((1, len(total)))
    weights = kernel_weights(sample)
    inner = weights > 0
    weights, draws = weights[inner], sample.draws[inner]
    z = present[inner].astype(np.float64)
    x = z[:, :-1] - z[:, -1:]
    y = nu[inner] - z[:, -1:] * total
    inverse = np.linalg.inv(x.T @ (weights[:, None] * x))
    beta = inverse @ (x.T @ (weights[:, None] * y))
    influence = np.concatenate([x @ inverse, -(x @ inverse).sum(1, keepdims=True)], axis=1)
    leverage = weights * np.einsum("ki,ij,kj->k", x, inverse, x)
    score = (weights / np.maximum(1 - leverage, LEAST_LEFT))[:, None] * (y - x @ beta)
    error = _sandwich(influence, score, z, draws, sample.paired)
    return np.concatenate([beta, (total - beta.sum(0))[None]]), error


def _sandwich(
    influence: Float[np.ndarray, "k m"], score: Float[np.ndarray, "k t"], z: np.ndarray, draws: np.ndarray, paired: bool
) -> Float[np.ndarray, "m t"]:
    """Standard error of influence.T @ score when a row stands for that many draws; rows not drawn add none."""
    drawn = draws > 0
    influence, score, z, draws = influence[drawn], score[drawn], z[drawn], draws[drawn]
    code = np.where(z[:, :1] > 0, z, 1 - z) if paired else z
    _, group = np.unique(code, axis=0, return_inverse=True)
    n_groups = group.max(initial=-1) + 1
    counts = np.ones(n_groups)
    np.maximum.at(counts, group, draws)
    error = np.zeros((influence.shape[1], score.shape[1]))
    for player in range(influence.shape[1]):
        grouped = np.zeros((n_groups, score.shape[1]))
        np.add.at(grouped, group, influence[:, player, None] * score)
        error[player] = np.sqrt((grouped**2 / counts[:, None]).sum(0))
    return error
