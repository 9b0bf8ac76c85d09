"""AttnLRP (Achtibat et al., 2024) and CP-LRP (Ali et al., 2022): gradient x input with a modified backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metagame.attributions.lxt_rules import lxt_rules
from metagame.attributions.method import FirstOrder
from metagame.errors import UserError
from metagame.games import AttributionGame
from metagame.models.layers import MatMul
from metagame.models.masked import MaskedModel

Rules = Mapping[type[nn.Module], Callable]


class RelevancePropagation(FirstOrder[MaskedModel]):
    """phi_i(S): relevance of feature i at the masked input, sum_d x_{i,d} R-gradient_{i,d}; signed, in units of f.

    The backward pass is linear in the output seed. Transformers models get LXT's rules; other modules get the rules of
    this file, layer by layer. Relevance is assigned to the features given as x, not to what the model adds to them.

    Raises:
        UserError: the masked model has no torch module to apply the rules to, or no rules are known for its module.
    """

    input_type = MaskedModel

    @property
    @abstractmethod
    def rules(self) -> Rules:
        """The rule of each layer type whose gradient is replaced."""

    @property
    @abstractmethod
    def lxt_variant(self) -> str:
        """LXT's name for the same rules."""

    def game(self, bound: MaskedModel) -> AttributionGame:
        module = bound.module
        if module is None:
            raise UserError(
                f"{type(self).__name__} needs a torch module, but this model is a plain function: use"
                " attribution=gradient_input."
            )

        def attribute(single: MaskedModel, coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k n"]:
            inputs = single.masked(coalitions)
            with self.backward_rules(module):
                return (inputs * single.gradients(inputs)).sum(-1)

        return bound.game(lambda coalitions: bound.over_background(lambda single: attribute(single, coalitions)))

    def backward_rules(self, module: nn.Module) -> AbstractContextManager[None]:
        """Context manager in which the module has the modified backward pass: same outputs, other gradients."""
        if any(base.__module__.startswith("transformers.") for base in type(module).__mro__):
            return lxt_rules(module, self.lxt_variant)
        return relevance_rules(module, self.rules)


@contextmanager
def relevance_rules(module: nn.Module, rules: Rules) -> Generator[None]:
    """Context manager in which every layer of a type in ``rules`` has its rule: same outputs, other gradients.

    Raises:
        UserError: a layer has no rule, and its own gradient is not a relevance rule.
    """
    layers = [layer for layer in module.modules() if not list(layer.children())]
    ruled = [layer for layer in layers if type(layer) in rules]
    known = (*UNCHANGED, *RULES)
    unknown = {type(layer).__name__ for layer in layers if layer not in ruled and not isinstance(layer, known)}
    if unknown:
        raise UserError(
            f"there is no relevance rule for {', '.join(sorted(unknown))}: add one to RULES (and CP_RULES) of"
            f" {__name__}."
        )
    with ExitStack() as stack:
        for layer in ruled:
            stack.callback(layer.register_forward_hook(rules[type(layer)]).remove)
        yield


def _constant_scale(layer: nn.RMSNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    (x,) = inputs
    eps = torch.finfo(x.dtype).eps if layer.eps is None else layer.eps
    over = tuple(range(-len(layer.normalized_shape), 0))
    scale = torch.rsqrt(x.square().mean(over, keepdim=True) + eps)
    return x * (scale if layer.weight is None else layer.weight * scale).detach()


def _constant_gate(layer: nn.GELU, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    (x,) = inputs
    return x * torch.where(x == 0, 0.5, output / x).detach()


def _half_gradient(layer: MatMul, inputs: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
    return 0.5 * output + 0.5 * output.detach()


def _no_gradient(layer: nn.Softmax, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output.detach()


RULES: Rules = {nn.RMSNorm: _constant_scale, nn.GELU: _constant_gate, MatMul: _half_gradient}
CP_RULES: Rules = {nn.RMSNorm: _constant_scale, nn.GELU: _constant_gate, nn.Softmax: _no_gradient}
UNCHANGED = (nn.Linear, nn.Embedding, nn.Softmax, nn.ReLU, nn.Dropout, nn.Identity)


class AttnLRP(RelevancePropagation):
    """AttnLRP: the relevance of a product is halved between its factors, and flows through the softmax.

    A normaliser passes relevance on as if its scale were constant (identity rule). So does GELU, as x times a constant
    gate. A product of two activations halves the gradient (uniform rule). Linear layers and the softmax keep their
    gradient (epsilon rule at 0 and the deep Taylor rule).

    Relevance is not conserved: the softmax and what a model adds to x (positions, tokens that do not play) take a
    share. In your own models, products and nonlinearities that are not modules cannot be seen: use
    :class:`metagame.models.layers.MatMul`.
    """

    rules = RULES
    lxt_variant = "attnLRP"


class CPLRP(RelevancePropagation):
    """CP-LRP: attention weights (and gates of a gated feed-forward layer) are constants of the backward pass.

    With attention weights, gates and the scales of normalisers frozen at the input, a model without biases is linear in
    its input embeddings. CP-LRP is its exact decomposition: the relevance of an embedding is the output of the frozen
    model for this embedding alone, and the relevances of all embeddings, including those that do not play, sum to f.
    Biases take a share of f. Among the models for which LXT's rules are used, Gemma 3, Llama and Qwen3 have no biases;
    Qwen2 and GPT-2 do.
    """

    rules = CP_RULES
    lxt_variant = "cp_LRP"
