from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metagame import indices
from metagame.errors import UserError
from tests.conftest import close, games, random_game
from tests.reference import indices as reference

TOLERANCE = 1e-10
ORDERS = [("shapley", 1), *((name, order) for name in indices.INDICES for order in (1, 2, 3))]
DECOMPOSING = ["ksv", "stii", "fsii"]
SOME_TARGETS = st.integers(1, 3)
each_index = pytest.mark.parametrize(("name", "order"), ORDERS)


def play(module, name, order, values, n):
    return module.shapley(values, n) if name == "shapley" else getattr(module, name)(values, n, order)


def games_of(order, most=6, targets=SOME_TARGETS):
    """Games of as many players as an index of this order needs."""
    return games(st.integers(order, most), targets)


@each_index
@settings(max_examples=10)
@given(data=st.data())
def test_index_matches_its_definition(name, order, data):
    values, n = data.draw(games_of(order))
    fast = play(indices, name, order, values, n)
    assert fast.shape == (n,) * order + values.shape[1:]
    for target, single in enumerate(values.T):
        assert close(fast[..., target], play(reference, name, order, single, n))


@given(game=games())
def test_moebius_matches_its_definition(game):
    values, n = game
    transform = indices.moebius(values, n)
    assert transform.shape == values.shape
    assert all(close(m, reference.moebius(single, n)) for m, single in zip(transform.T, values.T, strict=True))


@given(game=games())
def test_moebius_leaves_its_input_alone(game):
    values, n = game
    before = values.copy()
    indices.moebius(values, n)
    assert np.array_equal(values, before)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@settings(max_examples=10)
@given(data=st.data())
def test_stii_matches_its_definition_by_discrete_derivatives(order, data):
    values, n = data.draw(games_of(order, targets=st.just(1)))
    expected = reference.stii_by_derivatives(values[:, 0], n, order)
    assert close(indices.stii(values[:, 0], n, order), expected)
    assert close(reference.stii(values[:, 0], n, order), expected)


@each_index
@pytest.mark.parametrize("n", [3, 5])
def test_one_dimensional_input_drops_t(name, order, n):
    values = random_game(n, 1)
    dropped = play(indices, name, order, values[:, 0], n)
    assert dropped.shape == (n,) * order
    assert np.array_equal(dropped, play(indices, name, order, values, n)[..., 0])


def test_one_dimensional_moebius_drops_t():
    values = random_game(3, 1)
    assert np.array_equal(indices.moebius(values[:, 0], 3), indices.moebius(values, 3)[:, 0])


@each_index
def test_an_entry_is_that_of_its_set_of_players(name, order):
    index = play(indices, name, order, random_game(4, 2), 4)
    for players in np.ndindex(*[4] * order):
        first = sorted(set(players))
        assert np.array_equal(index[players], index[(*first, *first[-1:] * (order - len(first)))])


@pytest.mark.parametrize("name", sorted(set(indices.INDICES) - {"banzhaf"}))
@given(game=games())
def test_order_one_is_the_shapley_value(name, game):
    assert close(indices.INDICES[name](*game, 1), indices.shapley(*game))


@pytest.mark.parametrize("name", ["sii", "banzhaf"])
def test_indices_that_do_not_depend_on_the_order_keep_those_of_smaller_sets(name):
    values = random_game(5, 2)
    second, third = (indices.INDICES[name](values, 5, order) for order in (2, 3))
    for i, j in np.ndindex(5, 5):
        assert close(third[i, j, j], second[i, j])


@given(game=games(n_players=st.integers(2, 6)))
def test_shapley_interaction_index_is_what_two_players_lose_as_one(game):
    """Grabisch and Roubens (1999): the value of i and j as one player, less those of each where the other is absent."""
    values, n = game
    rows = np.arange(1 << n)
    first, second = rows >> (n - 2) & 1, rows >> (n - 1) & 1
    merged = indices.shapley(values[first == second], n - 1)[n - 2]
    alone = [indices.shapley(values[other == 0], n - 1)[n - 2] for other in (second, first)]
    assert close(indices.sii(values, n)[n - 2, n - 1], merged - sum(alone))


@pytest.mark.parametrize(
    ("name", "order", "theirs"),
    [
        ("shapley", 1, "SV"),
        ("banzhaf", 1, "BV"),
        ("sii", 2, "SII"),
        ("ksv", 2, "k-SII"),
        ("stii", 2, "STII"),
        ("fsii", 2, "FSII"),
        ("banzhaf", 2, "BII"),
        ("sii", 3, "SII"),
        ("ksv", 3, "k-SII"),
        ("stii", 3, "STII"),
        ("fsii", 3, "FSII"),
        ("banzhaf", 3, "BII"),
        ("ksv", 4, "k-SII"),
    ],
)
@pytest.mark.parametrize("more", [0, 2])
def test_index_agrees_with_shapiq(name, order, theirs, more):
    n = max(2, order) + more
    values = random_game(n, 1, seed=n)[:, 0]
    computed = shapiq_computer(values, n)(theirs, order)
    ours = play(indices, name, order, values, n)
    # shapiq solves FSII with infinite weights replaced by large ones: good to 1e-6 only.
    tolerance = 1e-6 if theirs == "FSII" else TOLERANCE
    for players in np.ndindex(*ours.shape):
        assert abs(ours[players] - computed[tuple(sorted(set(players)))]) < tolerance


@pytest.mark.parametrize("n", [2, 5])
def test_moebius_agrees_with_shapiq(n):
    values = random_game(n, 1)[:, 0]
    computed = shapiq_computer(values, n)("Moebius", n)
    transform = indices.moebius(values, n)
    assert all(abs(transform[reference.row(s)] - computed[s]) < TOLERANCE for s in reference.subsets(range(n)))


def shapiq_computer(values, n):
    from shapiq import ExactComputer

    bits = 1 << np.arange(n)
    return ExactComputer(lambda coalitions: values[np.atleast_2d(coalitions).astype(int) @ bits], n)


@given(game=games())
def test_shapley_value_is_efficient(game):
    values, n = game
    assert close(indices.shapley(values, n).sum(0), values[-1] - values[0])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", DECOMPOSING)
@settings(max_examples=10)
@given(data=st.data())
def test_all_sets_sum_to_the_grand_coalition(name, order, data):
    values, n = data.draw(games_of(order))
    index = indices.INDICES[name](values, n, order)
    assert close(sum(index[entry] for entry in indices.sets_of_entries(n, order)), values[-1] - values[0])


@pytest.mark.parametrize("name", DECOMPOSING)
@given(game=games(st.integers(2, 6)))
def test_rows_with_half_of_each_pair_sum_to_the_shapley_value(name, game):
    """Theorem 1."""
    values, n = game
    pairs = indices.INDICES[name](values, n)
    own = pairs[np.arange(n), np.arange(n)]
    assert close(own + (pairs.sum(1) - own) / 2, indices.shapley(values, n))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_rows_of_plain_sii_do_not_sum_to_the_shapley_value(n):
    values = random_game(n, 1)[:, 0]
    pairs = indices.sii(values, n)
    missed = (pairs.sum(1) - np.diag(pairs)) / 2
    rows = np.diag(pairs) + missed
    assert np.abs(rows - indices.shapley(values, n)).max() > 0.1
    assert close(rows - indices.shapley(values, n), missed)


@each_index
@settings(max_examples=10)
@given(data=st.data())
def test_permuting_players_permutes_the_index(name, order, data):
    values, n = data.draw(games_of(order, 4))
    new_name = np.array(data.draw(st.sampled_from(list(permutations(range(n))))))
    renamed = np.empty_like(values)
    for coalition in reference.subsets(range(n)):
        renamed[reference.row(new_name[list(coalition)])] = values[reference.row(coalition)]
    permuted = play(indices, name, order, renamed, n)[np.ix_(*[new_name] * order)]
    assert close(permuted, play(indices, name, order, values, n))


@each_index
@settings(max_examples=10)
@given(data=st.data(), worth=st.floats(-10, 10))
def test_dummy_player_gets_its_own_worth_and_no_interaction(name, order, data, worth):
    """The null player for a worth of 0."""
    values, n = data.draw(games_of(order, 5))
    index = play(indices, name, order, np.concatenate([values, values + worth]), n + 1)[n]
    expected = np.zeros_like(index)
    expected[(n,) * (order - 1)] = worth
    assert close(index, expected)


@each_index
@settings(max_examples=10)
@given(data=st.data(), a=st.floats(-5, 5), b=st.floats(-5, 5))
def test_index_is_linear_in_the_game(name, order, data, a, b):
    values, n = data.draw(games_of(order, targets=st.just(2)))
    index = play(indices, name, order, values, n)
    assert close(play(indices, name, order, values @ [a, b], n), index @ [a, b])


def test_many_players_need_no_table_of_subsets():
    n = 15
    values = random_game(n, 1)[:, 0]
    assert close(indices.shapley(values, n).sum(), values[-1] - values[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((7, 1)), "values has shape"),
        (np.zeros((8, 1, 1)), "values has shape"),
        (np.full((8, 1), np.nan), "values contain NaN"),
        (np.full(8, np.inf), "values contain NaN or inf"),
    ],
)
def test_values_of_no_game_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        indices.shapley(values, 3)


@pytest.mark.parametrize(("order", "message"), [(0, "order=0 must be"), (4, "order=4 is above")])
@pytest.mark.parametrize("name", indices.INDICES)
def test_other_orders_are_refused(name, order, message):
    with pytest.raises(UserError, match=message):
        indices.INDICES[name](np.zeros(8), 3, order)
