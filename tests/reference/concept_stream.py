"""Slow twin of the concept stream: the double-stream blocks from their equations, a head and a position at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformerBlock
from torch import Tensor, nn

TIME_WIDTH = 256


def concept_logits(
    transformer: FluxTransformer2DModel,
    inputs: dict[str, Any],
    encodings: Tensor,
    cross_attention: bool,
    pooled: bool = True,
) -> Tensor:
    """<o_image_p, o_concept> in every block, ``(L, n, P)``."""
    return torch.stack([layer.logits for layer in forward(transformer, inputs, encodings, cross_attention, pooled)])


def forward(
    transformer: FluxTransformer2DModel,
    inputs: dict[str, Any],
    encodings: Tensor,
    cross_attention: bool,
    pooled: bool = True,
) -> list[SimpleNamespace]:
    """The image, text and concepts behind each double-stream block, and the logits in it, all in float64.

    The pooled text vector modulates the concepts only if they are ``pooled``.
    """
    with torch.no_grad():
        image = _linear(transformer.x_embedder, inputs["hidden_states"][0].double())
        text = _linear(transformer.context_embedder, inputs["encoder_hidden_states"][0].double())
        concepts = _linear(transformer.context_embedder, encodings.double())
        condition = _silu(_condition(transformer, inputs))
        blank = inputs | {"pooled_projections": torch.zeros_like(inputs["pooled_projections"])}
        of_concepts = condition if pooled else _silu(_condition(transformer, blank))
        rotations = torch.stack([_rotation(transformer, place) for place in inputs["img_ids"].double()])
        layers = []
        for block in transformer.transformer_blocks:
            layers.append(_block(block, image, text, concepts, condition, of_concepts, rotations, cross_attention))
            image, text, concepts = layers[-1].image, layers[-1].text, layers[-1].concepts
        return layers


def _block(
    block: FluxTransformerBlock,
    image: Tensor,
    text: Tensor,
    concepts: Tensor,
    condition: Tensor,
    condition_of_concepts: Tensor,
    rotations: Tensor,
    cross_attention: bool,
) -> SimpleNamespace:
    attention = block.attn
    of_image = _modulation(block.norm1, condition)
    of_text = _modulation(block.norm1_context, condition)
    of_concepts = _modulation(block.norm1_context, condition_of_concepts)
    image_queries, image_keys, image_values = _projected(
        _modulated(image, of_image.shift, of_image.scale),
        (attention.to_q, attention.to_k, attention.to_v), (attention.norm_q, attention.norm_k), attention.heads,
    )  # fmt: skip
    image_queries, image_keys = (
        torch.stack(
            [torch.stack([rotation @ row for rotation, row in zip(rotations, head, strict=True)]) for head in x]
        )
        for x in (image_queries, image_keys)
    )
    (text_queries, text_keys, text_values), (queries, own_keys, own_values) = (
        _projected(
            _modulated(stream, modulation.shift, modulation.scale),
            (attention.add_q_proj, attention.add_k_proj, attention.add_v_proj),
            (attention.norm_added_q, attention.norm_added_k), attention.heads,
        )
        for stream, modulation in ((text, of_text), (concepts, of_concepts))
    )  # fmt: skip
    keys, values = torch.cat([text_keys, image_keys], 1), torch.cat([text_values, image_values], 1)
    image_outputs, text_outputs = _attend(image_queries, keys, values), _attend(text_queries, keys, values)
    if cross_attention:
        keys, values = torch.cat([own_keys, image_keys], 1), torch.cat([own_values, image_values], 1)
    else:
        keys, values = image_keys, image_values
    outputs = _attend(queries, keys, values)
    return SimpleNamespace(
        image=_behind(image, image_outputs, of_image, attention.to_out[0], block.ff),
        text=_behind(text, text_outputs, of_text, attention.to_add_out, block.ff_context),
        concepts=_behind(concepts, outputs, of_concepts, attention.to_add_out, block.ff_context),
        logits=torch.stack([torch.stack([(o_image * o).sum() for o_image in image_outputs]) for o in outputs]),
    )


def _modulation(norm: nn.Module, condition: Tensor) -> SimpleNamespace:
    names = ("shift", "scale", "gate", "mlp_shift", "mlp_scale", "mlp_gate")
    return SimpleNamespace(**dict(zip(names, _linear(norm.linear, condition).chunk(6), strict=True)))


def _modulated(stream: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    centred = stream - stream.mean(1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(1, keepdim=True) + 1e-6) * (1 + scale) + shift


def _projected(
    normed: Tensor, layers: tuple[nn.Linear, ...], norms: tuple[nn.RMSNorm, nn.RMSNorm], n_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, ``(heads, n, d)``, the first two normed."""
    queries, keys, values = (torch.stack(_linear(layer, normed).chunk(n_heads, 1)) for layer in layers)
    queries, keys = (
        x / torch.sqrt((x * x).mean(2, keepdim=True) + norm.eps) * norm.weight.double()
        for x, norm in zip((queries, keys), norms, strict=True)
    )
    return queries, keys, values


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Heads side by side, ``(n, heads * d)``."""
    mixed = []
    for query, key, value in zip(queries, keys, values, strict=True):
        scores = query @ key.T / math.sqrt(query.shape[1])
        exponents = (scores - scores.amax()).exp()
        mixed.append(exponents / exponents.sum(1, keepdim=True) @ value)
    return torch.cat(mixed, 1)


def _behind(
    stream: Tensor, outputs: Tensor, modulation: SimpleNamespace, projection: nn.Linear, feedforward: nn.Module
) -> Tensor:
    """A stream behind a block: what attention adds, then what the MLP adds."""
    stream = stream + modulation.gate * _linear(projection, outputs)
    up, _, down = feedforward.net
    hidden = _linear(up.proj, _modulated(stream, modulation.mlp_shift, modulation.mlp_scale))
    active = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    return stream + modulation.mlp_gate * _linear(down, active)


def _condition(transformer: FluxTransformer2DModel, inputs: dict[str, Any]) -> Tensor:
    """What modulates the blocks: the time, the pooled text and, where there is one, the guidance."""
    embedder = transformer.time_text_embed
    condition = _two_layers(embedder.timestep_embedder, _waves(inputs["timestep"]))
    condition = condition + _two_layers(embedder.text_embedder, inputs["pooled_projections"][0].double())
    if "guidance" in inputs:
        condition = condition + _two_layers(embedder.guidance_embedder, _waves(inputs["guidance"]))
    return condition


def _waves(number: Tensor) -> Tensor:
    # diffusers has these frequencies in float32 whatever the weights are
    frequencies = (-math.log(10000) * torch.arange(TIME_WIDTH // 2, dtype=torch.float32) / (TIME_WIDTH // 2)).exp()
    angles = 1000 * number.double() * frequencies.double()
    return torch.cat([angles.cos(), angles.sin()])


def _two_layers(embedder: nn.Module, x: Tensor) -> Tensor:
    return _linear(embedder.linear_2, _silu(_linear(embedder.linear_1, x)))


def _rotation(transformer: FluxTransformer2DModel, place: Tensor) -> Tensor:
    """The matrix that turns features 2i and 2i + 1 of the d that an axis has by the place on it times theta^(-2i/d)."""
    embedding = transformer.pos_embed
    matrix = torch.zeros(sum(embedding.axes_dim), sum(embedding.axes_dim), dtype=torch.float64)
    start = 0
    for coordinate, width in zip(place.tolist(), embedding.axes_dim, strict=True):
        for i in range(0, width, 2):
            angle = coordinate * embedding.theta ** (-i / width)
            row = start + i
            matrix[row, row] = matrix[row + 1, row + 1] = math.cos(angle)
            matrix[row, row + 1], matrix[row + 1, row] = -math.sin(angle), math.sin(angle)
        start += width
    return matrix


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.double().T + layer.bias.double()
