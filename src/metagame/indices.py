r"""Exact interaction indices of games given by all their values, vectorised over targets.

Every index here is linear in the Moebius transform m of the game, with a coefficient that depends on sizes only:

    index_S = sum over T containing S of c(|S|, |T|) m(T),    S a player or a pair.

So an index is one line, its ``c``. :func:`_value_weights` turns c into exact rational weights on the values themselves
(no alternating sums in floats), and one matrix product serves all targets.

Shapes: ``values`` is ``(2**n, t)``, bit j of the row number says whether player j is present; 1-D input drops t from
the result. Order 1 gives ``(n, t)``; order 2 gives ``(n, n, t)``, symmetric, index_i on the diagonal. Units and sign
are those of the values.

Coefficients: Bordt and von Luxburg (2023) for k-SV and STII, Tsai et al. (2023, Thm. 19) for FSII, Grabisch and Roubens
(1999) for SII and Banzhaf.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from math import comb
from numbers import Integral

import numpy as np
from jaxtyping import Float, Int, UInt
from numpy.typing import ArrayLike

from metagame.games import GameError, as_float64

Coefficient = Callable[[int, int], Fraction]
_BLOCK = 1 << 14


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
    """Shapley value; sums over players to v(N) - v(empty)."""
    return _index(values, n, 1, _shapley)


def banzhaf(values: ArrayLike, n: int, order: int = 1) -> Float[np.ndarray, "{n} ..."]:
    """Banzhaf value; at order 2 the Banzhaf interaction index, with the value on the diagonal. Not efficient."""
    return _index(values, n, order, _banzhaf)


def sii(values: ArrayLike, n: int, order: int = 2) -> Float[np.ndarray, "{n} ..."]:
    """Shapley interaction index, with the Shapley value on the diagonal. Not hierarchically efficient."""
    return _index(values, n, order, _sii)


def ksv(values: ArrayLike, n: int, order: int = 2) -> Float[np.ndarray, "{n} ..."]:
    """k-Shapley values (k = ``order``): at order 2 SII of pairs, and SV_i - 1/2 sum_j SII_ij on the diagonal."""
    return _index(values, n, order, _shapley if order == 1 else _ksv)


def stii(values: ArrayLike, n: int, order: int = 2) -> Float[np.ndarray, "{n} ..."]:
    """Shapley-Taylor index (top order = ``order``): at order 2 m(i) on the diagonal, sum m(T)/C(|T|, 2) off it."""
    return _index(values, n, order, _shapley if order == 1 else _stii)


def fsii(values: ArrayLike, n: int, order: int = 2) -> Float[np.ndarray, "{n} ..."]:
    """Faithful Shapley interaction index of top order ``order``."""
    return _index(values, n, order, _shapley if order == 1 else _fsii)


PAIRWISE = {"sii": sii, "ksv": ksv, "stii": stii, "fsii": fsii, "banzhaf": banzhaf}
"""The indices that have an order 2, by name."""


def _shapley(s: int, t: int) -> Fraction:
    return Fraction(1, t)


def _banzhaf(s: int, t: int) -> Fraction:
    return Fraction(1, 2 ** (t - s))


def _sii(s: int, t: int) -> Fraction:
    return Fraction(1, t - s + 1)


def _ksv(s: int, t: int) -> Fraction:
    return Fraction(1, t - 1) if s == 2 else Fraction(1, t) - (Fraction(1, 2) if t > 1 else 0)


def _stii(s: int, t: int) -> Fraction:
    return Fraction(1, comb(t, 2)) if s == 2 else Fraction(t == 1)


def _fsii(s: int, t: int) -> Fraction:
    if s == 2:
        return Fraction(6, t * (t + 1))
    return Fraction(t == 1) if t < 2 else Fraction(-2 * (t - 2), t * (t + 1))


def _index(values: ArrayLike, n: int, order: int, c: Coefficient) -> Float[np.ndarray, "{n} ..."]:
    values, drop = _check(values, n)
    if not isinstance(order, Integral):
        raise GameError(f"order={order!r}: give the whole number 1 or 2.")
    if order == 1:
        first, second = np.arange(n), np.arange(n)
    elif order == 2:
        first, second = np.triu_indices(n)
    else:
        raise GameError(f"order={order}: the indices here have order 1 or 2.")
    weights = {s: _value_weights(c, s, n) for s in range(1, order + 1)}
    total = np.zeros((len(first), values.shape[1]))
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        rows = np.arange(start, start + len(block), dtype=np.uint32)
        total += _weight_rows(rows, first, second, weights) @ block.astype(np.float64, copy=False)
    if order == 2:
        square = np.empty((n, n, values.shape[1]))
        square[first, second] = square[second, first] = total
        total = square
    return total[..., 0] if drop else total


def _weight_rows(
    rows: UInt[np.ndarray, " r"],
    first: Int[np.ndarray, " s"],
    second: Int[np.ndarray, " s"],
    weights: dict[int, Float[np.ndarray, "_ _"]],
) -> Float[np.ndarray, "s r"]:
    """Weights ``(sets, len(rows))`` of the values of coalitions ``rows`` in the index of each set {first, second}."""
    size = np.bitwise_count(rows)
    player = (rows >> np.arange(int(max(second)) + 1, dtype=np.uint32)[:, None] & 1).astype(np.intp)
    single = first == second
    inside = np.where(single[:, None], player[first], player[first] + player[second])
    out = np.empty(inside.shape)
    for s, chosen in ((1, single), (2, ~single)):
        if chosen.any():
            out[chosen] = weights[s][inside[chosen], size]
    return out


@lru_cache(maxsize=64)
def _value_weights(c: Coefficient, s: int, n: int) -> Float[np.ndarray, "{s}+1 {n}+1"]:
    r"""w[a, r]: weight of v(R) in index_S, |R| = r and |R & S| = a.

    w = sum over T containing S and R of c(s, |T|) (-1)^(|T| - r), a sum over |T| = u + e with u = |S | R|; in
    rationals, so that its alternating terms cancel exactly.
    """
    table = np.zeros((s + 1, n + 1))
    for a in range(s + 1):
        for r in range(a, n - s + a + 1):
            u = r + s - a
            table[a, r] = sum(comb(n - u, e) * c(s, u + e) * (-1) ** (u + e - r) for e in range(n - u + 1))
    return table


def _check(values: ArrayLike, n: int) -> tuple[Float[np.ndarray, "2**{n} t"], bool]:
    if not isinstance(n, Integral) or n < 1:
        raise GameError(f"n={n!r}: give the number of players, at least one.")
    if hasattr(values, "detach") or np.asarray(values).dtype.kind not in "f":
        values = as_float64(values, "values")
    values = np.asarray(values)
    if values.ndim not in (1, 2) or len(values) != 1 << n:
        raise GameError(f"values has shape {values.shape}: for n={n} give ({1 << n}, t), one row for each coalition.")
    if not np.isfinite(values).all():
        raise GameError("values contains NaN or inf: an index of such a game is undefined; check the game.")
    return (values[:, None], True) if values.ndim == 1 else (values, False)
