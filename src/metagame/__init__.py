"""Meta-attributions: treat any first-order attribution method as a cooperative game and take Shapley values over it.

An implementation of "Attributions All the Way Down? The Metagame of Interpretability" (arXiv 2605.06295).
"""

from collections.abc import Callable
from importlib import import_module

from metagame import indices
from metagame.errors import GameError, UserError
from metagame.extras import needed_by
from metagame.games import AttributionGame
from metagame.handles.pairs import Pair
from metagame.meta import MetaAttributions, meta_attributions
from metagame.progress import progress_bar

__all__ = [
    "AttributionGame", "GameError", "MetaAttributions", "Pair", "UserError", "concept_metagame", "explain",
    "indices", "load_model", "meta_attributions", "progress_bar",
]  # fmt: skip


LAZY = {
    "concept_metagame": "metagame.concept", "explain": "metagame.explainer", "load_model": "metagame.models.auto",
}  # fmt: skip
"""Functions that need torch, and more, by their module."""


def __getattr__(name: str) -> Callable:
    """A function of :data:`LAZY`, when it is asked for."""
    if name in LAZY:
        with needed_by(name):
            return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module 'metagame' has no attribute {name!r}")
