"""Training of the adder from scratch, to its end."""

from __future__ import annotations

from scripts.train_adder import build_splits, train
from tests.models.test_adder import LARGEST_EMPTY_OUTPUT, LARGEST_TEST_MSE, empty_output, mean_squared_error


def test_training_from_scratch_meets_the_bounds_of_the_committed_checkpoint():
    net, card = train(seed=1, epochs=300)
    _, _, test = build_splits(1)
    assert mean_squared_error(net, test) < LARGEST_TEST_MSE
    assert abs(empty_output(net)) < LARGEST_EMPTY_OUTPUT
    assert card["test_mse"] < LARGEST_TEST_MSE
