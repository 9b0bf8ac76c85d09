"""SigLIP and the fixed-resolution SigLIP-2 of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from transformers import PreTrainedModel, SiglipModel

from metagame.models.encoder_views import ProbeView, siglip_head, transformers_block
from metagame.models.transformers_encoder import TransformersEncoder


class SigLIP2(TransformersEncoder):
    """SiglipModel: a probe pools the patches, the last token of the padded context the text, which is in lower case.

    The NaFlex variants of SigLIP-2 are of another architecture, and refused.
    """

    classes: ClassVar[dict[str, type[PreTrainedModel]]] = {"siglip": SiglipModel}
    clean: ClassVar[Callable[[str], str]] = str.lower

    @staticmethod
    def encoder_view_of(net: SiglipModel) -> ProbeView:
        vision = net.vision_model
        blocks = tuple(map(transformers_block, vision.encoder.layers))
        return ProbeView(blocks, vision.post_layernorm, siglip_head(vision.head))
