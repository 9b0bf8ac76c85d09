"""ConceptAttention and its metagame, each with the softmax before or after the mean over layers."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from metagame.concept import concept_metagame
from metagame.contracts import Explanation, Method
from metagame.errors import UserError
from metagame.estimators.configured import EXACT, ConfiguredEstimator
from metagame.games import Progress
from metagame.meta import MetaAttributions
from metagame.models.concepts import ConceptLogits


class ConceptAttention(Method[ConceptLogits]):
    """The share of each concept in each patch of an image, from 0 to 1; a patch shows the concept of largest share.

    The softmax is over all concepts in each layer, followed by the mean over layers (Helbling et al., 2025). The maps
    of players come first, then those of background concepts, in float32.

    Args:
        mean_first: whether the mean over layers comes before the softmax.
        directional: a setting of its metagame, see :class:`MetaConceptAttention`.
    """

    input_type = ConceptLogits

    def __init__(self, mean_first: bool = False, directional: bool = False) -> None:
        self.mean_first = mean_first
        self.directional = directional

    def explain(self, bound: ConceptLogits, progress: Progress | None = None) -> Explanation:
        """The maps of all concepts.

        Raises:
            UserError: influences between concepts are requested, which only the metagame has.
        """
        if self.directional:
            raise UserError(
                "attribution.method.directional=true needs attribution.meta=true, because only the metagame of"
                " ConceptAttention has influences between concepts."
            )
        return Explanation(
            bound.players, bound.targets, bound.grid, attribution=_flat(concept_maps(bound, self.mean_first))
        )

    def metagame(
        self, estimator: ConfiguredEstimator = EXACT, order: int = 1, index: str | None = None
    ) -> MetaConceptAttention:
        """The metagame in closed form.

        Raises:
            UserError: an estimator other than ``exact``, or interactions of pairs are requested.
        """
        estimator.require_closed_form("ConceptAttention")
        if order != 1 or index is not None:
            raise UserError(
                "the metagame of ConceptAttention exists for order 1 only: leave out attribution.order and index."
            )
        return MetaConceptAttention(self.mean_first, self.directional)


class MetaConceptAttention(Method[ConceptLogits]):
    """Maps of the players by the concept metagame (paper App. C.4), from 0 to 1.

    They are followed by the maps of background concepts, which are those of ConceptAttention, softmax first. All are
    in float32.

    Differs from the paper: without ``mean_first`` it is the metagame of ConceptAttention itself, whose softmax the
    paper's enumeration could not afford in each layer.

    Args:
        mean_first: if True, the metagame of the mean of the logits over layers, as in the paper. If False, the mean
            over layers of the metagame in each layer; the Shapley value is linear.
        directional: whether to also return how much each player changes the maps of the others. The targets of ``meta``
            are then the patches of the players' maps; its values are phi_{j->t} <= 0 for another player j and
            w_t/(B + w_t) for the player itself.
    """

    input_type = ConceptLogits

    def __init__(self, mean_first: bool = False, directional: bool = False) -> None:
        self.mean_first = mean_first
        self.directional = directional

    def explain(self, bound: ConceptLogits, progress: Progress | None = None) -> Explanation:
        """The maps of all concepts, and the influences between players if requested.

        Raises:
            GameError: a logit is NaN or inf.
        """
        maps, pairs = metagame_maps(bound, self.mean_first, self.directional)
        meta = None
        if pairs is not None:
            by_patch = pairs.transpose(0, 2, 1).reshape(-1, len(bound.players)).astype(np.float32)
            meta = MetaAttributions(
                by_patch,
                first_order=concept_maps(bound, self.mean_first)[: len(bound.players)].ravel(),
                empty=np.zeros(len(by_patch)),
                standard_error=np.zeros_like(by_patch),
                players=bound.players,
                targets=bound.players,
                grid=bound.grid,
            )
        return Explanation(bound.players, bound.targets, bound.grid, attribution=_flat(maps), meta=meta)


def concept_maps(logits: ConceptLogits, mean_first: bool = False) -> Float[np.ndarray, "c P"]:
    """ConceptAttention's maps of the players, then of background concepts, in float64."""
    return _shares(logits, mean_first).cpu().numpy()


def _shares(logits: ConceptLogits, mean_first: bool = False) -> Float[torch.Tensor, "c P"]:
    every = torch.cat([logits.player_logits, logits.background_logits], dim=1).double()
    return every.mean(0).softmax(0) if mean_first else every.softmax(1).mean(0)


def metagame_maps(
    logits: ConceptLogits, mean_first: bool = False, directional: bool = False
) -> tuple[Float[np.ndarray, "c P"], Float[np.ndarray, "n n P"] | None]:
    """The maps of :class:`MetaConceptAttention`, and the influences between players if requested.

    Their error is below 1e-9 on a CPU, and about 1e-6 on other devices.
    """
    both = logits.player_logits, logits.background_logits
    dtype = arithmetic(logits.player_logits.device.type)
    if mean_first:
        means = (part.double().mean(0) for part in both)
        diag, pairs = concept_metagame(*means, directional, dtype=dtype)
    else:
        n_layers, _, n_patches = logits.player_logits.shape
        # a layer's patches are patches of their own
        every = (part.transpose(0, 1).flatten(1) for part in both)
        diag, pairs = concept_metagame(*every, directional, dtype=dtype)
        diag = diag.unflatten(1, (n_layers, n_patches)).mean(1)
        pairs = None if pairs is None else pairs.unflatten(2, (n_layers, n_patches)).mean(2)
    maps = torch.cat([diag.double(), _shares(logits)[len(logits.players) :]]).cpu().numpy()
    return maps, None if pairs is None else pairs.cpu().numpy()


def arithmetic(device_type: str) -> torch.dtype:
    """What a metagame is computed in: float64 moves twice the memory of float32, and most GPUs are slow at it."""
    return torch.float64 if device_type == "cpu" else torch.float32


def _flat(maps: Float[np.ndarray, "c P"]) -> Float[np.ndarray, " c*P"]:
    return maps.reshape(-1).astype(np.float32)
