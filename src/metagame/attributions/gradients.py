"""Gradient x input, integrated gradients and integrated Hessians of a masked model."""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagame.attributions.method import FirstOrder
from metagame.contracts import Explanation, Method
from metagame.errors import UserError
from metagame.games import AttributionGame, Progress
from metagame.meta import MetaAttributions
from metagame.models.masked import MaskedModel


class GradientInput(FirstOrder[MaskedModel]):
    """phi_i(S) = <x_i, df/dx_i> at the masked input x_S; signed, in units of f.

    Absent features get 0 where their baseline is 0.
    """

    input_type = MaskedModel

    def game(self, bound: MaskedModel) -> AttributionGame:
        def attribute(single: MaskedModel, coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k n"]:
            inputs = single.masked(coalitions)
            return (inputs * single.gradients(inputs)).sum(-1)

        return bound.game(lambda coalitions: bound.over_background(lambda single: attribute(single, coalitions)))


class IntegratedGradients(FirstOrder[MaskedModel]):
    """phi_i(S) = <x_S,i - b_i, int_0^1 df/dx_i (b + a(x_S - b)) da> (Sundararajan et al., 2017); absent features get 0.

    Signed, in units of f. The attributions sum to f_S - f(b) up to the error of the quadrature.

    Args:
        steps: number of midpoints of the path.
    """

    input_type = MaskedModel

    def __init__(self, steps: int = 32) -> None:
        self.steps = check_steps(steps)

    def game(self, bound: MaskedModel) -> AttributionGame:
        def attribute(single: MaskedModel, coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k n"]:
            delta = single.masked(coalitions) - single.baseline
            path = single.baseline + midpoints(self.steps, delta)[:, None, None, None] * delta
            gradients = single.gradients(path.flatten(0, 1)).unflatten(0, path.shape[:2])
            return (delta * gradients.mean(0)).sum(-1)

        return bound.game(
            lambda coalitions: bound.over_background(lambda single: attribute(single, coalitions)), inputs=self.steps
        )


class IntegratedHessians(Method[MaskedModel]):
    """psi_{i,j} = IG_j(IG_i(f)): integrated gradients of integrated gradients (Janizek et al., 2021).

    The result is ``(n, n)`` with row i and column j, symmetric, in units of f. Rows sum to IG_i (no factor 1/2), up to
    the error of the quadrature.

    Args:
        steps: number of midpoints, both of the inner and of the outer path.
    """

    input_type = MaskedModel

    def __init__(self, steps: int = 12) -> None:
        self.steps = check_steps(steps)

    def explain(self, bound: MaskedModel, progress: Progress | None = None) -> Explanation:
        """The values of every pair of features.

        Raises:
            UserError: the model cannot be differentiated twice.
        """
        if bound.in_batches is not None:
            raise UserError(
                "attribution=ih needs second derivatives, which this model does not have: choose attribution=meta_ig."
            )
        values = bound.over_background(self._hessians).cpu().double().numpy()
        meta = MetaAttributions(values, index="serial", players=bound.players, targets=bound.targets, grid=bound.grid)
        return Explanation(bound.players, bound.targets, bound.grid, meta=meta)

    def _hessians(self, bound: MaskedModel) -> Float[Tensor, "n n"]:
        delta = bound.x - bound.baseline
        alpha = midpoints(self.steps, delta)
        with torch.enable_grad():
            outer = (bound.baseline + alpha[:, None, None] * delta).detach().requires_grad_()
            inner_delta = outer - bound.baseline
            path = bound.baseline + alpha[:, None, None, None] * inner_delta
            outputs = bound.outputs(path.flatten(0, 1)).sum()
            gradients = torch.autograd.grad(outputs, path, create_graph=True)[0].mean(0)
            attributions = (inner_delta * gradients).sum(-1)
            rows = [
                torch.autograd.grad(attributions[:, i].sum(), outer, retain_graph=True)[0] for i in range(len(delta))
            ]
        return torch.stack([(delta * row.mean(0)).sum(-1) for row in rows]).detach()


def midpoints(steps: int, like: Tensor) -> Float[Tensor, " {steps}"]:
    """The midpoints of ``steps`` equal parts of [0, 1]."""
    return (torch.arange(steps, dtype=like.dtype, device=like.device) + 0.5) / steps


def check_steps(steps: int) -> int:
    """Return ``steps`` after checking that a path can have that many.

    Raises:
        UserError: it is not a positive integer.
    """
    if not isinstance(steps, Integral) or steps < 1:
        raise UserError(f"steps={steps!r} must be a positive integer.")
    return steps
