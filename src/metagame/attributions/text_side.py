"""The other side of MaskCLIP, Grad-ECLIP and attention: words are attributed, and patches of the image play."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagame.attributions.generic_attention import run_from
from metagame.attributions.grad_eclip import require_contrast, token_channels
from metagame.attributions.mask_clip import token_vectors
from metagame.attributions.method import FirstOrder
from metagame.games import AttributionGame
from metagame.models.encoder_views import check_heads
from metagame.models.vision_language import ImageText, VisionLanguage, owned_tokens


class TextSide(FirstOrder[ImageText]):
    r"""phi_i(S): how much each word of a text contributes to its cosine with the image whose patches in S are present.

    Not in the paper, where words are players and patches are targets. Here, a method for patches is applied to the last
    block of the text encoder. The token that becomes the embedding (for a CLIP the end token, for a SigLIP the last of
    the padded context) takes the place of [CLS], and the tokens before it take the place of the patches. Since both
    embeddings meet only in a product, the attribution of token t is the product of a vector u_t with the unit embedding
    g of the image, which some methods rectify. The vectors u are computed once for a text, and a coalition takes one
    pass of the image encoder for all words, texts and methods. The attribution of a word is the sum over its tokens.
    The normalised pixels of an absent patch are 0, as in FIxLIP.

    phi_{j->i} then says how much patch j changes the attribution of word i. Its sum over the patches is the attribution
    of the word given the whole image, minus that given the empty image. Exact enumeration is limited to 12 patches:
    choose an estimator with a budget. In a CLIP, whose text encoder is causal, a token attends only to itself and the
    tokens before it.

    There are no separate methods for SigLIPs: their methods for patches differ in the pooling head, which text encoders
    do not have.

    Attributes:
        rectified: whether negative attributions of tokens are set to 0.
    """

    input_type = ImageText
    endogenous = False
    rectified: ClassVar[bool]

    def game(self, bound: ImageText) -> AttributionGame:
        model, pieces = bound.model, bound.pieces
        text = pieces.masked([True] * len(pieces.labels))
        vectors = model.keep((self, text), lambda: self.vectors(model, model.last_text_input(text)))
        owned = torch.as_tensor(owned_tokens(pieces)).to(vectors)[:, : len(vectors)]

        def attribute(coalitions: Bool[np.ndarray, "k P"]) -> Float[Tensor, "k m"]:
            products = bound.masked_images(coalitions) @ vectors[: owned.shape[1]].T
            return (products.clamp(min=0) if self.rectified else products) @ owned.T

        rows, columns = bound.grid
        names = [f"row {row}, column {column}" for row in range(rows) for column in range(columns)]
        return AttributionGame(attribute, len(names), batch_size=model.batch_size, players=names, targets=pieces.labels)

    @abstractmethod
    def vectors(self, model: VisionLanguage, x: Float[Tensor, "1 T D"]) -> Float[Tensor, "T-1 E"]:
        """The vector u of each token before the one that is read; x is the last block's input, the token read first."""


class MaskCLIPText(TextSide):
    """cos(embedding of token t, image) * cos(W_o k_t, W_o k_read), from -1 to 1 for each token.

    The embedding of a token is its value after W_o, residual, MLP, norm and projection of the last block, as for
    :class:`metagame.attributions.mask_clip.MaskCLIP`, but in the text encoder. The second factor does not depend on the
    image; if it is negative, it inverts the effect of each patch on the token. See :class:`TextSide`.
    """

    rectified = False

    @torch.no_grad()
    def vectors(self, model: VisionLanguage, x: Float[Tensor, "1 T D"]) -> Float[Tensor, "T-1 E"]:
        return token_vectors(model.text_view, x)[0]


class GradECLIPText(TextSide):
    """(sum_d g_d v_td lambda_t)+, with g = dcos/do at the token that is read, lambda_t = cos(W_o q_read, W_o k_t).

    lambda is scaled to [0, 1] over all tokens before the one that is read; o is its attention output before W_o.
    Non-negative, in units of the cosine. Source: Zhao et al. (2024), who explain both encoders. See :class:`TextSide`,
    and :class:`metagame.attributions.grad_eclip.WeightedChannels` for ``heads``.

    Args:
        heads: ``one``: the attention of the last block has a single head over the full width; ``native``: it has the
            model's own heads.
    """

    rectified = True

    def __init__(self, heads: str = "one") -> None:
        self.heads = check_heads(heads)

    def vectors(self, model: VisionLanguage, x: Float[Tensor, "1 T D"]) -> Float[Tensor, "T-1 E"]:
        embedding, o, (features,) = token_channels(model.text_view, x, self.heads)
        require_contrast(features)
        return features @ jacobian(embedding, o)[:, 0, 0].T


class GenericAttentionText(TextSide):
    """(mean_h(dz/dA_t) * mean_h(A_t))+, where A is the attention of the token read in the last block, z the logit.

    Non-negative, in units of the logit. Source: Chefer et al. (2021) with the update of the published numbers, see
    :class:`metagame.attributions.generic_attention.GenericAttention`. Only the last block is used: with more blocks the
    attribution is not a product with the image's embedding.
    """

    rectified = True

    def vectors(self, model: VisionLanguage, x: Float[Tensor, "1 T D"]) -> Float[Tensor, "T-1 E"]:
        trace = run_from(model.text_view, x, 0)
        (weights,) = trace.weights
        gradients = jacobian(trace.embeddings, weights)[:, 0, :, 0].mean(1)
        return (gradients * weights[0, :, 0].detach().mean(0) * model.logit_scale).T[1:]


def jacobian(embedding: Float[Tensor, "1 E"], leaf: Float[Tensor, " ..."]) -> Float[Tensor, "E ..."]:
    """The derivative of an embedding by all of a leaf, in one batched backward pass."""
    seeds = torch.eye(embedding.shape[1], dtype=embedding.dtype, device=embedding.device)[:, None]
    (found,) = torch.autograd.grad(embedding, leaf, seeds, is_grads_batched=True)
    return found
