"""exCLIP (Moeller et al., 2025): second-order integrated gradients of an image-text score, by factors."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from metagame.attributions.gradients import check_steps, midpoints
from metagame.attributions.patch_ig import Completeness, check_block, patches, path_ends, token_parts
from metagame.contracts import Explanation, Method
from metagame.errors import UserError
from metagame.games import Progress
from metagame.meta import MetaAttributions
from metagame.models.vision_language import ImageText, Players, Text, VisionLanguage, owned_tokens

REST = -1
"""The part of what belongs to no player: special tokens and padding; it stands last."""


class ExCLIP(Method[ImageText]):
    r"""A_pj = sum_{t of j} <J_h (y - s)_t, J_g (x - r)_p> / (\|g\| \|h\|), of patch p and piece j of the text.

    x and y are the inputs of block ``block`` of the two encoders for the image and the text, and r and s those for
    their references. J_g and J_h are the mean Jacobians of the embeddings g and h along the straight paths from r to x
    and from s to y. Signed, in units of the cosine. Together with the parts of [CLS], special tokens and padding, which
    are left out, the sum is <g(x) - g(r), h(y) - h(s)> / (\|g(x)\| \|h(y)\|) up to the error of the quadrature, see
    :meth:`completeness`. Source: Moeller et al. (2025); not in the paper.

    The product of Jacobians is never formed. J_h (y - s)_j is one directional derivative for each piece, computed once
    for all images, and a vector-Jacobian product maps it to the patches of an image.

    Differs from the authors' code: the path has midpoints instead of right ends; the reference of a text has its
    special tokens and one padding token for each of its other tokens, whereas theirs has a single one; and it is pooled
    at the same position as the text, so that the sum is complete. They only treat CLIPs; for SigLIP, reference and path
    are our choice.

    Args:
        steps: number of midpoints of each path.
        block: the block whose input the paths run through, counted from the last block, -1.
    """

    input_type = ImageText

    def __init__(self, steps: int = 8, block: int = -1) -> None:
        self.steps = check_steps(steps)
        self.block = check_block(block)

    def explain(self, bound: ImageText, progress: Progress | None = None) -> Explanation:
        """A of every patch with every piece of the text.

        Raises:
            UserError: an encoder has fewer blocks than ``block`` requires, or pieces of the text share tokens.
        """
        parts = token_parts(bound, self.text_parts(bound)[:REST], self.steps, self.block)
        values = patches(bound, parts).T.cpu().double().numpy()
        meta = MetaAttributions(
            values,
            error_note="exCLIP draws nothing at random: its only error is that of the midpoint rule",
            endogenous=False,
            players=bound.players,
            targets=bound.targets,
            grid=bound.grid,
        )
        return Explanation(bound.players, bound.targets, bound.grid, meta=meta)

    def text_parts(self, bound: ImageText) -> Float[Tensor, "parts E"]:
        """J_h (y - s)_j / |h| of each piece, followed by that of the other tokens."""
        model, text = bound.model, bound.pieces.masked([True] * bound.n_players)
        key = ("exclip", self.steps, self.block, text, bound.players)
        return model.keep(key, lambda: text_parts(model, bound.pieces, self.steps, self.block))

    def completeness(self, bound: ImageText) -> Completeness:
        """The quadrature error of the values of all tokens, and the share of the tokens that are left out."""
        parts = token_parts(bound, self.text_parts(bound), self.steps, self.block)
        image, blank = path_ends(bound, self.block)
        text, reference = text_ends(bound.model, bound.pieces, self.block)
        expected = (image - blank) @ (text - reference) / (image.norm() * text.norm())
        return Completeness.of(parts, patches(bound, parts)[:REST], expected)


def text_parts(model: VisionLanguage, pieces: Players, steps: int, block: int) -> Float[Tensor, "parts E"]:
    """See :meth:`ExCLIP.text_parts`: directional derivatives of the text embedding, all in one forward pass."""
    text, _ = text_and_reference(model, pieces)
    y, s = text_path(model, pieces, block)
    owned = torch.zeros(len(pieces.labels) + 1, y.shape[0], dtype=y.dtype, device=y.device)
    owned[:REST, : len(text.ids)] = torch.as_tensor(owned_tokens(pieces)).to(owned)
    owned[REST] = 1 - owned.sum(0)
    directions = owned[:, None, :, None] * (y - s).expand(len(owned), steps, -1, -1)
    points = (s + midpoints(steps, y)[:, None, None] * (y - s)).expand_as(directions)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():  # the others have no forward mode
        dual = forward_ad.make_dual(points.flatten(0, 1), directions.flatten(0, 1))
        derivative: Tensor = forward_ad.unpack_dual(model.embed_text_from(text, dual, block)).tangent
        embedding = model.embed_text_from(text, y[None], block)
    return derivative.unflatten(0, directions.shape[:2]).mean(1) / embedding.norm()


def text_and_reference(model: VisionLanguage, pieces: Players) -> tuple[Text, Text]:
    """The whole text, and the same with a padding token for each of the players'."""
    text = pieces.masked([True] * len(pieces.labels))
    played = np.flatnonzero(owned_tokens(pieces).any(0)).tolist()
    ids = tuple(model.tokenizer.pad_id if place in played else token for place, token in enumerate(text.ids))
    return text, Text(ids, text.attended)


def text_path(model: VisionLanguage, pieces: Players, block: int) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
    """What block ``block`` of the text encoder is given of the text and of its reference.

    Raises:
        UserError: the encoder has fewer blocks.
    """
    n_blocks = len(model.text_blocks)
    if block < -n_blocks:
        raise UserError(
            f"block={block} does not exist, since the text encoder has {n_blocks} blocks: give -{n_blocks} to -1."
        )
    text, reference = model.text_block_input(text_and_reference(model, pieces), block)
    return text, reference


@torch.no_grad()
def text_ends(model: VisionLanguage, pieces: Players, block: int) -> tuple[Float[Tensor, " E"], Float[Tensor, " E"]]:
    """Embeddings, not normalised, of the text and of its reference, both pooled where the text is."""
    text, _ = text_and_reference(model, pieces)
    ends = model.embed_text_from(text, torch.stack(text_path(model, pieces, block)), block)
    return ends[0], ends[1]
