"""What an attribution method is, and what it explains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from metagame.estimators import Estimate
from metagame.games import AttributionGame, GameError, Progress
from metagame.meta import MetaAttributions, meta_attributions


@dataclass(frozen=True)
class Explanation:
    """What a method says of one input, in the units of its attribution.

    Attributes:
        first_order: attribution of each target, ``(t,)``.
        matrix: second-order values, ``(t, n)``: row = target i, column = player j, entry j -> i.
        standard_error: of ``matrix``, where it was estimated with one.
        empty: phi_i(empty), ``(t,)``, where the targets are no players: row i sums to phi_i(N) - phi_i(empty).
        pairs: interactions of pairs of players, ``(t, n, n)``, symmetric, single players on the diagonal.
    """

    first_order: Float[np.ndarray, " t"] | None = None
    matrix: Float[np.ndarray, "t n"] | None = None
    standard_error: Float[np.ndarray, "t n"] | None = None
    empty: Float[np.ndarray, " t"] | None = None
    pairs: Float[np.ndarray, "t n n"] | None = None

    def __post_init__(self) -> None:
        for name, value in self.arrays().items():
            if not np.isfinite(value).all():
                raise GameError(f"{name} holds NaN or inf: check the attribution method on this input.")

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class FirstOrder(ABC):
    """A first-order attribution method: it attributes masked inputs, and that is a game.

    A subclass says how to attribute a batch of coalitions of one explicand (what a model's ``prepare`` returns); the
    attribution of the input itself and the metagame follow from it.

    Attributes:
        explicand_type: what it explains.
        endogenous: the players are the targets (tokens explain tokens); False where targets are no players.
    """

    explicand_type: ClassVar[type]
    endogenous: ClassVar[bool] = True

    @abstractmethod
    def game(self, explicand: Any) -> AttributionGame:
        """Coalition S -> phi_i(f_S) of every target i."""

    def explain(self, explicand: Any, progress: Progress | None = None) -> Explanation:
        """phi_i(N) of every target."""
        return Explanation(first_order=self.game(explicand).grand())


class Meta:
    """The meta-attributions of a first-order method, as a method.

    Args:
        method: the first-order method.
        estimator, budget, seed: as in :func:`metagame.meta.meta_attributions`.
        batch_size: the most coalitions that the method is given at once; None: as many as the method
            says, or all of them. Bounds memory only.
    """

    def __init__(
        self,
        method: FirstOrder,
        estimator: str | Callable[..., Estimate] = "exact",
        *,
        budget: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        self.method = method
        self.explicand_type = method.explicand_type
        self.estimator = estimator
        self.budget = budget
        self.seed = seed
        self.batch_size = batch_size

    def explain(self, explicand: Any, progress: Progress | None = None) -> Explanation:
        """phi_{j->i} of every player j on every target i."""
        phi = self.play(explicand, progress)
        return Explanation(phi.first_order, phi.values, phi.standard_error, None if phi.endogenous else phi.empty)

    def play(self, explicand: Any, progress: Progress | None = None, **settings: Any) -> MetaAttributions:
        """The metagame of one explicand; ``settings`` are those of order and index."""
        game = self.method.game(explicand)
        if self.batch_size is not None:
            game.batch_size = self.batch_size
        return meta_attributions(
            game,
            self.estimator,
            endogenous=self.method.endogenous,
            budget=self.budget,
            seed=self.seed,
            progress=progress,
            **settings,
        )


class MetaInteractions:
    """The order-2 metagame of a first-order method: the joint influence of pairs of players on each target.

    Args:
        meta: the metagame of order 1, whose method and estimator are used.
        index: of the interactions, see :func:`metagame.meta.meta_attributions`.

    Raises:
        GameError: the players of the method are its targets.
    """

    def __init__(self, meta: Meta, index: str = "ksv") -> None:
        if meta.method.endogenous:
            raise GameError("attribution.index needs a method whose targets are no players (patches, not tokens).")
        self.meta = meta
        self.explicand_type = meta.explicand_type
        self.index = index

    def explain(self, explicand: Any, progress: Progress | None = None) -> Explanation:
        """The interaction index of every pair of players on every target."""
        phi = self.meta.play(explicand, progress, order=2, index=self.index)
        return Explanation(phi.first_order, empty=phi.empty, pairs=phi.values)
