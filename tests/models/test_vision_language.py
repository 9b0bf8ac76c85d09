import gc
import weakref

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from tokenizers.normalizers import Sequence as Normalizers
from torch.nn.functional import normalize
from transformers import CLIPImageProcessor, CLIPImageProcessorFast

from metagame import UserError, indices
from metagame.attributions.fixlip import FIxLIP
from metagame.attributions.fixlip_least_squares import CrossedCoalitions
from metagame.attributions.generic_attention import GenericAttention
from metagame.attributions.grad_eclip import GradECLIP, GradESigLIP, min_max, require_contrast
from metagame.attributions.mask_clip import MaskCLIP, MaskSigLIP
from metagame.attributions.method import FirstOrder
from metagame.attributions.patch_ig import PatchIG
from metagame.attributions.text_side import TextSide
from metagame.contracts import Failure
from metagame.errors import GameError
from metagame.estimators.configured import ConfiguredEstimator
from metagame.games import all_coalitions
from metagame.images import grid_side
from metagame.models import vision_language
from metagame.models.clip import CLIP
from metagame.models.encoder_views import ClassTokenView
from metagame.models.open_clip import OpenCLIP, adapt_tokenizer
from metagame.models.pretrained import PretrainedTokenizer, processed
from metagame.models.siglip2 import SigLIP2
from metagame.models.vision_language import ImageText, RetokenizedPlayers, Text, TokenPlayers, WordPlayers
from scripts.train_vision_language import END, PAD, START, VOCABULARY
from tests.conftest import close
from tests.reference import indices as reference_indices
from tests.reference import vision_language as reference
from tests.tiny.methods import arrays_of, first_order_of, method_classes, method_name, state_of
from tests.tiny.vision_language import (
    CLASS_TOKEN_FAMILIES,
    FAMILIES,
    FAMILIES_AND_METHODS,
    HALF,
    SCENARIOS,
    Scene,
    build,
    methods_of,
    picture,
    prepare_one,
    refused,
    save,
    scene,
)

FLOAT32_TOLERANCE = 1e-5
WORDS = ("one", "two", "three")
TEXTS = ["", "one", "three two", "four one two", "nine"]
LOADERS = {"clip": CLIP, "metaclip2": CLIP, "siglip2": SigLIP2}
# Each method once, and each family: where a property is not of a pair of both.
FAMILY_OF = {
    "attention": "clip",
    "attention-0": "open_clip",
    "attention-1": "metaclip2",
    "attention-0-mean_of": "clip",
    "mask_clip": "metaclip2",
    "grad_eclip-one": "open_clip",
    "grad_eclip-native": "clip",
    "patch_ig": "metaclip2",
    "patch_ig-2": "open_clip",
}
SOME = [
    (family, method) for family, method in FAMILIES_AND_METHODS if family in ("siglip2", FAMILY_OF.get(method.name))
]


def pairs(chosen):
    ids = [f"{family}-{method.name}" for family, method in chosen]
    return pytest.mark.parametrize(("family", "method"), chosen, ids=ids)


float64 = pytest.mark.usefixtures("float64_by_default")
each_family = pytest.mark.parametrize("family", FAMILIES)
each_tokenizer = pytest.mark.parametrize("family", ["clip", "siglip2"])
each_pair, some_pairs = pairs(FAMILIES_AND_METHODS), pairs(SOME)


def batch_of(model, count=3):
    """Pixels of several images, ``(count, 3, H, W)``."""
    return torch.stack([model.process(picture(seed)) for seed in range(count)]).to(model.dtype)


def own_image_embeddings(built, pixels):
    """Those of the model itself, without the adapter."""
    own = built.model.net.encode_image if built.family == "open_clip" else built.net.get_image_features
    return own(pixels).detach()


def text_of(model, *words):
    return WordPlayers(model.tokenizer, words).dropped([True] * len(words))


@each_family
@torch.no_grad()
def test_blocks_of_the_tower_give_the_models_own_image_embedding(family):
    built = build(family, torch.float32)
    pixels, tower = batch_of(built.model), built.model.encoder_view
    expected = own_image_embeddings(built, pixels)
    assert close(built.model.encode_images(pixels), expected, FLOAT32_TOLERANCE)
    for start in (0, 1, -1):
        x = built.model.block_input(pixels, start)
        for block in tower.blocks[start:]:
            _, x = block.forward(x)
        found = tower.project(x[:, 0]) if isinstance(tower, ClassTokenView) else tower.head.forward(tower.norm(x))[1]
        assert close(found, expected, FLOAT32_TOLERANCE)


@each_family
@torch.no_grad()
def test_score_times_scale_is_the_models_own_logit(family):
    built = build(family, torch.float32)
    model, pixels = built.model, batch_of(built.model)
    images = normalize(model.encode_images(pixels), dim=-1)
    logits = model.logit_scale * images @ model.embed([text_of(model, *text.split()) for text in TEXTS]).T
    tokens = built.tokenizer(TEXTS, padding="max_length", max_length=8, return_tensors="pt")
    if family == "open_clip":
        expected = model.net.get_logits(pixels, tokens["input_ids"])[0]
    else:
        expected = built.net(pixel_values=pixels, **tokens).logits_per_image - getattr(built.net, "logit_bias", 0)
    assert close(logits, expected, FLOAT32_TOLERANCE * float(model.logit_scale))
    assert model.logit_scale.shape == ()


@each_family
def test_a_model_is_evaluated_without_gradients_of_its_weights(family):
    model = build(family, torch.float32).model
    assert not model.net.training
    assert not any(parameter.requires_grad for parameter in model.net.parameters())
    for found in model.encoder_view.blocks[-1].forward(model.block_input(batch_of(model, 1), -1)):
        assert not found.requires_grad


@float64
@pytest.mark.parametrize("family", ["clip", "metaclip2", "siglip2"])
def test_slow_twin_has_the_models_own_image_embedding(family):
    built = build(family)
    pixels = batch_of(built.model, 1)
    assert close(reference.image_embedding(built.net, pixels[0]).detach(), own_image_embeddings(built, pixels)[0])


@float64
@each_pair
def test_maps_of_all_coalitions_match_the_slow_twin(family, method):
    built = build(family)
    bound = built.bound()
    found = method.make().game(bound)(all_coalitions(3))
    assert close(found, built.twin_table(method, bound))
    assert (np.abs(found).max(1) > 2e-3).all()


@float64
@pytest.mark.parametrize("family", ["clip", "metaclip2", "siglip2"])
def test_eager_attention_changes_no_map(family):
    """Its softmax is in float32, whatever the model's type."""
    built, method = build(family), methods_of(family)[-1]
    built.net.set_attn_implementation("eager")
    bound = built.bound()
    assert close(method.make().explain(bound).attribution, built.twin(method, bound, WORDS), 1e-6)


@float64
@some_pairs
def test_metagame_and_its_pairs_are_those_of_the_slow_twins_maps(family, method):
    built = build(family, patch=16, seed=1)
    bound = built.bound(seed=5)
    table = built.twin_table(method, bound)
    found = method.make().metagame().explain(bound)
    assert close(found.meta.values, indices.shapley(table, 3).T)
    assert close(found.attribution, table[-1])
    assert close(found.meta.empty, table[0])
    pairwise = method.make().metagame(order=2, index="ksv").explain(bound).meta.values
    assert close(pairwise, [reference_indices.ksv(values, 3) for values in table.T])


@float64
@each_family
def test_masked_words_are_not_attended_to(family):
    built = build(family)
    found = built.bound().masked_texts(all_coalitions(3))
    ids = built.ids("one two three")
    first = 0 if family == "siglip2" else 1
    for present, embedding in zip(all_coalitions(3).tolist(), found, strict=True):
        attended = [True] * len(ids)
        attended[first : first + 3] = present
        assert close(embedding, normalize(reference.text_embedding(built.net, ids, attended), dim=0))
    assert len(np.unique(found.numpy().round(4), axis=0)) == 8


@some_pairs
def test_batches_of_coalitions_and_of_images_change_no_map(family, method):
    model = build(family, torch.float32).model
    (alone,) = model.prepare([scene(1)])
    *_, together, _ = model.prepare([scene(0), scene(2), scene(1), scene(3)])
    whole = method.make().metagame().explain(alone["text"]).meta.values
    parts = method.make().metagame(ConfiguredEstimator(batch_size=3)).explain(together["text"]).meta.values
    assert close(parts, whole, 1e-6)


@some_pairs
def test_same_question_has_the_same_answer_to_the_last_bit(family, method):
    maps = [method.make().metagame().explain(build(family, torch.float32).bound()).meta.values for _ in range(2)]
    assert maps[0].tobytes() == maps[1].tobytes()


def test_more_texts_than_fit_at_once_have_the_same_maps(monkeypatch):
    def explain():
        bound = build("clip", torch.float32).bound(words=SCENARIOS["4"])
        return GradECLIP().metagame().explain(bound).meta.values

    whole = explain()
    monkeypatch.setattr("metagame.models.vision_language.SEEDS", 3)
    assert close(explain(), whole, 1e-6)


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


def explain_all(model, *methods):
    """Explain four texts about each of three images."""
    for inputs in model.prepare([scene(seed, **SCENARIOS) for seed in range(3)]):
        for bound in inputs.values():
            for method in methods:
                method.explain(bound)


@some_pairs
def test_an_image_goes_through_the_tower_once_for_all_texts_and_coalitions(family, method):
    model = build(family, torch.float32).model
    tower = model.net.visual if isinstance(model, OpenCLIP) else model.net.vision_model
    seen = []
    tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    explain_all(model, method.make(), method.make().metagame())
    assert seen == ([3, 1] if method.name.startswith("patch_ig") else [3])  # a blank one


@pairs([each for each in SOME if not each[1].name.startswith("patch_ig")])
def test_images_with_the_same_texts_are_propagated_back_together_and_have_the_maps_they_have_alone(
    family, method, monkeypatch
):
    model = build(family, torch.float32).model
    others = {name: SCENARIOS[name] for name in ("1", "2")}
    samples = [scene(0, **SCENARIOS), scene(1, **SCENARIOS), scene(2, **others), scene(3, **SCENARIOS)]
    alone = [prepare_one(model, sample)["2"] for sample in samples]
    made, grad = [], torch.autograd.grad

    def counted(outputs, *rest, **how):
        made.append(len(outputs))
        return grad(outputs, *rest, **how)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    metagame = method.make().metagame()
    expected = [metagame.explain(bound).meta.values for bound in alone]
    n_alone = made.copy()
    made.clear()
    together = [questions["2"] for questions in model.prepare(samples)]
    found = [metagame.explain(bound).meta.values for bound in together]
    assert all(close(one, other, 1e-4 * np.abs(other).max()) for one, other in zip(found, expected, strict=True))
    if n_alone:
        assert (n_alone, made) == ([1] * 4, [2, 1, 1])


@pytest.mark.parametrize(("family", "method"), [("clip", GradECLIP()), ("siglip2", GradESigLIP())])
def test_a_blank_image_is_refused_without_the_others_of_its_batch(family, method, monkeypatch):
    model = build(family, torch.float32).model
    block_input, contrast = model.block_input, torch.tensor([0.0, 1.0])[:, None, None]
    monkeypatch.setattr(model, "block_input", lambda pixels, layer: contrast * block_input(pixels, layer))
    blank, seen = (questions["text"] for questions in model.prepare([scene(0), scene(1)]))
    with refused("lambda_p is the same on every patch"):
        method.explain(blank)
    assert np.isfinite(method.explain(seen).attribution).all()


def test_a_distinct_text_is_encoded_once_over_several_images(monkeypatch):
    model = build("clip", torch.float32).model
    seen, encode = [], model.encode_texts
    # a batch is filled with copies of its last text
    monkeypatch.setattr(model, "encode_texts", lambda texts: seen.extend(dict.fromkeys(texts)) or encode(texts))
    for method, count in ((GenericAttention(), 4), (GenericAttention().metagame(), 16)):
        explain_all(model, method)
        assert len(seen) == len(set(seen)) == count


@some_pairs
def test_a_batch_of_coalitions_takes_one_backward_pass_or_one_for_each_text(family, method, monkeypatch):
    seen, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **settings: seen.append(1) or grad(*args, **settings))
    for size, batches in ((None, 1), (4, 4)):
        game = method.make().game(build(family, torch.float32).bound(words=SCENARIOS["4"]))
        assert not seen
        game.batch_size = size
        game(all_coalitions(4))
        expected = {"mask": 0, "patc": 16}.get(method.name[:4], batches)
        assert len(seen) == expected
        seen.clear()


def test_the_image_encoder_stops_at_the_block_whose_input_is_asked_for():
    built, ran = build("clip", torch.float32), []
    for number, block in enumerate(built.model.encoder_view.blocks):
        block.module.layer_norm2.register_forward_hook(lambda *args, number=number: ran.append(number))
    built.bound().image.block_input(1)
    assert ran == [0]


def methods_of_image_texts():
    """Every attribution method that explains an image and a text, and the metagames of each that is a game."""
    for method in method_classes(ImageText):
        made = method(CrossedCoalitions(12)) if method is FIxLIP else method()
        yield made
        if isinstance(made, FirstOrder):
            yield from (made.metagame(), made.metagame(order=2, index="ksv"))


METHODS = list(methods_of_image_texts())


def families_of(method):
    kind = type(first_order_of(method))
    if kind in (MaskSigLIP, GradESigLIP):
        return ("siglip2",)
    if kind is PatchIG or issubclass(kind, TextSide):
        return (FAMILIES[getattr(method, "order", 0)],)
    if kind in (MaskCLIP, GradECLIP):
        return (CLASS_TOKEN_FAMILIES[getattr(method, "order", 0)],)
    return FAMILIES


def test_methods_are_found():
    found = set(map(method_name, METHODS))
    assert {
        "FIxLIP",
        "Meta-GradECLIP",
        "Pairs-MaskSigLIP",
        "GenericAttention",
        "Meta-PatchIG",
        "Meta-MaskCLIPText",
        "Pairs-GradECLIPText",
    } <= found
    assert len(found) == 29


@pytest.mark.parametrize(
    ("place", "training"),
    [(None, True), ("image", False), ("text", True)],
    ids=["train", "eval, image raises", "train, text raises"],
)
@pytest.mark.parametrize(
    ("family", "method"),
    [(family, method) for method in METHODS for family in families_of(method)],
    ids=lambda value: value if isinstance(value, str) else method_name(value),
)
def test_method_leaves_model_as_found(family, method, place, training):
    built, faults = build(family, torch.float32, patch=16), []
    net = built.model.net.train(training)
    last_of_image = built.model.encoder_view.blocks[-1].module.mlp
    last_of_text = net.ln_final if family == "open_clip" else net.text_model.final_layer_norm

    def fail(*_):
        if faults:
            raise RuntimeError("broken layer")

    (last_of_text if place == "text" else last_of_image).register_forward_hook(fail)
    list(net.parameters())[-1].requires_grad_(True)
    bound = built.bound(words=("one", "two"))
    before = state_of(net)
    if place is None:
        method.explain(bound)
    else:
        faults.append(1)
        with pytest.raises((RuntimeError, GameError), match="broken layer"):
            method.explain(bound)
        faults.clear()
    assert state_of(net) == before
    again, fresh = (arrays_of(method.explain(each)) for each in (bound, built.bound(words=("one", "two"))))
    assert all(close(one, other, 1e-6) for one, other in zip(again, fresh, strict=True))


@each_family
def test_embedding_of_a_text_is_the_same_whatever_its_company(family):
    model = build(family, torch.float32).model
    texts = [text_of(model, first, second) for first in list(VOCABULARY)[2:7] for second in list(VOCABULARY)[2:6]]

    def embed(asked):
        model.forget_texts()
        return model.embed(asked)

    together = embed(texts)
    assert torch.equal(embed(texts[::-1]).flip(0), together)
    assert torch.equal(torch.cat([embed([text]) for text in texts[::5]]), together[::5])
    assert torch.equal(embed([texts[1], texts[0], texts[1]]), together[[1, 0, 1]])


def test_a_model_forgets_the_texts_that_it_was_asked_for_first(monkeypatch):
    monkeypatch.setattr(vision_language, "MOST_TEXTS", 3)
    monkeypatch.setattr(vision_language, "MOST_KEPT", 2)
    model = build("clip", torch.float32).model
    texts = [text_of(model, first, "six") for first in list(VOCABULARY)[2:7]]
    asked, encode = [], model.encode_texts
    model.encode_texts = lambda some: asked.extend(dict.fromkeys(some)) or encode(some)
    for text in (*texts[:3], texts[0], texts[3], texts[0], texts[1]):
        model.embed([text])
    assert asked == [*texts[:4], texts[1]]
    assert len(model.embed(texts)) == len(texts)
    assert [model.keep(key, lambda key=key: key * 2) for key in "abac"] == ["aa", "bb", "aa", "cc"]
    assert [*model._kept] == ["a", "c"]


def test_a_text_is_padded_to_a_length_of_its_own_and_embedded_as_if_padded_to_the_context(float64_by_default):
    model = build("clip", torch.float64).model
    text = text_of(model, "one", "two")
    short = model.embed([text])
    model.padded_length = lambda text: model.tokenizer.context
    model.forget_texts()
    assert close(model.embed([text]), short, 1e-6)


def small_tokenizer(family="clip"):
    return build(family, torch.float32).model.tokenizer


@each_tokenizer
def test_absent_words_are_dropped_from_the_text(family):
    built = build(family, torch.float32)
    players = WordPlayers(built.model.tokenizer, list(WORDS))
    for present in all_coalitions(3).tolist():
        text = players.dropped(present)
        kept = " ".join(word for word, here in zip(WORDS, present, strict=True) if here)
        assert text.ids == tuple(built.tokenizer(kept)["input_ids"])
        assert all(text.attended)
    assert players.labels == WORDS


@each_tokenizer
@pytest.mark.parametrize("players", [WordPlayers, TokenPlayers])
def test_masked_pieces_stay_and_are_not_attended_to_and_special_tokens_always_are(players, family):
    """SigLIP has no token in front."""
    made = players(small_tokenizer(family), "one two" if players is TokenPlayers else ["one", "two"])
    front = () if family == "siglip2" else (VOCABULARY[START],)
    one, two, end = (VOCABULARY[token] for token in ("one", "two", END))
    assert made.dropped([False, False]).ids == (*front, end)
    for present in all_coalitions(2).tolist():
        assert made.masked(present) == Text((*front, one, two, end), (*[True] * len(front), *present, True))


def test_tokens_of_a_caption_are_players():
    players = TokenPlayers(small_tokenizer(), "Three one  three")
    start, end, three = (VOCABULARY[token] for token in (START, END, "three"))
    assert players.labels == ("three", "one", "three")
    assert players.dropped([True, False, True]) == Text((start, three, three, end), (True,) * 4)
    assert players.masked([True, False, False]).attended == (True, True, False, False, True)
    with refused("caption '' has no tokens: give at least one word"):
        TokenPlayers(small_tokenizer(), "")


@each_tokenizer
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
        found = tokenizer.encode(text)
        assert [*found, *[tokenizer.pad_id] * (77 - len(found))] == byte_pairs([text])[0].tolist()


def test_words_of_several_tokens_are_masked_as_a_whole(byte_pairs):
    tokenizer = adapt_tokenizer(byte_pairs, 77)
    words = ["antidisestablishmentarianism", "dog"]
    text = WordPlayers(tokenizer, words).masked([False, True])
    assert len(text.ids) > 4
    assert text.attended == (True, *(False,) * (len(text.ids) - 3), True, True)
    caption = TokenPlayers(tokenizer, " ".join(words))
    assert len(caption.labels) == len(text.ids) - 2
    assert ("".join(caption.labels[:-1]), caption.labels[-1]) == tuple(words)


def test_what_is_left_of_a_caption_is_dropped_to_its_tokens_or_read_as_a_text_and_tokenized_anew(byte_pairs):
    """The slow twin: the tokens' texts put together by hand."""
    tokenizer = adapt_tokenizer(byte_pairs, 77)
    start, hydr, ant, ate, end = tokenizer.encode("hydrant ate")
    expected = {"": (), "hydr": (hydr,), "ant": (ant,), "ate": (ate,), "hydrant": (hydr, ant), "ant ate": (ant, ate)}
    expected |= {"hydrate": (hydr, ate), "hydrant ate": (hydr, ant, ate)}
    dropped, anew = (players(tokenizer, "hydrant ate") for players in (TokenPlayers, RetokenizedPlayers))
    for text, ids in expected.items():
        present = [token in ids for token in (hydr, ant, ate)]
        assert dropped.dropped(present).ids == (start, *ids, end)
        assert anew.dropped(present) == Text(tokenizer.encode(text), (True,) * len(tokenizer.encode(text)))
        assert anew.masked(present) == dropped.masked(present)
    assert len(tokenizer.encode("hydrate")) == 3


def test_a_caption_whose_players_are_no_text_cannot_be_tokenized_anew(byte_pairs):
    tokenizer = adapt_tokenizer(byte_pairs, 77)
    snowman, tile = "\N{SNOWMAN WITHOUT SNOW}", "\N{MAHJONG TILE EAST WIND}"
    for caption in (f"a {snowman}{tile}", f"a {tile}"):
        assert len(TokenPlayers(tokenizer, caption, whole_characters=False).labels) > 3
        with refused("caption 'a .*' cannot be reconstructed from its tokens: choose absent=dropped"):
            RetokenizedPlayers(tokenizer, caption, whole_characters=False)
    whole = RetokenizedPlayers(tokenizer, f"a {tile} b")
    assert whole.labels == ("a", tile, "b")
    assert whole.dropped([True, False, True]).ids == tokenizer.encode("a b")
    assert whole.dropped([False, True, False]).ids == tokenizer.encode(tile)
    with refused("caption 'one' cannot be reconstructed from its tokens"):
        RetokenizedPlayers(SharingTokenizer(), "one")
    assert RetokenizedPlayers(tokenizer, "Two dogs , it's a \N{SLICE OF PIZZA}?").dropped([False] * 8).ids


@each_tokenizer
def test_a_caption_of_words_is_the_same_text_dropped_or_tokenized_anew(family):
    tokenizer = small_tokenizer(family)
    dropped, anew = (players(tokenizer, "One hydrant two") for players in (TokenPlayers, RetokenizedPlayers))
    assert all(dropped.dropped(present) == anew.dropped(present) for present in all_coalitions(3).tolist())


class SharingTokenizer:
    """Makes one token of the words "one two"."""

    context, pad_id = 8, 0

    def encode(self, text):
        return tuple(number for number, _ in self.split(text))

    def decode(self, ids):
        return "one one"

    def split(self, text):
        return [(0, False) for _ in text.replace("one two", "onetwo").split()]


class SplittingTokenizer(SharingTokenizer):
    """Gives a word behind a space one token, and two at the beginning."""

    def split(self, text):
        first, *others = text.split(" ")
        return [(100 + len(first), False), (200 + len(first), False), *((len(word), False) for word in others)]


def test_a_word_has_the_tokens_that_it_has_in_the_text():
    pieces = WordPlayers(SplittingTokenizer(), ["one", "three", "seventeen"])
    found = [pieces.masked(present).attended for present in (~np.eye(3, dtype=bool)).tolist()]
    assert found == [(False, False, True, True), (True, True, False, True), (True, True, True, False)]


def test_words_that_share_a_token_cannot_be_masked():
    with refused("the words of 'one two' share tokens"):
        WordPlayers(SharingTokenizer(), ["one", "two"]).masked([True, False])


def with_case(tokenizer):
    """The tokenizer without its own lower-casing."""
    tokenizer.backend_tokenizer.normalizer = Normalizers([])
    return tokenizer


@each_tokenizer
def test_lower_casing_is_the_adapters_for_siglip_only(family, tmp_path):
    """SigLIP-2's tokenizer keeps case, its training texts had none."""
    tokenizer = with_case(build(family, torch.float32).tokenizer)
    assert PretrainedTokenizer(tokenizer, 8).encode("ONE") != PretrainedTokenizer(tokenizer, 8).encode("one")
    tokenizer.save_pretrained(save(family, tmp_path))
    loaded = LOADERS[family].load(str(tmp_path), device="cpu")
    upper, lower = (loaded.tokenizer.encode(text) for text in ("ONE Two", "one two"))
    assert (upper == lower) == (family == "siglip2")


def test_siglip_texts_are_padded_to_the_context_and_padding_is_attended_to(monkeypatch):
    built = build("siglip2", torch.float32, context=12)
    seen, encode = [], built.net.get_text_features
    monkeypatch.setattr(built.net, "get_text_features", lambda **given: seen.append(given) or encode(**given))
    built.bound(words=("one", "two")).masked_texts(np.array([[False, True]]))
    expected = [VOCABULARY[token] for token in ("one", "two", END, *[PAD] * 9)]
    assert seen[0]["input_ids"][0].tolist() == expected
    assert seen[0]["attention_mask"][0].tolist() == [0] + [1] * 11


@each_family
def test_a_text_longer_than_the_context_is_refused_when_it_is_prepared(family):
    built = build(family, torch.float32)
    most = 8 - len(built.tokenizer("")["input_ids"])
    fitting, longer = built.model.prepare([scene(0, text=("one",) * count) for count in (most, most + 1)])
    assert GenericAttention().explain(fitting["text"]).attribution.shape == (16,)
    with refused("a text has 9 tokens .* context is 8: shorten it"):
        raise longer.error
    with refused("the encoder's context is 8: shorten it"):
        built.model.embed([text_of(built.model, *("one",) * 9)])


@pytest.mark.parametrize(
    ("family", "method", "match"),
    [
        ("siglip2", MaskCLIP(), r"mask_clip needs a \[CLS\] token.* choose attribution=mask_siglip"),
        ("siglip2", GradECLIP(), r"grad_eclip needs a \[CLS\] token.* choose attribution=grad_esiglip"),
        ("clip", MaskSigLIP(), "mask_siglip needs a pooling head.* choose attribution=mask_clip"),
        ("open_clip", GradESigLIP(), "grad_esiglip needs a pooling head.* choose attribution=grad_eclip"),
    ],
)
def test_method_of_the_other_kind_of_encoder_is_refused(family, method, match):
    bound = build(family, torch.float32).bound()
    for refusing in (method, method.metagame()):
        with refused(f"attribution={match}"):
            refusing.explain(bound)


@each_tokenizer
@pytest.mark.parametrize("start", [3, 100])
def test_start_layer_that_the_encoder_lacks_is_refused(family, start):
    with refused(f"start_layer={start} does not exist: the image encoder has blocks 0 to 2"):
        GenericAttention(start).explain(build(family, torch.float32).bound())


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [(GenericAttention, "start_layer", value) for value in (-1, "first", "0", "")]
    + [(GenericAttention, "product", value) for value in ("means", 1, None)]
    + [(method, "heads", value) for method in (GradECLIP, GradESigLIP, MaskSigLIP) for value in ("two", 1, None)],
)
def test_setting_that_a_method_does_not_have_is_refused(method, setting, value):
    with refused(f"{setting}={value!r} must be '"):
        method(**{setting: value})


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_weights_that_are_all_equal_cannot_be_scaled(value):
    scaled = min_max(torch.tensor([[3.0, -1.0, 1.0], [value] * 3]))
    assert scaled[0].tolist() == [1, 0, 0.5]
    with refused(r"lambda_p is the same on every patch.* the image is probably blank"):
        require_contrast(scaled[1, :, None])


@pytest.mark.parametrize(("family", "method"), [("clip", GradECLIP()), ("siglip2", GradESigLIP())])
def test_map_without_contrast_is_refused(family, method):
    """Every key is the bias of its projection."""
    built = build(family, torch.float32)
    built.net.vision_model.encoder.layers[-1].self_attn.k_proj.weight.data.zero_()
    with refused("lambda_p is .* on every patch"):
        method.explain(built.bound())


def test_patches_that_make_no_square_are_refused():
    assert grid_side(196) == 14
    with refused("15 patches do not form a square grid"):
        grid_side(15)


class BrokenScene(Scene):
    def image(self):
        raise UserError("image a.png does not exist: give the path of an image file.")


class SpeechlessScene(Scene):
    def texts(self, tokenizer):
        return {"text": TokenPlayers(tokenizer, "")}


@some_pairs
def test_what_is_kept_of_an_image_and_of_a_batch_is_forgotten_with_it(family, method):
    model = build(family, torch.float32).model
    first, second = (questions["2"] for questions in model.prepare([scene(seed, **SCENARIOS) for seed in range(2)]))
    metagame = method.make().metagame()
    metagame.explain(first)
    image, batch = weakref.ref(first.image), weakref.ref(first.image.batch)
    companies = [weakref.ref(company) for company in batch().companies.values()]
    gc.collect()
    gc.disable()
    try:
        del first
        assert image() is None
        assert list(batch().images) == [1]
        metagame.explain(second)
        del second
        assert batch() is None
        assert [company() for company in companies] == [None] * len(companies)
    finally:
        gc.enable()


def test_images_are_read_ahead_on_a_gpu_once(monkeypatch):
    model, read = build("clip", torch.float32).model, []
    monkeypatch.setattr(model, "process", lambda image, process=model.process: (read.append(1), process(image))[1])
    samples = [scene(seed) for seed in range(3)]
    expected = [questions["text"].image.pixels for questions in model.prepare(samples)]
    read.clear()
    model.read_ahead(samples)
    assert not read  # on a CPU
    model.device = "cuda"
    model.read_ahead([*samples[:2], BrokenScene("missing", picture())])
    model.device = "cpu"
    found = model.prepare(samples)
    assert len(read) == 3
    assert not model._ahead
    assert all(torch.equal(each["text"].image.pixels, pixels) for each, pixels in zip(found, expected, strict=True))


UNPREPARED = {
    "does not exist": BrokenScene("missing", picture()),
    "has no tokens": SpeechlessScene("empty", picture()),
    "image thin is 1 x 40 pixels": Scene("thin", Image.new("RGB", (1, 40))),
}


def test_samples_that_cannot_be_prepared_do_not_spoil_the_others():
    built = build("clip", torch.float32)
    first, *failures, second = built.model.prepare([scene(1), *UNPREPARED.values(), scene(2)])
    for failure, reason in zip(failures, UNPREPARED, strict=True):
        with refused(reason):
            raise failure.error
    for seed, found in ((1, first), (2, second)):
        own = built.bound(seed)
        assert torch.equal(found["text"].image.pixels, own.image.pixels)
        assert close(*(MaskCLIP().explain(bound).attribution for bound in (found["text"], own)), 1e-6)
    assert all(isinstance(each, Failure) for each in built.model.prepare(list(UNPREPARED.values())))


@each_family
def test_image_is_brought_to_rgb_and_to_its_shape_before_the_models_own_processor(family):
    """What becomes of other modes is metagame.images'."""
    model = build(family, torch.float32).model
    grey = picture().convert("L")
    wide = Image.fromarray(np.asarray(picture(0, 64))[:, :48])
    first, same, resized = (prepare_one(model, Scene("x", i))["text"] for i in (grey, grey.convert("RGB"), wide))
    assert torch.equal(first.image.pixels, same.image.pixels)
    assert resized.image.pixels.shape == (3, 32, 32)
    assert GenericAttention().explain(resized).attribution.shape == (16,)


@pytest.mark.parametrize("kind", [CLIPImageProcessor, CLIPImageProcessorFast])
@pytest.mark.parametrize("size", [(90, 3), (3, 90), (3, 3)])
def test_a_strip_three_pixels_high_is_no_image_whose_rows_are_channels(kind, size):
    settings = {"image_mean": HALF, "image_std": HALF, "do_normalize": True, "do_rescale": True}
    shown = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    pixels = processed(kind(do_resize=False, do_center_crop=False, **settings), Image.fromarray(shown))
    assert close(pixels, torch.tensor(shown).permute(2, 0, 1) / 127.5 - 1, 1e-6)


@each_family
def test_an_image_three_pixels_high_is_processed_like_any_other(family):
    model = build(family, torch.float32).model
    strip = Image.fromarray(np.random.default_rng(0).integers(96, 160, (3, 90, 3), np.uint8))
    bound = prepare_one(model, Scene("strip", strip))["text"]
    turned = prepare_one(model, Scene("turned", strip.transpose(Image.Transpose.TRANSPOSE)))["text"]
    assert close(bound.image.pixels, turned.image.pixels.mT, 0.05)  # of -1 to 1: rounded twice


CROPPING = {
    "crops": ({"size": {"shortest_edge": 40}, "crop_size": 32}, (40, 40), slice(4, 36)),
    "crops, and the image is not square": ({"size": {"shortest_edge": 40}, "crop_size": 32}, (40, 41), slice(4, 36)),
    "crops what it does not resize": ({"do_resize": False, "crop_size": 32}, (64, 64), slice(16, 48)),
    "leaves pixels behind the last whole patch": ({"do_resize": False, "crop_size": 35}, (35, 35), slice(32)),
    "crops one pixel on each side": ({"size": {"shortest_edge": 130}, "crop_size": 128}, (130, 130), slice(1, 129)),
}


@pytest.mark.parametrize(("settings", "shape", "kept"), CROPPING.values(), ids=CROPPING)
def test_what_the_processor_crops_is_not_in_the_picture(settings, shape, kept):
    model = build("clip", torch.float32).model
    model.processor = CLIPImageProcessor(**settings, image_mean=HALF, image_std=HALF)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = prepare_one(model, Scene("one", Image.fromarray(pixels)))["text"]
    assert close(found.picture, pixels[kept, kept], 1)


@each_family
@pytest.mark.parametrize("side", [20, 32, 100])
def test_a_square_image_of_which_nothing_is_cropped_keeps_its_resolution(family, side):
    model = build(family, torch.float32).model
    assert prepare_one(model, Scene("square", picture(0, side)))["text"].picture is None


@each_family
def test_saved_model_gives_the_maps_it_gave_before(family, tmp_path):
    built, folder = build(family, torch.float32), save(family, tmp_path)
    if family == "open_clip":
        loaded = OpenCLIP.load(f"local-dir:{folder}", device="cpu")
    else:
        loaded = LOADERS[family].load(str(folder), device="cpu")
    assert loaded.tokenizer.context == built.model.tokenizer.context == 8
    assert loaded.patch_size == 8
    assert close(loaded.logit_scale, built.model.logit_scale)
    assert not loaded.net.training
    own, again = built.bound(), prepare_one(loaded, scene(0, text=WORDS))["text"]
    assert torch.equal(own.image.pixels, again.image.pixels)
    assert close(*(GenericAttention().metagame().explain(each).meta.values for each in (again, own)), 1e-6)


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
    with refused(
        rf"the image encoder {name} is not a plain vision transformer with a \[CLS\] token: choose a ViT CLIP"
    ):
        OpenCLIP(small_open_clip(**settings), torch.clone, small_tokenizer(), "random")


def test_weights_in_half_precision_are_refused():
    built = build("clip", torch.float32)
    with refused("half precision"):
        CLIP(built.net.half(), None, built.model.tokenizer, "given")


@pytest.mark.parametrize("family", ["clip", "metaclip2"])
def test_a_clip_in_float64_is_refused_unless_torchs_numbers_are(family, request):
    built = build(family)
    with refused(r"the causal mask of transformers' CLIP does not hold float64: load the model in float32"):
        built.bound()
    request.getfixturevalue("float64_by_default")
    assert GradECLIP().metagame().explain(built.bound()).meta.values.dtype == np.float64


class ScaledMaskCLIP(MaskCLIP):
    """A method of one's own, with an argument."""

    def __init__(self, factor):
        self.factor = factor

    def vectors(self, view, x):
        return self.factor * super().vectors(view, x)


def test_maps_that_are_kept_with_an_image_are_of_one_method_with_its_arguments():
    bound = build("clip", torch.float32).bound(words=SCENARIOS["4"])
    one, two = (ScaledMaskCLIP(factor).explain(bound).attribution for factor in (1.0, 2.0))
    assert one.any()
    assert close(two, 2 * one, 1e-6)
