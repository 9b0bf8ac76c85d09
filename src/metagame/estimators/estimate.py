"""What an estimator is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from metagame.games import AttributionGame, GameError, Progress

EVALUATIONS_PER_PLAYER = 64
LEAST_FOR_ERROR = 8
"""Coalitions for each player, below which no standard error is given."""
TWO_SIGMA = 0.97724986805182
"""What lies below two standard deviations of a normal distribution."""


@dataclass(frozen=True)
class Rules:
    """How a metagame is played, and what an estimator may spend on it; see :func:`metagame.meta.meta_attributions`.

    Attributes:
        endogenous: whether the players are the targets.
        order: the largest number of players in a set, for the ``index``.
        index: from order 2 on; at order 1 None for the Shapley value, or ``banzhaf``.
        budget: the maximum number of coalitions to evaluate; if None, the estimator chooses.
        seed: random seed for the sampling.
        progress: called with (coalitions evaluated, planned) after each batch. ``trees`` and ``auto`` then call it with
            (targets fitted, all targets).
    """

    endogenous: bool
    order: int = 1
    index: str | None = None
    budget: int | None = None
    seed: int = 0
    progress: Progress | None = None


@dataclass(frozen=True)
class Estimate:
    """Meta-attributions of one game, as an estimator computed them (t targets, n players).

    Attributes:
        values: ``(t, n)``, ``(t, n, n)`` for order 2, and so on; see :class:`metagame.meta.MetaAttributions`.
        first_order: phi_i(N), ``(t,)``.
        empty: phi_i(empty), ``(t,)``.
        standard_error: shape of ``values``; None if it is not known. Zero if nothing was sampled.
        error_note: why the standard error is not known.
    """

    values: Float[np.ndarray, "t n ..."]
    first_order: Float[np.ndarray, " t"]
    empty: Float[np.ndarray, " t"]
    standard_error: np.ndarray | None = None
    error_note: str = ""


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


def too_few_for_an_error(n_players: int, budget: int) -> str:
    """Why a budget is too small for a standard error; empty where it is not: with fewer, 2 of them cover too little."""
    least = LEAST_FOR_ERROR * n_players
    return "" if budget >= least else f"a standard error needs a budget of {least} coalitions, 8 for each player"


def t_factor(n_samples: int) -> float:
    """What makes 2 standard errors of a mean cover as much with few samples as with many (Student's t)."""
    from scipy.special import stdtrit  # here, since importing it takes as long as all of metagame

    return float(stdtrit(n_samples - 1, TWO_SIGMA)) / 2


@dataclass(frozen=True)
class Scope:
    """What an approximation estimates beside Shapley values.

    Attributes:
        singles: indices of order 1.
        pairs: indices of order 2, in exogenous games.
        sets: those of ``pairs`` that it estimates at any order.
    """

    singles: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()

    def offers(self, rules: Rules) -> bool:
        """Whether a game can be played by these rules."""
        if rules.order == 1:
            return rules.index in (None, *self.singles)
        return not rules.endogenous and rules.index in (self.pairs if rules.order == 2 else self.sets)


SCOPES = {
    "auto": Scope(),
    "permutation": Scope(pairs=("sii", "ksv")),
    # not sii and ksv of triples: shapiq's KernelSHAP-IQ is far off even with nine tenths of all coalitions
    "regression": Scope(pairs=("sii", "ksv", "fsii"), sets=("fsii",)),
    "trees": Scope(singles=("banzhaf",), pairs=("sii", "ksv")),
}


def approximations(rules: Rules) -> tuple[str, ...]:
    """The approximations that play by these rules, quoted."""
    return tuple(repr(name) for name, scope in SCOPES.items() if scope.offers(rules))


def require_scope(estimator: str, rules: Rules) -> None:
    """Raise GameError for what is beyond the :class:`Scope` of an approximation."""
    scope = SCOPES[estimator]
    if scope.offers(rules):
        return
    needed = listed(("'exact'", *approximations(rules)))
    if rules.order > 1 and rules.endogenous:
        raise GameError(f"order={rules.order} of an endogenous game needs estimator={needed}, not {estimator!r}.")
    most = 2 if scope.pairs else 1
    if rules.order > most and rules.index not in scope.sets:
        raise GameError(f"order={rules.order} needs estimator={needed}: {estimator!r} has orders up to {most}.")
    given = "the Shapley value" if rules.order == 1 else f"index={listed(tuple(map(repr, scope.pairs)))}"
    raise GameError(f"index={rules.index!r} needs estimator={needed}: estimator={estimator!r} gives {given} only.")


def listed(names: Sequence[str]) -> str:
    """The names with commas, and an "or" in front of the last."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
