"""The rules of CP-LRP in some layers of a language model, and those of AttnLRP in the others."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from metagame.attributions.attnlrp import RULES, RelevancePropagation
from metagame.attributions.lxt_rules import lxt_rules
from metagame.errors import UserError
from metagame.models.decoder_views import decoder_view

SIDES = ("above", "below")


class LRPByLayer(RelevancePropagation):
    """AttnLRP whose upper or lower layers have the rules of CP-LRP (after You et al., 2025); signed, in units of f.

    All layers have AttnLRP's rules. In the layers with the rules of CP-LRP, queries, keys and gates are constants, too,
    and the relevance that the uniform rule took from values and from the other factor of the gate is restored, so they
    have the gradient of CP-LRP. The rules are hooks on the model's own layers; no class is changed.

    Args:
        share: the share of the layers that are below the boundary, from 0 to 1; their number is rounded.
        cp_side: the side of the boundary that has CP-LRP's rules, ``above`` or ``below``.

    Raises:
        UserError: a setting is invalid, or the model is not a decoder with gates.
    """

    rules = RULES
    lxt_variant = "attnLRP"

    def __init__(self, share: float, cp_side: str) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"attribution.method.share={share} must be between 0 and 1.")
        if cp_side not in SIDES:
            raise UserError(f"attribution.method.cp_side={cp_side!r} is unknown: choose one of {', '.join(SIDES)}.")
        self.share = share
        self.cp_side = cp_side

    @contextmanager
    def backward_rules(self, module: nn.Module) -> Generator[None]:
        layers = decoder_view(module, "LRP by layer").layers
        if isinstance(module, GPT2LMHeadModel):
            raise UserError(
                "LRP by layer needs a model with gated layers, which GPT-2 does not have: choose attribution=cp_lrp."
            )
        boundary = round(self.share * len(layers))
        of_cp = layers[boundary:] if self.cp_side == "above" else layers[:boundary]
        with lxt_rules(module, self.lxt_variant), ExitStack() as stack:
            for layer in of_cp:
                for handle in _cp_rules(layer.module):
                    stack.callback(handle.remove)
            yield


def _cp_rules(block: Any) -> list[Any]:
    """Hooks that make AttnLRP's rules of a layer those of CP-LRP."""
    attention, mlp = block.self_attn, block.mlp
    constant = (attention.q_proj, attention.k_proj, mlp.gate_proj)
    return [
        *(layer.register_forward_hook(_detached) for layer in constant),
        *(layer.register_forward_hook(_doubled) for layer in (attention.v_proj, mlp.up_proj)),
    ]


def _detached(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.detach()


def _doubled(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The same output with twice the gradient."""
    return 2 * output - output.detach()
