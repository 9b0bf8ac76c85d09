"""Slow twin of the influence between tokens: a head and a pair of tokens at a time, with gradients that are kept."""

from __future__ import annotations

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
