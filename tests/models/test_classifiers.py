"""Classifiers of texts and images: what is masked, what is explained, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessor

from metagame.attributions.attnlrp import CPLRP, AttnLRP
from metagame.attributions.gradients import GradientInput, IntegratedHessians
from metagame.attributions.proximity import Proximity
from metagame.attributions.random_pairs import RandomPairs
from metagame.attributions.shapley import SerialShapleyValue, ShapleyInteractions
from metagame.attributions.token_baselines import RandomTokens
from metagame.contracts import Failure
from metagame.models.image_classifier import ImageClassifier
from scripts.train_text_classifier import MASK, VOCABULARY
from tests.conftest import close
from tests.reference.attention import influence
from tests.tiny.classifiers import (
    CONTEXT,
    IMAGE_NETS,
    PATCH,
    SIDE,
    TEXT,
    TEXT_NETS,
    Read,
    Seen,
    bound_image,
    bound_text,
    image_classifier,
    image_net,
    text_classifier,
    text_net,
)
from tests.tiny.language import Asked, adapter, bound_of, build_net
from tests.tiny.vision_language import refused

PRESENT = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)


@pytest.mark.parametrize("family", TEXT_NETS)
def test_a_text_without_some_tokens_is_the_text_with_masks_in_their_places(family):
    model, bound = text_classifier(family), bound_text(family=family)
    ids = torch.tensor(model.tokenizer(TEXT)["input_ids"]).repeat(len(PRESENT), 1)
    ids[:, 1:-1][~torch.from_numpy(PRESENT)] = VOCABULARY[MASK]
    logits = model.net(ids).logits
    assert bound.players == tuple(TEXT.split())
    assert bound.label == logits[0].argmax()
    assert bound.answer == model.labels[bound.label]
    assert close(bound.values(PRESENT), logits[:, bound.label])
    assert close(bound.probabilities(PRESENT), logits.softmax(-1))


def without_patches(net, pixels, present, absent):
    """Logits of an image, the embeddings of whose absent patches are replaced one by one."""
    embed = net.base_model.embeddings.patch_embeddings
    tokens = embed(pixels)
    mean = tokens[0].mean(0) if absent == "mean" else torch.zeros(tokens.shape[2])
    for patch in np.flatnonzero(~present):
        tokens[0, patch] = mean
    handle = embed.register_forward_hook(lambda *_: tokens)
    logits = net(pixels).logits
    handle.remove()
    return logits


@pytest.mark.parametrize(("family", "absent"), [("vit", "zero"), ("deit", "mean"), ("dinov2", "zero")])
def test_an_image_without_some_patches_has_their_embeddings_replaced(family, absent):
    bound = bound_image(family=family, absent=absent)
    net, pixels = image_net(family), bound.pixels[None]
    assert close(bound.values(np.ones((1, 9), bool)), net(pixels).logits[:, bound.label])
    present = np.arange(9) % 2 == 0
    assert close(bound.values(present[None]), without_patches(net, pixels, present, absent)[:, bound.label])
    assert (bound.grid, bound.targets, len(bound.players)) == ((3, 3), ("image",), (SIDE // PATCH) ** 2)
    assert bound.picture.shape == (SIDE, SIDE, 3)
    assert not bound.module.base_model.embeddings.patch_embeddings._forward_hooks


@pytest.mark.parametrize("family", [*TEXT_NETS, *IMAGE_NETS])
def test_influence_is_the_mean_over_layers_and_heads_of_weight_times_positive_slope(family):
    bound = bound_text(family=family) if family in TEXT_NETS else bound_image(family=family)
    present = np.random.default_rng(0).random((2, bound.n_players)) < 0.7
    for gradient in (True, False):
        found = bound.influence(bound.masked(present), gradient=gradient)
        assert found.shape == (2, bound.n_players + 1, bound.n_players)
        assert all(close(m, influence(bound, row, gradient=gradient)) for m, row in zip(found, present, strict=True))


@pytest.mark.parametrize(("family", "dtype"), [("vit", torch.float32), ("dinov2", torch.float64)])
def test_an_image_is_explained_in_the_precision_of_the_weights(family, dtype):
    bound = bound_image(net=image_net(family).to(dtype))
    assert bound.x.dtype == bound.pixels.dtype == dtype
    assert np.isfinite(GradientInput().explain(bound).attribution).all()


@pytest.mark.parametrize("shape", [(3, 40, 3), (3, 3, 3), (40, 30)], ids=str)
def test_the_axes_of_an_image_are_not_mistaken(shape):
    sample = Seen("one", shape)
    shown = sample.shown if len(shape) == 3 else sample.shown[..., None].repeat(3, 2)
    settings = {"do_resize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model = ImageClassifier(image_net(), ViTImageProcessor(**settings), "none")
    assert close(model.pixels(sample), torch.tensor(shown).permute(2, 0, 1) / 127.5 - 1, 1e-6)


def test_places_are_those_of_the_tokens_and_the_patches():
    assert bound_text().places == (1, 2, 3, 4)
    assert bound_image().places == tuple(range(1, 10))
    assert bound_image(family="deit").places == tuple(range(2, 11))  # behind the distillation token
    assert (text_classifier("bert").context, text_classifier("roberta").context) == (CONTEXT, CONTEXT - 1)


@pytest.mark.parametrize(
    "method",
    [ShapleyInteractions(), SerialShapleyValue(), RandomPairs(), Proximity(), GradientInput().metagame()],
    ids=lambda method: type(method).__name__,
)
def test_values_of_pairs_of_patches_are_on_the_grid(method):
    explanation = method.explain(bound_image())
    assert (explanation.grid, explanation.meta.grid, explanation.meta.values.shape) == ((3, 3), (3, 3), (9, 9))
    assert RandomTokens().explain(bound_image()).grid == (3, 3)


def test_the_label_that_is_explained_can_be_chosen_by_name_or_number():
    for label in ("bad", 0):
        bound = bound_text(explained_label=label)
        assert (bound.label, bound.answer) == (0, "bad")
    assert bound_text(net=twice_good(), explained_label=1).label == 1


def twice_good():
    return text_net(id2label={0: "bad", 1: "good", 2: "good"})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: text_classifier(explained_label="worse"), "'worse' is unknown: .* from 0 to 2, or one of bad, good,"),
        (lambda: image_classifier(explained_label=3), r"model.explained_label=3 is unknown"),
        (lambda: text_classifier(net=twice_good(), explained_label="good"), "'good' names several labels of this"),
        (lambda: text_classifier(net=text_net(id2label={0: "score"}, label2id={"score": 0})), "has 1 label, and so no"),
        (lambda: text_classifier(net=text_net().to(torch.float16)), "the weights are in half precision"),
        (lambda: image_classifier(net=image_net().to(torch.bfloat16)), "the weights are in half precision"),
        (lambda: image_classifier(absent="grey"), "model.absent='grey' is unknown"),
        (lambda: IntegratedHessians().explain(bound_image()), "needs second derivatives"),
        (lambda: AttnLRP().explain(bound_text()), "LXT has no .* rules for BertFor"),
        (lambda: CPLRP().explain(bound_image()), "LXT has no .* rules for ViTFor"),
        (lambda: in_training(text_classifier()).bind(Read("one", TEXT)), "is in training mode.* method eval"),
        (lambda: in_training(image_classifier()).bind(Seen("one")), "is in training mode.* method eval"),
        (lambda: in_training(adapter(build_net())).bind(Asked()), "is in training mode.* method eval"),
    ],
)
def test_what_a_classifier_or_a_method_of_it_cannot_be_is_refused(make, reason):
    with refused(reason):
        make()


def in_training(model):
    model.net.train()
    return model


def test_a_sample_without_an_image_costs_itself_alone():
    text, image = image_classifier().prepare([Read("one", "a text"), Seen("two")])
    assert "sample one has no image" in str(text.error)
    assert not isinstance(image, Failure)


def test_a_text_beyond_the_models_positions_costs_itself_alone_or_is_cut_and_told(caplog):
    texts = [Read("long", "good " * 20), Read("short", TEXT), Read("empty", " ")]
    long, short, empty = text_classifier().prepare(texts)
    assert "has 22 tokens, but the model has only 16 positions: shorten it" in str(long.error)
    assert not isinstance(short, Failure)
    assert "has no token that can be a player" in str(empty.error)
    with caplog.at_level(logging.WARNING):
        bound = bound_text(texts[0].text, truncate=True)
    assert (bound.n_players, bound.n_cut) == (CONTEXT - 2, 6)
    assert "the last 6 tokens are cut off" in caplog.text


def test_attention_that_keeps_no_weights_is_refused_but_for_methods_that_need_none():
    for bound in (bound_text(net=text_net(attention="sdpa")), bound_image(net=image_net(attention="sdpa"))):
        assert GradientInput().explain(bound).attribution is not None
        with refused("computes attention by 'sdpa', .*: set model.attention=eager"):
            bound.influence(bound.x[None], gradient=True)


@pytest.mark.parametrize("chat", [True, False])
def test_influence_between_the_tokens_of_a_prompt_and_on_the_positions_that_its_answer_is_read_from(chat):
    net = build_net("gemma3", torch.float64, attn_implementation="eager")
    bound = bound_of(adapter(net, chat=chat))
    present = np.array([[1, 1, 0, 1, 1]], bool)
    (found,) = bound.influence(bound.masked(present), gradient=True)
    assert close(found, influence(bound, present[0], gradient=True))
    assert not found[1:].triu(1).any()  # no token attends to what comes after it
