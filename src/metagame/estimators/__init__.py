"""Estimators of meta-attributions: one function each, the same call.

``estimator(game, *, endogenous, order, index, budget, seed, progress) -> Estimate`` plays ``game`` on at most
``budget`` coalitions.
"""

from metagame.estimators.estimate import Estimate
from metagame.estimators.exact import exact
from metagame.estimators.permutation import permutation
from metagame.estimators.regression import regression
from metagame.estimators.trees import trees

ESTIMATORS = {"exact": exact, "permutation": permutation, "regression": regression, "trees": trees}

__all__ = ["ESTIMATORS", "Estimate", "exact", "permutation", "regression", "trees"]
