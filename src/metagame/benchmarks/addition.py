"""Figures 1, 5 and 6: sums that the adder computes, and how each method explains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from metagame.contracts import WHOLE, Benchmark, Explanation
from metagame.errors import UserError
from metagame.models.adder import Sum
from metagame.models.masked import MaskedModel


class Addition(Benchmark[Sum, MaskedModel]):
    """Samples are sums such as ``3 - (-5)``.

    Scores: ``output`` f(x) and ``empty_output`` f(all masked), in units of the sum, and the true ``value``.

    Args:
        examples: the sums, ``a + b`` or ``a - b`` with numbers from -9 to 9.
    """

    def __init__(self, examples: Sequence[str]) -> None:
        if not examples:
            raise UserError("benchmark.examples is empty: give at least one sum, such as '3 - (-5)'.")
        self.sums = [Sum.parse(example) for example in examples]

    def samples(self) -> list[Sum]:
        return self.sums

    def score(
        self, sample: Sum, inputs: Mapping[str, MaskedModel], explanations: Mapping[str, Explanation]
    ) -> dict[str, float]:
        meta = explanations[WHOLE].meta
        if meta is not None:
            meta.matrix()  # that the figure draws
        output, empty = inputs[WHOLE].values(np.array([[True] * 3, [False] * 3])).tolist()
        return {"output": output, "empty_output": empty, "value": sample.value}
