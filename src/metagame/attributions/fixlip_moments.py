"""FIxLIP from means over image masks of one size: all masks of the text, and exact moments of those of the image.

A coalition is a mask S of P patches with a mask T of m pieces of text; s_i is 1 where S has patch i, and k is its size.
Weights depend on k and T alone, and what is fitted is the same for permuted patches. The normal equations thus fall
apart: those of all patches together have means of v(S, T) over all S of a size, and those of single patches, as they
deviate from the others, have means of (s_i - k/P) v(S, T). These means are all that has to be estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from metagame.attributions.fixlip import Design, Interactions, Solver, check_pieces
from metagame.attributions.fixlip_least_squares import log_count, log_kernel
from metagame.attributions.fixlip_masks import n_pairs, paired_masks
from metagame.errors import UserError
from metagame.games import all_coalitions

DEGREE = 3
"""Of the polynomial in the size of a mask by which the regression's effect of a patch varies."""
_SINGULAR = 1e-13


@dataclass(frozen=True)
class GeneralizedRegression(Design):
    r"""The generalised regression estimator of survey sampling, on masks of equal numbers of every size.

    Each of ``budget`` image masks (:func:`paired_masks`) is combined with every mask T of the text. For each T, a ridge
    regression predicts v(S, T) from S by patches whose effect is cubic in the size k of S,
    :math:`f(S) = (1, s - 1/2) \otimes (1, \kappa, \kappa^2, \kappa^3)` with :math:`\kappa = 2k/P - 1`. A mean over
    all masks of a size is then the mean prediction, which is known exactly, plus the mean residual of the masks at hand
    (Särndal, Swensson and Wretman, Model Assisted Survey Sampling, 1992, section 6.4). That is unbiased for any fixed
    regression, and so the values approach those of all coalitions.

    The standard error is the spread of the residuals over pairs of complements, within sizes.

    Differs from the paper: it draws coalitions of all players and has no regression, which takes many times as many
        image masks for the same error (``python -m scripts.compare_fixlip``).

    Attributes:
        budget: image masks, the empty and the full one among them; they serve all texts about an image.
        seed: of the drawing.
        ridge: penalty on the squared coefficients of patches, in masks; above 0.
    """

    budget: int
    seed: int = 0
    ridge: float = 3.0

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise UserError(f"design.ridge={self.ridge} must be a positive number.")

    def solver(self, n_patches: int, n_pieces: int, interactions: Interactions) -> Moments:
        check_pieces(n_pieces)
        return Moments(paired_masks(n_patches, self.budget, self.seed), n_pieces, interactions, self.ridge)


class Moments(Solver):
    """Solves for the interactions from means over sizes, by a regression of the logits.

    Args:
        image_masks: see :func:`paired_masks`.
        n_pieces: of the text, m.
        interactions: ``cross``: pairs of a patch and a piece of text are fitted; ``all``: all pairs.
        ridge: see :class:`GeneralizedRegression`.
    """

    def __init__(
        self, image_masks: Bool[np.ndarray, "a P"], n_pieces: int, interactions: Interactions, ridge: float
    ) -> None:
        self.image_masks, self.text_masks = image_masks, all_coalitions(n_pieces)
        n_patches = image_masks.shape[1]
        self.projection = Projection(n_patches, n_pieces, interactions)
        self.size = image_masks.sum(1)
        self.deviation = image_masks - self.size[:, None] / n_patches
        powers = _powers(n_patches)
        self.features = np.concatenate(
            [powers[self.size], *(self.deviation * powers[self.size, d, None] for d in range(DEGREE + 1))], axis=1
        )
        self._penalty = np.repeat([0, ridge], [DEGREE + 2, (DEGREE + 1) * n_patches])

    def interactions(
        self, logits: Float[np.ndarray, "a b"]
    ) -> tuple[Float[np.ndarray, "P m"], Float[np.ndarray, "P m"]]:
        matrix, leverage = self._regression
        coefficients = matrix @ logits
        residuals = (logits - self.features @ coefficients) / np.bincount(self.size)[self.size, None]
        predicted = self._of_prediction(coefficients) + self.projection.of_ends @ logits[[0, -1], [0, -1]]
        spread = residuals / (1 - leverage)[:, None]
        values, variance = np.empty_like(predicted), np.empty_like(predicted)
        for piece in range(predicted.shape[1]):
            values[:, piece] = predicted[:, piece] + self._shares(piece, residuals).sum(0)
            variance[:, piece] = self._variance(self._shares(piece, spread))
        return values, np.sqrt(variance)

    @cached_property
    def _regression(self) -> tuple[Float[np.ndarray, "f a"], Float[np.ndarray, " a"]]:
        """What turns logits into coefficients, and the leverage of each mask on its own prediction."""
        gram = self.features.T @ self.features + np.diag(self._penalty)
        matrix = np.linalg.pinv(gram, _SINGULAR, hermitian=True) @ self.features.T
        leverage = np.einsum("af,fa->a", self.features, matrix)
        leverage[[0, -1]] = 0  # of what is no sample
        return matrix, leverage

    def _of_prediction(self, coefficients: Float[np.ndarray, "f b"]) -> Float[np.ndarray, "P m"]:
        """The interactions of the regression's prediction, from its exact means over all masks of a size."""
        n_patches = self.image_masks.shape[1]
        powers = _powers(n_patches)
        of_mean = np.einsum("mkb,kd,db->m", self.projection.of_mean, powers, coefficients[: DEGREE + 2])
        of_patches = coefficients[DEGREE + 2 :].reshape(DEGREE + 1, n_patches, -1)
        of_patches = of_patches - of_patches.mean(1, keepdims=True)
        spread = variances(n_patches)[:, None] * powers[:, : DEGREE + 1]
        return of_mean + np.einsum("mkb,kd,dpb->pm", self.projection.of_deviation, spread, of_patches)

    def _shares(self, piece: int, residuals: Float[np.ndarray, "a b"]) -> Float[np.ndarray, "a P"]:
        """What each image mask adds to the interactions with a piece."""
        of_mean, of_deviation = (
            (matrix[piece][self.size] * residuals).sum(1, keepdims=True)
            for matrix in (self.projection.of_mean, self.projection.of_deviation)
        )
        return of_mean + of_deviation * self.deviation

    def _variance(self, shares: Float[np.ndarray, "a P"]) -> Float[np.ndarray, " P"]:
        """Of the sum of shares: pairs are a sample without replacement from those of their size."""
        n_patches = shares.shape[1]
        pairs, size = shares[1:-1:2] + shares[2:-1:2], self.size[1:-1:2]
        variance = np.zeros(n_patches)
        for each in np.unique(size):
            of_size = pairs[size == each]
            missing = 1 - len(of_size) / n_pairs(n_patches, int(each))
            if missing > 0:
                variance += missing * len(of_size) * of_size.var(0, ddof=1)
        return variance


class Projection:
    r"""Weighted least squares over all coalitions, given means of the values over image masks of each size k.

    Fitted are :math:`\beta` in :math:`\sum_T \sum_S w_{S,T} (v(S, T) - \beta \cdot \psi(T) \otimes \phi(S))^2` with
    :math:`\phi = (1, s)`, :math:`\psi = (1, t)` and the Shapley kernel w; the empty and the full coalition are met
    exactly. With ``interactions=all`` pairs of patches and pairs of pieces have coefficients, too.

    The interaction of patch i with piece j is ``of_mean[j]`` times the means of v(S, T), ``(P+1, 2**m)``, plus
    ``of_deviation[j]`` times those of (s_i - k/P) v(S, T), plus ``of_ends[j]`` times (v(empty), v(full)).
    """

    def __init__(self, n_patches: int, n_pieces: int, interactions: Interactions) -> None:
        n, texts = n_patches + n_pieces, all_coalitions(n_pieces).astype(float)
        size, text = np.repeat(np.arange(n_patches + 1), len(texts)), np.tile(texts, (n_patches + 1, 1))
        joint = size + text.sum(1)
        inner = np.s_[1:-1]
        weight = np.zeros(len(size))
        weight[inner] = np.exp(log_kernel(n, joint[inner]) + log_count(n_patches, size[inner]))
        single = np.column_stack([np.ones(len(size)), text])
        of_size, of_patch = [single, size[:, None] * single], [single]
        if interactions == "all":
            first, second = np.triu_indices(n_pieces, 1)
            of_size += [(size * (size - 1.0))[:, None], text[:, first] * text[:, second]]
            of_patch += [size[:, None]]
        by_size, by_patch = np.concatenate(of_size, axis=1), np.concatenate(of_patch, axis=1)
        bounds, pieces = by_size[[0, -1]], 1 + np.arange(n_pieces)
        gram = np.block([[by_size.T @ (by_size * weight[:, None]), bounds.T], [bounds, np.zeros((2, 2))]])
        solved = _inverse(gram)[n_pieces + 1 + pieces]
        shape = n_pieces, n_patches + 1, len(texts)
        self.of_mean = (solved[:, :-2] @ (by_size * weight[:, None]).T).reshape(shape)
        self.of_ends = solved[:, -2:]
        spread = weight * variances(n_patches)[size]
        solved = _inverse(by_patch.T @ (by_patch * spread[:, None]))[pieces]
        self.of_deviation = (solved @ (by_patch * weight[:, None]).T).reshape(shape)


def variances(n_patches: int) -> Float[np.ndarray, " {n_patches}+1"]:
    """k(P-k) / (P(P-1)) for k = 0..P: what the covariance of s, over masks of size k, multiplies deviations by."""
    size = np.arange(n_patches + 1)
    return size * (n_patches - size) / (n_patches * max(n_patches - 1, 1))


def _powers(n_patches: int) -> Float[np.ndarray, "{n_patches}+1 d"]:
    """Powers 0 to DEGREE + 1 of 2k/P - 1, for k = 0..P: the mean over the patches of s_i - 1/2 gives the last."""
    return (2 * np.arange(n_patches + 1) / n_patches - 1)[:, None] ** np.arange(DEGREE + 2)


def _inverse(matrix: Float[np.ndarray, "q q"]) -> Float[np.ndarray, "q q"]:
    """Of a symmetric matrix whose columns may be of different sizes; features that depend on others take no part."""
    scale = 1 / np.sqrt(np.maximum(np.abs(matrix).max(0), np.finfo(float).tiny))
    return scale[:, None] * np.linalg.pinv(matrix * scale * scale[:, None], _SINGULAR, hermitian=True) * scale
