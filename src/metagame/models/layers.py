"""Layers that attribution rules can be put on."""

from __future__ import annotations

from torch import Tensor, nn


class MatMul(nn.Module):
    """A product of two activations, as a module of its own."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right
