"""Functions that edit what they are given, reuse what they return, or fail midway: right, or refused in a sentence."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from metagame import AttributionGame, GameError, meta_attributions
from metagame.games import all_coalitions
from tests.conftest import random_game, unchecked

N_GAMES_EACH = 40


class Table:
    """A game's fn that looks values up, and counts its coalitions."""

    def __init__(self, values):
        self.values = values
        self.bits = 1 << np.arange(len(values).bit_length() - 1)
        self.n_seen = 0
        self.buffer = np.empty(values.shape)

    def __call__(self, coalitions):
        self.n_seen += len(coalitions)
        return self.values[coalitions @ self.bits]


def edits_its_coalitions(table, coalitions):
    found = table(coalitions)
    coalitions[:, 0] = True
    return found


def reuses_its_buffer(table, coalitions):
    table.buffer[: len(coalitions)] = table(coalitions)
    return table.buffer[: len(coalitions)]


def reuses_a_tensor(table, coalitions):
    return torch.from_numpy(reuses_its_buffer(table, coalitions))


WELL_BEHAVED_ENOUGH = {
    "edits its coalitions": edits_its_coalitions,
    "reuses its buffer": reuses_its_buffer,
    "reuses a tensor": reuses_a_tensor,
    "a view": lambda table, coalitions: np.concatenate([table(coalitions)] * 2, axis=1)[:, : table.values.shape[1]],
    "reversed memory": lambda table, coalitions: table(coalitions)[::-1].copy()[::-1],
    "a list": lambda table, coalitions: table(coalitions).tolist(),
    "a list of tensors with grad": lambda table, coalitions: [
        torch.tensor(row, requires_grad=True) for row in table(coalitions)
    ],
    "a tensor with grad": lambda table, coalitions: torch.tensor(table(coalitions), requires_grad=True),
    "a sparse tensor": lambda table, coalitions: torch.tensor(table(coalitions)).to_sparse(),
    "a list of lists of numpy numbers": lambda table, coalitions: list(map(list, table(coalitions))),
}
HALF = {
    "half precision": lambda table, coalitions: table(coalitions).astype(np.float16),
    "bfloat16": lambda table, coalitions: torch.tensor(table(coalitions)).bfloat16(),
}


@pytest.mark.parametrize("manner", WELL_BEHAVED_ENOUGH | HALF)
def test_what_fn_does_to_its_arrays_changes_no_value(manner):
    behave = (WELL_BEHAVED_ENOUGH | HALF)[manner]
    for seed in range(N_GAMES_EACH):
        rng = np.random.default_rng(seed)
        n, n_targets = rng.integers(1, 7).item(), rng.integers(1, 4).item()
        values = random_game(n, n_targets, seed)
        table = Table(values)
        game = AttributionGame(
            lambda coalitions, table=table: behave(table, coalitions), n,
            batch_size=[None, 1, 3, 16][seed % 4], cache=seed % 3 == 0,
        )  # fmt: skip
        found = meta_attributions(game, endogenous=False).values
        exact = meta_attributions(AttributionGame.from_values(values), endogenous=False).values
        assert np.allclose(found, exact, rtol=0, atol=0.05 if manner in HALF else 1e-12)


@pytest.mark.parametrize("estimator", ["permutation", "regression", "trees"])
@pytest.mark.parametrize("manner", ["edits its coalitions", "reuses its buffer"])
def test_estimators_are_not_misled_by_it(estimator, manner):
    table = Table(random_game(8, 2))
    game = AttributionGame(lambda c: WELL_BEHAVED_ENOUGH[manner](table, c), 8, batch_size=16)
    found = meta_attributions(game, estimator, False, 100)
    usual = meta_attributions(AttributionGame.from_values(table.values), estimator, False, 100)
    assert np.array_equal(found.values, usual.values)


def raises(values, row):
    raise RuntimeError("the device\nwent away")


def is_not_a_number(values, row):
    values[row, 0] = np.nan
    return values


FAILURES = {
    "raises": (raises, r"fn failed on coalition \[.*\] \(RuntimeError: the device went away\)\."),
    "NaN": (is_not_a_number, r"fn returned nan for target 0 on coalition \[.*\]: attributions must be finite"),
    "another shape": (lambda values, row: values[:, :1], r"fn returned shape \(1, 1\) for coalition \[.*\]: return"),
    "one dimension": (lambda values, row: values[:, 0], r"fn returned shape \(1,\) for coalition \[.*\]: return"),
    "text": (lambda values, row: values.astype(str), r"the result of fn has dtype .*: give real numbers"),
    "ragged": (lambda values, row: [[1.0], [1.0, 2.0]], r"the result of fn is not an array \(ValueError: "),
    "nothing": (lambda values, row: None, r"the result of fn has dtype object: give real numbers"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_on_the_kth_coalition_names_it_and_a_cache_keeps_the_others(failure):
    behave, message = FAILURES[failure]
    for seed in range(N_GAMES_EACH):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 6))
        kth, table = int(rng.integers(1, 1 << n)), Table(random_game(n, 2, seed))
        broken = {kth}

        def fn(coalitions, table=table, broken=broken):
            values = table(coalitions).copy()
            return values if broken.isdisjoint(coalitions @ table.bits) else behave(values, 0)

        game = AttributionGame(fn, n, batch_size=1, cache=True)
        with pytest.raises(GameError, match=message) as caught:
            meta_attributions(game, endogenous=False)
        present = np.flatnonzero(all_coalitions(n)[kth]).tolist()
        assert failure in ("text", "ragged", "nothing") or f"coalition {present}" in str(caught.value)
        assert "\n" not in str(caught.value)
        broken.clear()
        n_before = table.n_seen
        found = meta_attributions(game, endogenous=False)
        assert table.n_seen - n_before == (1 << n) - kth  # those before it are known
        exact = meta_attributions(AttributionGame.from_values(table.values), endogenous=False)
        assert np.allclose(found.values, exact.values, rtol=0, atol=1e-12)


def test_of_a_batch_the_first_coalition_is_named_and_how_to_find_the_one():
    game = AttributionGame(lambda coalitions: raises(None, 0), 3)
    with pytest.raises(GameError, match=r"on 8 coalitions at once, the first one coalition \[\] .*; batch_size=1"):
        game(all_coalitions(3))


def test_a_cache_keeps_the_finite_values_of_a_batch():
    table = Table(random_game(3, 1))
    table.values[5] = np.nan
    game = AttributionGame(table, 3, cache=True)
    with pytest.raises(GameError, match=r"coalition \[0, 2\]"):
        game(all_coalitions(3))
    table.values[5] = 1.0
    assert np.array_equal(game(all_coalitions(3)), table.values)
    assert table.n_seen == 8 + 1


def test_a_cache_evaluates_a_repeated_coalition_once():
    table = Table(random_game(3, 2))
    game = AttributionGame(table, 3, cache=True)
    rows = np.array([1, 1, 5, 1, 7, 5])
    assert np.array_equal(game(all_coalitions(3)[rows]), table.values[rows])
    assert table.n_seen == game.n_evaluations == 3


def test_an_error_in_a_sentence_of_its_own_stays_as_it_is():
    def fn(coalitions):
        raise GameError("the image is blank.")

    with pytest.raises(GameError, match=r"^the image is blank\.$"):
        AttributionGame(fn, 2)(all_coalitions(2))


def test_values_of_a_game_may_be_a_tensor():
    values = random_game(3, 2)
    with unchecked():
        game = AttributionGame.from_values(torch.tensor(values, requires_grad=True))
    assert np.array_equal(game(all_coalitions(3)), values)


def test_targets_taken_for_the_players_are_told_where_it_may_be_wrong():
    values = random_game(4, 4)
    with pytest.warns(UserWarning, match="There are as many targets as players, 4"):
        phi = meta_attributions(AttributionGame.from_values(values))
    assert re.match(r"MetaAttributions\(endogenous, order 1, 4 players, 4 targets, 16 evaluations\)", repr(phi))
    values[0] = 0
    meta_attributions(AttributionGame.from_values(values))  # no warning: the filter makes it an error
    with pytest.raises(GameError, match="index='nonsense' is unknown"):
        meta_attributions(AttributionGame.from_values(values), index="nonsense")
