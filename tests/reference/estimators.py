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


def left_out_by_ridge(x, values, weights, penalty) -> np.ndarray:
    """What is left of each value by the regression of least sum of w (y - x b)^2 + b^T penalty b on the other rows."""
    residuals = []
    for row in range(len(values)):
        others = np.delete(np.arange(len(values)), row)
        normal = penalty + sum(weights[each] * np.outer(x[each], x[each]) for each in others)
        right = sum(weights[each] * values[each] * x[each] for each in others)
        residuals.append(values[row] - x[row] @ np.linalg.solve(normal, right))
    return np.array(residuals)


def log_evidence(gram, values, noise: float) -> float:
    """Log density of the values, at the scale c of the covariance c (K + s I) at which it is largest; by Cholesky."""
    factor = np.linalg.cholesky(gram + noise * np.eye(len(values)))
    whitened = np.linalg.solve(factor, values)
    scale = whitened @ whitened / len(values)
    log_determinant = 2 * np.log(np.diag(factor)).sum() + len(values) * np.log(scale)
    return -(len(values) * (np.log(2 * np.pi) + 1) + log_determinant) / 2


def posterior_mean_by_evidence(grams, values, noises) -> list[np.ndarray]:
    """The coefficients of each gram matrix in the mean over all of them and all noises, by evidence."""
    logs = np.array(
        [[log_evidence(gram, values, noise * np.mean(np.diag(gram))) for noise in noises] for gram in grams]
    )
    shares = np.exp(logs - logs.max())
    shares /= shares.sum()
    found = []
    for gram, of_gram in zip(grams, shares, strict=True):
        fits = [
            np.linalg.solve(gram + noise * np.mean(np.diag(gram)) * np.eye(len(values)), values) for noise in noises
        ]
        found.append(sum(share * fit for share, fit in zip(of_gram, fits, strict=True)))
    return found


def stacked(problem, target, surrogates, penalties, weights=None) -> tuple[float, int, np.ndarray]:
    """Least loss over penalties and weights a >= 0 of sum 1; that penalty's number, and the weights.

    The loss is the sum over rows of u (r_0 - sum_s a_s r_s)^2 / sum of u y^2, where r_0 is what a regression without
    the row leaves of the value y beyond an equal split, r_s what it leaves of surrogate s, and u = w^2 s(p-s).
    ``surrogates`` are left out values; given ``weights`` are kept.
    """
    x, ridges, importance, y = _regression(problem, target, penalties)
    tried = []
    for number, ridge in enumerate(ridges):
        columns = [left_out_by_ridge(x, each, problem.weights, ridge) for each in (y, *surrogates)]
        residuals = np.stack(columns, axis=1) * np.sqrt(importance / (importance @ y**2))[:, None]
        if weights is None:
            loss, found = _least_squares_on_the_simplex(residuals[:, 0], residuals[:, 1:])
        else:
            loss, found = ((residuals[:, 0] - residuals[:, 1:] @ weights) ** 2).sum(), weights
        tried.append((loss, number, found))
    return min(tried, key=lambda each: each[0])


def regressed(problem, target, penalties) -> np.ndarray:
    """Each value as the regression of least leave-one-out loss says without it."""
    x, ridges, importance, y = _regression(problem, target, penalties)
    left = [left_out_by_ridge(x, y, problem.weights, ridge) for ridge in ridges]
    return y - min(left, key=lambda each: importance @ each**2)


def _regression(problem, target, penalties) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    """Columns of the regression, the matrix of each penalty, u of each row, and y."""
    p = problem.members.shape[1]
    size = problem.members.sum(1)
    x = np.stack([*(problem.members - size[:, None] / p).T, *_powers(2 * size / p - 1, problem.odd)], axis=1)
    scale = np.mean([problem.weights @ x[:, player] ** 2 for player in range(p)])
    ridges = [np.zeros((x.shape[1], x.shape[1])) for _ in penalties]
    for ridge, penalty in zip(ridges, penalties, strict=True):
        ridge[:p, :p] = scale * (penalty * np.eye(p) + 1 / p)
    y = problem.values[:, target] - problem.start[target] - problem.total[target] * size / p
    return x, ridges, problem.weights**2 * size * (p - size), y


def _powers(place, odd: bool) -> list[np.ndarray]:
    return [place**3 - place] if odd else [place**2 - 1, place**3 - place]


def _least_squares_on_the_simplex(y, columns) -> tuple[float, np.ndarray]:
    """Over each set of columns that may be used: the best solution of sum 1, if it has no negative weight."""
    n = columns.shape[1]
    best = (np.inf, np.zeros(n))
    for chosen in range(1, 1 << n):
        used = [column for column in range(n) if chosen >> column & 1]
        a, ones = columns[:, used], np.ones((len(used), 1))
        lagrange = np.block([[a.T @ a, ones], [ones.T, np.zeros((1, 1))]])
        found = np.linalg.lstsq(lagrange, np.append(a.T @ y, 1.0), rcond=None)[0][: len(used)]
        if found.min() >= -1e-12:
            weights = np.zeros(n)
            weights[used] = found
            best = min(best, (float(((y - a @ found) ** 2).sum()), weights), key=lambda each: each[0])
    return best
