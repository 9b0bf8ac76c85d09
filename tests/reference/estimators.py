"""Slow twins of the estimators' parts: each from its equation, one coalition and one player at a time."""

from __future__ import annotations

import numpy as np


def kernel(left, right, widths, offset: float) -> float:
    """prod_i (1 + rho_i u_i u'_i) with u = (z + b)/sqrt(1 + b^2)."""
    product = 1.0
    for z, other, width in zip(left, right, widths, strict=True):
        product *= 1 + width * (z + offset) * (other + offset) / (1 + offset**2)
    return product


def left_out(gram, values, noise: float) -> np.ndarray:
    """What is left of each value by the Gaussian process that is fitted to the other rows."""
    residuals = []
    for row in range(len(values)):
        others = np.delete(np.arange(len(values)), row)
        inner = gram[np.ix_(others, others)] + noise * np.eye(len(others))
        residuals.append(values[row] - gram[row, others] @ np.linalg.solve(inner, values[others]))
    return np.array(residuals)


def constrained_least_squares(members, values, weights, start: float, total: float) -> np.ndarray:
    """The additive game of least weighted squared error whose values add up to the total, by a Lagrange multiplier."""
    p = members.shape[1]
    normal, right = np.zeros((p + 1, p + 1)), np.zeros(p + 1)
    for row, value, weight in zip(members.astype(float), values, weights, strict=True):
        normal[:p, :p] += weight * np.outer(row, row)
        right[:p] += weight * (value - start) * row
    normal[p, :p] = normal[:p, p] = 1
    right[p] = total
    return np.linalg.solve(normal, right)[:p]


def sandwich(influence, residuals, inclusion) -> np.ndarray:
    """Standard error of each player and target: the root of the sum over rows of (influence residual)^2 (1 - pi)."""
    error = np.zeros((residuals.shape[1], influence.shape[1]))
    for row, chance in enumerate(inclusion):
        for target in range(residuals.shape[1]):
            for player in range(influence.shape[1]):
                error[target, player] += (1 - chance) * (influence[row, player] * residuals[row, target]) ** 2
    return np.sqrt(error)


def imbalance(coalitions, weights) -> float:
    """Squared Frobenius norm of the off-diagonal part of sum_r w_r z_r z_r^T less its mean."""
    n = coalitions.shape[1]
    moments = []
    for i in range(n):
        for j in range(n):
            if i != j:
                signs = [(1 if row[i] else -1) * (1 if row[j] else -1) for row in coalitions]
                moments.append(sum(weight * sign for weight, sign in zip(weights, signs, strict=True)))
    return float(((np.array(moments) - np.mean(moments)) ** 2).sum())
