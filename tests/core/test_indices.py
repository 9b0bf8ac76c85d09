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
EFFICIENT = ["ksv", "stii", "fsii"]
SOME_TARGETS = st.integers(1, 3)
each_index = pytest.mark.parametrize(
    ("name", "order"), [("shapley", 1), *((name, order) for name in indices.INDICES for order in (1, 2, 3))]
)

each_index_once = pytest.mark.parametrize(
    ("name", "order"), [("shapley", 1), ("sii", 2), ("ksv", 3), ("stii", 2), ("fsii", 3), ("banzhaf", 2)]
)


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
    dropped = play(indices, name, order, values[:, 0], n)
    assert dropped.shape == (n,) * order
    assert close(dropped, fast[..., 0], 1e-12)


@given(game=games())
def test_moebius_matches_its_definition_and_leaves_its_input_alone(game):
    values, n = game
    before = values.copy()
    transform = indices.moebius(values, n)
    assert np.array_equal(values, before)
    assert close(transform, np.transpose([reference.moebius(single, n) for single in values.T]))
    assert np.array_equal(indices.moebius(values[:, 0], n), transform[:, 0])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@settings(max_examples=10)
@given(data=st.data())
def test_stii_matches_its_definition_by_discrete_derivatives(order, data):
    values, n = data.draw(games_of(order, targets=st.just(1)))
    expected = reference.stii_by_derivatives(values[:, 0], n, order)
    assert close(indices.stii(values[:, 0], n, order), expected)
    assert close(reference.stii(values[:, 0], n, order), expected)


@pytest.mark.parametrize(
    ("name", "order", "theirs"),
    [("shapley", 1, "SV"), ("banzhaf", 1, "BV"), ("ksv", 4, "k-SII")]
    + [
        (name, order, theirs)
        for name, theirs in {"sii": "SII", "ksv": "k-SII", "stii": "STII", "fsii": "FSII", "banzhaf": "BII"}.items()
        for order in (2, 3)
    ],
)
def test_index_agrees_with_shapiq(name, order, theirs):
    from shapiq import ExactComputer

    n = order + 2
    values, bits = random_game(n, 1, seed=n)[:, 0], 1 << np.arange(n)
    computed = ExactComputer(lambda rows: values[np.atleast_2d(rows).astype(int) @ bits], n)(theirs, order)
    ours = play(indices, name, order, values, n)
    # shapiq solves FSII with infinite weights replaced by large ones: good to 1e-6 only.
    tolerance = 1e-6 if theirs == "FSII" else TOLERANCE
    for players in np.ndindex(*ours.shape):
        assert abs(ours[players] - computed[tuple(sorted(set(players)))]) < tolerance


@pytest.mark.parametrize(
    ("name", "order"), [("ksv", 1), ("ksv", 4), ("stii", 2), ("stii", 3), ("fsii", 2), ("fsii", 4)]
)
@settings(max_examples=10)
@given(data=st.data())
def test_all_sets_sum_to_the_grand_coalition(name, order, data):
    values, n = data.draw(games_of(order))
    index = indices.INDICES[name](values, n, order)
    assert close(sum(index[entry] for entry in indices.sets_of_entries(n, order)), values[-1] - values[0])


@pytest.mark.parametrize("name", EFFICIENT)
@given(game=games(st.integers(2, 6)))
def test_rows_with_half_of_each_pair_sum_to_the_shapley_value(name, game):
    """Theorem 1."""
    values, n = game
    pairs = indices.INDICES[name](values, n)
    own = pairs[np.arange(n), np.arange(n)]
    assert close(own + (pairs.sum(1) - own) / 2, indices.shapley(values, n))


@each_index_once
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


@each_index_once
@settings(max_examples=10)
@given(data=st.data(), worth=st.floats(-10, 10))
def test_dummy_player_gets_its_own_worth_and_no_interaction(name, order, data, worth):
    """The null player for a worth of 0."""
    values, n = data.draw(games_of(order, 5))
    index = play(indices, name, order, np.concatenate([values, values + worth]), n + 1)[n]
    expected = np.zeros_like(index)
    expected[(n,) * (order - 1)] = worth
    assert close(index, expected)


@each_index_once
@settings(max_examples=10)
@given(data=st.data(), a=st.floats(-5, 5), b=st.floats(-5, 5))
def test_index_is_linear_in_the_game(name, order, data, a, b):
    values, n = data.draw(games_of(order, targets=st.just(2)))
    index = play(indices, name, order, values, n)
    assert close(play(indices, name, order, values @ [a, b], n), index @ [a, b])


def test_many_players_need_no_table_of_subsets():
    values = random_game(15, 1)[:, 0]
    assert close(indices.shapley(values, 15).sum(), values[-1] - values[0])


@pytest.mark.parametrize(
    ("values", "order", "message"),
    [
        (np.zeros((7, 1)), 2, "values has shape"),
        (np.zeros((8, 1, 1)), 2, "values has shape"),
        (np.full((8, 1), np.nan), 2, "values contain NaN"),
        (np.full(8, np.inf), 2, "values contain NaN or inf"),
        (np.zeros(8), 0, "order=0 must be"),
        (np.zeros(8), 4, "order=4 is above"),
    ],
)
def test_what_has_no_index_is_refused(values, order, message):
    with pytest.raises(UserError, match=message):
        indices.stii(values, 3, order)
