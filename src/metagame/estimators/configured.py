"""An estimator with the settings of a metagame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from metagame.errors import UserError
from metagame.estimators.estimate import Estimator
from metagame.estimators.exact import exact


@dataclass(frozen=True)
class ConfiguredEstimator:
    """How the metagame of a method is played.

    Attributes:
        estimator, budget, seed: as of :func:`metagame.meta.meta_attributions`.
        budget_per_player: coalitions for each player, in place of a budget that is the same for games of all sizes.
        batch_size: the most coalitions that the method is given at once; None: as many as the method says, or all of
            them. Bounds memory only.
    """

    estimator: str | Estimator = "exact"
    budget: int | None = None
    seed: int = 0
    batch_size: int | None = None
    budget_per_player: int | None = None

    def __post_init__(self) -> None:
        if self.budget_per_player is None:
            return
        if self.budget is not None:
            raise UserError(
                f"estimator.budget={self.budget} and estimator.budget_per_player={self.budget_per_player} exclude each"
                " other: set one of them to null."
            )
        if not isinstance(self.budget_per_player, int) or self.budget_per_player < 1:
            raise UserError(f"estimator.budget_per_player={self.budget_per_player!r} must be a positive integer.")

    def budget_of(self, n_players: int) -> int | None:
        """The coalitions that a game of so many players may evaluate; None: the estimator's own choice."""
        return self.budget if self.budget_per_player is None else self.budget_per_player * n_players

    @property
    def is_exact(self) -> bool:
        """Whether all coalitions are played, by ``exact`` with whatever settings."""
        return (self.estimator if isinstance(self.estimator, str) else _function(self.estimator)) in ("exact", exact)

    def require_closed_form(self, method: str) -> None:
        """Refuse settings that a metagame in closed form would ignore.

        Raises:
            UserError: another estimator than ``exact``, or a budget.
        """
        if not self.is_exact or (self.budget, self.budget_per_player) != (None, None):
            raise UserError(
                f"the metagame of {method} is computed in closed form: keep estimator=exact, without a budget."
            )


EXACT = ConfiguredEstimator()
"""All coalitions."""


def _function(estimator: Estimator) -> Estimator:
    """The estimator behind its settings."""
    return estimator.func if isinstance(estimator, partial) else estimator
