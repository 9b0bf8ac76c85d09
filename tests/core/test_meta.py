import logging
import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metagame import AttributionGame, GameError, UserError, indices, meta_attributions
from metagame.estimators import ESTIMATORS, Rules, exact
from metagame.estimators.configured import ConfiguredEstimator
from tests.conftest import close, endogenous_games, games, random_game, unchecked
from tests.reference import indices as reference_indices
from tests.reference import meta as reference

EFFICIENT = ["ksv", "stii", "fsii"]
each_index_of_higher_order = pytest.mark.parametrize(
    ("index", "order"), [("sii", 2), ("ksv", 3), ("stii", 2), ("fsii", 3), ("banzhaf", 2)]
)


def play(values, **arguments):
    return meta_attributions(AttributionGame.from_values(values), **arguments)


@given(values=endogenous_games())
def test_endogenous_game_is_definition_2(values):
    assert close(play(values, endogenous=True).values, reference.endogenous(values))


@given(game=games())
def test_exogenous_game_is_the_shapley_value_of_every_target(game):
    assert close(play(game[0], endogenous=False).values, reference.exogenous(game[0]))


@each_index_of_higher_order
@settings(max_examples=8)
@given(data=st.data())
def test_a_higher_order_is_the_index_of_every_target(index, order, data):
    values, n = data.draw(games(st.integers(order, 5)))
    phi = play(values, endogenous=False, order=order, index=index)
    assert phi.values.shape == (values.shape[1], *[n] * order)
    for target, found in enumerate(phi.values):
        assert close(found, getattr(reference_indices, index)(values[:, target], n, order))


@each_index_of_higher_order
@settings(max_examples=8)
@given(data=st.data())
def test_a_higher_order_of_an_endogenous_game_is_that_of_the_others_with_the_target_present(index, order, data):
    values = data.draw(endogenous_games(st.integers(order + 1, 5)))
    phi = play(values, endogenous=True, order=order, index=index)
    assert close(phi.values, reference.endogenous_of_order(values, order, getattr(reference_indices, index)))
    assert (phi.endogenous, phi.order, phi.index) == (True, order, index)


@pytest.mark.parametrize(("order", "index"), [(1, None), *((order, index) for order in (2, 3) for index in EFFICIENT)])
@settings(max_examples=8)
@given(data=st.data(), endogenous=st.booleans())
def test_rows_are_efficient(order, index, endogenous, data):
    """Corollary 1, and efficiency of the exogenous Shapley value."""
    values = data.draw(endogenous_games(st.integers(order + 1, 5)))
    phi = play(values, endogenous=endogenous, order=order, index=index)
    assert close(phi.residual, 0)
    if order == 1:
        assert close(phi.values.sum(1), values[-1] - (0 if endogenous else values[0]))


@pytest.mark.parametrize("index", ["sii", "banzhaf"])
def test_order_two_shows_the_residual_of_another_index(index):
    assert np.abs(play(random_game(4, 2), endogenous=False, order=2, index=index).residual).min() > 0.01


def test_result_says_what_was_played():
    values = random_game(4, 3)
    first = play(values, endogenous=False)
    assert (first.endogenous, first.order, first.index, first.n_evaluations) == (False, 1, None, 16)
    assert np.array_equal(first.standard_error, np.zeros((3, 4)))
    assert np.array_equal(first.first_order, values[-1])
    assert np.array_equal(first.empty, values[0])
    second = play(values, endogenous=False, order=2, index="stii")
    assert (second.order, second.index, second.standard_error.shape) == (2, "stii", (3, 4, 4))


@pytest.mark.filterwarnings("ignore:There are as many targets as players")
@pytest.mark.parametrize(
    ("n_targets", "order", "kind"), [(3, 1, "endogenous"), (2, 1, "exogenous"), (3, 2, "exogenous")]
)
def test_a_guess_is_logged_and_what_is_stated_is_not(n_targets, order, kind, caplog):
    caplog.set_level(logging.INFO, logger="metagame")
    values = random_game(3, n_targets)
    play(values, endogenous=False)
    assert not caplog.records
    phi = play(values, order=order)
    assert phi.endogenous == (kind == "endogenous")
    assert f"played as {kind}" in caplog.text


def test_targets_with_other_names_are_not_taken_for_the_players():
    for targets in ("xy", "ab"):
        game = AttributionGame(lambda c: c * 1.0, 2, players="ab", targets=targets)
        assert meta_attributions(game).endogenous == (targets == "ab")


def test_targets_taken_for_the_players_are_told_where_it_may_be_wrong():
    values = random_game(4, 4)
    with pytest.warns(UserWarning, match="There are as many targets as players, 4"):
        play(values)
    values[0] = 0
    play(values)  # no warning: the filter makes it an error
    with pytest.raises(GameError, match="index='nonsense' is unknown"):
        play(values, index="nonsense")


@pytest.mark.parametrize(
    ("order", "index", "theirs"),
    [
        (1, None, "SV"),
        (1, "banzhaf", "BV"),
        (2, "sii", "SII"),
        (2, "ksv", "k-SII"),
        (2, "stii", "STII"),
        (2, "fsii", "FSII"),
        (2, "banzhaf", "BII"),
    ],
)
def test_shapiq_objects_hold_the_same_values_under_shapiqs_names(order, index, theirs):
    from shapiq import ExactComputer

    values, bits = random_game(4, 2), 1 << np.arange(4)
    phi = play(values, endogenous=False, order=order, index=index)
    for target, ours in enumerate(phi.to_shapiq()):
        computed = ExactComputer(lambda c, t=target: values[np.atleast_2d(c).astype(int) @ bits, t], 4)(theirs, order)
        for place in np.ndindex(*[4] * order):
            players = tuple(sorted(set(place)))
            assert ours[players] == phi.values[target, *place]
            assert abs(ours[players] - computed[players]) < (1e-6 if index == "fsii" else 1e-10)
        assert (ours.index, ours.max_order, ours.estimated) == (computed.index, order, False)
        assert ours.baseline_value == phi.empty[target]
        assert index not in (None, *EFFICIENT) or close(ours.values.sum(), phi.first_order[target])


def test_shapiq_objects_of_an_endogenous_game_have_no_baseline():
    phi = play(random_game(4, 4), endogenous=True)
    for target, ours in enumerate(phi.to_shapiq()):
        assert [ours[(j,)] for j in range(4)] == phi.values[target].tolist()
        assert ours.baseline_value == 0
        assert close(ours.values.sum(), phi.first_order[target])


def test_sampled_shapiq_object_says_that_it_is_estimated():
    phi = play(random_game(6, 1), estimator="permutation", endogenous=False, budget=30)
    (theirs,) = phi.to_shapiq()
    assert theirs.estimated
    assert theirs.estimation_budget == phi.n_evaluations <= 30


@pytest.mark.parametrize(
    ("estimator", "told"), [("exact", [(128, 128)]), ("trees", [(60, 60), (1, 3), (2, 3), (3, 3)])]
)
def test_progress_ends_at_the_plan_and_trees_tell_of_each_target_that_they_fit(estimator, told):
    seen, budget = [], None if estimator == "exact" else 60
    game = AttributionGame.from_values(random_game(7, 3))
    meta_attributions(game, estimator, False, budget, progress=lambda *args: seen.append(args))
    assert seen == told


def test_a_budget_for_each_player_grows_with_the_game():
    assert [ConfiguredEstimator("trees", budget_per_player=32).budget_of(n) for n in (2, 10)] == [64, 320]
    assert ConfiguredEstimator("trees", budget=50).budget_of(10) == 50
    assert ConfiguredEstimator().budget_of(10) is None
    with pytest.raises(UserError, match=r"budget=50 and estimator\.budget_per_player=3 exclude each other: set one"):
        ConfiguredEstimator("trees", budget=50, budget_per_player=3)
    with pytest.raises(UserError, match="budget_per_player=0 must be a positive"):
        ConfiguredEstimator("trees", budget_per_player=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "magic"}, "estimator='magic' is unknown: choose one of exact, permutation"),
        ({"endogenous": 2}, "endogenous=2 must be True, False or None"),
        ({"budget": 9.5}, "budget=9.5 must be an integer"),
        ({"seed": -1}, "seed=-1 must be a non-negative integer"),
        ({"order": 0}, "order=0 must be a positive integer"),
        ({"order": 6}, "order=6 exceeds the number of players, 5"),
        ({"order": 5, "endogenous": True}, "order=5 exceeds the number of players besides the target, 4"),
        ({"order": 2, "endogenous": True, "estimator": "trees"}, "order=2 of an endogenous game needs .*'exact'"),
        ({"order": 3, "estimator": "permutation"}, "order=3 needs estimator='exact': 'permutation' has orders up to 2"),
        (
            {"order": 2, "estimator": "auto"},
            "order=2 needs estimator='exact', 'permutation', 'regression' or 'trees': 'auto' has orders up to 1",
        ),
        ({"order": 3, "index": "fsii", "estimator": "trees"}, "order=3 needs estimator='exact' or 'regression'"),
        ({"order": 2, "index": "sorcery"}, "index='sorcery' is unknown: choose one of sii"),
        ({"budget": 31}, "budget=31 .* at least 32"),
        ({"estimator": "permutation", "budget": 3}, "budget=3 .* at least 6"),
        ({"estimator": "regression", "budget": 11}, "budget=11 .* at least 12"),
        ({"estimator": "trees", "budget": 11}, "budget=11 .* at least 12"),
        ({"estimator": "auto", "budget": 11}, "budget=11 .* at least 12"),
        ({"estimator": "permutation", "order": 2, "budget": 3}, "budget=3 .* at least"),
        ({"estimator": "regression", "order": 2, "budget": 31}, "budget=31 .* at least 32"),
        ({"estimator": "trees", "order": 2, "budget": 31}, "budget=31 .* at least 32"),
        ({"estimator": "permutation", "order": 2, "index": "stii"}, "index='stii' needs estimator='exact'"),
        ({"estimator": "regression", "order": 2, "index": "stii"}, "index='stii' needs estimator='exact'"),
        ({"estimator": "regression", "index": "banzhaf"}, "index='banzhaf' needs estimator='exact'"),
        ({"estimator": "trees", "order": 2, "index": "fsii"}, "index='fsii' needs estimator='exact' or 'regression'"),
    ],
)
def test_bad_argument_is_named(arguments, message):
    with unchecked(), pytest.raises(GameError, match=message):
        play(random_game(5, 5), **({"endogenous": False} | arguments))


def test_an_endogenous_game_needs_as_many_targets_as_players():
    with pytest.raises(GameError, match=r"endogenous=True needs .* 2 targets for 3 players: pass endogenous=False"):
        play(random_game(3, 2), endogenous=True)


def test_too_many_players_for_exact_are_refused_before_any_coalition_is_evaluated():
    def fn(coalitions):
        raise AssertionError("evaluated")

    with pytest.raises(UserError, match=r"n_players=13 .*'permutation', 'regression' or 'trees'"):
        meta_attributions(AttributionGame(fn, 13), endogenous=False)


RULES = [
    Rules(endogenous, order, index)
    for endogenous in (True, False)
    for order, chosen in {1: (None, "banzhaf"), 2: tuple(indices.INDICES), 3: tuple(indices.INDICES)}.items()
    for index in chosen
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_too_many_players_for_exact_are_told_of_the_estimators_that_can_play_so_many(rules):
    game = AttributionGame.from_values(random_game(4, 4))
    with pytest.raises(GameError) as told:
        exact(game, rules, max_players=3)
    advised = set(re.findall(r"'(\w+)'", str(told.value))) - {"exact"}
    able = set()
    for name in {*ESTIMATORS} - {"exact"}:
        with suppress(GameError):
            ESTIMATORS[name](game, rules)
            able.add(name)
    assert advised == able
    assert ("raise max_players" in str(told.value), "use estimator=" in str(told.value)) == (True, bool(able))


@pytest.mark.parametrize("endogenous", [True, False, None])
def test_a_game_that_has_changed_is_played_anew(endogenous):
    scale = [1.0]
    game = AttributionGame(lambda c: scale[0] * c * (c.all(1, keepdims=True) + 1), 3)
    before = meta_attributions(game, endogenous=endogenous)
    scale[0] = 100.0
    after = meta_attributions(game, endogenous=endogenous)
    assert close(after.values, 100 * before.values)
    assert close(after.first_order, 100 * before.first_order)


@pytest.mark.parametrize(
    ("estimator", "kind"), [("permutation", np.int8), ("permutation", np.uint8), ("trees", np.int64)]
)
def test_integers_of_numpy_are_integers(estimator, kind):
    with unchecked():
        games = [AttributionGame(lambda c: c * c.sum(1, keepdims=True), n) for n in (6, kind(6))]
        found = [meta_attributions(game, estimator, True, 40, kind(3)) for game in games]
    assert np.array_equal(found[0].values, found[1].values)
    assert found[0] != found[1]
