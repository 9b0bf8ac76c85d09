"""A model known only by its output for each coalition."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from metagame.errors import UserError
from metagame.games import as_float64
from metagame.models.masked import MaskedModel


@dataclass(frozen=True)
class BlackBox(MaskedModel):
    """A masked model whose f_S is a table or a program; methods that need gradients refuse it.

    Attributes:
        answer: the meaning of the output, such as the name of a label.
        rows, columns: number of rows and columns of patches, if the players are patches of an image; else 0.
        pixels: the image.
    """

    answer: str = ""
    rows: int = 0
    columns: int = 0
    pixels: UInt8[np.ndarray, "H W 3"] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return ("image",) if self.rows else self.players

    @property
    def grid(self) -> tuple[int, int] | None:
        return (self.rows, self.columns) if self.rows else None

    @property
    def picture(self) -> UInt8[np.ndarray, "H W 3"] | None:
        return self.pixels


def black_box(
    values: Callable[[Bool[np.ndarray, "k n"]], Any],
    names: Collection[str],
    batch_size: int | None = None,
    **about: Any,
) -> BlackBox:
    """A model whose output is ``values(coalitions)``, for :func:`metagame.explain` and methods that only mask.

    Args:
        values: maps coalitions, bool ``(k, n)``, to numbers ``(k,)``, row by row.
        names: names of the n players.
        batch_size: the maximum number of coalitions passed to ``values`` at once.
        about: other fields of :class:`BlackBox`.

    Raises:
        UserError: there are no names. Later, if a method asks for gradients, or ``values`` returns something else.
    """
    names = tuple(map(str, names))
    if not names:
        raise UserError("names is empty: give a name for each player.")

    def f(inputs: Float[Tensor, "k n 1"]) -> Float[Tensor, " k"]:
        if inputs.requires_grad:
            raise UserError(
                "this model has no gradients: choose method sv or leave_one_out, which only mask the input."
            )
        found = as_float64(values(inputs[..., 0].numpy() > 0.5), "the model's output")
        if found.shape != inputs.shape[:1]:
            raise UserError(
                f"the model returned shape {found.shape} for {len(inputs)} coalitions: return one number for each."
            )
        return torch.from_numpy(found)

    present = torch.ones(len(names), 1, dtype=torch.float64)
    return BlackBox(f, present, 0 * present, batch_size=batch_size, names=names, **about)
