r"""The concept metagame in polynomial time.

The game of concept t at a patch, w = exp(logit), B the background's total weight:

    nu_t(S) = w_t / (B + sum_{k in S} w_k) for t in S, else 0.

With 1/a written as a sum of exponentials, 1/a ~ sum_q c_q exp(-s_q a), every coalition factorises, and the average
over coalitions that the Shapley value takes becomes an average over p in [0, 1] of independent players (the
multilinear extension):

    diag_t     = int_0^1 dp  sum_q c_q w_t e^{-s_q (B + w_t)} prod_{k != t} (1 - p u_k),         u_k = 1 - e^{-s_q w_k},
    phi_{j->t} = int_0^1 dp -sum_q c_q w_t e^{-s_q (B + w_t)} u_j prod_{k != t, j} (1 - p u_k).

As functions of x = 1 - p the products are mixtures of the powers x^0 .. x^(n-1), so that a rule for the integral over p
errs by no more than with one of these. It is the same matter as 1/a: where 1/a ~ sum_g m_g x_g^(a-1) on [1, n], the
nodes x_g with masses m_g integrate every power to within that error. Gauss-Legendre is exact with ceil(n/2) nodes, an
exponential sum has fewer for many players: 20, 23, 25 and 27 for n = 50, 133, 300 and 500.

So the only approximations are those of 1/a on [B + min w, B + sum w] and on [1, n]. They are a matter of one variable:
:func:`exponential_sum` finds the terms for the range at hand and checks them on it. All terms are positive, and the
two relative errors together bound the absolute error of every diagonal entry.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Bool, Float, Int

from metagame.games import GameError

RELATIVE_ERROR = 1e-10
LARGEST_FITTED = 60  # log of the ratio
_FIRST, _BEND, _HIGHEST_RATE = 0.35, -0.25, 2.75
"""Where the rates of an exponential sum lie: found by trial, they come closest to the best sums of all ranges."""
_CHUNK_ELEMENTS = 1 << 15
"""Of an array of all concepts, terms and patches of a chunk: what a CPU's cache holds, and no operation is split."""
_CHUNK_ELEMENTS_GPU = 1 << 24
"""Of a chunk on a GPU, where few large operations take less time, although all patches have the terms of the widest."""


@overload
def concept_metagame(
    logits: Float[torch.Tensor, "n P"],
    background: Float[np.ndarray | torch.Tensor, "m P"] | None = None,
    directional: bool = False,
    *,
    dtype: torch.dtype = torch.float64,
    memory: int | None = None,
) -> tuple[Float[torch.Tensor, "n P"], Float[torch.Tensor, "n n P"] | None]: ...


@overload
def concept_metagame(
    logits: Float[np.ndarray, "n P"],
    background: Float[np.ndarray | torch.Tensor, "m P"] | None = None,
    directional: bool = False,
    *,
    dtype: torch.dtype = torch.float64,
    memory: int | None = None,
) -> tuple[Float[np.ndarray, "n P"], Float[np.ndarray, "n n P"] | None]: ...


def concept_metagame(
    logits: Float[np.ndarray | torch.Tensor, "n P"],
    background: Float[np.ndarray | torch.Tensor, "m P"] | None = None,
    directional: bool = False,
    *,
    dtype: torch.dtype = torch.float64,
    memory: int | None = None,
) -> tuple[Float[np.ndarray | torch.Tensor, "n P"], Float[np.ndarray | torch.Tensor, "n n P"] | None]:
    """Meta-ConceptAttention of every concept at every patch (App. C.4), without enumerating coalitions.

    Args:
        logits: concepts (the players) by patches; any float dtype. A logit of -inf masks the concept: it has no weight,
            so it and its influence are 0.
        background: logits of concepts that are always present, by patches; they are never players. With no rows, None,
            or only -inf, B = 0 and the game is the limit B -> 0: nu_t(S) = w_t / sum_{k in S} w_k for t in S, so that
            nu_t({t}) = 1.
        directional: whether to return the directional meta-attributions, too.
        dtype: type of the arithmetic and of the result. Half-precision input is computed in it, too.
        memory: the maximum number of bytes of intermediate results at once, in addition to input and output. If None,
            as many as are fast: on a CPU where n <= 500 at most 20 MB for each thread, and 50 MB if ``directional``.

    Returns:
        ``diag`` ``(n, P)``: the Shapley value of t over all n players in the game nu_t, in [0, 1]. And ``(n targets, n
        players, P)``: the influence phi_{j->t} <= 0 of player j on concept t (Definition 2), with w_t/(B + w_t) at
        [t, t], so that row t sums to softmax_t over all concepts and the background; None unless ``directional``. Both
        are numpy arrays if ``logits`` is one, else torch tensors on the same device. They have no gradients. The
        absolute error is below 1e-9 in float64 and about 1e-6 in float32.

    Raises:
        GameError: the shapes do not match, a logit is NaN or +inf, a tensor is sparse, or ``memory`` is too small for a
            single patch.
    """
    if dtype not in (torch.float32, torch.float64):
        raise GameError(f"dtype={dtype} must be torch.float64, or torch.float32 for less precision.")
    as_numpy = not isinstance(logits, torch.Tensor)
    logits = _as_tensor(logits, "logits")
    background = logits[:0] if background is None else _as_tensor(background, "background")
    _check(logits, background)
    background = background.to(logits.device)
    n, n_patches = logits.shape
    room = _Room(memory, dtype.itemsize, logits.device.type)
    with torch.inference_mode(False):  # the caller's would not hold in the threads that write the results
        diag = logits.new_empty(n, n_patches, dtype=dtype)
        pairs = logits.new_empty(n, n, n_patches, dtype=dtype) if directional else None
        for block in torch.arange(n_patches, device=logits.device).split(
            room.patches(_PREPARED * (n + len(background) + 1))
        ):
            _play_block(logits[:, block].to(dtype), background[:, block].to(dtype), diag, pairs, block, room)
    if as_numpy:
        return diag.numpy(), None if pairs is None else pairs.numpy()
    return diag, pairs


_PREPARED = 8
"""Arrays of a number for each concept and patch that exist at once before a game is played."""


@dataclass(frozen=True)
class _Room:
    """How much may be computed at once: ``memory`` bytes of numbers of ``itemsize`` bytes, on a type of device."""

    memory: int | None
    itemsize: int
    device: str

    @property
    def n_threads(self) -> int:
        return torch.get_num_threads() if self.device == "cpu" else 1

    def patches(self, numbers: int, n_threads: int = 1) -> int:
        """The most patches of which each thread may keep so many numbers.

        Raises:
            GameError: there is not room for one.
        """
        if self.memory is None:
            return sys.maxsize
        size = self.memory // (numbers * self.itemsize * n_threads)
        if size < 1:
            raise GameError(
                f"memory={self.memory} is too small: a patch needs {numbers * self.itemsize * n_threads} bytes on"
                f" {n_threads} threads."
            )
        return size


def _play_block(
    logits: Float[torch.Tensor, "n b"],
    background: Float[torch.Tensor, "m b"],
    diag: Float[torch.Tensor, "n P"],
    pairs: Float[torch.Tensor, "n n P"] | None,
    block: Int[torch.Tensor, " b"],
    room: _Room,
) -> None:
    """Fill in the patches of a block, each thread a chunk of them at a time."""
    masked = logits.isneginf()
    logits = _without_masked(logits, masked)
    logits, rest = _with_narrow_gaps(logits, background.logsumexp(0))  # log B; without background -inf
    least = torch.logaddexp(logits.amin(0), rest)
    spread = torch.logaddexp(logits.logsumexp(0), rest) - least

    def play(chunk: Int[torch.Tensor, " p"], widest: float) -> None:
        log_w, log_b = logits[:, chunk] - least[chunk], rest[chunk] - least[chunk]
        own, influence = _play(log_w, log_b, widest, pairs is not None)
        diag[:, block[chunk]] = own.masked_fill_(masked[:, chunk], 0)
        if pairs is not None and influence is not None:
            pairs[..., block[chunk]] = influence.masked_fill_(masked[:, None, chunk] | masked[:, chunk], 0)

    # patches of like spread together: the wider the spread, the more terms
    with ThreadPoolExecutor(room.n_threads) as executor:
        list(executor.map(play, *zip(*_chunks(spread, len(logits), pairs is not None, room), strict=True)))


def _as_tensor(values: object, name: str) -> torch.Tensor:
    """Of floats on whatever device they are on, numpy's in a memory layout that torch takes."""
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided:
            raise GameError(f"{name} is a sparse tensor: give {name}.to_dense().")
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise GameError(f"{name} has dtype {array.dtype}: give floating-point logits.")
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
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


def _chunks(
    spread: Float[torch.Tensor, " P"], n: int, directional: bool, room: _Room
) -> Iterator[tuple[Int[torch.Tensor, " p"], float]]:
    """Patches in the order of their spread with the widest one, as many at once as the memory of their terms allows."""
    on_cpu = room.device == "cpu"
    elements = _CHUNK_ELEMENTS if on_cpu else _CHUNK_ELEMENTS_GPU
    order = spread.argsort()
    spreads = spread[order].cpu().numpy()
    start = 0
    while start < len(order):
        limit = _range(float(spreads[start if on_cpu else -1]))
        terms = len(_exponential_terms(limit)[0]) * n
        numbers = _ARRAYS * terms
        if directional:
            numbers += 2 * terms * len(_unit_interval_rule(n)[0]) + 2 * n * n
        size = min(max(1, elements // terms), room.patches(numbers, room.n_threads))
        stop = min(start + size, int(spreads.searchsorted(limit, "right")))
        yield order[start:stop], float(spreads[stop - 1])
        start = stop


_ARRAYS = 7
"""Arrays of a number for each concept, term and patch that exist at once in :func:`_play`."""
_NOTHING_LEFT = np.log(800.0)
"""exp(-800) is 0 in float64: beyond, a term does not change any more."""
_BITS = 1 / np.log(2.0)


def _play(
    log_w: Float[torch.Tensor, "n p"], log_b: Float[torch.Tensor, " p"], spread: float, directional: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Both outputs for patches whose least denominator is 1: the sums of the module's docstring, term by term.

    Weights stay logarithms, since they may exceed what ``dtype`` holds; in the terms only s w and s B occur.
    """
    log_rates, shares = (torch.as_tensor(x, dtype=log_w.dtype, device=log_w.device) for x in exponential_terms(spread))
    nodes, masses = _unit_interval_rule(len(log_w))
    # exp2, as torch splits exp among threads however small the array is
    decay = torch.exp2((log_rates[:, None] + log_w[:, None]).clamp(max=_NOTHING_LEFT) * _BITS)
    rest = torch.exp2((log_rates[:, None] + log_b).clamp(max=_NOTHING_LEFT) * _BITS)
    gone = torch.exp2(decay * -_BITS)  # 1 - u
    seed = (shares[:, None] * torch.exp2(rest * -_BITS)) * decay * gone
    diag = _integrals(gone, nodes, masses).mul_(seed).sum(1)
    if not directional:
        return diag, None
    pairs = _influences(seed, gone, nodes, masses)
    torch.diagonal(pairs).copy_(torch.sigmoid(log_w - log_b).T)
    return diag, pairs


def _integrals(
    gone: Float[torch.Tensor, "n q p"], nodes: Float[np.ndarray, " g"], masses: Float[np.ndarray, " g"]
) -> Float[torch.Tensor, "n q p"]:
    """The integral over p of the product of the others' factors 1 - p u, for each concept, term and patch."""
    total, factor = torch.zeros_like(gone), torch.empty_like(gone)
    for x, mass in zip(nodes.tolist(), masses.tolist(), strict=True):
        torch.add(x, gone, alpha=1 - x, out=factor)  # 1 - p u, with p = 1 - x
        total.addcdiv_(factor.prod(0), factor, value=mass)
    return total


def _influences(
    seed: Float[torch.Tensor, "n q p"],
    gone: Float[torch.Tensor, "n q p"],
    nodes: Float[np.ndarray, " g"],
    masses: Float[np.ndarray, " g"],
) -> Float[torch.Tensor, "n n p"]:
    """phi_{j->t} of every player j on every concept t, wrong where they are one: a matrix product for each patch."""
    n, n_terms, n_patches = seed.shape
    sides = [seed.new_empty(n_patches, n, len(nodes), n_terms) for _ in range(2)]
    for g, (x, mass) in enumerate(zip(nodes.tolist(), masses.tolist(), strict=True)):
        factor = torch.add(x, gone, alpha=1 - x)
        sides[0][:, :, g] = (seed * (mass * factor.prod(0))).div_(factor).movedim(2, 0)
        sides[1][:, :, g] = ((1 - gone) / factor).movedim(2, 0)
    target, player = (side.flatten(2) for side in sides)
    return torch.bmm(target, player.mT).neg_().movedim(0, 2)


def exponential_sum(ratio: float) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Rates s and coefficients c with |a sum_q c_q exp(-s_q a) - 1| <= 1e-10 for all a in [1, ``ratio``].

    See :func:`exponential_terms`.
    """
    log_rates, shares = exponential_terms(float(np.log(max(ratio, 1.0))))
    return np.exp(log_rates), np.exp(log_rates) * shares


def exponential_terms(log_ratio: float) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Logarithms of s, and c / s > 0, of an exponential sum for 1/a on [1, exp(``log_ratio``)], however wide.

    The rates are equidistant as logarithms, and towards 0 as numbers, which is about where those of the best sums with
    as many terms lie (Braess and Hackbusch, 2005); the coefficients are a least squares fit: 20 terms for a ratio of
    50, 117 for e^40. Beyond e^60 it is the trapezoidal rule for 1/a = int e^{x - a e^x} dx with four terms for each
    unit of log ratio; its error does not depend on the range.
    """
    return _exponential_terms(_range(log_ratio))


def _range(log_ratio: float) -> float:
    """The range that serves a log ratio: a few serve all, in steps of a half, from 5 on of a tenth of themselves."""
    if log_ratio <= 5:
        return float(np.ceil(2 * log_ratio)) / 2 + 1e-6
    return 5 * 1.1 ** float(np.ceil(np.log(log_ratio / 5) / np.log(1.1))) + 1e-6


@lru_cache(maxsize=128)
def _exponential_terms(log_ratio: float) -> tuple[np.ndarray, np.ndarray]:
    if log_ratio > LARGEST_FITTED:
        step = 0.25
        x = np.arange(np.log(RELATIVE_ERROR) - log_ratio - 3, np.log(-np.log(RELATIVE_ERROR)) + 1.5, step)
        return x, np.full(len(x), step)

    def scaled_terms(log_rates: np.ndarray, n_points: int) -> np.ndarray:
        decay = np.exp(np.add.outer(np.linspace(0, log_ratio, n_points), log_rates))
        return decay * np.exp(-decay)

    # found by trial; even the best sums have ln(16 / error) (log_ratio + log 8) / pi^2 terms
    least, n_points = int(2.65 * log_ratio + 8), 200 + int(8 * log_ratio)
    for n_terms in range(least, least + 20):
        place = (np.arange(n_terms) + _FIRST) / (n_terms - 1 + _FIRST)
        highest = np.logaddexp(0, _HIGHEST_RATE - _BEND + log_ratio)
        log_rates = np.log(np.expm1(place * highest)) + _BEND - log_ratio
        terms = scaled_terms(log_rates, n_points)
        shares = scipy.linalg.lstsq(terms, np.ones(n_points), lapack_driver="gelsy", check_finite=False)[0]
        error = np.abs(scaled_terms(log_rates, 4 * n_points) @ shares - 1).max()
        if error <= RELATIVE_ERROR and shares.min() > 0:
            return log_rates, shares
    raise GameError(f"logits spread over {log_ratio:.0f}: no exponential sum reaches {RELATIVE_ERROR} on that range.")


@lru_cache(maxsize=128)
def _unit_interval_rule(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes x and masses on [0, 1] that integrate x^0 .. x^(n-1) to within the relative error of a sum."""
    log_rates, shares = exponential_terms(float(np.log(n)))
    if len(log_rates) < (n + 1) // 2:
        rates = np.exp(log_rates)
        return np.exp(-rates), shares * rates * np.exp(-rates)
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
        if not (value < torch.inf).all():
            raise GameError(f"{name} contains NaN or inf: give finite logits, or -inf for a concept that is masked.")
