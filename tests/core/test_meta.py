import logging
import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metagame import AttributionGame, UserError, indices, meta_attributions
from metagame.errors import GameError
from metagame.estimators import ESTIMATORS, Rules, exact
from metagame.estimators.configured import ConfiguredEstimator
from tests.conftest import close, endogenous_games, games, random_game, unchecked
from tests.reference import indices as reference_indices
from tests.reference import meta as reference

TOLERANCE = 1e-10


def play(values, **arguments):
    return meta_attributions(AttributionGame.from_values(values), **arguments)


@given(values=endogenous_games())
def test_endogenous_game_is_definition_2(values):
    assert close(play(values, endogenous=True).values, reference.endogenous(values))


@given(game=games())
def test_exogenous_game_is_the_shapley_value_of_every_target(game):
    assert close(play(game[0], endogenous=False).values, reference.exogenous(game[0]))


ORDERS = pytest.mark.parametrize("order", [2, 3])
EFFICIENT = ["ksv", "stii", "fsii"]


@ORDERS
@pytest.mark.parametrize("index", indices.INDICES)
@settings(max_examples=8)
@given(data=st.data())
def test_a_higher_order_is_the_index_of_every_target(index, order, data):
    values, n = data.draw(games(st.integers(order, 5)))
    phi = play(values, endogenous=False, order=order, index=index)
    assert phi.values.shape == (values.shape[1], *[n] * order)
    for target, found in enumerate(phi.values):
        assert close(found, getattr(reference_indices, index)(values[:, target], n, order))


@ORDERS
@pytest.mark.parametrize("index", indices.INDICES)
@settings(max_examples=8)
@given(data=st.data())
def test_a_higher_order_of_an_endogenous_game_is_that_of_the_others_with_the_target_present(index, order, data):
    values = data.draw(endogenous_games(st.integers(order + 1, 5)))
    phi = play(values, endogenous=True, order=order, index=index)
    assert close(phi.values, reference.endogenous_of_order(values, order, getattr(reference_indices, index)))
    assert (phi.endogenous, phi.order, phi.index) == (True, order, index)


@pytest.mark.parametrize("index", ["sii", "ksv"])
@given(values=endogenous_games(st.integers(3, 5)))
def test_pairs_of_an_endogenous_game_add_to_the_influence_of_each(index, values):
    """With SII the diagonal is phi_{j->i}; k-SV takes half of each pair from it (Theorem 1, target by target)."""
    first, pairs = (play(values, endogenous=True, order=order, index=index).values for order in (1, 2))
    own = np.einsum("ijj->ij", pairs)
    shared = (pairs.sum(2) - own) / 2 if index == "ksv" else 0
    assert close(own + shared, first)


@ORDERS
@pytest.mark.parametrize("index", EFFICIENT)
@settings(max_examples=8)
@given(data=st.data())
def test_rows_of_a_higher_order_are_efficient(index, order, data):
    values = data.draw(endogenous_games(st.integers(order + 1, 5)))
    for endogenous in (True, False):
        assert close(play(values, endogenous=endogenous, order=order, index=index).residual, 0)


@given(values=endogenous_games(), endogenous=st.booleans())
def test_rows_are_efficient(values, endogenous):
    """Corollary 1, and efficiency of the exogenous Shapley value."""
    phi = play(values, endogenous=endogenous)
    gained = values[-1] - (0 if endogenous else values[0])
    assert close(phi.values.sum(1), gained)
    assert close(phi.residual, 0)


@pytest.mark.parametrize("index", ["sii", "banzhaf"])
def test_order_two_shows_the_residual_of_another_index(index):
    assert np.abs(play(random_game(4, 2), endogenous=False, order=2, index=index).residual).min() > 0.01


@given(values=endogenous_games())
def test_diagonal_is_the_attribution_of_the_target_alone(values):
    n = values.shape[1]
    own = [values[1 << i, i] for i in range(n)]
    assert np.array_equal(np.diag(play(values, endogenous=True).values), own)


@given(values=endogenous_games(), data=st.data())
def test_attributions_of_absent_targets_do_not_matter(values, data):
    n = values.shape[1]
    present = np.array([[number >> i & 1 for i in range(n)] for number in range(1 << n)], bool)
    other = np.where(present, values, data.draw(st.floats(-10, 10)))
    assert np.array_equal(play(other, endogenous=True).values, play(values, endogenous=True).values)


def test_one_player_influences_itself_only():
    phi = play(np.array([[2.0], [5.0]]), endogenous=True)
    assert phi.values.tolist() == [[5.0]]
    assert play(np.array([[2.0], [5.0]]), endogenous=False).values.tolist() == [[3.0]]


def test_two_players_influence_each_other_by_what_the_other_adds():
    values = random_game(2, 2)
    expected = [[values[1, 0], values[3, 0] - values[1, 0]], [values[3, 1] - values[2, 1], values[2, 1]]]
    assert close(play(values, endogenous=True).values, expected)


def test_result_says_what_was_played():
    values = random_game(4, 3)
    first = play(values, endogenous=False)
    assert (first.endogenous, first.order, first.index) == (False, 1, None)
    assert first.values.shape == first.standard_error.shape == (3, 4)
    assert not first.standard_error.any()
    assert np.array_equal(first.first_order, values[-1])
    assert np.array_equal(first.empty, values[0])
    assert first.n_evaluations == 16
    second = play(values, endogenous=False, order=2, index="stii")
    assert (second.order, second.index, second.standard_error.shape) == (2, "stii", (3, 4, 4))


@pytest.mark.parametrize(("n_targets", "kind"), [(3, "endogenous"), (2, "exogenous")])
def test_guess_is_logged(n_targets, kind, caplog):
    values = random_game(3, n_targets)
    with caplog.at_level(logging.INFO, logger="metagame"):
        phi = play(values)
    assert phi.endogenous == (kind == "endogenous")
    assert f"played as {kind}" in caplog.text


def test_what_is_stated_is_not_logged(caplog):
    with caplog.at_level(logging.INFO, logger="metagame"):
        phi = play(random_game(3, 3), endogenous=False)
    assert not phi.endogenous
    assert not caplog.records


@pytest.mark.parametrize("endogenous", [True, False])
def test_shapiq_object_holds_the_same_values_and_is_efficient(endogenous):
    phi = play(random_game(4, 4), endogenous=endogenous)
    for target, theirs in enumerate(phi.to_shapiq()):
        assert [theirs[(j,)] for j in range(4)] == phi.values[target].tolist()
        assert theirs.index == "SV"
        assert not theirs.estimated
        assert close(theirs.values.sum(), phi.first_order[target])
        assert theirs.baseline_value == (0 if endogenous else phi.empty[target])


@pytest.mark.parametrize("index", indices.INDICES)
def test_shapiq_object_of_order_two_holds_the_same_pairs(index):
    phi = play(random_game(4, 2), endogenous=False, order=2, index=index)
    for target, theirs in enumerate(phi.to_shapiq()):
        pairs = [[theirs[tuple(sorted({i, j}))] for j in range(4)] for i in range(4)]
        assert pairs == phi.values[target].tolist()
        assert theirs.max_order == 2
        if index in ("ksv", "stii", "fsii"):
            assert close(theirs.values.sum(), phi.first_order[target])


@pytest.mark.parametrize(("index", "name"), [("sii", "SII"), ("ksv", "k-SII"), ("stii", "STII"), ("fsii", "FSII")])
def test_shapiq_object_agrees_with_shapiq(index, name):
    from shapiq import ExactComputer

    values = random_game(4, 1)
    bits = 1 << np.arange(4)
    computed = ExactComputer(lambda c: values[np.atleast_2d(c).astype(int) @ bits, 0], 4)(name, 2)
    (ours,) = play(values, endogenous=False, order=2, index=index).to_shapiq()
    assert ours.index == computed.index
    # shapiq's FSII is good to 1e-6.
    tolerance = 1e-6 if index == "fsii" else TOLERANCE
    assert all(abs(ours[s] - computed[s]) < tolerance for s in computed.interactions if s)


def test_sampled_shapiq_object_says_that_it_is_estimated():
    phi = play(random_game(6, 1), estimator="permutation", endogenous=False, budget=30)
    (theirs,) = phi.to_shapiq()
    assert theirs.estimated
    assert theirs.estimation_budget == phi.n_evaluations <= 30


def test_estimator_may_be_a_function():
    values = random_game(3, 2)
    by_function = play(values, estimator=exact, endogenous=False)
    assert np.array_equal(by_function.values, play(values, estimator="exact", endogenous=False).values)


def test_progress_ends_at_the_plan():
    seen = []
    play(random_game(3, 2), endogenous=False, progress=lambda *args: seen.append(args))
    assert seen[-1] == (8, 8)


def test_trees_tell_of_each_target_that_they_fit():
    seen = []
    play(random_game(7, 3), endogenous=False, estimator="trees", budget=60, progress=lambda *args: seen.append(args))
    assert seen == [(60, 60), (1, 3), (2, 3), (3, 3)]


def test_a_budget_for_each_player_grows_with_the_game():
    assert [ConfiguredEstimator("trees", budget_per_player=32).budget_of(n) for n in (2, 10)] == [64, 320]
    assert ConfiguredEstimator("trees", budget=50).budget_of(10) == 50
    assert ConfiguredEstimator().budget_of(10) is None
    with pytest.raises(
        UserError, match=r"budget=50 and estimator\.budget_per_player=3 exclude each other: set one of them to null"
    ):
        ConfiguredEstimator("trees", budget=50, budget_per_player=3)
    with pytest.raises(UserError, match="budget_per_player=0 must be a positive"):
        ConfiguredEstimator("trees", budget_per_player=0)


@pytest.mark.parametrize(
    ("arguments", "n", "n_targets", "message"),
    [
        ({"estimator": "magic"}, 3, 3, "estimator='magic' is unknown: choose one of exact, permutation"),
        ({"order": 0}, 3, 3, "order=0 must be a positive integer"),
        ({"order": 4, "endogenous": False}, 3, 2, "order=4 exceeds the number of players, 3"),
        ({"order": 3, "endogenous": True}, 3, 3, "order=3 exceeds the number of players besides the target, 2"),
        ({"order": 2, "endogenous": True, "estimator": "trees"}, 5, 5, "order=2 of an endogenous game needs .*'exact'"),
        ({"order": 3, "estimator": "permutation"}, 5, 2, "order=3 needs estimator='exact': 'permutation' has orders"),
        ({"order": 3, "estimator": "auto"}, 5, 2, "order=3 needs estimator='exact': 'auto' has orders up to 1"),
        (
            {"order": 2, "estimator": "auto"},
            5,
            2,
            "order=2 needs estimator='exact', 'permutation', 'regression' or 'trees':",
        ),
        ({"order": 3, "index": "fsii", "estimator": "trees"}, 5, 2, "order=3 needs estimator='exact' or 'regression'"),
        ({"order": 2, "index": "sorcery"}, 3, 3, "index='sorcery' is unknown: choose one of sii"),
        ({"endogenous": True}, 3, 2, "endogenous=True .* pass endogenous=False"),
        ({"budget": 7}, 3, 3, "budget=7 .* at least 8"),
        ({"estimator": "permutation", "budget": 3}, 5, 2, "budget=3 .* at least 6"),
        ({"estimator": "regression", "budget": 11}, 5, 2, "budget=11 .* at least 12"),
        ({"estimator": "trees", "budget": 11}, 5, 2, "budget=11 .* at least 12"),
        ({"estimator": "auto", "budget": 11}, 5, 2, "budget=11 .* at least 12"),
        ({"estimator": "permutation", "order": 2, "budget": 3}, 5, 2, "budget=3 .* at least"),
        ({"estimator": "regression", "order": 2, "budget": 31}, 5, 2, "budget=31 .* at least 32"),
        ({"estimator": "trees", "order": 2, "budget": 31}, 5, 2, "budget=31 .* at least 32"),
        ({"estimator": "permutation", "order": 2, "index": "stii"}, 5, 2, "index='stii' needs estimator='exact'"),
        ({"estimator": "regression", "order": 2, "index": "stii"}, 5, 2, "index='stii' needs estimator='exact'"),
        (
            {"estimator": "trees", "order": 2, "index": "fsii"},
            5,
            2,
            "index='fsii' needs estimator='exact' or 'regression'",
        ),
    ],
)
def test_bad_argument_is_named(arguments, n, n_targets, message):
    with pytest.raises(UserError, match=message):
        play(random_game(n, n_targets), **arguments)


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


@pytest.mark.parametrize("estimator", ["exact", "permutation", "regression", "trees"])
def test_attribution_that_is_not_finite_is_an_error(estimator):
    values = random_game(5, 2)
    values[1 << 2, 1] = np.nan
    values[-1 - (1 << 2), 1] = np.nan
    values[0, 1] = np.nan
    with pytest.raises(UserError, match="fn returned nan for target 1"):
        play(values, estimator=estimator, endogenous=False)


@pytest.mark.parametrize("endogenous", [True, False, None])
def test_a_game_that_has_changed_is_played_anew(endogenous):
    scale = [1.0]
    game = AttributionGame(lambda c: scale[0] * c * (c.all(1, keepdims=True) + 1), 3)
    before = meta_attributions(game, endogenous=endogenous)
    scale[0] = 100.0
    after = meta_attributions(game, endogenous=endogenous)
    assert close(after.values, 100 * before.values)
    assert close(after.first_order, 100 * before.first_order)


def test_targets_with_other_names_are_not_taken_for_the_players():
    game = AttributionGame(lambda c: c * 1.0, 2, players="ab", targets="xy")
    assert not meta_attributions(game).endogenous
    assert meta_attributions(AttributionGame(lambda c: c * 1.0, 2, players="ab", targets="ab")).endogenous


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.uint8, np.int64])
@pytest.mark.parametrize("estimator", ["permutation", "trees"])
def test_integers_of_numpy_are_integers(estimator, kind):
    with unchecked():
        games = [AttributionGame(lambda c: c * c.sum(1, keepdims=True), n) for n in (6, kind(6))]
        found = [meta_attributions(game, estimator, True, 40, kind(3)) for game in games]
    assert np.array_equal(found[0].values, found[1].values)
    assert found[0] != found[1]
