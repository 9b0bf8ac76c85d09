"""SigLIP and the fixed-resolution SigLIP-2 of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel, SiglipModel

from metagame.models.encoder_views import ClassTokenView, ProbeView, siglip_head, transformers_block
from metagame.models.transformers_encoder import TransformersEncoder
from metagame.models.vision_language import Text


class SigLIP2(TransformersEncoder):
    """SiglipModel: a probe pools the patches, and the last token of the padded context pools the lower-case text.

    The NaFlex variants of SigLIP-2 have another architecture and are refused.
    """

    classes: ClassVar[dict[str, type[PreTrainedModel]]] = {"siglip": SiglipModel}
    clean: ClassVar[Callable[[str], str]] = str.lower

    @staticmethod
    def encoder_view_of(net: SiglipModel) -> ProbeView:
        vision = net.vision_model
        blocks = tuple(map(transformers_block, vision.encoder.layers))
        return ProbeView(blocks, vision.post_layernorm, siglip_head(vision.head))

    @staticmethod
    def text_view_of(net: SiglipModel) -> ClassTokenView:
        text = net.text_model

        def project(x: Tensor) -> Tensor:
            return text.head(text.final_layer_norm(x))

        return ClassTokenView((transformers_block(text.encoder.layers[-1]),), project)

    def place_read(self, text: Text) -> int:
        """The last position of the padded context, whose token attends to all others."""
        return self.padded_length(text) - 1
