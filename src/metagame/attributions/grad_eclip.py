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
from metagame.models.encoder_views import ClassTokenView, ProbeView, attend, check_heads, cosine, last_block
from metagame.models.vision_language import ImageText

Channels = tuple[Tensor, Tensor, Tensor]
"""Unit embedding ``(1, E)``; the leaf ``(1, Q, D)`` that it depends on; lambda_p x features, ``(P, D)``."""


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
        embedding, leaf, features = bound.image.keep(self, lambda: self.channels(bound))

        def attribute(texts: Float[Tensor, "k E"]) -> Float[Tensor, "k P"]:
            seeds = texts[:, None]
            (gradients,) = torch.autograd.grad(embedding, leaf, seeds, is_grads_batched=True, retain_graph=True)
            return (gradients[:, 0].mean(1) @ features.T).clamp(min=0)

        return AttributionGame(lambda coalitions: bound.maps(self, coalitions, attribute), bound.n_players)

    @abstractmethod
    def channels(self, bound: ImageText) -> Channels:
        """Of an image: what the gradients are taken of, and what they weigh."""


class GradECLIP(WeightedChannels):
    """(sum_d g_d v_pd lambda_p)+, with g = dcos/do at [CLS] and lambda_p = cos(W_o q_CLS, W_o k_p) scaled to [0, 1].

    All quantities are of the last block; o is its attention output before W_o. Non-negative. Source: Zhao et al.
    (2024); see :class:`WeightedChannels` for ``heads`` and for the difference from the paper's text.
    """

    def channels(self, bound: ImageText) -> Channels:
        view = bound.model.encoder_view
        if not isinstance(view, ClassTokenView):
            raise UserError("attribution=grad_eclip needs a [CLS] token: for a SigLIP choose attribution=grad_esiglip.")
        return token_channels(view, bound.image.block_input(-1), self.heads)


@torch.enable_grad()
def token_channels(view: ClassTokenView, x: Float[Tensor, "1 T D"], heads: str) -> Channels:
    """Those of the tokens behind the first, [CLS]; x is what the last block is given."""
    block = last_block(view, heads)
    q, k, v = block.queries(x[:, :1]), block.keys(x), block.values(x)
    o = attend(q, k, v, block.n_heads)[1].detach().requires_grad_()
    embedding = normalize(view.project(block.finish(x[:, :1], o))[:, 0], dim=-1)
    weight = min_max(cosine(block.output(q), block.output(k))[0, 1:])
    return embedding, o, v[0, 1:] * weight[:, None]


class GradESigLIP(WeightedChannels):
    """(sum_d g_d z_pd lambda_p)+, g = mean_p dcos/dz_p, lambda_p = cos(mean_p W_o q_p, W_o k_p) scaled to [0, 1].

    z is the normalised output of the encoder; q, k and W_o are those of its last block. Non-negative. Source: paper
    App. C.3; see :class:`WeightedChannels` for ``heads`` and for the difference from the paper's text.
    """

    @torch.enable_grad()
    def channels(self, bound: ImageText) -> Channels:
        view = bound.model.encoder_view
        if not isinstance(view, ProbeView):
            raise UserError("attribution=grad_esiglip needs a pooling head: for a CLIP choose attribution=grad_eclip.")
        block = last_block(view, self.heads)
        x = bound.image.block_input(-1)
        z = view.norm(block.forward(x)[1]).detach().requires_grad_()
        embedding = normalize(view.head.forward(z)[1], dim=-1)
        query = block.output(block.queries(x)).mean(1, keepdim=True)
        weight = min_max(cosine(query, block.output(block.keys(x)))[0])
        return embedding, z, z.detach()[0] * weight[:, None]


def min_max(weights: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Scaled to [0, 1].

    Raises:
        UserError: all are equal.
    """
    low, high = weights.min(), weights.max()
    if not high > low:
        raise UserError(
            f"lambda_p is {low.item():.3g} on every patch or token, so that it cannot be scaled to [0, 1]: the image is"
            " probably blank, or the text has a single token."
        )
    return (weights - low) / (high - low)
