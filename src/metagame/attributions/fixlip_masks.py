"""Masks of patches for FIxLIP: equally many of every size, none twice, each with its complement."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Bool

from metagame.errors import UserError

LEAST_PAIRS = 2
"""Pairs of a size that is not enumerated, whose spread says how uncertain its mean is."""
_LISTED = 4
"""A size's masks are listed and chosen from where they are at most this many times as many as are wanted."""


def paired_masks(n_patches: int, budget: int, seed: int) -> Bool[np.ndarray, "a {n_patches}"]:
    """At most ``budget`` distinct masks of P patches: the empty one, then pairs of complements, then the full one.

    The first of a pair has half the patches at most, and each number of them, 1 to P/2, has equally many pairs: all
    that there are, or a sample without replacement.

    Raises:
        UserError: the budget has no two pairs for each size.
    """
    capacities = [n_pairs(n_patches, size) for size in range(1, n_patches // 2 + 1)]
    least = 2 + 2 * sum(min(LEAST_PAIRS, capacity) for capacity in capacities)
    if budget < least:
        raise UserError(f"design.budget={budget} is too few for {n_patches} patches: give at least {least}.")
    rng = np.random.default_rng(seed)
    counts = _equal_shares(capacities, (budget - 2) // 2)
    smaller = [_masks_of_size(rng, n_patches, size, count) for size, count in enumerate(counts, 1)]
    masks = np.concatenate([np.zeros((0, n_patches), bool), *smaller])
    pairs = np.stack([masks, ~masks], axis=1).reshape(-1, n_patches)
    return np.concatenate([np.zeros((1, n_patches), bool), pairs, np.ones((1, n_patches), bool)])


def n_pairs(n_patches: int, size: int) -> int:
    """How many pairs of complements there are with ``size`` patches, at most half of them, in one of the two."""
    return comb(n_patches, size) // (2 if 2 * size == n_patches else 1)


def _equal_shares(capacities: list[int], total: int) -> list[int]:
    """Shares of a total that differ by one at most, except where a capacity is smaller."""
    shares = [0] * len(capacities)
    smallest_first = sorted(range(len(capacities)), key=capacities.__getitem__)
    for done, place in enumerate(smallest_first):
        shares[place] = min(capacities[place], total // (len(capacities) - done))
        total -= shares[place]
    return shares


def _masks_of_size(
    rng: np.random.Generator, n_patches: int, size: int, count: int
) -> Bool[np.ndarray, "{count} {n_patches}"]:
    """Distinct masks of a size, drawn uniformly; of half the patches those that have the first one."""
    capacity = n_pairs(n_patches, size)
    if capacity <= _LISTED * count:
        masks = all_of_size(n_patches, size)[:capacity]  # those that have the first patch come first
        return masks[rng.permutation(capacity)[:count]]
    found: dict[bytes, np.ndarray] = {}
    while len(found) < count:
        drawn = rng.permuted(np.broadcast_to(np.arange(n_patches) < size, (count, n_patches)), axis=1)
        if 2 * size == n_patches:
            drawn ^= ~drawn[:, :1]
        for mask in drawn[: count - len(found)]:
            found[mask.tobytes()] = mask
    return np.stack(list(found.values()))


def all_of_size(n: int, size: int) -> Bool[np.ndarray, "c {n}"]:
    """All coalitions of ``size`` of n players, in lexicographic order of their members."""
    members = np.array(list(combinations(range(n), size)))
    present = np.zeros((len(members), n), bool)
    present[np.arange(len(members))[:, None], members] = True
    return present
