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


@dataclass(frozen=True, repr=False, eq=False)
class MetaAttributions:
    """Second-order values of one input, in the units of the attribution method (t targets, n players).

    :func:`meta_attributions` gives every number. Methods that have second-order values by themselves, such as an
    interaction index, give ``values`` and whatever else they have.

    Attributes:
        values: ``(t, n)``: ``values[i, j]`` is the influence of player j on the attribution of target i (j -> i);
            endogenous games have phi_i({i}) on the diagonal. At order 2, ``(t, n, n)``: ``values[i, j, k]`` is the
            joint influence of players j and k on target i. It is symmetric, with the index of the single player where
            j = k; endogenous games have phi_i({i}) at [i, i, i], and 0 for other pairs with i. At order 3
            ``(t, n, n, n)``, and so on. float64, or sympy expressions.
        first_order: phi_i(N), ``(t,)``.
        empty: phi_i(empty), ``(t,)``.
        standard_error: shape of ``values``; None if it is not known.
        error_note: why the standard error is not known.
        endogenous: whether the players are the targets.
        order: the largest number of players whose joint influence is given.
        index: name of the index from order 2 on; ``serial`` for an attribution of attributions; for a metagame of
            order 1, None or ``banzhaf``.
        n_evaluations: number of coalitions on which the attribution method ran.
        directed: if True, entry (i, j) is the influence j -> i. If False, it belongs to the unordered pair {i, j}, the
            matrix is symmetric, and the index of the single player is on the diagonal.
        players: names of the ``n`` players, if known.
        targets: names of the targets; with a ``grid``, each name stands for all patches of the grid, in reading order.
        grid: number of rows and columns of patches, if the targets are patches of an image.
        method: name of the attribution method, if known.
        output: the model output that is attributed, such as a language model's answer, if known.
        picture: the image that the patches belong to, if known.

    Raises:
        UserError: the shapes of the arrays, or the number of players or targets, do not match each other or the order.
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
        for name in ("values", "first_order", "empty", "standard_error"):
            array = vars(self)[name]
            if not isinstance(array, np.ndarray) and (array is not None or name == "values"):
                raise UserError(f"{name} is of type {type(array).__name__}: give a numpy array.")
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
        for name in ("players", "targets"):
            if vars(self)[name] is not None:
                object.__setattr__(self, name, tuple(map(str, vars(self)[name])))  # lists and arrays, too
        if self.players is not None and len(self.players) != n_players:
            raise UserError(f"players has {len(self.players)} names for {n_players} players: give one for each.")
        check_target_names(self.targets, self.grid, n_targets)

    def __repr__(self) -> str:
        return "\n  ".join([f"MetaAttributions({self.summary})", *self._findings()])

    @property
    def summary(self) -> str:
        """The attribution method and the settings of the game, in one line."""
        n_targets, n_players = self.values.shape[:2]
        kind = "endogenous" if self.endogenous else "exogenous"
        parts = [self.method, kind, f"order {self.order}", self.index or "", f"{n_players} players"]
        evaluations = f"{self.n_evaluations} evaluations" if self.n_evaluations else ""  # else none were counted
        return ", ".join(filter(None, [*parts, f"{n_targets} targets", evaluations]))

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
        """The ``k`` influences with the largest absolute values, in descending order.

        Each is the influence of a player, or of a set of players, on a target. Zeros are left out, and so is a player's
        influence on itself in an endogenous game.

        Raises:
            UserError: ``k`` is not positive, or the values are formulas, NaN or infinite.
        """
        return top_pairs(self, k)

    def to_dataframe(self) -> pandas.DataFrame:
        """A DataFrame with one row for each target and each player or set of players.

        The columns are ``target`` (with a grid also ``row`` and ``column``, counted from 0), ``player``, ``value`` and
        ``standard_error``. From order 2 on, ``player_1``, ``player_2``, ... replace ``player``; the last player is
        repeated if a set has fewer players.

        Raises:
            UserError: pandas is not installed.
        """
        from metagame.handles.tables import to_dataframe

        return to_dataframe(self)

    def to_xarray(self) -> xarray.Dataset:
        """``values``, ``standard_error``, ``first_order`` and ``empty``, indexed by the names of targets and players.

        With a grid, the targets have the dimensions ``target``, ``row`` and ``column``.

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
            axes: matplotlib Axes to draw on; if None, those of a new figure.
            kind: ``matrix``; ``arrows``, which draws the strongest influences as arrows from players to targets; or
                ``maps``, a heat map of the image's patches for each player. If None, ``maps`` if the targets are
                patches, else ``matrix``.
            top: for ``arrows``, the number of arrows; for an image, the number of patches for each player. If None, 10.
            limit: the absolute value at which the scale ends, so that several drawings can be compared. If None, the
                largest one.

        Raises:
            UserError: matplotlib is not installed, the kind is unknown or does not fit the values, or ``top`` or
                ``limit`` is invalid or would have no effect.
        """
        from metagame.handles.drawings import draw

        return draw(self, axes, kind, top, limit)

    def save(self, path: str | Path) -> None:
        """Write everything to one npz file, as arrays and JSON text; :meth:`load` reads it. Nothing is pickled.

        Raises:
            UserError: the values are formulas, or the file cannot be written.
        """
        from metagame.handles.files import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> MetaAttributions:
        """Read a file that :meth:`save` has written.

        Raises:
            UserError: the file does not exist, is damaged, or has another version.
        """
        from metagame.handles.files import load

        return load(path)

    def matrix(self) -> Shaped[np.ndarray, "t n"]:
        """The values, if they are of order 1.

        Raises:
            UserError: the values are of another order.
        """
        if self.order != 1:
            raise UserError(
                f"values of order {self.order} are not a matrix of single players: leave out attribution.order."
            )
        return self.values

    @property
    def residual(self) -> Shaped[np.ndarray, " t"]:
        """How far the row sums are from efficiency, ``(t,)``; 0 for an exact estimate (Corollary 1).

        Row sum - phi_i(N) for endogenous games, row sum - phi_i(N) + phi_i(empty) for exogenous ones. From order 2 on,
        the sum over a target's "row" counts every set of players once; the residual is then 0 only for ksv, stii and
        fsii.

        Raises:
            GameError: the first-order attribution that rows would sum to is not known.
        """
        if self.first_order is None or (self.empty is None and not self.endogenous):
            raise GameError("these values have no residual: the first-order attribution is not known.")
        rows = sum(self.values[:, *entry] for entry in indices.sets_of_entries(self.values.shape[1], self.order))
        return rows - self.first_order + (0 if self.endogenous or self.empty is None else self.empty)

    def to_shapiq(self) -> list[shapiq.InteractionValues]:
        """One ``shapiq.InteractionValues`` per target; its index is SV at order 1, else the index that was played.

        Raises:
            GameError: the values are not a metagame, since rows of an interaction index are not Shapley values.
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
        game: maps coalitions to the attributions of all targets. If a list is given (one game per input), all games are
            played with the same settings and a list is returned.
        estimator: ``exact``, ``permutation``, ``regression``, ``trees``, ``auto``, or a function with the same
            signature.
        endogenous: if True, the players are the targets: player i is fixed as present while the others play on phi_i,
            and phi_i({i}) is on the diagonal. If False, all players play on phi_i, and ``empty`` holds phi_i(empty).
            If None, endogenous if there are as many targets as players, unless their names differ, and always
            exogenous from order 2 on (the choice is logged).
        budget: the maximum number of coalitions to evaluate. If None, all 2^n for ``exact``, else 64 per player.
        seed: random seed for the sampling.
        order: 1 for the influence of single players, 2 for the interaction ``index`` of pairs of players as well, 3 for
            that of triples as well, and so on. In an endogenous game, the interactions are those of the other players,
            with target i fixed as present (phi_{jk->i}).
        index: from order 2 on, ``sii`` (the default), ``ksv``, ``stii``, ``fsii`` or ``banzhaf``. ``exact`` computes
            all of them at any order; for exogenous games the approximations compute ``sii`` and ``ksv`` at order 2, and
            ``regression`` also computes ``fsii`` at any order. At order 1 every index except ``banzhaf`` is the Shapley
            value; ``banzhaf`` is the Banzhaf value, which ``exact`` and ``trees`` compute.
        progress: called with (coalitions evaluated, planned) after each batch. For a list, the numbers are totals over
            all games, and a game that has not begun is assumed to plan as many coalitions as the current one. See
            :func:`metagame.progress_bar`.

    Raises:
        GameError: an argument is invalid, the budget is too small, n is too large for ``exact``, or a value of the game
            is not finite.
    """
    settings = (estimator, endogenous, budget, seed, order, index)
    if isinstance(game, Sequence):
        return _play_each(game, settings, progress)
    return _play_once(game, settings, progress)


def _play_each(games: Sequence[AttributionGame], settings: tuple, progress: Progress | None) -> list[MetaAttributions]:
    """One result for each game; an error names the game."""
    found, evaluated = [], 0
    for number, game in enumerate(games):
        overall = None if progress is None else _overall(progress, evaluated, len(games) - number)
        try:
            found.append(_play_once(game, settings, overall))
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


def _play_once(game: AttributionGame, settings: tuple, progress: Progress | None) -> MetaAttributions:
    """Play, after which nothing is kept of the game, since the model behind it may be another one next time."""
    try:
        return _play(game, *settings, progress)
    finally:
        if isinstance(game, AttributionGame):
            game.forget()


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
    budget = None if budget is None else int(budget)
    estimate = play(game, Rules(endogenous, int(order), index, budget, int(seed), progress))
    if guessed and endogenous and estimate.empty.any():
        warnings.warn(
            f"There are as many targets as players, {game.n_players}, so the targets were taken to be the"
            " players, but phi(empty) is not 0: pass endogenous=False if they are not, or endogenous=True if"
            " they are.",
            stacklevel=4,
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
        log.info("endogenous=None: played as exogenous, as always from order 2 on.")
        return False
    n_targets = len(game.grand())
    others = None not in (game.players, game.targets) and game.players != game.targets
    endogenous = n_targets == game.n_players and not others
    kind = "endogenous" if endogenous else "exogenous"
    log.info("endogenous=None: %d players and %d targets, played as %s.", game.n_players, n_targets, kind)
    return endogenous
