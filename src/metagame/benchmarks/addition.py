"""Figures 1, 5 and 6: sums that the adder computes, and how each method explains them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metagame.attributions.method import Explanation
from metagame.games import GameError
from metagame.models.adder import Sum
from metagame.models.masked import MaskedModel


class Addition:
    """Samples are sums such as ``3 - (-5)``.

    Scores: ``output`` f(x) and ``empty_output`` f(all masked), in units of the sum; the true ``value``; ``players``.

    Args:
        examples: the sums, ``a + b`` or ``a - b`` with numbers from -9 to 9.
    """

    def __init__(self, examples: Sequence[str]) -> None:
        if not examples:
            raise GameError("benchmark.examples is empty: give at least one sum, such as '3 - (-5)'.")
        self.sums = [Sum.parse(example) for example in examples]

    def samples(self) -> list[Sum]:
        return self.sums

    def score(self, sample: Sum, explicand: MaskedModel, explanation: Explanation) -> dict[str, float | list[str]]:
        output, empty = explicand.values(np.array([[True] * 3, [False] * 3])).tolist()
        return {"output": output, "empty_output": empty, "value": sample.value, "players": list(sample.tokens)}
