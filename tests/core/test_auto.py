"""The parts of estimator=auto against their slow twins, and what must hold of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor

from metagame import AttributionGame, meta_attributions
from metagame.estimators import balance, surrogates
from metagame.estimators.balance import balanced
from metagame.estimators.boosting import boost, shapley_of
from metagame.estimators.coalition_sample import draw_coalition_sample, draw_of_size
from metagame.estimators.gaussian_process import Kernel, OddKernel, Process
from metagame.estimators.least_squares import least_squares, sandwich
from metagame.estimators.problem import problems
from metagame.estimators.stacking import PENALTIES, Ridges, candidates, share, stack
from metagame.estimators.surrogates import FINE, OFFSETS, Smooth, Surrogate
from metagame.estimators.trees import tree_index
from metagame.games import all_coalitions
from tests.conftest import random_game
from tests.reference import estimators as reference
from tests.reference import indices

SIGNS = np.where(all_coalitions(5), 1.0, -1.0)


def a_kernel(offset, odd=False):
    kernel = Kernel(np.random.default_rng(0).uniform(0.05, 0.9, 5), offset)
    return OddKernel(kernel) if odd else kernel


def slow_gram(kernel, rows):
    """By the equation, of the odd part from the rows and their complements."""
    if isinstance(kernel, Kernel):
        return np.array([[reference.kernel(a, b, kernel.widths, kernel.offset) for b in rows] for a in rows])
    m, both = len(rows), slow_gram(kernel.whole, np.concatenate([rows, -rows]))
    return (both[:m, :m] - both[:m, m:] - both[m:, :m] + both[m:, m:]) / 4


def problems_of(n, budget, endogenous):
    """Those of a random game with as many targets as players."""
    values = random_game(n, n)
    sample = draw_coalition_sample(n, budget, endogenous=endogenous, seed=0)
    return problems(sample, values[sample.coalitions @ (1 << np.arange(n))])


@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0, 0.3])
@pytest.mark.parametrize("odd", [False, True])
def test_kernel_and_its_shapley_values_are_those_of_the_equation(offset, odd):
    kernel = a_kernel(offset, odd)
    slow = slow_gram(kernel, SIGNS)
    assert kernel(SIGNS, SIGNS) == pytest.approx(slow, abs=1e-12)
    for row in (0, 11, 31):
        exact = indices.shapley(slow[row], 5).astype(float)
        assert kernel.shapley(SIGNS[[row]])[0] == pytest.approx(exact, abs=1e-12)


def steps(game):
    """What each player changes as it enters or leaves each coalition."""
    return np.stack([game[np.arange(32) ^ (1 << player)] - game for player in range(5)], axis=1)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("odd", [False, True])
def test_effects_are_differences_of_the_game(offset, odd):
    kernel, whole = a_kernel(offset, odd), a_kernel(offset)
    coefficients = np.random.default_rng(1).normal(size=32)
    changed = steps(whole(SIGNS, SIGNS) @ coefficients)
    if odd:  # of the whole process on rows and their complements, taken odd: here and there
        full = steps((whole(SIGNS, SIGNS) - whole(SIGNS, -SIGNS)) @ coefficients / 2)
        changed = (full - full[::-1]) / 2
    assert kernel.effects(SIGNS, coefficients, SIGNS) == pytest.approx(changed, abs=1e-10)


def test_left_out_residuals_and_evidence_are_those_of_the_equations():
    rng = np.random.default_rng(0)
    gram, values, weights = a_kernel(0.0)(SIGNS, SIGNS)[:20, :20], rng.normal(size=(20, 2)), rng.uniform(size=20)
    process, scale = Process(gram, FINE.noises), gram.diagonal().mean()
    found, losses = process.log_evidence(values), process.losses(values, weights)
    for target in range(2):
        slow = [reference.log_evidence(gram, values[:, target], noise * scale) for noise in FINE.noises]
        assert np.ptp(found[:, target] - slow) < 1e-5  # up to a constant
        for place, noise in enumerate(FINE.noises):
            left = reference.left_out(gram, values[:, target], noise * scale)
            assert process.left_out(values, place)[:, target] == pytest.approx(left, abs=1e-6)
            assert losses[place, target] == pytest.approx(weights @ left**2, rel=1e-6)


@pytest.mark.parametrize("endogenous", [True, False])
def test_smooth_surrogates_of_few_rows_are_means_by_evidence(endogenous, monkeypatch):
    monkeypatch.setattr(surrogates, "LEAST_SHARE", 0.0)
    problem = next(problems_of(6, 28, endogenous))
    smooth, p = Smooth(problem, FINE), len(problem.players)
    rows = smooth.z[smooth.order]
    kernels = [Kernel(np.full(p, min(width / p, 0.9)), offset) for offset in OFFSETS for width in FINE.common]
    kernels = [OddKernel(each) if problem.odd else each for each in kernels]
    grams = [slow_gram(each, rows) for each in kernels]
    coefficients = reference.posterior_mean_by_evidence(grams, smooth.y[smooth.order, 0], FINE.noises)
    phi = sum(each @ kernel.shapley(rows) for each, kernel in zip(coefficients, kernels, strict=True))
    found = next(smooth.averaged(0, np.ones(p)))
    assert found.phi == pytest.approx(phi - phi.mean(), abs=1e-6)


def test_sandwich_is_that_of_the_equation():
    rng = np.random.default_rng(0)
    influence, residuals, inclusion = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), rng.uniform(size=6)
    slow = reference.sandwich(influence, residuals, inclusion)
    assert sandwich(influence, residuals, inclusion) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("endogenous", [True, False])
def test_least_squares_is_that_with_a_lagrange_multiplier(endogenous):
    for problem in problems_of(7, 60, endogenous):
        phi, _ = least_squares(problem)
        for target, (start, total) in enumerate(zip(problem.start, problem.total, strict=True)):
            members, each = problem.members, problem.values[:, target]
            weights = problem.weights
            if problem.odd:  # with the other half of each pair
                members, each = np.concatenate([members, ~members]), np.concatenate([each, -each])
                weights = np.concatenate([weights, weights])
            slow = reference.constrained_least_squares(members, each, weights, start, total)
            assert phi[target] == pytest.approx(slow, abs=1e-9)


def test_trees_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    x, values, weights = rng.random((300, 8)) < 0.5, rng.normal(size=(300, 3)), rng.random((300, 3))
    weights[:50, 1] = 0
    forest = boost(x, values, weights, n_trees=10)
    for target in range(3):
        used = weights[:, target] > 0
        theirs = GradientBoostingRegressor(n_estimators=10, max_depth=4, random_state=0)
        theirs.fit(x[used], values[used, target], weights[used, target])
        assert forest.predictions[:, target] == pytest.approx(theirs.predict(x), abs=1e-12)
        assert shapley_of(forest, 8)[target] == pytest.approx(tree_index(theirs, 1), abs=1e-12)


@given(n=st.integers(5, 9), seed=st.integers(0, 9), paired=st.booleans(), several=st.booleans())
def test_balancing_keeps_sizes_and_rows_distinct_and_lowers_the_imbalance(n, seed, paired, several):
    rng = np.random.default_rng(seed)
    rows = np.concatenate([draw_of_size(rng, n, size, 5, False) for size in (1, 2)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "MANY_PLAYERS", n + 1 - several)
        after = balanced(rows, np.ones(10), np.ones(10, bool), paired=paired)
    assert np.array_equal(after.sum(1), rows.sum(1))
    assert len(np.unique(after, axis=0)) == 10
    assert reference.imbalance(after, np.ones(10)) <= reference.imbalance(rows, np.ones(10)) + 1e-9


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("endogenous", [True, False])
def test_penalty_and_weights_are_those_of_the_least_loss(endogenous, noise):
    rng = np.random.default_rng(0)
    problem = next(problems_of(6, 50, endogenous))
    beyond = problem.beyond()[:, 0]
    predicted = [rng.uniform(0.3, 1.5) * beyond + noise * rng.normal(size=len(beyond)) for _ in range(3)]
    given = [Surrogate(each, np.zeros(len(problem.players))) for each in predicted]
    found = candidates(problem, 0, given, Ridges(problem))
    for weigh, kept in ((stack, None), (share, np.full(3, 1 / 3))):
        penalty, weights = weigh(found)
        loss, slow_penalty, slow_weights = reference.stacked(problem, 0, predicted, PENALTIES, kept)
        assert penalty == slow_penalty
        assert weights == pytest.approx(slow_weights, abs=1e-6)
        residuals = found.residuals(penalty)
        assert ((residuals[:, 0] - residuals[:, 1:] @ weights) ** 2).sum() == pytest.approx(loss, rel=1e-6)
    regression = Ridges(problem).surrogate(problem, 0)
    assert regression.left_out == pytest.approx(reference.regressed(problem, 0, PENALTIES), abs=1e-8)


@pytest.mark.parametrize("offers", [balance._single_pairs, balance._several_pairs])
def test_swaps_lower_the_imbalance_by_what_they_offer(offers):
    rng = np.random.default_rng(0)
    rows, weights = draw_of_size(rng, 9, 4, 6, False), rng.uniform(size=6)
    z = np.where(rows, 1.0, -1.0)
    off = ~np.eye(9, dtype=bool)
    moment = z.T @ (weights[:, None] * z)
    excess = np.where(off, moment - moment[off].mean(), 0.0)
    found = list(offers(rows[0], z[0], weights[0], excess, z[0] * (excess @ z[0])))
    assert len(found) > 3
    for gain, players in found:
        after = rows.copy()
        after[0, players] ^= True
        lowered = reference.imbalance(rows, weights) - reference.imbalance(after, weights)
        assert gain * 8 * weights[0] == pytest.approx(lowered, abs=1e-9)


def test_balancing_ends_after_so_much_work(monkeypatch):
    rows = draw_of_size(np.random.default_rng(0), 20, 10, 40, True)
    monkeypatch.setattr(balance, "WORK", 5 * 20**2)
    after = balanced(rows, np.ones(40), np.ones(40, bool), paired=True)
    assert not np.array_equal(after[:5], rows[:5])
    assert np.array_equal(after[5:], rows[5:])


@pytest.mark.parametrize(("endogenous", "budget"), [(True, 100), (False, 50), (False, 100)])
def test_linear_games_are_exact(endogenous, budget):
    values = all_coalitions(8) @ np.random.default_rng(0).normal(size=(8, 8)) + 2.0
    game = AttributionGame.from_values(values)
    exact = meta_attributions(game, "exact", endogenous).values
    assert meta_attributions(game, "auto", endogenous, budget).values == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("endogenous", [True, False])
@pytest.mark.parametrize(("n", "scale"), [(4, 0.0), (6, 0.0), (6, 1.0)])
def test_few_rows_give_values_that_sum_to_the_total_even_if_they_say_nothing(n, endogenous, scale):
    values = scale * random_game(n, n)
    found = meta_attributions(AttributionGame.from_values(values), "auto", endogenous, 2 * n + 2).values
    assert found.sum(1) == pytest.approx(values[-1] - (0.0 if endogenous else values[0]), abs=1e-9)
