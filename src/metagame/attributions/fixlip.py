"""FIxLIP (Baniecki et al., 2025): faithful interactions of image patches and text, by weighted least squares.

Players are all patches and all pieces of the text. An absent patch has normalised pixels 0, an absent piece is masked
by attention. The logit is a product of an image and a text embedding, so each distinct mask of either side is encoded
once, whatever it is combined with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.linalg import get_lapack_funcs, lu_solve
from scipy.special import gammaln
from torch import Tensor
from torch.nn.functional import normalize

from metagame.contracts import Explanation, Method
from metagame.errors import UserError
from metagame.games import Progress, all_coalitions
from metagame.images import grid_side
from metagame.meta import MetaAttributions
from metagame.models.vision_language import ImageText

INTERACTIONS = ("cross", "all", "auto")
MOST_PATCHES_OF_ALL = 64
MOST_PIECES = 12
SMALLEST_CONDITION = 1e-14
"""Reciprocal condition number below which the least squares have no unique solution."""
_BLOCK = 4096


@dataclass(frozen=True)
class Coalitions:
    """Weighted coalitions of P patches and m pieces of text, as masks of either side; without the empty and the full.

    Attributes:
        image_masks: distinct masks of the image, ``(a, P)``.
        text_masks: distinct masks of the text, ``(b, m)``.
        image_row, text_row: the masks that coalition r combines.
        weights: of the squared error on coalition r.
    """

    image_masks: Bool[np.ndarray, "a P"]
    text_masks: Bool[np.ndarray, "b m"]
    image_row: Int[np.ndarray, " r"]
    text_row: Int[np.ndarray, " r"]
    weights: Float[np.ndarray, " r"]


@runtime_checkable
class Design(Protocol):
    """Chooses the coalitions for P patches and m pieces of text."""

    def coalitions(self, n_patches: int, n_pieces: int) -> Coalitions: ...


@dataclass(frozen=True)
class SampledCoalitions(Design):
    """Coalitions of all players, drawn with the Shapley kernel's weights (size k with probability ~ 1/(k(n-k))).

    Not paired; each counts once. All of them with their kernel weights, where ``budget`` suffices.

    Attributes:
        budget: how many to draw.
        seed: of the drawing.
    """

    budget: int
    seed: int = 0

    def coalitions(self, n_patches: int, n_pieces: int) -> Coalitions:
        n = n_patches + n_pieces
        if n < 31 and (1 << n) - 2 <= self.budget:
            present = all_coalitions(n)[1:-1]
            weights = np.exp(log_kernel(n, present.sum(1)))
        else:
            present = draw_masks(np.random.default_rng(self.seed), n, self.budget)
            weights = np.ones(len(present))
        image_masks, image_row = np.unique(present[:, :n_patches], axis=0, return_inverse=True)
        text_masks, text_row = np.unique(present[:, n_patches:], axis=0, return_inverse=True)
        return Coalitions(image_masks, text_masks, image_row, text_row, weights)


@dataclass(frozen=True)
class CrossedCoalitions(Design):
    """A few masks of the image, each combined with every mask of the text.

    Image masks are drawn by the Shapley kernel of the patches, besides the empty and the full one; the weights make the
    weighted error an unbiased estimate of that over all coalitions. All texts about an image share its masks.

    Differs from the paper: it draws coalitions of all players, and so needs more image masks for as many coalitions.

    Attributes:
        budget: image masks to draw, the empty and the full one among them; one that is drawn twice counts twice.
        seed: of the drawing.
    """

    budget: int
    seed: int = 0

    def coalitions(self, n_patches: int, n_pieces: int) -> Coalitions:
        n_drawn, n = self.budget - 2, n_patches + n_pieces
        if n_drawn < n_patches:
            raise UserError(f"design.budget={self.budget} is too few for {n_patches} patches: give more than them.")
        if n_pieces > MOST_PIECES:
            raise UserError(
                f"{n_pieces} pieces of text have too many masks to combine: choose design=SampledCoalitions."
            )
        drawn = draw_masks(np.random.default_rng(self.seed), n_patches, n_drawn)
        drawn, times = np.unique(drawn, axis=0, return_counts=True)
        ends = np.repeat([[False], [True]], n_patches, axis=1)
        image_masks, text_masks = np.concatenate([ends, drawn]), all_coalitions(n_pieces)
        image_row, text_row = (rows.ravel() for rows in np.indices((len(image_masks), len(text_masks))))
        size = image_masks.sum(1)
        stands_for = np.concatenate([np.zeros(2), log_count(n_patches, size[2:]) + np.log(times / n_drawn)])
        stands_for[2:] -= log_size_probability(n_patches, size[2:])
        joint = size[image_row] + text_masks.sum(1)[text_row]
        inner = (joint > 0) & (joint < n)
        image_row, text_row, joint = image_row[inner], text_row[inner], joint[inner]
        log_weights = log_kernel(n, joint) + stands_for[image_row]
        return Coalitions(image_masks, text_masks, image_row, text_row, np.exp(log_weights - log_weights.max()))


def draw_masks(rng: np.random.Generator, n: int, count: int) -> Bool[np.ndarray, "{count} {n}"]:
    """Coalitions of n players, neither empty nor full: a size ~ 1/(k(n-k)), then its players uniformly."""
    sizes = np.arange(1, n)
    size = rng.choice(sizes, size=count, p=np.exp(log_size_probability(n, sizes)))
    return rng.permuted(np.broadcast_to(np.arange(n), (count, n)), axis=1) < size[:, None]


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


class Regression:
    """Weighted least squares of values of coalitions on their present players and pairs.

    The empty and the full coalition are met exactly. Factorised once, then solved for the values of each image.

    Args:
        coalitions: to fit.
        interactions: ``cross``: pairs of a patch and a piece of text; ``all``: all pairs.
    """

    def __init__(self, coalitions: Coalitions, interactions: str) -> None:
        self.coalitions = coalitions
        n_patches, n_pieces = coalitions.image_masks.shape[1], coalitions.text_masks.shape[1]
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
                [chosen.image_masks[chosen.image_row[rows]], chosen.text_masks[chosen.text_row[rows]]], axis=1
            )
            pairs = present[:, self.first] & present[:, self.second]
            yield rows, np.concatenate([np.ones((len(present), 1)), present, pairs], axis=1)


def _undetermined(coalitions: Coalitions, n_columns: int) -> str:
    return (
        f"{len(coalitions.weights)} coalitions do not determine {n_columns} interactions: raise design.budget, or"
        " choose interactions=cross."
    )


class FIxLIP(Method[ImageText]):
    """Faithful Shapley interactions of patches and text in the model's logit, ``(P, m)``; signed, in its units.

    The design is drawn once for all images, so its noise is common to them.

    Args:
        design: the coalitions.
        interactions: ``cross`` fits pairs of a patch and a piece of text only, ``all`` every pair; ``auto`` every pair
            where there are 64 patches or less.
        batch_size: masked images to encode at once.
    """

    input_type = ImageText
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    def __init__(self, design: Design, interactions: str = "cross", batch_size: int = 256) -> None:
        if interactions not in INTERACTIONS:
            raise UserError(f"interactions={interactions!r}: give one of {', '.join(INTERACTIONS)}.")
        self.design = design
        self.interactions = interactions
        self.batch_size = batch_size
        self._regression = cache(self._make_regression)

    @torch.no_grad()
    def explain(self, bound: ImageText, progress: Progress | None = None) -> Explanation:
        """The interaction of every patch with every piece of the text.

        Raises:
            UserError: the design does not fit the image and the text, or does not determine their interactions.
        """
        n_patches = bound.model.n_patches(bound.image.pixels)
        regression = self._regression(n_patches, bound.n_players)
        chosen = regression.coalitions
        key = ("fixlip", chosen.image_masks.tobytes())
        encode = partial(self._image_embeddings, bound, chosen.image_masks, progress)
        images = bound.image.keep(key, encode)
        texts = bound.masked_texts(_with_ends(chosen.text_masks))
        logits = (images @ texts.T * bound.model.logit_scale).cpu().double().numpy()
        values = logits[:-2, :-2][chosen.image_row, chosen.text_row]
        _, _, pairs = regression.solve(values, empty=logits[-2, -2], full=logits[-1, -1])
        meta = MetaAttributions(
            pairs[:n_patches, n_patches:],
            endogenous=False,
            players=bound.players,
            targets=bound.targets,
            grid=bound.grid,
        )
        return Explanation(bound.players, bound.targets, bound.grid, meta=meta)

    def _make_regression(self, n_patches: int, n_pieces: int) -> Regression:
        every_pair = self.interactions == "all" or (self.interactions == "auto" and n_patches <= MOST_PATCHES_OF_ALL)
        return Regression(self.design.coalitions(n_patches, n_pieces), "all" if every_pair else "cross")

    def _image_embeddings(
        self, bound: ImageText, masks: Bool[np.ndarray, "a P"], progress: Progress | None
    ) -> Float[Tensor, "a+2 E"]:
        """Unit embeddings of the image under each mask, then of the empty and of the full one."""
        masks, rows = np.unique(_with_ends(masks), axis=0, return_inverse=True)
        embeddings = []
        for start in range(0, len(masks), self.batch_size):
            part = torch.as_tensor(masks[start : start + self.batch_size])
            embeddings.append(bound.model.encode_images(masked_pixels(bound.image.pixels, part)))
            if progress is not None:
                progress(min(start + self.batch_size, len(masks)), len(masks))
        return normalize(torch.cat(embeddings), dim=-1)[torch.as_tensor(rows)]


def masked_pixels(pixels: Float[Tensor, "3 H W"], masks: Bool[Tensor, "a P"]) -> Float[Tensor, "a 3 H W"]:
    """The image with the pixels of absent patches at 0."""
    side = grid_side(masks.shape[1])
    grid = masks.to(pixels.device, pixels.dtype).view(-1, 1, side, side)
    height, width = (length // side for length in pixels.shape[-2:])
    return pixels * grid.repeat_interleave(height, 2).repeat_interleave(width, 3)


def _with_ends(masks: Bool[np.ndarray, "a n"]) -> Bool[np.ndarray, "a+2 n"]:
    """The masks, then the empty and the full one."""
    return np.concatenate([masks, np.repeat([[False], [True]], masks.shape[1], axis=1)])
