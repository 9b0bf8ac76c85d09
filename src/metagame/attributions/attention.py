"""Attention weights, read as an explanation."""

from __future__ import annotations

import torch
from torch import nn

from metagame.contracts import Explanation, Method
from metagame.errors import UserError
from metagame.games import Progress
from metagame.meta import MetaAttributions
from metagame.models.masked import MaskedModel


class AttentionWeights(Method[MaskedModel]):
    """The attention weights ``(L, L)`` of the model's only softmax: the row's token attends to the column's token.

    Rows sum to 1; the weights have no sign and no unit. The L tokens are the players, followed by the input's
    ``context``.
    """

    input_type = MaskedModel

    def explain(self, bound: MaskedModel, progress: Progress | None = None) -> Explanation:
        """The weights of the whole input.

        Raises:
            UserError: the model has no torch module, does not have exactly one softmax with one head, or has tokens
                without a name.
        """
        layers = [] if bound.module is None else list(bound.module.modules())
        softmax = [layer for layer in layers if isinstance(layer, nn.Softmax)]
        if len(softmax) != 1:
            raise UserError(
                "attribution=attention needs a model with one nn.Softmax module, but this one has"
                f" {len(softmax)}: choose another attribution."
            )
        seen = []
        handle = softmax[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            bound.values(torch.ones(1, bound.n_players, dtype=torch.bool))
        finally:
            handle.remove()
        weights = seen[0][0]
        if weights.ndim != 2:
            raise UserError(
                "attribution=attention needs a single attention head, but the softmax returned shape"
                f" {tuple(seen[0].shape)}: choose another attribution."
            )
        tokens = (*bound.players, *bound.context)
        if weights.shape != (len(tokens), len(tokens)):
            raise UserError(
                f"attribution=attention found weights of shape {tuple(weights.shape)} for the tokens"
                f" {', '.join(tokens)}: name the tokens that the model appends in MaskedModel.context."
            )
        meta = MetaAttributions(weights.cpu().double().numpy(), players=tokens, targets=tokens)
        return Explanation(tokens, tokens, meta=meta)
