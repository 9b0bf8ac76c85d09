"""Exact meta-attributions by enumerating all coalitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from metagame import indices
from metagame.estimators.estimate import Estimate, Rules, settle_budget
from metagame.games import AttributionGame, GameError, all_coalitions

MAX_PLAYERS = 12


def exact(game: AttributionGame, rules: Rules, *, max_players: int = MAX_PLAYERS) -> Estimate:
    """Play all 2^n coalitions; the seed is not used.

    Raises:
        GameError: more than ``max_players`` players, or a budget below 2^n.
    """
    n = game.n_players
    if n > max_players:
        raise GameError(
            f"n_players={n} is too many for estimator='exact' (2^{n} coalitions, max_players={max_players}): use"
            " estimator='permutation', 'regression' or 'trees', or raise max_players (estimator.max_players in configs,"
            f" estimator=functools.partial(metagame.estimators.exact, max_players={n}) in Python)."
        )
    settle_budget("exact", rules.budget, 1 << n, n)
    return enumerate_all(game, rules)


def enumerate_all(game: AttributionGame, rules: Rules) -> Estimate:
    """The exact values, from all 2^n coalitions however many they are."""
    n = game.n_players
    values = game(all_coalitions(n), rules.progress)
    if rules.endogenous:
        phi = endogenous_value(values, _banzhaf_weights if rules.index == "banzhaf" else _shapley_weights)
    elif rules.order == 1:
        phi = (indices.banzhaf if rules.index == "banzhaf" else indices.shapley)(values, n).T
    else:
        phi = np.moveaxis(indices.PAIRWISE[rules.index or "sii"](values, n, 2), -1, 0)
    return Estimate(phi, values[-1], values[0], np.zeros_like(phi))


def endogenous_shapley(values: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "n n"]:
    """Definition 2 from all k = 2^n values."""
    return endogenous_value(values, _shapley_weights)


Weights = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""m players -> weights of nu(T) in the value of player j, by |T| = 0..m: where j is in T; minus where it is not."""


def endogenous_value(values: Float[np.ndarray, "k n"], weights: Weights) -> Float[np.ndarray, "n n"]:
    """Definition 2 from all k = 2^n values: row i is the value of nu_i(T) = phi_i(T + i) on the other players.

    Coalitions of the subgame of target i are the rows S that contain i, |T| = |S| - 1; one product serves all targets.
    """
    n = values.shape[1]
    present = all_coalitions(n)
    if n == 1:
        return values[1:].copy()
    seen = np.where(present, values, 0.0)
    size = present.sum(1)
    with_j, without_j = weights(n - 1)
    sub_size = np.maximum(size - 1, 0)
    phi = (seen * with_j[sub_size][:, None]).T @ present - (seen * without_j[sub_size][:, None]).T @ ~present
    np.fill_diagonal(phi, values[1 << np.arange(n), np.arange(n)])
    return phi


def _shapley_weights(m: int) -> tuple[np.ndarray, np.ndarray]:
    size = np.arange(m + 1)
    choose = np.cumprod(np.concatenate([[1.0], (m - size[:-1]) / (size[:-1] + 1)]))
    with np.errstate(divide="ignore"):
        with_j = np.where(size > 0, 1 / (size * choose), 0.0)
        without_j = np.where(size < m, 1 / ((m - size) * choose), 0.0)
    return with_j, without_j


def _banzhaf_weights(m: int) -> tuple[np.ndarray, np.ndarray]:
    size = np.arange(m + 1)
    return np.where(size > 0, 0.5 ** (m - 1), 0.0), np.where(size < m, 0.5 ** (m - 1), 0.0)
