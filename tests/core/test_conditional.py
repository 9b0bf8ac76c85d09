"""Conditional imputation: weights of background rows by their distance over the present features."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from metagame import UserError, explain
from metagame.bridges.sklearn import of_estimator
from metagame.conditional import conditional_weights
from metagame.games import all_coalitions
from tests.conftest import close, unchecked
from tests.reference.conditional_weights import conditional_weights as slow_weights

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 3)) @ RNG.normal(size=(3, 3))
X = ROWS[0] + 0.1


@pytest.mark.parametrize("bandwidth", [0.05, 0.5, 3.0])
def test_weights_are_those_of_the_equation(bandwidth):
    found = conditional_weights(X, ROWS, bandwidth)(all_coalitions(3))
    assert close(found, [slow_weights(X, ROWS, np.flatnonzero(row), bandwidth) for row in all_coalitions(3)])
    assert close(found.sum(1), 1)


def test_a_large_bandwidth_is_marginal_imputation_and_a_small_one_takes_the_nearest_row():
    everyone = all_coalitions(3)[1:]
    assert close(conditional_weights(X, ROWS, 1e6)(everyone), 1 / 40, 1e-9)
    assert close(conditional_weights(ROWS[7], ROWS, 1e-3)(everyone)[-1], np.arange(40) == 7)


def test_a_feature_that_the_model_ignores_counts_by_what_it_says_of_others():
    """f(x) = x1, and x2 has correlation .8 with it: E[f | x2] = .8 x2, so that both have a Shapley value."""
    rows = np.random.default_rng(1).multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 4000)
    model = LinearRegression().fit(rows, rows[:, 0])
    x = np.array([1.0, 1.0])
    value = of_estimator(model, x, rows, weights=conditional_weights(x, rows, 0.1)).values(all_coalitions(2))
    assert close(value, [0, 1, 0.8, 1], 0.1)
    conditional = explain(of_estimator(model, x, rows, weights=conditional_weights(x, rows, 0.1)), method="sv")
    assert close(conditional.first_order, [0.6, 0.4], 0.1)
    assert close(explain(of_estimator(model, x, rows), method="sv").first_order, [1, 0], 0.05)


@pytest.mark.parametrize(
    ("x", "background", "bandwidth", "message"),
    [
        ([1.0, 2.0], ROWS, 1.0, r"x has 2 features, but background has shape \(40, 3\)"),
        (X, ROWS[:1], 1.0, r"background has shape \(1, 3\): give at least two rows"),
        (X * np.nan, ROWS, 1.0, "x or background has values that are NaN"),
        (X, ROWS, 0.0, "bandwidth=0.0 must be a positive number"),
        (X, ROWS, None, "bandwidth=None must be a positive number"),
        (X, np.full((3, 3), "a"), 1.0, "background has dtype <U1: give real numbers"),
    ],
)
def test_what_has_no_weights_is_refused(x, background, bandwidth, message):
    with unchecked(), pytest.raises(UserError, match=message):
        conditional_weights(x, background, bandwidth)


@pytest.mark.parametrize(
    "weights",
    [
        conditional_weights(X, ROWS[:20], 1.0),
        lambda rows: np.ones((len(rows), 1)),
        lambda rows: np.ones((len(rows), 40)),
    ],
)
def test_weights_of_other_rows_are_refused(weights):
    model = LinearRegression().fit(ROWS, ROWS[:, 0])
    with pytest.raises(UserError, match=r"weights has shape .* is needed with a sum of 1 in each row"):
        of_estimator(model, X, ROWS, weights=weights).values(all_coalitions(3))


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_units_of_a_feature_change_no_weight(unit):
    units = np.array([1, unit, 1])
    found = conditional_weights(X * units, ROWS * units, 0.3)(all_coalitions(3))
    assert close(found, conditional_weights(X, ROWS, 0.3)(all_coalitions(3)))


def test_a_feature_that_is_copied_changes_nothing():
    copied = conditional_weights(X[[0, 1, 1]], ROWS[:, [0, 1, 1]], 0.4)(np.array([[0, 1, 1]], bool))
    # twice the features have twice the divisor
    assert close(copied, conditional_weights(X[[1]], ROWS[:, [1]], 0.4 * np.sqrt(2))(np.array([[1]], bool)))
