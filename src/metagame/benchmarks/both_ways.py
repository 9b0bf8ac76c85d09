"""The pointing game in both directions: do the patches that move a word lie on its object, and the other way round?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from metagame.benchmarks.pointing_game import PointingGame, Scene, quadrants, recognition, word_maps
from metagame.contracts import WHOLE, Explanation
from metagame.models.vision_language import ImageText, Tokenizer, WordPlayers

ALONE = "word: "
"""Before a word: the name of the question about the text that this word is."""


class SceneInWords(Scene):
    """A scene with the text of its four words, and with each of them as a text of its own."""

    def texts(self, tokenizer: Tokenizer) -> dict[str, WordPlayers]:
        texts = {WHOLE: self.words} | {f"{ALONE}{word}": [word] for word in self.words}
        return {name: WordPlayers(tokenizer, words) for name, words in texts.items()}


class BothWays(PointingGame):
    """Scores of a map for each word: ``pointing``, ``mass`` and ``recognition``, each the mean over the words.

    A metagame has the map of a word from its values for the whole text, in either direction; a first-order method for
    patches has the map of the text that is the word alone. Pointing: 1 where the word's own quadrant has the largest
    sum of the map, 0 elsewhere; equal quadrants share it. Mass: the share of what is positive that lies in the own
    quadrant. Both are 1/4 for a map that is the same everywhere. For ``mass`` words without positive values are left
    out, and it is None where that is all of them. Recognition is that of the pointing game.
    """

    def samples(self) -> list[Scene]:
        return [SceneInWords(**vars(scene)) for scene in super().samples()]

    def score(
        self, sample: Scene, inputs: Mapping[str, ImageText], explanations: Mapping[str, Explanation]
    ) -> dict[str, float | None]:
        maps = maps_of_words(sample, explanations)
        return {"pointing": pointing(maps), "mass": mass(maps), "recognition": recognition(maps)}


def maps_of_words(scene: Scene, explanations: Mapping[str, Explanation]) -> Float[np.ndarray, "P 4"]:
    """The map of each word, of a metagame by the whole text, of a first-order method by the word alone.

    Raises:
        UserError: the method has no maps of patches.
    """
    whole = explanations[WHOLE]
    if whole.meta is not None:
        return word_maps(whole, len(scene.words))
    return np.concatenate([word_maps(explanations[f"{ALONE}{word}"], 1) for word in scene.words], axis=1)


def sums(maps: Float[np.ndarray, "P 4"]) -> Float[np.ndarray, "4 4"]:
    """Of each word (row) the sum of its map in each quadrant."""
    return maps.T @ quadrants(len(maps))


def pointing(maps: Float[np.ndarray, "P 4"]) -> float:
    """The share of words whose own quadrant has the largest sum; of equal quadrants each counts in part."""
    found = sums(maps)
    largest = found == found.max(1, keepdims=True)
    return float(np.mean(np.diag(largest) / largest.sum(1)))


def mass(maps: Float[np.ndarray, "P 4"]) -> float | None:
    """The share of positive values in the own quadrant, mean over words that have any; None where none has."""
    found = sums(maps.clip(min=0))
    total = found.sum(1)
    return float(np.mean(np.diag(found)[total > 0] / total[total > 0])) if (total > 0).any() else None
