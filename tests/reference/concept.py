"""Slow twins of the concept metagame: by definition, as the paper does it, and the best enumeration we know."""

from __future__ import annotations

from itertools import combinations
from math import comb, factorial

import numpy as np
import torch


def by_definition(logits: torch.Tensor, background: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Diagonal ``(n, P)`` and directional ``(n, n, P)`` values, one coalition at a time."""
    n, n_patches = logits.shape
    shift = torch.cat([logits, background]).amax(0)
    w = (logits - shift).exp()
    b = (background - shift).exp().sum(0)

    def nu(t: int, coalition: tuple[int, ...]) -> torch.Tensor:
        return w[t] / (b + w[list(coalition)].sum(0)) if t in coalition else torch.zeros(n_patches, dtype=w.dtype)

    diag = torch.zeros(n, n_patches, dtype=w.dtype)
    directional = torch.zeros(n, n, n_patches, dtype=w.dtype)
    for t in range(n):
        others = [k for k in range(n) if k != t]
        for size in range(n):
            for coalition in combinations(others, size):
                diag[t] += nu(t, (*coalition, t)) * factorial(size) * factorial(n - size - 1) / factorial(n)
        directional[t, t] = nu(t, (t,))
        for j in others:
            rest = [k for k in others if k != j]
            for size in range(n - 1):
                for coalition in combinations(rest, size):
                    gain = nu(t, (*coalition, t, j)) - nu(t, (*coalition, t))
                    directional[t, j] += gain / ((n - 1) * comb(n - 2, size))
    return diag, directional


def by_integrals(logits: torch.Tensor, background: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both outputs for any n, patch by patch: ceil(n/2) Gauss nodes in p, a fine trapezoidal rule in log s.

    diag_t = int dp int ds w_t e^{-s (B + w_t)} prod_{k != t} (1 - p + p e^{-s w_k}), in units of the least denominator.
    """
    n, n_patches = logits.shape
    diag, directional = (
        torch.zeros(n, n_patches, dtype=torch.float64),
        torch.zeros(n, n, n_patches, dtype=torch.float64),
    )
    points, masses = np.polynomial.legendre.leggauss((n + 1) // 2)
    for patch in range(n_patches):
        w = torch.cat([logits[:, patch], background[:, patch]])
        w = (w - w.min()).exp()
        w, b = w[:n], w[n:].sum()
        x = torch.arange(-40 - float(w.sum().log()), 5, 1 / 16, dtype=torch.float64)
        s = x.exp()[:, None]
        u = -torch.expm1(-s * w)
        seed = s / 16 * w * torch.exp(-s * (b + w))
        for p, mass in zip((points + 1) / 2, masses / 2, strict=True):
            factor = 1 - p * u
            others = mass * seed * factor.prod(1, keepdim=True) / factor
            diag[:, patch] += others.sum(0)
            directional[:, :, patch] -= others.T @ (u / factor)
        directional[:, :, patch].diagonal().copy_(w / (b + w))
    return diag, directional


def paper_procedure(logits: torch.Tensor, background: torch.Tensor, chunk: int = 256) -> torch.Tensor:
    """Diagonal ``(n, P)`` as the paper's App. C.4 has it: stream over the sizes, a softmax per chunk of coalitions."""
    n, n_patches = logits.shape
    diag = torch.zeros(n, n_patches, dtype=logits.dtype)
    for size in range(1, n + 1):
        weight = factorial(size - 1) * factorial(n - size) / factorial(n)
        coalitions = torch.tensor(list(combinations(range(n), size)))
        for members in coalitions.split(chunk):
            context = background.expand(len(members), -1, -1)
            attention = torch.cat([logits[members], context], 1).softmax(1)[:, :size]
            diag.index_add_(0, members.reshape(-1), attention.reshape(-1, n_patches), alpha=weight)
    return diag


def two_products(logits: torch.Tensor, background: torch.Tensor, chunk: int = 4096) -> torch.Tensor:
    """Diagonal ``(n, P)`` by enumeration: denominators by one matrix product, the sum over coalitions by another."""
    n = len(logits)
    shift = torch.cat([logits, background]).amax(0)
    w = (logits - shift).exp()
    b = (background - shift).exp().sum(0)
    weights = torch.tensor([0.0] + [1 / (n * comb(n - 1, size - 1)) for size in range(1, n + 1)], dtype=w.dtype)
    total = torch.zeros_like(w)
    for rows in torch.arange(1, 1 << n).split(chunk):
        present = (rows[:, None] >> torch.arange(n) & 1).to(w.dtype)
        inverse = (present @ w).add_(b).reciprocal_()
        total.addmm_((present * weights[present.sum(1).long()][:, None]).T, inverse)
    return w * total
