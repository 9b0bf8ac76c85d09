"""ALTI-Logit (Ferrando et al., 2023): what attention adds to a logit, traced to the input by the messages of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vector_norm

from metagame.attributions.method import FirstOrder
from metagame.errors import UserError
from metagame.games import AttributionGame
from metagame.models.decoder_views import Layer, LayerPass, decoder_view, recorded
from metagame.models.language_model import AnsweredPrompt


class ALTILogit(FirstOrder[AnsweredPrompt]):
    """phi_i(S): the part of attention's updates of the answer's logits that comes from token i; signed, in units of f.

    The message of token s to token t in layer l is F_{t<-s} = sum_h A^h_{ts} W_O^h v^h_s, where the values v include
    their biases; a normaliser after the attention (Gemma 3) scales it by its frozen scale. Attention turns x_t into
    y_t = x_t + sum_s F_{t<-s} + b_O. Let g_t be the direction of the answer's token in the residual stream, with the
    scale of the last normaliser frozen. Layer l adds Delta^l_s = sum_t <g_t, F_{t<-s}> to the logits at the answer's
    positions t. The contributions c_{ts} = max(0, |y_t| - |y_t - (F_{t<-s} + [s=t] x_t)|), with l1 norms and rows
    normalised to sum to 1, describe how a layer mixes tokens. The product of their matrices C below layer l traces
    Delta^l_s to the input:

    phi_i = sum_l sum_s Delta^l_s (C^{l-1} ... C^0)_{si}.

    The method needs one forward pass and no gradient. What attention adds is shared among all tokens, including those
    that do not play. It is not the whole logit: the embedding of the answer's positions, feed-forward layers and biases
    also add to it, see :func:`logit_parts`. Unlike the relevance of CP-LRP, which is exact if weights, gates and scales
    are frozen, the tracing is a heuristic.

    Differs from the paper: several positions t at once, and models with RMSNorm, rotary positions and grouped queries;
    the paper has GPT-2, OPT and BLOOM.

    Raises:
        UserError: the model is not one of the architectures of :mod:`metagame.models.decoder_views`, or its attention
            implementation does not return weights.
    """

    input_type = AnsweredPrompt

    def game(self, bound: AnsweredPrompt) -> AttributionGame:
        decoder_view(bound.module, "ALTI-Logit")  # refuses what it does not know

        def attribute(coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k n"]:
            inputs = bound.masked(coalitions)
            relevance = bound.batched(lambda rows: logit_parts(bound, rows).relevance, inputs)
            passed = [place - bound.places[0] for place in bound.places]  # what precedes the players is cached
            return bound.summed(relevance[:, passed, None])[..., 0]

        return bound.game(attribute)


@dataclass(frozen=True)
class LogitParts:
    """f as a sum: embedding + attention + feed-forward + constant, for each of k inputs with t tokens in a pass.

    Attributes:
        embedding: <g, x^0>: what the tokens at the answer's positions add themselves.
        attention: Delta of each layer, summed over the tokens that messages come from.
        feedforward: what each feed-forward layer adds.
        constant: what the biases of W_O and of the last normaliser add.
        relevance: relevance of each token of the pass, see :class:`ALTILogit`. What messages of earlier, cached tokens
            add is only in ``attention``.
    """

    embedding: Float[Tensor, " k"]
    attention: Float[Tensor, "k layers"]
    feedforward: Float[Tensor, "k layers"]
    constant: Float[Tensor, " k"]
    relevance: Float[Tensor, "k t"]


@torch.no_grad()
def logit_parts(bound: AnsweredPrompt, inputs: Float[Tensor, "k n w"]) -> LogitParts:
    """The summands of f at each input, from one forward pass.

    Raises:
        UserError: see :class:`ALTILogit`.
    """
    decoder, directions = decoder_view(bound.module, "ALTI-Logit"), bound.directions
    if directions is None:
        raise UserError("ALTI-Logit needs the directions of the answer's tokens: bind the prompt with a LanguageModel.")
    with recorded(decoder) as found:
        bound.outputs(inputs)
    states, places = [*(layer.x for layer in found.layers), *found.last], slice(-len(directions), None)
    last, norm = states[-1][:, places], decoder.norm
    g = norm.pull_back(directions / len(directions), last)
    constant = last.new_zeros(len(last))
    if norm.bias is not None:
        constant = constant + directions.mean(0) @ norm.bias.to(last)
    k, t, _ = states[0].shape
    relevance, rollout = last.new_zeros(k, t), torch.eye(t).to(last).expand(k, t, t)
    attention, feedforward = [], []
    for layer, own, following in zip(decoder.layers, found.layers, states[1:], strict=True):
        updates = _updates(layer, own, g)
        relevance = relevance + (updates[:, None, -t:] @ rollout)[:, 0]
        attention.append(updates.sum(1))
        feedforward.append(((following - own.y)[:, places] * g).sum((1, 2)))
        constant = constant + _bias(layer, own, g)
        if len(attention) < len(decoder.layers):
            rollout = contributions(layer, own) @ rollout
    embedding = (states[0][:, places] * g).sum((1, 2))
    return LogitParts(embedding, torch.stack(attention, 1), torch.stack(feedforward, 1), constant, relevance)


def _into_attention(layer: Layer, own: LayerPass, g: Float[Tensor, "k a d"]) -> Float[Tensor, "k a d"]:
    """The directions as the attention's output sees them, before the normaliser behind it."""
    if layer.behind is None:
        return g
    return g * layer.behind.scale(own.attended)[:, -g.shape[1] :]


def _updates(layer: Layer, own: LayerPass, g: Float[Tensor, "k a d"]) -> Float[Tensor, "k s"]:
    """Delta_s = sum_t <g_t, F_{t<-s}> of the last tokens t."""
    into = torch.einsum("kad,dhe->khae", _into_attention(layer, own, g), layer.output_of_heads.to(g))
    return (own.weights[:, :, -g.shape[1] :] * (into @ own.values.transpose(2, 3))).sum((1, 2))


def _bias(layer: Layer, own: LayerPass, g: Float[Tensor, "k a d"]) -> Float[Tensor, " k"]:
    """What the bias of W_O adds."""
    if layer.output.bias is None:
        return g.new_zeros(len(g))
    return (_into_attention(layer, own, g) * layer.output.bias).sum((1, 2))


def contributions(layer: Layer, own: LayerPass) -> Float[Tensor, "k t t"]:
    """c_{ts} of the tokens of a pass; with the columns of cached tokens, which are left out, rows would sum to 1.

    If all messages to a token, including its own, lead away from y_t, the token is assigned to itself alone.
    """
    n_tokens, n_seen = own.weights.shape[2:]
    messages = torch.einsum("khse,dhe->kshd", own.values, layer.output_of_heads.to(own.x))
    size = vector_norm(own.y, 1, dim=-1)
    found = own.x.new_zeros(len(own.x), n_tokens, n_seen)
    scale = None if layer.behind is None else layer.behind.scale(own.attended)
    for source in range(n_seen):
        first = max(0, source - (n_seen - n_tokens))  # attention is causal
        message = own.weights[:, :, first:, source].transpose(1, 2) @ messages[:, source]
        if scale is not None:
            message *= scale[:, first:]
        if source >= n_seen - n_tokens:
            message[:, 0] += own.x[:, first]
        left = vector_norm(own.y[:, first:] - message, 1, dim=-1)
        found[:, first:, source] = (size[:, first:] - left).clamp(min=0)
    total = found.sum(-1, keepdim=True)
    itself = torch.eye(n_tokens, n_seen).roll(n_seen - n_tokens, 1).to(found)
    return torch.where(total > 0, found / total, itself)[:, :, -n_tokens:]
