"""Integrated gradients of image patches, from the input of a late block on: a map that is linear in the text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagame.attributions.gradients import check_steps, midpoints
from metagame.attributions.method import FirstOrder, Metagame
from metagame.contracts import Explanation
from metagame.errors import UserError
from metagame.estimators.configured import EXACT, ConfiguredEstimator
from metagame.games import AttributionGame, Progress
from metagame.kept_values import KeptValues
from metagame.meta import meta_attributions
from metagame.models.encoder_views import embed_from
from metagame.models.vision_language import ImageText


class PatchIG(FirstOrder[ImageText]):
    r"""phi_p = <x_p - r_p, int_0^1 d<g, t>/dx_p (r + a(x - r)) da> / \|g(x)\|, the part of patch p in the cosine.

    x is the input of block ``block`` of the image encoder for the image, r its input for an image whose normalised
    pixels are 0, g the image embedding, and t the unit embedding of the text. Signed, in units of the cosine. Together
    with the part of [CLS], which is not a target and is left out, the sum is cos(g(x), t) - <g(r), t> / \|g(x)\| up to
    the error of the quadrature, see :meth:`completeness`. Not in the paper: it is the image side of Moeller et al.
    (2025), who only treat CLIPs; for SigLIP, which has no [CLS], path and reference are our choice.

    The map is linear in t, so its metagame is the map of a Shapley value, see :class:`MetaPatchIG`.

    Args:
        steps: number of midpoints of the path.
        block: the block whose input the path runs through, counted from the last block, -1.
    """

    input_type = ImageText
    endogenous = False

    def __init__(self, steps: int = 8, block: int = -1) -> None:
        self.steps = check_steps(steps)
        self.block = check_block(block)

    def game(self, bound: ImageText) -> AttributionGame:
        return AttributionGame(lambda coalitions: self.maps(bound, coalitions), bound.n_players)

    def metagame(
        self, estimator: ConfiguredEstimator = EXACT, order: int = 1, index: str | None = None
    ) -> Metagame[ImageText]:
        general = super().metagame(estimator, order, index)
        return MetaPatchIG(self, estimator) if order == 1 and estimator.is_exact else general

    def maps(self, bound: ImageText, coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k P"]:
        """The map of the text of each coalition."""
        return bound.maps(self, coalitions, lambda texts: self.linear(bound, texts)[:, None])

    def linear(self, bound: ImageText, vectors: Float[Tensor, "k E"]) -> Float[Tensor, "k P"]:
        """A function that maps text embeddings, or any other vectors, to their maps."""
        return patches(bound, token_parts(bound, vectors, self.steps, self.block))

    def completeness(self, bound: ImageText) -> Completeness:
        """The quadrature error of the map of the whole text, and the share that the map leaves out."""
        text = bound.dropped_texts(np.ones((1, bound.n_players), bool))
        parts = token_parts(bound, text, self.steps, self.block)
        image, blank = path_ends(bound, self.block)
        return Completeness.of(parts, patches(bound, parts), (image - blank) @ text[0] / image.norm())


class MetaPatchIG(Metagame[ImageText]):
    """phi_{j->p}: the map, at p, of the Shapley value of player j in the game S -> unit embedding of the text of S.

    This is the metagame of :class:`PatchIG`, whose maps are linear in the embedding. Coalitions only need text
    embeddings; the image encoder needs one vector-Jacobian product for each player, and one for the empty text.
    """

    method: PatchIG

    def explain(
        self, bound: ImageText, progress: Progress | None = None, kept: KeptValues | None = None
    ) -> Explanation:
        """phi_{j->p} of every player j on every patch p; no values are kept for later runs."""
        method, settings = self.method, self.estimator
        game = AttributionGame(bound.dropped_texts, bound.n_players)
        phi = meta_attributions(
            game,
            settings.estimator,
            endogenous=False,
            budget=settings.budget_of(game.n_players),
            progress=progress,
        )
        vectors = torch.as_tensor(phi.values.T).to(bound.image.pixels)
        values = method.linear(bound, vectors).T.cpu().double().numpy()
        empty = method.maps(bound, np.zeros((1, bound.n_players), bool))[0].cpu().double().numpy()
        phi = replace(
            phi,
            values=values,
            first_order=values.sum(1) + empty,
            empty=empty,
            standard_error=np.zeros_like(values),
            players=bound.players,
            targets=bound.targets,
            grid=bound.grid,
        )
        return Explanation(bound.players, bound.targets, bound.grid, attribution=phi.first_order, meta=phi)


@dataclass(frozen=True)
class Completeness:
    """How well integrated gradients add up, and how much of them a map leaves out.

    Attributes:
        error: of the quadrature: difference of the sum of all parts and what it should be, relative to the latter.
        left_out: share, from 0 to 1, of the absolute values that are of no target, such as those of [CLS].
    """

    error: float
    left_out: float

    @classmethod
    def of(cls, parts: Tensor, kept: Tensor, expected: Float[Tensor, ""]) -> Completeness:
        """Of all parts, those that are kept, and the sum that all should have."""
        error = abs(parts.sum() - expected) / abs(expected)
        return cls(float(error), float(1 - kept.abs().sum() / parts.abs().sum()))


def token_parts(bound: ImageText, vectors: Float[Tensor, "k E"], steps: int, block: int) -> Float[Tensor, "k T"]:
    """<J_t (x - r)_t, vector> / |g(x)| of each token t that block ``block`` is given, J the mean Jacobian of g."""
    view = bound.model.encoder_view
    x, r = path(bound, block)
    with torch.enable_grad():
        points = (r + midpoints(steps, x)[:, None, None] * (x - r)).requires_grad_()
        embedding = embed_from(view, points, block).mean(0)
    parts = []
    for vector in vectors:  # the midpoints are a batch already
        (gradient,) = torch.autograd.grad(embedding, points, vector, retain_graph=True)
        parts.append((gradient.sum(0) * (x - r)[0]).sum(-1))
    return torch.stack(parts) / path_ends(bound, block)[0].norm()


def path(bound: ImageText, block: int) -> tuple[Float[Tensor, "1 T D"], Float[Tensor, "1 T D"]]:
    """What block ``block`` is given of the image and of a blank one.

    Raises:
        UserError: the encoder has fewer blocks.
    """
    n_blocks = len(bound.model.encoder_view.blocks)
    if block < -n_blocks:
        raise UserError(
            f"block={block} does not exist, since the image encoder has {n_blocks} blocks: give -{n_blocks} to -1."
        )
    return bound.image.block_input(block), bound.model.blank_input(bound.image.pixels, block)


@torch.no_grad()
def path_ends(bound: ImageText, block: int) -> tuple[Float[Tensor, " E"], Float[Tensor, " E"]]:
    """Embeddings, not normalised, of the image and of a blank one."""
    image, blank = embed_from(bound.model.encoder_view, torch.cat(path(bound, block)), block)
    return image, blank


def patches(bound: ImageText, parts: Float[Tensor, "k T"]) -> Float[Tensor, "k P"]:
    """Without [CLS], which stands first where there is one."""
    return parts[:, -bound.model.n_patches(bound.image.pixels) :]


def check_block(block: int) -> int:
    """``block``, if it counts from the last one.

    Raises:
        UserError: it is no negative whole number.
    """
    if type(block) is not int or block >= 0:
        raise UserError(f"block={block!r} must be a negative integer, since blocks are counted from the last one, -1.")
    return block
