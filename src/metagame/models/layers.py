"""Small parts that models share."""

from __future__ import annotations

from torch import Tensor, nn


class MatMul(nn.Module):
    """A product of two activations, as a module of its own."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


class ForwardPassEnds(Exception):  # noqa: N818 (it is no error)
    """Raised by a hook to end a forward pass whose rest is not needed."""
