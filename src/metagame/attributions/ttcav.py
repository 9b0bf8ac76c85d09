"""T-TCAV: does a class depend on a concept? Measured by concept activation vectors of a transformer's tokens."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from metagame.contracts import Explanation, Method
from metagame.errors import UserError
from metagame.games import Progress
from metagame.models.token_states import ConceptInput

TINIEST = 1e-30


@dataclass(frozen=True, kw_only=True)
class ConceptScores(Explanation):
    """T-TCAV's result for a concept; its targets are the classes by layer, each a map of patches.

    Attributes:
        layers: the layers that were examined, counted from 1.
        classes: names of the classes, in order.
        scores: the share of a class's images whose logit rises with the concept, 0 to 1, in each of r repeats.
        effects: the logit's rise from the mean of the other images to the mean of the concept's images, in each of r
            repeats.
    """

    layers: tuple[int, ...]
    classes: tuple[str, ...]
    scores: Float[np.ndarray, "c L r"]
    effects: Float[np.ndarray, "c L r"]


class TTCAV(Method[ConceptInput]):
    """Concept activation vectors of the tokens' states, and how a class's logit z changes along them.

    In each repeat, v is the unit normal of a logistic regression that separates the tokens of the concept's images from
    those of as many images of the other concepts (a relative CAV, Kim et al., 2018), after one layer. Let h_t be the
    state of token t after this layer, d_t = <dz/dh_t, v>, and A_t the attention of [CLS] in that layer, averaged over
    its heads (of [CLS] also if the model reads the patches too, as DINOv2 does). An image counts if the mean of A_t d_t
    is positive. The score, from 0 to 1, is the share of such images of the class.

    The map is the mean of s_t = A_t d_t ||A|| / ||d|| over images and repeats, and has no unit. The factor is positive,
    so it changes no score.

    Source: T-TCAV of arXiv 2508.08966 and its code. Differs from the paper: the images of the concept are also drawn
    anew in each repeat, if ``examples`` is less than their number; there is a random concept, which contrasts images of
    all concepts with others of them; and in addition to the score there is the effect, in units of z. It is the sum of
    d_t over the tokens, averaged over images, times the distance between the means of both sides along v, which is how
    a linear model would change by the step from the other concepts to this one.

    Args:
        repeats: number of draws of images.
        examples: number of images on each side in a repeat. If None, all images of the concept, and half of all images
            for the random concept.
        layers: counted from 1; if None, all but the last, behind which only [CLS] has a gradient. In a DINOv2, whose
            logits are read from [CLS] and the mean of the patches, all tokens have one there, so that None means all.
        seed: random seed for the draws.
        max_iter: maximum number of iterations of the logistic regression.

    Raises:
        UserError: there are fewer than two repeats, or ``examples`` or ``layers`` has invalid numbers.
    """

    input_type = ConceptInput

    def __init__(
        self,
        repeats: int = 50,
        examples: int | None = None,
        layers: Sequence[int] | None = None,
        seed: int = 0,
        max_iter: int = 1000,
    ) -> None:
        if not isinstance(repeats, int) or repeats < 2:
            raise UserError(f"attribution.method.repeats={repeats!r} must be at least 2, which a test needs.")
        if examples is not None and (not isinstance(examples, int) or examples < 1):
            raise UserError(f"attribution.method.examples={examples!r} must be a positive integer, or null.")
        if layers is not None and (not layers or len({*layers}) < len(layers)):
            raise UserError(f"attribution.method.layers={list(layers)} must name at least one layer, each once.")
        self.repeats = repeats
        self.examples = examples
        self.layers = layers
        self.seed = seed
        self.max_iter = max_iter

    def explain(self, bound: ConceptInput, progress: Progress | None = None) -> ConceptScores:
        """Scores, effects and maps of every class and layer.

        Raises:
            UserError: the model has no such layer, or there are too few images for repeats that differ.
        """
        sample, n_layers = bound.sample, bound.model.n_layers
        last = n_layers if bound.model.reads_patches else max(n_layers - 1, 1)
        layers = tuple(range(1, last + 1)) if self.layers is None else tuple(self.layers)
        strange = [layer for layer in layers if layer not in range(1, n_layers + 1)]
        if strange:
            raise UserError(f"attribution.method.layers has {strange[0]}: give layers from 1 to {n_layers}.")
        draws = self._draws(sample.id, len(sample.examples), len(sample.others))
        states = bound.model.states((*sample.examples, *sample.others), layers)
        found = [self._vectors(states[:, place], draws) for place in range(len(layers))]
        measured = [
            [
                measure(slopes[:, place], attention[:, place], vectors, gaps)
                for place, (vectors, gaps) in enumerate(found)
            ]
            for slopes, attention in (
                bound.model.slopes(sample.classes[name], label, layers) for name, label in bound.class_labels.items()
            )
        ]
        n_patches = bound.grid[0] * bound.grid[1]
        return ConceptScores(
            bound.players,
            tuple(f"{name}, layer {layer}" for name in bound.class_labels for layer in layers),
            bound.grid,
            attribution=np.concatenate([own[2][-n_patches:] for each in measured for own in each]),
            layers=layers,
            classes=bound.targets,
            scores=np.array([[own[0] for own in each] for each in measured]),
            effects=np.array([[own[1] for own in each] for each in measured]),
        )

    def _draws(self, name: str, n_examples: int, n_others: int) -> Int[np.ndarray, "r 2 e"]:
        """Of each repeat the places of the images of both sides, among the examples and, behind them, the others.

        Raises:
            UserError: there are not so many, or all repeats would be the same.
        """
        is_random = n_others == 0
        per_side = self.examples or (n_examples // 2 if is_random else min(n_examples, n_others))
        most = n_examples // 2 if is_random else min(n_examples, n_others)
        if per_side > most:
            raise UserError(
                f"attribution.method.examples={per_side} is too large, because concept {name} has {n_examples}"
                f" images and the others have {n_others or n_examples}: lower it to {most}."
            )
        if not is_random and per_side == n_examples == n_others:
            raise UserError(
                f"concept {name} has as many images as all others together, so that all repeats would be the same: add"
                f" a third concept, or set attribution.method.examples below {n_examples}."
            )
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        both = n_examples + n_others
        drawn = [
            rng.permutation(n_examples)[: 2 * per_side]
            if is_random
            else np.append(
                rng.permutation(n_examples)[:per_side], rng.permutation(np.arange(n_examples, both))[:per_side]
            )
            for _ in range(self.repeats)
        ]
        return np.reshape(drawn, (self.repeats, 2, per_side))

    def _vectors(
        self, states: Float[np.ndarray, "k T d"], draws: Int[np.ndarray, "r 2 e"]
    ) -> tuple[Float[np.ndarray, "r d"], Float[np.ndarray, " r"]]:
        """The CAV of each repeat, and how far apart the two sides' means are along it."""
        from sklearn.linear_model import LogisticRegression  # here, since importing it takes seconds

        vectors, gaps = [], []
        for sides in draws:
            positive, negative = (states[side].reshape(-1, states.shape[-1]) for side in sides)
            is_concept = np.repeat([1, 0], [len(positive), len(negative)])
            fitted = LogisticRegression(max_iter=self.max_iter).fit(np.concatenate([positive, negative]), is_concept)
            v = fitted.coef_[0] / max(np.linalg.norm(fitted.coef_[0]), TINIEST)
            vectors.append(v)
            gaps.append((positive @ v).mean() - (negative @ v).mean())
        return np.array(vectors), np.array(gaps)


def measure(
    slopes: Float[np.ndarray, "m T d"],
    attention: Float[np.ndarray, "m T"],
    vectors: Float[np.ndarray, "r d"],
    gaps: Float[np.ndarray, " r"],
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"], Float[np.ndarray, " T"]]:
    """Scores and effects of one class at one layer in each repeat, and the mean map.

    Args:
        slopes: dz/dh of its m images.
        attention: of [CLS].
        vectors: the CAV of each repeat.
        gaps: between the means of both sides along it.
    """
    d = np.einsum("mtd,rd->rmt", slopes, vectors)
    weighted = attention * d
    scores = (weighted.mean(-1) > 0).mean(-1)
    norms = np.linalg.norm(d, axis=-1, keepdims=True).clip(min=TINIEST)
    maps = weighted * np.linalg.norm(attention, axis=-1, keepdims=True) / norms
    return scores, d.sum(-1).mean(-1) * gaps, maps.mean((0, 1))
