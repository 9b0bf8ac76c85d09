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
        batch_size: the most coalitions that the method is given at once; None: as many as the method says, or all of
            them. Bounds memory only.
    """

    estimator: str | Estimator = "exact"
    budget: int | None = None
    seed: int = 0
    batch_size: int | None = None

    def require_closed_form(self, method: str) -> None:
        """Refuse settings that a metagame in closed form would ignore.

        Raises:
            UserError: another estimator than ``exact``, or a budget.
        """
        chosen = self.estimator if isinstance(self.estimator, str) else _function(self.estimator)
        if chosen not in ("exact", exact) or self.budget is not None:
            raise UserError(
                f"the metagame of {method} is computed in closed form: leave estimator=exact, without a budget."
            )


EXACT = ConfiguredEstimator()
"""All coalitions."""


def _function(estimator: Estimator) -> Estimator:
    """The estimator behind its settings."""
    return estimator.func if isinstance(estimator, partial) else estimator
