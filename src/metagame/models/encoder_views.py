"""Views of image encoders: their last blocks taken apart, with their own sub-modules.

Shapes: B images, T tokens (patches, and [CLS] first where there is one), D width, E width of the shared space, h heads.
A block maps x to ``finish(x, o)`` with o the attention output before its output projection W_o.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from metagame.errors import UserError

Map = Callable[[Tensor], Tensor]
ForeignModule = Any
"""A part of a library's model; Any, since torch takes the parts of a module for ``Tensor | Module``."""


def attend(
    q: Float[Tensor, "B Q D"], k: Float[Tensor, "B T D"], v: Float[Tensor, "B T D"], n_heads: int
) -> tuple[Float[Tensor, "B h Q T"], Float[Tensor, "B Q D"]]:
    """Attention weights softmax(q k^T / sqrt(D / h)) of each head, and their mix of v, heads concatenated."""
    q, k, v = (x.unflatten(-1, (n_heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return weights, (weights @ v).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Block:
    """A pre-norm transformer block.

    Attributes:
        module: the block in the model; its input is x.
        n_heads: of its attention.
        queries, keys, values: x -> q, k, v, the layer norm included.
        output: W_o with its bias.
        finish: (x, o) -> output of the block: both residuals and the MLP.
    """

    module: nn.Module
    n_heads: int
    queries: Map
    keys: Map
    values: Map
    output: Map
    finish: Callable[[Tensor, Tensor], Tensor]

    def forward(self, x: Float[Tensor, "B T D"], rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Attention weights and output of the block for the tokens in ``rows``."""
        weights, o = attend(self.queries(x[:, rows]), self.keys(x), self.values(x), self.n_heads)
        return weights, self.finish(x[:, rows], o)


@dataclass(frozen=True)
class ClassTokenView:
    """An encoder whose [CLS] token, the first, becomes the image embedding (CLIP).

    Attributes:
        blocks: in order.
        project: last hidden state of tokens -> shared space (norm and projection).
    """

    blocks: tuple[Block, ...]
    project: Map


@dataclass(frozen=True)
class PoolingHead:
    """Multi-head attention pooling: a probe attends to z, the normed output of the encoder (SigLIP).

    Attributes:
        n_heads: of its attention.
        query: gives the probe's query, ``(1, 1, D)``.
        keys, values: z -> k, v.
        output: W_o with its bias.
        finish: u = W_o o -> u + MLP(LN(u)), the embedding.
    """

    n_heads: int
    query: Callable[[], Float[Tensor, "1 1 D"]]
    keys: Map
    values: Map
    output: Map
    finish: Map

    def forward(self, z: Float[Tensor, "B P D"]) -> tuple[Float[Tensor, "B h 1 P"], Float[Tensor, "B D"]]:
        """Attention weights of the probe, and the embedding of the image."""
        query = self.query().expand(len(z), -1, -1)
        weights, o = attend(query, self.keys(z), self.values(z), self.n_heads)
        return weights, self.finish(self.output(o))[:, 0]


@dataclass(frozen=True)
class ProbeView:
    """An encoder of patches only, pooled by a head (SigLIP).

    Attributes:
        blocks: in order.
        norm: of the last block's output; gives z.
        head: z -> embedding.
    """

    blocks: tuple[Block, ...]
    norm: Map
    head: PoolingHead


EncoderView = ClassTokenView | ProbeView
HEADS = ("one", "native")


def embed_from(view: EncoderView, x: Float[Tensor, "B T D"], start: int = -1) -> Float[Tensor, "B E"]:
    """The image embeddings, not normalised, of what block ``start`` is given."""
    *inner, last = view.blocks[start:]
    for block in inner:
        _, x = block.forward(x)
    if isinstance(view, ClassTokenView):
        return view.project(last.forward(x, rows=slice(0, 1))[1][:, 0])
    return view.head.forward(view.norm(last.forward(x)[1]))[1]


def check_heads(heads: str) -> str:
    """``heads``, as :func:`last_block` takes it.

    Raises:
        UserError: it is neither ``one`` nor ``native``.
    """
    if heads not in HEADS:
        raise UserError(f"heads={heads!r} must be 'one' or 'native'.")
    return heads


def last_block(view: EncoderView, heads: str) -> Block:
    """The last block; ``one``: its attention has a single head over the full width (softmax(q k^T / sqrt(D)))."""
    block = view.blocks[-1]
    return replace(block, n_heads=1) if heads == "one" else block


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine along the last axis."""
    return (normalize(a, dim=-1) * normalize(b, dim=-1)).sum(-1)


def transformers_block(layer: ForeignModule) -> Block:
    """A layer of CLIPModel, MetaClip2Model or SiglipModel, which name their parts alike."""
    attention = layer.self_attn

    def finish(x: Tensor, o: Tensor) -> Tensor:
        x = x + attention.out_proj(o)
        return x + layer.mlp(layer.layer_norm2(x))

    return Block(
        layer,
        attention.num_heads,
        queries=lambda x: attention.q_proj(layer.layer_norm1(x)),
        keys=lambda x: attention.k_proj(layer.layer_norm1(x)),
        values=lambda x: attention.v_proj(layer.layer_norm1(x)),
        output=attention.out_proj,
        finish=finish,
    )


def open_clip_block(block: ForeignModule) -> Block:
    """A ResidualAttentionBlock of open_clip; its layer scales are part of ``finish``."""
    queries, keys, values = packed_projections(block.attn)

    def finish(x: Tensor, o: Tensor) -> Tensor:
        x = x + block.ls_1(block.attn.out_proj(o))
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    return Block(
        block,
        block.attn.num_heads,
        queries=lambda x: queries(block.ln_1(x)),
        keys=lambda x: keys(block.ln_1(x)),
        values=lambda x: values(block.ln_1(x)),
        output=block.attn.out_proj,
        finish=finish,
    )


def packed_projections(attention: nn.MultiheadAttention) -> tuple[Map, Map, Map]:
    """The query, key and value maps of torch's attention, which stores them as one matrix."""

    def projection(part: int) -> Map:
        return lambda x: linear(x, attention.in_proj_weight.chunk(3)[part], attention.in_proj_bias.chunk(3)[part])

    return projection(0), projection(1), projection(2)


def siglip_head(head: ForeignModule) -> PoolingHead:
    """The pooling head of SiglipModel."""
    attention = head.attention
    queries, keys, values = packed_projections(attention)

    def finish(u: Tensor) -> Tensor:
        return u + head.mlp(head.layernorm(u))

    return PoolingHead(attention.num_heads, lambda: queries(head.probe), keys, values, attention.out_proj, finish)
