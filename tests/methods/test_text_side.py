"""Words that are attributed while patches play: twins, efficiency, what is computed once, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch

from metagame.attributions.text_side import GenericAttentionText, GradECLIPText, MaskCLIPText
from metagame.games import all_coalitions
from metagame.models.vision_language import VisionLanguage
from tests.conftest import close
from tests.reference import vision_language as reference
from tests.reference.indices import shapley
from tests.tiny.vision_language import FAMILIES, build, prepare_one, refused, scene

WORDS = ("one", "two", "three", "four", "five")
PATCHES = ("row 0, column 0", "row 0, column 1", "row 1, column 0", "row 1, column 1")
METHODS = {
    "mask_clip": (MaskCLIPText, reference.mask_clip_text),
    "grad_eclip-one": (GradECLIPText, reference.grad_eclip_text),
    "grad_eclip-native": (partial(GradECLIPText, "native"), partial(reference.grad_eclip_text, heads="native")),
    "attention": (GenericAttentionText, reference.attention_text),
}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_method = pytest.mark.parametrize("name", METHODS)
float64 = pytest.mark.usefixtures("float64_by_default")


@float64
@each_family
@each_method
def test_words_and_their_metagame_are_those_of_the_twin_under_every_mask_of_the_image(name, family):
    make, twin = METHODS[name]
    built, ids = build(family, patch=16), build(family, patch=16).ids(" ".join(WORDS))
    bound = built.bound(words=WORDS)
    images = [reference.masked_image(bound.image.pixels, mask, 2) for mask in all_coalitions(4).tolist()]
    words = slice(0, len(WORDS)) if family == "siglip2" else slice(1, 1 + len(WORDS))
    expected = np.array([twin(built.net, image, ids, len(ids) - 1)[words] for image in images])
    assert np.ptp(expected, 0).max() > 1e-3
    assert close(make().game(bound)(all_coalitions(4)), expected)
    found = make().explain(built.bound(words=WORDS))
    assert close(found.attribution, expected[-1])
    assert (found.players, found.targets, found.grid) == (PATCHES, WORDS, None)
    phi = make().metagame().explain(built.bound(words=WORDS)).meta
    assert close(phi.values, [shapley(column, 4) for column in expected.T])
    assert close(phi.first_order, expected[-1])
    assert close(phi.empty, expected[0])
    assert (phi.players, phi.targets, phi.grid, phi.endogenous) == (PATCHES, WORDS, None, False)


@float64
@pytest.mark.parametrize("family", ["clip", "open_clip", "siglip2"])
def test_a_word_of_several_tokens_has_their_sum(family):
    single, joint = (build(family).bound(words=words) for words in (("one", "two", "three"), ("one two", "three")))
    for method in (MaskCLIPText(), GradECLIPText(), GenericAttentionText()):
        one, two, three = method.explain(single).attribution
        assert close(method.explain(joint).attribution, [one + two, three])


def test_a_text_is_read_once_and_a_coalition_takes_one_pass_of_the_image_for_all_methods_and_texts(monkeypatch):
    model = build("clip", torch.float32, patch=16).model
    images, texts, made = [], [], []
    encode, read, vectors = model.encode_images, model.last_text_input, MaskCLIPText.vectors
    monkeypatch.setattr(model, "encode_images", lambda pixels: images.append(len(pixels)) or encode(pixels))
    monkeypatch.setattr(model, "last_text_input", lambda text: texts.append(text) or read(text))
    monkeypatch.setattr(MaskCLIPText, "vectors", lambda *args: made.append(1) or vectors(*args))
    mask, grad = MaskCLIPText(), GradECLIPText()
    for inputs in model.prepare([scene(seed, a=("one", "two"), b=("three",)) for seed in range(2)]):
        for bound in inputs.values():
            for method in (mask, mask.metagame(), grad.metagame()):
                method.explain(bound)
    assert sum(images) == 2 * 16
    assert len(texts) == 2 * 2  # a method takes each text apart once for all images
    assert len(made) == 2


def test_images_are_masked_in_batches_of_the_model(monkeypatch):
    model = build("clip", torch.float32, patch=16).model
    model.batch_size = 5
    images, encode = [], model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: images.append(len(pixels)) or encode(pixels))
    MaskCLIPText().metagame().explain(prepare_one(model, scene())["text"])
    assert max(images) == 5
    assert sum(images) == 16


def test_what_is_not_known_of_a_text_encoder_is_refused(monkeypatch):
    with refused("heads='two' must be 'one' or 'native'"):
        GradECLIPText("two")
    bound = build("clip", torch.float32).bound()
    monkeypatch.setattr(type(bound.model), "text_view", VisionLanguage.text_view)
    with refused("nothing is known of the last block of CLIP's text encoder.* define text_view"):
        MaskCLIPText().explain(bound)


@each_family
def test_a_text_that_is_read_elsewhere_is_refused(family, monkeypatch):
    bound = build(family, torch.float32).bound()
    monkeypatch.setattr(bound.model, "place_read", lambda text: 1)
    with refused(f"the text encoder of {type(bound.model).__name__} does not read token 1 of a text .* alone"):
        GradECLIPText().explain(bound)
