"""What the adapters of transformers' two-tower models have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, CLIPModel, PreTrainedModel, SiglipModel
from transformers.models.metaclip_2 import MetaClip2Model

from metagame.models.encoder_views import ClassTokenView, EncoderView
from metagame.models.pretrained import PretrainedTokenizer, load_model, load_pretrained, model_revision, processed
from metagame.models.vision_language import Text, VisionLanguage, padded


class TransformersEncoder(VisionLanguage):
    """A two-tower model of transformers.

    Args:
        net: the model.
        processor: its image processor.
        tokenizer, revision, batch_size: as for :class:`VisionLanguage`.

    Attributes:
        classes: model class of each architecture that the adapter is for.
        clean: what is done to a text before it is tokenized.
    """

    net: CLIPModel | MetaClip2Model | SiglipModel
    classes: ClassVar[dict[str, type[PreTrainedModel]]]
    clean: ClassVar[Callable[[str], str]] = str

    def __init__(
        self,
        net: PreTrainedModel,
        processor: Any,
        tokenizer: PretrainedTokenizer,
        revision: str,
        batch_size: int = 50,
    ) -> None:
        super().__init__(net, self.encoder_view_of(net), tokenizer, revision, batch_size)
        self.processor = processor

    @staticmethod
    @abstractmethod
    def encoder_view_of(net: Any) -> EncoderView:
        """The image encoder of a model of one of the ``classes``, taken apart."""

    @staticmethod
    @abstractmethod
    def text_view_of(net: Any) -> ClassTokenView:
        """The last block of the text encoder of such a model, see :attr:`VisionLanguage.text_view`."""

    @classmethod
    def load(
        cls,
        checkpoint: str,
        revision: str | None = None,
        device: str | None = None,
        batch_size: int = 50,
        attention: str | None = None,
    ) -> Self:
        """From a folder, or an id on the Hugging Face hub.

        Args:
            checkpoint: the folder or id.
            revision: commit, tag or branch on the hub.
            device: ``cpu``, ``cuda``, ...; None: the GPU where there is one.
            batch_size: the most images to encode together.
            attention: the implementation that transformers is to use; None: its own choice.

        Raises:
            UserError: the checkpoint cannot be loaded, or is of another architecture.
        """
        net = load_model(cls.classes, checkpoint, revision, device, attention)
        processor = load_pretrained(AutoImageProcessor.from_pretrained, checkpoint, revision, use_fast=False)
        context = net.config.text_config.max_position_embeddings
        tokenizer = PretrainedTokenizer.load(checkpoint, revision, context, cls.clean)
        return cls(net, processor, tokenizer, model_revision(net, checkpoint), batch_size)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        return self.net.logit_scale.exp().squeeze()

    @property
    def patch_size(self) -> int:
        return self.net.config.vision_config.patch_size

    @property
    def text_blocks(self) -> Sequence[nn.Module]:
        return list(self.net.text_model.encoder.layers)

    @property
    def text_view(self) -> ClassTokenView:
        return self.text_view_of(self.net)

    def process(self, image: Image.Image) -> Float[Tensor, "3 H W"]:
        return processed(self.processor, image)

    def encode_images(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        return self.net.get_image_features(pixel_values=pixels)

    def encode_texts(self, texts: Sequence[Text]) -> Float[Tensor, "k E"]:
        ids, attended = padded(texts, self.padded_length(texts[0]), self.tokenizer.pad_id)
        mask = attended.to(self.device, torch.long)
        return self.net.get_text_features(input_ids=ids.to(self.device), attention_mask=mask)
