"""AttnLRP (Achtibat et al., 2024) on small torch modules: gradient x input with a modified backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metagame.attributions.method import FirstOrder
from metagame.games import AttributionGame, GameError
from metagame.models.layers import MatMul
from metagame.models.masked import MaskedModel


class AttnLRP(FirstOrder):
    """phi_i(S): relevance of feature i at the masked input, sum_d x_{i,d} R-gradient_{i,d}; signed, in units of f.

    The backward pass is linear in the output seed. Rules (:data:`RULES`): a normaliser passes relevance as if its scale
    were constant (identity rule); GELU likewise, as x times a constant gate; a product of two activations halves
    the gradient (uniform rule). Linear layers and the softmax keep their gradient (epsilon rule at 0 and the
    deep Taylor rule). Relevance is that of the features given as x, not of what the model adds to them.

    Relevance is not conserved: the softmax and what a model adds to x (positions, tokens that do not play) take a
    share. Products and nonlinearities that are no modules cannot be seen: use :class:`metagame.models.layers.MatMul`.

    Raises:
        GameError: the masked model has no torch module to put the rules on, or one with a layer that has no rule.
    """

    explicand_type = MaskedModel

    def game(self, explicand: MaskedModel) -> AttributionGame:
        if explicand.module is None:
            raise GameError(
                "attribution=attnlrp needs a torch module; this model is a plain function: use gradient_input."
            )

        def attribute(coalitions) -> Float[Tensor, "k n"]:
            inputs = explicand.masked(coalitions)
            with relevance_rules(explicand.module):
                return (inputs * explicand.gradients(inputs)).sum(-1)

        return AttributionGame(attribute, explicand.n_players)


@contextmanager
def relevance_rules(module: nn.Module) -> Iterator[None]:
    """Within: every layer of a type in :data:`RULES` has its rule: same outputs, other gradients.

    Raises:
        GameError: a layer has neither a rule nor a gradient that is its rule.
    """
    layers = [layer for layer in module.modules() if not list(layer.children())]
    ruled = [layer for layer in layers if type(layer) in RULES]
    unknown = {type(layer).__name__ for layer in layers if layer not in ruled and not isinstance(layer, UNCHANGED)}
    if unknown:
        raise GameError(f"attribution=attnlrp has no rule for {', '.join(sorted(unknown))}: add one to RULES.")
    with ExitStack() as stack:
        for layer in ruled:
            stack.callback(layer.register_forward_hook(RULES[type(layer)]).remove)
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


RULES = {nn.RMSNorm: _constant_scale, nn.GELU: _constant_gate, MatMul: _half_gradient}
UNCHANGED = (nn.Linear, nn.Embedding, nn.Softmax, nn.ReLU, nn.Dropout, nn.Identity)
