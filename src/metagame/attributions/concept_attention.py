"""ConceptAttention, Meta-ConceptAttention, and both with the softmax and the mean over layers in the other order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from metagame.concept import concept_metagame
from metagame.games import GameError, Progress
from metagame.models.concepts import ConceptLogits


@dataclass(frozen=True)
class ConceptMaps:
    """Maps of concepts over patches; a patch shows what is largest there.

    Attributes:
        players: of each player, from 0 to 1.
        background: of each concept that is always present, from 0 to 1.
        directional: influence of the second index's player on the map of the first's, see :func:`concept_metagame`.
    """

    players: Float[np.ndarray, "n P"]
    background: Float[np.ndarray, "m P"]
    directional: Float[np.ndarray, "n n P"] | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not np.isfinite(value).all():
                raise GameError(f"the maps of {name} hold NaN or inf: check the model on this image.")


@dataclass(frozen=True)
class ConceptExplanation:
    """What several methods make of the same logits.

    Attributes:
        maps: by method.
        picture: the image, where the model painted it.
    """

    maps: dict[str, ConceptMaps]
    picture: UInt8[np.ndarray, "H W 3"] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Maps in float32 as ``method.players`` and so on, and the picture."""
        named = {
            f"{method}.{name}": value.astype(np.float32)
            for method, maps in self.maps.items()
            for name, value in vars(maps).items()
            if value is not None
        }
        return named if self.picture is None else named | {"picture": self.picture}


class ConceptAttention:
    """Explains the patches of an image by concepts, in several ways at once: the logits are the same.

    Args:
        variants: names in :data:`VARIANTS`.
        directional: also the influence of each player on each player's map, of those that are metagames.

    Raises:
        GameError: a variant is not known.
    """

    explicand_type = ConceptLogits

    def __init__(self, variants: Sequence[str], directional: bool = False) -> None:
        unknown = [name for name in variants if name not in VARIANTS]
        if unknown or not variants:
            raise GameError(f"attribution.method.variants={list(variants)}: give some of {', '.join(VARIANTS)}.")
        self.variants = tuple(variants)
        self.directional = directional

    def explain(self, explicand: ConceptLogits, progress: Progress | None = None) -> ConceptExplanation:
        """The maps of each variant."""
        maps = {name: VARIANTS[name](explicand, self.directional) for name in self.variants}
        return ConceptExplanation(maps, explicand.picture)


def concept_attention(logits: ConceptLogits, directional: bool = False) -> ConceptMaps:
    """Softmax over all concepts in each layer, then the mean over layers (Helbling et al., 2025)."""
    return _first_order(logits, _all(logits).softmax(1).mean(0))


def mean_first(logits: ConceptLogits, directional: bool = False) -> ConceptMaps:
    """The mean over layers first, then the softmax: ConceptAttention as the metagame sees it."""
    return _first_order(logits, _all(logits).mean(0).softmax(0))


def meta_concept_attention(logits: ConceptLogits, directional: bool = False) -> ConceptMaps:
    """The concept metagame on the mean logits; the background is ConceptAttention's (paper App. C.4)."""
    players, background = (part.double().mean(0) for part in (logits.player_logits, logits.background_logits))
    diag, pairs = concept_metagame(players, background, directional)
    return _meta(logits, diag, pairs)


def meta_per_layer(logits: ConceptLogits, directional: bool = False) -> ConceptMaps:
    """The concept metagame in each layer, then the mean: the metagame of ConceptAttention itself.

    The Shapley value is linear, so the mean over layers of the values is the value of the mean.

    Differs from the paper: it takes the mean first, since its enumeration could not afford a softmax for each layer.
    """
    n_layers, _, n_patches = logits.player_logits.shape
    # a layer's patches are patches of their own
    players, background = (part.transpose(0, 1).flatten(1) for part in (logits.player_logits, logits.background_logits))
    diag, pairs = concept_metagame(players, background, directional)
    diag = diag.unflatten(1, (n_layers, n_patches)).mean(1)
    return _meta(logits, diag, None if pairs is None else pairs.unflatten(2, (n_layers, n_patches)).mean(2))


VARIANTS: dict[str, Callable[[ConceptLogits, bool], ConceptMaps]] = {
    "concept_attention": concept_attention,
    "mean_first": mean_first,
    "meta_concept_attention": meta_concept_attention,
    "meta_per_layer": meta_per_layer,
}
"""Ways to make maps of logits, by name."""


def _all(logits: ConceptLogits) -> Float[Tensor, "L n+m P"]:
    return torch.cat([logits.player_logits, logits.background_logits], dim=1).double()


def _first_order(logits: ConceptLogits, shares: Float[Tensor, "n+m P"]) -> ConceptMaps:
    found = shares.cpu().numpy()
    return ConceptMaps(found[: len(logits.players)], found[len(logits.players) :])


def _meta(logits: ConceptLogits, diag: Float[Tensor, "n P"], pairs: Float[Tensor, "n n P"] | None) -> ConceptMaps:
    return ConceptMaps(
        diag.cpu().numpy(), concept_attention(logits).background, None if pairs is None else pairs.cpu().numpy()
    )
