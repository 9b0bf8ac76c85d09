from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch

from metagame.games import all_coalitions
from metagame.models.masked import MaskedModel
from metagame.models.token_batches import TokenBatches
from tests.tiny.language import (
    ANSWER,
    EVERYTHING,
    FLOAT32_TOLERANCE,
    METHODS,
    TEXT,
    bound_of,
    build,
    masked_ids,
    near,
)
from tests.tiny.vision_language import refused

each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
ROWS = torch.arange(20.0).reshape(10, 2)


class Memory:
    """Doubles rows; runs out where there are more than ``rows`` of them."""

    def __init__(self, rows):
        self.rows = rows
        self.calls = []

    def __call__(self, rows):
        self.calls.append(len(rows))
        if len(rows) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 2 * rows


@pytest.mark.parametrize(
    ("budget", "limit", "calls", "kept"),
    [
        # as many tokens as the budget allows
        (1, 10, [1] * 10, 1),
        (35, 10, [3, 3, 3, 1], 35),
        (100, 10, [10], 100),
        # halved for good when memory runs out
        (85, 3, [8, 4, *[2] * 5], 20),
        (85, 1, [8, 4, 2, *[1] * 10], 10),
    ],
)
def test_batches_hold_as_many_tokens_as_budget_and_memory_allow(budget, limit, calls, kept):
    memory, batches = Memory(limit), TokenBatches(budget)
    assert torch.equal(batches.map(memory, ROWS, 10), 2 * ROWS)
    assert memory.calls == calls
    assert batches.budget == kept
    memory.calls.clear()
    assert torch.equal(batches.map(memory, ROWS, 10), 2 * ROWS)
    assert max(memory.calls) <= limit


def test_rows_that_are_done_are_not_done_again():
    done = []

    def function(rows):
        if len(rows) > 1 and rows[0, 0] >= 8:
            raise torch.OutOfMemoryError
        done.extend(rows[:, 0].tolist())
        return rows

    assert torch.equal(TokenBatches(40).map(function, ROWS, 10), ROWS)
    assert done == ROWS[:, 0].tolist()


def test_a_row_that_is_too_large_is_refused():
    memory, batches = Memory(0), TokenBatches(40)
    with refused("one sequence of 10 tokens does not fit .* lower model.max_new_tokens, shorten the prompt, or"):
        batches.map(memory, ROWS, 10)
    assert memory.calls == [4, 2, 1]


def test_no_rows_are_a_batch():
    assert TokenBatches(40).map(lambda rows: rows.sum(1), ROWS[:0], 10).shape == (0,)


@pytest.mark.parametrize("budget", [0, 2.5])
def test_budget_of_no_tokens_is_refused(budget):
    with refused(f"model\\.tokens_per_batch={budget!r} must be a positive integer"):
        TokenBatches(budget)


def test_masked_model_goes_through_its_batches():
    rows = []

    def f(inputs):
        rows.append(len(inputs))
        return (inputs**3).sum((1, 2))

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    batched = MaskedModel(f, x, torch.zeros_like(x), in_batches=partial(TokenBatches(30).map, length=10))
    whole = replace(batched, in_batches=None)
    coalitions = all_coalitions(4)
    values, gradients = batched.values(coalitions), batched.gradients(batched.masked(coalitions))
    assert rows == [3, 3, 3, 3, 3, 1] * 2
    assert torch.equal(values, whole.values(coalitions))
    assert torch.equal(gradients, whole.gradients(whole.masked(coalitions)))


@each_method
def test_attributions_survive_a_shortage_of_memory(method):
    model, memory = build(), Memory(3)
    bound = bound_of(model)
    played = masked_ids(model, TEXT, ANSWER, [True] * 5)[model.tokenize(TEXT).positions[0] :]
    model.batches.budget = 8 * len(played)
    coalitions = all_coalitions(5)[:16]
    found = method.game(replace(bound, f=lambda inputs: bound.f(memory(inputs) / 2)))(coalitions)
    assert memory.calls == [8, 4, *[2] * 8]
    assert near(found, method.game(bound)(coalitions), FLOAT32_TOLERANCE)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_a_cpu_without_memory_halves_its_batches_as_a_gpu_does(error):
    def scarce(rows):
        if len(rows) > 3:
            raise error
        return 2 * rows

    batches = TokenBatches(20)
    assert torch.equal(batches.map(scarce, ROWS, 2), 2 * ROWS)
    assert batches.budget == 4


def test_other_errors_pass_through_the_batches():
    batches = TokenBatches(40)
    with pytest.raises(RuntimeError, match="something else"):
        batches.map(mock.Mock(side_effect=RuntimeError("CUDA error: something else")), ROWS, 10)
    assert batches.budget == 40


def test_a_prompt_that_is_too_large_for_the_memory_is_refused():
    bound = bound_of(build())
    scarce = replace(bound, f=mock.Mock(side_effect=torch.OutOfMemoryError()))
    for explain in (METHODS[0].explain, lambda bound: bound.values(EVERYTHING)):
        with refused(r"lower model\.max_new_tokens"):
            explain(scarce)
    assert np.isfinite(METHODS[0].explain(bound).attribution).all()
