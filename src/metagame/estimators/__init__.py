"""Estimators of meta-attributions: one function each, with a common signature.

``estimator(game, rules) -> Estimate`` plays ``game`` by :class:`Rules`, on at most ``rules.budget`` coalitions.
"""

from metagame.estimators.auto import auto
from metagame.estimators.estimate import Estimate, Estimator, Rules
from metagame.estimators.exact import exact
from metagame.estimators.permutation import permutation
from metagame.estimators.regression import regression
from metagame.estimators.trees import trees

ESTIMATORS = {"exact": exact, "permutation": permutation, "regression": regression, "trees": trees, "auto": auto}

__all__ = ["ESTIMATORS", "Estimate", "Estimator", "Rules", "auto", "exact", "permutation", "regression", "trees"]
