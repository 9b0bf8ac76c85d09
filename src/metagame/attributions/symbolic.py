"""The methods of Table 1 on polynomials, computed from their definitions in exact arithmetic.

The baseline is zero. Every method is linear in f and gives features outside a monomial nothing (dummy). Each method is
therefore computed for each monomial on the monomial's own features; the number of features of f does not matter.

Attributions ``(n,)`` and values of pairs ``(n, n)`` are arrays of sympy expressions in the features. Entry [i, j] is
phi_{j->i}, and the diagonal holds the individual effect of feature i. Set-based methods have one value for an unordered
pair, which stands on both sides of the diagonal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import ClassVar

import numpy as np
import sympy
from jaxtyping import Shaped
from sympy import Expr, Rational, Symbol

from metagame.contracts import Explanation, Method
from metagame.errors import UserError
from metagame.estimators.configured import EXACT, ConfiguredEstimator
from metagame.estimators.exact import MAX_PLAYERS
from metagame.games import Progress
from metagame.meta import MetaAttributions
from metagame.models.polynomial import Polynomial

Features = tuple[Symbol, ...]

FIRST_ORDER, SERIAL, SET_BASED, DIRECTIONAL = "First-Order", "Serial", "Set-Based", "Directional"
"""The groups of rows in Table 1."""


def kind(explanation: Explanation) -> str:
    """The group of a symbolic explanation in Table 1.

    ``First-Order`` without second-order values; ``Set-Based`` if they belong to unordered pairs; ``Serial`` if their
    index is "serial"; else ``Directional``, the metagame.
    """
    if explanation.meta is None:
        return FIRST_ORDER
    if not explanation.meta.directed:
        return SET_BASED
    return SERIAL if explanation.meta.index == "serial" else DIRECTIONAL


def restrict(f: Expr, present: Iterable[Symbol], features: Features) -> Expr:
    """The value of f at the masked input: features that are not present are zero."""
    present = set(present)
    return f.subs({x: 0 for x in features if x not in present})


def subsets(features: Iterable[Symbol]) -> Iterable[Features]:
    """All coalitions of ``features``, ordered by size."""
    features = tuple(features)
    return (subset for size in range(len(features) + 1) for subset in combinations(features, size))


def moebius(f: Expr, players: Features, features: Features) -> Expr:
    """m(S) of the game S -> f_S."""
    return sum((-1) ** (len(players) - len(s)) * restrict(f, s, features) for s in subsets(players))


def _shapley(f: Expr, j: Symbol, fixed: Features, features: Features) -> Expr:
    """The Shapley value of player j in S -> f_(S + fixed), played by the features that are not fixed."""
    others = [x for x in features if x != j and x not in fixed]
    n = len(others) + 1
    return sum(
        Rational(1, n * sympy.binomial(n - 1, len(s)))
        * (restrict(f, (*s, *fixed, j), features) - restrict(f, (*s, *fixed), features))
        for s in subsets(others)
    )


class SymbolicMethod(Method[Polynomial], ABC):
    """A first-order method that is linear in f; phi_i(f_S) is its value at the masked input."""

    input_type = Polynomial
    kind: ClassVar[str] = FIRST_ORDER

    @abstractmethod
    def attribute(self, f: Expr, i: Symbol, features: Features) -> Expr:
        """phi_i(f) of feature i, given all ``features``."""

    def explain(self, bound: Polynomial, progress: Progress | None = None) -> Explanation:
        """phi_i of every feature.

        Raises:
            UserError: a monomial has too many features.
        """

        def derive(f: Expr, features: Features) -> list[Shaped[np.ndarray, " n"]]:
            return [_vector(lambda i: self.attribute(f, i, features), features)]

        (first_order,) = _by_term(bound, derive, progress)
        return Explanation(bound.players, bound.targets, attribution=first_order)

    def metagame(
        self, estimator: ConfiguredEstimator = EXACT, order: int = 1, index: str | None = None
    ) -> SymbolicMetagame:
        """The metagame, derived from its definition.

        Raises:
            UserError: an estimator other than ``exact``, or interactions of pairs are requested.
        """
        name = f"symbolic.{type(self).__name__}"
        estimator.require_closed_form(name)
        if order != 1 or index is not None:
            raise UserError(f"the metagame of {name} exists for order 1 only: leave out attribution.order and index.")
        return SymbolicMetagame(self)


class GradientInput(SymbolicMethod):
    """x_i df/dx_i."""

    def attribute(self, f: Expr, i: Symbol, features: Features) -> Expr:
        return i * f.diff(i)


class IntegratedGradients(SymbolicMethod):
    """x_i int_0^1 df/dx_i(a x) da."""

    def attribute(self, f: Expr, i: Symbol, features: Features) -> Expr:
        a = sympy.Dummy("a")
        return i * sympy.integrate(f.diff(i).subs({x: a * x for x in features}, simultaneous=True), (a, 0, 1))


class ShapleyValue(SymbolicMethod):
    """The Shapley value of player i in the game S -> f_S."""

    def attribute(self, f: Expr, i: Symbol, features: Features) -> Expr:
        return _shapley(f, i, (), features)


class LeaveOneOut(SymbolicMethod):
    """f - f without feature i; the entry [i, j] of its metagame is the Shapley interaction index of i and j."""

    def attribute(self, f: Expr, i: Symbol, features: Features) -> Expr:
        return f - f.subs(i, 0)


class AttnLRP(SymbolicMethod):
    """Relevance of a monomial that is computed as a chain of products, each of which halves it (uniform rule).

    It depends on how f is implemented. Features come in their order, and a power is a product of that many factors.
    ``left`` computes (x1 x2) x3, whose factors get 1/4, 1/4 and 1/2 of the relevance; ``right`` computes x1 (x2 x3),
    whose factors get 1/2, 1/4 and 1/4.

    Args:
        association: ``left`` or ``right``.

    Raises:
        UserError: the association is neither.
    """

    def __init__(self, association: str) -> None:
        if association not in ("left", "right"):
            raise UserError(f"attribution.method.association={association!r} must be left or right.")
        self.association = association

    def attribute(self, f: Expr, i: Symbol, features: Features) -> Expr:
        factors = [x for x in features for _ in range(sympy.degree(f, x))]
        outermost_first = factors if self.association == "right" else factors[::-1]
        last = len(factors) - 1
        return f * sum(Rational(1, 2 ** min(k + 1, last)) for k, x in enumerate(outermost_first) if x == i)


class SecondOrder(Method[Polynomial], ABC):
    """Values of pairs of features.

    Attributes:
        kind: group of its row in Table 1.
        index: see :class:`metagame.meta.MetaAttributions`.
    """

    input_type = Polynomial
    kind: ClassVar[str]
    index: ClassVar[str | None]

    @abstractmethod
    def derive(self, f: Expr, features: Features) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, "n n"]]:
        """The first-order attributions and the values of pairs of one monomial, for its own features."""

    def explain(self, bound: Polynomial, progress: Progress | None = None) -> Explanation:
        """phi_i of every feature, and the values of every pair.

        Raises:
            UserError: a monomial has too many features.
        """
        first_order, values = _by_term(bound, self.derive, progress)
        meta = MetaAttributions(
            values,
            first_order=first_order,
            index=self.index,
            directed=self.kind != SET_BASED,
            players=bound.players,
            targets=bound.targets,
        )
        return Explanation(bound.players, bound.targets, attribution=first_order, meta=meta)


class SymbolicMetagame(SecondOrder):
    """phi_{j->i} of Definition 2; rows sum to phi_i (Corollary 1)."""

    kind = DIRECTIONAL
    index = None

    def __init__(self, method: SymbolicMethod) -> None:
        self.method = method

    def derive(self, f: Expr, features: Features) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, "n n"]]:
        first = {i: self.method.attribute(f, i, features) for i in features}

        def entry(i: Symbol, j: Symbol) -> Expr:
            return restrict(first[i], (i,), features) if i == j else _shapley(first[i], j, (i,), features)

        return _vector(first.__getitem__, features), _matrix(entry, features)


class Serial(SecondOrder):
    """psi_{i,j} = phi_j(phi_i(f)); rows sum to phi_i.

    Args:
        method: the first-order method phi.
    """

    kind = SERIAL
    index = "serial"

    def __init__(self, method: SymbolicMethod) -> None:
        self.method = method

    def derive(self, f: Expr, features: Features) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, "n n"]]:
        first = {i: self.method.attribute(f, i, features) for i in features}
        values = _matrix(lambda i, j: self.method.attribute(first[i], j, features), features)
        return _vector(first.__getitem__, features), values


class SumOfPowers(SecondOrder):
    """SOP (Lundstrom and Razaviyayn, 2023): the sum of both directions of Meta-IG (Theorem 2); it decomposes IG."""

    kind = SET_BASED
    index = "sop"

    def derive(self, f: Expr, features: Features) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, "n n"]]:
        first, meta = SymbolicMetagame(IntegratedGradients()).derive(f, features)
        pairs = meta + meta.T
        np.fill_diagonal(pairs, meta.diagonal())
        return first, pairs


class MoebiusTransform(SecondOrder):
    """m({i}) and m({i, j}); its first order consists of m({i}) only."""

    kind = SET_BASED
    index = "moebius"

    def derive(self, f: Expr, features: Features) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, "n n"]]:
        transform = {frozenset(s): moebius(f, s, features) for s in subsets(features) if len(s) <= 2}
        pairs = _matrix(lambda i, j: transform[frozenset((i, j))], features)
        return pairs.diagonal().copy(), pairs


class ShapleyTaylor(SecondOrder):
    """STII of order 2: m({i}), and the sum of m(S)/C(|S|, 2) over S containing i, j; decomposes the Shapley value."""

    kind = SET_BASED
    index = "stii"

    def derive(self, f: Expr, features: Features) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, "n n"]]:
        transform = {s: moebius(f, s, features) for s in subsets(features)}

        def entry(i: Symbol, j: Symbol) -> Expr:
            if i == j:
                return transform[i,]
            return sum(m / sympy.binomial(len(s), 2) for s, m in transform.items() if i in s and j in s)

        first = _vector(lambda i: ShapleyValue().attribute(f, i, features), features)
        return first, _matrix(entry, features)


def _vector(entry: Callable[[Symbol], Expr], features: Features) -> Shaped[np.ndarray, " n"]:
    return np.array([entry(i) for i in features], dtype=object)


def _matrix(entry: Callable[[Symbol, Symbol], Expr], features: Features) -> Shaped[np.ndarray, "n n"]:
    entries = np.array([entry(i, j) for i in features for j in features], dtype=object)
    return entries.reshape(len(features), len(features))


def _by_term(
    polynomial: Polynomial,
    derive: Callable[[Expr, Features], Iterable[Shaped[np.ndarray, " ..."]]],
    progress: Progress | None,
) -> list[Shaped[np.ndarray, " ..."]]:
    """Over all features, the sum of each array that ``derive`` gives of a monomial over those in it."""
    place = {feature: index for index, feature in enumerate(polynomial.features)}
    terms = polynomial.terms()
    totals: list[np.ndarray] = []
    for done, (term, inside) in enumerate(terms, start=1):
        if len(inside) > MAX_PLAYERS:
            raise UserError(
                f"benchmark.function has the term {term} of {len(inside)} features, too many for a derivation"
                f" that enumerates 2^n coalitions: give terms of at most {MAX_PLAYERS} features."
            )
        parts = list(derive(term, inside))
        totals = totals or [np.full((len(place),) * part.ndim, sympy.S.Zero, dtype=object) for part in parts]
        for total, part in zip(totals, parts, strict=True):
            total[np.ix_(*[[place[x] for x in inside]] * part.ndim)] += part
        if progress is not None:
            progress(done, len(terms))
    return [np.vectorize(sympy.expand, otypes=[object])(total) for total in totals]
