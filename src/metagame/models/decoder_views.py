"""Views of decoders: their layers taken apart, with their own sub-modules.

Shapes: k sequences, t tokens of a pass, s tokens that they attend to (cached ones first, then these), d width, h heads,
e width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from metagame.errors import UserError
from metagame.models.attended import require_attention_weights

ForeignModule = Any
"""A part of a library's model; Any, since torch takes the parts of a module for ``Tensor | Module``."""


@dataclass(frozen=True)
class Norm:
    """A normaliser N(x) = gain * (x - m) / sqrt(v + eps) + bias; m is 0 in RMSNorm, and v the mean of (x - m)^2.

    Attributes:
        module: in the model.
        gain: ``(d,)``.
        bias: ``(d,)``, or None.
        eps: as in the equation.
        is_centred: whether m is the mean of x.
    """

    module: nn.Module
    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"] | None
    eps: float
    is_centred: bool

    def scale(self, x: Float[Tensor, "k t d"]) -> Float[Tensor, "k t d"]:
        """The factor gain / sqrt(v + eps) of each token."""
        about = x - x.mean(-1, keepdim=True) if self.is_centred else x
        return self.gain * torch.rsqrt(about.square().mean(-1, keepdim=True) + self.eps)

    def pull_back(self, direction: Float[Tensor, "t d"], x: Float[Tensor, "k t d"]) -> Float[Tensor, "k t d"]:
        """The g with <direction, N(x)> = <g, x> + <direction, bias>, the scale frozen at x."""
        g = direction * self.scale(x)
        return g - g.mean(-1, keepdim=True) if self.is_centred else g


@dataclass(frozen=True)
class Layer:
    """A pre-norm layer of a decoder: y = x + behind(W_O attention(x)), then the feed-forward part is added to y.

    Attributes:
        module: its input is x.
        attention: gives its output and the weights of the heads.
        values: the end of its output are the values, of all heads or of groups of them.
        output: W_O.
        behind: normaliser of the attention's output; None in most models.
        n_heads: of the attention.
        head_width: e.
    """

    module: nn.Module
    attention: nn.Module
    values: nn.Module
    output: nn.Linear | Conv1D
    behind: Norm | None
    n_heads: int
    head_width: int

    @property
    def output_of_heads(self) -> Float[Tensor, "d h e"]:
        """W_O, head by head."""
        weight = self.output.weight.T if isinstance(self.output, Conv1D) else self.output.weight
        return weight.unflatten(1, (self.n_heads, self.head_width))


@dataclass(frozen=True)
class Decoder:
    """The layers of a model and the normaliser behind them."""

    net: PreTrainedModel
    layers: tuple[Layer, ...]
    norm: Norm


@dataclass(frozen=True)
class LayerPass:
    """What a layer did with k sequences, in float32 or better.

    Attributes:
        x: its input.
        attended: the output of the attention, its bias included.
        y: x and what attention adds to it.
        weights: of the attention.
        values: of each head.
    """

    x: Float[Tensor, "k t d"]
    attended: Float[Tensor, "k t d"]
    y: Float[Tensor, "k t d"]
    weights: Float[Tensor, "k h t s"]
    values: Float[Tensor, "k h s e"]


@dataclass(frozen=True)
class DecoderPass:
    """What a pass through a decoder did.

    Attributes:
        layers: in order.
        last: one residual state, that behind the last layer.
    """

    layers: list[LayerPass]
    last: list[Float[Tensor, "k t d"]]


def decoder_view(net: nn.Module | None, user: str) -> Decoder:
    """The parts of a decoder.

    Args:
        net: the model.
        user: what needs them, for the message.

    Raises:
        UserError: it is of another architecture.
    """
    view = VIEWS.get(type(net))
    if view is None:
        found = "a plain function" if net is None else f"a {type(net).__name__}"
        raise UserError(
            f"{user} supports language models of Gemma 3, GPT-2, Llama, Mistral, Qwen2 and Qwen3, but this model"
            f" is {found}: choose another method, for example attribution=leave_one_out."
        )
    return view(net)


def _llama(net: ForeignModule) -> Decoder:
    layers = [_layer(block, None) for block in net.model.layers]
    return Decoder(net, tuple(layers), _rms_norm(net.model.norm))


def _gemma3(net: ForeignModule) -> Decoder:
    layers = [_layer(block, _gemma3_norm(block.post_attention_layernorm)) for block in net.model.layers]
    return Decoder(net, tuple(layers), _gemma3_norm(net.model.norm))


def _gpt2(net: ForeignModule) -> Decoder:
    layers = [
        Layer(block, block.attn, block.attn.c_attn, block.attn.c_proj, None, block.attn.num_heads, block.attn.head_dim)
        for block in net.transformer.h
    ]
    last = net.transformer.ln_f
    return Decoder(net, tuple(layers), Norm(last, last.weight, last.bias, last.eps, is_centred=True))


VIEWS: dict[type, Callable[[ForeignModule], Decoder]] = {
    Gemma3ForCausalLM: _gemma3,
    GPT2LMHeadModel: _gpt2,
    LlamaForCausalLM: _llama,
    MistralForCausalLM: _llama,
    Qwen2ForCausalLM: _llama,
    Qwen3ForCausalLM: _llama,
}


def _layer(block: ForeignModule, behind: Norm | None) -> Layer:
    own = block.self_attn
    return Layer(block, own, own.v_proj, own.o_proj, behind, own.config.num_attention_heads, own.head_dim)


def _rms_norm(norm: ForeignModule) -> Norm:
    return Norm(norm, norm.weight, None, norm.variance_epsilon, is_centred=False)


def _gemma3_norm(norm: ForeignModule) -> Norm:
    return Norm(norm, 1 + norm.weight, None, norm.eps, is_centred=False)


@contextmanager
def recorded(decoder: Decoder) -> Generator[DecoderPass]:
    """Within: the next pass through the decoder is written down.

    Raises:
        UserError: its attention keeps no weights.
    """
    require_attention_weights(decoder.net)
    found = DecoderPass([], [])
    with ExitStack() as stack:
        for layer in decoder.layers:
            for handle in _hooks(layer, found):
                stack.callback(handle.remove)

        def keep_last(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found.last.append(_precise(inputs[0]))

        stack.callback(decoder.norm.module.register_forward_pre_hook(keep_last).remove)
        yield found


def _hooks(layer: Layer, found: DecoderPass) -> list[Any]:
    """Hooks that append the layer's pass to ``found``."""
    state: dict[str, Any] = {}

    def keep_input(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        state["x"] = inputs[0] if inputs else named["hidden_states"]

    def keep_cached(module: ForeignModule, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        cached = named["past_key_values"].layers
        place = module.layer_idx
        state["cached"] = cached[place].values if place < len(cached) and cached[place].is_initialized else None

    def keep_values(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        state["values"] = output

    def keep_attention(module: ForeignModule, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        state["attended"] = state["added"] = output[0]
        state["weights"] = output[1]

    def keep_norm(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        state["added"] = output

    def finish(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        x, attended = _precise(state["x"]), _precise(state["attended"])
        weights, values = _precise(state["weights"]), _precise(_values(layer, state))
        found.layers.append(LayerPass(x, attended, x + state["added"], weights, values))
        state.clear()

    own = [
        layer.module.register_forward_pre_hook(keep_input, with_kwargs=True),
        layer.attention.register_forward_pre_hook(keep_cached, with_kwargs=True),
        layer.values.register_forward_hook(keep_values),
        layer.attention.register_forward_hook(keep_attention),
        layer.module.register_forward_hook(finish),
    ]
    return own if layer.behind is None else [*own, layer.behind.module.register_forward_hook(keep_norm)]


def _values(layer: Layer, state: dict[str, Any]) -> Float[Tensor, "k h s e"]:
    """The values of each head, those of cached tokens first: heads of a group share theirs."""
    groups = state["values"].unflatten(-1, (-1, layer.head_width)).transpose(1, 2)
    if isinstance(layer.values, Conv1D):  # queries, keys and values in one
        groups = groups[:, -layer.n_heads :]
    if state["cached"] is not None:
        groups = torch.cat([state["cached"], groups], dim=2)
    return groups.repeat_interleave(layer.n_heads // groups.shape[1], dim=1)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
