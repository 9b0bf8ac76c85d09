"""Shapley values, serial Shapley values and Shapley interactions of a masked model, all from one table of f_S."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from metagame import indices
from metagame.attributions.method import FirstOrder
from metagame.contracts import Explanation, Method
from metagame.errors import UserError
from metagame.estimators.exact import MAX_PLAYERS
from metagame.games import AttributionGame, Progress, all_coalitions
from metagame.meta import MetaAttributions
from metagame.models.masked import MaskedModel


class ShapleyValue(FirstOrder[MaskedModel]):
    """phi_i(S) = SV_i of the game T -> f_T restricted to S; signed, in units of f; they sum to f_S - f(empty).

    Args:
        max_players: the maximum number n of features, since all 2^n coalitions are evaluated.
    """

    input_type = MaskedModel

    def __init__(self, max_players: int = MAX_PLAYERS) -> None:
        self.max_players = max_players

    def game(self, bound: MaskedModel) -> AttributionGame:
        return AttributionGame.from_values(restricted_shapley(output_values(bound, self.max_players)))


class SerialShapleyValue(Method[MaskedModel]):
    """psi_{i,j} = SV_j of the game S -> SV_i(f_S) (Lundstrom and Razaviyayn, 2023).

    The result is ``(n, n)`` with row i and column j, symmetric, in units of f. Rows sum to SV_i (no factor 1/2).

    Args:
        max_players: the maximum number n of features, since all 2^n coalitions are evaluated.
    """

    input_type = MaskedModel

    def __init__(self, max_players: int = MAX_PLAYERS) -> None:
        self.max_players = max_players

    def explain(self, bound: MaskedModel, progress: Progress | None = None) -> Explanation:
        """The values of every pair of features.

        Raises:
            UserError: the input has too many features.
        """
        games = restricted_shapley(output_values(bound, self.max_players))
        values = indices.shapley(games, bound.n_players).T
        meta = MetaAttributions(values, index="serial", players=bound.players, targets=bound.targets, grid=bound.grid)
        return Explanation(bound.players, bound.targets, bound.grid, meta=meta)


class ShapleyInteractions(Method[MaskedModel]):
    """A Shapley interaction index of order 2 on f_S.

    The result is ``(n, n)``, symmetric, with index_i on the diagonal, in units of f. For ksv, stii and fsii, the
    diagonal entry plus half of the rest of row i is SV_i (Theorem 1).

    Args:
        index: ``sii``, ``ksv``, ``stii``, ``fsii`` or ``banzhaf``.
        max_players: the maximum number n of features, since all 2^n coalitions are evaluated.
    """

    input_type = MaskedModel

    def __init__(self, index: str = "stii", max_players: int = MAX_PLAYERS) -> None:
        if index not in indices.INDICES:
            raise UserError(
                f"attribution.method.index={index!r} is unknown: choose one of {', '.join(indices.INDICES)}."
            )
        self.index = index
        self.max_players = max_players

    def explain(self, bound: MaskedModel, progress: Progress | None = None) -> Explanation:
        """The index of every feature and of every pair.

        Raises:
            UserError: the input has too many features.
        """
        pairs = indices.INDICES[self.index](output_values(bound, self.max_players), bound.n_players, 2)
        meta = MetaAttributions(
            pairs, index=self.index, directed=False, players=bound.players, targets=bound.targets, grid=bound.grid
        )
        return Explanation(bound.players, bound.targets, bound.grid, meta=meta)


def output_values(bound: MaskedModel, max_players: int) -> Float[np.ndarray, " 2**{bound.n_players}"]:
    """f_S of every coalition, in one call of the model."""
    n = bound.n_players
    if n > max_players:
        raise UserError(
            f"the input has {n} features, too many for 2^{n} coalitions (max_players={max_players}): choose method"
            " leave_one_out, give fewer of them (of an image a smaller grid), or raise the method's max_players."
        )
    game = AttributionGame(lambda coalitions: bound.values(coalitions)[:, None], n)
    return game(all_coalitions(n))[:, 0]


def restricted_shapley(values: Float[np.ndarray, " s"]) -> Float[np.ndarray, "s n"]:
    """Row S: the Shapley value of every player in the game restricted to S; ``values`` are those of its 2^n coalitions.

    SV_i(v restricted to S) = sum over T in S with i in T of m(T)/|T|: one Moebius transform, then one sum over subsets.
    """
    n = len(values).bit_length() - 1
    present = all_coalitions(n)
    shares = (indices.moebius(values, n) / np.maximum(present.sum(1), 1))[:, None] * present
    sums = shares.reshape((2,) * n + (n,))
    for axis in range(n):
        np.moveaxis(sums, axis, 0)[1] += np.moveaxis(sums, axis, 0)[0]
    return sums.reshape(1 << n, n)
