"""Slow twin of the influence between tokens: a head and a pair of tokens at a time, with gradients that are kept."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from metagame.models.attended import AttendedModel


def influence(bound: AttendedModel, present: np.ndarray, *, gradient: bool) -> np.ndarray:
    """M of one coalition ``(n + 1, n)``: the mean over layers and heads of A * max(dz/dA, 0), or of A."""
    inputs = bound.masked(present[None]).detach().requires_grad_()
    z, weights = bound.attend(inputs)
    for each in weights:
        each.retain_grad()
    z.sum().backward()
    rows = [*[(reader,) for reader in bound.readers], *[(place,) for place in bound.places]]
    n_heads = sum(each.shape[1] for each in weights)
    token = np.zeros((len(rows), len(bound.places)))
    for each in weights:
        a_of = each.detach()
        skipped = each.shape[3] - each.shape[2]
        for head in range(each.shape[1]):
            for r, (row,) in enumerate(rows):
                for c, column in enumerate(bound.places):
                    a = a_of[0, head, row - skipped, column]
                    g = each.grad[0, head, row - skipped, column] if gradient else torch.ones(())
                    token[r, c] += float(a * max(g, 0)) / n_heads
    owners = bound.owners or tuple(range(len(bound.places)))
    found, n_readers = np.zeros((bound.n_players + 1, bound.n_players)), len(bound.readers)
    for c, owner in enumerate(owners):
        found[0, owner] += token[:n_readers, c].mean()
        for r, other in enumerate(owners):
            found[1 + other, owner] += token[n_readers + r, c]
    return found


def rollout(bound: AttendedModel, present: np.ndarray) -> np.ndarray:
    """Attention rollout of one coalition ``(n,)``, the sum over all paths through the layers of products of weights."""
    _, weights = bound.attend(bound.masked(present[None]))
    layers = [(each.detach()[0].mean(0) + torch.eye(each.shape[3])[-each.shape[2] :]) / 2 for each in weights]
    skipped = layers[0].shape[1] - layers[0].shape[0]
    owners = bound.owners or tuple(range(len(bound.places)))
    found = np.zeros(bound.n_players)
    for reader in bound.readers:
        reached = {reader: 1.0}
        for layer in reversed(layers):
            after: dict[int, float] = {}
            for token, share in reached.items():
                for other in range(skipped, layer.shape[1]):  # those before read no later token
                    after[other] = after.get(other, 0.0) + share * float(layer[token - skipped, other])
            reached = after
        for place, owner in zip(bound.places, owners, strict=True):
            found[owner] += reached[place] / len(bound.readers)
    return found * present


# The games on M, row 0 of which is that of [CLS]: v of a set of players, from the definition.


def of_pairs(pair, m, own):
    if len(own) == 1:
        return m[1 + own[0], own[0]]
    return sum(pair(m[1 + i, j], m[1 + j, i]) for i in own for j in own if i < j)


VALUES = {
    "cls": lambda m, own: sum(m[0, i] for i in own),
    "total": lambda m, own: sum(m[1 + i, j] for i in own for j in own),
    "mutual": partial(of_pairs, lambda a, b: a + b),
    "max_mutual": partial(of_pairs, max),
    "max": lambda m, own: max((m[0, i] for i in own), default=0.0),
    "row_max": lambda m, own: sum(max(m[1 + i, j] for j in own) for i in own),
}


def game_values(name: str, m: np.ndarray) -> np.ndarray:
    """v of all 2^n coalitions; bit j of the row number is player j."""
    n = m.shape[1]
    return np.array([VALUES[name](m, [i for i in range(n) if row >> i & 1]) for row in range(1 << n)], float)
