"""Masked models of numbers: of a game's values, and of a smooth function."""

from __future__ import annotations

import torch

from metagame.models.masked import MaskedModel


def table_model(values):
    """The masked model whose f_S is ``values[S]``: players are bits that are 0 when absent."""
    n = len(values).bit_length() - 1
    bits = torch.tensor([1 << player for player in range(n)], dtype=torch.float64)
    table = torch.as_tensor(values)
    return MaskedModel.of_function(lambda inputs: table[(inputs @ bits).long()], torch.ones(n))


def smooth_model(n, seed=0, baseline=True):
    """A smooth function of n numbers with interactions of every order, at a random point."""
    generator = torch.Generator().manual_seed(seed)
    first, second, x, other = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((n, 5), (5,), (n,), (n,))
    )
    return MaskedModel.of_function(lambda inputs: torch.tanh(inputs @ first) @ second, x, other if baseline else 0.0)
