"""Rows through a model in batches that fit the device's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from metagame.errors import UserError, is_out_of_memory

log = logging.getLogger(__name__)


class TokenBatches:
    """Batches of sequences with at most ``budget`` tokens together; halved, for good, when memory runs out.

    Args:
        budget: tokens of a batch, at least one sequence.
        advice: what to do where a single sequence does not fit.

    Raises:
        UserError: the budget is no positive whole number.
    """

    def __init__(
        self, budget: int, advice: str = "lower model.max_new_tokens, shorten the prompt, or choose a smaller model"
    ) -> None:
        if not isinstance(budget, int) or budget < 1:
            raise UserError(f"model.tokens_per_batch={budget!r} must be a positive integer.")
        self.budget = budget
        self.advice = advice

    def map(self, function: Callable[[Tensor], Tensor], rows: Tensor, length: int) -> Tensor:
        """``function`` of all rows, batch by batch; a row stands for a sequence of ``length`` tokens.

        Raises:
            UserError: out of memory for a single row.
        """
        parts: list[Tensor] = []
        start = 0
        while start < len(rows):
            size = min(max(1, self.budget // length), len(rows) - start)
            part = _unless_out_of_memory(function, rows[start : start + size])
            if part is not None:
                parts.append(part)
                start += size
            elif size == 1:
                raise UserError(f"one sequence of {length} tokens does not fit the device's memory: {self.advice}.")
            else:
                self.budget = length * (size // 2)
                log.info("out of memory: continuing with batches of %d tokens (model.tokens_per_batch).", self.budget)
        return torch.cat(parts) if parts else function(rows)


def _unless_out_of_memory(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor | None:
    try:
        return function(rows)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # behind the except clause, which keeps the tensors of the failed batch alive
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
