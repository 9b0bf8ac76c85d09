import pickle

import numpy as np
import pytest
import torch

from metagame.errors import GameError, UserError
from metagame.games import AttributionGame, all_coalitions
from metagame.kept_values import KeptValues
from tests.conftest import random_game, unchecked


def test_bit_j_of_the_row_number_is_player_j():
    assert all_coalitions(3)[0b101].tolist() == [True, False, True]
    assert len(np.unique(all_coalitions(5), axis=0)) == 32


def test_game_from_values_returns_them():
    values = random_game(4, 3)
    assert np.array_equal(AttributionGame.from_values(values)(all_coalitions(4)), values)


@pytest.mark.parametrize("shape", [(5, 2), (8,), (0, 2), (2, 2, 2)])
def test_values_of_no_game_are_refused(shape):
    with unchecked(), pytest.raises(UserError, match="values has shape"):
        AttributionGame.from_values(np.zeros(shape))


@pytest.mark.parametrize("as_type", [np.float32, torch.float32, torch.bfloat16])
def test_values_are_float64_whatever_fn_returns(as_type):
    def fn(coalitions):
        values = coalitions.sum(1, keepdims=True)
        return values.astype(as_type) if as_type is np.float32 else torch.as_tensor(values).to(as_type).requires_grad_()

    values = AttributionGame(fn, 3)(all_coalitions(3))
    assert values.dtype == np.float64
    assert values[:, 0].tolist() == [0, 1, 1, 2, 1, 2, 2, 3]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100, None])
def test_batches_do_not_change_values_and_none_exceeds_batch_size(batch_size):
    table, sizes = random_game(3, 2), []
    bits = 1 << np.arange(3)

    def fn(coalitions):
        sizes.append(len(coalitions))
        return table[coalitions @ bits]

    assert np.array_equal(AttributionGame(fn, 3, batch_size=batch_size)(all_coalitions(3)), table)
    assert max(sizes) <= (batch_size or 8)
    assert sum(sizes) == 8


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
        return game(all_coalitions(3)), game.n_evaluations

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


def test_progress_counts_up_to_the_plan():
    seen = []
    AttributionGame(lambda c: np.zeros((len(c), 1)), 3, batch_size=3)(
        all_coalitions(3), lambda *args: seen.append(args)
    )
    assert seen == [(3, 8), (6, 8), (8, 8)]


def test_grand_coalition_is_evaluated_once():
    values = random_game(3, 2)
    game = AttributionGame.from_values(values)
    first = game.grand()
    assert np.array_equal(game(all_coalitions(3)), values)
    assert np.array_equal(game.grand(), first)
    assert game.n_evaluations == 8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_names_target_and_coalition(bad):
    values = random_game(3, 2)
    values[0b110, 1] = bad
    with pytest.raises(UserError, match=r"fn returned .* for target 1 on coalition \[1, 2\]"):
        AttributionGame.from_values(values)(all_coalitions(3))


@pytest.mark.parametrize("shape", [(8,), (7, 2), (1, 2), (8, 2, 1), ()])
def test_fn_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(UserError, match="fn returned shape"):
        AttributionGame(lambda coalitions: np.zeros(shape), 3)(all_coalitions(3))


@pytest.mark.parametrize("coalitions", [np.ones((2, 3), int), np.ones((2, 3)), [[1, 0, 1]]])
def test_coalitions_must_be_boolean(coalitions):
    with unchecked(), pytest.raises(UserError, match="coalitions has dtype"):
        AttributionGame.from_values(random_game(3, 1))(coalitions)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1)])
def test_coalitions_must_have_a_column_per_player(shape):
    with unchecked(), pytest.raises(UserError, match="coalitions has shape"):
        AttributionGame.from_values(random_game(3, 1))(np.ones(shape, bool))


@pytest.mark.parametrize(("arguments", "name"), [({"n_players": 0}, "n_players"), ({"batch_size": 0}, "batch_size")])
def test_bad_argument_is_named(arguments, name):
    with pytest.raises(UserError, match=name):
        AttributionGame(lambda coalitions: coalitions, **({"n_players": 2} | arguments))


def test_values_of_a_game_are_copied_and_can_be_pickled():
    values = random_game(2, 2)
    game = AttributionGame.from_values(values)
    before = game(all_coalitions(2))
    values[:] = 0
    assert np.array_equal(game(all_coalitions(2)), before)
    assert np.array_equal(pickle.loads(pickle.dumps(game))(all_coalitions(2)), before)


@pytest.mark.parametrize("grid", [3, (3,), (0, 3), (-1, -3), (1.0, 3), (1, 2, 3), "23"])
def test_a_grid_is_two_positive_integers(grid):
    with unchecked(), pytest.raises(GameError, match=r"grid=.* must be two positive integers"):
        AttributionGame(len, 3, grid=grid)
