"""Table 1: does a method keep individual effects and interactions apart?"""

from __future__ import annotations

from functools import partial

from metagame.attributions.symbolic import SymbolicExplanation
from metagame.models.polynomial import Polynomial


class Separation:
    """One sample, the polynomial ``function``; the scores are the entries of the method's row of Table 1.

    Scores: ``phi_ii``, ``phi_ji`` (influence of feature j on the attribution of feature i), ``pair_ij``, ``phi_i`` and
    ``sum``, as expressions in the features; features are counted from 1. A method has directed entries or pairs.

    Args:
        function: the polynomial, see :meth:`metagame.models.polynomial.Polynomial.parse`.
    """

    def __init__(self, function: str) -> None:
        self.function = Polynomial.parse(function)

    def samples(self) -> list[Polynomial]:
        return [self.function]

    def score(
        self, sample: Polynomial, explicand: Polynomial, explanation: SymbolicExplanation
    ) -> dict[str, dict[str, str]]:
        number = {feature: index for index, feature in enumerate(sample.features, start=1)}
        name = partial(entry_name, n_features=len(number))
        entries = {name("phi", number[i], number[i]): value for i, value in explanation.individual.items()}
        entries |= {name("phi", number[j], number[i]): value for (j, i), value in explanation.directed.items()}
        entries |= {name("pair", number[i], number[j]): value for (i, j), value in explanation.pairs.items()}
        entries |= {name("phi", number[i]): value for i, value in explanation.first_order.items()}
        entries["sum"] = sum(explanation.first_order.values())
        return {"entries": {name: str(value) for name, value in entries.items()}}


def entry_name(kind: str, *features: int, n_features: int) -> str:
    """``phi_21``; with an underscore between feature numbers where there are more than nine features."""
    return f"{kind}_{('_' if n_features > 9 else '').join(map(str, features))}"
