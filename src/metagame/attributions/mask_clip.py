"""MaskCLIP and MaskSigLIP: each patch is scored as if it alone were pooled."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from metagame.attributions.method import FirstOrder
from metagame.errors import UserError
from metagame.games import AttributionGame
from metagame.models.encoder_views import ClassTokenView, EncoderView, ProbeView, check_heads, cosine, last_block
from metagame.models.vision_language import ImageText


class PatchVectors(FirstOrder[ImageText]):
    """Maps that are linear in the text: a vector for each patch, once for an image; a product for all coalitions."""

    input_type = ImageText
    endogenous = False

    def game(self, bound: ImageText) -> AttributionGame:
        company = bound.image.company(n_blocks=1)
        vectors = company.keep(self, lambda: self.vectors(bound.model.encoder_view, company.block_input(-1)))

        def attribute(texts: Float[Tensor, "k E"]) -> Float[Tensor, "k b P"]:
            return (vectors @ texts.T).movedim(2, 0)

        return AttributionGame(lambda coalitions: bound.maps(self, coalitions, attribute, company), bound.n_players)

    @abstractmethod
    def vectors(self, view: EncoderView, x: Float[Tensor, "b T D"]) -> Float[Tensor, "b P E"]:
        """Whose products with the text's unit embedding are the map; x is what the last block is given."""


class MaskCLIP(PatchVectors):
    """cos(embedding of patch p, text) * cos(W_o k_p, W_o k_CLS), from -1 to 1.

    The embedding of a patch is its value after W_o, residual, MLP, norm and projection of the last block (Dong et al.,
    2023, as compared in Zhao et al., 2024).
    """

    @torch.no_grad()
    def vectors(self, view: EncoderView, x: Float[Tensor, "b T D"]) -> Float[Tensor, "b P E"]:
        if not isinstance(view, ClassTokenView):
            raise UserError("attribution=mask_clip needs a [CLS] token: for a SigLIP choose attribution=mask_siglip.")
        return token_vectors(view, x)


def token_vectors(view: ClassTokenView, x: Float[Tensor, "b T D"]) -> Float[Tensor, "b T-1 E"]:
    """Of each token behind the first, [CLS], its unit embedding times cos(W_o k, W_o k_CLS); x is the last input."""
    block = view.blocks[-1]
    keys = block.output(block.keys(x))
    weight = cosine(keys[:, 1:], keys[:, :1])
    embeddings = view.project(block.finish(x, block.values(x)))[:, 1:]
    return normalize(embeddings, dim=-1) * weight[..., None]


class MaskSigLIP(PatchVectors):
    """cos(u_p + MLP(LN(u_p)), text) with u_p = W_o (W_v z_p + b_v) + b_o of the pooling head, from -1 to 1.

    z is the normalised output of the encoder. Source: paper App. C.3.

    Differs from the paper's text: it does not say that the code behind the published numbers evaluates the last block
    of the encoder with a single head.

    Args:
        heads: ``one``: the attention of the last block has a single head over the full width; ``native``: it has the
            model's own heads.
    """

    def __init__(self, heads: str = "one") -> None:
        self.heads = check_heads(heads)

    @torch.no_grad()
    def vectors(self, view: EncoderView, x: Float[Tensor, "b T D"]) -> Float[Tensor, "b P E"]:
        if not isinstance(view, ProbeView):
            raise UserError("attribution=mask_siglip needs a pooling head: for a CLIP choose attribution=mask_clip.")
        _, x = last_block(view, self.heads).forward(x)
        head = view.head
        return normalize(head.finish(head.output(head.values(view.norm(x)))), dim=-1)
