"""CLIP and MetaCLIP-2 of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from transformers import CLIPModel, PreTrainedModel
from transformers.models.metaclip_2 import MetaClip2Model

from metagame.contracts import Failure
from metagame.errors import UserError
from metagame.models.encoder_views import ClassTokenView, transformers_block
from metagame.models.transformers_encoder import TransformersEncoder
from metagame.models.vision_language import ImageText, Sample, Text


class CLIP(TransformersEncoder):
    """CLIPModel or MetaClip2Model: [CLS] becomes the image's embedding, and the first end token the text's."""

    classes: ClassVar[dict[str, type[PreTrainedModel]]] = {"clip": CLIPModel, "metaclip_2": MetaClip2Model}

    def prepare(self, samples: Sequence[Sample]) -> list[Mapping[str, ImageText] | Failure]:
        if self.dtype == torch.float64 and torch.get_default_dtype() != torch.float64:  # in which the mask is made
            refusal = UserError(
                "the causal mask of transformers' CLIP does not hold float64: load the model in float32."
            )
            return [Failure(refusal) for _ in samples]
        return super().prepare(samples)

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
