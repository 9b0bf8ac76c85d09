"""Meta-attributions from boosted trees with exact Shapley values, and from a regression on their residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import factorial
from typing import Any

import numpy as np
from jaxtyping import Float

from metagame.estimators.coalition_sample import CoalitionSample, draw_coalition_sample, kernel, least_budget
from metagame.estimators.estimate import Estimate, Rules, require_scope, settle_budget
from metagame.estimators.exact import enumerate_all
from metagame.estimators.regression import (
    fit,
    kernel_shap_iq,
    least_pairwise_budget,
)
from metagame.estimators.shapiq_bridge import Lookup, pairwise, requested_coalitions, with_bounds
from metagame.extras import needed_by
from metagame.games import AttributionGame, Values
from metagame.indices import ksv_of_sii

NO_ERROR = "estimator='trees' has no standard error: choose 'permutation' or 'regression' for one"


def trees(
    game: AttributionGame,
    rules: Rules,
    *,
    n_trees: int = 100,
    depth: int = 4,
    learning_rate: float = 0.1,
    n_threads: int | None = 1,
) -> Estimate:
    """Boost trees on a shared sample of coalitions, take their exact Shapley value, and regress the residuals.

    Each target gets its own trees. A tree's value against the all-absent reference is exact per leaf
    (:func:`tree_index`). The regression on the residuals (as in Witter et al., 2025) makes rows efficient; Banzhaf
    values are those of the trees alone. Order 2: SII of the trees plus shapiq's KernelSHAP-IQ on the residuals. The
    standard error is not known, unless all coalitions are evaluated.

    Differs from the paper's code, which fits XGBoost to each generation step and target, on 32(n-1) unweighted
    coalitions of its own, ignores the residuals, and gives a row of 0 for a target whose values are all equal.

    ``n_threads`` targets are fitted in parallel at order 1; if None, as many as there are cores.

    Raises:
        GameError: the budget is too small for the regression.
        UserError: scikit-learn or shapiq is not installed.
    """
    n = game.n_players
    require_scope("trees", rules)
    budget = settle_budget("trees", rules.budget, least_pairwise_budget(n) if rules.order == 2 else least_budget(n), n)
    if budget >= 1 << n:
        return enumerate_all(game, rules)
    with needed_by("estimator='trees'"):
        from sklearn.ensemble import GradientBoostingRegressor  # here, since importing it takes seconds

    boost = GradientBoostingRegressor(
        n_estimators=n_trees,
        max_depth=depth,
        learning_rate=learning_rate,
        random_state=rules.seed % 2**32,  # as many as scikit-learn takes
    )
    if rules.order == 2:
        return _play_pairs(game, rules, budget, boost)
    return _play_players(game, rules, budget, boost, n_threads)


vars(trees)["runtime_arguments"] = frozenset({"n_threads"})  # results do not depend on it


def _play_pairs(game: AttributionGame, rules: Rules, budget: int, boost: Any) -> Estimate:
    """SII of trees that are fitted to all targets, one after the other, and of what they leave."""
    n = game.n_players
    approximator = kernel_shap_iq(n, rules.seed)
    coalitions = with_bounds(requested_coalitions(approximator, budget))
    values = game(coalitions, rules.progress)
    phi, rest = np.zeros((values.shape[1], n, n)), values.copy()
    for target in range(values.shape[1]):
        scale = values[:, target].std() or 1.0
        boost.fit(coalitions, values[:, target] / scale)
        phi[target] = scale * tree_index(boost, 2)
        rest[:, target] -= scale * boost.predict(coalitions)
    phi += pairwise(approximator, budget, Lookup(coalitions, rest), values.shape[1])
    phi = ksv_of_sii(phi) if rules.index == "ksv" else phi
    return Estimate(phi, values[1], values[0], error_note=NO_ERROR)


def _play_players(game: AttributionGame, rules: Rules, budget: int, boost: Any, n_threads: int | None) -> Estimate:
    """Values of trees that are fitted to each target, and, but for Banzhaf values, of what they leave."""
    n = game.n_players
    leaf_weight = banzhaf_leaf_weight if rules.index == "banzhaf" else shapley_leaf_weight
    sample = draw_coalition_sample(n, budget, endogenous=rules.endogenous, seed=rules.seed)
    values = game(sample.coalitions, rules.progress)
    phi, rest = _boost_targets(boost, sample, values, rules, n_threads, leaf_weight)
    if rules.index is None:
        phi += fit(sample, rest)[0]
    if rules.endogenous:
        own = sample.coalitions.sum(1) == 1
        np.fill_diagonal(phi, (values * sample.coalitions)[own].sum(0))
    return Estimate(phi, values[1], values[0], error_note=NO_ERROR)


def _boost_targets(
    boost: Any,
    sample: CoalitionSample,
    values: Values,
    rules: Rules,
    n_threads: int | None,
    leaf_weight: LeafWeight,
) -> tuple[Float[np.ndarray, "t n"], Values]:
    """Values of the trees of every target, and the game's values less the trees' predictions.

    ``boost`` is a GradientBoostingRegressor that is not fitted.
    """
    from joblib import cpu_count  # that a job of a cluster may use, not of the node
    from sklearn.base import clone

    n = sample.coalitions.shape[1]
    phi, rest = np.zeros((values.shape[1], n)), values.copy()

    def fit_target(target: int) -> None:
        seen, others = np.ones(len(values), bool), np.ones(n, bool)
        if rules.endogenous:
            seen, others[target] = sample.coalitions[:, target], False
        if not others.any():
            return
        weights = tree_weights(sample, target if rules.endogenous else None)[seen]
        coalitions = sample.coalitions[np.ix_(seen, others)]
        scale = values[seen, target].std() or 1.0  # scikit-learn splits nothing that varies by less than 1e-8
        fitted = clone(boost).fit(coalitions, values[seen, target] / scale, weights)
        phi[target, others] = scale * tree_index(fitted, 1, leaf_weight)
        rest[seen, target] -= scale * fitted.predict(coalitions)

    with ThreadPoolExecutor(n_threads or cpu_count()) as executor:
        for number, _ in enumerate(executor.map(fit_target, range(values.shape[1])), start=1):
            if rules.progress is not None:
                rules.progress(number, values.shape[1])
    return phi, rest


def tree_weights(sample: CoalitionSample, target: int | None) -> Float[np.ndarray, " k"]:
    """Shapley kernel weight of each coalition, in the subgame of an endogenous ``target``.

    The bounds count as the heaviest; coalitions without the target 0.
    """
    n = sample.coalitions.shape[1]
    size = sample.coalitions.sum(1)
    if target is None:
        weights = kernel(n, False)[size] * sample.shares
    else:
        seen = sample.coalitions[:, target]
        weights = np.where(seen, kernel(n - 1, False)[size - 1] * sample.shares / np.maximum(size, 1), 0.0)
    bounds = (size == 0) | (size == n) | ((size == 1) & (target is not None))
    bounds &= True if target is None else sample.coalitions[:, target]
    return np.where(bounds, weights.max(initial=0) or 1, weights)


def shapley_leaf_weight(p: int, a: int) -> float:
    """The integral of q^p (1-q)^a over [0, 1], p! a!/(p+a+1)!."""
    return factorial(p) * factorial(a) / factorial(p + a + 1) if p >= 0 and a >= 0 else 0.0


def banzhaf_leaf_weight(p: int, a: int) -> float:
    """The same at q = 1/2."""
    return 0.5 ** (p + a)


LeafWeight = Callable[[int, int], float]


def tree_index(boost: Any, order: int, leaf_weight: LeafWeight = shapley_leaf_weight) -> np.ndarray:
    """Shapley value ``(m,)``, or SII with the value on the diagonal ``(m, m)``, of a fitted GradientBoostingRegressor.

    A leaf of value v that needs the players P present and A absent is the game v [P in T] [A and T disjoint]. With
    p = |P|, a = |A| its Shapley value is v (p-1)! a!/(p+a)! for j in P and -v p! (a-1)!/(p+a)! for j in A, and its SII
    has (p-2)! a!, -(p-1)! (a-1)! and p! (a-2)! over (p+a-1)! for a pair in P, a mixed pair and a pair in A. Its Banzhaf
    value has 1/2^(p+a-1) in place of the former.
    """
    phi = np.zeros((boost.n_features_in_,) * order)
    for tree in boost.estimators_[:, 0]:
        for value, present, absent in _leaves(tree.tree_):
            path = present + absent
            if not path:
                continue
            signs = [1.0] * len(present) + [-1.0] * len(absent)
            sign = np.array(signs)
            p, a = len(present), len(absent)
            single = np.array([leaf_weight(p - 1, a)] * p + [leaf_weight(p, a - 1)] * a) * sign
            if order == 1:
                phi[path] += boost.learning_rate * value * single
                continue
            pair = np.array([[leaf_weight(p - (s > 0) - (t > 0), a - (s < 0) - (t < 0)) for t in signs] for s in signs])
            pair *= np.outer(sign, sign)
            np.fill_diagonal(pair, single)
            phi[np.ix_(path, path)] += boost.learning_rate * value * pair
    return phi


def _leaves(tree) -> Iterator[tuple[float, list[int], list[int]]]:
    """Every leaf of a fitted scikit-learn tree: its value, the features that must be 1 and those that must be 0."""
    stack: list[tuple[int, list[int], list[int]]] = [(0, [], [])]
    while stack:
        node, present, absent = stack.pop()
        if tree.children_left[node] < 0:
            yield float(tree.value[node, 0, 0]), present, absent
            continue
        feature = int(tree.feature[node])
        stack.append((tree.children_left[node], present, [*absent, feature]))
        stack.append((tree.children_right[node], [*present, feature], absent))
