"""Meta-attributions: treat any first-order attribution method as a cooperative game and take Shapley values over it.

An implementation of "Attributions All the Way Down? The Metagame of Interpretability" (arXiv 2605.06295).
"""

from collections.abc import Callable

from metagame import indices
from metagame.errors import GameError, UserError
from metagame.extras import needed_by
from metagame.games import AttributionGame
from metagame.meta import MetaAttributions, meta_attributions

__all__ = [
    "AttributionGame", "GameError", "MetaAttributions", "UserError", "concept_metagame", "indices", "meta_attributions",
]  # fmt: skip


def __getattr__(name: str) -> Callable:
    """``concept_metagame``, which needs torch, when it is asked for."""
    if name == "concept_metagame":
        with needed_by("concept_metagame"):
            from metagame.concept import concept_metagame

        return concept_metagame
    raise AttributeError(f"module 'metagame' has no attribute {name!r}")
