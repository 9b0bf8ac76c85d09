"""Meta-attributions by weighted regression (KernelSHAP)."""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from metagame.estimators.coalition_sample import CoalitionSample, draw_coalition_sample, least_budget
from metagame.estimators.estimate import Estimate, Rules, require_scope, settle_budget, too_few_for_an_error
from metagame.estimators.exact import enumerate_all
from metagame.estimators.least_squares import least_squares
from metagame.estimators.problem import problems
from metagame.estimators.shapiq_bridge import run_approximator
from metagame.extras import needed_by
from metagame.games import AttributionGame, Values

if TYPE_CHECKING:  # importing it takes seconds
    from shapiq.approximator import KernelSHAPIQ, RegressionFSII


def regression(game: AttributionGame, rules: Rules) -> Estimate:
    """Fit every target by least squares with Shapley kernel weights, constrained to be efficient.

    This is KernelSHAP (Lundberg and Lee, 2017) on one sample of coalitions for all targets
    (:func:`metagame.estimators.coalition_sample.draw_coalition_sample`). At order 2, shapiq's KernelSHAP-IQ computes
    SII and k-SV; from order 2 on, shapiq's regression computes FSII.

    The standard error is the sandwich estimate over what was drawn (a pair of complements counts as one draw), with
    leave-one-out residuals (HC3; MacKinnon and White, 1985). It is zero if everything was enumerated, and None from
    order 2 on and below 8 coalitions per player.

    Raises:
        GameError: the budget is below 2n + 2 (from order 2 on, below two coalitions per unknown).
        UserError: the order is above 1, and shapiq is not installed.
    """
    n = game.n_players
    require_scope("regression", rules)
    least = least_pairwise_budget(n, rules.order) if rules.order > 1 else least_budget(n)
    budget = settle_budget("regression", rules.budget, least, n)
    if budget >= 1 << n:
        return enumerate_all(game, rules)
    if rules.order > 1:
        approximator = kernel_shap_iq(n, rules.seed, rules.order, rules.index or "sii")
        return run_approximator(game, approximator, budget, rules.progress)
    sample = draw_coalition_sample(n, budget, endogenous=rules.endogenous, seed=rules.seed)
    values = game(sample.coalitions, rules.progress)
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


def fit(sample: CoalitionSample, values: Values) -> tuple[Float[np.ndarray, "t n"], Float[np.ndarray, "t n"]]:
    """Shapley values of all targets, with standard errors; phi_i({i}) on the diagonal of an endogenous game."""
    n = sample.coalitions.shape[1]
    phi, error = np.zeros((values.shape[1], n)), np.zeros((values.shape[1], n))
    for problem in problems(sample, values):
        where = np.ix_(problem.targets, problem.players)
        phi[where], error[where] = least_squares(problem)
        if not problem.odd:
            phi[problem.targets, problem.targets] = problem.start
    return phi, error
