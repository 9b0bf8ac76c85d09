"""The strongest pairs of a result, and the names of its players and targets."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from metagame import indices
from metagame.errors import UserError
from metagame.report.labels import told_apart

if TYPE_CHECKING:
    from metagame.meta import MetaAttributions


@dataclass(frozen=True)
class Pair:
    """The influence of a player, or of a set of players, on the attribution of a target.

    Attributes:
        players: names of the players in the set.
        target: name of the target.
        value: the influence, in the units of the attribution method.
        standard_error: standard error of the value; None if it is not known.
        directed: if True, the players influence the target; if False, the value belongs to the unordered pair.
    """

    players: tuple[str, ...]
    target: str
    value: float
    standard_error: float | None = None
    directed: bool = True

    def __str__(self) -> str:
        arrow = "→" if self.directed else "↔"
        value = f"{self.value:+.3g}".replace("-", "−")
        return f"{', '.join(self.players)} {arrow} {self.target} {value}"


def player_names(phi: MetaAttributions) -> list[str]:
    """Distinct names of the players: those that occur again with their place, ``player 0`` and so on where unnamed."""
    if phi.players is None:
        return [f"player {number}" for number in range(phi.values.shape[1])]
    return told_apart(list(phi.players))


def map_names(phi: MetaAttributions) -> list[str]:
    """Distinct names of the targets, each with a grid of patches where there is one."""
    if phi.targets is not None:
        return told_apart(list(phi.targets))
    if phi.endogenous and phi.grid is None:
        return player_names(phi)
    n_patches = 1 if phi.grid is None else phi.grid[0] * phi.grid[1]
    return [f"target {number}" for number in range(len(phi.values) // n_patches)]


def target_names(phi: MetaAttributions) -> list[str]:
    """A distinct name for each row of the values: of patches with their row and column, from 0."""
    if phi.grid is None:
        return map_names(phi)
    rows, columns = phi.grid
    return [f"{name} ({row}, {column})" for name in map_names(phi) for row in range(rows) for column in range(columns)]


def top_pairs(phi: MetaAttributions, k: int) -> list[Pair]:
    """See :meth:`metagame.meta.MetaAttributions.top_pairs`."""
    if not isinstance(k, Integral) or k < 1:
        raise UserError(f"k={k!r} must be a positive integer.")
    if phi.values.dtype == object:
        raise UserError("these values are formulas, which cannot be ranked: substitute numbers first.")
    n_unknown = int((~np.isfinite(phi.values)).sum())
    if n_unknown:
        raise UserError(f"{n_unknown} of the values are NaN or infinite, and cannot be ranked: compute them again.")
    entries = indices.sets_of_entries(phi.values.shape[1], phi.order)
    places = tuple(np.array(entries).T)
    values = phi.values[:, *places]
    size = np.where(_are_pairs(phi, entries), np.abs(values), 0)
    strongest = [at for at in np.argsort(-size, axis=None, kind="stable")[:k] if size.flat[at] > 0]
    errors = None if phi.standard_error is None else phi.standard_error[:, *places]
    players, targets = player_names(phi), target_names(phi)
    return [
        Pair(
            tuple(players[player] for player in dict.fromkeys(entries[entry])),
            targets[target],
            float(values[target, entry]),
            None if errors is None else float(errors[target, entry]),
            phi.directed,
        )
        for target, entry in (np.unravel_index(at, size.shape) for at in strongest)
    ]


def _are_pairs(phi: MetaAttributions, entries: list[tuple[int, ...]]) -> np.ndarray:
    """Which entries are no influence of a target on itself, and of unordered pairs one of the two."""
    if not phi.endogenous:
        return np.ones((1, 1), dtype=bool)
    own = np.array([entry[0] if len(set(entry)) == 1 else -1 for entry in entries])
    targets = np.arange(len(phi.values))[:, None]
    if phi.grid is not None and len(phi.values) != phi.values.shape[1]:  # each player has a map
        targets //= phi.grid[0] * phi.grid[1]
    return own != targets if phi.directed else own < targets
