"""Exact meta-attributions by enumerating all coalitions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from metagame import indices
from metagame.estimators.estimate import Estimate, Rules, approximations, listed, settle_budget
from metagame.games import AttributionGame, GameError, all_coalitions

MAX_PLAYERS = 12


def exact(game: AttributionGame, rules: Rules, *, max_players: int = MAX_PLAYERS) -> Estimate:
    """Evaluate all 2^n coalitions; the seed is not used.

    Raises:
        GameError: there are more than ``max_players`` players, or the budget is below 2^n.
    """
    n = game.n_players
    if n > max_players:
        others = approximations(rules)
        raise GameError(
            f"n_players={n} is too many for estimator='exact' (2^{n} coalitions, max_players={max_players}):"
            f" {f'use estimator={listed(others)}, or ' if others else ''}raise max_players (estimator.max_players in"
            f" configs, estimator=functools.partial(metagame.estimators.exact, max_players={n}) in Python)."
        )
    settle_budget("exact", rules.budget, 1 << n, n)
    return enumerate_all(game, rules)


def enumerate_all(game: AttributionGame, rules: Rules) -> Estimate:
    """The exact values, from all 2^n coalitions however many they are."""
    values = game(all_coalitions(game.n_players), rules.progress)
    index = rules.index or "sii"
    if rules.endogenous:
        phi = endogenous_index(values, rules.order, index)
    else:
        phi = np.moveaxis(indices.INDICES[index](values, game.n_players, rules.order), -1, 0)
    return Estimate(phi, values[-1], values[0], np.zeros_like(phi))


def endogenous_index(
    values: Float[np.ndarray, "k n"], order: int = 1, index: str = "sii"
) -> Float[np.ndarray, "n n ..."]:
    """Definition 2 from all k = 2^n values, at order 1 the Shapley value: ``(n, n)``, at order 2 ``(n, n, n)``, ...

    Row i is the ``index`` of the game nu_i(T) = phi_i(T + i) of the other players; nu_i(empty) = phi_i({i}) stands on
    the diagonal, and sets of several players that i is one of have 0. So rows of an efficient index sum to phi_i(N).
    """
    n = values.shape[1]
    phi = np.zeros((n,) * (order + 1))
    rows = np.arange(1 << n)
    for i in range(n):
        others = np.delete(np.arange(n), i)
        nu = values[rows >> i & 1 == 1, i]  # in the order of the others' coalitions
        if n > 1:
            phi[i][np.ix_(*[others] * order)] = indices.INDICES[index](nu, n - 1, order)
        phi[(i,) * (order + 1)] = nu[0]
    return phi
