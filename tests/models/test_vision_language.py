import importlib
import inspect
import json
import pkgutil
from contextlib import contextmanager
from functools import partial

import numpy as np
import open_clip
import pytest
import requests
import torch
from huggingface_hub.errors import GatedRepoError
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import Sequence as Normalizers
from torch import nn
from torch.nn.functional import normalize
from transformers import BertConfig, Siglip2Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from metagame import UserError, attributions, indices
from metagame.attributions.fixlip import CrossedCoalitions, FIxLIP
from metagame.attributions.generic_attention import GenericAttention, run_from
from metagame.attributions.grad_eclip import GradECLIP, GradESigLIP, min_max
from metagame.attributions.mask_clip import MaskCLIP, MaskSigLIP
from metagame.attributions.method import FirstOrder, Metagame
from metagame.contracts import Failure
from metagame.estimators.configured import ConfiguredEstimator
from metagame.games import all_coalitions
from metagame.images import grid_side
from metagame.models.clip import CLIP
from metagame.models.encoder_views import ClassTokenView
from metagame.models.open_clip import OpenCLIP, adapt_tokenizer
from metagame.models.pretrained import PretrainedTokenizer, load_pretrained
from metagame.models.siglip2 import SigLIP2
from metagame.models.vision_language import ImageText, Text, TokenPlayers, WordPlayers
from scripts.train_vision_language import END, PAD, START, VOCABULARY
from tests.conftest import close
from tests.reference import indices as reference_indices
from tests.reference import vision_language as reference
from tests.tiny.vision_language import (
    CLASS_TOKEN_FAMILIES,
    CLASS_TOKEN_METHODS,
    FAMILIES,
    FAMILIES_AND_METHODS,
    PROBE_METHODS,
    SCENARIOS,
    Scene,
    build,
    picture,
    prepare_one,
    refused,
    save,
    scene,
)

FLOAT32_TOLERANCE = 1e-5
WORDS = ("one", "two", "three")
TEXTS = ["", "one", "three two", "four one two", "nine"]
FOLDERS = {"clip": CLIP, "metaclip2": CLIP, "siglip2": SigLIP2, "open_clip": OpenCLIP}
float64 = pytest.mark.usefixtures("float64_by_default")
each_family = pytest.mark.parametrize("family", FAMILIES)
each_method = pytest.mark.parametrize(
    ("family", "method"),
    FAMILIES_AND_METHODS,
    ids=[f"{family}-{method.name}" for family, method in FAMILIES_AND_METHODS],
)


def batch_of(model, count=3):
    """Pixels of several images, ``(count, 3, H, W)``."""
    return torch.stack([model.process(picture(seed)) for seed in range(count)]).to(model.dtype)


def own_image_embeddings(built, pixels):
    """Those of the model itself, without the adapter."""
    own = built.model.net.encode_image if built.family == "open_clip" else built.net.get_image_features
    return own(pixels).detach()


def text_of(built, words):
    return WordPlayers(built.model.tokenizer, words.split()).dropped([True] * len(words.split()))


@each_family
@pytest.mark.parametrize("start", [0, 1, -1])
@torch.no_grad()
def test_blocks_of_the_tower_give_the_models_own_image_embedding(family, start):
    built = build(family, torch.float32)
    pixels, tower = batch_of(built.model), built.model.encoder_view
    x = built.model.block_input(pixels, start)
    for block in tower.blocks[start:]:
        _, x = block.forward(x)
    found = tower.project(x[:, 0]) if isinstance(tower, ClassTokenView) else tower.head.forward(tower.norm(x))[1]
    expected = own_image_embeddings(built, pixels)
    assert close(found, expected, FLOAT32_TOLERANCE)
    assert close(built.model.encode_images(pixels), expected, FLOAT32_TOLERANCE)


@each_family
@torch.no_grad()
def test_block_can_run_for_some_tokens_only(family):
    built = build(family, torch.float32)
    x = built.model.block_input(batch_of(built.model), -1)
    block = built.model.encoder_view.blocks[-1]
    weights, output = block.forward(x)
    row_weights, row_output = block.forward(x, rows=slice(0, 1))
    assert close(row_weights, weights[:, :, :1], FLOAT32_TOLERANCE)
    assert close(row_output, output[:, :1], FLOAT32_TOLERANCE)
    assert close(weights.sum(-1), np.ones(weights.shape[:-1]), FLOAT32_TOLERANCE)


@each_family
@pytest.mark.parametrize("start", [0, 2])
def test_traced_embedding_is_the_models_own(family, start):
    built = build(family, torch.float32)
    pixels = batch_of(built.model, 1)
    found = run_from(built.model.encoder_view, built.model.block_input(pixels, start), start).embedding.detach()
    assert close(found, normalize(own_image_embeddings(built, pixels), dim=-1), FLOAT32_TOLERANCE)


@each_family
@torch.no_grad()
def test_score_times_scale_is_the_models_own_logit(family):
    built = build(family, torch.float32)
    model, pixels = built.model, batch_of(built.model)
    images = normalize(model.encode_images(pixels), dim=-1)
    logits = model.logit_scale * images @ model.embed([text_of(built, words) for words in TEXTS]).T
    tokens = built.tokenizer(TEXTS, padding="max_length", max_length=8, return_tensors="pt")
    if family == "open_clip":
        expected = model.net.get_logits(pixels, tokens["input_ids"])[0]
    else:
        expected = built.net(pixel_values=pixels, **tokens).logits_per_image - getattr(built.net, "logit_bias", 0)
    assert close(logits, expected, FLOAT32_TOLERANCE * float(model.logit_scale))
    assert model.logit_scale.shape == ()


@float64
@pytest.mark.parametrize("family", ["clip", "metaclip2", "siglip2"])
def test_slow_twin_has_the_models_own_image_embedding(family):
    built = build(family)
    pixels = batch_of(built.model, 1)
    assert close(reference.image_embedding(built.net, pixels[0]).detach(), own_image_embeddings(built, pixels)[0])


@float64
@each_method
def test_maps_of_all_coalitions_match_the_slow_twin(family, method):
    built = build(family)
    bound = built.bound()
    found = method.make().game(bound)(all_coalitions(3))
    assert close(found, built.twin_table(method, bound))
    assert (np.abs(found).max(1) > 2e-3).all()


@float64
@each_method
def test_maps_of_other_weights_and_another_image_match_the_slow_twin(family, method):
    built = build(family, patch=16, seed=1)
    bound = built.bound(seed=5, words=("nine", "four"))
    found = method.make().explain(bound).attribution
    assert close(found, built.twin(method, bound, ("nine", "four")))
    assert found.shape == (4,)


@float64
@pytest.mark.parametrize("family", ["clip", "metaclip2", "siglip2"])
def test_eager_attention_changes_no_map(family):
    """Its softmax is in float32, whatever the model's type."""
    built = build(family)
    built.net.set_attn_implementation("eager")
    bound = built.bound()
    for method in PROBE_METHODS if family == "siglip2" else CLASS_TOKEN_METHODS:
        found = method.make().explain(bound).attribution
        assert close(found, built.twin(method, bound, WORDS), 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", ["last", 2])
def test_the_last_layer_has_a_number_too(family, last):
    bound = build(family, torch.float32).bound()
    default, numbered = (GenericAttention(*start).explain(bound).attribution for start in ((), (last,)))
    assert np.array_equal(default, numbered)


@pytest.mark.parametrize("family", CLASS_TOKEN_FAMILIES)
def test_one_head_is_the_default_and_differs_from_the_models_heads(family):
    bound = build(family, torch.float32).bound()
    default, one, native = (GradECLIP(*heads).explain(bound).attribution for heads in ((), ("one",), ("native",)))
    assert np.array_equal(default, one)
    assert not close(one, native, 1e-3)


@pytest.mark.parametrize("method", CLASS_TOKEN_METHODS, ids=lambda method: method.name)
def test_open_clip_and_transformers_agree_on_the_same_weights(method):
    ours, theirs = (build(family, torch.float32).bound() for family in ("clip", "open_clip"))
    found, expected = (method.make().game(bound)(all_coalitions(3)) for bound in (theirs, ours))
    assert close(found, expected, FLOAT32_TOLERANCE)


def test_open_clip_and_transformers_agree_on_masked_words():
    found, expected = (
        build(family, torch.float32).bound().masked_texts(all_coalitions(3)) for family in ("open_clip", "clip")
    )
    assert close(found, expected, FLOAT32_TOLERANCE)
    assert len(np.unique(found.numpy().round(4), axis=0)) == 8


@float64
@each_family
def test_masked_words_are_not_attended_to(family):
    built = build(family)
    bound = built.bound()
    found = bound.masked_texts(all_coalitions(3))
    ids = built.ids("one two three")
    first = 0 if family == "siglip2" else 1
    for number, embedding in enumerate(found):
        attended = [True] * len(ids)
        for j in range(3):
            attended[first + j] = bool(number >> j & 1)
        assert close(embedding, normalize(reference.text_embedding(built.net, ids, attended), dim=0))


@float64
@each_method
def test_metagame_is_the_shapley_value_of_the_slow_twins_maps(family, method):
    built = build(family)
    bound = built.bound()
    table = built.twin_table(method, bound)
    found = method.make().metagame().explain(bound)
    assert close(found.meta.values, indices.shapley(table, 3).T)
    assert close(found.attribution, table[-1])
    assert close(found.meta.empty, table[0])
    assert close(found.meta.values.sum(1), table[-1] - table[0])


@float64
@each_method
def test_interactions_of_the_metagame_are_those_of_the_slow_twins_maps(family, method):
    built = build(family, patch=16)
    bound = built.bound()
    table = built.twin_table(method, bound)
    found = method.make().metagame(order=2, index="ksv").explain(bound)
    expected = np.array([reference_indices.ksv(values, 3) for values in table.T], dtype=float)
    assert close(found.meta.values, expected)
    diagonal = np.trace(expected, axis1=1, axis2=2)
    assert close(diagonal + (expected.sum((1, 2)) - diagonal) / 2, table[-1] - table[0])


@each_method
def test_batches_of_coalitions_change_nothing_but_memory(family, method):
    bound = build(family, torch.float32).bound()
    metagames = [method.make().metagame(ConfiguredEstimator(batch_size=size)) for size in (None, 3)]
    whole, parts = (each.explain(bound).meta.values for each in metagames)
    assert close(parts, whole, 1e-6)


@each_family
def test_map_has_a_target_for_every_patch_and_a_player_for_every_word(family):
    built = build(family, torch.float32)
    bound = built.bound(words=("one", "two"))
    found = GenericAttention().metagame().explain(bound)
    assert found.meta.values.shape == (16, 2)
    assert bound.n_players == 2
    assert built.model.n_patches(bound.image.pixels) == 16
    for names in (bound, found, found.meta):
        assert (names.players, names.targets, names.grid) == (("one", "two"), ("image",), (4, 4))
    assert bound.picture is None


@contextmanager
def images_through(model):
    """A list of how many images each forward pass of the image tower was given."""
    tower = model.net.visual if isinstance(model, OpenCLIP) else model.net.vision_model
    seen = []
    handle = tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    yield seen
    handle.remove()


@pytest.fixture
def texts_through(monkeypatch):
    """Replaces a model's text encoder by one that notes the distinct texts of each call."""

    def watch(model):
        seen, encode = [], model.encode_texts

        def encode_texts(texts):
            seen.append(list(dict.fromkeys(texts)))
            return encode(texts)

        monkeypatch.setattr(model, "encode_texts", encode_texts)
        return seen

    return watch


@pytest.fixture
def backward_passes(monkeypatch):
    """A list that grows by one for every call of torch.autograd.grad."""
    seen, grad = [], torch.autograd.grad

    def count(*args, **kwargs):
        seen.append(1)
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", count)
    return seen


@each_method
@pytest.mark.parametrize("meta", [False, True], ids=["first-order", "meta"])
def test_an_image_goes_through_the_tower_once_for_all_texts_and_coalitions(family, method, meta):
    model = build(family, torch.float32).model
    method = method.make().metagame() if meta else method.make()
    with images_through(model) as seen:
        for inputs in model.prepare([scene(seed, **SCENARIOS) for seed in range(3)]):
            for bound in inputs.values():
                method.explain(bound)
    assert seen == [3]


@each_family
@pytest.mark.parametrize("meta", [False, True], ids=["first-order", "meta"])
def test_a_distinct_text_is_encoded_once_over_several_images(family, meta, texts_through):
    model = build(family, torch.float32).model
    seen = texts_through(model)
    method = GenericAttention().metagame() if meta else GenericAttention()
    for inputs in model.prepare([scene(seed, **SCENARIOS) for seed in range(3)]):
        for bound in inputs.values():
            method.explain(bound)
    encoded = [text for texts in seen for text in texts]
    assert len(encoded) == len(set(encoded)) == (16 if meta else 4)


@each_method
@pytest.mark.parametrize("size", [None, 4])
def test_a_batch_of_coalitions_takes_one_backward_pass(family, method, size, backward_passes):
    bound = build(family, torch.float32).bound(words=SCENARIOS["4"])
    game = method.make().game(bound)
    assert not backward_passes
    game.batch_size = size
    game(all_coalitions(4))
    batches = 1 if size is None else 4
    assert len(backward_passes) == (0 if method.name.startswith("mask") else batches)


def methods_of_image_texts():
    """Every attribution method that explains an image and a text, and the metagame of each that is a game."""
    for module in pkgutil.iter_modules(attributions.__path__):
        for method in vars(importlib.import_module(f"metagame.attributions.{module.name}")).values():
            own = getattr(method, "__module__", "").endswith(f".{module.name}")
            if own and getattr(method, "input_type", None) is ImageText and not inspect.isabstract(method):
                made = method(CrossedCoalitions(12)) if method is FIxLIP else method()
                yield made
                if isinstance(made, FirstOrder):
                    yield from (made.metagame(), made.metagame(order=2, index="ksv"))


METHODS = list(methods_of_image_texts())


def first_order_of(method):
    return method.method if isinstance(method, Metagame) else method


def method_name(method):
    order = {1: "Meta-", 2: "Pairs-"}[method.order] if isinstance(method, Metagame) else ""
    return order + type(first_order_of(method)).__name__


def fits(method, family):
    kind = type(first_order_of(method))
    return kind not in ((MaskCLIP, GradECLIP) if family == "siglip2" else (MaskSigLIP, GradESigLIP))


def test_methods_are_found():
    found = set(map(method_name, METHODS))
    assert {"FIxLIP", "Meta-GradECLIP", "Pairs-MaskSigLIP", "GenericAttention"} <= found
    assert len(found) == 16


class Fault(nn.Module):
    """A layer that raises when told to."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.broken = False

    def forward(self, x):
        if self.broken:
            raise RuntimeError("broken layer")
        return self.layer(x)


def put_fault(net, place):
    """Into the last block of the image encoder, or behind those of the text encoder."""
    if place == "image":
        blocks = net.visual.transformer.resblocks if hasattr(net, "visual") else net.vision_model.encoder.layers
        fault = blocks[-1].mlp = Fault(blocks[-1].mlp)
    elif hasattr(net, "visual"):
        fault = net.ln_final = Fault(net.ln_final)
    else:
        fault = net.text_model.final_layer_norm = Fault(net.text_model.final_layer_norm)
    return fault


def state(net):
    """What a method might leave behind in a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    layers = [
        (
            name,
            layer.training,
            type(layer).forward,
            "forward" in vars(layer),
            [len(getattr(layer, hook)) for hook in hooks],
            [(key, buffer.numpy().tobytes()) for key, buffer in layer.named_buffers(recurse=False)],
            [
                getattr(getattr(layer, "config", None), key, None)
                for key in ("_attn_implementation", "output_attentions")
            ],
        )
        for name, layer in net.named_modules()
    ]
    weights = [(name, p.requires_grad, p.grad, p.detach().numpy().tobytes()) for name, p in net.named_parameters()]
    table = dict(ALL_ATTENTION_FUNCTIONS.items())
    return layers, weights, table, torch.nn.functional.scaled_dot_product_attention, torch.is_grad_enabled()


@pytest.mark.parametrize("place", [None, "image", "text"], ids=["ok", "image raises", "text raises"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("family", "method"),
    [(family, method) for family in FAMILIES for method in METHODS if fits(method, family)],
    ids=lambda value: value if isinstance(value, str) else method_name(value),
)
def test_method_leaves_model_as_found(family, method, training, place):
    built = build(family, torch.float32, patch=16)
    net = built.model.net.train(training)
    fault = put_fault(net, place or "image")
    list(net.parameters())[-1].requires_grad_(True)
    bound = built.bound(words=("one", "two"))
    before = state(net)
    if place is None:
        method.explain(bound)
    else:
        fault.broken = True
        with pytest.raises(RuntimeError, match="broken layer"):
            method.explain(bound)
        fault.broken = False
    assert state(net) == before
    again, fresh = (method.explain(each) for each in (bound, built.bound(words=("one", "two"))))
    assert (again.attribution is None) == (fresh.attribution is None)
    assert (again.meta is None) == (fresh.meta is None)
    assert again.attribution is None or close(again.attribution, fresh.attribution, 1e-6)
    assert again.meta is None or close(again.meta.values, fresh.meta.values, 1e-6)


@each_family
def test_adapter_evaluates_a_model_without_gradients_of_its_weights(family):
    net = build(family, torch.float32).model.net
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


@each_family
def test_tower_of_a_frozen_model_has_no_graph(family):
    model = build(family, torch.float32).model
    x = model.block_input(batch_of(model), -1)
    weights, output = model.encoder_view.blocks[-1].forward(x)
    assert not weights.requires_grad
    assert not output.requires_grad
    if family == "siglip2":
        assert not model.encoder_view.head.forward(model.encoder_view.norm(output))[1].requires_grad


@each_method
def test_map_does_not_depend_on_the_other_images_of_a_batch(family, method):
    built = build(family, torch.float32)
    (alone,) = built.model.prepare([scene(1)])
    *_, together, _ = built.model.prepare([scene(0), scene(2), scene(1), scene(3)])
    maps = [method.make().metagame().explain(inputs["text"]).meta.values for inputs in (alone, together)]
    assert close(*maps, 1e-6)


@each_method
def test_same_question_has_the_same_answer_to_the_last_bit(family, method):
    maps = [method.make().metagame().explain(build(family, torch.float32).bound()).meta.values for _ in range(2)]
    assert maps[0].tobytes() == maps[1].tobytes()


@each_family
def test_embedding_of_a_text_is_the_same_whatever_its_company(family):
    built = build(family, torch.float32)
    texts = [text_of(built, f"{first} {second}") for first in list(VOCABULARY)[2:8] for second in list(VOCABULARY)[2:8]]
    together = build(family, torch.float32).model.embed(texts)
    backwards = build(family, torch.float32).model.embed(texts[::-1]).flip(0)
    alone = torch.stack([build(family, torch.float32).model.embed([text])[0] for text in texts[::5]])
    assert torch.equal(together, backwards)
    assert torch.equal(together[::5], alone)


@each_family
def test_embeddings_come_in_the_order_that_texts_are_asked_for(family):
    model = build(family, torch.float32).model
    one, two = (Text((*ids, VOCABULARY[END]), (True,) * 2) for ids in ([2], [3]))
    found = model.embed([two, one, two, two])
    assert torch.equal(found[[0, 2, 3]], model.embed([two]).expand(3, -1))
    assert torch.equal(found[1:2], model.embed([one]))
    assert close(found.norm(dim=1), np.ones(4), 1e-6)


def small_tokenizer(family="clip"):
    return build(family, torch.float32).model.tokenizer


@each_family
def test_absent_words_are_dropped_from_the_text(family):
    built = build(family, torch.float32)
    players = WordPlayers(built.model.tokenizer, ["one", "two", "three"])
    for present in all_coalitions(3).tolist():
        text = players.dropped(present)
        kept = " ".join(word for word, here in zip(WORDS, present, strict=True) if here)
        assert text.ids == tuple(built.tokenizer(kept)["input_ids"])
        assert all(text.attended)
    assert players.labels == WORDS


@each_family
def test_the_text_that_the_model_is_given_lacks_absent_words(family, texts_through):
    built = build(family, torch.float32)
    seen = texts_through(built.model)
    GenericAttention().metagame().explain(built.bound(words=("five", "six")))
    expected = {tuple(built.tokenizer(text)["input_ids"]) for text in ("", "five", "six", "five six")}
    assert {text.ids for texts in seen for text in texts} == expected


def test_masked_words_stay_and_are_not_attended_to():
    players = WordPlayers(small_tokenizer(), ["one", "two"])
    start, end = VOCABULARY[START], VOCABULARY[END]
    text = players.masked([False, True])
    assert text == Text((start, VOCABULARY["one"], VOCABULARY["two"], end), (True, False, True, True))


def test_siglip_has_no_token_in_front():
    players = WordPlayers(small_tokenizer("siglip2"), ["one", "two"])
    assert players.masked([False, True]).attended == (False, True, True)
    assert players.dropped([False, False]).ids == (VOCABULARY[END],)


@pytest.mark.parametrize("players", [WordPlayers, TokenPlayers])
@pytest.mark.parametrize("family", ["clip", "siglip2"])
def test_special_tokens_are_always_there(players, family):
    tokenizer = small_tokenizer(family)
    made = players(tokenizer, "one two" if players is TokenPlayers else ["one", "two"])
    special = {VOCABULARY[START], VOCABULARY[END]}
    kept = [VOCABULARY[END]] if family == "siglip2" else [VOCABULARY[START], VOCABULARY[END]]
    assert list(made.dropped([False, False]).ids) == kept
    for present in all_coalitions(2).tolist():
        text = made.masked(present)
        assert all(attended for i, attended in zip(text.ids, text.attended, strict=True) if i in special)
        assert sum(text.attended) == len(kept) + sum(present)


def test_tokens_of_a_caption_are_players():
    players = TokenPlayers(small_tokenizer(), "Three one  three")
    start, end, one, three = (VOCABULARY[token] for token in (START, END, "one", "three"))
    assert players.labels == ("three", "one", "three")
    assert players.dropped([True, False, True]).ids == (start, three, three, end)
    assert players.dropped([True, False, True]).attended == (True,) * 4
    masked = players.masked([True, False, False])
    assert masked == Text((start, three, one, three, end), (True, True, False, False, True))


@pytest.mark.parametrize("family", ["clip", "siglip2"])
def test_a_word_that_the_tokenizer_does_not_know_is_a_player_too(family):
    tokenizer = small_tokenizer(family)
    assert len(TokenPlayers(tokenizer, "one hydrant two").labels) == 3
    absent = WordPlayers(tokenizer, ["one", "hydrant", "two"]).masked([True, False, True])
    assert sum(absent.attended) == len(absent.ids) - 1


@pytest.fixture(scope="module")
def byte_pairs():
    """open_clip's own tokenizer."""
    return open_clip.get_tokenizer("ViT-B-16")


def test_open_clips_own_tokenizer_gives_its_own_ids(byte_pairs):
    tokenizer = adapt_tokenizer(byte_pairs, 77)
    for text in ("", "a Photo of a dog", "yorkshire next to a red hydrant"):
        own = byte_pairs([text])[0].tolist()
        assert list(tokenizer.encode(text)) + [tokenizer.pad_id] * (77 - len(tokenizer.encode(text))) == own


def test_words_of_several_tokens_are_masked_as_a_whole(byte_pairs):
    tokenizer = adapt_tokenizer(byte_pairs, 77)
    words = ["antidisestablishmentarianism", "dog"]
    text = WordPlayers(tokenizer, words).masked([False, True])
    assert len(text.ids) > 4
    assert text.attended == (True, *(False,) * (len(text.ids) - 3), True, True)
    caption = TokenPlayers(tokenizer, " ".join(words))
    assert len(caption.labels) == len(text.ids) - 2
    assert "".join(caption.labels[:-1]) == words[0]
    assert caption.labels[-1] == "dog"


class SharingTokenizer:
    """Makes one token of the words "one two"."""

    def split(self, text):
        return [(0, False, piece) for piece in text.replace("one two", "onetwo").split()]


def test_words_that_share_a_token_cannot_be_masked():
    with refused("the words of 'one two' share tokens"):
        WordPlayers(SharingTokenizer(), ["one", "two"]).masked([True, False])


def with_case(tokenizer):
    """The tokenizer without its own lower-casing."""
    tokenizer.backend_tokenizer.normalizer = Normalizers([])
    return tokenizer


def test_lower_casing_is_the_adapters_for_siglip_only(tmp_path):
    """SigLIP-2's tokenizer keeps case, its training texts had none."""
    tokenizer = with_case(build("siglip2", torch.float32).tokenizer)
    assert PretrainedTokenizer(tokenizer, 8).encode("ONE") != PretrainedTokenizer(tokenizer, 8).encode("one")
    for family in ("siglip2", "clip"):
        folder = save(family, tmp_path / family)
        with_case(build(family, torch.float32).tokenizer).save_pretrained(folder)
        loaded = FOLDERS[family].load(str(folder), device="cpu")
        upper, lower = (loaded.tokenizer.encode(text) for text in ("ONE Two", "one two"))
        assert (upper == lower) == (family == "siglip2")


def test_siglip_texts_are_padded_to_the_context_and_padding_is_attended_to(monkeypatch):
    built = build("siglip2", torch.float32, context=12)
    seen, encode = [], built.net.get_text_features

    def watch(input_ids, attention_mask):
        seen.append((input_ids, attention_mask))
        return encode(input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(built.net, "get_text_features", watch)
    built.bound(words=("one", "two")).masked_texts(np.array([[False, True]]))
    ids, attended = (tensor[0].tolist() for tensor in seen[0])
    assert ids == [VOCABULARY["one"], VOCABULARY["two"], VOCABULARY[END]] + [VOCABULARY[PAD]] * 9
    assert attended == [0] + [1] * 11


@each_family
def test_text_longer_than_the_context_is_refused(family):
    built = build(family, torch.float32)
    words = ("one",) * 9
    length = len(built.tokenizer(" ".join(words))["input_ids"])
    with refused(f"a text has {length} tokens with special ones, the encoder's context is 8: shorten it"):
        GenericAttention().explain(built.bound(words=words))


def test_text_longer_than_the_context_is_refused_when_prepared():
    model = build("clip", torch.float32).model
    with refused("the encoder's context is 8: shorten it"):
        prepare_one(model, scene(0, long=("one",) * 9))
    good, bad = model.prepare([scene(0), scene(1, long=("one",) * 9)])
    assert isinstance(bad.error, UserError)
    assert GenericAttention().explain(good["text"]).attribution.shape == (16,)


def test_text_that_just_fits_the_context_is_accepted():
    built = build("clip", torch.float32)
    assert GenericAttention().explain(built.bound(words=("one",) * 6)).attribution.shape == (16,)


@pytest.mark.parametrize(
    ("family", "method", "match"),
    [
        ("siglip2", MaskCLIP(), r"attribution=mask_clip needs a \[CLS\] token.* choose attribution=mask_siglip"),
        ("siglip2", GradECLIP(), r"attribution=grad_eclip needs a \[CLS\] token.* choose attribution=grad_esiglip"),
        ("clip", MaskSigLIP(), "attribution=mask_siglip needs a pooling head.* choose attribution=mask_clip"),
        ("metaclip2", GradESigLIP(), "attribution=grad_esiglip needs a pooling head.* choose attribution=grad_eclip"),
        ("open_clip", GradESigLIP(), "attribution=grad_esiglip needs a pooling head.* choose attribution=grad_eclip"),
    ],
)
def test_method_of_the_other_kind_of_encoder_is_refused(family, method, match):
    bound = build(family, torch.float32).bound()
    for refusing in (method, method.metagame()):
        with refused(match):
            refusing.explain(bound)


@each_family
@pytest.mark.parametrize("start", [3, 100])
def test_start_layer_that_the_encoder_lacks_is_refused(family, start):
    with refused(f"start_layer={start}: the image encoder has blocks 0 to 2"):
        GenericAttention(start).explain(build(family, torch.float32).bound())


@pytest.mark.parametrize("start", [-1, "first", "0", ""])
def test_start_layer_that_is_no_number_of_a_block_is_refused(start):
    with refused(f"start_layer={start!r}: give 'last' or the number of a block, from 0"):
        GenericAttention(start)


@pytest.mark.parametrize("heads", ["two", 1, None])
def test_unknown_heads_are_refused(heads):
    with refused(f"heads={heads!r}: give 'one' or 'native'"):
        GradECLIP(heads)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_weights_that_are_all_equal_cannot_be_scaled(value):
    with refused(r"lambda_p is .* on every patch.* the image is probably blank"):
        min_max(torch.full((16,), value))


def test_min_max_scales_to_the_unit_interval():
    assert min_max(torch.tensor([3.0, -1.0, 1.0])).tolist() == [1, 0, 0.5]


@pytest.mark.parametrize("family", FAMILIES)
def test_map_without_contrast_is_refused(family):
    """Every key is the bias of its projection."""
    built = build(family, torch.float32)
    if family == "open_clip":
        built.model.net.visual.transformer.resblocks[-1].attn.in_proj_weight.data.chunk(3)[1].zero_()
    else:
        built.net.vision_model.encoder.layers[-1].self_attn.k_proj.weight.data.zero_()
    method = GradESigLIP() if family == "siglip2" else GradECLIP()
    with refused("lambda_p is .* on every patch"):
        method.explain(built.bound())


def test_many_tokens_need_an_estimator_that_samples():
    built = build("clip", torch.float32, context=20)
    bound = built.bound(words=("one", "two") * 7)
    with refused("n_players=14 is too many .* use estimator='permutation', 'regression' or 'trees'"):
        GradECLIP().metagame().explain(bound)
    found = GradECLIP().metagame(ConfiguredEstimator("permutation", budget=40, batch_size=16)).explain(bound)
    assert close(found.meta.values.sum(1), found.attribution - found.meta.empty, 1e-6)


def test_caption_without_tokens_is_refused():
    with refused("caption '' has no tokens: give at least one word"):
        TokenPlayers(small_tokenizer(), "")


def test_patches_that_make_no_square_are_refused():
    assert grid_side(196) == 14
    with refused("15 patches make no square grid"):
        grid_side(15)


class BrokenScene(Scene):
    def image(self):
        raise UserError("image a.png does not exist: give the path of an image file.")


class SpeechlessScene(Scene):
    def texts(self, tokenizer):
        return {"text": TokenPlayers(tokenizer, "")}


def test_sample_that_cannot_be_prepared_does_not_spoil_the_others():
    built = build("clip", torch.float32)
    missing, empty = BrokenScene("missing", picture()), SpeechlessScene("empty", picture())
    tiny = Scene("tiny", Image.new("RGB", (1, 1)))
    first, no_image, second, no_text, no_pixels = built.model.prepare([scene(1), missing, scene(2), empty, tiny])
    assert "does not exist" in str(no_image.error)
    assert "has no tokens" in str(no_text.error)
    assert "image tiny is 1 x 1 pixels" in str(no_pixels.error)
    for seed, found in ((1, first), (2, second)):
        own = built.bound(seed)
        assert torch.equal(found["text"].image.pixels, own.image.pixels)
        assert close(*(MaskCLIP().explain(bound).attribution for bound in (found["text"], own)), 1e-6)
    for sample in (missing, empty, tiny):
        with refused(r"does not exist|has no tokens|pixels"):
            prepare_one(built.model, sample)


def test_batch_of_samples_none_of_which_can_be_prepared_is_all_errors():
    prepared = build("clip", torch.float32).model.prepare([BrokenScene(name, picture()) for name in "ab"])
    assert [type(part) for part in prepared] == [Failure, Failure]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_image_of_one_pixel_is_refused(size):
    with refused(f"image thin is {size[0]} x {size[1]} pixels: give one with sides of two or more"):
        prepare_one(build("clip", torch.float32).model, Scene("thin", Image.new("RGB", size)))


def on_white(image):
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


def transparent():
    image = picture().convert("RGBA")
    image.putalpha(picture(1).convert("L"))
    return image


@each_family
@pytest.mark.parametrize(
    ("image", "same"),
    [
        (picture().convert("L"), picture().convert("L").convert("RGB")),
        (picture().convert("RGBA"), picture()),
        (transparent(), on_white(transparent())),
        (picture().convert("1"), picture().convert("1").convert("RGB")),
    ],
    ids=["grey", "opaque RGBA", "transparent RGBA", "bits"],
)
def test_image_of_another_mode_has_the_map_of_its_rgb_version(family, image, same):
    model = build(family, torch.float32).model
    inputs = [prepare_one(model, Scene("x", each))["text"] for each in (image, same)]
    maps = [GenericAttention().explain(bound).attribution for bound in inputs]
    assert np.array_equal(*maps)


@each_family
def test_image_of_another_shape_is_resized_by_the_models_own_processor(family):
    built = build(family, torch.float32)
    bound = prepare_one(built.model, Scene("wide", Image.fromarray(np.asarray(picture(0, 64))[:, :48])))["text"]
    assert bound.image.pixels.shape == (3, 32, 32)
    assert GenericAttention().explain(bound).attribution.shape == (16,)


def load(family, folder):
    if family == "open_clip":
        return OpenCLIP.load(f"local-dir:{folder}", device="cpu")
    return FOLDERS[family].load(str(folder), device="cpu")


@each_family
def test_saved_model_gives_the_maps_it_gave_before(family, tmp_path):
    built = build(family, torch.float32)
    loaded = load(family, save(family, tmp_path))
    assert loaded.tokenizer.context == built.model.tokenizer.context == 8
    assert loaded.patch_size == 8
    assert close(loaded.logit_scale, built.model.logit_scale)
    own, again = built.bound(), prepare_one(loaded, scene(0, text=WORDS))["text"]
    assert torch.equal(own.image.pixels, again.image.pixels)
    assert close(*(GenericAttention().metagame().explain(each).meta.values for each in (again, own)), 1e-6)
    assert not loaded.net.training


@each_family
def test_equal_models_have_one_revision_and_others_have_others(family, tmp_path):
    folders = [save(family, tmp_path / name / "model", seed) for name, seed in (("a", 3), ("b", 3), ("c", 1))]
    one, same, other = (load(family, folder).revision for folder in folders)
    assert one == same != other


def test_open_clip_weights_may_be_a_file(tmp_path):
    folder = save("open_clip", tmp_path)
    weights = folder / "open_clip_model.safetensors"
    name = "small-of-the-tests"
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    del config["text_cfg"]["hf_tokenizer_name"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "configs")
    loaded = OpenCLIP.load(name, str(weights), device="cpu")
    pixels = batch_of(loaded)
    assert close(
        loaded.encode_images(pixels).detach(), own_image_embeddings(build("open_clip", torch.float32), pixels), 1e-6
    )


@pytest.mark.parametrize(
    ("adapter", "make", "name"),
    [
        (CLIP, partial(save, "siglip2"), "siglip"),
        (SigLIP2, partial(save, "clip"), "clip"),
        (CLIP, BertConfig().save_pretrained, "bert"),
        (SigLIP2, Siglip2Config().save_pretrained, "siglip2"),
    ],
    ids=["siglip as clip", "clip as siglip", "bert", "naflex"],
)
def test_checkpoint_of_another_architecture_is_refused(adapter, make, name, tmp_path):
    make(tmp_path)
    with refused(rf"model\.checkpoint='.*' is of architecture '{name}': this adapter is for .*; choose the model"):
        adapter.load(str(tmp_path), device="cpu")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)


@pytest.mark.parametrize("adapter", [CLIP, SigLIP2])
def test_absent_checkpoint_names_the_command_that_fetches_it(adapter, offline):
    with refused(r"model\.checkpoint='nobody/nothing' is no folder here.*HF_HUB_OFFLINE is set.*hf download nobody/no"):
        adapter.load("nobody/nothing")


@pytest.mark.parametrize(
    ("architecture", "pretrained"),
    [
        ("ViT-of-nobody", None),
        ("ViT-of-nobody", "openai"),
        ("ViT-B-16", "nobody"),
        ("local-dir:/nowhere", None),
        ("hf-hub:nobody/nothing", None),
    ],
)
def test_open_clip_names_that_are_unknown_are_refused(architecture, pretrained, offline):
    with refused(r"model\.architecture=.* cannot be loaded .*open_clip\.list_pretrained\(\)"):
        OpenCLIP.load(architecture, pretrained, device="cpu")


def gated(*args, **kwargs):
    raise OSError("You are trying to access a gated repo.\nMake sure to request access.") from GatedRepoError(
        "401 Client Error", response=requests.Response()
    )


@pytest.mark.parametrize("adapter", [CLIP, SigLIP2])
def test_gated_checkpoint_names_its_page(adapter, monkeypatch):
    monkeypatch.setattr("metagame.models.pretrained.AutoConfig.from_pretrained", gated)
    with refused(r"model\.checkpoint='org/gated' is gated: .*https://huggingface\.co/org/gated, then log in"):
        adapter.load("org/gated")


def test_folder_whose_files_are_missing_or_broken_is_named(tmp_path):
    with refused(r"model\.checkpoint='.*' cannot be loaded from that folder"):
        CLIP.load(str(tmp_path))
    save("clip", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with refused(r"model\.checkpoint='.*' cannot be loaded from that folder"):
        CLIP.load(str(tmp_path))


def test_folder_without_a_tokenizer_is_named(tmp_path):
    save("clip", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    with refused(r"model\.checkpoint='.*' cannot be loaded from that folder"):
        CLIP.load(str(tmp_path), device="cpu")


def test_a_loader_that_breaks_otherwise_is_reported_with_its_reason():
    def load(*args, **kwargs):
        raise KeyError("weights\nmore")

    with refused(r"model\.checkpoint='org/name' cannot be loaded \(KeyError: .*\)"):
        load_pretrained(load, "org/name", None)


def test_revision_is_passed_on_to_the_hub_and_not_to_a_folder(tmp_path):
    seen = []

    def load(checkpoint, **settings):
        seen.append(settings)

    load_pretrained(load, "org/name", "main", dtype=1)
    load_pretrained(load, str(tmp_path), "main", dtype=1)
    assert seen == [{"revision": "main", "dtype": 1}, {"local_files_only": True, "dtype": 1}]


def small_open_clip(**settings):
    text = CLIPTextCfg(context_length=8, vocab_size=14, width=16, heads=2, layers=1)
    return open_clip.CLIP(8, CLIPVisionCfg(**{"width": 16, "head_width": 8, "image_size": 32} | settings), text)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"layers": (1, 1, 1, 1), "width": 8}, "ModifiedResNet"),
        ({"layers": 1, "patch_size": 8, "pool_type": "avg"}, "VisionTransformer"),
        ({"layers": 1, "patch_size": 8, "attentional_pool": True}, "VisionTransformer"),
        ({"layers": 1, "patch_size": 8, "block_type": "custom"}, "VisionTransformer"),
    ],
    ids=["resnet", "mean", "attention pool", "custom blocks"],
)
def test_image_encoder_without_a_class_token_is_refused(settings, name):
    with refused(rf"the image encoder {name} is no plain vision transformer with a \[CLS\] token: choose a ViT CLIP"):
        OpenCLIP(small_open_clip(**settings), lambda image: image, small_tokenizer(), "random")


@pytest.mark.parametrize("family", sorted(set(FOLDERS) - {"open_clip"}))
def test_checkpoint_that_lacks_weights_is_refused(family, tmp_path):
    folder = save(family, tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    lost = next(name for name in weights if name.startswith("vision_model.encoder"))
    save_file({name: value for name, value in weights.items() if name != lost}, path, metadata={"format": "pt"})
    with refused(f"lacks 1 of its weights, such as {lost}"):
        load(family, folder)


def test_weights_in_half_precision_are_refused():
    with refused("half precision"):
        built = build("clip", torch.float32)
        CLIP(built.net.half(), None, built.model.tokenizer, "given")


def test_a_text_is_padded_to_a_length_of_its_own_and_embedded_as_if_padded_to_the_context(float64_by_default):
    model = build("clip", torch.float64).model
    text = WordPlayers(model.tokenizer, ("one", "two")).dropped([True, True])
    short = model.embed([text])
    model.padded_length = lambda text: model.tokenizer.context
    model.forget_texts()
    assert close(model.embed([text]), short, 1e-6)


def test_the_image_encoder_stops_at_the_block_whose_input_is_asked_for():
    built = build("clip", torch.float32)
    ran = []
    for number, block in enumerate(built.model.encoder_view.blocks):
        block.module.layer_norm2.register_forward_hook(lambda *args, number=number: ran.append(number))
    built.bound().image.block_input(1)
    assert ran == [0]


def test_more_texts_than_fit_at_once_have_the_same_maps(monkeypatch):
    bound = build("clip", torch.float32).bound(words=("one", "two", "three", "four"))
    whole = GradECLIP().metagame().explain(bound).meta.values
    monkeypatch.setattr("metagame.models.vision_language.SEEDS", 3)
    bound = build("clip", torch.float32).bound(words=("one", "two", "three", "four"))
    assert close(GradECLIP().metagame().explain(bound).meta.values, whole, 1e-6)
