"""Weighted least squares for Shapley values, with leave-one-out residuals and sandwich standard errors."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from metagame.estimators.problem import Problem

LEAST_LEFT = 0.05
"""Of a residual, of a coalition that determines its own fit."""
TARGETS_AT_ONCE = 256
"""So that arrays of all coalitions and targets are not made several times."""


def least_squares(problem: Problem) -> tuple[Float[np.ndarray, "t p"], Float[np.ndarray, "t p"]]:
    """The additive game that is closest under the kernel weights and right on the empty and the grand coalition.

    KernelSHAP (Lundberg and Lee, 2017). Its values are an equal split of the total, plus the regression of what is
    beyond on 1_S - |S|/p. Standard errors by :func:`sandwich`.
    """
    n_targets, p = len(problem.total), len(problem.players)
    phi, error = np.repeat(problem.total[:, None] / p, p, axis=1), np.zeros((n_targets, p))
    if p == 1:
        return phi, error
    x = problem.contrasts
    weighted = problem.weights[:, None] * x
    influence = weighted @ np.linalg.inv(x.T @ weighted + 1 / p)
    left = np.maximum(1 - np.einsum("kp,kp->k", influence, x), LEAST_LEFT)
    for start in range(0, n_targets, TARGETS_AT_ONCE):
        part = slice(start, start + TARGETS_AT_ONCE)
        y = problem.beyond(part)
        beta = y.T @ influence
        phi[part] += beta
        error[part] = sandwich(influence, (y - x @ beta.T) / left[:, None], problem.inclusion)
    return phi, error


def sandwich(
    influence: Float[np.ndarray, "m p"], residuals: Float[np.ndarray, "m t"], inclusion: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "t p"]:
    """Standard errors of residuals.T @ influence over the coalitions that were left to chance, by one product.

    With the residuals that leaving each row out would give it is HC3 (MacKinnon and White, 1985); a row that was
    included with probability pi counts 1 - pi (the correction for a finite population), in full sizes nothing.
    """
    return np.sqrt(((1 - inclusion)[:, None] * residuals**2).T @ influence**2)
