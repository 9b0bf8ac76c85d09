from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch

from metagame.games import all_coalitions
from metagame.models.masked import MaskedModel
from metagame.models.token_batches import TokenBatches
from tests.tiny.language import ANSWER, FLOAT32_TOLERANCE, METHODS, TEXT, bound_of, build, masked_ids, near
from tests.tiny.vision_language import refused

each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
ROWS = torch.arange(20.0).reshape(10, 2)
OF_GPU = torch.OutOfMemoryError("CUDA out of memory.")
OF_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")


class Memory:
    """Doubles rows; runs out, with such an error, where there are more than ``rows`` of them."""

    def __init__(self, rows, error=OF_GPU):
        self.rows = rows
        self.error = error
        self.calls = []

    def __call__(self, rows):
        self.calls.append(len(rows))
        if len(rows) > self.rows:
            raise self.error
        return 2 * rows


@pytest.mark.parametrize(
    ("budget", "limit", "error", "calls", "kept"),
    [
        # as many tokens as the budget allows
        (1, 10, None, [1] * 10, 1),
        (35, 10, None, [3, 3, 3, 1], 35),
        (100, 10, None, [10], 100),
        # halved for good when memory runs out
        (85, 3, OF_GPU, [8, 4, *[2] * 5], 20),
        (85, 1, OF_GPU, [8, 4, 2, *[1] * 10], 10),
        (85, 3, OF_CPU, [8, 4, *[2] * 5], 20),
        (85, 3, MemoryError(), [8, 4, *[2] * 5], 20),
    ],
)
def test_batches_hold_as_many_tokens_as_budget_and_memory_allow(budget, limit, error, calls, kept):
    memory, batches = Memory(limit, error), TokenBatches(budget)
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


def test_other_errors_pass_through_the_batches():
    batches = TokenBatches(40)
    with pytest.raises(RuntimeError, match="something else"):
        batches.map(mock.Mock(side_effect=RuntimeError("CUDA error: something else")), ROWS, 10)
    assert batches.budget == 40
