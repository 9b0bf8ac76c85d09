"""Conditional imputation: absent features are drawn from their distribution given the values of the present ones."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from metagame.errors import UserError
from metagame.games import as_float64


def conditional_weights(
    x: ArrayLike, background: ArrayLike, bandwidth: float
) -> Callable[[Bool[np.ndarray, "k n"]], Float[np.ndarray, "k m"]]:
    """The weight of each row of a background set for imputing the absent features, given the present ones.

    This is the empirical conditional distribution (Aas, Jullum and Loland, 2021): the weight of row r is proportional
    to exp(-d_r(S)^2 / (2 s bandwidth^2)), where d_r(S) is the Mahalanobis distance of the row from x over the s
    features in S, with their covariance in the background. If no feature is present, all rows have the same weight.

    Args:
        x: the numeric features of one input, ``(n,)``.
        background: at least two rows, ``(m, n)``.
        bandwidth: in standard deviations, above 0. With a small bandwidth only a few rows count; with a large one all
            rows count alike, which is marginal imputation.

    Returns:
        A function that maps coalitions to weights that sum to 1 in each row.

    Raises:
        UserError: shapes do not match each other, a value is not a finite number, or the bandwidth is not positive.
    """
    point, rows = np.ravel(as_float64(x, "x")), as_float64(background, "background")
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1:] != point.shape:
        raise UserError(
            f"x has {len(point)} features, but background has shape {rows.shape}: give at least two rows, with a"
            " column for each feature."
        )
    if not (np.isfinite(point).all() and np.isfinite(rows).all()):
        raise UserError("x or background has values that are NaN or infinite: impute or drop them first.")
    if not isinstance(bandwidth, Real) or not 0 < bandwidth < np.inf:
        raise UserError(f"bandwidth={bandwidth!r} must be a positive number of standard deviations.")
    # the distance is the same in all units, but in those of one standard deviation the inverse is found exactly
    scale = rows.std(0)
    scale[scale == 0] = 1
    differences = (rows - point) / scale
    covariance = np.atleast_2d(np.cov(rows / scale, rowvar=False))

    def weights(coalitions: Bool[np.ndarray, "k n"]) -> Float[np.ndarray, "k m"]:
        return np.stack(
            [_weights(differences, covariance, np.flatnonzero(present), bandwidth) for present in coalitions]
        )

    return weights


def _weights(
    differences: Float[np.ndarray, "m n"], covariance: Float[np.ndarray, "n n"], present: np.ndarray, bandwidth: float
) -> Float[np.ndarray, " m"]:
    if not len(present):
        return np.full(len(differences), 1 / len(differences))
    near = differences[:, present]
    # features that depend on each other linearly, or are constant, have no inverse
    inverse = np.linalg.pinv(covariance[np.ix_(present, present)], hermitian=True)
    distances = np.einsum("ma,ab,mb->m", near, inverse, near) / (2 * len(present) * bandwidth**2)
    weights = np.exp(distances.min() - distances)  # of the nearest row 1, however far it is
    return weights / weights.sum()
