"""CLIP and MetaCLIP-2 of transformers."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers import CLIPModel, PreTrainedModel
from transformers.models.metaclip_2 import MetaClip2Model

from metagame.models.encoder_views import ClassTokenView, transformers_block
from metagame.models.transformers_encoder import TransformersEncoder
from metagame.models.vision_language import Text


class CLIP(TransformersEncoder):
    """CLIPModel or MetaClip2Model: [CLS] becomes the image's embedding, and the first end token the text's."""

    classes: ClassVar[dict[str, type[PreTrainedModel]]] = {"clip": CLIPModel, "metaclip_2": MetaClip2Model}

    def padded_length(self, text: Text) -> int:
        """The next power of two; attention is causal and the end token is read, so padding changes nothing."""
        return min(self.tokenizer.context, max(8, 1 << (len(text.ids) - 1).bit_length()))

    @staticmethod
    def encoder_view_of(net: CLIPModel | MetaClip2Model) -> ClassTokenView:
        vision = net.vision_model

        def project(x: Tensor) -> Tensor:
            return net.visual_projection(vision.post_layernorm(x))

        return ClassTokenView(tuple(map(transformers_block, vision.encoder.layers)), project)

    @staticmethod
    def text_view_of(net: CLIPModel | MetaClip2Model) -> ClassTokenView:
        text = net.text_model

        def project(x: Tensor) -> Tensor:
            return net.text_projection(text.final_layer_norm(x))

        return ClassTokenView((transformers_block(text.encoder.layers[-1]),), project)
