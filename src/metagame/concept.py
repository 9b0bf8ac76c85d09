r"""The concept metagame in polynomial time.

The game of concept t at a patch, w = exp(logit), B the background's total weight:

    nu_t(S) = w_t / (B + sum_{k in S} w_k) for t in S, else 0.

With 1/a written as a sum of exponentials, 1/a ~ sum_q c_q exp(-s_q a), every coalition factorises, and the average
over coalitions that the Shapley value takes becomes an average over p in [0, 1] of independent players (the
multilinear extension):

    diag_t     = int_0^1 dp  sum_q c_q w_t e^{-s_q (B + w_t)} prod_{k != t} (1 - p u_k),         u_k = 1 - e^{-s_q w_k},
    phi_{j->t} = int_0^1 dp -sum_q c_q w_t e^{-s_q (B + w_t)} u_j prod_{k != t, j} (1 - p u_k).

The integrands are polynomials in p of degree < n: Gauss-Legendre with ceil(n/2) nodes is exact. The only approximation
is that of 1/a on [B + min w, B + sum w]. It is a matter of one variable: :func:`exponential_sum` finds the terms for
the range at hand and checks them on it, and its relative error bounds the absolute error of every diagonal entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import overload

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Bool, Float, Int

from metagame.games import GameError

RELATIVE_ERROR = 1e-10
LARGEST_REDUCED = 60  # log of the ratio; fitting takes seconds there
_CHUNK_ELEMENTS = {"cpu": 1 << 15, "cuda": 1 << 24}


@overload
def concept_metagame(
    logits: Float[torch.Tensor, "n P"],
    background: Float[np.ndarray | torch.Tensor, "m P"] | None = None,
    directional: bool = False,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Float[torch.Tensor, "n P"], Float[torch.Tensor, "n n P"] | None]: ...


@overload
def concept_metagame(
    logits: Float[np.ndarray, "n P"],
    background: Float[np.ndarray | torch.Tensor, "m P"] | None = None,
    directional: bool = False,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Float[np.ndarray, "n P"], Float[np.ndarray, "n n P"] | None]: ...


def concept_metagame(
    logits: Float[np.ndarray | torch.Tensor, "n P"],
    background: Float[np.ndarray | torch.Tensor, "m P"] | None = None,
    directional: bool = False,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Float[np.ndarray | torch.Tensor, "n P"], Float[np.ndarray | torch.Tensor, "n n P"] | None]:
    """Meta-ConceptAttention of every concept at every patch (App. C.4), without enumerating coalitions.

    Args:
        logits: concepts (the players) by patches; any float dtype. Where one is -inf, the concept is masked: it has no
            weight, so that neither it nor its influence is other than 0.
        background: always-present concepts by patches, never players. With no rows, None or -inf alone, B = 0 and the
            game is the limit B -> 0: nu_t(S) = w_t / sum_{k in S} w_k for t in S, so that nu_t({t}) = 1.
        directional: also return the directional meta-attributions.
        dtype: of the arithmetic and of the result. Half-precision input is computed in it too.

    Returns:
        ``diag`` ``(n, P)``: the Shapley value of t over all n players in the game nu_t, in [0, 1]. And ``(n targets, n
        players, P)``: the influence phi_{j->t} <= 0 of player j on concept t (Definition 2), with w_t/(B + w_t) at
        [t, t], so that row t sums to softmax_t over all concepts and the background; None unless ``directional``. Numpy
        for numpy, torch on the same device for torch. No gradients. Absolute error
        below 1e-9 in float64, about 1e-6 in float32.

    Raises:
        GameError: the shapes do not fit, or a logit is NaN or +inf.
    """
    if dtype not in (torch.float32, torch.float64):
        raise GameError(f"dtype={dtype}: give torch.float64, or torch.float32 for less precision.")
    as_numpy = not isinstance(logits, torch.Tensor)
    logits = _as_tensor(logits, "logits")
    background = logits[:0] if background is None else _as_tensor(background, "background")
    _check(logits, background)
    logits, background = logits.to(dtype), background.to(logits.device, dtype)
    masked = logits.isneginf()
    logits = _without_masked(logits, masked)
    logits, rest = _with_narrow_gaps(logits, background.logsumexp(0))  # log B; without background -inf
    least = torch.logaddexp(logits.amin(0), rest)
    spread = torch.logaddexp(logits.logsumexp(0), rest) - least

    n, n_patches = logits.shape
    diag = torch.empty_like(logits)
    pairs = logits.new_empty(n, n, n_patches) if directional else None
    # patches of like spread together: the wider the spread, the more terms
    for chunk in _chunks(spread, n):
        own, influence = _play(
            logits[:, chunk] - least[chunk], rest[chunk] - least[chunk], float(spread[chunk].max()), directional
        )
        diag[:, chunk] = own
        if pairs is not None and influence is not None:
            pairs[..., chunk] = influence
    diag.masked_fill_(masked, 0)
    if pairs is not None:
        pairs.masked_fill_(masked[:, None] | masked, 0)
    if as_numpy:
        return diag.numpy(), None if pairs is None else pairs.numpy()
    return diag, pairs


def _as_tensor(values: object, name: str) -> torch.Tensor:
    """Of floats on whatever device they are on, numpy's in a memory layout that torch takes."""
    if isinstance(values, torch.Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise GameError(f"{name} has dtype {array.dtype}: give floating-point logits.")
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    return torch.from_numpy(np.array(array, order="C"))


LARGEST_GAP = 50.0
"""exp(-50) is nothing beside 1: a wider gap between logits changes no value by more than 1e-20."""


def _without_masked(
    logits: Float[torch.Tensor, "n P"], masked: Bool[torch.Tensor, "n P"]
) -> Float[torch.Tensor, "n P"]:
    """Masked concepts so far below the others that they weigh nothing."""
    if not masked.any():
        return logits
    least = logits.masked_fill(masked, torch.inf).amin(0)
    least = torch.where(least.isinf(), torch.zeros_like(least), least)  # all are masked
    return torch.where(masked, least - 2 * LARGEST_GAP, logits)


def _with_narrow_gaps(
    logits: Float[torch.Tensor, "n P"], rest: Float[torch.Tensor, " P"]
) -> tuple[Float[torch.Tensor, "n P"], Float[torch.Tensor, " P"]]:
    """The same game where the logits of a patch, and log B, lie further apart than matters."""
    ordered, order = torch.cat([logits, rest[None]]).sort(0)
    gaps = ordered.diff(dim=0)
    wide = ((gaps > LARGEST_GAP) & ~ordered[:-1].isneginf()).any(0)  # without background log B is -inf
    if not wide.any():
        return logits, rest
    steps = torch.cat([torch.zeros_like(rest[None]), gaps.clamp(max=LARGEST_GAP)]).cumsum(0)
    narrow = torch.zeros_like(steps).scatter(0, order, steps)
    without = rest.isneginf()
    return torch.where(wide, narrow[:-1], logits), torch.where(wide & ~without, narrow[-1], rest)


def _chunks(spread: Float[torch.Tensor, " P"], n: int) -> Iterator[Int[torch.Tensor, " p"]]:
    """Patches in the order of their spread, as many at once as the memory of their terms allows."""
    elements = _CHUNK_ELEMENTS.get(spread.device.type, _CHUNK_ELEMENTS["cpu"])
    order = spread.argsort()
    spreads = spread[order].tolist()
    start = 0
    while start < len(order):
        stop = start + 1
        limit = _range(spreads[start])
        size = max(1, elements // (len(exponential_terms(spreads[start])[0]) * n))
        while stop < min(len(order), start + size) and spreads[stop] <= limit:
            stop += 1
        yield order[start:stop]
        start = stop


_NOTHING_LEFT = np.log(800.0)
"""exp(-800) is 0 in float64: beyond, a term does not change any more."""


def _play(
    log_w: Float[torch.Tensor, "n p"], log_b: Float[torch.Tensor, " p"], spread: float, directional: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Both outputs for patches whose least denominator is 1: the sums of the module's docstring, term by term.

    Weights stay logarithms, since they may exceed what ``dtype`` holds; in the terms only s w and s B occur.
    """
    log_rates, shares = (torch.as_tensor(x, dtype=log_w.dtype, device=log_w.device) for x in exponential_terms(spread))
    points, masses = _unit_gauss_legendre(len(log_w))
    decay = (log_rates[:, None, None] + log_w).clamp(max=_NOTHING_LEFT).exp()
    u = -torch.expm1(-decay)
    rest = (log_rates[:, None, None] + log_b).clamp(max=_NOTHING_LEFT).exp()
    seed = shares[:, None, None] * decay * torch.exp(-decay - rest)
    total = torch.zeros_like(u)
    pairs = log_w.new_zeros(len(log_w), len(log_w), log_w.shape[1]) if directional else None
    for p, mass in zip(points.tolist(), masses.tolist(), strict=True):
        factor = 1 - p * u
        others = mass * factor.prod(1, keepdim=True) / factor
        total += others
        if pairs is not None:
            pairs -= torch.einsum("qtp,qjp->tjp", seed * others, u / factor)
    if pairs is not None:
        torch.diagonal(pairs).copy_(torch.sigmoid(log_w - log_b).T)
    return (seed * total).sum(0), pairs


def exponential_sum(ratio: float) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Rates s and coefficients c with |a sum_q c_q exp(-s_q a) - 1| <= 1e-10 for all a in [1, ``ratio``].

    See :func:`exponential_terms`.
    """
    log_rates, shares = exponential_terms(float(np.log(max(ratio, 1.0))))
    return np.exp(log_rates), np.exp(log_rates) * shares


def exponential_terms(log_ratio: float) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Logarithms of s, and c / s, of an exponential sum for 1/a on [1, exp(``log_ratio``)], however wide.

    Starts from the trapezoidal rule for 1/a = int e^{x - a e^x} dx, keeps the terms that span the others on the range
    (pivoted QR) and refits their coefficients: 26 terms for a ratio of 50, 173 for e^40. Beyond e^60 the rule stays as
    it is, four terms for each unit of log ratio; its error does not depend on the range.
    """
    return _exponential_terms(_range(log_ratio))


def _range(log_ratio: float) -> float:
    """The range that serves a log ratio: a few serve all, in steps of a half, from 5 on of a tenth of themselves."""
    if log_ratio <= 5:
        return float(np.ceil(2 * log_ratio)) / 2 + 1e-6
    return 5 * 1.1 ** float(np.ceil(np.log(log_ratio / 5) / np.log(1.1))) + 1e-6


@lru_cache(maxsize=128)
def _exponential_terms(log_ratio: float) -> tuple[np.ndarray, np.ndarray]:
    step = 0.25
    x = np.arange(np.log(RELATIVE_ERROR) - log_ratio - 3, np.log(-np.log(RELATIVE_ERROR)) + 1.5, step)
    if log_ratio > LARGEST_REDUCED:
        return x, np.full(len(x), step)

    rates = np.exp(x)

    def scaled_terms(n_points: int) -> np.ndarray:
        a = np.exp(np.linspace(0, log_ratio, n_points))
        return a[:, None] * rates * step * np.exp(-np.outer(a, rates))

    n_points = 200 + int(12 * log_ratio)
    terms, check = scaled_terms(n_points), scaled_terms(4 * n_points)
    q, r, kept = scipy.linalg.qr(terms, mode="economic", pivoting=True)
    ones = q.sum(0)  # q.T @ 1, what the terms are to add up to

    def fit(n_terms: int) -> tuple[np.ndarray, float]:
        c = scipy.linalg.solve_triangular(r[:n_terms, :n_terms], ones[:n_terms])
        return c, float(np.abs(check[:, kept[:n_terms]] @ c - 1).max())

    low, high = 1, len(rates)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fit(middle)[1] <= RELATIVE_ERROR else (middle + 1, high)
    c, error = fit(high)
    if error > RELATIVE_ERROR:
        raise GameError(
            f"logits spread over {log_ratio:.0f}: no exponential sum reaches {RELATIVE_ERROR} on that range."
        )
    return x[kept[:high]], c * step


def _unit_gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and masses on [0, 1] that integrate polynomials of degree n - 1 exactly."""
    points, masses = np.polynomial.legendre.leggauss((n + 1) // 2)
    return (points + 1) / 2, masses / 2


def _check(logits: torch.Tensor, background: torch.Tensor) -> None:
    if logits.ndim != 2 or logits.numel() == 0:
        raise GameError(f"logits has shape {tuple(logits.shape)}: give (concepts, patches), at least one of each.")
    if background.ndim != 2 or background.shape[1] != logits.shape[1]:
        raise GameError(f"background has shape {tuple(background.shape)}: give (concepts, {logits.shape[1]}) patches.")
    for name, value in (("logits", logits), ("background", background)):
        if not value.is_floating_point():
            raise GameError(f"{name} has dtype {value.dtype}: give floating-point logits.")
        if (value.isnan() | value.isposinf()).any():
            raise GameError(f"{name} contains NaN or inf: give finite logits, or -inf for a concept that is masked.")
