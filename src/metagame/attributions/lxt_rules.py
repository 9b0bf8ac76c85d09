"""The rules of LXT's efficient implementation on a model of transformers, put on and taken off again."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from torch import nn

from metagame.errors import UserError

ABSENT = object()


@contextmanager
def lxt_rules(net: nn.Module, variant: str) -> Generator[None]:
    """Within: models of ``net``'s family have the backward pass of ``variant``; same outputs, other gradients.

    LXT replaces methods of the family's classes, and the attention functions that its module calls. Here they come back
    at the end, also after an error, and the table of attention functions that all families share is not written to. The
    models are to be in evaluation mode: LXT's dropout that does nothing is left out, since it would hold for all of
    torch.

    Args:
        net: a model of transformers.
        variant: LXT's name of its rules, ``attnLRP`` or ``cp_LRP``.

    Raises:
        UserError: LXT has no such rules for the family, or one cannot be put on (the rules are on already).
    """
    patches = _patches(net, variant)
    modeling = _modeling_module(net)
    with ExitStack() as stack:
        for target in {*patches, modeling}:
            stack.enter_context(_restored(target))
        # LXT's cp_LRP writes into this table: it gets a copy
        modeling.ALL_ATTENTION_FUNCTIONS = dict(modeling.ALL_ATTENTION_FUNCTIONS.items())
        for target, patch in patches.items():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*already patched", UserWarning)
                succeeded = patch(target)
            if not succeeded:
                raise UserError(
                    f"LXT's {variant} rules cannot be applied to {target.__name__}, which already has other"
                    " rules: leave the context of those first."
                )
        yield


def _modeling_module(net: nn.Module) -> Any:
    """Where transformers defines the model, or the one that it derives from."""
    bases = (base.__module__ for base in type(net).__mro__)
    return sys.modules[next(name for name in bases if name.startswith("transformers."))]


def _patches(net: nn.Module, variant: str) -> dict[Any, Any]:
    """LXT's map from classes (or the modelling module) to what puts a rule on them, without dropout."""
    name = f"lxt.efficient.models.{_modeling_module(net).__name__.split('.')[-2]}"
    try:
        # it warns of a package for vision models, which are not explained here
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rules = getattr(import_module(name), variant, None)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        rules = None
    # LXT's rules of BERT are for a transformers that looks its attention functions up, which this one does not
    if rules is None or "ALL_ATTENTION_FUNCTIONS" not in vars(_modeling_module(net)):
        raise UserError(
            f"LXT has no {variant} rules for {type(net).__name__} that fit the installed transformers: choose a model"
            " of Gemma 3, GPT-2, Llama, Qwen2 or Qwen3, or attribution=gradient_input."
        )
    return {target: patch for target, patch in rules.items() if target is not nn.Dropout}


@contextmanager
def _restored(target: Any) -> Generator[None]:
    """Bring back, at the end, the attributes of a class or module as they were."""
    before = dict(vars(target))
    try:
        yield
    finally:
        for name, value in list(vars(target).items()):
            original = before.get(name, ABSENT)
            if original is ABSENT:
                delattr(target, name)
            elif original is not value:
                setattr(target, name, original)
