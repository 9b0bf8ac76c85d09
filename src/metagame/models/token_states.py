"""What a classifier's layers make of images of a concept, and how the logits of classes depend on that."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from metagame.contracts import BoundInput, Sample
from metagame.digests import file_digest
from metagame.errors import UserError
from metagame.models.attended import require_attention_weights
from metagame.models.token_batches import TokenBatches

LEAST = 10
"""Images that a concept needs."""
Content = tuple[Hashable, ...]
Slopes = tuple[Float[np.ndarray, "m L T d"], Float[np.ndarray, "m L T"]]


@dataclass(frozen=True)
class VisualConcept(Sample):
    """A concept, given by images, and the classes that it is scored for.

    Attributes:
        id: its name.
        examples: images of the concept; of the random concept those of all concepts.
        others: images of the other concepts; none of the random concept.
        classes: images of each class, by the name of its label.
        depending: the classes that are known to depend on the concept; None where nothing is known.
    """

    id: str
    examples: tuple[Sample, ...]
    others: tuple[Sample, ...]
    classes: Mapping[str, Sequence[Sample]]
    depending: tuple[str, ...] | None = None

    def files(self) -> Sequence[Path]:
        images = [*self.examples, *self.others, *(image for each in self.classes.values() for image in each)]
        return [path for image in images for path in image.files()]


@dataclass(frozen=True)
class TokenStates:
    """Outputs of a vision transformer's layers, and gradients with respect to them; each is computed once.

    Images are the same if their content is, since an id is unique in one benchmark only.

    Attributes:
        net: a classifier of transformers; of its T tokens [CLS] is the first and patches are the last.
        read: maps an image to pixels.
        batches: of images.
    """

    net: Any
    read: Callable[[Sample], Float[Tensor, "3 H W"]]
    batches: TokenBatches
    _states: dict[tuple[Content, tuple[int, ...]], np.ndarray] = field(default_factory=dict)
    _slopes: dict[tuple, Slopes] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return len(self.net.base_model.encoder.layer)

    @property
    def reads_patches(self) -> bool:
        """Whether the logits are read from the patches too, not from [CLS] alone: DINOv2's are, from their mean."""
        return self.net.config.model_type == "dinov2"

    def grid(self, pixels: Float[Tensor, "*k 3 H W"]) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.net.base_model.embeddings.patch_embeddings.patch_size[0]
        return pixels.shape[-2] // side, pixels.shape[-1] // side

    def states(self, images: Sequence[Sample], layers: tuple[int, ...]) -> Float[np.ndarray, "k L T d"]:
        """The outputs of these layers, counted from 1, of each image; one forward pass for each that is new."""
        contents = [content_of(image) for image in images]
        named = zip(contents, images, strict=True)
        new = {content: image for content, image in named if (content, layers) not in self._states}
        if new:
            found = self._in_batches(lambda pixels: self._forward(pixels, layers), new.values())
            self._states.update({(content, layers): own for content, own in zip(new, found, strict=True)})
        return np.stack([self._states[content, layers] for content in contents])

    def slopes(self, images: Sequence[Sample], label: int, layers: tuple[int, ...]) -> Slopes:
        """dz/dh, z the label's logit and h the output of a layer, and the attention of [CLS] in that layer.

        The attention is the mean over the layer's heads. One forward and one backward pass for each image.

        Raises:
            UserError: the model keeps no attention weights.
        """
        require_attention_weights(self.net)
        key = (tuple(map(content_of, images)), label, layers)
        if key not in self._slopes:
            both = self._in_batches(lambda pixels: self._backward(pixels, label, layers), images)
            self._slopes[key] = both[..., :-1], both[..., -1]
        return self._slopes[key]

    def _in_batches(
        self, function: Callable[[Tensor], Tensor], images: Iterable[Sample]
    ) -> Float[np.ndarray, "k L T w"]:
        pixels = torch.stack([self.read(image) for image in images])
        rows, columns = self.grid(pixels)
        return self.batches.map(lambda some: function(some).cpu(), pixels, 1 + rows * columns).numpy()

    @torch.no_grad()
    def _forward(self, pixels: Float[Tensor, "k 3 H W"], layers: tuple[int, ...]) -> Float[Tensor, "k L T d"]:
        with self._outputs(layers) as found:
            self.net(pixels)
        return torch.stack([found[layer] for layer in layers], 1)

    def _backward(
        self, pixels: Float[Tensor, "k 3 H W"], label: int, layers: tuple[int, ...]
    ) -> Float[Tensor, "k L T w"]:
        """The gradients, and the attention of [CLS] as their last column."""
        with torch.enable_grad(), self._outputs(layers) as found:
            answer = self.net(pixels.requires_grad_(), output_attentions=True)
        slopes = torch.autograd.grad(answer.logits[:, label].sum(), [found[layer] for layer in layers])
        read = [answer.attentions[layer - 1].detach().mean(1)[:, 0, :, None] for layer in layers]
        return torch.cat([torch.stack(slopes, 1), torch.stack(read, 1)], -1)

    @contextmanager
    def _outputs(self, layers: tuple[int, ...]) -> Generator[dict[int, Tensor]]:
        """Within: what each layer returns, before the model's last normalisation."""
        found: dict[int, Tensor] = {}

        def keep(module: nn.Module, given: Any, output: Tensor, layer: int) -> None:
            found[layer] = output

        blocks = self.net.base_model.encoder.layer
        handles = [blocks[layer - 1].register_forward_hook(partial(keep, layer=layer)) for layer in layers]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def content_of(image: Sample) -> Content:
    """What tells images apart: the content of their files, or their pixels where they have none."""
    if files := image.files():
        return tuple(map(file_digest, files))
    pixels = np.asarray(image.image())
    return pixels.shape, sha256(pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class ConceptInput(BoundInput):
    """A concept, bound to a model: the player is the concept, the targets are the classes.

    Attributes:
        sample: the concept.
        model: whose layers are looked at.
        class_labels: number of the label of each class.
        rows, columns: of patches, the last tokens of an image.
    """

    sample: VisualConcept
    model: TokenStates
    class_labels: Mapping[str, int]
    rows: int
    columns: int

    @property
    def players(self) -> tuple[str, ...]:
        return (self.sample.id,)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.class_labels)

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.columns


def bind_concept(sample: VisualConcept, model: TokenStates, labels: Sequence[str]) -> ConceptInput:
    """A concept with the labels of its classes.

    Raises:
        UserError: the concept has fewer than ten images, or a class is no label of the model.
    """
    if len(sample.examples) < LEAST:
        raise UserError(
            f"concept {sample.id} has {len(sample.examples)} images and needs {LEAST}: add images to it, or leave it"
            " out."
        )
    unknown = [name for name in sample.classes if labels.count(name) != 1]
    if unknown:
        raise UserError(
            f"class {unknown[0]} is not the name of exactly one label of this model: name its images after a"
            f" label, for example {labels[0]!r}."
        )
    rows, columns = model.grid(model.read(sample.examples[0]))
    return ConceptInput(sample, model, {name: labels.index(name) for name in sample.classes}, rows, columns)
