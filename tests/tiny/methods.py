"""Every attribution method of a kind of input, and what a method might leave behind in a model."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from metagame import attributions
from metagame.attributions.method import Metagame
from metagame.contracts import Explanation, Method


def method_classes(input_type: type) -> Iterator[type[Method]]:
    """The methods of metagame.attributions that explain such inputs."""
    for module in pkgutil.iter_modules(attributions.__path__):
        for method in vars(importlib.import_module(f"metagame.attributions.{module.name}")).values():
            own = getattr(method, "__module__", "").endswith(f".{module.name}")
            if own and getattr(method, "input_type", None) is input_type and not inspect.isabstract(method):
                yield method


def first_order_of(method: Method) -> Method:
    return method.method if isinstance(method, Metagame) else method


def method_name(method: Method) -> str:
    """The name of its class, behind what its metagame is of."""
    order = {1: "Meta-", 2: "Pairs-"}[method.order] if isinstance(method, Metagame) else ""
    return order + type(first_order_of(method)).__name__


def arrays_of(explanation: Explanation) -> list[np.ndarray]:
    """All numbers of an explanation."""
    held = [explanation.attribution]
    if explanation.meta is not None:
        held += [explanation.meta.values, explanation.meta.first_order, explanation.meta.empty]
    return [array for array in held if array is not None]


def state_of(net: nn.Module) -> Any:
    """What a method might leave behind in a model, to be compared."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    settings = ("_attn_implementation", "output_attentions")
    layers = [
        (
            name,
            layer.training,
            type(layer).forward,
            "forward" in vars(layer),
            [len(getattr(layer, hook)) for hook in hooks],
            [(key, buffer.numpy().tobytes()) for key, buffer in layer.named_buffers(recurse=False)],
            [getattr(getattr(layer, "config", None), key, None) for key in settings],
        )
        for name, layer in net.named_modules()
    ]
    weights = [(name, p.requires_grad, p.grad, p.detach().numpy().tobytes()) for name, p in net.named_parameters()]
    attention = (dict(ALL_ATTENTION_FUNCTIONS.items()), torch.nn.functional.scaled_dot_product_attention)
    return layers, weights, attention, torch.is_grad_enabled()
