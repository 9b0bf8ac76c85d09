"""Slow twins of the attribution methods on a masked model: a loop over coalitions, path steps and features each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metagame.models.adder import AdderNet
from metagame.models.masked import MaskedModel
from tests.reference.indices import row, shapley, subsets
from tests.reference.language import through_linear, through_product


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


def output(model: MaskedModel, coalition: list[bool]) -> float:
    """f_S."""
    return model.f(masked(model, coalition)[None])[0].item()


def output_values(model: MaskedModel) -> np.ndarray:
    """f_S, a model call for each coalition."""
    return np.array([output(model, coalition) for coalition in coalitions(len(model.x))])


def leave_one_out(model: MaskedModel, coalition: list[bool]) -> np.ndarray:
    """What f loses without each feature, a model call for each."""
    without = [[here and other != i for other, here in enumerate(coalition)] for i in range(len(coalition))]
    return np.array([output(model, coalition) - output(model, rest) for rest in without])


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

        relevance = through_linear(pooled, net.head.weight, net.head(pooled))
        relevance_last = normed_last / len(normed_last) / pooled * relevance
        relevance_active = through_linear(active, down.weight, fed / last * relevance_last)
        relevance_middle = middle / last * relevance_last + through_linear(normed_middle, up.weight, relevance_active)
        relevance_mixed = through_linear(mixed, attention.output.weight, attended / middle * relevance_middle)
        relevance_weights, relevance_value = through_product(weights, value, relevance_mixed)
        relevance_scores = scores * (relevance_weights - weights * relevance_weights.sum(1, keepdim=True))
        relevance_query, relevance_key = through_product(query, key.T, relevance_scores)
        relevance_stream = stream / middle * relevance_middle
        for layer, from_layer in (
            (attention.query, relevance_query),
            (attention.key, relevance_key.T),
            (attention.value, relevance_value),
        ):
            relevance_stream = relevance_stream + through_linear(normed, layer.weight, from_layer)
        return (embeddings / stream * relevance_stream).sum(1).numpy()


def adder_constant_relevance(net: AdderNet, embeddings: Tensor) -> np.ndarray:
    """CP-LRP of everything that is added to the adder's stream: ``(8,)``, four embeddings and then four positions.

    With scales, gates and attention weights as they are at this input the adder is linear: each of the eight gets what
    it contributes alone.
    """
    attention, (up, gelu, down) = net.attention, net.feedforward

    def scale_of(norm, x):
        return norm.weight / torch.sqrt((x * x).mean(1, keepdim=True) + norm.eps)

    with torch.no_grad():
        stream = embeddings + net.position
        scale_attention = scale_of(net.norm_attention, stream)
        normed = stream * scale_attention
        weights = (attention.query(normed) @ attention.key(normed).T * normed.shape[1] ** -0.5).softmax(1)
        middle = stream + attention.output(weights @ attention.value(normed))
        scale_feedforward = scale_of(net.norm_feedforward, middle)
        hidden = up(middle * scale_feedforward)
        gates = gelu(hidden) / hidden
        scale_output = scale_of(net.norm_output, middle + down(gelu(hidden)))
        contributions = []
        for added in (embeddings, net.position):
            for place in range(len(added)):
                part = torch.zeros_like(stream)
                part[place] = added[place]
                part = part + attention.output(weights @ attention.value(part * scale_attention))
                part = part + down(gates * up(part * scale_feedforward))
                contributions.append(net.head((part * scale_output).mean(0)).item())
        return np.array(contributions)
