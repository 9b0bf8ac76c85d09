"""Attention weights, read as an explanation."""

from __future__ import annotations

import torch
from torch import nn

from metagame.attributions.method import Explanation
from metagame.games import GameError, Progress
from metagame.models.masked import MaskedModel


class AttentionWeights:
    """The attention matrix of the model's only softmax: ``matrix`` ``(L, L)``, row = query, column = key.

    Rows sum to 1; no sign, no unit.

    Raises:
        GameError: the model has no torch module, or not exactly one softmax with one head.
    """

    explicand_type = MaskedModel

    def explain(self, explicand: MaskedModel, progress: Progress | None = None) -> Explanation:
        layers = [] if explicand.module is None else list(explicand.module.modules())
        softmax = [layer for layer in layers if isinstance(layer, nn.Softmax)]
        if len(softmax) != 1:
            raise GameError(
                f"attribution=attention needs a model with one nn.Softmax module, this one has {len(softmax)}."
            )
        seen = []
        handle = softmax[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            explicand.values(torch.ones(1, explicand.n_players, dtype=torch.bool))
        finally:
            handle.remove()
        weights = seen[0][0]
        if weights.ndim != 2:
            raise GameError(f"attribution=attention reads one head; the softmax gave shape {tuple(seen[0].shape)}.")
        return Explanation(matrix=weights.cpu().double().numpy())
