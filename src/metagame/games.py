"""What is played: a first-order attribution method seen as a cooperative game."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from metagame.errors import GameError

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
    if hasattr(values, "detach"):  # of torch, which numpy users need not have
        values = values.detach().cpu()
        values = values.numpy() if values.is_complex() else values.double().numpy()
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise GameError(f"{name} has dtype {values.dtype}: give real numbers.")
    return values.astype(np.float64, copy=False)


class AttributionGame:
    """The metagame of one input: coalition S of players -> attributions phi_i(f_S) of all targets i.

    Args:
        fn: maps coalitions, bool ``(k, n)``, to attributions, float ``(k, t)``, numpy or torch. Row r of the result
            holds the attribution of every target when only the players in row r are present. It must treat rows
            independently of each other.
        n_players: the number n of players.
        batch_size: the most coalitions that ``fn`` is given at once; all of them when ``None``.

    Attributes:
        n_evaluations: coalitions evaluated so far (what a budget counts).
    """

    def __init__(self, fn: Callable, n_players: int, *, batch_size: int | None = None) -> None:
        if not callable(fn):
            raise GameError(f"fn is a {type(fn).__name__}: give a function of coalitions (k, n).")
        if not isinstance(n_players, Integral) or n_players < 1:
            raise GameError(f"n_players={n_players!r}: give a whole number of players, at least one.")
        _check_batch_size(batch_size)
        self.fn = fn
        self.n_players = n_players
        self.batch_size = batch_size
        self.n_evaluations = 0
        self._grand: Float[np.ndarray, " t"] | None = None

    @classmethod
    def from_values(cls, values: Float[np.ndarray, "k t"]) -> AttributionGame:
        """A game whose every value is known: row S of all k = 2^n ``values`` belongs to the coalition with bits S."""
        values = np.asarray(values)
        n_players = (len(values) if values.ndim == 2 else 0).bit_length() - 1
        if n_players < 1 or len(values) != 1 << n_players:
            raise GameError(f"values has shape {values.shape}: give (2**n, t), one row for each coalition, n >= 1.")
        bits = 1 << np.arange(n_players)
        return cls(lambda coalitions: values[coalitions @ bits], n_players)

    def __call__(self, coalitions: Coalitions, progress: Progress | None = None) -> Values:
        """Attributions of all targets on each coalition, float64 ``(k, t)``.

        Raises:
            GameError: ``coalitions`` is not bool ``(k, n)``; ``fn`` returned another shape than ``(k, t)``, or NaN or
                inf.
        """
        coalitions = np.asarray(coalitions)
        if coalitions.dtype != np.bool_:
            raise GameError(f"coalitions has dtype {coalitions.dtype}: give a boolean array (True = present).")
        if coalitions.ndim != 2 or coalitions.shape[1] != self.n_players:
            raise GameError(
                f"coalitions has shape {coalitions.shape}: give (k, {self.n_players}), a column per player."
            )
        _check_batch_size(self.batch_size)
        size = self.batch_size or max(len(coalitions), 1)
        parts = []
        for start in range(0, len(coalitions), size):
            parts.append(self._evaluate_unknown(coalitions[start : start + size]))
            if progress is not None:
                progress(min(start + size, len(coalitions)), len(coalitions))
        return np.concatenate(parts) if parts else np.empty((0, 0))

    def grand(self) -> Float[np.ndarray, " t"]:
        """phi_i(N): the first-order attribution of every target; evaluated once, however often it is asked for."""
        if self._grand is None:
            self._grand = self._evaluate(np.ones((1, self.n_players), dtype=bool))[0]
        return self._grand

    def _evaluate_unknown(self, coalitions: Coalitions) -> Values:
        known = coalitions.all(1)
        if self._grand is None or not known.any():
            return self._evaluate(coalitions)
        values = np.empty((len(coalitions), len(self._grand)))
        values[known] = self._grand
        if not known.all():
            values[~known] = self._evaluate(coalitions[~known])
        return values

    def _evaluate(self, coalitions: Coalitions) -> Values:
        values = self.fn(coalitions)
        values = as_float64(values, "the result of fn")
        n_targets = values.shape[1:] if self._grand is None else self._grand.shape
        if values.ndim != 2 or values.shape != (len(coalitions), *n_targets) or values.size == 0:
            raise GameError(
                f"fn returned shape {values.shape} for {len(coalitions)} coalitions: return (k, t), a row per coalition"
                " and a column per target, the same targets each time."
            )
        bad = ~np.isfinite(values)
        if bad.any():
            row, target = np.argwhere(bad)[0]
            present = np.flatnonzero(coalitions[row]).tolist()
            raise GameError(
                f"fn returned {values[row, target]} for target {target} on coalition {present}: attributions must be"
                " finite; check the method on that masked input."
            )
        self.n_evaluations += len(coalitions)
        return values


def _check_batch_size(batch_size: int | None) -> None:
    if batch_size is not None and (not isinstance(batch_size, Integral) or batch_size < 1):
        raise GameError(f"batch_size={batch_size!r}: give a positive whole number, or None for one batch.")
