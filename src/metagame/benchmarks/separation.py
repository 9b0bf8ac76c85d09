"""Table 1: does a method keep individual effects and interactions apart?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import combinations, permutations
from typing import ClassVar

from sympy import Expr

from metagame.attributions import symbolic
from metagame.contracts import WHOLE, Benchmark, Explanation, Score
from metagame.meta import MetaAttributions
from metagame.models.polynomial import Polynomial


class Separation(Benchmark[Polynomial, Polynomial]):
    """One sample, the polynomial ``function``; the scores are the entries of the method's row of Table 1.

    Scores: ``entries`` are ``phi_ii``, ``phi_ji`` (influence of feature j on the attribution of feature i),
    ``pair_ij``, ``phi_i`` and ``sum``, as expressions in the features, which are counted from 1. A second-order method
    has either directed entries or pairs; a first-order method has neither. ``kind`` is the method's kind in Table 1.

    Args:
        function: the polynomial, see :meth:`metagame.models.polynomial.Polynomial.parse`.
    """

    text_arguments: ClassVar[frozenset[str]] = frozenset({"function"})

    def __init__(self, function: str) -> None:
        self.function = Polynomial.parse(function)

    def samples(self) -> list[Polynomial]:
        return [self.function]

    def score(
        self, sample: Polynomial, inputs: Mapping[str, Polynomial], explanations: Mapping[str, Explanation]
    ) -> dict[str, Score]:
        explanation = explanations[WHOLE]
        entries = {name: str(value) for name, value in _entries(explanation, len(sample.features))}
        return {"entries": entries, "kind": symbolic.kind(explanation)}


def _entries(explanation: Explanation, n_features: int) -> Iterator[tuple[str, Expr]]:
    """The entries by name: second-order ones, first-order ones, and their sum."""
    name = partial(entry_name, n_features=n_features)
    if explanation.meta is not None:
        yield from _second_order(explanation.meta, name)
    first_order = [] if explanation.attribution is None else explanation.attribution.tolist()
    yield from ((name("phi", i), value) for i, value in enumerate(first_order, start=1))
    yield "sum", sum(first_order)


def _second_order(meta: MetaAttributions, name: partial[str]) -> Iterator[tuple[str, Expr]]:
    features = range(1, len(meta.values) + 1)
    values = {(j, i): meta.values[i - 1, j - 1] for i in features for j in features}
    yield from ((name("phi", i, i), values[i, i]) for i in features)
    if meta.directed:
        yield from ((name("phi", j, i), values[j, i]) for i, j in permutations(features, 2))
    else:
        yield from ((name("pair", i, j), values[i, j]) for i, j in combinations(features, 2))


def entry_name(kind: str, *features: int, n_features: int) -> str:
    """``phi_21``; with an underscore between feature numbers where there are more than nine features."""
    return f"{kind}_{('_' if n_features > 9 else '').join(map(str, features))}"
