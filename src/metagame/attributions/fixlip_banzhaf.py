"""FIxLIP in its Banzhaf mode: the faithful weighted Banzhaf interactions of patches and text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from metagame.attributions.fixlip import Design, Interactions, Solver, check_pieces
from metagame.errors import UserError
from metagame.games import all_coalitions


@dataclass(frozen=True)
class BanzhafMasks(Design):
    r"""Each player is present with probability p, independently; every image mask is paired with every text mask.

    The best fit of constant, players and pairs has for patch i and piece j the coefficient
    :math:`E[v(S, T) (s_i - p)(t_j - p)] / (p (1 - p))^2`, since products of s - p are orthogonal. It does not matter
    which other pairs are fitted, and neither the empty nor the full coalition is fitted exactly. Source: the weighted
    Banzhaf mode of FIxLIP (Baniecki et al., 2025); the paper compares with its Shapley mode.

    The mean over masks of the text is exact. The mean over masks of the image is that of a linear prediction from s by
    ridge regression, which is known, plus the mean of the residuals. It is unbiased except for the regression's
    dependence on the masks, and exact if all masks are used.

    Differs from the authors' code: it also draws masks of the text, and solves least squares on all drawn coalitions.

    Attributes:
        budget: number of image masks, drawn in pairs; all masks if there are no more. All texts about an image share
            them.
        seed: random seed for the drawing.
        p: probability that a player is present, between 0 and 1.
        ridge: penalty on the squared coefficients of patches, in masks; above 0.
    """

    budget: int
    seed: int = 0
    p: float = 0.5
    ridge: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise UserError(f"design.p={self.p} must be a probability between 0 and 1.")
        if not self.ridge > 0:
            raise UserError(f"design.ridge={self.ridge} must be a positive number.")
        if self.budget < 4:
            raise UserError(f"design.budget={self.budget} is too small: give at least 4 image masks.")

    def solver(self, n_patches: int, n_pieces: int, interactions: Interactions) -> BanzhafMeans:
        if interactions != "cross":
            raise UserError(
                f"interactions={interactions} has no effect on Banzhaf interactions: choose interactions=cross."
            )
        check_pieces(n_pieces)
        return BanzhafMeans(self, n_patches, n_pieces)

    def image_masks(self, n_patches: int) -> tuple[Bool[np.ndarray, "a {n_patches}"], Float[np.ndarray, " a"] | None]:
        """All masks with their probabilities; or drawn masks, each followed by its complement, and None."""
        if 1 << n_patches <= self.budget:
            masks = all_coalitions(n_patches)
            return masks, probabilities(masks, self.p)
        uniform = np.random.default_rng(self.seed).random((self.budget // 2, n_patches))
        return np.stack([uniform < self.p, uniform > 1 - self.p], axis=1).reshape(-1, n_patches), None


class BanzhafMeans(Solver):
    """Means of the logits over masks, see :class:`BanzhafMasks`."""

    def __init__(self, design: BanzhafMasks, n_patches: int, n_pieces: int) -> None:
        p, variance = design.p, design.p * (1 - design.p)
        self.image_masks, probability = design.image_masks(n_patches)
        self.text_masks = all_coalitions(n_pieces)
        self.of_pieces = (self.text_masks - p) * probabilities(self.text_masks, p)[:, None] / variance
        self.drawn = probability is None
        n_masks = len(self.image_masks)
        self.weights = np.full(n_masks, 1 / n_masks) if probability is None else probability
        self.features = self.image_masks - p
        weighted = self.features * self.weights[:, None]
        gram = self.features.T @ weighted + design.ridge / n_masks * np.eye(n_patches)
        self.fit = np.linalg.solve(gram, weighted.T)
        self.leverage = np.einsum("ap,pa->a", self.features, self.fit)
        self.of_patches = weighted.T / variance

    def interactions(
        self, logits: Float[np.ndarray, "a b"]
    ) -> tuple[Float[np.ndarray, "P m"], Float[np.ndarray, "P m"]]:
        of_pieces = logits @ self.of_pieces
        of_pieces = of_pieces - self.weights @ of_pieces
        coefficients = self.fit @ of_pieces
        missed = of_pieces - self.features @ coefficients
        values = coefficients + self.of_patches @ missed
        if not self.drawn:
            return values, np.zeros_like(values)
        missed = missed / (1 - self.leverage)[:, None]
        pairs = [(self.of_patches * column).reshape(len(values), -1, 2).sum(-1) for column in missed.T]
        n_pairs = len(self.image_masks) // 2
        return values, np.stack([np.sqrt(n_pairs) * each.std(1, ddof=1) for each in pairs], axis=1)


def probabilities(masks: Bool[np.ndarray, "a n"], p: float) -> Float[np.ndarray, " a"]:
    """Of each mask, where each player is present with probability ``p``."""
    size = masks.sum(1)
    return p**size * (1 - p) ** (masks.shape[1] - size)
