"""Meta-AttnLRP against the paper's procedure, which spends B coalitions on every step and target."""

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor

from metagame.attributions.attnlrp import AttnLRP
from metagame.benchmarks.prompts import review_prompts
from metagame.estimators.configured import ConfiguredEstimator
from metagame.estimators.exact import endogenous_index
from metagame.estimators.trees import tree_index
from metagame.games import AttributionGame, all_coalitions
from metagame.meta import meta_attributions
from scripts.compare_estimators import relative_error, small_gemma, step_tables
from tests.reference import generation


@pytest.fixture(scope="module")
def bound():
    model = small_gemma()
    prompt = model.tokenize("the soup was not very good .")
    return model.bind_answer(prompt, model.generate(prompt))


def test_one_pass_gives_the_mean_over_the_steps_that_the_reference_takes_alone(bound):
    found = AttnLRP().game(bound)(all_coalitions(7))
    np.testing.assert_allclose(found, step_tables(small_gemma(), "the soup was not very good .").mean(0), atol=1e-5)


@pytest.mark.slow
def test_the_default_estimator_is_no_worse_with_2b_passes_in_all_than_the_paper_with_b_for_each():
    """For prompts of which 2 B are less than a third of all coalitions."""
    model, ours, paper = small_gemma(), [], []
    for prompt in review_prompts(1, 11, 11, seed=4):
        table = step_tables(model, prompt.text)
        values, n = table.mean(0), table.shape[-1]
        exact, bits = endogenous_index(values), 1 << np.arange(n)
        budget = min(2 * generation.n_coalitions(n), (1 << n) - 2)
        phi = meta_attributions(AttributionGame.from_values(values), "auto", True, budget)
        ours.append(relative_error(phi.values, exact))
        by_step = generation.meta_attributions(lambda step, rows, t=table, b=bits: t[step][rows @ b], n, len(table), 0)
        paper.append(relative_error(by_step, exact))
    assert np.mean(ours) <= np.mean(paper) < 0.1


def test_a_coalition_costs_one_pass_whatever_the_number_of_targets_and_steps(bound, monkeypatch):
    rows, forward = [], bound.f
    monkeypatch.setitem(vars(bound), "f", lambda inputs: rows.append(len(inputs)) or forward(inputs))
    phi = AttnLRP().metagame(ConfiguredEstimator("auto", budget=100)).explain(bound).meta
    assert sum(rows) == phi.n_evaluations <= 101


def test_the_references_passes_are_counted_as_in_the_paper():
    assert generation.n_coalitions(12) == 352
    assert generation.n_passes(12, 20) / (2 * 352) >= 100
    assert generation.n_passes(30, 100) / (2 * generation.n_coalitions(30)) >= 1000


def test_the_references_coalitions_are_distinct_and_its_trees_have_their_shapley_values():
    rows = generation.draw_coalitions(8, 100, 0)
    found = {row.tobytes() for row in rows}
    assert len(found) == len(rows) == 100
    assert {np.zeros(8, bool).tobytes(), np.ones(8, bool).tobytes()} <= found
    assert all((~row).tobytes() in found for row in rows)
    values = np.random.default_rng(0).normal(size=100)
    boost = GradientBoostingRegressor(n_estimators=100, max_depth=4, learning_rate=0.1, random_state=0)
    expected = tree_index(boost.fit(rows, values), 1)
    np.testing.assert_allclose(generation.tree_shapley(rows, values, 0), expected, atol=1e-10)
