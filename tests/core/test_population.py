"""Influences in a data set: means over inputs, with their standard errors."""

from dataclasses import replace

import numpy as np
import pytest

from metagame import AttributionGame, MetaAttributions, UserError, meta_attributions
from metagame.population import mean_influence, mean_size
from tests.conftest import close, random_game

VALUES = [random_game(3, 3, seed) for seed in range(5)]


def played(endogenous=True, **settings):
    return meta_attributions(list(map(AttributionGame.from_values, VALUES)), endogenous=endogenous, **settings)


@pytest.mark.parametrize(("endogenous", "order"), [(True, 1), (False, 1), (False, 2)])
def test_the_mean_is_the_metagame_of_the_mean_attribution(endogenous, order):
    mean_game = AttributionGame.from_values(np.mean(VALUES, axis=0))
    expected = meta_attributions(mean_game, endogenous=endogenous, order=order)
    found = mean_influence(played(endogenous, order=order))
    for name in ("values", "first_order", "empty"):
        assert close(getattr(found, name), getattr(expected, name))
    assert order > 1 or close(found.residual, 0)
    assert found.n_evaluations == 5 * expected.n_evaluations


def test_errors_of_exact_values_are_those_of_a_mean_over_inputs():
    results = played()
    values = np.stack([result.values for result in results])
    assert close(mean_influence(results).standard_error, values.std(0, ddof=1) / np.sqrt(5))
    sizes = mean_size(results)
    assert close(sizes.values, np.abs(values).mean(0))
    assert close(sizes.standard_error, np.abs(values).std(0, ddof=1) / np.sqrt(5))
    assert sizes.first_order is None


def test_results_may_come_one_by_one():
    results = [played()[0], played()[0]]
    for mean in (mean_influence, mean_size):
        assert np.array_equal(mean(each for each in results).values, mean(results).values)


def test_errors_of_the_same_coalitions_do_not_cancel():
    once = replace(played()[0], standard_error=np.full((3, 3), 0.1))
    assert close(mean_influence([once] * 7).standard_error, 0.1)


def test_an_error_that_is_not_known_is_not_known_of_the_mean():
    results = played()
    found = mean_influence([replace(results[0], standard_error=None, error_note="too few."), *results[1:]])
    assert found.standard_error is None
    assert found.error_note == "that of an input is not known: too few."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda phi: [phi], "results has 1 inputs: give at least two"),
        (lambda phi: [phi, replace(phi, players=tuple("abc"))], r"results\[1\] has players=\('a', 'b', 'c'\)"),
        (lambda phi: [phi, replace(phi, method="IG")], r"results\[1\] has method='IG', but results\[0\] has ''"),
        (lambda phi: [phi, replace(phi, values=phi.values * np.nan)], "NaN or infinite"),
        (lambda phi: [phi, MetaAttributions(np.zeros((2, 2)))], r"shape \(2, 2\), but results\[0\] has \(3, 3\)"),
        (lambda phi: [phi, replace(phi, values=phi.values.astype(object))], "has formulas"),
    ],
)
def test_what_has_no_mean_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        mean_influence(change(played()[0]))
