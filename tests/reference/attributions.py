"""Slow twins of the attribution methods on a masked model: a loop over coalitions, path steps and features each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metagame.models.adder import AdderNet
from metagame.models.masked import MaskedModel
from tests.reference.indices import row, shapley, subsets


def coalitions(n: int) -> list[list[bool]]:
    """All coalitions in the order of their row numbers."""
    return [[bool(number >> player & 1) for player in range(n)] for number in range(1 << n)]


def masked(model: MaskedModel, coalition: list[bool]) -> Tensor:
    rows = zip(coalition, model.x, model.baseline, strict=True)
    return torch.stack([x if present else baseline for present, x, baseline in rows])


def gradient_input(model: MaskedModel, coalition: list[bool]) -> np.ndarray:
    point = masked(model, coalition).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.f(point[None])[0], point)
    return (point * gradient).sum(1).detach().numpy()


def integrated_gradients(model: MaskedModel, coalition: list[bool], steps: int) -> np.ndarray:
    return _path_attribution(model, masked(model, coalition), steps).detach().numpy()


def integrated_hessians(model: MaskedModel, steps: int) -> np.ndarray:
    """psi_ij = IG_j(IG_i(f)): the outer path differentiates the attribution that the inner path gives."""
    delta = model.x - model.baseline
    matrix = np.zeros((len(delta), len(delta)))
    for step in range(steps):
        point = (model.baseline + (step + 0.5) / steps * delta).detach().requires_grad_()
        attribution = _path_attribution(model, point, steps)
        for i in range(len(delta)):
            (gradient,) = torch.autograd.grad(attribution[i], point, retain_graph=True)
            for j in range(len(delta)):
                matrix[i, j] += float((delta[j] * gradient[j]).sum()) / steps
    return matrix


def _path_attribution(model: MaskedModel, point: Tensor, steps: int) -> Tensor:
    """Integrated gradients at ``point``, differentiable in it."""
    total = torch.zeros(len(point), dtype=point.dtype)
    for step in range(steps):
        on_path = model.baseline + (step + 0.5) / steps * (point - model.baseline)
        if not on_path.requires_grad:
            on_path = on_path.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model.f(on_path[None])[0], on_path, create_graph=True)
        total = total + ((point - model.baseline) * gradient).sum(1) / steps
    return total


def marginal_values(f, x, background) -> np.ndarray:
    """f_S = 1/m sum over rows b of f(x_S, b_rest) for a function of n numbers, coalition by coalition, row by row."""
    values = []
    for coalition in coalitions(len(x)):
        inputs = [
            [own if present else other for present, own, other in zip(coalition, x, row, strict=True)]
            for row in background
        ]
        values.append(sum(f(torch.tensor([each], dtype=torch.float64))[0].item() for each in inputs) / len(inputs))
    return np.array(values)


def output_values(model: MaskedModel) -> np.ndarray:
    """f_S, a model call for each coalition."""
    return np.array([model.f(masked(model, coalition)[None])[0].item() for coalition in coalitions(len(model.x))])


def restricted_shapley(values: np.ndarray, coalition: tuple[int, ...]) -> np.ndarray:
    """The Shapley value of the game that ``coalition`` plays among itself; 0 for the players outside."""
    n = len(values).bit_length() - 1
    own = np.array([values[row(coalition[k] for k in part)] for part in subsets(range(len(coalition)))])
    by_row = np.empty(len(own))
    by_row[[row(part) for part in subsets(range(len(coalition)))]] = own
    phi = np.zeros(n)
    phi[list(coalition)] = shapley(by_row, len(coalition))
    return phi


def restricted_shapley_table(values: np.ndarray) -> np.ndarray:
    """Row S: the Shapley values of f restricted to S, ``(2**n, n)``."""
    n = len(values).bit_length() - 1
    table = np.zeros((len(values), n))
    for coalition in subsets(range(n)):
        table[row(coalition)] = restricted_shapley(values, coalition)
    return table


def serial_shapley(values: np.ndarray) -> np.ndarray:
    """psi_ij = SV_j of S -> SV_i(f_S), both Shapley values by enumeration."""
    n = len(values).bit_length() - 1
    table = restricted_shapley_table(values)
    return np.array([shapley(table[:, i], n) for i in range(n)])


def adder_relevance(net: AdderNet, embeddings: Tensor) -> np.ndarray:
    """AttnLRP of the embeddings ``(4, 8)`` of ``a op b =``: relevance walks back through the layers, no autograd.

    Rules (Achtibat et al., 2024): epsilon rule at 0 for sums and linear layers, identity rule for normalisers and GELU,
    uniform rule for products of two activations, deep Taylor rule for the softmax.
    """
    attention, (up, gelu, down) = net.attention, net.feedforward
    with torch.no_grad():
        stream = embeddings + net.position
        normed = net.norm_attention(stream)
        query, key, value = attention.query(normed), attention.key(normed), attention.value(normed)
        scores = query @ key.T * query.shape[1] ** -0.5
        weights = scores.softmax(1)
        mixed = weights @ value
        attended = attention.output(mixed)
        middle = stream + attended
        normed_middle = net.norm_feedforward(middle)
        hidden = up(normed_middle)
        active = gelu(hidden)
        fed = down(active)
        last = middle + fed
        normed_last = net.norm_output(last)
        pooled = normed_last.mean(0, keepdim=True)

        relevance = _through_linear(pooled, net.head.weight, net.head(pooled))
        relevance_last = normed_last / len(normed_last) / pooled * relevance
        relevance_active = _through_linear(active, down.weight, fed / last * relevance_last)
        relevance_middle = middle / last * relevance_last + _through_linear(normed_middle, up.weight, relevance_active)
        relevance_mixed = _through_linear(mixed, attention.output.weight, attended / middle * relevance_middle)
        relevance_weights, relevance_value = _through_product(weights, value, relevance_mixed)
        relevance_scores = scores * (relevance_weights - weights * relevance_weights.sum(1, keepdim=True))
        relevance_query, relevance_key = _through_product(query, key.T, relevance_scores)
        relevance_stream = stream / middle * relevance_middle
        for layer, from_layer in (
            (attention.query, relevance_query),
            (attention.key, relevance_key.T),
            (attention.value, relevance_value),
        ):
            relevance_stream = relevance_stream + _through_linear(normed, layer.weight, from_layer)
        return (embeddings / stream * relevance_stream).sum(1).numpy()


def _through_linear(inputs: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """R_i = sum over outputs j of x_i w_ji / z_j R_j, position by position."""
    total = torch.zeros_like(inputs)
    for position in range(len(inputs)):
        for output in range(len(weight)):
            shares = inputs[position] * weight[output]
            total[position] += shares / shares.sum() * relevance[position, output]
    return total


def _through_product(left: Tensor, right: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Each factor of a term of ``left @ right`` gets half of the term's share of the relevance."""
    to_left, to_right = torch.zeros_like(left), torch.zeros_like(right)
    for p in range(len(left)):
        for q in range(right.shape[1]):
            shares = left[p] * right[:, q]
            halves = shares / shares.sum() * relevance[p, q] / 2
            to_left[p] += halves
            to_right[:, q] += halves
    return to_left, to_right
