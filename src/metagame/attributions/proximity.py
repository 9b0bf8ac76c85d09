"""Closeness in the text as a score of pairs: a baseline that does not use the model."""

from __future__ import annotations

import zlib

import numpy as np

from metagame.contracts import Explanation, Method
from metagame.games import Progress
from metagame.meta import MetaAttributions
from metagame.models.masked import MaskedModel


class Proximity(Method[MaskedModel]):
    """1 / (1 + |i - j|) for each pair of features, ``(n, n)``, symmetric; equally close pairs are in random order.

    Args:
        seed: random seed for the order, together with the names of the features.
    """

    input_type = MaskedModel

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def explain(self, bound: MaskedModel, progress: Progress | None = None) -> Explanation:
        """The closeness of every pair of features."""
        n = bound.n_players
        places = np.arange(n)
        closeness = 1 / (1 + np.abs(places[:, None] - places))
        rng = np.random.default_rng([self.seed, zlib.crc32("\0".join(bound.players).encode())])
        order = np.triu(rng.uniform(size=(n, n)), 1) / (2 * n * n)  # less than what sets two distances apart
        meta = MetaAttributions(
            closeness + order + order.T, players=bound.players, targets=bound.targets, grid=bound.grid, directed=False
        )
        return Explanation(bound.players, bound.targets, bound.grid, meta=meta)
