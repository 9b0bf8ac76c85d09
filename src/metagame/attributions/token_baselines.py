"""Relevances of tokens that do not use the model: what every first-order method must beat."""

from __future__ import annotations

import zlib

import numpy as np

from metagame.contracts import Explanation, Method
from metagame.games import Progress
from metagame.models.masked import MaskedModel


class RandomTokens(Method[MaskedModel]):
    """Independent standard normal numbers, one for each feature, without a meaning.

    Args:
        seed: random seed for the numbers, together with the input itself.
    """

    input_type = MaskedModel

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def explain(self, bound: MaskedModel, progress: Progress | None = None) -> Explanation:
        """A number for each feature; the same input gets the same numbers."""
        own = zlib.crc32(bound.x.detach().cpu().numpy().tobytes())
        values = np.random.default_rng([self.seed, own]).normal(size=bound.n_players)
        return Explanation(bound.players, bound.targets, bound.grid, attribution=values)


class Recency(Method[MaskedModel]):
    """1 / (n - i) for feature i = 0, ..., n-1: later features get more; positive, without a unit."""

    input_type = MaskedModel

    def explain(self, bound: MaskedModel, progress: Progress | None = None) -> Explanation:
        """The closeness of every feature to the end."""
        return Explanation(bound.players, bound.targets, bound.grid, attribution=1 / np.arange(bound.n_players, 0, -1))
