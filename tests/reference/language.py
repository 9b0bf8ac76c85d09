"""Slow twins of AttnLRP and CP-LRP: a layer and a position at a time, without autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM


def gemma3_logits(net: Gemma3ForCausalLM, embeddings: Tensor) -> Tensor:
    """The logits at every position ``(n, v)``."""
    with torch.no_grad():
        return _norm(net.model.norm, _forward(net, embeddings)[-1].out) @ net.lm_head.weight.T


def gemma3_relevance(
    net: Gemma3ForCausalLM, embeddings: Tensor, first: int, answer: Sequence[int], constant_weights: Sequence[bool]
) -> np.ndarray:
    """Relevance ``(n,)`` of each scaled embedding for the mean logit of ``answer``, read from place ``first`` on.

    Rules (Achtibat et al., 2024): epsilon rule at 0 for sums and linear layers, identity rule for normalisers and the
    activation, uniform rule for products, deep Taylor rule for the softmax. Of CP-LRP (layers with
    ``constant_weights``) the same, but a product of values with attention weights, or with a gate, belongs to the
    values alone.
    """
    with torch.no_grad():
        layers = _forward(net, embeddings)
        normed = _norm(net.model.norm, layers[-1].out)
        relevance = torch.zeros_like(normed)
        for place, token in enumerate(answer, start=first):
            shares = normed[place] * net.lm_head.weight[token]
            logit = shares.sum()
            relevance[place] += shares / logit * (logit / len(answer))
        for layer, constant in zip(reversed(layers), reversed(constant_weights), strict=True):
            relevance = _through_feedforward(layer, relevance, constant)
            relevance = _through_attention(layer, relevance, constant)
        return relevance.sum(1).numpy()


def gemma3_frozen_parts(net: Gemma3ForCausalLM, embeddings: Tensor, first: int, answer: Sequence[int]) -> np.ndarray:
    """The mean logit of ``answer`` that each embedding makes alone, ``(n,)``, all others zero.

    Attention weights, gates and the scales of normalisers are those of the whole input.
    """

    def scaled(norm, x: Tensor, of: Tensor) -> Tensor:
        return x / torch.sqrt((of * of).mean(-1, keepdim=True) + norm.eps) * (1 + norm.weight)

    with torch.no_grad():
        layers = _forward(net, embeddings)
        parts = []
        for place in range(len(embeddings)):
            stream = torch.zeros_like(embeddings)
            stream[place] = embeddings[place]
            for layer in layers:
                block, attention, mlp = layer.block, layer.block.self_attn, layer.block.mlp
                values = scaled(block.input_layernorm, stream, layer.stream) @ attention.v_proj.weight.T
                values = values.unflatten(1, (-1, attention.head_dim)).transpose(0, 1)
                mixed = torch.cat([head.weights @ values[head.group] for head in layer.heads], dim=1)
                whole = layer.mixed @ attention.o_proj.weight.T
                stream = stream + scaled(block.post_attention_layernorm, mixed @ attention.o_proj.weight.T, whole)
                normed = scaled(block.pre_feedforward_layernorm, stream, layer.middle)
                gate = layer.gated / (layer.normed_middle @ mlp.up_proj.weight.T)
                fed = (gate * (normed @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
                whole = layer.gated @ mlp.down_proj.weight.T
                stream = stream + scaled(block.post_feedforward_layernorm, fed, whole)
            logits = scaled(net.model.norm, stream, layers[-1].out) @ net.lm_head.weight.T
            parts.append(sum(logits[first + step, token] for step, token in enumerate(answer)) / len(answer))
        return torch.stack(parts).numpy()


def _forward(net: Gemma3ForCausalLM, stream: Tensor) -> list[SimpleNamespace]:
    """Everything that each layer calculates."""
    layers = []
    for block in net.model.layers:
        sliding = block.attention_type == "sliding_attention"
        frequencies = (net.model.rotary_emb_local if sliding else net.model.rotary_emb).inv_freq
        rotations = torch.stack([_rotation(place * frequencies.double()) for place in range(len(stream))])
        layers.append(_layer(block, stream, rotations, net.config.sliding_window if sliding else len(stream)))
        stream = layers[-1].out
    return layers


def _layer(block, stream: Tensor, rotations: Tensor, window: int) -> SimpleNamespace:
    attention, mlp, width = block.self_attn, block.mlp, block.self_attn.head_dim
    n, n_heads = len(stream), attention.config.num_attention_heads
    normed = _norm(block.input_layernorm, stream)
    query, key, value = (
        (normed @ layer.weight.T).unflatten(1, (-1, width)).transpose(0, 1)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    normed_query, normed_key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    heads = []
    for head in range(n_heads):
        group = head * len(key) // n_heads
        rotated_query = torch.stack([rotations[p] @ normed_query[head, p] for p in range(n)])
        rotated_key = torch.stack([rotations[p] @ normed_key[group, p] for p in range(n)])
        scores = rotated_query @ rotated_key.T * attention.config.query_pre_attn_scalar**-0.5
        seen = torch.tensor([[q <= p and p - q < window for q in range(n)] for p in range(n)])
        exponents = torch.where(seen, (scores - scores.amax()).exp(), 0)
        weights = exponents / exponents.sum(1, keepdim=True)
        heads.append(
            SimpleNamespace(
                group=group, query=normed_query[head], key=normed_key[group], value=value[group],
                rotated_query=rotated_query, rotated_key=rotated_key, scores=scores, weights=weights,
                mixed=weights @ value[group],
            )
        )  # fmt: skip
    mixed = torch.cat([head.mixed for head in heads], dim=1)
    attended = _norm(block.post_attention_layernorm, mixed @ attention.o_proj.weight.T)
    middle = stream + attended
    normed_middle = _norm(block.pre_feedforward_layernorm, middle)
    gate, up = normed_middle @ mlp.gate_proj.weight.T, normed_middle @ mlp.up_proj.weight.T
    active = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    fed = _norm(block.post_feedforward_layernorm, (active * up) @ mlp.down_proj.weight.T)
    return SimpleNamespace(
        block=block, stream=stream, normed=normed, rotations=rotations, heads=heads, mixed=mixed, attended=attended,
        middle=middle, normed_middle=normed_middle, gated=active * up, fed=fed, out=middle + fed,
    )  # fmt: skip


def _norm(norm, x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps) * (1 + norm.weight)


def _rotation(angles: Tensor) -> Tensor:
    """The matrix that turns feature i and feature i + d/2 of a head by angle i."""
    half = len(angles)
    matrix = torch.zeros(2 * half, 2 * half, dtype=angles.dtype)
    for i, angle in enumerate(angles):
        matrix[i, i] = matrix[i + half, i + half] = angle.cos()
        matrix[i, i + half], matrix[i + half, i] = -angle.sin(), angle.sin()
    return matrix


def _through_feedforward(layer: SimpleNamespace, relevance: Tensor, constant_weights: bool) -> Tensor:
    mlp = layer.block.mlp
    relevance_gated = through_linear(layer.gated, mlp.down_proj.weight, layer.fed / layer.out * relevance)
    relevance_middle = layer.middle / layer.out * relevance
    if constant_weights:
        return relevance_middle + through_linear(layer.normed_middle, mlp.up_proj.weight, relevance_gated)
    return (
        relevance_middle
        + through_linear(layer.normed_middle, mlp.up_proj.weight, relevance_gated / 2)
        + through_linear(layer.normed_middle, mlp.gate_proj.weight, relevance_gated / 2)
    )


def _through_attention(layer: SimpleNamespace, relevance: Tensor, constant_weights: bool) -> Tensor:
    attention = layer.block.self_attn
    relevance_mixed = through_linear(layer.mixed, attention.o_proj.weight, layer.attended / layer.middle * relevance)
    width, n_groups = attention.head_dim, attention.config.num_key_value_heads
    to_query = torch.zeros(len(relevance), len(layer.heads), width, dtype=relevance.dtype)
    to_key, to_value = (torch.zeros(len(relevance), n_groups, width, dtype=relevance.dtype) for _ in range(2))
    for number, head in enumerate(layer.heads):
        from_head = relevance_mixed[:, number * width : (number + 1) * width]
        if constant_weights:
            _, value = through_product(head.weights, head.value, from_head, 0, 1)
            to_value[:, head.group] += value
            continue
        weights, value = through_product(head.weights, head.value, from_head)
        scores = head.scores * (weights - head.weights * weights.sum(1, keepdim=True))
        query, key = through_product(head.rotated_query, head.rotated_key.T, scores)
        for place, rotation in enumerate(layer.rotations):
            to_query[place, number] += through_linear(head.query[[place]], rotation, query[[place]])[0]
            to_key[place, head.group] += through_linear(head.key[[place]], rotation, key.T[[place]])[0]
        to_value[:, head.group] += value
    relevance_stream = layer.stream / layer.middle * relevance
    projections = (attention.q_proj, to_query), (attention.k_proj, to_key), (attention.v_proj, to_value)
    for projection, from_projection in projections[2:] if constant_weights else projections:
        relevance_stream = relevance_stream + through_linear(
            layer.normed, projection.weight, from_projection.flatten(1)
        )
    return relevance_stream


def through_linear(inputs: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """R_i = sum over outputs j of x_i w_ji / z_j R_j, position by position."""
    shares = inputs[:, None, :] * weight
    return (shares / shares.sum(2, keepdim=True) * relevance[:, :, None]).sum(1)


def through_product(
    left: Tensor, right: Tensor, relevance: Tensor, left_part: float = 0.5, right_part: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Each factor of a term of ``left @ right`` gets its part of the term's share of the relevance."""
    shares = left[:, :, None] * right
    terms = shares / shares.sum(1, keepdim=True) * relevance[:, None, :]
    return left_part * terms.sum(2), right_part * terms.sum(0)
