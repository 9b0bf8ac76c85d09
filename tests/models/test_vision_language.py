import gc
import weakref
from functools import partial
from itertools import cycle

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from tokenizers.normalizers import Sequence as Normalizers
from torch.nn.functional import normalize
from transformers import CLIPImageProcessor

from metagame import UserError, indices
from metagame.attributions.fixlip import FIxLIP
from metagame.attributions.fixlip_least_squares import CrossedCoalitions
from metagame.attributions.generic_attention import GenericAttention
from metagame.attributions.grad_eclip import GradECLIP, GradESigLIP
from metagame.attributions.mask_clip import MaskCLIP, MaskSigLIP
from metagame.attributions.method import FirstOrder
from metagame.contracts import Failure
from metagame.errors import GameError
from metagame.estimators.configured import ConfiguredEstimator
from metagame.games import all_coalitions
from metagame.images import grid_side
from metagame.models import vision_language
from metagame.models.clip import CLIP
from metagame.models.encoder_views import ClassTokenView
from metagame.models.open_clip import OpenCLIP, adapt_tokenizer
from metagame.models.pretrained import PretrainedTokenizer
from metagame.models.vision_language import ImageText, RetokenizedPlayers, Text, TokenPlayers, WordPlayers
from scripts.train_vision_language import END, START, VOCABULARY
from tests.conftest import close
from tests.reference import indices as reference_indices
from tests.tiny.checkpoints import LOADERS
from tests.tiny.methods import arrays_of, first_order_of, method_classes, method_name, state_of
from tests.tiny.vision_language import (
    CLASS_TOKEN_FAMILIES,
    FAMILIES,
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
# Each method once, and each family: where a property is not of a pair of both.
SOME = [
    *zip(cycle(CLASS_TOKEN_FAMILIES), methods_of("clip")),
    *(("siglip2", method) for method in methods_of("siglip2")),
]
# Each method as it is by default: where a property does not depend on its settings.
KINDS = [(family, method) for family, method in SOME if "-" not in method.name]


def pairs(chosen):
    ids = [f"{family}-{method.name}" for family, method in chosen]
    return pytest.mark.parametrize(("family", "method"), chosen, ids=ids)


float64 = pytest.mark.usefixtures("float64_by_default")
each_family = pytest.mark.parametrize("family", FAMILIES)
each_tokenizer = pytest.mark.parametrize("family", ["clip", "siglip2"])
each_kind = pairs(KINDS)


def small(family="clip"):
    return build(family, torch.float32).model


def text_of(model, *words):
    return WordPlayers(model.tokenizer, words).dropped([True] * len(words))


def prepared(model, image):
    return prepare_one(model, Scene("one", image))["text"]


@each_family
@torch.no_grad()
def test_blocks_of_the_tower_and_texts_give_the_models_own_embeddings_and_logits(family):
    built = build(family, torch.float32)
    model, tower = built.model, built.model.encoder_view
    pixels = torch.stack([model.process(picture(seed)) for seed in range(3)])
    own = (model.net.encode_image if family == "open_clip" else built.net.get_image_features)(pixels)
    embeddings = model.encode_images(pixels)
    assert close(embeddings, own, FLOAT32_TOLERANCE)
    for start in (0, 1, -1):
        x = model.block_input(pixels, start)
        for block in tower.blocks[start:]:
            _, x = block.forward(x)
        found = tower.project(x[:, 0]) if isinstance(tower, ClassTokenView) else tower.head.forward(tower.norm(x))[1]
        assert close(found, own, FLOAT32_TOLERANCE)
    texts = model.embed([text_of(model, *text.split()) for text in TEXTS])
    logits = model.logit_scale * normalize(embeddings, dim=-1) @ texts.T
    tokens = built.tokenizer(TEXTS, padding="max_length", max_length=8, return_tensors="pt")
    if family == "open_clip":
        expected = model.net.get_logits(pixels, tokens["input_ids"])[0]
    else:
        expected = built.net(pixel_values=pixels, **tokens).logits_per_image - getattr(built.net, "logit_bias", 0)
    assert close(logits, expected, FLOAT32_TOLERANCE * float(model.logit_scale))
    assert model.logit_scale.shape == ()


def test_a_model_is_evaluated_without_gradients_of_its_weights():
    net = small().net.train().requires_grad_(True)
    CLIP(net, None, small().tokenizer, "given")
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


@float64
@pairs(SOME)
def test_maps_of_all_coalitions_and_their_metagames_are_those_of_the_slow_twin(family, method):
    built = build(family)
    bound = built.bound()
    table = built.twin_table(method, bound)
    maps = method.make().game(bound)(all_coalitions(3))
    assert close(maps, table)
    assert (np.abs(maps).max(1) > 2e-3).all()
    found = method.make().metagame().explain(bound)
    assert close(found.meta.values, indices.shapley(table, 3).T)
    assert close(found.attribution, table[-1])
    assert close(found.meta.empty, table[0])
    for names in (bound, found, found.meta):
        assert (names.players, names.targets, names.grid) == (WORDS, ("image",), (4, 4))
    pairwise = method.make().metagame(order=2, index="ksv").explain(bound).meta.values
    assert close(pairwise, [reference_indices.ksv(values, 3) for values in table.T])


@float64
@pairs([(f, m) for f in CLASS_TOKEN_FAMILIES for m in methods_of(f) if "-" not in m.name and (f, m) not in KINDS])
def test_maps_of_the_other_families_are_those_of_the_slow_twin(family, method):
    built = build(family)
    bound = built.bound()
    assert close(method.make().game(bound)(all_coalitions(3)), built.twin_table(method, bound))


@float64
@pytest.mark.parametrize("family", ["clip", "metaclip2", "siglip2"])
def test_eager_attention_changes_no_map(family):
    """Its softmax is in float32, whatever the model's type."""
    built, method = build(family), methods_of(family)[-1]
    built.net.set_attn_implementation("eager")
    bound = built.bound()
    assert close(method.make().game(bound)(all_coalitions(3)), built.twin_table(method, bound), 1e-6)


@each_kind
def test_an_image_and_a_distinct_text_are_encoded_once_for_all_questions(family, method):
    model, seen, texts = small(family), [], []
    tower = model.net.visual if isinstance(model, OpenCLIP) else model.net.vision_model
    encode = model.encode_texts
    # a batch is filled with copies of its last text
    model.encode_texts = lambda some: texts.extend(dict.fromkeys(some)) or encode(some)

    def look(module, args, kwargs):
        seen.append(len(args[0] if args else kwargs["pixel_values"]))

    tower.register_forward_pre_hook(look, with_kwargs=True)
    samples = [scene(seed, **SCENARIOS) for seed in range(3)]
    asked = [bound for questions in model.prepare(samples) for bound in questions.values()]
    for explaining, count in ((method.make(), 4), (method.make().metagame(), 16)):
        for bound in asked:
            explaining.explain(bound)
        assert len(texts) == len(set(texts)) == count
    assert seen == ([3, 1] if method.name == "patch_ig" else [3])  # a blank one


@pytest.fixture
def backward_passes(monkeypatch):
    """The number of outputs of each backward pass."""
    made, grad = [], torch.autograd.grad

    def counted(outputs, *rest, **how):
        made.append(len(outputs))
        return grad(outputs, *rest, **how)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return made


@pairs(SOME)
def test_images_and_coalitions_have_the_maps_in_batches_that_they_have_alone(
    family, method, backward_passes, monkeypatch
):
    """Images with the same texts are propagated back together, and not more texts than fit."""
    model, metagame = small(family), method.make().metagame()
    samples = [scene(seed, **SCENARIOS) for seed in range(4)]
    samples[2] = scene(2, **{name: SCENARIOS[name] for name in ("1", "2")})
    alone = [metagame.explain(prepare_one(model, sample)["2"]).meta.values for sample in samples]
    n_alone = backward_passes.copy()
    backward_passes.clear()
    found = [metagame.explain(questions["2"]).meta.values for questions in model.prepare(samples)]
    assert all(close(one, other, 1e-4 * np.abs(other).max()) for one, other in zip(found, alone, strict=True))
    if not method.name.startswith("patch_ig"):
        assert (n_alone, backward_passes) == (([], []) if method.name.startswith("mask") else ([1] * 4, [2, 1, 1]))
    in_parts = method.make().metagame(ConfiguredEstimator(batch_size=3))
    assert close(in_parts.explain(prepare_one(model, samples[0])["2"]).meta.values, alone[0], 1e-6)
    again = metagame.explain(prepare_one(small(family), samples[0])["2"]).meta.values
    assert again.tobytes() == alone[0].tobytes()
    backward_passes.clear()
    monkeypatch.setattr(vision_language, "SEEDED", 3 * 16)  # three texts that are seeds on all patches
    assert close(metagame.explain(prepare_one(model, samples[0])["2"]).meta.values, alone[0], 1e-6)
    assert method.name.startswith("mask") or len(backward_passes) > 1


@each_kind
def test_a_batch_of_coalitions_takes_one_backward_pass_or_one_for_each_text(family, method, backward_passes):
    for size, batches in ((None, 1), (4, 4)):
        game = method.make().game(build(family, torch.float32).bound(words=SCENARIOS["4"]))
        assert not backward_passes
        game.batch_size = size
        game(all_coalitions(4))
        assert len(backward_passes) == {"mask": 0, "patc": 16}.get(method.name[:4], batches)
        backward_passes.clear()


@pytest.mark.parametrize(("family", "method"), [("clip", GradECLIP()), ("siglip2", GradESigLIP())])
def test_a_blank_image_is_refused_without_the_others_of_its_batch(family, method, monkeypatch):
    model = small(family)
    block_input, contrast = model.block_input, torch.tensor([0.0, 1.0])[:, None, None]
    monkeypatch.setattr(model, "block_input", lambda pixels, layer: contrast * block_input(pixels, layer))
    blank, seen = (questions["text"] for questions in model.prepare([scene(0), scene(1)]))
    with refused("lambda_p is the same on every patch"):
        method.explain(blank)
    assert np.isfinite(method.explain(seen).attribution).all()


def test_the_image_encoder_stops_at_the_block_whose_input_is_asked_for():
    built, ran = build("clip", torch.float32), []
    for number, block in enumerate(built.model.encoder_view.blocks):
        block.module.layer_norm2.register_forward_hook(lambda *args, number=number: ran.append(number))
    built.bound().image.block_input(1)
    assert ran == [0]


def methods_of_image_texts():
    """Every attribution method that explains an image and a text, and the metagame of each that is a game."""
    for method in method_classes(ImageText):
        made = method(CrossedCoalitions(12)) if method is FIxLIP else method()
        yield made
        if isinstance(made, FirstOrder):
            yield made.metagame()


METHODS = list(methods_of_image_texts())
PLACES = {"train": (None, True), "eval, image raises": ("image", False), "train, text raises": ("text", True)}


def families_of(method):
    """Three families, one for each place, and others for metagames; FIxLIP's text raises while open_clip is masked."""
    kind, first = type(first_order_of(method)), 1 - getattr(method, "order", 0)
    if kind in (MaskSigLIP, GradESigLIP):
        return ("siglip2",) * 3
    fitting = CLASS_TOKEN_FAMILIES if kind in (MaskCLIP, GradECLIP) else FAMILIES
    return (*fitting[first:], *fitting[:first])[:3]


def test_methods_are_found():
    assert len(METHODS) == 20
    assert {"FIxLIP", "Meta-GradECLIP", "MaskSigLIP", "Meta-MaskCLIPText"} <= set(map(method_name, METHODS))


@pytest.mark.parametrize(
    ("method", "family", "place"),
    [(method, *each) for method in METHODS for each in zip(families_of(method), PLACES, strict=True)],
    ids=lambda value: value if isinstance(value, str) else method_name(value),
)
def test_method_leaves_model_as_found(method, family, place):
    built, faults = build(family, torch.float32, patch=16), []
    broken, training = PLACES[place]
    net = built.model.net.train(training)
    last_of_image = built.model.encoder_view.blocks[-1].module.mlp
    last_of_text = net.ln_final if family == "open_clip" else net.text_model.final_layer_norm

    def fail(*_):
        if faults:
            raise RuntimeError("broken layer")

    (last_of_text if broken == "text" else last_of_image).register_forward_hook(fail)
    list(net.parameters())[-1].requires_grad_(True)
    bound = built.bound(words=("one", "two"))
    before = state_of(net)
    if broken is None:
        method.explain(bound)
    else:
        faults.append(1)
        with pytest.raises((RuntimeError, GameError), match="broken layer"):
            method.explain(bound)
        faults.clear()
    assert state_of(net) == before
    again, fresh = (arrays_of(method.explain(each)) for each in (bound, built.bound(words=("one", "two"))))
    assert all(close(one, other, 1e-6) for one, other in zip(again, fresh, strict=True))


@each_tokenizer
def test_embedding_of_a_text_is_the_same_whatever_its_company(family):
    model = small(family)
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
    model, asked = small(), []
    texts, encode = [text_of(model, first, "six") for first in list(VOCABULARY)[2:7]], model.encode_texts
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


@each_tokenizer
@pytest.mark.parametrize("players", [WordPlayers, TokenPlayers])
def test_absent_words_are_dropped_or_not_attended_to_and_special_tokens_stay(players, family):
    """SigLIP has no token in front."""
    made = players(small(family).tokenizer, "one two" if players is TokenPlayers else ["one", "two"])
    assert made.labels == ("one", "two")
    front = () if family == "siglip2" else (VOCABULARY[START],)
    one, two, end = (VOCABULARY[token] for token in ("one", "two", END))
    for present in all_coalitions(2).tolist():
        kept = [word for word, here in zip((one, two), present, strict=True) if here]
        assert made.dropped(present) == Text((*front, *kept, end), (True,) * len((*front, *kept, end)))
        assert made.masked(present) == Text((*front, one, two, end), (*[True] * len(front), *present, True))


@each_tokenizer
def test_a_word_that_the_tokenizer_does_not_know_is_a_player_too(family):
    tokenizer = small(family).tokenizer
    dropped, anew = (players(tokenizer, "One hydrant two") for players in (TokenPlayers, RetokenizedPlayers))
    assert len(dropped.labels) == 3
    assert all(dropped.dropped(present) == anew.dropped(present) for present in all_coalitions(3).tolist())
    absent = WordPlayers(tokenizer, ["one", "hydrant", "two"]).masked([True, False, True])
    assert sum(absent.attended) == len(absent.ids) - 1


@pytest.fixture(scope="module")
def byte_pairs():
    """open_clip's own tokenizer, adapted."""
    return adapt_tokenizer(open_clip.get_tokenizer("ViT-B-16"), 77)


def test_open_clips_own_tokenizer_gives_its_own_ids(byte_pairs):
    for text in ("", "a Photo of a dog", "yorkshire next to a red hydrant"):
        found = byte_pairs.encode(text)
        assert [*found, *[byte_pairs.pad_id] * (77 - len(found))] == byte_pairs.tokenizer([text])[0].tolist()


def test_words_of_several_tokens_are_masked_as_a_whole(byte_pairs):
    words = ["antidisestablishmentarianism", "dog"]
    text = WordPlayers(byte_pairs, words).masked([False, True])
    assert len(text.ids) > 4
    assert text.attended == (True, *(False,) * (len(text.ids) - 3), True, True)
    caption = TokenPlayers(byte_pairs, " ".join(words))
    assert len(caption.labels) == len(text.ids) - 2
    assert ("".join(caption.labels[:-1]), caption.labels[-1]) == tuple(words)


def test_what_is_left_of_a_caption_is_dropped_to_its_tokens_or_read_as_a_text_and_tokenized_anew(byte_pairs):
    """The slow twin: the tokens' texts put together by hand."""
    start, hydr, ant, ate, end = byte_pairs.encode("hydrant ate")
    expected = {"": (), "hydr": (hydr,), "ant": (ant,), "ate": (ate,), "hydrant": (hydr, ant), "ant ate": (ant, ate)}
    expected |= {"hydrate": (hydr, ate), "hydrant ate": (hydr, ant, ate)}
    dropped, anew = (players(byte_pairs, "hydrant ate") for players in (TokenPlayers, RetokenizedPlayers))
    for text, ids in expected.items():
        present = [token in ids for token in (hydr, ant, ate)]
        assert dropped.dropped(present).ids == (start, *ids, end)
        assert anew.dropped(present) == Text(byte_pairs.encode(text), (True,) * len(byte_pairs.encode(text)))
        assert anew.masked(present) == dropped.masked(present)
    assert len(byte_pairs.encode("hydrate")) == 3


def test_a_caption_whose_players_are_no_text_cannot_be_tokenized_anew(byte_pairs):
    snowman, tile = "\N{SNOWMAN WITHOUT SNOW}", "\N{MAHJONG TILE EAST WIND}"
    for caption in (f"a {snowman}{tile}", f"a {tile}"):
        assert len(TokenPlayers(byte_pairs, caption, whole_characters=False).labels) > 3
        with refused("caption 'a .*' cannot be reconstructed from its tokens: choose absent=dropped"):
            RetokenizedPlayers(byte_pairs, caption, whole_characters=False)
    whole = RetokenizedPlayers(byte_pairs, f"a {tile} b")
    assert whole.labels == ("a", tile, "b")
    assert whole.dropped([True, False, True]).ids == byte_pairs.encode("a b")
    assert whole.dropped([False, True, False]).ids == byte_pairs.encode(tile)
    with refused("caption 'one' cannot be reconstructed from its tokens"):
        RetokenizedPlayers(SharingTokenizer(), "one")
    assert RetokenizedPlayers(byte_pairs, "Two dogs , it's a \N{SLICE OF PIZZA}?").dropped([False] * 8).ids


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


@each_tokenizer
def test_lower_casing_is_the_adapters_for_siglip_only(family, tmp_path):
    """SigLIP-2's tokenizer keeps case, its training texts had none."""
    tokenizer = build(family, torch.float32).tokenizer
    tokenizer.backend_tokenizer.normalizer = Normalizers([])
    assert PretrainedTokenizer(tokenizer, 8).encode("ONE") != PretrainedTokenizer(tokenizer, 8).encode("one")
    tokenizer.save_pretrained(save(family, tmp_path))
    loaded = LOADERS[family](str(tmp_path))
    upper, lower = (loaded.tokenizer.encode(text) for text in ("ONE Two", "one two"))
    assert (upper == lower) == (family == "siglip2")


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
        ("siglip2", MaskCLIP(), r"attribution=mask_clip needs a \[CLS\] token.* choose attribution=mask_siglip"),
        ("siglip2", GradECLIP(), r"attribution=grad_eclip needs a \[CLS\] token.* choose attribution=grad_esiglip"),
        ("clip", MaskSigLIP(), "attribution=mask_siglip needs a pooling head.* choose attribution=mask_clip"),
        ("open_clip", GradESigLIP(), "attribution=grad_esiglip needs a pooling head.* choose attribution=grad_eclip"),
        ("clip", GenericAttention(3), "start_layer=3 does not exist: the image encoder has blocks 0 to 2"),
        ("siglip2", GenericAttention(3), "start_layer=3 does not exist: the image encoder has blocks 0 to 2"),
    ],
)
def test_method_that_does_not_fit_the_encoder_is_refused(family, method, match):
    bound = build(family, torch.float32).bound()
    for refusing in (method, method.metagame()):
        with refused(match):
            refusing.explain(bound)


def small_open_clip(layers, **settings):
    vision = {"width": 16, "head_width": 8, "image_size": 32, "patch_size": 8, "layers": layers} | settings
    text = CLIPTextCfg(context_length=8, vocab_size=14, width=16, heads=2, layers=1)
    return OpenCLIP(open_clip.CLIP(8, CLIPVisionCfg(**vision), text), torch.clone, small().tokenizer, "random")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (partial(GenericAttention, -1), "start_layer=-1 must be '"),
        (partial(GenericAttention, "0"), "start_layer='0' must be '"),
        (partial(GenericAttention, product="means"), "product='means' must be '"),
        (partial(GradECLIP, "two"), "heads='two' must be '"),
        (partial(GradESigLIP, 1), "heads=1 must be '"),
        (partial(MaskSigLIP, None), "heads=None must be '"),
        (partial(grid_side, 15), "15 patches do not form a square grid"),
        (lambda: WordPlayers(SharingTokenizer(), ["one", "two"]).masked([True, False]), "'one two' share tokens"),
        (lambda: CLIP(small().net.half(), None, small().tokenizer, "given"), "half precision"),
        (partial(small_open_clip, (1, 1, 1, 1), width=8), r"encoder ModifiedResNet is not .* a \[CLS\] token: choose"),
        (partial(small_open_clip, 1, pool_type="avg"), "encoder VisionTransformer is not a plain vision transformer"),
        (partial(small_open_clip, 1, attentional_pool=True), "encoder VisionTransformer is not a plain vision"),
        (partial(small_open_clip, 1, block_type="custom"), "encoder VisionTransformer is not a plain vision"),
    ],
)
def test_setting_text_or_net_that_is_not_possible_is_refused(make, reason):
    with refused(reason):
        make()


@pytest.mark.parametrize("family", ["clip", "metaclip2"])
def test_a_clip_in_float64_is_refused_unless_torchs_numbers_are(family, request):
    built = build(family)
    with refused(r"the causal mask of transformers' CLIP does not hold float64: load the model in float32"):
        built.bound()
    request.getfixturevalue("float64_by_default")
    assert GradECLIP().metagame().explain(built.bound()).meta.values.dtype == np.float64


class BrokenScene(Scene):
    def image(self):
        raise UserError("image a.png does not exist: give the path of an image file.")


class SpeechlessScene(Scene):
    def texts(self, tokenizer):
        return {"text": TokenPlayers(tokenizer, "")}


@each_kind
def test_what_is_kept_of_an_image_and_of_a_batch_is_forgotten_with_it(family, method):
    first, second = (questions["2"] for questions in small(family).prepare([scene(i, **SCENARIOS) for i in range(2)]))
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
    model, read = small(), []
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
    "caption '' has no tokens: give at least one word": SpeechlessScene("empty", picture()),
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
def test_image_is_brought_to_rgb_and_to_its_shape_but_a_square_that_is_not_cropped_keeps_its_resolution(family):
    """What becomes of other modes is metagame.images'."""
    model, grey = small(family), picture().convert("L")
    wide = Image.fromarray(np.asarray(picture(0, 64))[:, :48])
    first, same, resized = (prepared(model, image).image.pixels for image in (grey, grey.convert("RGB"), wide))
    assert torch.equal(first, same)
    assert resized.shape == (3, 32, 32)
    assert [prepared(model, picture(0, side)).picture for side in (20, 32, 100)] == [None] * 3


@pytest.mark.parametrize(
    ("settings", "shape", "kept"),
    [
        ({"size": {"shortest_edge": 40}, "crop_size": 32}, (40, 40), slice(4, 36)),
        ({"size": {"shortest_edge": 40}, "crop_size": 32}, (40, 41), slice(4, 36)),
        ({"do_resize": False, "crop_size": 32}, (64, 64), slice(16, 48)),
        ({"do_resize": False, "crop_size": 35}, (35, 35), slice(32)),  # what is behind the last whole patch is cut, too
        ({"size": {"shortest_edge": 130}, "crop_size": 128}, (130, 130), slice(1, 129)),
    ],
)
def test_what_the_processor_crops_is_not_in_the_picture(settings, shape, kept):
    model = small()
    model.processor = CLIPImageProcessor(**settings, image_mean=HALF, image_std=HALF)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert close(prepared(model, Image.fromarray(pixels)).picture, pixels[kept, kept], 1)


@each_family
def test_saved_model_gives_the_maps_it_gave_before(family, tmp_path):
    built, loaded = build(family, torch.float32), LOADERS[family](str(save(family, tmp_path)))
    assert loaded.tokenizer.context == built.model.tokenizer.context == 8
    assert loaded.patch_size == 8
    assert close(loaded.logit_scale, built.model.logit_scale)
    own, again = built.bound(), prepare_one(loaded, scene(0, text=WORDS))["text"]
    assert torch.equal(own.image.pixels, again.image.pixels)
    assert close(*(GenericAttention().metagame().explain(each).meta.values for each in (again, own)), 1e-6)


def test_maps_that_are_kept_with_an_image_are_of_one_method_with_its_arguments():
    bind = build("clip", torch.float32).bound
    bound, native = bind(), GradECLIP("native")
    one, found = (method.explain(bound).attribution for method in (GradECLIP(), native))
    assert not close(found, one, 0.01)
    assert close(found, native.explain(bind()).attribution, 1e-6)
