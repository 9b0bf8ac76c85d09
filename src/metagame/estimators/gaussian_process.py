"""Gaussian processes over coalitions, with their Shapley values in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Kernel:
    """prod_i (1 + rho_i u_i u'_i) with u = (z + b)/sqrt(1 + b^2) and z = 1 for members, -1 for others.

    Prior coefficients of the products of u over T have variance prod of rho over T. They are Fourier coefficients for
    b = 0, and coefficients of "all of T present" for b = 1, "all of T absent" for b = -1.

    Attributes:
        widths: rho, ``(p,)``, positive.
        offset: b.
    """

    widths: Float[np.ndarray, " p"]
    offset: float

    def __call__(self, left: Float[np.ndarray, "m p"], right: Float[np.ndarray, "k p"]) -> Float[np.ndarray, "m k"]:
        """Of coalitions z and z'."""
        both, one, none = np.log1p(self._products())
        plain, side, cross = (both + 2 * one + none) / 4, (both - none) / 4, (both - 2 * one + none) / 4
        exponent = (left * cross) @ right.T
        exponent += (left @ side)[:, None] + (right @ side)[None] + plain.sum()
        return np.exp(exponent)

    def _products(self) -> Float[np.ndarray, "3 p"]:
        """rho_i u_i u'_i where i is in both coalitions, in one, in none."""
        up, down = (self.offset + 1), (self.offset - 1)
        return np.array([up * up, up * down, down * down])[:, None] * self.widths / (1 + self.offset**2)

    def shapley(self, z: Float[np.ndarray, "m p"]) -> Float[np.ndarray, "m p"]:
        """Shapley values of the games kernel(S, .), a row for each S.

        The derivative of the multilinear extension at inclusion probability (1 + t)/2 is a product over the other
        players, of degree p - 1 in t; its integral by ceil(p/2) Gauss-Legendre nodes is exact.
        """
        p = z.shape[1]
        nodes, node_weights = np.polynomial.legendre.leggauss((p + 1) // 2)
        slope = self.widths * (z + self.offset) / (1 + self.offset**2)
        phi = np.zeros_like(z)
        for t, weight in zip(nodes, node_weights, strict=True):
            factors = 1 + slope * (t + self.offset)
            phi += weight * factors.prod(1, keepdims=True) / factors
        return phi * slope

    def effects(
        self, rows: Float[np.ndarray, "m p"], coefficients: Float[np.ndarray, " m"], at: Float[np.ndarray, "k p"]
    ) -> Float[np.ndarray, "k p"]:
        """What sum_r coefficient_r kernel(r, .) changes by at the coalitions ``at`` as each player enters or leaves."""
        gram = self(at, rows)
        both, one, none = 1 + self._products()
        # factor of the player after its change over that before: z' = 1 and z = 1, z' = -1 and z = 1, ...
        table = np.array([[one / both, none / one], [both / one, one / none]])
        plain = gram @ coefficients
        signed = gram @ (rows * coefficients[:, None])
        with_player, without = (plain[:, None] + signed) / 2, (plain[:, None] - signed) / 2
        present = np.where(at > 0, table[0, 0], table[1, 0])
        absent = np.where(at > 0, table[0, 1], table[1, 1])
        return (present - 1) * with_player + (absent - 1) * without


@dataclass(frozen=True)
class OddKernel:
    """Of the odd part (f(S) - f(N - S))/2 of a process, whose Shapley values are those of f."""

    whole: Kernel

    def __call__(self, left: Float[np.ndarray, "m p"], right: Float[np.ndarray, "k p"]) -> Float[np.ndarray, "m k"]:
        kernel = self.whole
        if kernel.offset == 0:  # complements of both change nothing
            return (kernel(left, right) - kernel(left, -right)) / 2
        same, opposite = kernel(left, right) + kernel(-left, -right), kernel(left, -right) + kernel(-left, right)
        return (same - opposite) / 4

    def shapley(self, z: Float[np.ndarray, "m p"]) -> Float[np.ndarray, "m p"]:
        return (self.whole.shapley(z) - self.whole.shapley(-z)) / 2

    def effects(
        self, rows: Float[np.ndarray, "m p"], coefficients: Float[np.ndarray, " m"], at: Float[np.ndarray, "k p"]
    ) -> Float[np.ndarray, "k p"]:
        """What players change as a rule, over a coalition and its complement."""
        rows, coefficients = np.concatenate([rows, -rows]), np.concatenate([coefficients, -coefficients]) / 2
        return (self.whole.effects(rows, coefficients, at) - self.whole.effects(rows, coefficients, -at)) / 2


class Process:
    """A Gaussian process on m coalitions, with each noise of a grid: one decomposition serves all games.

    ``noises`` are variances relative to that of a value.
    """

    def __init__(self, gram: Float[np.ndarray, "m m"], noises: Sequence[float]) -> None:
        eigenvalues, self._vectors = np.linalg.eigh(gram)
        self.noises = noises
        added = gram.diagonal().mean() * np.array(noises)
        self._variances = np.maximum(eigenvalues, 0) + added[:, None]
        self._diagonals = self._vectors**2 @ (1 / self._variances).T

    def coefficients(self, values: Float[np.ndarray, "m t"], noise: int) -> Float[np.ndarray, "m t"]:
        """The posterior mean of each game is the sum of coefficient * kernel(S, .) over the rows S."""
        return self._vectors @ ((self._vectors.T @ values) / self._variances[noise, :, None])

    def left_out(self, values: Float[np.ndarray, "m t"], noise: int) -> Float[np.ndarray, "m t"]:
        """What is left of each value when it is predicted from the others.

        With (K + s I)^-1 = P it is (P y)_r / P_rr for row r (Rasmussen and Williams, 2006, eq. 5.12).
        """
        return self.coefficients(values, noise) / self._diagonals[:, [noise]]

    def losses(
        self, values: Float[np.ndarray, "m t"], weights: Float[np.ndarray, " m"]
    ) -> Float[np.ndarray, "noises t"]:
        """With each noise the weighted sum of squares of :meth:`left_out`."""
        return np.stack([weights @ self.left_out(values, noise) ** 2 for noise in range(len(self.noises))])

    def log_evidence(self, values: Float[np.ndarray, "m t"]) -> Float[np.ndarray, "noises t"]:
        """With each noise the log density of the values, up to a constant.

        At the scale of kernel and noise at which it is largest (Rasmussen and Williams, 2006, eq. 2.30).
        """
        squares = (1 / self._variances) @ (self._vectors.T @ values) ** 2
        log_scale = np.log(np.maximum(squares, np.finfo(float).tiny))
        return -(len(values) * log_scale + np.log(self._variances).sum(1, keepdims=True)) / 2
