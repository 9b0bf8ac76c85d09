"""The methods of Table 1 on polynomials, from their definitions, in exact arithmetic.

Baseline zero. Every method is linear in f and gives features outside a monomial nothing (dummy), so each is derived
monomial by monomial, on that monomial's own features; the number of features of f does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations

import sympy
from sympy import Expr, Rational, Symbol

from metagame.estimators.exact import MAX_PLAYERS
from metagame.games import GameError, Progress
from metagame.models.polynomial import Polynomial

Features = tuple[Symbol, ...]
Attribution = Callable[[Expr, Symbol, Features], Expr]
"""phi_i(f): (f, feature i, all features) -> an expression; phi_i(f_S) is its value at the masked input."""


@dataclass
class SymbolicExplanation:
    """What a method says of a polynomial, as expressions in its features.

    Attributes:
        individual: phi_{i->i} (or index_i), by feature.
        directed: phi_{j->i} by (j, i); empty for a set-based method.
        pairs: the index of the unordered pair, by (i, j) with i before j; empty for the others.
        first_order: phi_i, by feature.
    """

    individual: dict[Symbol, Expr] = field(default_factory=dict)
    directed: dict[tuple[Symbol, Symbol], Expr] = field(default_factory=dict)
    pairs: dict[tuple[Symbol, Symbol], Expr] = field(default_factory=dict)
    first_order: dict[Symbol, Expr] = field(default_factory=dict)

    def arrays(self) -> dict:
        """No arrays: expressions are scores."""
        return {}


def restrict(f: Expr, present: Iterable[Symbol], features: Features) -> Expr:
    """F at the masked input: features that are not present are zero."""
    present = set(present)
    return f.subs({x: 0 for x in features if x not in present})


def subsets(features: Iterable[Symbol]) -> Iterable[Features]:
    """All coalitions of ``features``, by size."""
    features = tuple(features)
    return (subset for size in range(len(features) + 1) for subset in combinations(features, size))


def gradient_input(f: Expr, i: Symbol, features: Features) -> Expr:
    """x_i df/dx_i."""
    return i * f.diff(i)


def integrated_gradients(f: Expr, i: Symbol, features: Features) -> Expr:
    """x_i int_0^1 df/dx_i(a x) da."""
    a = sympy.Dummy("a")
    return i * sympy.integrate(f.diff(i).subs({x: a * x for x in features}, simultaneous=True), (a, 0, 1))


def shapley_value(f: Expr, i: Symbol, features: Features) -> Expr:
    """The Shapley value of player i in the game S -> f_S."""
    return _shapley(f, i, (), features)


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


class Serial:
    """psi_{i,j} = phi_j(phi_i(f)); rows sum to phi_i."""

    explicand_type = Polynomial

    def __init__(self, attribution: Attribution) -> None:
        self.attribution = attribution

    def explain(self, explicand: Polynomial, progress: Progress | None = None) -> SymbolicExplanation:
        def derive(f: Expr, features: Features) -> SymbolicExplanation:
            first = {i: self.attribution(f, i, features) for i in features}
            serial = {(j, i): self.attribution(first[i], j, features) for i in features for j in features}
            return SymbolicExplanation(
                individual={i: serial[i, i] for i in features},
                directed={(j, i): value for (j, i), value in serial.items() if i != j},
                first_order=first,
            )

        return _by_term(explicand, derive, progress)


class Meta:
    """phi_{j->i} of Definition 2; rows sum to phi_i (Corollary 1)."""

    explicand_type = Polynomial

    def __init__(self, attribution: Attribution) -> None:
        self.attribution = attribution

    def explain(self, explicand: Polynomial, progress: Progress | None = None) -> SymbolicExplanation:
        return _by_term(explicand, self._derive, progress)

    def _derive(self, f: Expr, features: Features) -> SymbolicExplanation:
        first = {i: self.attribution(f, i, features) for i in features}
        return SymbolicExplanation(
            individual={i: restrict(first[i], (i,), features) for i in features},
            directed={(j, i): _shapley(first[i], j, (i,), features) for i in features for j in features if i != j},
            first_order=first,
        )


class SumOfPowers:
    """SOP (Lundstrom and Razaviyayn, 2023): both directions of Meta-IG, added (Theorem 2); decomposes IG."""

    explicand_type = Polynomial

    def explain(self, explicand: Polynomial, progress: Progress | None = None) -> SymbolicExplanation:
        meta = Meta(integrated_gradients).explain(explicand, progress)
        pairs = {(i, j): meta.directed[i, j] + meta.directed[j, i] for i, j in combinations(explicand.features, 2)}
        return SymbolicExplanation(individual=meta.individual, pairs=pairs, first_order=meta.first_order)


class MoebiusTransform:
    """m({i}) and m({i, j}); its first order is m({i}) alone."""

    explicand_type = Polynomial

    def explain(self, explicand: Polynomial, progress: Progress | None = None) -> SymbolicExplanation:
        def derive(f: Expr, features: Features) -> SymbolicExplanation:
            single = {i: moebius(f, (i,), features) for i in features}
            pairs = {pair: moebius(f, pair, features) for pair in combinations(features, 2)}
            return SymbolicExplanation(individual=single, pairs=pairs, first_order=single)

        return _by_term(explicand, derive, progress)


class ShapleyTaylor:
    """STII of order 2: m({i}), and sum over S containing i, j of m(S)/C(|S|, 2); decomposes the Shapley value."""

    explicand_type = Polynomial

    def explain(self, explicand: Polynomial, progress: Progress | None = None) -> SymbolicExplanation:
        def derive(f: Expr, features: Features) -> SymbolicExplanation:
            transform = {s: moebius(f, s, features) for s in subsets(features)}
            pairs = {
                pair: sum(m / sympy.binomial(len(s), 2) for s, m in transform.items() if set(pair) <= set(s))
                for pair in combinations(features, 2)
            }
            return SymbolicExplanation(
                individual={i: transform[i,] for i in features},
                pairs=pairs,
                first_order={i: shapley_value(f, i, features) for i in features},
            )

        return _by_term(explicand, derive, progress)


def _by_term(
    polynomial: Polynomial, derive: Callable[[Expr, Features], SymbolicExplanation], progress: Progress | None
) -> SymbolicExplanation:
    """The sum of ``derive`` over the monomials, every entry of the whole polynomial filled in."""
    features = polynomial.features
    total = SymbolicExplanation()
    terms = polynomial.terms()
    parts = []
    for done, (term, inside) in enumerate(terms, start=1):
        if len(inside) > MAX_PLAYERS:
            raise GameError(
                f"benchmark.function has the term {term} of {len(inside)} features: its derivation enumerates 2^n"
                f" coalitions, give terms of at most {MAX_PLAYERS} features."
            )
        parts.append(derive(term, inside))
        if progress is not None:
            progress(done, len(terms))
    for name, keys in (
        ("individual", features),
        ("first_order", features),
        ("directed", [(j, i) for i in features for j in features if i != j]),
        ("pairs", list(combinations(features, 2))),
    ):
        if any(getattr(part, name) for part in parts):
            entries = getattr(total, name)
            entries.update({key: sympy.expand(sum(getattr(part, name).get(key, 0) for part in parts)) for key in keys})
    return total
