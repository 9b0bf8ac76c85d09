"""What an estimator is told, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from metagame.games import AttributionGame, GameError, Progress

EVALUATIONS_PER_PLAYER = 64


@dataclass(frozen=True)
class Rules:
    """How a metagame is played, and what an estimator may spend on it; see :func:`metagame.meta.meta_attributions`.

    Attributes:
        endogenous: the players are the targets.
        order: 2 for the ``index`` of pairs of players.
        index: of order 2.
        budget: the most coalitions to evaluate; None: the estimator's own choice.
        seed: of the sampling.
        progress: called with (coalitions evaluated, planned) after each batch.
    """

    endogenous: bool
    order: int = 1
    index: str = "sii"
    budget: int | None = None
    seed: int = 0
    progress: Progress | None = None


@dataclass(frozen=True)
class Estimate:
    """Meta-attributions of one game, as an estimator found them (t targets, n players).

    Attributes:
        values: ``(t, n)``, or ``(t, n, n)`` for order 2; see :class:`metagame.meta.MetaAttributions`.
        first_order: phi_i(N), ``(t,)``.
        empty: phi_i(empty), ``(t,)``.
        standard_error: shape of ``values``; None where the estimator has none. Zero where nothing was sampled.
    """

    values: Float[np.ndarray, "t n"] | Float[np.ndarray, "t n n"]
    first_order: Float[np.ndarray, " t"]
    empty: Float[np.ndarray, " t"]
    standard_error: np.ndarray | None = None


Estimator = Callable[[AttributionGame, Rules], Estimate]
"""Plays a game by the rules."""


def settle_budget(estimator: str, budget: int | None, least: int, n_players: int) -> int:
    """The budget to play with: as given, or 64 coalitions per player, at most 2^n and at least ``least``.

    Raises GameError where ``budget`` is fewer coalitions than the ``least`` that ``estimator`` needs.
    """
    if budget is None:
        return max(least, min(EVALUATIONS_PER_PLAYER * n_players, 1 << n_players))
    if budget < least:
        raise GameError(
            f"budget={budget} is too small for estimator={estimator!r}: it needs at least {least} coalitions."
        )
    return budget


def require_sii(estimator: str, index: str) -> None:
    """Raise GameError for an order-2 index that only exact enumeration offers."""
    if index != "sii":
        raise GameError(f"index={index!r} needs estimator='exact': estimator={estimator!r} gives index='sii' only.")
