"""The pointing game in both directions: its scores, and whose maps they are of."""

import numpy as np
import pytest
import torch

from metagame.attributions.mask_clip import MaskCLIP
from metagame.attributions.text_side import MaskCLIPText
from metagame.benchmarks import both_ways
from metagame.benchmarks.both_ways import ALONE, TEXT, BothWays, maps_of_words
from metagame.benchmarks.digits import Digits
from metagame.benchmarks.pointing_game import ComposedScenes, PointingGame, quadrants, word_maps
from metagame.estimators.configured import ConfiguredEstimator
from tests.conftest import close
from tests.tiny.vision_language import build, prepare_one, refused

WORDS = ("one", "two", "three", "four")
OWN = quadrants(16).astype(float)
ARGUMENTS = (
    ComposedScenes(Digits(), 16), {word: place for place, word in enumerate(WORDS, start=1)}, ["-".join(WORDS)], 1,
)  # fmt: skip
FEW = ConfiguredEstimator("regression", budget_per_player=4)


@pytest.mark.parametrize(
    ("maps", "pointing", "earlier", "mass"),
    [
        (OWN, 1, 0, 1),
        (np.ones((16, 4)), 0.25, 0.375, 0.25),
        (-np.ones((16, 4)), 0.25, 0.375, None),
        (-OWN, 0, (0 + 1 + 2 + 3) / 12, None),
        (1 - OWN, 0, (0 + 1 + 2 + 3) / 12, 0),
        (np.roll(OWN, 1, axis=1), 0, 0.75, 0),
        (OWN + OWN[:, [1, 0, 2, 3]], 0.75, 0.125, 0.75),
        (OWN * [1, -1, 0, 0], (1 + 0 + 0.25 + 0.25) / 4, (0 + 1 / 3 + 0.5 + 0.75) / 4, 1),
    ],
)
def test_pointing_is_of_the_largest_sum_and_mass_of_what_is_positive(maps, pointing, earlier, mass, asked, monkeypatch):
    monkeypatch.setattr(both_ways, "maps_of_words", lambda *_: maps)
    scores = BothWays(*ARGUMENTS).score(*asked, {})
    assert close([scores["pointing"], scores["earlier"]], [pointing, earlier])
    assert scores["mass"] is None if mass is None else close(scores["mass"], mass)


@pytest.fixture(scope="module")
def asked():
    """A scene, and its questions before a small random model."""
    (scene,) = BothWays(*ARGUMENTS).samples()
    return scene, prepare_one(build("clip", torch.float32).model, scene)


def explained(asked, method):
    return {name: method.explain(bound) for name, bound in asked[1].items()}


def test_a_metagame_has_the_maps_of_the_whole_text_in_either_direction(asked):
    scene, _ = asked
    to_patches, to_word = (explained(asked, each.metagame(FEW)) for each in (MaskCLIP(), MaskCLIPText()))
    assert close(maps_of_words(scene, to_patches), to_patches[TEXT].meta.values)
    assert close(maps_of_words(scene, to_word), to_word[TEXT].meta.values.T)
    scores = BothWays(*ARGUMENTS).score(*asked, to_word)
    assert scores.keys() == {"pointing", "earlier", "mass", "recognition"}
    assert all(0 <= score <= 1 for score in scores.values())


def test_a_first_order_method_has_the_map_of_each_word_alone(asked):
    scene, bounds = asked
    found = explained(asked, MaskCLIP())
    expected = [MaskCLIP().explain(bounds[f"{ALONE}{word}"]).attribution for word in WORDS]
    assert close(maps_of_words(scene, found), np.transpose(expected), 1e-6)


def test_attributions_of_words_are_no_maps(asked):
    with refused("the pointing game needs a map of each word"):
        BothWays(*ARGUMENTS).score(*asked, explained(asked, MaskCLIPText()))
    (scene,) = PointingGame(*ARGUMENTS).samples()
    found = prepare_one(build("clip", torch.float32).model, scene)["4"]
    assert word_maps(MaskCLIPText().metagame(FEW).explain(found), 4).shape == (16, 4)
