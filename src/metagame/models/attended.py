"""A masked transformer whose attention weights can be read, with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from metagame.errors import UserError
from metagame.models.masked import MaskedModel

EAGER = "eager"
"""What transformers calls the implementation of attention that keeps its weights."""


@dataclass(frozen=True)
class AttendedModel(MaskedModel):
    """A masked model that is a transformer, T positions of which the players' tokens are some.

    Attributes:
        attend: maps inputs ``(k, n, d)`` to f ``(k,)`` and the attention weights of every layer, ``(k, h, Q, T)``,
            query by key, with their graph; the Q queries are the last of the T positions. None: they cannot be read.
        places: position of each token that plays, ``(t,)``.
        owners: player of each of these tokens; none given, token number i is player i.
        readers: the positions that f is read from: [CLS], or those in front of the answer's tokens.
    """

    attend: Callable[[Float[Tensor, "k n d"]], tuple[Float[Tensor, " k"], Sequence[Tensor]]] | None = None
    places: tuple[int, ...] = ()
    owners: tuple[int, ...] = ()
    readers: tuple[int, ...] = (0,)

    def influence(self, inputs: Float[Tensor, "k n d"], *, gradient: bool) -> Float[Tensor, "k m n"]:
        """M, the mean over layers and heads of A * ReLU(df/dA), or of A alone, of each input; m = n + 1.

        Row 0 is that of the readers, their mean where they are several; row i that of player i - 1. Columns are the
        players. A player of several tokens has the sums of their rows and columns. Not negative; in units of f, or,
        without the gradient, shares of 1.

        Raises:
            UserError: the model keeps no attention weights.
        """
        attend = self.attend
        if attend is None:
            raise UserError(
                "this model has no attention weights to read: choose a transformer, or another attribution."
            )
        return self.batched(lambda rows: self._influence(attend, rows, gradient), inputs)

    def _influence(
        self, attend: Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]], inputs: Tensor, gradient: bool
    ) -> Float[Tensor, "k m n"]:
        with torch.set_grad_enabled(gradient):
            outputs, weights = attend(inputs.detach().requires_grad_(gradient))
            slopes = torch.autograd.grad(outputs.sum(), list(weights)) if gradient else (None,) * len(weights)
        parts = [
            self._of_players((a if slope is None else a * slope.clamp(min=0)).detach().mean(1))
            for a, slope in zip(weights, slopes, strict=True)
        ]
        return torch.stack(parts).mean(0)

    def _of_players(self, weights: Float[Tensor, "k Q T"]) -> Float[Tensor, "k m n"]:
        """The rows of the readers and the players, and the players' columns."""
        skipped = weights.shape[2] - weights.shape[1]
        columns = self.summed(weights[:, :, list(self.places)].transpose(1, 2)).transpose(1, 2)
        readers = columns[:, [place - skipped for place in self.readers]].mean(1, keepdim=True)
        return torch.cat([readers, self.summed(columns[:, [place - skipped for place in self.places]])], dim=1)

    def summed(self, tokens: Float[Tensor, "k t r"]) -> Float[Tensor, "k n r"]:
        """Rows of tokens added up to those of their players."""
        if not self.owners:
            return tokens
        rows = tokens.new_zeros(len(tokens), self.n_players, tokens.shape[2])
        return rows.index_add(1, torch.tensor(self.owners, device=tokens.device), tokens)


def require_attention_weights(net: PreTrainedModel) -> None:
    """Raise UserError where the model computes attention without keeping its weights."""
    implementation = net.config._attn_implementation
    if implementation != EAGER:
        raise UserError(
            f"this model computes attention by {implementation!r}, which does not return the weights: set"
            f" model.attention={EAGER}."
        )
