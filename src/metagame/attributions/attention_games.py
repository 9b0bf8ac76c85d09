"""Shapley values of games that are played on attention weights, in closed form.

v(S) is read from one matrix M of influences between tokens (:meth:`metagame.models.attended.AttendedModel.influence`):
row 0 is that of the position that the model reads ([CLS]), rows 1 to n are those of the players. Below, M_ij is that of
players i and j, from 1 to n, and a_i = M_0i. v(empty) = 0 in each game. DINOv2's head reads the mean of the patches
beside [CLS]; its row 0 is that of [CLS] alone.

After "Integrating attention into explanation frameworks for language and vision transformers" (arXiv 2508.08966), which
enumerates or samples coalitions; the closed forms are derived here and hold for any number of players.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagame.attributions.method import FirstOrder, Metagame
from metagame.contracts import Explanation
from metagame.errors import UserError
from metagame.estimators.configured import EXACT, ConfiguredEstimator
from metagame.games import AttributionGame, Progress
from metagame.kept_values import KeptValues
from metagame.meta import MetaAttributions
from metagame.models.attended import AttendedModel

SIZES = ("kernel", "uniform")


class MatrixGame(ABC):
    """A game v on an influence matrix, in the units of its entries."""

    @abstractmethod
    def shapley(self, m: Float[Tensor, "k m n"], present: Bool[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Shapley values of the game restricted to the players that are present; absent ones have 0."""

    @abstractmethod
    def meta(self, m: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
        """phi_{j->i} of the metagame S -> SV_i(v restricted to S): row i, column j; v({i}) on the diagonal."""


class Cls(MatrixGame):
    """v(S) = sum of a_i over S. SV_i = a_i; no player influences another's."""

    def shapley(self, m: Float[Tensor, "k m n"], present: Bool[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        return m[:, 0] * present

    def meta(self, m: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
        return m[0].diag()


class Total(MatrixGame):
    """v(S) = sum of M_ij over i and j in S, i = j included. SV_i = M_ii + sum of (M_ij + M_ji)/2 over others."""

    def shapley(self, m: Float[Tensor, "k m n"], present: Bool[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        own = m[:, 1:]
        return ((own + own.mT) / 2 * present[:, None]).sum(-1) * present

    def meta(self, m: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
        return (m[1:] + m[1:].mT) / 2


class Mutual(MatrixGame):
    """v(S) = sum of P_ij over pairs i < j in S, with P = M + M^T; v({i}) = M_ii.

    The diagonal counts for single players only: SV_i = 1/2 sum_{j != i} P_ij + M_ii/n - sum_{j != i} M_jj/(n(n - 1)).
    """

    def pairs(self, own: Float[Tensor, "*k n n"]) -> Float[Tensor, "*k n n"]:
        """P; its diagonal is not used."""
        return own + own.mT

    def shapley(self, m: Float[Tensor, "k m n"], present: Bool[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        own, n = m[:, 1:], present.sum(1, keepdim=True)
        pairs = self.pairs(own) * present[:, None]
        single = own.diagonal(dim1=-2, dim2=-1) * present
        others = single.sum(1, keepdim=True) - single
        half = (pairs.sum(-1) - pairs.diagonal(dim1=-2, dim2=-1)) / 2
        return (half + single / n.clamp(min=1) - others / (n * (n - 1)).clamp(min=1)) * present

    def meta(self, m: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
        """phi_{j->i} = P_ij/2 - (M_ii + M_jj)/n + sum of M_kk/(n(n - 1)) over the players k other than both."""
        own, n = m[1:], m.shape[1]
        single = own.diagonal()
        both = single[:, None] + single
        values = self.pairs(own) / 2 - both / n + (single.sum() - both) / max(n * (n - 1), 1)
        return values.diagonal_scatter(single)


class MaxMutual(Mutual):
    """As :class:`Mutual`, with P_ij = max(M_ij, M_ji)."""

    def pairs(self, own: Float[Tensor, "*k n n"]) -> Float[Tensor, "*k n n"]:
        return torch.maximum(own, own.mT)


class Maximum(MatrixGame):
    """v(S) = max of a_i over S, of any sign.

    With a_(1) <= ... <= a_(n) and a_(0) = 0, SV_(k) = sum over l <= k of (a_(l) - a_(l-1))/(n - l + 1), as of the cost
    of a runway (Littlechild and Owen, 1973).
    """

    def shapley(self, m: Float[Tensor, "k m n"], present: Bool[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        a, order, above = _ascending(m[:, 0], present)
        steps = torch.diff(a, dim=-1, prepend=torch.zeros_like(a[:, :1]))
        shares = torch.where(above > 0, steps / above.clamp(min=1), 0).cumsum(-1)
        return torch.zeros_like(a).scatter(-1, order, shares) * present

    def meta(self, m: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
        """phi_{j->i} is minus the Shapley value of the lower of the two, which is min(SV_i, SV_j)."""
        everyone = torch.ones(1, m.shape[1], dtype=torch.bool, device=m.device)
        phi = self.shapley(m[None], everyone)[0]
        return (-torch.minimum(phi[:, None], phi)).diagonal_scatter(m[0])


class RowMaximum(MatrixGame):
    """v(S) = sum over i in S of max of M_ij over j in S, of any sign.

    Row i by itself is the sum over its levels l, the steps between its sorted entries, of a game that is worth the step
    where i and one of the u players at or above the level are present. Up to M_ii, i is one of them and gets the step;
    above, i gets u/(u + 1) of it and each of the u players 1/(u(u + 1)).
    """

    def shapley(self, m: Float[Tensor, "k m n"], present: Bool[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        own = m[:, 1:]
        gained, given, _ = self._rows(own, present)
        single = own.diagonal(dim1=-2, dim2=-1)
        return (single + gained + (given * present[:, :, None]).sum(1)) * present

    def meta(self, m: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
        """phi_{j->i} and phi_{i->j} get step/(u + 1) of each level of row i that is above i and not above j.

        Of two of the u players each loses step/(u(u + 1)) by the other's presence.
        """
        own = m[1:]
        everyone = torch.ones(1, len(own), dtype=torch.bool, device=m.device)
        _, (given,), (together,) = self._rows(own[None], everyone)
        lost, lower = torch.zeros_like(own), torch.empty_like(own)
        for row in given:  # sums of steps up to the lower of two players: they do not fall with the level
            lost += torch.minimum(row[:, None], row, out=lower)
        return (together + together.mT - lost).diagonal_scatter(own.diagonal())

    def _rows(
        self, own: Float[Tensor, "k n n"], present: Bool[Tensor, "k n"]
    ) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k n n"], Float[Tensor, "k n n"]]:
        """Of each row i, over its levels above M_ii: what i gains, and by each j sums of step/(u(u + 1)), step/(u + 1).

        Those sums are over the levels that j is at or above.
        """
        a, order, above = _ascending(own, present[:, None].expand_as(own))
        rank = order.argsort(-1)
        levels = torch.arange(own.shape[-1], device=own.device)
        counted = (above > 0) & (levels > rank.diagonal(dim1=-2, dim2=-1)[..., None])
        steps = torch.where(counted, torch.diff(a, dim=-1, prepend=a[..., :1]), 0)
        players = above.clamp(min=1)
        gained = (steps * players / (players + 1)).sum(-1)
        given, together = (
            (steps / shared).cumsum(-1).gather(-1, rank) * present[:, None]
            for shared in (players * (players + 1), players + 1)
        )
        return gained, given, together


def _ascending(
    values: Float[Tensor, "*k n"], present: Bool[Tensor, "*k n"]
) -> tuple[Float[Tensor, "*k n"], Tensor, Tensor]:
    """The values of present players in ascending order, their order, and how many are at or above each place.

    Behind them the largest again, with a count of 0 or less.
    """
    order = values.masked_fill(~present, torch.inf).argsort(dim=-1, stable=True)
    n_present = present.sum(-1, keepdim=True)
    places = torch.arange(values.shape[-1], device=values.device)
    last = torch.minimum(places, (n_present - 1).clamp(min=0))
    return values.gather(-1, order).gather(-1, last), order, n_present - places


GAMES: dict[str, MatrixGame] = {
    "cls": Cls(),
    "total": Total(),
    "mutual": Mutual(),
    "max_mutual": MaxMutual(),
    "max": Maximum(),
    "row_max": RowMaximum(),
}


class AttentionGame(FirstOrder[AttendedModel]):
    """phi_i(S) = SV_i of a game on the model's attention when players outside S are absent, played by those in S.

    Each coalition needs one forward and one backward pass; absent players get 0. The values are in units of f, or
    without the gradient shares of 1. They sum to v(S), which is not an output of the model.

    Args:
        game: one of :data:`GAMES`: ``cls`` (sum of what [CLS] reads of each player), ``mutual`` (sum over pairs, both
            directions), ``max_mutual`` (the larger direction), ``total`` (all entries), ``max`` (the most that [CLS]
            reads of one player) or ``row_max`` (the most that each player reads of one player).
        gradient: if True, M is the mean of A * ReLU(df/dA) over layers and heads; if False, the mean of the weights A.
    """

    input_type = AttendedModel

    def __init__(self, game: str = "cls", *, gradient: bool = True) -> None:
        if game not in GAMES:
            raise UserError(f"attribution.method.game={game!r} is unknown: choose one of {', '.join(GAMES)}.")
        self.matrix_game = GAMES[game]
        self.gradient = gradient

    def game(self, bound: AttendedModel) -> AttributionGame:
        def attribute(coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k n"]:
            present = torch.as_tensor(coalitions, device=bound.x.device)
            return self.matrix_game.shapley(bound.influence(bound.masked(coalitions), gradient=self.gradient), present)

        return bound.game(attribute)


class ProxyAttentionGame(AttentionGame):
    """phi_i(S) = SV_i of the game on the attention of the whole input, played by the players in S.

    Only the proxy is restricted, not the model. The metagame therefore follows from one forward and one backward pass,
    in closed form.
    """

    def game(self, bound: AttendedModel) -> AttributionGame:
        m = whole_influence(bound, gradient=self.gradient)

        def attribute(coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k n"]:
            return self.matrix_game.shapley(m.expand(len(coalitions), -1, -1), torch.as_tensor(coalitions).to(m.device))

        return bound.game(attribute)

    def metagame(
        self, estimator: ConfiguredEstimator = EXACT, order: int = 1, index: str | None = None
    ) -> ProxyAttentionMetagame:
        """The metagame in closed form, without an estimator.

        Raises:
            UserError: an estimator other than ``exact``, a budget, an order above 1, or an index is given.
        """
        estimator.require_closed_form(type(self).__name__)
        if order != 1 or index is not None:
            raise UserError(
                "the closed forms of attention games exist for order 1 only: leave out attribution.order and index."
            )
        return ProxyAttentionMetagame(self)


class ProxyAttentionMetagame(Metagame[AttendedModel]):
    """phi_{j->i} of :class:`ProxyAttentionGame`, ``(n, n)``: exact, for any number of players; rows sum to SV_i."""

    method: ProxyAttentionGame

    def explain(
        self, bound: AttendedModel, progress: Progress | None = None, kept: KeptValues | None = None
    ) -> Explanation:
        """The values of every player on every other; nothing is worth keeping."""
        m, played = whole_influence(bound, gradient=self.method.gradient), self.method.matrix_game
        everyone = torch.ones(1, bound.n_players, dtype=torch.bool, device=m.device)
        phi = played.shapley(m[None], everyone)[0].cpu().numpy()
        meta = MetaAttributions(
            played.meta(m).cpu().numpy(), first_order=phi, empty=np.zeros_like(phi), n_evaluations=1,
            players=bound.players, targets=bound.targets, grid=bound.grid,
        )  # fmt: skip
        return Explanation(bound.players, bound.targets, bound.grid, attribution=phi, meta=meta)


def whole_influence(bound: AttendedModel, *, gradient: bool) -> Float[Tensor, "m n"]:
    """M of the whole input, in float64."""
    return bound.influence(bound.x[None], gradient=gradient)[0].double()


def published_sampler(
    value: Callable[[Bool[np.ndarray, "k n"]], Float[np.ndarray, " k"]],
    n_players: int,
    rng: np.random.Generator,
    draws: int = 100,
    sizes: str = "kernel",
) -> Float[np.ndarray, " n"]:
    """The Shapley values of Max-Mutual as the authors' code computes them: a biased estimate, for comparison only.

    For each coalition S drawn and each player i, v(S with i) - v(S without i) is added with the Shapley weight
    1/(n C(n - 1, s)), where s is the size of S without i; the sum is not divided by how often a coalition is drawn. Its
    expectation is not the Shapley value, see :func:`times_counted`: with 100 draws of 10 players, it is 1.9 times
    (``kernel``) or .19 times (``uniform``) as large on random games. Use the closed forms of this module instead.

    Args:
        value: maps coalitions to v.
        n_players: the number n of players.
        rng: draws the coalitions.
        draws: number of coalitions drawn.
        sizes: ``kernel``: sizes 1 to n - 1 are drawn by KernelSHAP's weight of a single coalition, without the number
            of coalitions of that size; ``uniform``: each of the 2^n coalitions is equally likely.
    """
    chances = _size_chances(n_players, sizes)
    drawn = rng.choice(n_players + 1, draws, p=chances)
    coalitions = rng.random((draws, n_players)).argsort(1).argsort(1) < drawn[:, None]
    players = np.eye(n_players, dtype=bool)
    with_player, without = coalitions[:, None] | players, coalitions[:, None] & ~players
    gains = value(with_player.reshape(-1, n_players)) - value(without.reshape(-1, n_players))
    weights = np.array([1 / (n_players * comb(n_players - 1, size)) for size in range(n_players)])
    return (gains.reshape(draws, n_players) * weights[without.sum(2)]).sum(0)


def times_counted(n_players: int, draws: int = 100, sizes: str = "kernel") -> Float[np.ndarray, " n"]:
    """How often :func:`published_sampler` counts a marginal contribution to 0, 1, ..., n - 1 players, on average.

    An estimate without bias counts each once.
    """
    chances = _size_chances(n_players, sizes)
    each = np.array([chance / comb(n_players, size) for size, chance in enumerate(chances)])
    return draws * (each[:-1] + each[1:])


def _size_chances(n_players: int, sizes: str) -> Float[np.ndarray, " s"]:
    """The chance of a coalition of each size, 0 to n."""
    if sizes not in SIZES:
        raise UserError(f"sizes={sizes!r} is unknown: choose one of {', '.join(SIZES)}.")
    if n_players < 2:
        raise UserError(f"n_players={n_players} is too small: the sampler needs at least two players.")
    counts = np.array([comb(n_players, size) for size in range(n_players + 1)], float)
    if sizes == "uniform":
        return counts / counts.sum()
    inner = np.arange(1, n_players)
    chances = np.zeros(n_players + 1)
    chances[1:-1] = (n_players - 1) / (counts[1:-1] * inner * (n_players - inner))
    return chances / chances.sum()
