"""Shapley values, serial Shapley values and Shapley interactions of a masked model, all from one table of f_S."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from metagame import indices
from metagame.attributions.method import Explanation, FirstOrder
from metagame.estimators.exact import MAX_PLAYERS
from metagame.games import AttributionGame, GameError, Progress, all_coalitions
from metagame.models.masked import MaskedModel


class ShapleyValue(FirstOrder):
    """phi_i(S) = SV_i of the game T -> f_T restricted to S; signed, in units of f; sums to f_S - f(empty).

    Args:
        max_players: the most features to enumerate 2^n coalitions of.
    """

    explicand_type = MaskedModel

    def __init__(self, max_players: int = MAX_PLAYERS) -> None:
        self.max_players = max_players

    def game(self, explicand: MaskedModel) -> AttributionGame:
        return AttributionGame.from_values(restricted_shapley(output_values(explicand, self.max_players)))


class SerialShapleyValue:
    """psi_{i,j} = SV_j of the game S -> SV_i(f_S) (Lundstrom and Razaviyayn, 2023).

    ``matrix`` ``(n, n)``: row i, column j; symmetric, rows sum to SV_i (no factor 1/2).

    Args:
        max_players: the most features to enumerate 2^n coalitions of.
    """

    explicand_type = MaskedModel

    def __init__(self, max_players: int = MAX_PLAYERS) -> None:
        self.max_players = max_players

    def explain(self, explicand: MaskedModel, progress: Progress | None = None) -> Explanation:
        games = restricted_shapley(output_values(explicand, self.max_players))
        return Explanation(matrix=indices.shapley(games, explicand.n_players).T)


class ShapleyInteractions:
    """A Shapley interaction index of order 2 on f_S.

    ``matrix`` ``(n, n)``: symmetric, index_i on the diagonal; for ksv, stii and fsii the diagonal plus half of the
    rest of row i is SV_i (Theorem 1).

    Args:
        index: ``sii``, ``ksv``, ``stii``, ``fsii`` or ``banzhaf``.
        max_players: the most features to enumerate 2^n coalitions of.
    """

    explicand_type = MaskedModel

    def __init__(self, index: str = "stii", max_players: int = MAX_PLAYERS) -> None:
        if index not in indices.PAIRWISE:
            raise GameError(
                f"attribution.method.index={index!r} is unknown: choose one of {', '.join(indices.PAIRWISE)}."
            )
        self.index = index
        self.max_players = max_players

    def explain(self, explicand: MaskedModel, progress: Progress | None = None) -> Explanation:
        values = output_values(explicand, self.max_players)
        return Explanation(matrix=indices.PAIRWISE[self.index](values, explicand.n_players, 2))


def output_values(explicand: MaskedModel, max_players: int) -> Float[np.ndarray, " 2**n"]:
    """f_S of every coalition, one model call."""
    n = explicand.n_players
    if n > max_players:
        raise GameError(
            f"the input has {n} features, too many for 2^{n} coalitions (max_players={max_players}): raise"
            " attribution.method.max_players, or choose a gradient method."
        )
    game = AttributionGame(lambda coalitions: explicand.values(coalitions)[:, None], n)
    return game(all_coalitions(n))[:, 0]


def restricted_shapley(values: Float[np.ndarray, " 2**n"]) -> Float[np.ndarray, "2**n n"]:
    """Row S: the Shapley value of every player in the game restricted to S.

    SV_i(v restricted to S) = sum over T in S with i in T of m(T)/|T|: one Moebius transform, one sum over subsets.
    """
    n = len(values).bit_length() - 1
    present = all_coalitions(n)
    shares = (indices.moebius(values, n) / np.maximum(present.sum(1), 1))[:, None] * present
    sums = shares.reshape((2,) * n + (n,))
    for axis in range(n):
        np.moveaxis(sums, axis, 0)[1] += np.moveaxis(sums, axis, 0)[0]
    return sums.reshape(1 << n, n)
