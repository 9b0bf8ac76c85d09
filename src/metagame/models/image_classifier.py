"""Vision transformers that classify images: patches are players, and embeddings of absent patches are replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    DeiTForImageClassification,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
)

from metagame.contracts import WHOLE, Failure, Model, Sample, prepare_each
from metagame.errors import UserError
from metagame.images import to_rgb
from metagame.models.classified import Classified, bind_classifier, label_names, label_number
from metagame.models.layers import refuse_half_precision
from metagame.models.pretrained import (
    check_evaluating,
    load_model,
    load_pretrained,
    model_revision,
    processed,
    settle_device,
)
from metagame.models.token_batches import TokenBatches
from metagame.models.token_states import ConceptInput, TokenStates, VisualConcept, bind_concept

CLASSES: dict[str, type[PreTrainedModel]] = {
    "vit": ViTForImageClassification,
    "deit": DeiTForImageClassification,
    "dinov2": Dinov2ForImageClassification,
}
"""Model class of each architecture that the adapter is for."""
ABSENT = ("zero", "mean")


@dataclass(frozen=True, kw_only=True)
class ClassifiedImage(Classified):
    """An image of a classifier, whose patches are players and targets.

    Attributes:
        rows, columns: of patches.
        pixels: what the model sees, in the range of its processor.
    """

    rows: int
    columns: int
    pixels: Float[Tensor, "3 H W"]

    @property
    def targets(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def picture(self) -> UInt8[np.ndarray, "H W 3"]:
        """What the model sees, stretched to the range from black to white."""
        pixels = self.pixels.cpu().double().permute(1, 2, 0).numpy()
        low, high = pixels.min(), pixels.max()
        return np.round(255 * (pixels - low) / max(high - low, 1e-12)).astype(np.uint8)


class ImageClassifier(Model[Sample, ClassifiedImage | ConceptInput]):
    """A vision transformer that classifies images, explained through the embeddings of its patches.

    Players are the patches; position embeddings and [CLS] are always present. f_S is the logit of one label: the one
    that is predicted for the whole image, unless ``explained_label`` is given. A concept is instead explained through
    the states of all tokens, see :class:`metagame.models.token_states.ConceptInput`.

    Args:
        net: the model, in evaluation mode.
        processor: its image processor.
        revision: identifies the weights.
        explained_label: name or number of the label that is explained; if None, the predicted one.
        absent: what replaces the embedding of an absent patch, whose position embedding is kept: ``zero``, or ``mean``
            for the mean over the image's patches.
        tokens_per_batch: number of patches in a forward and backward pass; it is reduced when memory runs out.

    Raises:
        UserError: the model has fewer than two labels or no label of that name, its weights are in half precision, or
            ``absent`` is neither.
    """

    sample_type = Sample
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"device", "tokens_per_batch"})

    def __init__(
        self,
        net: PreTrainedModel,
        processor: Any,
        revision: str,
        *,
        explained_label: int | str | None = None,
        absent: str = ABSENT[0],
        tokens_per_batch: int = 4096,
    ) -> None:
        if absent not in ABSENT:
            raise UserError(f"model.absent={absent!r} is unknown: choose one of {', '.join(ABSENT)}.")
        refuse_half_precision(net)
        self.net = net.eval().requires_grad_(False)
        self.processor = processor
        self.revision = revision
        self.device = str(net.device)
        self.labels = label_names(net)
        self.explained_label = label_number(explained_label, self.labels)
        self.absent = absent
        self.batches = TokenBatches(tokens_per_batch, "choose a model with fewer patches")
        self.states = TokenStates(net, self.pixels, self.batches)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        revision: str | None = None,
        device: str | None = None,
        attention: str | None = "eager",
        *,
        explained_label: int | str | None = None,
        absent: str = ABSENT[0],
        tokens_per_batch: int = 4096,
    ) -> Self:
        """Load a model in float32 from a folder, or by its id on the Hugging Face Hub.

        Args:
            checkpoint: the folder or id.
            revision: commit, tag or branch on the hub.
            device: ``cpu``, ``cuda``, ...; if None, the GPU if there is one.
            attention: the attention implementation that transformers uses; methods that read attention need ``eager``.
            explained_label: as for the class.
            absent: as for the class.
            tokens_per_batch: as for the class.

        Raises:
            UserError: the checkpoint cannot be loaded or has another architecture, or the class raises it.
        """
        net = load_model(CLASSES, checkpoint, revision, settle_device(device), attention)
        processor = load_pretrained(AutoImageProcessor.from_pretrained, checkpoint, revision, use_fast=False)
        found = model_revision(net, checkpoint)
        return cls(
            net, processor, found, explained_label=explained_label, absent=absent, tokens_per_batch=tokens_per_batch
        )

    def prepare(self, samples: Sequence[Sample]) -> list[Mapping[str, ClassifiedImage | ConceptInput] | Failure]:
        return prepare_each(self.bind_any, samples)

    def bind_any(self, sample: Sample) -> Mapping[str, ClassifiedImage | ConceptInput]:
        """The question about an image, or about a concept."""
        if isinstance(sample, VisualConcept):
            return {WHOLE: bind_concept(sample, self.states, self.labels)}
        return self.bind(sample)

    def pixels(self, sample: Sample) -> Float[Tensor, "3 H W"]:
        """The pixels that the model receives for an image.

        Raises:
            UserError: the sample has no image.
        """
        image = sample.image()
        if image is None:
            raise UserError(f"sample {sample.id} has no image: choose a benchmark of images.")
        return processed(self.processor, to_rgb(image, sample.id)).to(self.device, self.net.dtype)

    def bind(self, sample: Sample) -> dict[str, ClassifiedImage]:
        """The image as a masked model over the embeddings of its patches, ``(n, d)``.

        Raises:
            UserError: the sample has no image.
        """
        check_evaluating(self.net)
        pixels = self.pixels(sample)[None]
        embed = self.net.base_model.embeddings.patch_embeddings
        with torch.no_grad():
            x = embed(pixels)[0]
        side = embed.patch_size[0]
        rows, columns = pixels.shape[2] // side, pixels.shape[3] // side

        def run(inputs: Float[Tensor, "k n d"], **asked: bool) -> Any:
            handle = embed.register_forward_hook(lambda module, given, output: inputs)
            try:
                return self.net(pixels.expand(len(inputs), -1, -1, -1), **asked)
            finally:
                handle.remove()

        n_special = 2 if self.net.config.model_type == "deit" else 1  # DeiT's distillation token stands behind [CLS]
        absent = torch.zeros_like(x) if self.absent == "zero" else x.mean(0).expand_as(x)
        bound = bind_classifier(
            ClassifiedImage, self.net, run, x, absent, self.explained_label, self.batches, n_special + len(x),
            names=tuple(f"row {row}, column {column}" for row in range(rows) for column in range(columns)),
            places=tuple(range(n_special, n_special + len(x))), labels=self.labels,
            rows=rows, columns=columns, pixels=pixels[0],
        )  # fmt: skip
        return {WHOLE: bound}
