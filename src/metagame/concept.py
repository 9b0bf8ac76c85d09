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

from functools import lru_cache

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float

from metagame.games import GameError

RELATIVE_ERROR = 1e-10
LARGEST_REDUCED = 60  # log of the ratio; fitting takes seconds there
_CHUNK_ELEMENTS = {"cpu": 1 << 15, "cuda": 1 << 24}


def concept_metagame(
    logits: Float[np.ndarray | torch.Tensor, "n P"],
    background: Float[np.ndarray | torch.Tensor, "m P"],
    directional: bool = False,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Float[np.ndarray | torch.Tensor, "n P"], Float[np.ndarray | torch.Tensor, "n n P"] | None]:
    """Meta-ConceptAttention of every concept at every patch (App. C.4), without enumerating coalitions.

    Args:
        logits: concepts (the players) by patches; any float dtype.
        background: always-present concepts by patches, never players. With no rows, B = 0 and the game is the limit
            B -> 0: nu_t(S) = w_t / sum_{k in S} w_k for t in S, so that nu_t({t}) = 1.
        directional: also return the directional meta-attributions.
        dtype: of the arithmetic and of the result. Half-precision input is computed in it too.

    Returns:
        ``diag`` ``(n, P)``: the Shapley value of t over all n players in the game nu_t, in [0, 1]. And ``(n targets, n
        players, P)``: the influence phi_{j->t} <= 0 of player j on concept t (Definition 2), with w_t/(B + w_t) at
        [t, t], so that row t sums to softmax_t over all concepts and the background; None unless ``directional``. Numpy
        for numpy, torch on the same device for torch. No gradients. Absolute error
        below 1e-9 in float64, about 1e-6 in float32.

    Raises:
        GameError: the shapes do not fit, a logit is NaN or inf, or the concepts' logits lie so far below the largest
            that their weights vanish in ``dtype``.
    """
    if dtype not in (torch.float32, torch.float64):
        raise GameError(f"dtype={dtype}: give torch.float64, or torch.float32 for less precision.")
    as_numpy = not isinstance(logits, torch.Tensor)
    logits, background = (x.detach() if isinstance(x, torch.Tensor) else torch.tensor(x) for x in (logits, background))
    _check(logits, background)
    device = logits.device
    weights = torch.cat([logits, background.to(device)]).to(dtype)
    weights = (weights - weights.amax(0)).exp()
    concepts, rest = weights[: len(logits)], weights[len(logits) :].sum(0)
    least = concepts.amin(0) + rest
    if not (least > torch.finfo(dtype).tiny).all():
        raise GameError("logits lie too far below the largest logit of their patch: their weights vanish in dtype.")
    ratio = float(((concepts.sum(0) + rest) / least).max())
    rates, coefficients = (torch.as_tensor(x, dtype=dtype, device=device) for x in exponential_sum(ratio))
    points, masses = (torch.as_tensor(x, dtype=dtype, device=device) for x in _unit_gauss_legendre(len(logits)))

    n, n_patches = concepts.shape
    diag = torch.empty_like(concepts)
    pairs = concepts.new_empty(n, n, n_patches) if directional else None
    elements = _CHUNK_ELEMENTS.get(device.type, _CHUNK_ELEMENTS["cpu"])
    for part in torch.arange(n_patches).split(max(1, elements // (len(rates) * n))):
        chunk = slice(int(part[0]), int(part[-1]) + 1)
        w, b = concepts[:, chunk] / least[chunk], rest[chunk] / least[chunk]
        diag[:, chunk], phi = _play(w, b, rates, coefficients, points, masses, directional)
        if pairs is not None:
            pairs[..., chunk] = phi
    if as_numpy:
        return diag.numpy(), None if pairs is None else pairs.numpy()
    return diag, pairs


def _play(
    w: Float[torch.Tensor, "n p"],
    b: Float[torch.Tensor, " p"],
    rates: Float[torch.Tensor, " q"],
    coefficients: Float[torch.Tensor, " q"],
    points: Float[torch.Tensor, " g"],
    masses: Float[torch.Tensor, " g"],
    directional: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Both outputs for patches whose least denominator is 1: the sums of the module's docstring, term by term."""
    decay = rates[:, None, None] * w
    u = -torch.expm1(-decay)
    seed = coefficients[:, None, None] * w * torch.exp(-decay - rates[:, None, None] * b)
    total = torch.zeros_like(u)
    pairs = w.new_zeros(len(w), len(w), w.shape[1]) if directional else None
    for p, mass in zip(points, masses, strict=True):
        factor = 1 - p * u
        others = mass * factor.prod(1, keepdim=True) / factor
        total += others
        if pairs is not None:
            pairs -= torch.einsum("qtp,qjp->tjp", seed * others, u / factor)
    if pairs is not None:
        torch.diagonal(pairs).copy_((w / (b + w)).T)
    return (seed * total).sum(0), pairs


def exponential_sum(ratio: float) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Rates s and coefficients c with |a sum_q c_q exp(-s_q a) - 1| <= 1e-10 for all a in [1, ``ratio``].

    Starts from the trapezoidal rule for 1/a = int e^{x - a e^x} dx, keeps the terms that span the others on the range
    (pivoted QR) and refits their coefficients: 26 terms for a ratio of 50, 173 for e^40. Beyond e^60 the rule stays as
    it is, four terms for each unit of log ratio; its error does not depend on the range.
    """
    log_ratio = float(np.log(max(ratio, 1.0)))
    # a few ranges serve all ratios: in steps of a half, from 5 on of a tenth of themselves
    if log_ratio <= 5:
        return _exponential_sum(float(np.ceil(2 * log_ratio)) / 2 + 1e-6)
    return _exponential_sum(5 * 1.1 ** float(np.ceil(np.log(log_ratio / 5) / np.log(1.1))) + 1e-6)


@lru_cache(maxsize=128)
def _exponential_sum(log_ratio: float) -> tuple[np.ndarray, np.ndarray]:
    step = 0.25
    x = np.arange(np.log(RELATIVE_ERROR) - log_ratio - 3, np.log(-np.log(RELATIVE_ERROR)) + 1.5, step)
    rates = np.exp(x)

    def scaled_terms(n_points: int) -> np.ndarray:
        a = np.exp(np.linspace(0, log_ratio, n_points))
        return a[:, None] * rates * step * np.exp(-np.outer(a, rates))

    if log_ratio > LARGEST_REDUCED:
        return rates, rates * step

    n_points = 200 + int(12 * log_ratio)
    terms, check = scaled_terms(n_points), scaled_terms(4 * n_points)
    kept = scipy.linalg.qr(terms, mode="r", pivoting=True)[1]

    def fit(n_terms: int) -> tuple[np.ndarray, float]:
        chosen = kept[:n_terms]
        c = np.linalg.lstsq(terms[:, chosen], np.ones(n_points), rcond=None)[0]
        return c, float(np.abs(check[:, chosen] @ c - 1).max())

    low, high = 1, len(rates)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fit(middle)[1] <= RELATIVE_ERROR else (middle + 1, high)
    c, error = fit(high)
    if error > RELATIVE_ERROR:
        raise GameError(
            f"logits spread over {log_ratio:.0f}: no exponential sum reaches {RELATIVE_ERROR} on that range."
        )
    return rates[kept[:high]], c * rates[kept[:high]] * step


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
        if not torch.isfinite(value).all():
            raise GameError(f"{name} contains NaN or inf: logits must be finite.")
