"""Games on attention weights: closed forms against enumeration, the two metagames, and the published sampler."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metagame.attributions.attention_games import (
    GAMES,
    AttentionGame,
    ProxyAttentionGame,
    published_sampler,
    times_counted,
)
from metagame.attributions.attention_rollout import AttentionRollout
from metagame.attributions.gradients import GradientInput
from metagame.attributions.shapley import restricted_shapley
from metagame.estimators.configured import ConfiguredEstimator
from metagame.games import AttributionGame, all_coalitions
from metagame.meta import meta_attributions
from tests.conftest import close
from tests.reference import attention as twins
from tests.reference.indices import row, subsets, without
from tests.tiny.classifiers import bound_image, bound_text
from tests.tiny.functions import smooth_model
from tests.tiny.language import adapter, bound_of, build_net
from tests.tiny.vision_language import refused

each_game = pytest.mark.parametrize("name", GAMES)


def bound_prompt():
    return bound_of(adapter(build_net("gemma3", torch.float64, attn_implementation="eager")))


@st.composite
def matrices(draw):
    """M of up to five players, of any sign and with ties, ``(n + 1, n)``."""
    n = draw(st.integers(1, 5))
    entries = st.one_of(st.integers(-2, 2).map(float), st.floats(-5, 5))
    return draw(arrays(np.float64, (n + 1, n), elements=entries, fill=st.nothing()))


@each_game
@given(m=matrices())
def test_closed_forms_are_the_shapley_values_of_every_restriction_and_their_metagame(name, m):
    n = m.shape[1]
    expected = restricted_shapley(twins.game_values(name, m))  # row S: the game restricted to S
    present = torch.from_numpy(all_coalitions(n))
    found = GAMES[name].shapley(torch.from_numpy(m).expand(1 << n, -1, -1), present)
    assert close(found, expected)
    meta = meta_attributions(AttributionGame.from_values(expected), endogenous=True).values
    assert close(GAMES[name].meta(torch.from_numpy(m)), meta)


@pytest.mark.parametrize(("build", "gradient"), [(bound_text, True), (bound_image, False), (bound_prompt, True)])
def test_the_model_is_masked_and_the_game_played_on_what_is_present(build, gradient):
    bound = build()
    rows = np.random.default_rng(0).random((3, bound.n_players)) < 0.5
    for name in ("cls", "mutual", "row_max"):
        found = AttentionGame(name, gradient=gradient).game(bound)(rows)
        for phi, present in zip(found, rows, strict=True):
            values = twins.game_values(name, twins.influence(bound, present, gradient=gradient))
            assert close(phi, restricted_shapley(values)[row(np.flatnonzero(present))], 1e-9)


@each_game
def test_the_metagame_of_the_proxy_in_closed_form_is_that_which_is_played(name):
    bound, method = bound_text(), ProxyAttentionGame(name)
    closed, first = method.metagame().explain(bound), method.explain(bound).attribution
    played = meta_attributions(method.game(bound), endogenous=True)
    assert close(closed.meta.values, played.values)
    assert close(closed.meta.residual, 0)
    assert close(closed.attribution, first)
    assert close(AttentionGame(name).explain(bound).attribution, first)
    model = AttentionGame(name).metagame().explain(bound)
    assert close(model.meta.residual, 0)
    assert not close(model.meta.values, closed.meta.values, 1e-6)
    if name == "cls":  # additive: only the model's own interactions are influences between players
        assert close(closed.meta.values, np.diag(first))


def test_patches_keep_their_grid():
    explanation = ProxyAttentionGame("max_mutual").metagame().explain(bound_image())
    assert (explanation.grid, explanation.meta.values.shape) == ((3, 3), (9, 9))


@pytest.mark.parametrize("build", [bound_text, bound_image, bound_prompt])
def test_rollout_is_the_sum_over_paths_and_its_metagame_has_such_rows(build):
    bound, method = build(), AttentionRollout()
    rows = np.random.default_rng(0).random((3, bound.n_players)) < 0.5
    found = method.game(bound)(rows)
    assert close(found, [twins.rollout(bound, each) for each in rows], 1e-9)
    assert (found >= 0).all()
    assert (found.sum(1) <= 1).all()
    assert close(method.metagame().explain(bound).meta.values.sum(1), twins.rollout(bound, rows[0] | True), 1e-9)


def test_what_has_no_attention_weights_or_no_closed_form_is_refused():
    with refused("attribution.method.game='mean' is unknown: choose one of cls, total, mutual"):
        AttentionGame("mean")
    with refused("closed forms of attention games exist for order 1 only"):
        ProxyAttentionGame("cls").metagame(order=2)
    with refused("the metagame of ProxyAttentionGame is computed in closed form: keep estimator=exact"):
        ProxyAttentionGame("cls").metagame(ConfiguredEstimator("permutation"))
    with refused("computes attention by 'sdpa', .*: set model.attention=eager"):
        AttentionGame().explain(bound_of(adapter(build_net("gemma3", attn_implementation="sdpa"))))
    assert not isinstance(smooth_model(3), AttentionGame.input_type)
    assert GradientInput.input_type is not AttentionGame.input_type


# The published sampler


def expectation(values, n, counted):
    """The sum over all marginal contributions, each times its Shapley weight and how often it is counted."""
    found = np.zeros(n)
    for player in range(n):
        for coalition in subsets(without(n, player)):
            gain = values[row((*coalition, player))] - values[row(coalition)]
            found[player] += counted[len(coalition)] * gain / (n * comb(n - 1, len(coalition)))
    return found


@pytest.mark.parametrize(("sizes", "ratio"), [("kernel", 1.9), ("uniform", 0.19)])
def test_the_published_sampler_is_biased_as_its_docstring_says(sizes, ratio):
    n, rng = 10, np.random.default_rng(0)
    values = twins.game_values("max_mutual", rng.random((n + 1, n)))
    exact, bits = restricted_shapley(values)[-1], 1 << np.arange(n)
    found = np.mean([published_sampler(lambda rows: values[rows @ bits], n, rng, 100, sizes) for _ in range(400)], 0)
    assert np.allclose(found, expectation(values, n, times_counted(n, 100, sizes)), rtol=0.05)
    assert (found @ exact) / (exact @ exact) == pytest.approx(ratio, rel=0.15)


def test_an_estimate_without_bias_would_count_each_marginal_contribution_once():
    assert np.allclose(times_counted(10, 100, "uniform"), 200 / 1024)
    kernel = times_counted(10, 100, "kernel")
    assert kernel[0] == pytest.approx(kernel[9])
    assert kernel[0] > 4
    assert kernel[5] < 0.02
    with refused("sizes='all' is unknown"):
        times_counted(10, sizes="all")
    with refused("n_players=1 is too small"):
        times_counted(1)
