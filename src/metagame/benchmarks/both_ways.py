"""The pointing game in both directions: do the patches that move a word lie on its object, and the other way round?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from metagame.benchmarks.pointing_game import PointingGame, Scene, quadrants, recognition, word_maps
from metagame.contracts import Explanation
from metagame.models.vision_language import ImageText, Tokenizer, WordPlayers

TEXT, ALONE = "text", "word: "
"""Names of the questions about a scene: its four words, and before a word the text that this word is."""
EARLIER = np.tri(4, k=-1, dtype=bool)
"""Of each word (row) the quadrants of those before it."""


class SceneInWords(Scene):
    """A scene with the text of its four words, and with each of them as a text of its own."""

    def texts(self, tokenizer: Tokenizer) -> dict[str, WordPlayers]:
        texts = {TEXT: self.words} | {f"{ALONE}{word}": [word] for word in self.words}
        return {name: WordPlayers(tokenizer, words) for name, words in texts.items()}


class BothWays(PointingGame):
    """Scores of a map for each word: ``pointing``, ``earlier``, ``mass`` and ``recognition``, means over the words.

    For a metagame, the map of a word consists of its values for the whole text, in either direction; for a first-order
    method for patches, it is the map of the word alone as text. Pointing is 1 if the map has the largest sum in the
    word's own quadrant, and 0 otherwise; quadrants with equal sums share it. Earlier is the same for the quadrants of
    the words before it in the text. Mass is the share of the positive values that lies in the own quadrant; words
    without positive values are left out, and it is None if these are all words. Recognition is that of the pointing
    game. A constant map has 1/4 in pointing and mass, and 3/8 in earlier.
    """

    def samples(self) -> list[Scene]:
        return [SceneInWords(**vars(scene)) for scene in super().samples()]

    def score(
        self, sample: Scene, inputs: Mapping[str, ImageText], explanations: Mapping[str, Explanation]
    ) -> dict[str, float | None]:
        maps = maps_of_words(sample, explanations)
        found = pointed(maps)
        pointing, earlier = (float(found[places].sum() / len(found)) for places in (np.eye(4, dtype=bool), EARLIER))
        return {"pointing": pointing, "earlier": earlier, "mass": mass(maps), "recognition": recognition(maps)}


def maps_of_words(scene: Scene, explanations: Mapping[str, Explanation]) -> Float[np.ndarray, "P 4"]:
    """The map of each word, of a metagame by the whole text, of a first-order method by the word alone.

    Raises:
        UserError: the method has no maps of patches.
    """
    whole = explanations[TEXT]
    if whole.meta is not None:
        return word_maps(whole, len(scene.words))
    return np.concatenate([word_maps(explanations[f"{ALONE}{word}"], 1) for word in scene.words], axis=1)


def sums(maps: Float[np.ndarray, "P 4"]) -> Float[np.ndarray, "4 4"]:
    """Of each word (row) the sum of its map in each quadrant."""
    return maps.T @ quadrants(len(maps))


def pointed(maps: Float[np.ndarray, "P 4"]) -> Float[np.ndarray, "4 4"]:
    """Of each word (row) 1 for the quadrant with the largest sum; equal ones share it."""
    found = sums(maps)
    largest = found == found.max(1, keepdims=True)
    return largest / largest.sum(1, keepdims=True)


def mass(maps: Float[np.ndarray, "P 4"]) -> float | None:
    """The share of positive values in the own quadrant, mean over words that have any; None where none has."""
    found = sums(maps.clip(min=0))
    total = found.sum(1)
    return float(np.mean(np.diag(found)[total > 0] / total[total > 0])) if (total > 0).any() else None
