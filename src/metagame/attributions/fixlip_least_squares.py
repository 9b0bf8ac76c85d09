"""FIxLIP by weighted least squares on chosen coalitions of patches and pieces of the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import get_lapack_funcs, lu_solve
from scipy.special import gammaln

from metagame.attributions.fixlip import Design, Interactions, Solver, check_pieces
from metagame.attributions.fixlip_masks import all_of_size, paired_masks
from metagame.errors import UserError
from metagame.games import all_coalitions

MASSES = ("remaining", "one")
SMALLEST_CONDITION = 1e-14
"""Reciprocal condition number below which the least squares have no unique solution."""
_BLOCK = 4096
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Coalitions:
    """Weighted coalitions of P patches and m pieces of text, as masks of either side; without the empty and the full.

    Attributes:
        image_masks: distinct masks of the image, ``(a, P)``: the empty one first, the full one last.
        text_masks: distinct masks of the text, ``(b, m)``, in the same way.
        image_row, text_row: the masks that coalition r combines.
        weights: of the squared error on coalition r.
    """

    image_masks: Bool[np.ndarray, "a P"]
    text_masks: Bool[np.ndarray, "b m"]
    image_row: Int[np.ndarray, " r"]
    text_row: Int[np.ndarray, " r"]
    weights: Float[np.ndarray, " r"]


@dataclass(frozen=True)
class SampledCoalitions(Design):
    """The paper's sampler: distinct coalitions of all players, drawn by the Shapley kernel and not paired.

    A size k has the kernel's probability ~ 1/(k(n-k)). Sizes of which the budget would hold all coalitions are
    enumerated, with the kernel's weights. From the others coalitions are drawn until the budget is used up: one that
    is drawn again counts once more and costs nothing. Nearly every coalition has an image mask of its own, and each
    text about an image needs others.

    Attributes:
        budget: distinct coalitions, the empty and the full one among them.
        seed: of the drawing.
        sampled_mass: total weight of the coalitions that are drawn: ``remaining``: what the enumerated sizes leave of
            the kernel's, so that the weighted error is unbiased; ``one``: 1, as if no size were enumerated.

    Differs from the paper's code: it has ``sampled_mass=one``, with which the values do not approach the exact ones
        where sizes are enumerated; and it gives the empty and the full coalition a large weight, where these are met
        exactly here.
    """

    budget: int
    seed: int = 0
    sampled_mass: str = "remaining"

    def __post_init__(self) -> None:
        if self.sampled_mass not in MASSES:
            raise UserError(f"design.sampled_mass={self.sampled_mass!r} is unknown: choose one of {', '.join(MASSES)}.")

    def solver(self, n_patches: int, n_pieces: int, interactions: Interactions) -> LeastSquares:
        return LeastSquares(self.coalitions(n_patches, n_pieces), interactions)

    def coalitions(self, n_patches: int, n_pieces: int) -> Coalitions:
        """What is drawn for P patches and m pieces of text."""
        n = n_patches + n_pieces
        present, weights = _sampled(n, self.budget, self.seed, self.sampled_mass)
        with_ends = np.concatenate([present, np.repeat([[False], [True]], n, axis=1)])
        image_masks, image_row = np.unique(with_ends[:, :n_patches], axis=0, return_inverse=True)
        text_masks, text_row = np.unique(with_ends[:, n_patches:], axis=0, return_inverse=True)
        return Coalitions(image_masks, text_masks, image_row[:-2], text_row[:-2], weights)


def _sampled(
    n: int, budget: int, seed: int, sampled_mass: str
) -> tuple[Bool[np.ndarray, "r {n}"], Float[np.ndarray, " r"]]:
    """Distinct coalitions of n players, neither empty nor full, with their weights."""
    sizes = np.arange(1, n)
    mass, capacity = np.exp(log_size_probability(n, sizes)), np.array([float(comb(n, size)) for size in sizes])
    drawn, left = np.ones(n - 1, bool), budget - 2
    while (complete := drawn & (left * mass >= (1 - _ROUNDING) * capacity * mass[drawn].sum())).any():
        drawn &= ~complete
        left -= int(capacity[complete].sum())
    present = [np.zeros((0, n), bool), *(all_of_size(n, size) for size in sizes[~drawn].tolist())]
    weights = [np.repeat(mass[~drawn] / capacity[~drawn], capacity[~drawn].astype(int))]
    if left > 0 and drawn.any():
        remaining = mass[drawn].sum()
        masks, times = _draw_distinct(np.random.default_rng(seed), np.where(drawn, mass, 0) / remaining, left)
        present.append(masks)
        weights.append(times / times.sum() * (remaining if sampled_mass == "remaining" else 1))
    return np.concatenate(present), np.concatenate(weights)


def _draw_distinct(
    rng: np.random.Generator, probability: Float[np.ndarray, " s"], count: int
) -> tuple[Bool[np.ndarray, "{count} s+1"], Int[np.ndarray, " {count}"]]:
    """Draw coalitions of s+1 players, of size k with its probability, until ``count`` differ; how often each came."""
    n, drawn = len(probability) + 1, []
    while True:
        size = rng.choice(np.arange(1, n), size=count, p=probability)
        masks = rng.permuted(np.broadcast_to(np.arange(n), (count, n)), axis=1) < size[:, None]
        drawn.append(np.packbits(masks, axis=1))
        packed = np.concatenate(drawn)
        distinct, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        if len(distinct) >= count:
            break
    end = np.sort(first)[count - 1] + 1
    times = np.bincount(which[:end], minlength=len(distinct))
    seen = times > 0
    return np.unpackbits(distinct[seen], axis=1, count=n).astype(bool), times[seen]


@dataclass(frozen=True)
class CrossedCoalitions(Design):
    """A few masks of the image, each combined with every mask of the text.

    The masks of the image are those of :func:`paired_masks`, and serve all texts about it. The weights make the
    weighted error an unbiased estimate of that over all coalitions.

    Differs from the paper: it draws coalitions of all players, and so needs more image masks for as many coalitions.

    Attributes:
        budget: image masks, the empty and the full one among them.
        seed: of the drawing.
    """

    budget: int
    seed: int = 0

    def solver(self, n_patches: int, n_pieces: int, interactions: Interactions) -> LeastSquares:
        return LeastSquares(self.coalitions(n_patches, n_pieces), interactions)

    def coalitions(self, n_patches: int, n_pieces: int) -> Coalitions:
        """What is drawn for P patches and m pieces of text."""
        check_pieces(n_pieces)
        image_masks, text_masks = paired_masks(n_patches, self.budget, self.seed), all_coalitions(n_pieces)
        image_row, text_row = (rows.ravel()[1:-1] for rows in np.indices((len(image_masks), len(text_masks))))
        size, n = image_masks.sum(1), n_patches + n_pieces
        stands_for = log_count(n_patches, size) - np.log(np.bincount(size)[size])
        log_weights = log_kernel(n, size[image_row] + text_masks.sum(1)[text_row]) + stands_for[image_row]
        return Coalitions(image_masks, text_masks, image_row, text_row, np.exp(log_weights))


def log_size_probability(n: int, size: np.ndarray) -> np.ndarray:
    """Logarithm of 1/(k(n-k)), normalised over k = 1..n-1."""
    k = np.arange(1, n)
    return -np.log(size * (n - size)) - np.log(np.sum(1 / (k * (n - k))))


def log_count(n: int, size: np.ndarray) -> np.ndarray:
    """Logarithm of the number of coalitions of ``size``."""
    return gammaln(n + 1) - gammaln(size + 1) - gammaln(n - size + 1)


def log_kernel(n: int, size: np.ndarray) -> np.ndarray:
    """Logarithm of the Shapley kernel (n-1) / (C(n, k) k (n-k))."""
    return np.log(n - 1) - log_count(n, size) - np.log(size * (n - size))


class LeastSquares(Solver):
    """Weighted least squares of logits of coalitions on their present players and pairs.

    The empty and the full coalition are met exactly. Factorised once, then solved for the logits of each image.

    Args:
        coalitions: to fit.
        interactions: ``cross``: pairs of a patch and a piece of text; ``all``: all pairs.
    """

    error_note = "FIxLIP by least squares on sampled coalitions has no standard error"

    def __init__(self, coalitions: Coalitions, interactions: Interactions) -> None:
        self.coalitions = coalitions
        self.image_masks, self.text_masks = coalitions.image_masks, coalitions.text_masks
        n_patches, n_pieces = self.image_masks.shape[1], self.text_masks.shape[1]
        self.n_players = n_patches + n_pieces
        first, second = np.triu_indices(self.n_players, 1)
        if interactions == "cross":
            crossing = (first < n_patches) & (second >= n_patches)
            first, second = first[crossing], second[crossing]
        self.first, self.second = first, second
        n_columns = 1 + self.n_players + len(first)
        if len(coalitions.weights) + 2 < n_columns:
            raise UserError(_undetermined(coalitions, n_columns))
        gram = np.zeros((n_columns, n_columns))
        for rows, x in self._blocks():
            gram += x.T @ (x * coalitions.weights[rows, None])
        bounds = np.zeros((2, n_columns))
        bounds[0, 0], bounds[1] = 1, 1
        self._column_scale = np.append(1 / np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny)), [1, 1])
        system = np.block([[gram, bounds.T], [bounds, np.zeros((2, 2))]])
        system *= self._column_scale * self._column_scale[:, None]
        gecon, getrf = get_lapack_funcs(("gecon", "getrf"), (system,))
        factors, pivots, failed = getrf(system)
        if failed or gecon(factors, np.linalg.norm(system, 1))[0] < SMALLEST_CONDITION:
            raise UserError(_undetermined(coalitions, n_columns))
        self._factors = factors, pivots

    def interactions(self, logits: Float[np.ndarray, "a b"]) -> tuple[Float[np.ndarray, "P m"], None]:
        n_patches = self.image_masks.shape[1]
        values = logits[self.coalitions.image_row, self.coalitions.text_row]
        _, _, pairs = self.solve(values, logits[0, 0], logits[-1, -1])
        return pairs[:n_patches, n_patches:], None

    def solve(
        self, values: Float[np.ndarray, " r"], empty: float, full: float
    ) -> tuple[float, Float[np.ndarray, " n"], Float[np.ndarray, "n n"]]:
        """Constant, values of players, and of pairs, symmetric with zero diagonal and where a pair takes no part."""
        target = np.concatenate([np.zeros(1 + self.n_players + len(self.first)), [empty, full]])
        for rows, x in self._blocks():
            target[:-2] += x.T @ (self.coalitions.weights[rows] * values[rows])
        solution = self._column_scale * lu_solve(self._factors, self._column_scale * target)
        pairs = np.zeros((self.n_players, self.n_players))
        pairs[self.first, self.second] = pairs[self.second, self.first] = solution[1 + self.n_players : -2]
        return solution[0], solution[1 : 1 + self.n_players], pairs

    def _blocks(self) -> Iterator[tuple[slice, Float[np.ndarray, "b c"]]]:
        """The design matrix in blocks of rows: constant, players, pairs."""
        chosen = self.coalitions
        for start in range(0, len(chosen.weights), _BLOCK):
            rows = slice(start, start + _BLOCK)
            present = np.concatenate(
                [self.image_masks[chosen.image_row[rows]], self.text_masks[chosen.text_row[rows]]], axis=1
            )
            pairs = present[:, self.first] & present[:, self.second]
            yield rows, np.concatenate([np.ones((len(present), 1)), present, pairs], axis=1)


def _undetermined(coalitions: Coalitions, n_columns: int) -> str:
    return (
        f"{len(coalitions.weights) + 2} coalitions do not determine {n_columns} interactions: raise design.budget, or"
        " choose interactions=cross."
    )
