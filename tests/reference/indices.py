"""Slow twins of ``metagame.indices``: one game at a time, a loop over coalitions for every equation.

``values[row(S)]`` is v(S). Weights are fractions, so the twins also take exact values such as sympy expressions.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb, factorial

import numpy as np


def subsets(players) -> list[tuple[int, ...]]:
    players = tuple(players)
    return [subset for size in range(len(players) + 1) for subset in combinations(players, size)]


def row(coalition) -> int:
    return sum(1 << player for player in coalition)


def without(n: int, *players: int) -> list[int]:
    return [player for player in range(n) if player not in players]


def derivative(values, players, coalition):
    """Discrete derivative: sum over L in S of (-1)^(|S|-|L|) v(T + L)."""
    return sum((-1) ** (len(players) - len(part)) * values[row((*coalition, *part))] for part in subsets(players))


def moebius(values, n: int) -> np.ndarray:
    """m(S) = sum over T in S of (-1)^(|S|-|T|) v(T), by bits of the row number."""
    transform = [0] * (1 << n)
    for coalition in subsets(range(n)):
        for part in subsets(coalition):
            transform[row(coalition)] += (-1) ** (len(coalition) - len(part)) * values[row(part)]
    return np.array(transform)


def shapley(values, n: int) -> np.ndarray:
    """SV_j = sum over T of |T|!(n-|T|-1)!/n! (v(T + j) - v(T))."""
    phi = [0] * n
    for player in range(n):
        for coalition in subsets(without(n, player)):
            weight = Fraction(factorial(len(coalition)) * factorial(n - len(coalition) - 1), factorial(n))
            phi[player] += weight * (values[row((*coalition, player))] - values[row(coalition)])
    return np.array(phi)


def banzhaf(values, n: int, order: int = 1) -> np.ndarray:
    """The mean discrete derivative over all coalitions of the other players."""

    def index(players):
        rest = subsets(without(n, *players))
        return sum(Fraction(1, len(rest)) * derivative(values, players, coalition) for coalition in rest)

    return _arrange(index, n, order)


def sii(values, n: int, order: int = 2) -> np.ndarray:
    """Grabisch and Roubens (1999): sum over T of |T|!(n-|T|-|S|)!/(n-|S|+1)! times the discrete derivative."""

    def index(players):
        s, total = len(players), 0
        for coalition in subsets(without(n, *players)):
            t = len(coalition)
            weight = Fraction(factorial(t) * factorial(n - t - s), factorial(n - s + 1))
            total += weight * derivative(values, players, coalition)
        return total

    return _arrange(index, n, order)


BERNOULLI = (Fraction(1), Fraction(-1, 2), Fraction(1, 6), Fraction(0), Fraction(-1, 30))


def ksv(values, n: int, order: int = 2) -> np.ndarray:
    """Bordt and von Luxburg (2023): with the order k, sets S gain B_(k-|S|) times SII of the sets of k around them."""
    if order == 1:
        return shapley(values, n)
    index, before = sii(values, n, order), ksv(values, n, order - 1)

    def aggregated(players):
        size = len(players)
        if size == order:
            return index[players]
        larger = [(*players, *others) for others in combinations(without(n, *players), order - size)]
        first = players + players[-1:] * (order - 1 - size)
        return before[first] + BERNOULLI[order - size] * sum(index[each] for each in larger)

    return _arrange(aggregated, n, order)


def stii(values, n: int, order: int = 2) -> np.ndarray:
    """Moebius form: m(S) below the order, and sum over T containing S of m(T)/C(|T|, order) at it."""
    transform = moebius(values, n)

    def index(players):
        if len(players) < order:
            return transform[row(players)]
        containing = [coalition for coalition in subsets(range(n)) if set(players) <= set(coalition)]
        return sum(Fraction(1, comb(len(coalition), order)) * transform[row(coalition)] for coalition in containing)

    return _arrange(index, n, order)


def stii_by_derivatives(values, n: int, order: int = 2) -> np.ndarray:
    """Sundararajan et al. (2020): sets of k have k/n sum over T of the discrete derivative over C(n-1, |T|)."""

    def index(players):
        if len(players) < order:
            return derivative(values, players, ())
        rest = subsets(without(n, *players))
        return sum(Fraction(order, n * comb(n - 1, len(t))) * derivative(values, players, t) for t in rest)

    return _arrange(index, n, order)


def fsii(values, n: int, order: int = 2) -> np.ndarray:
    """Tsai et al. (2023): the polynomial of degree ``order`` that is closest to v under Shapley kernel weights.

    It is exact on the empty and the grand coalition; solved with Lagrange multipliers.
    """
    terms = [players for players in subsets(range(n)) if len(players) <= order]
    normal, target = np.zeros((len(terms), len(terms))), np.zeros(len(terms))
    for coalition in subsets(range(n)):
        size = len(coalition)
        if 0 < size < n:
            inside = np.array([set(players) <= set(coalition) for players in terms], dtype=float)
            weight = (n - 1) / (comb(n, size) * size * (n - size))
            normal += weight * np.outer(inside, inside)
            target += weight * values[row(coalition)] * inside
    exact = np.array([[not players for players in terms], [True] * len(terms)], dtype=float)
    system = np.block([[normal, exact.T], [exact, np.zeros((2, 2))]])
    coefficients = np.linalg.solve(system, [*target, values[0], values[-1]])
    found = dict(zip(terms, coefficients, strict=False))
    return _arrange(found.get, n, order)


def _arrange(index, n: int, order: int) -> np.ndarray:
    """Entry (i, j, ...) is the index of the set {i, j, ...}."""
    entries = [index(tuple(sorted(set(place)))) for place in np.ndindex(*[n] * order)]
    return np.array(entries).reshape([n] * order)
