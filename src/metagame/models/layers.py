"""Small parts that models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metagame.errors import UserError


class MatMul(nn.Module):
    """A product of two activations, as a module of its own."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


class ForwardPassEnds(Exception):  # noqa: N818 (it is no error)
    """Raised by a hook to end a forward pass whose rest is not needed."""


def refuse_half_precision(net: nn.Module) -> None:
    """Refuse a model whose weights are in float16 or bfloat16.

    Raises:
        UserError: they are.
    """
    if torch.finfo(next(net.parameters()).dtype).bits < 32:
        raise UserError(
            "the weights are in half precision, which is too coarse for attributions: load the model in float32."
        )
