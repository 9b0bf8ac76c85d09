"""Interactions at random: what every other method must beat."""

from __future__ import annotations

import zlib

import numpy as np

from metagame.attributions.method import Explanation
from metagame.games import Progress
from metagame.models.masked import MaskedModel


class RandomPairs:
    """``matrix`` ``(n, n)`` of independent standard normal numbers; they mean nothing.

    Args:
        seed: of the numbers, with the input itself.
    """

    explicand_type = MaskedModel

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def explain(self, explicand: MaskedModel, progress: Progress | None = None) -> Explanation:
        n = explicand.n_players
        own = zlib.crc32(explicand.x.detach().cpu().numpy().tobytes())
        return Explanation(matrix=np.random.default_rng([self.seed, own]).normal(size=(n, n)))
