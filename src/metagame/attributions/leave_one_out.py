"""Leave-one-out: how much the output loses without a feature."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagame.attributions.method import FirstOrder
from metagame.games import AttributionGame
from metagame.models.masked import MaskedModel


class LeaveOneOut(FirstOrder[MaskedModel]):
    """phi_i(S) = f_S - f_(S without i); signed, in units of f; absent features get 0.

    At most n+1 forward passes are needed for a coalition, and none is repeated.
    """

    input_type = MaskedModel

    def game(self, bound: MaskedModel) -> AttributionGame:
        n = bound.n_players

        def attribute(coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k n"]:
            coalitions = np.asarray(coalitions)
            without = coalitions[:, None] & ~np.eye(n, dtype=bool)
            asked = np.concatenate([coalitions[:, None], without], axis=1).reshape(-1, n)
            distinct, row = np.unique(asked, axis=0, return_inverse=True)
            values = bound.values(distinct)[torch.as_tensor(row.reshape(-1))].reshape(len(coalitions), n + 1)
            return values[:, :1] - values[:, 1:]

        return bound.game(attribute, inputs=n + 1)
