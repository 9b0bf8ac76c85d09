"""The masked predictor f_S of one input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from metagame.contracts import BoundInput
from metagame.errors import UserError
from metagame.games import AttributionGame


@dataclass(frozen=True)
class MaskedModel(BoundInput):
    """A predictor f at one input x whose n features are present, or replaced by a baseline (f_S, paper Sec. 2).

    A plain function of n numbers is the case d = 1; a feature may also be a vector, such as a token's embedding. If the
    baseline is a background set of m inputs, absent features are imputed from their marginal distribution: f_S is the
    mean of f over the rows of the set, each of which replaces all absent features (Lundberg and Lee, 2017; the paper
    has one baseline). A method that is linear in f is then the mean over the rows as baselines; IG becomes expected
    gradients (Erion et al., 2021).

    Attributes:
        f: maps inputs ``(k, n, d)`` to outputs ``(k,)``, row by row; differentiable.
        x: the features of the input, ``(n, d)``.
        baseline: the replacement of each feature, ``(n, d)``; or a background set, ``(m, n, d)``.
        module: the torch module inside f, for methods that modify or inspect it.
        in_batches: applies a function of rows to all rows, as many at a time as memory allows; if None, all at once.
        batch_size: the maximum number of inputs held at once, one or more for each coalition; if None, all of them.
        names: names of the features; if empty, x1, x2, ...
        context: names of what the model appends to the features, such as an end token.

    Raises:
        UserError: the shapes do not match each other, or the number of names is not that of the features.
    """

    f: Callable[[Float[Tensor, "k n d"]], Float[Tensor, " k"]]
    x: Float[Tensor, "n d"]
    baseline: Float[Tensor, "... n d"]
    module: nn.Module | None = None
    in_batches: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] | None = None
    batch_size: int | None = None
    names: tuple[str, ...] = ()
    context: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fits = self.x.shape == self.baseline.shape[-2:] and self.baseline.ndim in (2, 3) and len(self.baseline) > 0
        if self.x.ndim != 2 or not fits:
            shapes = f"x {tuple(self.x.shape)}, baseline {tuple(self.baseline.shape)}"
            raise UserError(
                f"{shapes}: give both as (features, width), with width 1 for plain numbers, and a background set"
                " as (rows, features, width) with at least one row."
            )
        if self.names and len(self.names) != len(self.x):
            raise UserError(
                f"names={self.names} must have one name for each of the {len(self.x)} features, or be empty."
            )

    @classmethod
    def of_function(
        cls, f: Callable[[Tensor], Tensor], x: Tensor | ArrayLike, baseline: Tensor | ArrayLike = 0.0
    ) -> MaskedModel:
        """A plain function of n numbers, ``f: (k, n) -> (k,)``, at the point ``x`` ``(n,)``.

        ``baseline`` is a number, ``(n,)``, or a background set ``(m, n)``. Both are copied.
        """
        x = torch.as_tensor(x, dtype=torch.float64).clone()
        baseline = torch.as_tensor(baseline, dtype=torch.float64).clone()
        baseline = baseline.expand_as(x) if baseline.ndim == 0 else baseline
        return cls(lambda inputs: f(inputs[..., 0]), x[:, None], baseline[..., None])

    @property
    def players(self) -> tuple[str, ...]:
        return self.names or tuple(f"x{number}" for number in range(1, len(self.x) + 1))

    @property
    def targets(self) -> tuple[str, ...]:
        return self.players

    @property
    def n_players(self) -> int:
        return len(self.x)

    def over_background(self, attribute: Callable[[MaskedModel], Tensor]) -> Tensor:
        """The result of ``attribute`` for this model; with a background set, the mean over its rows as baselines."""
        if self.baseline.ndim == 2:
            return attribute(self)
        return torch.stack([attribute(replace(self, baseline=row)) for row in self.baseline]).mean(0)

    def masked(self, coalitions: Bool[np.ndarray | Tensor, "k n"]) -> Float[Tensor, "k n d"]:
        """The input of each coalition: x for present features, the baseline for absent ones.

        Raises:
            UserError: the baseline is a background set, which gives a coalition one input per row.
        """
        if self.baseline.ndim != 2:
            raise UserError("a background set has no single masked input: attribute within over_background().")
        present = torch.as_tensor(coalitions, device=self.x.device)[..., None]
        return torch.where(present, self.x, self.baseline)

    def outputs(self, inputs: Float[Tensor, "k n d"]) -> Float[Tensor, " k"]:
        """The output of f for each row.

        Raises:
            UserError: f does not return one number for each row.
        """
        outputs = self.f(inputs)
        if outputs.shape != inputs.shape[:1]:
            raise UserError(
                f"f returned shape {tuple(outputs.shape)} for {len(inputs)} inputs: return shape"
                f" ({len(inputs)},), one number for each; if f has several outputs, select one, for example"
                " f(x)[:, 0]."
            )
        return outputs

    def gradients(self, inputs: Float[Tensor, "k n d"]) -> Float[Tensor, "k n d"]:
        """df/dx of every row, with one backward pass per batch; the parameters of f get no gradient."""
        return self.batched(self._gradients, inputs)

    def _gradients(self, inputs: Float[Tensor, "k n d"]) -> Float[Tensor, "k n d"]:
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            return torch.autograd.grad(self.outputs(inputs).sum(), inputs)[0]

    @torch.no_grad()
    def values(self, coalitions: Bool[np.ndarray | Tensor, "k n"]) -> Float[Tensor, " k"]:
        """f_S of each coalition."""
        return self.over_background(lambda single: single.batched(self.outputs, single.masked(coalitions)))

    def batched(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """``function`` applied to all rows, as many at a time as memory allows."""
        return function(rows) if self.in_batches is None else self.in_batches(function, rows)

    def game(
        self, attribute: Callable[[Bool[np.ndarray, "k n"]], Float[Tensor, "k t"]], inputs: int = 1
    ) -> AttributionGame:
        """The game of a function that attributes coalitions and evaluates f on ``inputs`` inputs for each of them."""
        batch_size = None if self.batch_size is None else max(1, self.batch_size // inputs)
        return AttributionGame(attribute, self.n_players, batch_size=batch_size)
