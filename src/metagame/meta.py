"""Meta-attributions: how player j influences the attribution of target i."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from metagame import indices
from metagame.errors import UserError
from metagame.estimators import ESTIMATORS, Estimator, Rules
from metagame.extras import needed_by
from metagame.games import AttributionGame, GameError, Progress

if TYPE_CHECKING:  # importing it takes seconds
    import shapiq

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class MetaAttributions:
    """Second-order values of one input, in the units of the attribution method (t targets, n players).

    :func:`meta_attributions` gives every number; methods that have second-order values by themselves, such as an
    interaction index, give ``values`` and what else they have.

    Attributes:
        values: ``(t, n)``: ``values[i, j]`` is the influence of player j on the attribution of target i (j -> i);
            endogenous games have phi_i({i}) on the diagonal. At order 2, ``(t, n, n)``: ``values[i, j, k]`` is the
            joint influence of players j and k on it, symmetric, the index of the single player where j = k; endogenous
            games have phi_i({i}) at [i, i, i], and 0 for other pairs with i. At order 3 ``(t, n, n, n)``, and so on.
            float64, or sympy's expressions.
        first_order: phi_i(N), ``(t,)``.
        empty: phi_i(empty), ``(t,)``.
        standard_error: shape of ``values``, or None where it is not known.
        error_note: why it is not known.
        endogenous: the players are the targets.
        order: the most players whose joint influence is told.
        index: name of the index from order 2 on, ``serial`` of an attribution of attributions; of a metagame of order
            1 None, or ``banzhaf``.
        n_evaluations: coalitions on which the attribution method ran.
        directed: entry (i, j) is the influence j -> i; False: it belongs to the unordered pair {i, j}, the matrix is
            symmetric, and the index of the single player stands on the diagonal.
        players: names of the players, ``n`` of them, where they are known.
        targets: names of the targets; with a ``grid`` each stands for all of its patches, in reading order.
        grid: rows and columns of patches, where the targets are patches of an image.
    """

    values: Shaped[np.ndarray, "t n ..."]
    first_order: Shaped[np.ndarray, " t"] | None = None
    empty: Shaped[np.ndarray, " t"] | None = None
    standard_error: np.ndarray | None = None
    error_note: str = ""
    endogenous: bool = True
    order: int = 1
    index: str | None = None
    n_evaluations: int = 0
    directed: bool = True
    players: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    grid: tuple[int, int] | None = None

    def __repr__(self) -> str:
        n_targets, n_players = self.values.shape[:2]
        kind = "endogenous" if self.endogenous else "exogenous"
        index = f", {self.index}" if self.index else ""
        return (
            f"MetaAttributions({kind}, order {self.order}{index}, {n_players} players, {n_targets} targets,"
            f" {self.n_evaluations} evaluations)"
        )

    def matrix(self) -> Shaped[np.ndarray, "t n"]:
        """The values at order 1.

        Raises:
            UserError: they are of another order.
        """
        if self.order != 1:
            raise UserError(
                f"values of order {self.order} are no matrix of single players: leave out attribution.order."
            )
        return self.values

    @property
    def residual(self) -> Shaped[np.ndarray, " t"]:
        """What the row sums miss of efficiency, ``(t,)``; 0 for an exact estimate (Corollary 1).

        Row sum - phi_i(N) for endogenous games, row sum - phi_i(N) + phi_i(empty) for exogenous ones. From order 2 on
        the "row" of a target has every set of players once, which gives 0 for ksv, stii and fsii only.

        Raises:
            GameError: the first-order attribution that rows would sum to is not known.
        """
        if self.first_order is None or (self.empty is None and not self.endogenous):
            raise GameError("these values have no residual: the first-order attribution is not known.")
        rows = sum(self.values[:, *entry] for entry in indices.sets_of_entries(self.values.shape[1], self.order))
        return rows - self.first_order + (0 if self.endogenous or self.empty is None else self.empty)

    def to_shapiq(self) -> list[shapiq.InteractionValues]:
        """One ``shapiq.InteractionValues`` per target: of order 1 (index SV) or more (the index played).

        Raises:
            GameError: the values are no metagame: rows of an interaction index are no Shapley values.
            UserError: shapiq is not installed.
        """
        if self.order == 1 and (not self.directed or self.index not in (None, "banzhaf")):
            raise GameError("only metagames can be given to shapiq target by target; these are values of pairs.")
        return [self._to_shapiq(target) for target in range(len(self.values))]

    def _to_shapiq(self, target: int) -> shapiq.InteractionValues:
        with needed_by("to_shapiq()"):
            import shapiq

        n = self.values.shape[1]
        baseline = 0.0 if self.endogenous or self.empty is None else float(self.empty[target])
        scores: dict[tuple[int, ...], float] = {(): baseline}
        for entry in indices.sets_of_entries(n, self.order):
            scores[tuple(sorted(set(entry)))] = float(self.values[target, *entry])
        return shapiq.InteractionValues(
            scores,
            index="SV" if self.index is None else "BV" if self.order == 1 else SHAPIQ_NAMES[self.index],
            n_players=n,
            min_order=0,
            max_order=self.order,
            baseline_value=baseline,
            estimated=self.standard_error is None or bool(np.any(self.standard_error)),
            estimation_budget=self.n_evaluations,
        )


SHAPIQ_NAMES = {"sii": "SII", "ksv": "k-SII", "stii": "STII", "fsii": "FSII", "banzhaf": "BII"}


def meta_attributions(
    game: AttributionGame,
    estimator: str | Estimator = "exact",
    endogenous: bool | None = None,
    budget: int | None = None,
    seed: int = 0,
    *,
    order: int = 1,
    index: str | None = None,
    progress: Progress | None = None,
) -> MetaAttributions:
    """Play the metagame of ``game``: Shapley values of its players, for every target (Definition 2).

    Args:
        game: maps coalitions to the attributions of all targets.
        estimator: ``exact``, ``permutation``, ``regression``, ``trees``, ``auto``, or a function that is called as they
            are.
        endogenous: the players are the targets: player i is fixed as present while the others play on phi_i, and
            phi_i({i}) stands on the diagonal. Otherwise all players play on phi_i and ``empty`` keeps phi_i(empty).
            None: endogenous when there are as many targets as players (logged).
        budget: the most coalitions to evaluate; None: all 2^n for ``exact``, else 64 per player.
        seed: of the sampling.
        order: 2 for the interaction ``index`` of pairs of players, 3 for that of triples, too, and so on. In an
            endogenous game those of the other players, with target i fixed as present (phi_{jk->i}).
        index: from order 2 on ``sii`` (also None), ``ksv``, ``stii``, ``fsii`` or ``banzhaf``. ``exact`` knows all, at
            any order; of exogenous games the approximations know ``sii`` and ``ksv`` at order 2, and
            ``regression`` ``fsii`` at any order. At order 1 these are all the Shapley value, but
            for ``banzhaf``: the Banzhaf value, by ``exact`` and ``trees``.
        progress: called with (coalitions evaluated, planned) after each batch.

    Raises:
        GameError: an argument is off, the budget is too small, n is too large for ``exact``, or the game is not finite.
    """
    play = _estimator(estimator)
    _check_settings(game, endogenous, budget, seed, order)
    if index is not None and index not in indices.INDICES:
        raise GameError(f"index={index!r} is unknown: choose one of {', '.join(indices.INDICES)}.")
    index = (index or "sii") if order > 1 else "banzhaf" if index == "banzhaf" else None
    before = game.n_evaluations
    guessed = endogenous is None
    if endogenous is None:
        endogenous = _guess_endogenous(game, order)
    playing = game.n_players - 1 if endogenous else game.n_players
    if order > max(playing, 1):
        besides = " besides the target" if endogenous else ""
        raise GameError(f"order={order} is above the number of players{besides}, {playing}: choose a lower one.")
    if endogenous and len(game.grand()) != game.n_players:
        raise GameError(
            f"endogenous=True needs as many targets as players; fn returned {len(game.grand())} targets for"
            f" {game.n_players} players: pass endogenous=False."
        )
    estimate = play(game, Rules(endogenous, order, index, budget, seed, progress))
    if guessed and endogenous and estimate.empty.any():
        warnings.warn(
            f"The {game.n_players} targets were taken for the players, since they are as many, but phi(empty) is not 0:"
            " pass endogenous=False where they are others, or endogenous=True.",
            stacklevel=2,
        )
    return MetaAttributions(
        values=estimate.values,
        first_order=estimate.first_order,
        empty=estimate.empty,
        standard_error=estimate.standard_error,
        error_note=estimate.error_note,
        endogenous=endogenous,
        order=order,
        index=index,
        n_evaluations=game.n_evaluations - before,
    )


def _check_settings(game: AttributionGame, endogenous: bool | None, budget: int | None, seed: int, order: int) -> None:
    if not isinstance(game, AttributionGame):
        raise GameError(f"game is a {type(game).__name__}: give an AttributionGame(fn, n_players).")
    if endogenous not in (None, True, False):
        raise GameError(f"endogenous={endogenous!r}: give True, False or None.")
    if budget is not None and not isinstance(budget, Integral):
        raise GameError(f"budget={budget!r} must be an integer number of coalitions, or None.")
    if not isinstance(order, Integral) or order < 1:
        raise GameError(f"order={order!r} must be a positive integer.")
    if not isinstance(seed, Integral) or seed < 0:
        raise GameError(f"seed={seed!r} must be a non-negative integer.")


def _estimator(estimator: str | Estimator) -> Estimator:
    if not isinstance(estimator, str) and callable(estimator):
        return estimator
    if not isinstance(estimator, str) or estimator not in ESTIMATORS:
        raise GameError(f"estimator={estimator!r} is unknown: choose one of {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[estimator]


def _guess_endogenous(game: AttributionGame, order: int) -> bool:
    if order > 1:
        return False
    n_targets = len(game.grand())
    endogenous = n_targets == game.n_players
    kind = "endogenous" if endogenous else "exogenous"
    log.info("endogenous=None: %d players and %d targets, played as %s.", game.n_players, n_targets, kind)
    return endogenous
