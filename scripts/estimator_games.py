"""Games of known Shapley values, on which estimators are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from metagame import AttributionGame, indices
from metagame.estimators.exact import endogenous_index
from metagame.games import Coalitions, all_coalitions


@dataclass(frozen=True)
class KnownGame:
    """A game, and its exact meta-attributions ``(t, n)``."""

    values: Callable[[Coalitions], np.ndarray]
    exact: np.ndarray
    endogenous: bool = False

    def play(self) -> AttributionGame:
        return AttributionGame(self.values, self.exact.shape[1])

    def error(self, found: np.ndarray) -> float:
        """Norm of the difference over that of the exact values, off the diagonal of an endogenous game."""
        counts = ~np.eye(len(found), dtype=bool) if self.endogenous else np.ones(found.shape, bool)
        return float(np.linalg.norm((found - self.exact)[counts]) / np.linalg.norm(self.exact[counts]))


def conjunctions(n: int, subsets: list[np.ndarray], coefficients: np.ndarray) -> KnownGame:
    """A sum of games that are c where all of a subset are present: c/|T| for each of its players."""
    phi = np.zeros(n)
    for subset, coefficient in zip(subsets, coefficients, strict=True):
        phi[subset] += coefficient / len(subset)

    def values(coalitions: Coalitions) -> np.ndarray:
        present = np.stack([coalitions[:, subset].all(1) for subset in subsets], axis=1)
        return (present @ coefficients)[:, None]

    return KnownGame(values, phi[None])


def parity(n: int, subset: np.ndarray) -> KnownGame:
    """Whether an odd number of the players of a subset, whose size is odd, is present."""
    phi = np.zeros(n)
    phi[subset] = 1 / len(subset)
    return KnownGame(lambda coalitions: coalitions[:, subset].sum(1, keepdims=True) % 2.0, phi[None])


def enumerated(n: int, function: Callable[[np.ndarray], np.ndarray]) -> KnownGame:
    """A function of z = 1 for members and 0 for others, whose Shapley values are computed from all coalitions."""
    exact = indices.shapley(function(all_coalitions(n).astype(float))[:, None], n).T
    return KnownGame(lambda coalitions: function(coalitions.astype(float))[:, None], exact)


def endogenous(table: np.ndarray) -> KnownGame:
    """A game whose players are its targets, from all its values ``(2**n, n)``."""
    bits = 1 << np.arange(table.shape[1])
    return KnownGame(lambda coalitions: table[coalitions @ bits], endogenous_index(table), endogenous=True)


def layer(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rng.normal(size=(n, 8)), rng.normal(size=8), rng.normal(size=8)


def sparse(rng: np.random.Generator, n: int) -> KnownGame:
    """40 conjunctions of up to 4 players for 30 players."""
    subsets = [rng.choice(n, rng.integers(1, 5), replace=False) for _ in range(40 * n // 30)]
    return conjunctions(n, subsets, rng.normal(size=len(subsets)))


def games(seed: int) -> Iterator[tuple[str, KnownGame]]:
    """One of each kind, drawn anew for each seed."""
    yield "sparse, 30 players", sparse(np.random.default_rng(seed), 30)
    yield "sparse, 60 players", sparse(np.random.default_rng(seed), 60)
    rng = np.random.default_rng(seed)
    yield "three ANDs of 8", conjunctions(30, [rng.choice(30, 8, replace=False) for _ in range(3)], np.ones(3))
    yield "parity of 7", parity(30, np.random.default_rng(seed).choice(30, 7, replace=False))
    w, b, a = layer(np.random.default_rng(seed), 20)
    yield "a layer of ReLU", enumerated(20, lambda z: np.maximum(z @ w + b, 0) @ a)
    yield "a layer of tanh", enumerated(20, lambda z: np.tanh((z - 0.5) @ w / 2 + b / 2) @ a)
    yield "largest of 8", enumerated(20, lambda z: ((z - 0.5) @ w).max(1))
    rng, z = np.random.default_rng(seed), all_coalitions(16)
    layers = [layer(rng, 16) for _ in range(16)]
    hidden = [np.tanh((z - 0.5) @ w / 2 + b / 2) @ a for w, b, a in layers]
    yield "tanh, endogenous", endogenous(np.stack(hidden, axis=1))
