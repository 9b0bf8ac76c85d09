"""Attention rollout (Abnar and Zuidema, 2020): attention weights multiplied through the layers."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagame.attributions.method import FirstOrder
from metagame.games import AttributionGame
from metagame.models.attended import AttendedModel


class AttentionRollout(FirstOrder[AttendedModel]):
    """phi_i(S) = [prod_l (mean_h A^l + I)/2]_{r, i}, l from the last layer to the first; absent players get 0.

    The row is that of the position r from which f is read ([CLS], or the mean over those in front of the answer's
    tokens). DINOv2's head reads the mean of the patches beside [CLS]; its row is that of [CLS] alone, which leaves out
    what reaches the output through the patches. Each coalition takes one forward pass. Values are from 0 to 1 and have
    no unit. They do not sum to f, and are the same whichever output is explained.
    """

    input_type = AttendedModel

    def game(self, bound: AttendedModel) -> AttributionGame:
        def attribute(coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k n"]:
            present = torch.as_tensor(coalitions, device=bound.x.device)
            return bound.rollout(bound.masked(coalitions)) * present

        return bound.game(attribute)
