"""T-TCAV: against its slow twin, what it counts, and what it refuses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from metagame.attributions.ttcav import TTCAV
from metagame.benchmarks.concept_scores import RANDOM, relative_concepts
from metagame.contracts import WHOLE, Failure, Sample
from metagame.errors import UserError
from metagame.models.image_classifier import ImageClassifier
from metagame.viewer.views import view
from tests.reference import ttcav as twin
from tests.tiny.classifiers import SIDE, image_classifier, image_net

N = 12


@dataclass(frozen=True)
class Noise(Sample):
    id: str
    seed: int
    least: int = 0

    def image(self) -> Image.Image:
        pixels = np.random.default_rng(self.seed).integers(self.least, 255, (SIDE, SIDE, 3), np.uint8)
        return Image.fromarray(pixels)


def noise(name: str, count: int, least: int = 0) -> list[Noise]:
    first = 100 * sum(map(ord, name))
    return [Noise(f"{name}_{k}", first + k, least) for k in range(count)]


def concepts(**counts: int):
    counts = counts or {"bright": N, "dark": N, "grey": N}
    images = {name: noise(name, count, 40 * place) for place, (name, count) in enumerate(counts.items())}
    return relative_concepts(images, {"good": noise("good", 3), "bad": noise("bad", 2)})


def bound(model: ImageClassifier, concept):
    return model.bind_any(concept)[WHOLE]


def test_images_with_the_same_ids_in_another_data_set_are_other_images():
    classes = {"good": noise("good", 3), "bad": noise("bad", 2)}
    samples = [
        relative_concepts({"bright": noise("bright", N, least), "dark": noise("dark", N, 2 * least)}, classes)[0]
        for least in (0, 80)
    ]
    method, model = TTCAV(repeats=2, examples=6), image_classifier("vit")
    again = [method.explain(bound(model, sample)).effects for sample in samples]
    fresh = [method.explain(bound(image_classifier("vit"), sample)).effects for sample in samples]
    assert np.array_equal(again, fresh)
    assert not np.array_equal(*again)


@pytest.mark.parametrize("concept", ["bright", RANDOM])
def test_scores_effects_and_maps_are_those_of_the_slow_twin(concept):
    model = image_classifier("vit")
    sample = next(each for each in concepts() if each.id == concept)
    method = TTCAV(repeats=2, examples=4, layers=[1, 2])
    found = method.explain(bound(model, sample))
    images = [*sample.examples, *sample.others]
    n_patches = found.grid[0] * found.grid[1]
    maps = found.attribution.reshape(2, 2, n_patches)
    for at, layer in enumerate((1, 2)):
        states = [twin.through(model.net, each, layer)[0][0].detach().numpy() for each in map(model.pixels, images)]
        vectors, gaps = [], []
        for sides in method._draws(sample.id, len(sample.examples), len(sample.others)):
            positive, negative = (np.concatenate([states[k] for k in side]) for side in sides)
            (fitted,), _ = method._vectors(np.array(states), sides[None])
            assert twin.cav(positive, negative) @ fitted > 0.999  # scikit-learn stops before the minimum
            vectors.append(fitted)
            gaps.append(np.mean(positive @ fitted) - np.mean(negative @ fitted))
        for c, (name, label) in enumerate({"good": 1, "bad": 0}.items()):
            own = list(map(model.pixels, sample.classes[name]))
            scores, sums, drawn = twin.measured(model.net, own, label, layer, vectors)
            assert found.scores[c, at] == pytest.approx(scores, abs=1e-9)
            assert found.effects[c, at] == pytest.approx(np.multiply(sums, gaps), rel=1e-6, abs=1e-9)
            assert maps[c, at] == pytest.approx(drawn[1:], rel=1e-6, abs=1e-9)


def test_the_page_shows_a_map_of_each_class_and_layer():
    shown = view(TTCAV(repeats=2, layers=[1, 2]).explain(bound(image_classifier(), concepts()[0])))
    (layer,) = shown["layers"]
    assert (shown["grid"], layer["names"][:2], layer["values"]["shape"]) == (
        (3, 3), ["good, layer 1", "good, layer 2"], [4, 9]
    )  # fmt: skip


def test_behind_the_last_layer_only_what_the_head_reads_has_a_gradient():
    concept = concepts()[0]
    found = TTCAV(repeats=2, layers=[2]).explain(bound(image_classifier(), concept))
    assert np.abs(found.attribution).max() == 0
    assert TTCAV(repeats=2).explain(bound(image_classifier(), concept)).layers == (1,)
    found = TTCAV(repeats=2).explain(bound(image_classifier("dinov2"), concept))
    assert found.layers == (1, 2)
    assert np.abs(found.attribution.reshape(len(found.classes), 2, -1)).max(2).min() > 0


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_each_image_goes_through_the_model_once_and_back_once(family, monkeypatch):
    net, passes = image_net(family), Counter()
    net.register_forward_pre_hook(lambda _, given: passes.update(images=len(given[0])))
    gradient = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given: passes.update(backward=1) or gradient(*given))
    model = image_classifier(family, net)
    for sample in concepts():
        TTCAV(repeats=3, layers=[1, 2], examples=5).explain(bound(model, sample))
    assert passes == {"images": 3 * N + 3 + 2, "backward": 2}


def test_a_small_concept_is_refused_and_none_of_the_others():
    model = image_classifier()
    prepared = model.prepare(concepts(bright=N, few=9, grey=N))
    assert [isinstance(each, Failure) for each in prepared] == [False, True, False, False]
    assert str(prepared[1].error) == "concept few has 9 images and needs 10: add images to it, or leave it out."
    assert {image.id.split("_")[0] for image in prepared[0][WHOLE].sample.others} == {"grey"}


def test_draws_differ_and_the_sides_have_nothing_in_common():
    for n_examples, n_others in ((12, 24), (36, 0)):
        draws = TTCAV(repeats=5, examples=8)._draws("bright", n_examples, n_others)
        assert len({tuple(sorted(positive)) + tuple(sorted(negative)) for positive, negative in draws}) == 5
        for positive, negative in draws:
            assert len({*positive, *negative}) == 16
            assert n_others == 0 or max(positive) < n_examples <= min(negative)


@pytest.mark.parametrize(
    ("settings", "counts", "told"),
    [
        ({"layers": [3]}, {}, "layers has 3: give layers from 1 to 2"),
        ({"examples": 13}, {}, "examples=13 is too large, .* lower it to 12"),
        ({}, {"bright": N, "dark": N}, "all repeats would be the same"),
    ],
)
def test_what_has_no_answer_is_refused(settings, counts, told):
    with pytest.raises(UserError, match=told):
        TTCAV(**settings).explain(bound(image_classifier(), concepts(**counts)[0]))


def test_settings_without_a_meaning_and_unknown_classes_are_refused():
    for settings in ({"repeats": 1}, {"examples": 0}, {"layers": []}, {"layers": [1, 1]}):
        with pytest.raises(UserError, match=f"attribution.method.{next(iter(settings))}="):
            TTCAV(**settings)
    images = {name: noise(name, N) for name in ("bright", "dark")}
    (sample, *_) = relative_concepts(images, {"zebra": noise("zebra", 2)})
    with pytest.raises(UserError, match="class zebra is not the name of exactly one label"):
        bound(image_classifier(), sample)
