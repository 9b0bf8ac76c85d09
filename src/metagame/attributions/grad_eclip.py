"""Grad-ECLIP and Grad-ESigLIP: channels weighted by gradients, patches by loosened attention."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from metagame.attributions.method import FirstOrder
from metagame.errors import UserError
from metagame.games import AttributionGame
from metagame.models.encoder_views import (
    ClassTokenView,
    EncoderView,
    ProbeView,
    attend,
    check_heads,
    cosine,
    last_block,
)
from metagame.models.vision_language import ImageText

Channels = tuple[Tensor, Tensor, Tensor]
"""Unit embeddings ``(b, E)``; the leaf ``(b, Q, D)`` they depend on; lambda_p x features, ``(b, P, D)``."""


class WeightedChannels(FirstOrder[ImageText]):
    """The path to the embedding once for an image, then one batched backward pass for all coalitions.

    Differs from the paper's text: it does not say that the last block of the image encoder has a single head. The code
    behind the published numbers, as that of Zhao et al. (2024), evaluates it so, and the score changes with it.

    Args:
        heads: ``one``: the attention of the last block has a single head over the full width; ``native``: the model's.
    """

    input_type = ImageText
    endogenous = False

    def __init__(self, heads: str = "one") -> None:
        self.heads = check_heads(heads)

    def game(self, bound: ImageText) -> AttributionGame:
        view = bound.model.encoder_view
        company = bound.image.company(n_blocks=1)
        embeddings, leaf, features = company.keep(self, lambda: self.channels(view, company.block_input(-1)))
        place = bound.image.row - company.first
        bound.image.keep(("contrast", self), lambda: require_contrast(features[place]))

        def attribute(texts: Float[Tensor, "k E"]) -> Float[Tensor, "k b P"]:
            seeds = texts[:, None].expand(-1, len(embeddings), -1)
            (gradients,) = torch.autograd.grad(embeddings, leaf, seeds, is_grads_batched=True, retain_graph=True)
            weights = gradients.mean(2).movedim(0, 2)
            return (features @ weights).clamp(min=0).movedim(2, 0)

        return AttributionGame(lambda coalitions: bound.maps(self, coalitions, attribute, company), bound.n_players)

    @abstractmethod
    def channels(self, view: EncoderView, x: Float[Tensor, "b T D"]) -> Channels:
        """What the gradients are taken of, and what they weigh; x is what the last block is given of the images."""


class GradECLIP(WeightedChannels):
    """(sum_d g_d v_pd lambda_p)+, with g = dcos/do at [CLS] and lambda_p = cos(W_o q_CLS, W_o k_p) scaled to [0, 1].

    All quantities are of the last block; o is its attention output before W_o. Non-negative. Source: Zhao et al.
    (2024); see :class:`WeightedChannels` for ``heads`` and for the difference from the paper's text.
    """

    def channels(self, view: EncoderView, x: Float[Tensor, "b T D"]) -> Channels:
        if not isinstance(view, ClassTokenView):
            raise UserError("attribution=grad_eclip needs a [CLS] token: for a SigLIP choose attribution=grad_esiglip.")
        return token_channels(view, x, self.heads)


@torch.enable_grad()
def token_channels(view: ClassTokenView, x: Float[Tensor, "b T D"], heads: str) -> Channels:
    """Those of the tokens behind the first, [CLS]; x is what the last block is given."""
    block = last_block(view, heads)
    q, k, v = block.queries(x[:, :1]), block.keys(x), block.values(x)
    o = attend(q, k, v, block.n_heads)[1].detach().requires_grad_()
    embedding = normalize(view.project(block.finish(x[:, :1], o))[:, 0], dim=-1)
    weight = min_max(cosine(block.output(q), block.output(k))[:, 1:])
    return embedding, o, v[:, 1:] * weight[..., None]


class GradESigLIP(WeightedChannels):
    """(sum_d g_d z_pd lambda_p)+, g = mean_p dcos/dz_p, lambda_p = cos(mean_p W_o q_p, W_o k_p) scaled to [0, 1].

    z is the normalised output of the encoder; q, k and W_o are those of its last block. Non-negative. Source: paper
    App. C.3; see :class:`WeightedChannels` for ``heads`` and for the difference from the paper's text.
    """

    @torch.enable_grad()
    def channels(self, view: EncoderView, x: Float[Tensor, "b T D"]) -> Channels:
        if not isinstance(view, ProbeView):
            raise UserError("attribution=grad_esiglip needs a pooling head: for a CLIP choose attribution=grad_eclip.")
        block = last_block(view, self.heads)
        z = view.norm(block.forward(x)[1]).detach().requires_grad_()
        embedding = normalize(view.head.forward(z)[1], dim=-1)
        query = block.output(block.queries(x)).mean(1, keepdim=True)
        weight = min_max(cosine(query, block.output(block.keys(x))))
        return embedding, z, z.detach() * weight[..., None]


def min_max(weights: Float[Tensor, "b P"]) -> Float[Tensor, "b P"]:
    """Those of each image scaled to [0, 1]; NaN where all of an image are equal, see :func:`require_contrast`."""
    low, high = weights.aminmax(dim=-1, keepdim=True)
    return torch.where(high > low, (weights - low) / (high - low), torch.nan)


def require_contrast(features: Float[Tensor, "P D"]) -> None:
    """Refuse the features of an image or text, times its lambda_p, where these could not be scaled.

    Raises:
        UserError: they are NaN.
    """
    if features[0, 0].isnan():
        raise UserError(
            "lambda_p is the same on every patch or token, so that it cannot be scaled to [0, 1]: the image is probably"
            " blank, or the text has a single token."
        )
