"""Meta-attributions: how player j influences the attribution of target i."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, overload

import numpy as np
from jaxtyping import Shaped, UInt8

from metagame import indices
from metagame.errors import UserError
from metagame.estimators import ESTIMATORS, Estimator, Rules
from metagame.extras import needed_by
from metagame.games import AttributionGame, GameError, Progress, check_target_names
from metagame.handles.pairs import Pair, top_pairs

if TYPE_CHECKING:  # importing them takes seconds
    import pandas
    import shapiq
    import xarray
    from matplotlib.axes import Axes

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
        method: name of the attribution method, where it is known.
        output: what of the model is attributed, such as a language model's answer, where it is known.
        picture: the image whose patches they are, where it is known.

    Raises:
        UserError: the shapes of the arrays, or the number of players or targets, do not fit each other or the order.
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

    method: str = ""
    output: str = ""
    picture: UInt8[np.ndarray, "H W 3"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.order, Integral) or self.order < 1 or self.values.ndim != self.order + 1:
            raise UserError(
                f"values of shape {self.values.shape} do not fit order={self.order!r}: give an axis of targets, then as"
                " many axes of players as the order."
            )
        n_targets, n_players = self.values.shape[:2]
        for name, shape in {
            "first_order": (n_targets,),
            "empty": (n_targets,),
            "standard_error": self.values.shape,
        }.items():
            found = vars(self)[name]
            if found is not None and found.shape != shape:
                raise UserError(
                    f"{name} has shape {found.shape}, but values of shape {self.values.shape} need {shape}."
                )
        if self.players is not None and len(self.players) != n_players:
            raise UserError(f"players has {len(self.players)} names for {n_players} players: give one for each.")
        check_target_names(self.targets, self.grid, n_targets)

    def __repr__(self) -> str:
        return "\n  ".join([f"MetaAttributions({self.summary})", *self._findings()])

    @property
    def summary(self) -> str:
        """What was attributed and played, in one line."""
        n_targets, n_players = self.values.shape[:2]
        kind = "endogenous" if self.endogenous else "exogenous"
        parts = [self.method, kind, f"order {self.order}", self.index or "", f"{n_players} players"]
        return ", ".join(filter(None, [*parts, f"{n_targets} targets", f"{self.n_evaluations} evaluations"]))

    def _findings(self) -> list[str]:
        """The strongest pairs and the residual, where they are known numbers."""
        if self.values.dtype == object:
            return []
        lines = [f"output: {shorten(self.output, 90)}"] if self.output else []
        if not np.isfinite(self.values).all():
            return [*lines, "some values are NaN or infinite"]
        lines.append("strongest: " + ("; ".join(map(str, self.top_pairs(3))) or "none"))
        if self.first_order is not None and (self.endogenous or self.empty is not None):
            lines.append(f"residual: at most {np.abs(self.residual).max():.1e}")
        return lines

    def _repr_html_(self) -> str:
        """For notebooks."""
        from metagame.handles.html import as_html

        return as_html(self)

    def top_pairs(self, k: int = 10) -> list[Pair]:
        """The ``k`` influences of largest size, the largest first: of a player, or set of players, on a target.

        Zeros are left out, and so is a player's influence on itself in an endogenous game.

        Raises:
            UserError: ``k`` is not positive, or the values are formulas, NaN or infinite.
        """
        return top_pairs(self, k)

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each player, or set of players, and target: their names, ``value`` and ``standard_error``.

        Columns are ``target`` (with a grid ``row`` and ``column``, from 0), ``player`` (from order 2 on ``player_1``,
        ``player_2``, ..., of which the last is repeated where the set has fewer) and the numbers.

        Raises:
            UserError: pandas is not installed.
        """
        from metagame.handles.tables import to_dataframe

        return to_dataframe(self)

    def to_xarray(self) -> xarray.Dataset:
        """``values``, ``standard_error``, ``first_order`` and ``empty``, by the names of targets and players.

        With a grid the dimensions of a target are ``target``, ``row`` and ``column``.

        Raises:
            UserError: xarray is not installed.
        """
        from metagame.handles.tables import to_xarray

        return to_xarray(self)

    def plot(
        self, axes: Axes | None = None, kind: str | None = None, *, top: int | None = None, limit: float | None = None
    ) -> Axes:
        """Draw the values of order 1, and return the Axes.

        Args:
            axes: of matplotlib, to draw on; None: of a new figure.
            kind: ``matrix``; ``arrows`` from players to targets, the strongest ones; or ``maps``, a heat map of the
                image's patches for each player. None: ``maps`` where the targets are patches, else ``matrix``.
            top: of ``arrows``: how many, or of an image how many patches for each player; None: 10.
            limit: the size of a value at which the scale ends, so that several drawings can be compared; None: the
                largest one.

        Raises:
            UserError: matplotlib is not installed, the kind is unknown, the values are not of such a kind, or
                ``top`` or ``limit`` is off, or would change nothing.
        """
        from metagame.handles.drawings import draw

        return draw(self, axes, kind, top, limit)

    def save(self, path: str | Path) -> None:
        """Write everything to one npz file, arrays beside a text in JSON; :meth:`load` reads it. Nothing is pickled.

        Raises:
            UserError: the values are formulas, or the file cannot be written.
        """
        from metagame.handles.files import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> MetaAttributions:
        """What :meth:`save` has written.

        Raises:
            UserError: there is no such file, it is damaged, or of another version.
        """
        from metagame.handles.files import load

        return load(path)

    def matrix(self) -> Shaped[np.ndarray, "t n"]:
        """The values at order 1.

        Raises:
            UserError: they are of another order.
        """
        if self.order != 1:
            raise UserError(
                f"values of order {self.order} are not a matrix of single players: leave out attribution.order."
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
            raise GameError(
                "to_shapiq() needs a metagame, which has values for each target, but these are values of pairs."
            )
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


@overload
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
) -> MetaAttributions: ...


@overload
def meta_attributions(
    game: Sequence[AttributionGame],
    estimator: str | Estimator = "exact",
    endogenous: bool | None = None,
    budget: int | None = None,
    seed: int = 0,
    *,
    order: int = 1,
    index: str | None = None,
    progress: Progress | None = None,
) -> list[MetaAttributions]: ...


def meta_attributions(
    game: AttributionGame | Sequence[AttributionGame],
    estimator: str | Estimator = "exact",
    endogenous: bool | None = None,
    budget: int | None = None,
    seed: int = 0,
    *,
    order: int = 1,
    index: str | None = None,
    progress: Progress | None = None,
) -> MetaAttributions | list[MetaAttributions]:
    """Play the metagame of ``game``: Shapley values of its players, for every target (Definition 2).

    Args:
        game: maps coalitions to the attributions of all targets. Of a list of games, one for each input, all are
            played with the same settings, and a list is returned.
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
        progress: called with (coalitions evaluated, planned) after each batch; of a list with those of all games, where
            one that has not begun is taken to plan as many as the present one. See :func:`metagame.progress_bar`.

    Raises:
        GameError: an argument is off, the budget is too small, n is too large for ``exact``, or the game is not finite.
    """
    settings = (estimator, endogenous, budget, seed, order, index)
    if isinstance(game, Sequence):
        return _play_each(game, settings, progress)
    return _play(game, *settings, progress)


def _play_each(games: Sequence[AttributionGame], settings: tuple, progress: Progress | None) -> list[MetaAttributions]:
    """One result for each game; an error names the game."""
    found, evaluated = [], 0
    for number, game in enumerate(games):
        overall = None if progress is None else _overall(progress, evaluated, len(games) - number)
        try:
            found.append(_play(game, *settings, overall))
        except GameError as error:
            raise GameError(f"game[{number}]: {error}") from error
        evaluated += found[-1].n_evaluations
    return found


def _overall(progress: Progress, evaluated: int, n_left: int) -> Progress:
    """Progress of the present game, as that of all; a second phase of it, such as fitting trees, is not counted."""
    last = 0

    def tell(done: int, planned: int) -> None:
        nonlocal last
        if done > last:
            last = done
            progress(evaluated + done, evaluated + max(done, planned) * n_left)

    return tell


def _play(
    game: AttributionGame,
    estimator: str | Estimator,
    endogenous: bool | None,
    budget: int | None,
    seed: int,
    order: int,
    index: str | None,
    progress: Progress | None,
) -> MetaAttributions:
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
        raise GameError(f"order={order} exceeds the number of players{besides}, {playing}: choose a lower order.")
    if endogenous and len(game.grand()) != game.n_players:
        raise GameError(
            f"endogenous=True needs as many targets as players, but fn returned {len(game.grand())} targets for"
            f" {game.n_players} players: pass endogenous=False."
        )
    estimate = play(game, Rules(endogenous, order, index, budget, seed, progress))
    if guessed and endogenous and estimate.empty.any():
        warnings.warn(
            f"There are as many targets as players, {game.n_players}, so the targets were taken to be the"
            " players, but phi(empty) is not 0: pass endogenous=False if they are not, or endogenous=True if"
            " they are.",
            stacklevel=3,
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
        players=game.players,
        targets=game.players if game.targets is None and game.grid is None and endogenous else game.targets,
        grid=game.grid,
    )


def _check_settings(game: AttributionGame, endogenous: bool | None, budget: int | None, seed: int, order: int) -> None:
    if not isinstance(game, AttributionGame):
        raise GameError(f"game is of type {type(game).__name__}: give an AttributionGame(fn, n_players).")
    if endogenous not in (None, True, False):
        raise GameError(f"endogenous={endogenous!r} must be True, False or None.")
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
