"""First-order attribution methods, and the metagame that each of them has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar, Generic

from metagame.contracts import BoundInput, Explanation, InputT, Method
from metagame.errors import UserError
from metagame.estimators.configured import EXACT, ConfiguredEstimator
from metagame.games import AttributionGame, Progress
from metagame.indices import INDICES
from metagame.kept_values import KeptValues
from metagame.meta import meta_attributions


class FirstOrder(Method[InputT], ABC, Generic[InputT]):
    """A first-order attribution method: it attributes masked inputs, which defines a game.

    A subclass implements the attribution of a batch of coalitions of one input; the attribution of the input itself and
    the metagame follow from it.

    Attributes:
        input_type: the type of inputs that it explains.
        endogenous: whether the players are the targets (tokens explain tokens); False if targets are not players.
    """

    endogenous: ClassVar[bool] = True

    @abstractmethod
    def game(self, bound: InputT) -> AttributionGame:
        """Coalition S -> phi_i(f_S) of every target i; the game has names if its players are not those of the input."""

    def explain(self, bound: InputT, progress: Progress | None = None) -> Explanation:
        """phi_i(N) of every target."""
        game = self.game(bound)
        return Explanation(**names_of(game, bound), attribution=game.grand())

    def metagame(
        self, estimator: ConfiguredEstimator = EXACT, order: int = 1, index: str | None = None
    ) -> Metagame[InputT]:
        """The metagame, as a method; order 2 gives the interaction ``index`` of pairs of players on each target.

        Raises:
            UserError: the order is below 1, the index is unknown, or an index is given at order 1.
        """
        if not isinstance(order, Integral) or order < 1:
            raise UserError(f"order={order!r} must be a positive integer.")
        if index is not None and index not in INDICES:
            raise UserError(f"index={index} is unknown: choose one of {', '.join(INDICES)}.")
        if order == 1 and index not in (None, "banzhaf"):
            raise UserError(
                f"index={index} needs order=2 or more, because a metagame of order 1 has Shapley or Banzhaf values."
            )
        return Metagame(self, estimator, order, index)


class Metagame(Method[InputT], Generic[InputT]):
    """The meta-attributions of a first-order method, as a method.

    Args:
        method: the first-order method.
        estimator: the estimator and its settings.
        order, index: see :func:`metagame.meta.meta_attributions`. If an input has fewer players than ``order``, such as
            a caption of one word, the order is reduced to the number of players.
    """

    def __init__(
        self,
        method: FirstOrder[InputT],
        estimator: ConfiguredEstimator = EXACT,
        order: int = 1,
        index: str | None = None,
    ) -> None:
        self.method = method
        self.input_type = method.input_type
        self.estimator = estimator
        self.order = order
        self.index = index

    def explain(self, bound: InputT, progress: Progress | None = None, kept: KeptValues | None = None) -> Explanation:
        """phi_{j->i} of every player j, or set of players, on every target i; see :meth:`AttributionGame.keep`."""
        game = self.method.game(bound)
        if kept is not None:
            game.keep(kept)
        settings = self.estimator
        if settings.batch_size is not None:
            game.batch_size = settings.batch_size
        order = min(self.order, game.n_players)
        phi = meta_attributions(
            game,
            settings.estimator,
            endogenous=self.method.endogenous,
            budget=settings.budget_of(game.n_players),
            seed=settings.seed,
            order=order,
            index=self.index,
            progress=progress,
        )
        names = names_of(game, bound)
        return Explanation(**names, attribution=phi.first_order, meta=replace(phi, **names))


def names_of(game: AttributionGame, bound: BoundInput) -> dict[str, Any]:
    """Players, targets and grid: those of the game where it has its own, else those of the input."""
    owner = bound if game.players is None else game
    return {"players": owner.players, "targets": owner.targets, "grid": owner.grid}
