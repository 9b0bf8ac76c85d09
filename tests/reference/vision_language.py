"""Slow twins of the maps of vision-language encoders, and of FIxLIP: one image, one text, a loop for every sum.

Models are CLIPModel, MetaClip2Model or SiglipModel of transformers; pixels are ``(3, H, W)``, ids those of one text,
padded as the model expects. Attention is written out with the model's weights, head by head, so that float64 stays
float64; a text has one backward pass of its own, through the whole image encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity


@dataclass
class Pass:
    """An image's way through the encoder.

    ``inputs[l]``: what layer l is given, ``(T, D)``; ``weights[l]``: its attention, a ``(T, T)`` matrix for each head;
    ``output``: of the last layer.
    """

    inputs: list[Tensor]
    weights: list[list[Tensor]]
    output: Tensor


def has_class_token(model: nn.Module) -> bool:
    return hasattr(model, "visual_projection")


def attend(q: Tensor, k: Tensor, v: Tensor, n_heads: int, causal: bool = False) -> tuple[list[Tensor], Tensor]:
    """softmax(q k^T / sqrt(d)) of each head, and the heads' mixes of v side by side; ``causal``: of no later token."""
    width = q.shape[1] // n_heads
    later = torch.ones(len(q), len(k)).triu(1).bool() & causal
    weights, mixed = [], []
    for head in range(n_heads):
        part = slice(head * width, (head + 1) * width)
        scores = (q[:, part] @ k[:, part].T / width**0.5).masked_fill(later, float("-inf"))
        weights.append(torch.softmax(scores, dim=1))
        mixed.append(weights[head] @ v[:, part])
    return weights, torch.cat(mixed, dim=1)


def projections(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of a layer of the encoder."""
    normed = layer.layer_norm1(x)
    return layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed), layer.self_attn.v_proj(normed)


def finish(layer: nn.Module, x: Tensor, o: Tensor) -> Tensor:
    """W_o, residual, MLP, residual."""
    x = x + layer.self_attn.out_proj(o)
    return x + layer.mlp(layer.layer_norm2(x))


def encode(model: nn.Module, pixels: Tensor, heads: str = "native") -> Pass:
    """All layers of the image encoder, the last with ``heads``; attention weights are part of the graph."""
    vision = model.vision_model
    x = vision.embeddings(pixels[None])[0]
    if has_class_token(model):
        x = vision.pre_layrnorm(x)
    x = x.detach().requires_grad_()
    inputs, weights = [], []
    for layer in vision.encoder.layers:
        inputs.append(x)
        one = heads == "one" and layer is vision.encoder.layers[-1]
        of_layer, o = attend(*projections(layer, x), 1 if one else layer.self_attn.num_heads)
        weights.append(of_layer)
        x = finish(layer, x, o)
    return Pass(inputs, weights, x)


def project(model: nn.Module, token: Tensor) -> Tensor:
    """A token of the last layer in the shared space of a CLIP."""
    return model.visual_projection(model.vision_model.post_layernorm(token))


def pool(model: nn.Module, z: Tensor) -> tuple[list[Tensor], Tensor]:
    """The pooling head of a SigLIP on normed tokens z: the probe's attention, ``(1, P)`` a head, and the embedding."""
    head = model.vision_model.head
    (w_q, w_k, w_v), (b_q, b_k, b_v) = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
    weights, o = attend(head.probe[0] @ w_q.T + b_q, z @ w_k.T + b_k, z @ w_v.T + b_v, head.attention.num_heads)
    u = head.attention.out_proj(o)
    return weights, (u + head.mlp(head.layernorm(u)))[0]


def embedding(model: nn.Module, x: Tensor) -> Tensor:
    """``(E,)``, not normalised, of what the last layer puts out."""
    if has_class_token(model):
        return project(model, x[0])
    return pool(model, model.vision_model.post_layernorm(x))[1]


def image_embedding(model: nn.Module, pixels: Tensor) -> Tensor:
    """``(E,)``, not normalised."""
    return embedding(model, encode(model, pixels).output)


@torch.no_grad()
def text_embedding(model: nn.Module, ids: Sequence[int], attended: Sequence[bool] | None = None) -> Tensor:
    """``(E,)``, not normalised; the attention mask is 0 where ``attended`` is False."""
    mask = None if attended is None else torch.tensor([attended]).long()
    return model.get_text_features(input_ids=torch.tensor([ids]), attention_mask=mask)[0]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return cosine_similarity(a, b, dim=0)


def mean(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors) / len(tensors)


def attention(
    model: nn.Module, pixels: Tensor, ids: Sequence[int], start_layer: int | str = "last", product: str = "of_means"
) -> np.ndarray:
    """R <- R + (mean_h(dz/dA) * mean_h(A))+ R, or R + mean_h((dz/dA * A)+) R, from R = I, z the logit; row [CLS]."""
    run = encode(model, pixels)
    logit = model.logit_scale.exp() * cosine(project(model, run.output[0]), text_embedding(model, ids))
    return _relevance(run, logit, start_layer, product)[0, 1:].detach().numpy()


def attention_siglip(
    model: nn.Module, pixels: Tensor, ids: Sequence[int], start_layer: int | str = "last", product: str = "of_means"
) -> np.ndarray:
    """The same R, then mean_h((dz/dA_map * A_map)+) R with A_map of the pooling head."""
    run = encode(model, pixels)
    map_weights, embedding = pool(model, model.vision_model.post_layernorm(run.output))
    logit = model.logit_scale.exp().squeeze() * cosine(embedding, text_embedding(model, ids))
    relevance = _relevance(run, logit, start_layer, product)
    gradients = torch.autograd.grad(logit, map_weights, retain_graph=True)
    a_map = mean([(g * a).relu() for g, a in zip(gradients, map_weights, strict=True)])
    return (a_map @ relevance)[0].detach().numpy()


def _relevance(run: Pass, logit: Tensor, start_layer: int | str, product: str) -> Tensor:
    relevance = torch.eye(len(run.output), dtype=run.output.dtype)
    for weights in run.weights[-1:] if start_layer == "last" else run.weights[start_layer:]:
        gradients = torch.autograd.grad(logit, weights, retain_graph=True)
        if product == "of_means":
            update = (mean(gradients) * mean(weights)).relu()
        else:
            update = mean([(g * a).relu() for g, a in zip(gradients, weights, strict=True)])
        relevance = relevance + update @ relevance
    return relevance


def mask_clip(model: nn.Module, pixels: Tensor, ids: Sequence[int]) -> np.ndarray:
    """cos(patch p's value through W_o, residual, MLP, norm and projection, text) * cos(W_o k_p, W_o k_CLS)."""
    x, layer = encode(model, pixels).inputs[-1], model.vision_model.encoder.layers[-1]
    return _mask_clip(layer, x, 0, range(1, len(x)), partial(project, model), text_embedding(model, ids))


def _mask_clip(
    layer: nn.Module, x: Tensor, read: int, tokens: range, embed: Callable[[Tensor], Tensor], other: Tensor
) -> np.ndarray:
    _, k, v = projections(layer, x)
    w_o = layer.self_attn.out_proj
    values = [cosine(embed(finish(layer, x[t], v[t])), other) * cosine(w_o(k[t]), w_o(k[read])) for t in tokens]
    return torch.stack(values).detach().numpy()


def mask_siglip(model: nn.Module, pixels: Tensor, ids: Sequence[int], heads: str = "one") -> np.ndarray:
    """cos(u_p + MLP(LN(u_p)), text), u_p = W_o (W_v z_p + b_v) + b_o of the pooling head."""
    head, text = model.vision_model.head, text_embedding(model, ids)
    w_v, b_v = head.attention.in_proj_weight.chunk(3)[2], head.attention.in_proj_bias.chunk(3)[2]
    w_o, b_o = head.attention.out_proj.weight, head.attention.out_proj.bias
    values = []
    for z_p in model.vision_model.post_layernorm(encode(model, pixels, heads).output):
        u = w_o @ (w_v @ z_p + b_v) + b_o
        values.append(cosine(u + head.mlp(head.layernorm(u)), text).item())
    return np.array(values)


def grad_eclip(model: nn.Module, pixels: Tensor, ids: Sequence[int], heads: str = "one") -> np.ndarray:
    """(sum_d g_d v_pd lambda_p)+, g = dcos/do at [CLS], lambda_p = cos(W_o q_CLS, W_o k_p) scaled to [0, 1]."""
    x, layer = encode(model, pixels).inputs[-1].detach(), model.vision_model.encoder.layers[-1]
    return _grad_eclip(layer, x, 0, range(1, len(x)), heads, partial(project, model), text_embedding(model, ids))


def _grad_eclip(
    layer: nn.Module,
    x: Tensor,
    read: int,
    tokens: range,
    heads: str,
    embed: Callable[[Tensor], Tensor],
    other: Tensor,
) -> np.ndarray:
    """``x``: all tokens that ``read`` attends to."""
    q, k, v = projections(layer, x)
    w_o = layer.self_attn.out_proj
    _, o = attend(q[[read]], k, v, 1 if heads == "one" else layer.self_attn.num_heads)
    o = o[0].detach().requires_grad_()
    (g,) = torch.autograd.grad(cosine(embed(finish(layer, x[read], o)), other), o)
    weights = _min_max([cosine(w_o(q[read]), w_o(k[t])).item() for t in tokens])
    return _weighted_channels(g, v[tokens], weights)


def grad_esiglip(model: nn.Module, pixels: Tensor, ids: Sequence[int], heads: str = "one") -> np.ndarray:
    """(sum_d g_d z_pd lambda_p)+, g = mean_p dcos/dz_p, lambda_p = cos(mean_p W_o q_p, W_o k_p) scaled to [0, 1]."""
    run, layer = encode(model, pixels, heads), model.vision_model.encoder.layers[-1]
    z = model.vision_model.post_layernorm(run.output).detach().requires_grad_()
    score = cosine(pool(model, z)[1], text_embedding(model, ids))
    (gradients,) = torch.autograd.grad(score, z)
    q, k, _ = projections(layer, run.inputs[-1])
    w_o = layer.self_attn.out_proj
    query = mean([w_o(q_p) for q_p in q])
    weights = _min_max([cosine(query, w_o(k_p)).item() for k_p in k])
    return _weighted_channels(mean(list(gradients)), z, weights)


def patch_ig(model: nn.Module, pixels: Tensor, ids: Sequence[int], steps: int = 8, block: int = -1) -> np.ndarray:
    """Of each patch: (x_p - r_p) . mean over midpoints of d<g, t>/dx_p, over |g(x)|; a backward pass each."""
    text = text_embedding(model, ids)
    text = text / text.norm()
    x, r = (encode(model, image).inputs[block].detach() for image in (pixels, torch.zeros_like(pixels)))
    total = torch.zeros(len(x), dtype=x.dtype)
    for k in range(steps):
        point = (r + (k + 0.5) / steps * (x - r)).requires_grad_()
        (gradient,) = torch.autograd.grad(embedding_from(model, point, block) @ text, point)
        for p in range(len(x)):
            total[p] += gradient[p] @ (x[p] - r[p]) / steps
    return (total / embedding_from(model, x, block).norm()).detach().numpy()[has_class_token(model) :]


def embedding_from(model: nn.Module, x: Tensor, block: int) -> Tensor:
    """``(E,)``, not normalised, of what layer ``block`` of the image encoder is given."""
    for layer in model.vision_model.encoder.layers[block:]:
        x = finish(layer, x, attend(*projections(layer, x), layer.self_attn.num_heads)[1])
    return embedding(model, x)


def text_states(model: nn.Module, ids: Sequence[int]) -> list[Tensor]:
    """What each layer of the text encoder is given, ``(T, D)``; all tokens are attended to."""
    states = []
    x = model.text_model.embeddings(input_ids=torch.tensor([ids]))[0].detach()
    for layer in model.text_model.encoder.layers:
        states.append(x)
        x = text_layer(model, layer, x).detach()
    return states


def text_layer(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of the text encoder, causal in a CLIP."""
    return finish(layer, x, attend(*projections(layer, x), layer.self_attn.num_heads, has_class_token(model))[1])


def text_embedding_from(model: nn.Module, x: Tensor, block: int, position: int) -> Tensor:
    """``(E,)``, not normalised, of what layer ``block`` of the text encoder is given, pooled at ``position``."""
    for layer in model.text_model.encoder.layers[block:]:
        x = text_layer(model, layer, x)
    return text_project(model, x[position])


def exclip(
    model: nn.Module,
    pixels: Tensor,
    ids: Sequence[int],
    reference: Sequence[int],
    position: int,
    steps: int,
    block: int,
) -> np.ndarray:
    """``(T text, T image)``: (y - s)_t^T J_h^T J_g (x - r)_p / (|g| |h|), with the product of both mean Jacobians.

    ``reference`` are the ids of the reference text, ``position`` is where the text is pooled.
    """
    y, s = (text_states(model, each)[block] for each in (ids, reference))
    x, r = (encode(model, image).inputs[block].detach() for image in (pixels, torch.zeros_like(pixels)))

    def of_text(point: Tensor) -> Tensor:
        return text_embedding_from(model, point, block, position)

    def of_image(point: Tensor) -> Tensor:
        return embedding_from(model, point, block)

    alphas = [(k + 0.5) / steps for k in range(steps)]
    j_h = mean([torch.autograd.functional.jacobian(of_text, s + a * (y - s)) for a in alphas])  # (E, T, D)
    j_g = mean([torch.autograd.functional.jacobian(of_image, r + a * (x - r)) for a in alphas])
    product = torch.einsum("etd,epc->tdpc", j_h, j_g)
    matrix = torch.einsum("td,tdpc,pc->tp", y - s, product, x - r)
    return (matrix / (of_image(x).norm() * of_text(y).norm())).detach().numpy()


def text_project(model: nn.Module, token: Tensor) -> Tensor:
    """A token of the text encoder's last layer in the shared space."""
    last = model.text_projection if has_class_token(model) else model.text_model.head
    return last(model.text_model.final_layer_norm(token))


def mask_clip_text(model: nn.Module, pixels: Tensor, ids: Sequence[int], read: int) -> np.ndarray:
    """Of each token before the one at ``read``: cos(value through the last layer, image) * cos(W_o k, W_o k_read)."""
    x, layer = text_states(model, ids)[-1], model.text_model.encoder.layers[-1]
    return _mask_clip(layer, x, read, range(read), partial(text_project, model), image_embedding(model, pixels))


def grad_eclip_text(model: nn.Module, pixels: Tensor, ids: Sequence[int], read: int, heads: str = "one") -> np.ndarray:
    """(sum_d g_d v_td lambda_t)+, g = dcos/do at ``read``, lambda_t = cos(W_o q_read, W_o k_t) scaled to [0, 1]."""
    x, layer = text_states(model, ids)[-1][: read + 1], model.text_model.encoder.layers[-1]
    image = image_embedding(model, pixels).detach()
    return _grad_eclip(layer, x, read, range(read), heads, partial(text_project, model), image)


def attention_text(model: nn.Module, pixels: Tensor, ids: Sequence[int], read: int) -> np.ndarray:
    """Row ``read`` of (mean_h(dz/dA) * mean_h(A))+ in the last layer, all rows of which are in the graph."""
    x, layer = text_states(model, ids)[-1].requires_grad_(), model.text_model.encoder.layers[-1]
    weights, o = attend(*projections(layer, x), layer.self_attn.num_heads, has_class_token(model))
    output = text_project(model, finish(layer, x, o))[read]
    logit = model.logit_scale.exp().squeeze() * cosine(output, image_embedding(model, pixels).detach())
    gradients = torch.autograd.grad(logit, weights)
    return (mean(list(gradients)) * mean(weights)).relu()[read, :read].detach().numpy()


def _min_max(values: list[float]) -> list[float]:
    return [(value - min(values)) / (max(values) - min(values)) for value in values]


def _weighted_channels(g: Tensor, features: Tensor, weights: list[float]) -> np.ndarray:
    rows = zip(features.tolist(), weights, strict=True)
    return np.array([max(0.0, sum(g_d * x_d * w for g_d, x_d in zip(g.tolist(), row, strict=True))) for row, w in rows])


def masked_image(pixels: Tensor, present: Sequence[bool], side: int) -> Tensor:
    """The image with zeros on its absent patches, ``side`` x ``side`` of them."""
    masked = pixels.clone()
    height, width = pixels.shape[1] // side, pixels.shape[2] // side
    for patch, here in enumerate(present):
        if not here:
            top, left = patch // side * height, patch % side * width
            masked[:, top : top + height, left : left + width] = 0
    return masked


def fixlip(
    model: nn.Module, pixels: Tensor, ids: Sequence[int], players: Sequence[int], side: int, interactions: str = "cross"
) -> np.ndarray:
    """``(P, m)``: the interactions of patches and words in the logit, from one forward pass for every coalition.

    ``players[j]`` is the position in ``ids`` of word j, which must be one token.
    """
    n_patches, n = side * side, side * side + len(players)
    values = np.empty(1 << n)
    for number in range(1 << n):
        present = [bool(number >> player & 1) for player in range(n)]
        attended = [True] * len(ids)
        for position, here in zip(players, present[n_patches:], strict=True):
            attended[position] = here
        image = image_embedding(model, masked_image(pixels, present[:n_patches], side))
        score = cosine(image, text_embedding(model, ids, attended))
        values[number] = (model.logit_scale.exp() * score).item()
    return _crossing(weighted_least_squares(values, n, _fitted_pairs(n_patches, n, interactions)), n_patches, n)


def _fitted_pairs(n_patches: int, n: int, interactions: str) -> list[tuple[int, int]]:
    pairs = combinations(range(n), 2)
    return [(i, j) for i, j in pairs if interactions == "all" or (i < n_patches and j >= n_patches)]


def _crossing(found: dict[tuple, float], n_patches: int, n: int) -> np.ndarray:
    """``(P, m)``: of all terms those of a patch and a piece."""
    return np.array([[found[patch, piece] for piece in range(n_patches, n)] for patch in range(n_patches)])


def banzhaf_least_squares(
    values: np.ndarray, n_patches: int, n: int, p: float, pairs: Sequence[tuple[int, int]]
) -> np.ndarray:
    """``(P, m)``: coefficients of pairs of a patch and a piece in the least squares on constant, players and ``pairs``.

    Coalition S weighs p^|S| (1 - p)^(n - |S|); nothing is met exactly.
    """
    terms = [(), *((player,) for player in range(n)), *pairs]
    rows, targets = [], []
    for number in range(1 << n):
        size = number.bit_count()
        weight = np.sqrt(p**size * (1 - p) ** (n - size))
        rows.append([weight * all(number >> player & 1 for player in term) for term in terms])
        targets.append(weight * values[number])
    found = dict(zip(terms, np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0], strict=True))
    return _crossing(found, n_patches, n)


def weighted_least_squares(values: np.ndarray, n: int, pairs: Sequence[tuple[int, int]]) -> dict[tuple, float]:
    """Constant, players and ``pairs`` closest to ``values`` (row S: v(S)) under the Shapley kernel; met at both ends.

    The constant is v(empty), and the other terms sum to v(N) - v(empty), so the last of them follows from the rest.
    """
    terms = [*((player,) for player in range(n)), *pairs]
    constant, total = values[0], values[-1] - values[0]
    rows, targets = [], []
    for number in range(1, (1 << n) - 1):
        size = number.bit_count()
        weight = np.sqrt((n - 1) / (comb(n, size) * size * (n - size)))
        inside = np.array([all(number >> player & 1 for player in term) for term in terms], dtype=float)
        rows.append(weight * (inside[:-1] - inside[-1]))
        targets.append(weight * (values[number] - constant - total * inside[-1]))
    free = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    return {(): constant} | dict(zip(terms, [*free, total - free.sum()], strict=True))


def sampled_sizes(n: int, budget: int) -> list[int]:
    """The sizes that FIxLIP draws from; of all others it takes every coalition.

    All coalitions of a size are taken where as many or more are expected of the budget that is left for drawing.
    """
    left, sizes = budget - 2, list(range(1, n))
    while True:
        shares = {size: 1 / (size * (n - size)) for size in sizes}
        total = sum(shares.values())
        full = [size for size in sizes if left * shares[size] / total >= comb(n, size) * (1 - 1e-9)]
        if not full:
            return sizes
        sizes = [size for size in sizes if size not in full]
        left -= sum(comb(n, size) for size in full)


def regression_estimate(
    values: np.ndarray, masks: np.ndarray, n_patches: int, n_pieces: int, interactions: str, ridge: float
) -> np.ndarray:
    """``(P, m)``: interactions by weighted least squares on an estimate of every value, from those of some image masks.

    ``values[S + 2**P T]`` is v(S, T). For each mask T of the text, v(S, T) is predicted by ridge regression on the
    masks at hand, whose residuals stand for all masks of their size.
    """
    n = n_patches + n_pieces
    at_hand = {sum(1 << i for i in range(n_patches) if mask[i]) for mask in masks.tolist()}
    per_size = [sum(number.bit_count() == size for number in at_hand) for size in range(n_patches + 1)]
    rows = sorted(at_hand)
    penalty = np.diag([0.0] * 5 + [ridge**0.5] * (4 * n_patches))
    estimate = np.empty(1 << n)
    for text in range(1 << n_pieces):
        known = np.array([values[number + (text << n_patches)] for number in rows])
        x = np.array([_patch_features(number, n_patches) for number in rows])
        targets = np.concatenate([known, np.zeros(len(penalty))])
        coefficients = np.linalg.lstsq(np.concatenate([x, penalty]), targets, rcond=None)[0]
        for number in range(1 << n_patches):
            predicted = _patch_features(number, n_patches) @ coefficients
            estimate[number + (text << n_patches)] = predicted
            if number in at_hand:
                size = number.bit_count()
                residual = values[number + (text << n_patches)] - predicted
                estimate[number + (text << n_patches)] += residual * comb(n_patches, size) / per_size[size]
    return _crossing(weighted_least_squares(estimate, n, _fitted_pairs(n_patches, n, interactions)), n_patches, n)


def _patch_features(number: int, n_patches: int) -> np.ndarray:
    """Powers 0 to 4 of kappa = 2k/P - 1, then powers 0 to 3 times each patch's deviation from the mean k/P."""
    size = number.bit_count()
    kappa = 2 * size / n_patches - 1
    deviations = [(number >> patch & 1) - size / n_patches for patch in range(n_patches)]
    return np.array([kappa**d for d in range(5)] + [kappa**d * each for d in range(4) for each in deviations])
