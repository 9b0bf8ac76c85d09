"""What is played: a first-order attribution method seen as a cooperative game."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from metagame.errors import GameError, UserError
from metagame.extras import needed_by
from metagame.kept_values import KeptValues

Coalitions = Bool[np.ndarray, "k n"]
Values = Float[np.ndarray, "k t"]
Progress = Callable[[int, int], None]
"""Called with (coalitions evaluated, coalitions planned) while a game is played."""


def all_coalitions(n_players: int) -> Bool[np.ndarray, "2**{n_players} {n_players}"]:
    """Every coalition of ``n_players``; bit j of the row number is player j."""
    rows = np.arange(1 << n_players, dtype=np.uint32)
    return (rows[:, None] >> np.arange(n_players, dtype=np.uint32) & 1).astype(bool)


def as_float64(values: Any, name: str) -> Float[np.ndarray, " ..."]:
    """Numpy float64 of numpy or torch values on any device, or of lists; a GameError names what is not real numbers."""
    try:
        array = _as_numpy(values)
    except Exception as error:  # of numpy and torch, of many kinds
        reason = " ".join(str(error).split())
        raise GameError(f"{name} is not an array ({type(error).__name__}: {reason}): give real numbers.") from error
    if array.dtype.kind not in "fiub":
        raise GameError(f"{name} has dtype {array.dtype}: give real numbers.")
    return array.astype(np.float64, copy=False)


def _as_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # of torch, which numpy users need not have
        tensor = values.detach()
        tensor = (tensor if str(tensor.layout) == "torch.strided" else tensor.to_dense()).cpu()
        return tensor.numpy() if tensor.is_complex() else tensor.double().numpy()
    if isinstance(values, list | tuple) and any(hasattr(each, "detach") for each in values):
        return np.asarray([_as_numpy(each) for each in values])
    return np.asarray(values)


class AttributionGame:
    """The metagame of one input: coalition S of players -> attributions phi_i(f_S) of all targets i.

    Args:
        fn: maps coalitions, bool ``(k, n)``, to attributions, float ``(k, t)``, numpy or torch. Row r of the result
            holds the attribution of every target when only the players in row r are present. It must treat rows
            independently of each other. It may change its argument, and may return the same array again.
        n_players: the number n of players.
        batch_size: the maximum number of coalitions passed to ``fn`` at once; if ``None``, all of them.
        cache: whether to keep the values of all coalitions, so that none is evaluated twice, even if a later one fails.
        players: names of the players, which results then carry.
        targets: names of the targets; with a ``grid``, each name stands for all patches of the grid, in reading order.
            If None, an endogenous game uses the players' names.
        grid: number of rows and columns of patches, if the targets are patches of an image.

    Attributes:
        n_evaluations: number of coalitions evaluated so far, which is what a budget limits.
    """

    def __init__(
        self,
        fn: Callable,
        n_players: int,
        *,
        batch_size: int | None = None,
        cache: bool = False,
        players: Iterable[str] | None = None,
        targets: Iterable[str] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        if not callable(fn):
            raise GameError(f"fn is of type {type(fn).__name__}: give a function of coalitions (k, n).")
        if not isinstance(n_players, Integral) or n_players < 1:
            raise GameError(f"n_players={n_players!r} must be a positive integer.")
        _check_batch_size(batch_size)
        self.players = None if players is None else tuple(map(str, players))
        self.targets = None if targets is None else tuple(map(str, targets))
        self.grid = None if grid is None else as_grid(grid)
        if self.players is not None and len(self.players) != n_players:
            raise GameError(f"players has {len(self.players)} names for {n_players} players: give one for each.")
        self.fn = fn
        self.n_players = int(n_players)
        self.batch_size = batch_size
        self.cache = cache
        self.n_evaluations = 0
        self._known: dict[bytes, Float[np.ndarray, " t"]] = {}  # by coalition; without a cache the grand one alone
        self._n_targets: int | None = None
        self._kept: KeptValues | None = None
        self._left: dict[bytes, Float[np.ndarray, " t"]] = {}  # by an interrupted run, and not asked for yet

    @classmethod
    def from_values(cls, values: Float[np.ndarray, "k t"]) -> AttributionGame:
        """A game given by all of its values: row S of the k = 2^n ``values`` belongs to the coalition with bits S.

        The values are copied.
        """
        values = np.array(as_float64(values, "values"))
        n_players = (len(values) if values.ndim == 2 else 0).bit_length() - 1
        if n_players < 1 or len(values) != 1 << n_players:
            raise GameError(f"values has shape {values.shape}: give (2**n, t), one row for each coalition, n >= 1.")
        bits = 1 << np.arange(n_players)
        return cls(partial(_row_of, values, bits), n_players)

    @classmethod
    def of_torch(cls, fn: Callable, n_players: int, *, device: Any = "cpu", **settings: Any) -> AttributionGame:
        """A game whose ``fn`` receives its coalitions as a torch tensor, bool ``(k, n)``, on ``device``.

        Args:
            fn: as for the class; it may contain code such as ``torch.where(coalitions, x, baseline)``.
            n_players: as for the class.
            device: device of the coalitions, such as ``cuda``; ``fn`` may return a tensor on any device.
            settings: the other arguments of the class.

        Raises:
            UserError: torch is not installed.
        """
        with needed_by("AttributionGame.of_torch"):
            import torch

        if not callable(fn):
            raise GameError(f"fn is of type {type(fn).__name__}: give a function of coalitions (k, n).")
        return cls(lambda coalitions: fn(torch.from_numpy(coalitions).to(device)), n_players, **settings)

    def keep(self, kept: KeptValues) -> None:
        """Save the values of each batch except the last, and reuse those saved by an interrupted run.

        If the batches have the same size, the values are the same to the last bit, and so is ``n_evaluations``.
        """
        self._kept = kept
        self._left = kept.read(self.n_players)

    def __call__(self, coalitions: Coalitions, progress: Progress | None = None) -> Values:
        """Attributions of all targets on each coalition, float64 ``(k, t)``.

        Raises:
            GameError: ``coalitions`` is not bool ``(k, n)``; ``fn`` raised an error that is not a UserError, or
                returned another shape than ``(k, t)``, or NaN or inf.
        """
        coalitions = np.asarray(coalitions)
        if coalitions.dtype != np.bool_:
            raise GameError(f"coalitions has dtype {coalitions.dtype}: give a boolean array (True = present).")
        if coalitions.ndim != 2 or coalitions.shape[1] != self.n_players:
            raise GameError(
                f"coalitions has shape {coalitions.shape}: give (k, {self.n_players}), with a column for each player."
            )
        _check_batch_size(self.batch_size)
        size = self.batch_size or max(len(coalitions), 1)
        values = np.empty((len(coalitions), 0))
        for start in range(0, len(coalitions), size):
            batch = coalitions[start : start + size]
            n_left = len(self._left)
            found = self._values_of(batch)
            if self._kept is not None and len(self._left) == n_left and start + size < len(coalitions):
                self._kept.append(batch, found)
            if start == 0:
                values = np.empty((len(coalitions), found.shape[1]))
            values[start : start + size] = found
            if progress is not None:
                progress(min(start + size, len(coalitions)), len(coalitions))
        return values

    def grand(self) -> Float[np.ndarray, " t"]:
        """phi_i(N): the first-order attribution of every target, kept until the game has been played."""
        grand = np.ones((1, self.n_players), dtype=bool)
        values = self._values_of(grand)
        self._keep(grand, values)
        return values[0]

    def forget(self) -> None:
        """Drop phi(N), which is kept even without a ``cache``, so that it is evaluated again when it is next needed."""
        if not self.cache:
            self._known.clear()

    def _values_of(self, coalitions: Coalitions) -> Values:
        """Those that are known, and of the other coalitions what ``fn`` returns."""
        names = [coalition.tobytes() for coalition in coalitions]
        for name in self._left.keys() & names:
            self._known[name] = self._left.pop(name)
            self.n_evaluations += 1
        new = [row for row, name in enumerate(names) if name not in self._known]
        if self.cache:  # each once
            new = list({names[row]: row for row in reversed(new)}.values())[::-1]
        found = self._evaluate(coalitions[new]) if new else np.empty((0, 0))
        if len(new) == len(names) and not self.cache:
            return found
        if self.cache and new:
            self._keep(coalitions[new], found)
        values = ChainMap({names[row]: value for row, value in zip(new, found, strict=True)}, self._known)
        return np.array([values[name] for name in names])

    def _keep(self, coalitions: Coalitions, values: Values) -> None:
        self._known |= {each.tobytes(): found.copy() for each, found in zip(coalitions, values, strict=True)}

    def _evaluate(self, coalitions: Coalitions) -> Values:
        """Finite values of another array than ``fn``'s, which may use its own again."""
        values = np.array(as_float64(self._call(coalitions), "the result of fn"))
        expected = (len(coalitions), self._n_targets or (values.shape[-1] if values.ndim else 0))
        if values.shape != expected or values.size == 0:
            raise GameError(
                f"fn returned shape {values.shape} for {_named(coalitions)}: return (k, t), with a row for each"
                " coalition and a column for each target, and the same targets each time."
            )
        if self._n_targets is None:
            check_target_names(self.targets, self.grid, values.shape[1])
        self._n_targets = values.shape[1]
        bad = ~np.isfinite(values)
        if bad.any():
            row, target = np.argwhere(bad)[0]
            if self.cache:
                good = ~bad.any(1)
                self._keep(coalitions[good], values[good])
            raise GameError(
                f"fn returned {values[row, target]} for target {target} on {_named(coalitions[row : row + 1])}:"
                " attributions must be finite; check the method on that masked input."
            )
        self.n_evaluations += len(coalitions)
        return values

    def _call(self, coalitions: Coalitions) -> Any:
        """What ``fn`` returns for a copy of its own, which it may change."""
        try:
            return self.fn(coalitions.copy())
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            advice = "" if len(coalitions) == 1 else "; batch_size=1 shows which one"
            reason = reason.partition(", but expected one of")[0]  # torch then lists all signatures
            if isinstance(error, TypeError) and "numpy.ndarray" in reason and "Tensor" in reason:
                advice = "; AttributionGame.of_torch gives coalitions as tensors"
            raise GameError(f"fn failed on {_named(coalitions)} ({reason}){advice}.") from error


def _row_of(values: Float[np.ndarray, "m t"], bits: Int[np.ndarray, " n"], coalitions: Coalitions) -> Values:
    """A function of the module, unlike a lambda, can be pickled."""
    return values[coalitions @ bits]


def _named(coalitions: Coalitions) -> str:
    """The players present in a coalition, or in the first one of several."""
    first = f"coalition {np.flatnonzero(coalitions[0]).tolist()}"
    return first if len(coalitions) == 1 else f"{len(coalitions)} coalitions at once, the first one {first}"


def as_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Number of rows and columns; a GameError unless they are two positive integers."""
    numbers = tuple(grid) if isinstance(grid, Sequence) else ()
    if len(numbers) != 2 or not all(isinstance(number, Integral) and number > 0 for number in numbers):
        raise GameError(f"grid={grid!r} must be two positive integers, the number of rows and that of columns.")
    return int(numbers[0]), int(numbers[1])


def check_target_names(targets: tuple[str, ...] | None, grid: tuple[int, int] | None, n_targets: int) -> None:
    """Raise a GameError where names of targets, each with a grid of patches where there is one, are not as many."""
    n_patches = 1 if grid is None else grid[0] * grid[1]
    fits = n_targets % n_patches == 0 if targets is None else len(targets) * n_patches == n_targets
    if not fits:
        named = "" if targets is None else f"targets has {len(targets)} names"
        patches = "" if grid is None else f"grid={grid} has {n_patches} patches"
        reason = " and ".join(filter(None, (named, patches)))
        raise GameError(f"{reason}, but {n_targets} targets are attributed: give names and a grid that fit.")


def _check_batch_size(batch_size: int | None) -> None:
    if batch_size is not None and (not isinstance(batch_size, Integral) or batch_size < 1):
        raise GameError(f"batch_size={batch_size!r} must be a positive integer, or None for a single batch.")
