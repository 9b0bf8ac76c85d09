from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metagame.benchmarks.pair_deletion import deletion_and_insertion
from metagame.models.masked import MaskedModel
from tests.conftest import close
from tests.reference import prompts as twin
from tests.tiny.functions import table_model


def numbers(shape, elements):
    return arrays(np.float64, shape, elements=elements, fill=st.nothing())


def matrices(n):
    """Few different entries, so that many pairs are equally strong; not symmetric."""
    return numbers((n, n), st.integers(-3, 3).map(float))


GAMES = st.integers(2, 6).flatmap(lambda n: st.tuples(numbers(1 << n, st.floats(-10, 10)), matrices(n)))
"""All values of a game, and a matrix."""


def of_pairs(n, strengths):
    """f_S is the sum of the strengths of the pairs in S."""
    rows = [(a, b, value) for (a, b), value in strengths.items()]
    return MaskedModel.of_function(lambda x: sum(value * x[:, a] * x[:, b] for a, b, value in rows), torch.ones(n))


def matrix_of(n, strengths):
    matrix = np.zeros((n, n))
    for (a, b), value in strengths.items():
        matrix[a, b] = value
    return matrix


@given(GAMES)
def test_the_curves_of_a_game_are_what_their_definition_says(case):
    values, matrix = case
    scores = deletion_and_insertion(table_model(values), matrix)

    def value(players):
        return float(values[sum(1 << player for player in players)])

    (shares, *curves), (deletion, insertion) = twin.curves(value, matrix), twin.deletion_and_insertion(value, matrix)
    assert close(scores["curve_shares"], shares, 1e-6)
    assert close([scores["deletion_curve"], scores["insertion_curve"]], curves, 1e-6)
    assert close(scores["deletion"], deletion)
    assert close(scores["insertion"], insertion)
    assert close(scores["area"], insertion - deletion)


def test_no_order_of_the_pairs_has_a_larger_area_than_the_true_one_and_its_reverse_has_the_opposite():
    strengths = {(0, 1): 8.0, (2, 5): 4.0, (3, 4): 1.0}
    model = of_pairs(6, strengths)
    true = deletion_and_insertion(model, matrix_of(6, strengths))
    reverse = deletion_and_insertion(model, matrix_of(6, {pair: 1 / value for pair, value in strengths.items()}))
    assert true["deletion"] < reverse["deletion"]
    assert true["insertion"] > reverse["insertion"]
    assert true["area"] == pytest.approx(-reverse["area"])
    assert true["area"] > 0
    for seed in range(25):
        matrix = np.random.default_rng(seed).normal(size=(6, 6))
        assert deletion_and_insertion(model, matrix)["area"] <= true["area"] + 1e-12


def members(path):
    return [np.flatnonzero(row).tolist() for row in path]


def test_the_value_of_each_coalition_is_asked_once_for_both_curves():
    asked = []

    class Watched(MaskedModel):
        def values(self, coalitions):
            asked.append(np.array(coalitions))
            return torch.zeros(len(coalitions))

    deletion_and_insertion(Watched(torch.sum, *torch.zeros(2, 4, 1)), matrix_of(4, {(0, 1): 2, (2, 3): 1}))
    (coalitions,) = asked
    assert members(coalitions) == [[0, 1, 2, 3], [2, 3], [], [], [0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_of_low_precision_are_averaged_in_high_precision(dtype):
    class Low(MaskedModel):
        def values(self, coalitions):
            return torch.as_tensor(coalitions).sum(1).to(dtype).requires_grad_(False)

    scores = deletion_and_insertion(Low(torch.sum, *torch.zeros(2, 3, 1)), np.ones((3, 3)))
    assert {name: scores[name] for name in ("deletion", "insertion", "area")} == pytest.approx(
        {"deletion": 1.5, "insertion": 1.5, "area": 0.0}, abs=1e-12
    )
    assert all(type(scores[name]) is float for name in ("deletion", "insertion", "area"))
