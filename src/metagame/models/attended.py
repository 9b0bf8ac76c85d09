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

Attend = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
"""F and the attention weights of every layer, as of :class:`AttendedModel`."""


@dataclass(frozen=True)
class AttendedModel(MaskedModel):
    """A masked model that is a transformer, T positions of which the players' tokens are some.

    Attributes:
        attend: maps inputs ``(k, n, d)`` to f ``(k,)`` and the attention weights of every layer, ``(k, h, Q, T)``,
            query by key, with their graph; the Q queries are the last of the T positions. None: they cannot be read.
        places: position of each token that plays, ``(t,)``.
        owners: player of each of these tokens; none given, token number i is player i.
        readers: the positions that f is read from: [CLS], or those in front of the answer's tokens. Of a DINOv2, whose
            head reads the mean of the patches as well, [CLS] alone.
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
        attend = self._attend()
        return self.batched(lambda rows: self._influence(attend, rows, gradient), inputs)

    def rollout(self, inputs: Float[Tensor, "k n d"]) -> Float[Tensor, "k n"]:
        """The readers' row of the product of (mean over heads of A + I)/2 over the layers, last layer first.

        Several readers have their mean, a player of several tokens the sum of theirs. From 0 to 1; what is missing to a
        sum of 1 goes to tokens that do not play.

        Raises:
            UserError: the model keeps no attention weights.
        """
        attend = self._attend()
        return self.batched(lambda rows: self._rollout(attend, rows), inputs)

    def _attend(self) -> Attend:
        if self.attend is None:
            raise UserError(
                "this model has no attention weights to read: choose a transformer, or another attribution."
            )
        return self.attend

    @torch.no_grad()
    def _rollout(self, attend: Attend, inputs: Tensor) -> Float[Tensor, "k n"]:
        _, weights = attend(inputs)
        skipped = weights[0].shape[3] - weights[0].shape[2]  # earlier tokens read none of those that play
        rows = [place - skipped for place in self.readers]
        mixed = torch.eye(weights[0].shape[2]).to(weights[0])[rows].expand(len(inputs), -1, -1)
        for each in reversed(weights):
            mixed = (mixed @ each[..., skipped:].mean(1) + mixed) / 2
        return self.summed(mixed.mean(1)[:, [place - skipped for place in self.places], None])[..., 0]

    def _influence(self, attend: Attend, inputs: Tensor, gradient: bool) -> Float[Tensor, "k m n"]:
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
