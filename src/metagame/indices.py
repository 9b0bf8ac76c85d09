r"""Exact interaction indices of games given by all their values, vectorised over targets.

Every index here is linear in the Moebius transform m of the game, with a coefficient that depends on sizes and on the
order k, the size of the largest sets:

    index_S = sum over T containing S of c(k, |S|, |T|) m(T),    1 <= |S| <= k.

So an index is one line of code, its ``c``. :func:`_value_weights` turns c into exact rational weights on the values
themselves, which avoids alternating sums in floats. The weights depend only on |R| and |R & S|. The sum over all R is
therefore a sum over the subsets of S of sums over supersets, which are computed by halving for all sets at once, in
about as many steps as there are values.

Shapes: ``values`` is ``(2**n, t)``; bit j of the row number says whether player j is present. For 1-D input, the result
has no axis t. Order 1 gives ``(n, t)``, order 2 ``(n, n, t)``, and so on: the entry of players i, j, ... is the index
of the set {i, j, ...}, so the array is symmetric and has index_i on the diagonal. Units and sign are those of the
values.

Coefficients: Bordt and von Luxburg (2023) for k-SV and STII, Tsai et al. (2023, Thm. 19) for FSII, Grabisch and Roubens
(1999) for SII and Banzhaf. At order 1, every index except Banzhaf is the Shapley value.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, reduce
from itertools import combinations
from math import comb
from numbers import Integral

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from metagame.games import GameError, as_float64

Coefficient = Callable[[int, int, int], Fraction]


def moebius(values: ArrayLike, n: int) -> Float[np.ndarray, " 2**{n} *t"]:
    """Moebius transform m(S) = sum over T in S of (-1)^(|S|-|T|) v(T) (Rota, 1964), same shape as ``values``."""
    values, drop = _check(values, n)
    m = values.astype(np.float64).reshape((2,) * n + (-1,))
    for axis in range(n):
        present, absent = (np.moveaxis(m, axis, 0)[k] for k in (1, 0))
        present -= absent
    m = m.reshape(values.shape)
    return m[:, 0] if drop else m


def shapley(values: ArrayLike, n: int) -> Float[np.ndarray, " {n} *t"]:
    """Shapley value; it sums over players to v(N) - v(empty)."""
    return _index(values, n, 1, _sii)


def banzhaf(values: ArrayLike, n: int, order: int = 1) -> Float[np.ndarray, "{n} ..."]:
    """Banzhaf interaction index; for single players, it is the Banzhaf value. It is not efficient."""
    return _index(values, n, order, _banzhaf)


def sii(values: ArrayLike, n: int, order: int = 2) -> Float[np.ndarray, "{n} ..."]:
    """Shapley interaction index; for single players, it is the Shapley value. It is not hierarchically efficient."""
    return _index(values, n, order, _sii)


def ksv(values: ArrayLike, n: int, order: int = 2) -> Float[np.ndarray, "{n} ..."]:
    """k-Shapley values (k = ``order``), or k-SII. They are efficient, and equal SII for sets of ``order`` players.

    At order 2 the diagonal is SV_i - 1/2 sum_j SII_ij.
    """
    return _index(values, n, order, _ksv)


def stii(values: ArrayLike, n: int, order: int = 2) -> Float[np.ndarray, "{n} ..."]:
    """Shapley-Taylor index, efficient: m(S) for sets of fewer than ``order`` players, else sum m(T)/C(|T|, order)."""
    return _index(values, n, order, _stii)


def fsii(values: ArrayLike, n: int, order: int = 2) -> Float[np.ndarray, "{n} ..."]:
    """Faithful Shapley interaction index of top order ``order``. It is efficient."""
    return _index(values, n, order, _fsii)


def ksv_of_sii(pairs: Float[np.ndarray, "... n n"]) -> Float[np.ndarray, "... n n"]:
    """k-SV of order 2, computed from SII of order 2: each player gives up half of the value of each of its pairs."""
    own = np.einsum("...ii->...i", pairs)
    result = pairs.copy()
    np.einsum("...ii->...i", result)[:] = own - (pairs.sum(-1) - own) / 2
    return result


INDICES = {"sii": sii, "ksv": ksv, "stii": stii, "fsii": fsii, "banzhaf": banzhaf}
"""The indices that exist at every order, by name."""


def sets_of_entries(n: int, order: int) -> list[tuple[int, ...]]:
    """One array entry for each set of at most ``order`` of n players; smaller sets repeat their last player."""
    sets = (players for size in range(1, order + 1) for players in combinations(range(n), size))
    return [players + players[-1:] * (order - len(players)) for players in sets]


def _banzhaf(k: int, s: int, t: int) -> Fraction:
    return Fraction(1, 2 ** (t - s))


def _sii(k: int, s: int, t: int) -> Fraction:
    return Fraction(1, t - s + 1)


def _ksv(k: int, s: int, t: int) -> Fraction:
    """SII of all sets of r players more, each times the Bernoulli number B_r."""
    return sum((_bernoulli(r) * comb(t - s, r) * _sii(k, s + r, t) for r in range(min(k, t) - s + 1)), start=Fraction())


@lru_cache
def _bernoulli(r: int) -> Fraction:
    """With B_1 = -1/2."""
    return Fraction(r == 0) - sum(
        (comb(r, i) * _bernoulli(i) / Fraction(r - i + 1) for i in range(r)), start=Fraction()
    )


def _stii(k: int, s: int, t: int) -> Fraction:
    return Fraction(1, comb(t, k)) if s == k else Fraction(t == s)


def _fsii(k: int, s: int, t: int) -> Fraction:
    if t <= k:
        return Fraction(t == s)
    return Fraction((-1) ** (k - s) * s * comb(k, s) * comb(t - 1, k), (k + s) * comb(t + k - 1, k + s))


def _index(values: ArrayLike, n: int, order: int, c: Coefficient) -> Float[np.ndarray, "{n} ..."]:
    values, drop = _check(values, n)
    if not isinstance(order, Integral) or order < 1:
        raise GameError(f"order={order!r} must be a positive integer.")
    if order > n:
        raise GameError(f"order={order} is above the number of players, {n}: no set has so many of them.")
    found = [_index_of_size(values, n, s, _value_weights(c, int(order), s, n)) for s in range(1, order + 1)]
    codes = np.concatenate([_sets(n, s) for s in range(1, order + 1)])
    by_code = codes.argsort()
    entries = reduce(np.bitwise_or.outer, [1 << np.arange(n)] * order)
    total = np.concatenate(found)[by_code][np.searchsorted(codes[by_code], entries)]
    return total[..., 0] if drop else total


@lru_cache(maxsize=64)
def _sets(n: int, s: int) -> Int[np.ndarray, " c"]:
    """Row numbers of all coalitions of s players, ascending."""
    codes = np.sort([sum(1 << player for player in players) for players in combinations(range(n), s)])
    codes.setflags(write=False)
    return codes


def _index_of_size(
    values: Float[np.ndarray, "2**{n} t"], n: int, s: int, weights: Float[np.ndarray, "{s}+1 {n}+1"]
) -> Float[np.ndarray, "c t"]:
    """The index of every set of s players, by their row numbers: a sum over its parts of sums over supersets."""
    size = np.bitwise_count(np.arange(1 << n, dtype=np.uint32))
    players = np.nonzero(_sets(n, s)[:, None] >> np.arange(n) & 1)[1].reshape(-1, s)
    total = np.zeros((len(players), values.shape[1]))
    for b in range(s + 1):
        sums, codes = _superset_sums(weights[b][size][:, None] * values, b), _sets(n, b)
        for part in combinations(range(s), b):
            total += sums[np.searchsorted(codes, (1 << players[:, part]).sum(1))]
    return total


def _superset_sums(x: Float[np.ndarray, "k t"], s: int) -> Float[np.ndarray, "c t"]:
    """Of every set of s players, by row number: the sum of x over the coalitions that contain it."""
    if s == 0:
        return x.sum(0, keepdims=True)
    if len(x) < 1 << s:
        return x[:0]
    absent, present = x[: len(x) // 2], x[len(x) // 2 :]  # of the last player
    return np.concatenate([_superset_sums(absent + present, s), _superset_sums(present, s - 1)])


@lru_cache(maxsize=64)
def _value_weights(c: Coefficient, k: int, s: int, n: int) -> Float[np.ndarray, "{s}+1 {n}+1"]:
    r"""d[b, r]: what v(R), |R| = r, counts in index_S for each part of S with b players that R contains.

    The weight of v(R) is w[a, r] with a = |R & S|: a sum over T containing S and R of c(k, s, |T|) (-1)^(|T| - r), one
    over |T| = u + e with u = |S | R|. Since R contains C(a, b) parts of S with b players, w[a, r] is the sum over b of
    C(a, b) d[b, r], where d[b, r] is the b-th difference of w[., r] at 0. In rationals, so that alternating terms
    cancel exactly.
    """
    w = np.full((s + 1, n + 1), Fraction(), dtype=object)
    for a in range(s + 1):
        for r in range(a, n - s + a + 1):
            u = r + s - a
            w[a, r] = sum(comb(n - u, e) * c(k, s, u + e) * (-1) ** (u + e - r) for e in range(n - u + 1))
    return np.array([np.diff(w, b, axis=0)[0] for b in range(s + 1)], dtype=np.float64)


def _check(values: ArrayLike, n: int) -> tuple[Float[np.ndarray, "2**{n} t"], bool]:
    if not isinstance(n, Integral) or n < 1:
        raise GameError(f"n={n!r} must be the number of players, at least one.")
    if hasattr(values, "detach") or np.asarray(values).dtype.kind not in "f":
        values = as_float64(values, "values")
    values = np.asarray(values)
    if values.ndim not in (1, 2) or len(values) != 1 << n:
        raise GameError(f"values has shape {values.shape}: for n={n} give ({1 << n}, t), one row for each coalition.")
    if not np.isfinite(values).all():
        raise GameError("values contain NaN or inf, for which an index is undefined: check the game.")
    return (values[:, None], True) if values.ndim == 1 else (values, False)
