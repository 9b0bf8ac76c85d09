"""Generic attention relevance (Chefer et al., 2021) of image patches for an image-text logit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from metagame.attributions.method import FirstOrder
from metagame.errors import UserError
from metagame.games import AttributionGame
from metagame.models.encoder_views import ClassTokenView, EncoderView, ProbeView
from metagame.models.vision_language import ImageText


@dataclass(frozen=True)
class Trace:
    """What images leave behind on their way from a block to their unit embeddings ``(b, E)``, with its graph.

    ``weights``: attention of the blocks, ``(b, h, T, T)``; of a last block before a [CLS] token its row only,
    ``(b, h, 1, T)``; of a pooling head, last, ``(b, h, 1, P)``.
    """

    weights: list[Tensor]
    embeddings: Float[Tensor, "b E"]


class GenericAttention(FirstOrder[ImageText]):
    """R <- R + (mean_h(dz/dA) * mean_h(A))+ from R = I, z the logit; the map is R's row of [CLS], without [CLS].

    A SigLIP has no [CLS]: its map is A_map R with A_map = mean_h((dz/dA * A)+) of the pooling head. Non-negative, in
    units of the logit. Source: paper App. C.3; the update is that of the published numbers.

    Differs from the paper's text: it cites Chefer et al. (2021, Eqs. 5-6), whose update is R + mean_h((dz/dA * A)+) R;
    that is ``product="mean_of"``.

    Args:
        start_layer: the first block that contributes, from 0 to the number of blocks - 1; ``last`` as in the paper.
        product: ``of_means``: the product of the two means over heads, rectified; ``mean_of``: the mean over heads of
            each head's rectified product. The pooling head of a SigLIP always has the latter.
    """

    input_type = ImageText
    endogenous = False

    def __init__(self, start_layer: int | str = "last", product: str = "of_means") -> None:
        if start_layer != "last" and (type(start_layer) is not int or start_layer < 0):
            raise UserError(f"start_layer={start_layer!r} must be 'last' or the number of a block, counted from 0.")
        if product not in UPDATES:
            raise UserError(f"product={product!r} must be 'of_means' or 'mean_of'.")
        self.start_layer = start_layer
        self.product = product

    def game(self, bound: ImageText) -> AttributionGame:
        view = bound.model.encoder_view
        start, path = self._start(view), ("attention", self.start_layer)
        company = bound.image.company(n_blocks=len(view.blocks) - start + isinstance(view, ProbeView))
        trace, name = (
            company.keep(path, lambda: run_from(view, company.block_input(start), start)),
            (*path, self.product),
        )

        def attribute(texts: Float[Tensor, "k E"]) -> Float[Tensor, "k b P"]:
            seeds = (texts * bound.model.logit_scale)[:, None].expand(-1, len(trace.embeddings), -1)
            gradients = torch.autograd.grad(
                trace.embeddings, trace.weights, seeds, is_grads_batched=True, retain_graph=True
            )
            with torch.no_grad():
                return relevance(view, trace.weights, gradients, UPDATES[self.product])

        return AttributionGame(lambda coalitions: bound.maps(name, coalitions, attribute, company), bound.n_players)

    def _start(self, view: EncoderView) -> int:
        n_blocks = len(view.blocks)
        start = self.start_layer if isinstance(self.start_layer, int) else n_blocks - 1
        if start >= n_blocks:
            raise UserError(f"start_layer={start} does not exist: the image encoder has blocks 0 to {n_blocks - 1}.")
        return start


@torch.enable_grad()
def run_from(view: EncoderView, x: Float[Tensor, "b T D"], start: int) -> Trace:
    """Run the encoder from block ``start`` on; the last block of a [CLS] encoder for the [CLS] token only."""
    x = x.detach().requires_grad_()  # so that the first weights have a graph although no weight of the model needs one
    weights = []
    *inner, last = view.blocks[start:]
    for block in inner:
        attention, x = block.forward(x)
        weights.append(attention)
    if isinstance(view, ClassTokenView):
        attention, x = last.forward(x, rows=slice(0, 1))
        embeddings = view.project(x[:, 0])
    else:
        attention, x = last.forward(x)
        weights.append(attention)
        attention, embeddings = view.head.forward(view.norm(x))
    return Trace([*weights, attention], normalize(embeddings, dim=-1))


def of_means(weights: Tensor, gradients: Tensor) -> Float[Tensor, "k b Q T"]:
    """(mean_h(dz/dA) * mean_h(A))+ of each seed."""
    return (gradients.mean(2) * weights.mean(1)).clamp(min=0)


def mean_of(weights: Tensor, gradients: Tensor) -> Float[Tensor, "k b Q T"]:
    """mean_h((dz/dA * A)+) of each seed."""
    return (gradients * weights).clamp(min=0).mean(2)


UPDATES = {"of_means": of_means, "mean_of": mean_of}


def relevance(
    view: EncoderView, weights: list[Tensor], gradients: tuple[Tensor, ...], update: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, "k b P"]:
    """The map of each of k seeds from attention weights ``(b, h, ., T)`` and their gradients ``(k, b, h, ., T)``."""
    r = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype, device=weights[0].device)
    for a, g in zip(weights[:-1], gradients[:-1], strict=True):
        r = r + update(a, g) @ r
    if isinstance(view, ProbeView):  # rectified before the mean over heads, and without a residual
        return (mean_of(weights[-1], gradients[-1]) @ r)[..., 0, :]
    return (r[..., :1, :] + update(weights[-1], gradients[-1]) @ r)[..., 0, 1:]
