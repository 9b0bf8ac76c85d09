"""Games, whose functions edit what they are given, reuse what they return, or fail midway."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagame import AttributionGame, GameError, meta_attributions
from metagame.games import all_coalitions
from metagame.kept_values import KeptValues
from tests.conftest import games, random_game, unchecked

EIGHT = all_coalitions(3)


class Table:
    """A game's fn that looks values up, and keeps how many coalitions each call had."""

    def __init__(self, values):
        self.values = values
        self.bits = 1 << np.arange(len(values).bit_length() - 1)
        self.sizes = []
        self.buffer = np.empty(values.shape)

    def __call__(self, coalitions):
        self.sizes.append(len(coalitions))
        return self.values[coalitions @ self.bits]


def test_a_game_of_values_returns_them_copies_them_and_can_be_pickled():
    values = random_game(3, 2)
    given = values.copy()
    game = AttributionGame.from_values(given)
    given[:] = 0
    assert np.array_equal(game(EIGHT), values)
    assert np.array_equal(pickle.loads(pickle.dumps(game))(EIGHT), values)


def test_values_of_a_game_may_be_a_tensor():
    values = random_game(3, 2)
    with unchecked():
        game = AttributionGame.from_values(torch.tensor(values, requires_grad=True))
    assert np.array_equal(game(EIGHT), values)


def edits_its_coalitions_and_reuses_its_buffer(table, coalitions):
    table.buffer[: len(coalitions)] = table(coalitions)
    coalitions[:, 0] = True
    return table.buffer[: len(coalitions)]


MANNERS = {
    "edits its coalitions and reuses its buffer": edits_its_coalitions_and_reuses_its_buffer,
    "reuses a tensor": lambda *given: torch.from_numpy(edits_its_coalitions_and_reuses_its_buffer(*given)),
    "a view": lambda table, coalitions: np.concatenate([table(coalitions)] * 2, axis=1)[:, : table.values.shape[1]],
    "a list": lambda table, coalitions: table(coalitions).tolist(),
    "a list of tensors with grad": lambda table, coalitions: [
        torch.tensor(row, requires_grad=True) for row in table(coalitions)
    ],
    "a tensor with grad": lambda table, coalitions: torch.tensor(table(coalitions), requires_grad=True),
    "a sparse tensor": lambda table, coalitions: torch.tensor(table(coalitions)).to_sparse(),
    "half precision": lambda table, coalitions: table(coalitions).astype(np.float16),
    "bfloat16": lambda table, coalitions: torch.tensor(table(coalitions)).bfloat16(),
}


@pytest.mark.parametrize("manner", MANNERS)
@settings(max_examples=12)
@given(game=games(), batch_size=st.sampled_from([None, 1, 3, 16]), cache=st.booleans())
def test_what_fn_does_to_its_arrays_changes_no_value(manner, game, batch_size, cache):
    values, n = game
    table = Table(values.round() if manner in ("half precision", "bfloat16") else values)  # these hold integers
    played = AttributionGame(lambda rows: MANNERS[manner](table, rows), n, batch_size=batch_size, cache=cache)
    found = played(all_coalitions(n))
    assert found.dtype == np.float64
    assert np.array_equal(found, table.values)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 8), (3, [3, 3, 2]), (8, [8]), (100, [8]), (None, [8])])
def test_none_of_the_batches_exceeds_batch_size_and_progress_counts_up_to_the_plan(batch_size, sizes):
    table, seen = Table(random_game(3, 2)), []
    found = AttributionGame(table, 3, batch_size=batch_size)(EIGHT, lambda *args: seen.append(args))
    assert np.array_equal(found, table.values)
    assert table.sizes == sizes
    assert seen == [(done, 8) for done in np.cumsum(sizes)]


def test_a_game_goes_on_behind_the_batch_that_was_in_work_and_ends_the_same(tmp_path):
    asked = []

    def played(path, most=9):
        def fn(coalitions):
            asked.append(len(coalitions))
            if len(asked) > most:
                raise KeyboardInterrupt
            return np.cumsum(coalitions / 7, axis=1)

        asked.clear()
        game = AttributionGame(fn, 3, batch_size=3)
        game.keep(KeptValues(path))
        return game(EIGHT), game.n_evaluations

    whole = played(tmp_path / "whole")
    path = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        played(path, most=2)
    path.write_bytes(path.read_bytes() + path.read_bytes()[:20])  # killed while it wrote
    again = played(path)
    assert asked == [2]
    assert again[1] == whole[1] == 8
    assert again[0].tobytes() == whole[0].tobytes()
    assert len(path.read_text().splitlines()) == 2  # the last batch is followed by the result


def test_grand_coalition_is_evaluated_once():
    table = Table(random_game(3, 2))
    game = AttributionGame(table, 3)
    first = game.grand()
    assert np.array_equal(game(EIGHT), table.values)
    assert np.array_equal(game.grand(), first)
    assert game.n_evaluations == sum(table.sizes) == 8


def raises(values):
    raise RuntimeError("the device\nwent away")


FAILURES = {
    "raises": (raises, r"fn failed on coalition \[0, 2\] \(RuntimeError: the device went away\)\."),
    "NaN": (
        lambda values: values * [1, np.nan],
        r"fn returned nan for target 1 on coalition \[0, 2\]: attrib.* finite",
    ),
    "infinite": (lambda values: values * [-np.inf, 1], r"fn returned -?inf for target 0 on coalition \[0, 2\]"),
    "another shape": (lambda values: values[:, :1], r"fn returned shape \(1, 1\) for coalition \[0, 2\]: return"),
    "no target": (lambda values: values[:, :0], r"fn returned shape \(1, 0\) for coalition \[0, 2\]: return"),
    "a number": (lambda values: 3.0, r"fn returned shape \(\) for coalition \[0, 2\]: return"),
    "one dimension": (lambda values: values[:, 0], r"fn returned shape \(1,\) for coalition \[0, 2\]: return"),
    "text": (lambda values: values.astype(str), r"the result of fn has dtype .*: give real numbers"),
    "ragged": (lambda values: [[1.0], [1.0, 2.0]], r"the result of fn is not an array \(ValueError: "),
    "nothing": (lambda values: None, r"the result of fn has dtype object: give real numbers"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_names_its_coalition_and_a_cache_keeps_those_before(failure):
    behave, message = FAILURES[failure]
    table, broken = Table(random_game(3, 2)), {0b101}

    def fn(coalitions):
        values = table(coalitions)
        return values if broken.isdisjoint(coalitions @ table.bits) else behave(values)

    game = AttributionGame(fn, 3, batch_size=1, cache=True)
    with pytest.raises(GameError, match=message) as caught:
        meta_attributions(game, endogenous=False)
    assert "\n" not in str(caught.value)
    broken.clear()
    assert np.array_equal(game(EIGHT), table.values)
    assert sum(table.sizes) == 8 + 1  # the one that failed again


def test_of_a_batch_the_first_coalition_is_named_and_how_to_find_the_one():
    with pytest.raises(GameError, match=r"on 8 coalitions at once, the first one coalition \[\] .*; batch_size=1"):
        AttributionGame(raises, 3)(EIGHT)


def test_a_cache_keeps_the_finite_values_of_a_batch():
    table = Table(random_game(3, 1))
    table.values[5] = np.nan
    game = AttributionGame(table, 3, cache=True)
    with pytest.raises(GameError, match=r"coalition \[0, 2\]"):
        game(EIGHT)
    table.values[5] = 1.0
    assert np.array_equal(game(EIGHT), table.values)
    assert table.sizes == [8, 1]


def test_a_cache_evaluates_a_repeated_coalition_once():
    table = Table(random_game(3, 2))
    game = AttributionGame(table, 3, cache=True)
    rows = np.array([1, 1, 5, 1, 7, 5])
    assert np.array_equal(game(EIGHT[rows]), table.values[rows])
    assert table.sizes == [game.n_evaluations] == [3]


def test_an_error_in_a_sentence_of_its_own_stays_as_it_is():
    def fn(coalitions):
        raise GameError("the image is blank.")

    with pytest.raises(GameError, match=r"^the image is blank\.$"):
        AttributionGame(fn, 2)(all_coalitions(2))


@pytest.mark.parametrize("shape", [(5, 2), (8,), (0, 2), (1, 2), (2, 2, 2)])
def test_values_of_no_game_are_refused(shape):
    with unchecked(), pytest.raises(GameError, match="values has shape"):
        AttributionGame.from_values(np.zeros(shape))


@pytest.mark.parametrize(
    ("coalitions", "message"),
    [
        (np.ones((2, 3), int), "coalitions has dtype int64: give a boolean array"),
        ([[1.0, 0.0, 1.0]], "coalitions has dtype float64"),
        (np.ones(3, bool), r"coalitions has shape \(3,\): give \(k, 3\)"),
        (np.ones((2, 4), bool), "coalitions has shape"),
        (np.ones((2, 3, 1), bool), "coalitions has shape"),
    ],
)
def test_coalitions_must_be_boolean_with_a_column_for_each_player(coalitions, message):
    with unchecked(), pytest.raises(GameError, match=message):
        AttributionGame.from_values(random_game(3, 1))(coalitions)


@pytest.mark.parametrize(
    ("name", "value"),
    [("fn", 3), ("n_players", 0), ("n_players", 2.0), ("batch_size", 0), ("batch_size", 1.5)]
    + [("grid", grid) for grid in (3, (3,), (0, 3), (-1, -3), (1.0, 3), (1, 2, 3), "23")],
)
def test_a_bad_argument_is_named(name, value):
    with unchecked(), pytest.raises(GameError, match=rf"{name}.* (must be|give a function)"):
        AttributionGame(**({"fn": len, "n_players": 3} | {name: value}))
