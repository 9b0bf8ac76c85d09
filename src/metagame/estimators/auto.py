"""Meta-attributions by what predicts held-out coalitions best: trees, smooth games, a regression, or a mixture."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from metagame.estimators.coalition_sample import draw_coalition_sample, least_budget
from metagame.estimators.estimate import Estimate, Rules, require_scope, settle_budget, too_few_for_an_error
from metagame.estimators.exact import enumerate_all
from metagame.estimators.problem import Problem, problems
from metagame.estimators.regression import fit
from metagame.estimators.stacking import Ridges, candidates, combined, share, stack
from metagame.estimators.surrogates import COARSE, FINE, Grid, Smooth, boosted_trees
from metagame.extras import needed_by
from metagame.games import AttributionGame

OF_TREES = 1 / 3
"""What the trees' own estimate counts in an endogenous game whose rows are too few to tell how good it is."""


def auto(game: AttributionGame, rules: Rules, *, n_threads: int | None = 1) -> Estimate:
    """Fit several surrogates to a shared sample of coalitions, and weigh them by how well they predict held-out ones.

    There are four kinds of surrogates: boosted trees, as in ``trees``; Gaussian processes over coalitions with a
    product kernel (:class:`metagame.estimators.gaussian_process.Kernel`), with the same width for all players and with
    a width for each player; and a ridge regression. Their Shapley values are known in closed form. A second ridge
    regression is fitted to the residuals of their mixture. Its penalty, the widths, and the weights, which add up to 1,
    minimise the leave-one-out loss (stacking; Wolpert, 1992, Breiman, 1996), for each target by itself.

    Below 6 coalitions per player, these losses are too noisy to choose by. There the processes of both kinds are
    averaged over widths, in proportion to their marginal likelihood, and count the same as the ridge regression; in an
    endogenous game, the estimate that ``trees`` gives counts a third in its place. Linear games are then not exact.

    Rows are efficient. Only order 1 and the Shapley value are supported.

    Estimates are biased, since surrogates are smoother than games. The standard error is the sandwich estimate of a
    regression on the residuals of held-out coalitions; it is None below 8 coalitions per player. It does not account
    for the bias, so no coverage is promised; ``python -m scripts.cover_standard_errors`` measures it.

    ``n_threads`` targets are fitted in parallel; if None, as many as there are cores.

    Raises:
        GameError: the order or index is not supported, or the budget is below 2n + 2.
        UserError: joblib or threadpoolctl, which come with scikit-learn, is not installed.
    """
    require_scope("auto", rules)
    n = game.n_players
    budget = settle_budget("auto", rules.budget, least_budget(n), n)
    if budget >= 1 << n:
        return enumerate_all(game, rules)
    sample = draw_coalition_sample(n, budget, endogenous=rules.endogenous, seed=rules.seed)
    values = game(sample.coalitions, rules.progress)
    trees = boosted_trees(sample, values, rules.endogenous)
    few = budget < 6 * n
    phi, error = np.zeros((values.shape[1], n)), np.zeros((values.shape[1], n))

    def play(place: Place) -> tuple[np.ndarray, np.ndarray]:
        problem, smooth, ridges, target = place
        importance = np.abs(trees.phi[problem.targets[target], problem.players])
        of_trees, ridge = trees.surrogate(problem, target), ridges.surrogate(problem, target)
        if few:
            smooths = list(smooth.averaged(target, importance))
            found = candidates(problem, target, smooths if rules.endogenous else [ridge, *smooths], ridges)
            return combined(found, *share(found))
        found = candidates(problem, target, [ridge, of_trees, *smooth.chosen(target, importance)], ridges)
        return combined(found, *stack(found))

    with needed_by("estimator='auto'"):
        from joblib import cpu_count  # that a job of a cluster may use, not of the node
        from threadpoolctl import threadpool_limits

    done = 0
    workers = n_threads or cpu_count()
    # threads of small products of matrices only wait for each other, several times as long as the products take
    with threadpool_limits(1), ThreadPoolExecutor(workers) as executor:
        left = _places(problems(sample, values), FINE if few else COARSE)
        while places := list(islice(left, 2 * workers)):
            for (problem, _, _, target), found in zip(places, executor.map(play, places), strict=True):
                where = problem.targets[target], problem.players
                phi[where], error[where] = found
            done += len(places)
            if rules.progress is not None:
                rules.progress(done, values.shape[1])
    if few and rules.endogenous:
        phi += OF_TREES * (trees.phi + fit(sample, values - trees.fitted)[0] - phi)
    if rules.endogenous:
        singles = sample.coalitions.sum(1) == 1
        np.fill_diagonal(phi, (values * sample.coalitions)[singles].sum(0))
    note = too_few_for_an_error(n, budget)
    return Estimate(phi, values[1], values[0], None if note else error, note)


vars(auto)["runtime_arguments"] = frozenset({"n_threads"})  # results do not depend on it


Place = tuple[Problem, Smooth, Ridges, int]


def _places(found: Iterator[Problem], grid: Grid) -> Iterator[Place]:
    """Each target with its problem, and what all targets of a problem share."""
    for problem in found:
        smooth, ridges = Smooth(problem, grid), Ridges(problem)
        for target in range(len(problem.targets)):
            yield problem, smooth, ridges, target
