"""Random interactions: what every other method must beat."""

from __future__ import annotations

import zlib

import numpy as np

from metagame.contracts import Explanation, Method
from metagame.games import Progress
from metagame.meta import MetaAttributions
from metagame.models.masked import MaskedModel


class RandomPairs(Method[MaskedModel]):
    """Independent standard normal numbers, ``(n, n)``, without a meaning.

    Args:
        seed: random seed for the numbers, together with the input itself.
    """

    input_type = MaskedModel

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def explain(self, bound: MaskedModel, progress: Progress | None = None) -> Explanation:
        """A number for every ordered pair of features; the same input gets the same numbers."""
        n = bound.n_players
        own = zlib.crc32(bound.x.detach().cpu().numpy().tobytes())
        values = np.random.default_rng([self.seed, own]).normal(size=(n, n))
        meta = MetaAttributions(values, players=bound.players, targets=bound.targets, grid=bound.grid)
        return Explanation(bound.players, bound.targets, bound.grid, meta=meta)
