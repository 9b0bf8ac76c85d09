"""Meta-attributions: treat any first-order attribution method as a cooperative game and take Shapley values over it.

An implementation of "Attributions All the Way Down? The Metagame of Interpretability" (arXiv 2605.06295).
"""

from metagame import indices
from metagame.concept import concept_metagame
from metagame.games import AttributionGame, GameError
from metagame.meta import MetaAttributions, meta_attributions

__all__ = ["AttributionGame", "GameError", "MetaAttributions", "concept_metagame", "indices", "meta_attributions"]
