from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import requests
import torch
from diffusers import FluxPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import GatedRepoError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel
from transformers.utils import logging as transformers_logging

from metagame import UserError
from metagame.contracts import Failure
from metagame.models.concept_stream import ConceptSet, concept_logits
from metagame.models.concepts import (
    PaintedImage,
    concept_pieces,
    concept_token,
    load_t5_tokenizer,
)
from metagame.models.flux import ConceptPlan, Denoising, Flux
from tests.reference import concept_stream as reference
from tests.tiny.flux import (
    BACKGROUND,
    CONCEPTS,
    LATENT_CHANNELS,
    PATCHES,
    PLAYERS,
    SIDE,
    TEXT_LENGTH,
    Photo,
    ask,
    build,
    build_pipeline,
    build_t5_tokenizer,
    count_hooks,
    counted,
    recorded,
    save,
)
from tests.tiny.jobs import ROOT
from tests.tiny.language import near
from tests.tiny.vision_language import picture, refused

FLOAT32_TOLERANCE = 1e-4
PROMPT = "a seven"
BOTH = {"joint": ask(), "decoupled": ask(cross_attention=False)}
SIZES = {"n0": 3, "d10": 10, "n20": 20, "n24": 24}
NAMES = (*CONCEPTS[:20], "kite", "clock", "oven", "spoon")
WEIGHTS = {
    "transformer": ("diffusion_pytorch_model.safetensors", "transformer_blocks.0.attn.to_q.weight"),
    "vae": ("diffusion_pytorch_model.safetensors", "encoder.conv_in.weight"),
    "text_encoder": ("model.safetensors", "text_model.final_layer_norm.weight"),
    "text_encoder_2": ("model.safetensors", "encoder.final_layer_norm.weight"),
}
each_guidance = pytest.mark.parametrize("guidance", [None, 3.5], ids=["no guidance", "guidance"])
each_attention = pytest.mark.parametrize("cross_attention", [True, False], ids=["joint", "decoupled"])
each_part = pytest.mark.parametrize("part", WEIGHTS)


def painted(asked=BOTH, seed=31, prompt=PROMPT):
    return PaintedImage("painting", prompt, seed, asked)


each_kind = pytest.mark.parametrize("kind", [Photo, painted])
each_sample = pytest.mark.parametrize("sample", [Photo(BOTH), painted()], ids=["photo", "painting"])
each_dataset = pytest.mark.parametrize(
    ("sizes", "cells"), [(("n0", "d10", "n20"), 12), (tuple(SIZES), 16)], ids=["voc", "coco"]
)


def figure_13(sizes=tuple(SIZES)):
    """A baseline, decoupled, of fewer layers and with a prompt, for each number of players."""
    settings = {
        "baseline": {},
        "decoupled": {"cross_attention": False},
        "last": {"n_layers": 1},
        "prompt": {"prompt": "a car, a bus"},
    }
    return {
        f"{size}/{name}": ask(NAMES[: SIZES[size]], CONCEPTS[20:], **{"n_layers": 2} | setting)
        for size in sizes
        for name, setting in settings.items()
    }


def encoded(flux, names):
    """The encodings of concepts' first tokens."""
    pipeline = flux.pipeline
    tokens = [pipeline.tokenizer_2(name, padding="max_length", max_length=flux.text_length) for name in names]
    with torch.no_grad():
        return torch.cat([pipeline.text_encoder_2(torch.tensor([each["input_ids"]]))[0][:, 0] for each in tokens])


def arguments(flux, latents, prompt):
    """What FluxPipeline would give the transformer for these latents, but for the pooled text, which is zero."""
    when, _, height, width = flux.denoising, *latents.shape[1:]
    embeddings, _, txt_ids = flux.pipeline.encode_prompt(prompt, max_sequence_length=flux.text_length)
    ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
    given = {
        "hidden_states": FluxPipeline._pack_latents(latents, 1, LATENT_CHANNELS, height, width),
        "encoder_hidden_states": embeddings,
        "pooled_projections": torch.zeros(1, flux.pipeline.transformer.config.pooled_projection_dim),
        "timestep": torch.tensor([1 - when.step / when.n_steps]),
        "img_ids": ids,
        "txt_ids": txt_ids,
    }
    if when.guidance is not None:
        given["guidance"] = torch.tensor([when.guidance])
    return given


@torch.no_grad()
def latents_of(flux, image):
    """x_t from its definition."""
    when, vae = flux.denoising, flux.pipeline.vae
    stretched = image.resize((when.side, when.side), Image.Resampling[when.resample.upper()])
    pixels = torch.tensor(np.array(stretched) / 255 * 2 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    x = (vae.encode(pixels).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(when.seed))
    t = 1 - when.step / when.n_steps
    return (1 - t) * x + t * noise


def same(found, expected, tolerance=1e-5):
    """Whether two sets of answers have the same logits."""
    return found.keys() == expected.keys() and all(
        near(found[name].player_logits, expected[name].player_logits, tolerance)
        and near(found[name].background_logits, expected[name].background_logits, tolerance)
        for name in expected
    )


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("flux"))


@pytest.fixture
def copied(folder, tmp_path):
    """A checkpoint to break."""
    return shutil.copytree(folder, tmp_path / "checkpoint")


def load(folder, revision=None, **settings):
    return Flux.load(str(folder), revision, Denoising(SIDE), TEXT_LENGTH, **{"device": "cpu"} | settings)


def rewrite(folder, part, change):
    """Let ``change`` edit the weights of a part."""
    path = folder / part / WEIGHTS[part][0]
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@each_attention
@each_guidance
@pytest.mark.parametrize("prompt", ["", "a car on a street"])
def test_logits_of_a_photo_are_those_of_the_equations(prompt, guidance, cross_attention):
    flux, photo = build(guidance=guidance), Photo({"q": ask(prompt=prompt, cross_attention=cross_attention)})
    found = flux.bind(photo)["q"]
    inputs = arguments(flux, latents_of(flux, photo.image()), prompt)
    encodings = encoded(flux, PLAYERS + BACKGROUND)
    expected = reference.concept_logits(flux.pipeline.transformer, inputs, encodings, cross_attention)[-2:]
    assert near(found.player_logits, expected[:, : len(PLAYERS)], FLOAT32_TOLERANCE)
    assert near(found.background_logits, expected[:, len(PLAYERS) :], FLOAT32_TOLERANCE)


@each_kind
def test_every_question_is_answered_in_its_order(kind):
    asked = {
        "one": ask(("car",), ()),
        "prompt": ask(prompt="a car"),
        "three layers": ask(PLAYERS, ("sky",), n_layers=3),
        "decoupled": ask(("dog", "cat"), cross_attention=False),
        "decoupled prompt": ask(("bus",), n_layers=1, prompt="a car", cross_attention=False),
    }
    flux = build()
    answers = flux.bind(kind(asked))
    assert count_hooks(flux.pipeline) == 0
    assert list(answers) == list(asked)
    for name, question in asked.items():
        answer = answers[name]
        assert (answer.players, answer.background) == (question.players, question.background)
        assert answer.player_logits.shape == (question.n_layers, len(question.players), PATCHES)
        assert answer.background_logits.shape == (question.n_layers, len(question.background), PATCHES)
        assert answer.player_logits.dtype == answer.background_logits.dtype == torch.float32
        assert not answer.player_logits.requires_grad
        assert (answer.picture is None) == (kind is Photo)


@each_kind
def test_a_question_is_answered_as_if_it_were_the_only_one(kind):
    flux, asked = build(), figure_13(("n0", "n24"))
    together = flux.bind(kind(asked))
    for name, question in asked.items():
        assert same(flux.bind(kind({name: question})), {name: together[name]})


@each_attention
def test_a_concept_has_the_same_logits_as_player_and_as_background(cross_attention):
    asked = {"one": ask(("car", "cat"), ("sky",)), "other": ask(("sky",), ("cat", "car"))}
    asked = {name: replace(question, cross_attention=cross_attention) for name, question in asked.items()}
    one, other = build().bind(Photo(asked)).values()
    assert near(one.background_logits, other.player_logits, 1e-5)
    assert near(one.player_logits, other.background_logits.flip(1), 1e-5)
    assert not near(one.player_logits, other.background_logits, 0.01)


@each_dataset
def test_a_forward_pass_for_each_prompt_serves_all_cells_of_figure_13(sizes, cells):
    flux, asked = build(), figure_13(sizes)
    with recorded(flux.pipeline.transformer) as passes, counted([flux.pipeline.vae.encoder]) as encodings:
        answers = flux.bind(Photo(asked))
    assert len(answers) == cells
    assert len(passes) == 2
    assert len(encodings) == 1
    with counted(flux.pipeline.transformer.single_transformer_blocks) as calls:
        flux.bind(Photo(asked))
    assert calls == []


@each_dataset
def test_cells_of_figure_13_share_their_sets(sizes, cells):
    asked = figure_13(sizes)
    plain = ConceptPlan.of({name: question for name, question in asked.items() if not question.prompt})
    prompted = ConceptPlan.of({name: question for name, question in asked.items() if question.prompt})
    assert len(asked) == cells
    assert len(plain.joint) == len(prompted.joint) == len(sizes)
    assert set(plain.decoupled) == {*NAMES[: SIZES[sizes[-1]]], *CONCEPTS[20:]}
    assert prompted.decoupled == ()
    assert (plain.n_layers, prompted.n_layers) == (2, 2)
    sets, prompted_sets = (plan.sets(lambda name: torch.zeros(1, 2)) for plan in (plain, prompted))
    assert [each.cross_attention for each in sets] == [True] * len(sizes) + [False]
    assert [len(each.encodings) for each in sets] == [SIZES[size] + 5 for size in sizes] + [SIZES[sizes[-1]] + 5]
    assert [each.cross_attention for each in prompted_sets] == [True] * len(sizes)


def test_a_concept_and_a_prompt_are_encoded_once():
    flux = build()
    with counted([flux.pipeline.text_encoder_2]) as calls:
        flux.bind(Photo(figure_13()))
        assert len(calls) == 24 + 5 + 2
        flux.bind(Photo(BOTH, picture(1, 40)))
        assert len(calls) == 24 + 5 + 2


def test_samples_do_not_depend_on_those_before():
    flux, photos = build(), [Photo(BOTH, picture(seed, 40)) for seed in range(3)]
    in_order = [flux.bind(photo)["joint"].player_logits for photo in photos]
    for photo, found in zip(photos[::-1], in_order[::-1], strict=True):
        assert torch.equal(flux.bind(photo)["joint"].player_logits, found)
    assert not near(in_order[0], in_order[1], 0.01)


@each_sample
def test_a_model_takes_photos_and_paintings(sample):
    assert isinstance(sample, Flux.sample_type)
    assert not isinstance(picture(), Flux.sample_type)


@each_kind
def test_no_questions_have_no_answers(kind):
    assert build().bind(kind({})) == {}


def test_a_sample_that_cannot_be_prepared_does_not_spoil_the_others():
    flux = build()
    photo, bad, painting = flux.prepare([Photo(BOTH), Photo({"bad": ask(("cars",))}), painted()])
    assert isinstance(bad, Failure)
    assert "2 T5 tokens" in str(bad.error)
    assert same(photo, flux.bind(Photo(BOTH)))
    assert same(painting, flux.bind(painted()))


def test_an_image_that_is_not_there_is_refused():
    with refused("sample photo has no image: give one, or a prompt to paint"):
        build().bind(Photo(BOTH, None))


@each_kind
def test_all_concepts_are_targets_on_a_grid_of_patches(kind):
    answer = build().bind(kind(BOTH))["joint"]
    assert (answer.players, answer.background) == (PLAYERS, BACKGROUND)
    assert answer.targets == PLAYERS + BACKGROUND
    assert answer.grid == (4, 4)
    assert answer.player_logits.shape[-1] == 16


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("seed", [0, 5])
def test_noise_is_mixed_in_as_the_schedule_says(seed, step):
    flux = build(step=step, seed=seed)
    image = picture(0, 40)
    assert flux.denoising.noise_share == 1 - step / 4
    with torch.no_grad():
        found = flux.noisy_latents(image)
    assert found.shape == (1, LATENT_CHANNELS, SIDE // 2, SIDE // 2)
    assert near(found, latents_of(flux, image), 1e-6)


def test_at_the_first_step_there_is_nothing_but_noise():
    with torch.no_grad():
        one, other = (build(step=0).noisy_latents(picture(seed, 40)) for seed in range(2))
    noise = torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one, other)
    assert torch.equal(one, noise)


def test_another_seed_is_another_noise():
    one, same, other = (build(seed=seed).bind(Photo())["all"].player_logits for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not near(one, other, 0.01)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "Nearest"])
@pytest.mark.parametrize("size", [(40, 24), (16, 16), (9, 30)])
def test_images_are_stretched_to_a_square(size, resample):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    found = Denoising(SIDE, resample=resample).pixels(image)
    expected = np.asarray(image.resize((SIDE, SIDE), getattr(Image.Resampling, resample.upper())), np.float64)
    assert found.shape == (1, 3, SIDE, SIDE)
    assert found.dtype == torch.float32
    assert near(found[0].permute(1, 2, 0), expected / 255 * 2 - 1, 1e-6)


def test_pixels_go_from_minus_one_to_one():
    black_and_white = Image.fromarray(np.array([[0, 255]], np.uint8).repeat(2, 0)).convert("RGB")
    assert Denoising(2).pixels(black_and_white)[0, 0].tolist() == [[-1, 1], [-1, 1]]


@each_guidance
@pytest.mark.parametrize("shape", [(8, 8), (4, 10)], ids=str)
@pytest.mark.parametrize("prompt", ["", "a car on a street"])
def test_inputs_are_what_the_pipeline_would_give(prompt, shape, guidance):
    flux = build(guidance=guidance, step=1)
    latents = torch.randn(1, LATENT_CHANNELS, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = flux.inputs(latents, flux.prompt(prompt)), arguments(flux, latents, prompt)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name]), name


@each_guidance
def test_inputs_at_the_first_step_are_those_of_a_pipeline_that_begins_to_paint(guidance):
    flux = build(guidance=guidance, step=0, seed=7)
    with recorded(flux.pipeline.transformer) as passes:
        flux.bind(painted(seed=7))
    with torch.no_grad():
        found = flux.inputs(flux.noisy_latents(picture()), flux.prompt(PROMPT))
    given = {name: value for name, value in passes[0].items() if isinstance(value, torch.Tensor)}
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in found if name != "pooled_projections")
    assert not found["pooled_projections"].any()
    assert given["pooled_projections"].any()


@pytest.mark.parametrize("step", range(4))
def test_a_painting_is_watched_at_its_step(step):
    flux = build(step=step)
    with recorded(flux.pipeline.transformer) as passes:
        found = flux.bind(painted())
    assert len(passes) == 4
    assert near(passes[step]["timestep"], [1 - step / 4], 1e-6)
    concepts = encoded(flux, PLAYERS + BACKGROUND)
    for name, cross_attention in (("joint", True), ("decoupled", False)):
        (expected,) = concept_logits(
            flux.pipeline.transformer, passes[step], [ConceptSet(concepts, cross_attention)], 2
        )
        assert near(found[name].player_logits, expected[:, : len(PLAYERS)], 1e-5)
        assert near(found[name].background_logits, expected[:, len(PLAYERS) :], 1e-5)


@each_guidance
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_painting_is_the_pipelines_own(n_steps, guidance):
    flux = build(guidance=guidance, n_steps=n_steps, step=0)
    found = flux.bind(painted())
    expected = flux.pipeline(
        PROMPT, height=SIDE, width=SIDE, num_inference_steps=n_steps, guidance_scale=3.5, output_type="pil",
        max_sequence_length=TEXT_LENGTH, generator=torch.Generator().manual_seed(31),
    ).images[0]  # fmt: skip
    for answer in found.values():
        assert answer.picture.dtype == np.uint8
        assert answer.picture.shape == (SIDE, SIDE, 3)
        assert np.array_equal(answer.picture, np.asarray(expected))


def test_a_painting_depends_on_its_seed_its_prompt_and_the_guidance_alone():
    def paint(guidance=3.5, **settings):
        return build(guidance=guidance).bind(painted(**settings))["joint"].picture

    first = paint()
    assert np.array_equal(paint(), first)
    assert np.array_equal(paint(asked={"joint": ask(("bus",), ())}), first)
    for settings in ({"seed": 32}, {"prompt": "a four on sand"}, {"guidance": 1.0}):
        assert not np.array_equal(paint(**settings), first)


def test_the_prompts_of_questions_about_a_painting_are_not_used():
    one, other = (build().bind(painted({"q": ask(prompt=prompt)}))["q"] for prompt in ("", "a car"))
    assert np.array_equal(one.picture, other.picture)
    assert torch.equal(one.player_logits, other.player_logits)


@each_kind
@each_attention
@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (ask(("car", "boats")), r"concept 'boats' is 2 T5 tokens \(▁boat, s\): name it by a word of one token"),
        (ask(("car",), ("a car",)), r"concept 'a car' is 2 T5 tokens \(▁a, ▁car\): name it by a word of one token"),
        (ask(("car", "xylophone")), "concept 'xylophone' is unknown to the T5 tokenizer: name it by another word"),
        (ask(("",)), "concept '' is unknown to the T5 tokenizer"),
        (ask(("car", "bus", "car")), "concept 'car' is given twice"),
        (ask(("car", "bus"), ("sky", "bus")), "concept 'bus' is given twice: a concept is one player, or background"),
        (ask(()), "a question has no players: give at least one concept"),
        (ask(n_layers=4), "n_layers=4: the model has 3 double-stream blocks"),
        (ask(n_layers=0), "n_layers=0: the model has 3 double-stream blocks"),
    ],
    ids=["two tokens", "two words", "unknown", "empty", "twice", "both", "no players", "layers", "no layers"],
)
def test_a_question_that_cannot_be_asked_is_refused(question, reason, cross_attention, kind):
    flux = build()
    with refused(reason):
        flux.bind(kind({"q": replace(question, cross_attention=cross_attention)}))
    assert count_hooks(flux.pipeline) == 0


@each_kind
@pytest.mark.parametrize("n_layers", [0, -1])
def test_a_question_about_no_layers_is_refused_beside_others(n_layers, kind):
    with refused(f"n_layers={n_layers}"):
        build().bind(kind({"good": ask(), "bad": ask(n_layers=n_layers)}))


def test_a_question_that_is_refused_does_not_spoil_the_next():
    flux = build()
    with refused("given twice"):
        flux.bind(Photo({"good": ask(), "bad": ask(("car", "car"))}))
    with refused("2 T5 tokens"):
        flux.bind(Photo({"good": ask(), "bad": ask(("cars",))}))
    assert same(flux.bind(Photo()), build().bind(Photo()))


def test_a_concept_of_one_token_is_its_token():
    tokenizer = build_t5_tokenizer()
    assert concept_token(tokenizer, "car") == "▁car"
    assert concept_pieces(tokenizer, "cars") == ["▁car", "s"]
    assert concept_pieces(tokenizer, "a car") == ["▁a", "▁car"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"side": SIDE + 2}, r"model\.denoising\.side=18: give a multiple of 4 pixels"),
        ({"side": SIDE + 1}, r"model\.denoising\.side=17: give a multiple of 4 pixels"),
        ({"step": 4}, r"model\.denoising\.step=4: give one of 0 to 3"),
        ({"step": -1}, r"model\.denoising\.step=-1: give one of 0 to 3"),
        ({"n_steps": 28, "step": 28}, r"model\.denoising\.step=28: give one of 0 to 27"),
        ({"resample": "nonsense"}, r"model\.denoising\.resample='nonsense': give one of nearest, box, bilinear"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_of_the_denoising_are_checked(settings, reason):
    with refused(reason):
        build(**settings)


def test_a_guidance_is_asked_for_where_the_model_takes_one():
    with refused(r"this model takes a guidance: set model\.denoising\.guidance, such as 3\.5"):
        Flux(build_pipeline(guidance=True), "random", "cpu", Denoising(SIDE), TEXT_LENGTH)


PLACES = {
    "in a block": lambda pipeline: pipeline.transformer.transformer_blocks[1].ff,
    "in the text encoder": lambda pipeline: pipeline.text_encoder_2.encoder,
    "in the autoencoder": lambda pipeline: pipeline.vae.encoder,
    "in a single-stream block": lambda pipeline: pipeline.transformer.single_transformer_blocks[0],
    "in the autoencoder's decoder": lambda pipeline: pipeline.vae.decoder,
}
OF_PHOTOS, OF_PAINTINGS = list(PLACES)[:3], [place for place in PLACES if place != "in the autoencoder"]


@pytest.mark.parametrize(
    ("kind", "place"), [(Photo, place) for place in OF_PHOTOS] + [(painted, place) for place in OF_PAINTINGS]
)
def test_memory_that_does_not_suffice_is_told_with_advice(kind, place):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore.")

    flux, sample = build(), kind(BOTH)
    expected = build().bind(sample)
    handle = PLACES[place](flux.pipeline).register_forward_pre_hook(run_out)
    with refused("the model does not fit the memory of cpu: set model.offload=true, or model.text_encoder_bits=8"):
        flux.bind(sample)
    handle.remove()
    assert count_hooks(flux.pipeline) == 0
    assert same(flux.bind(sample), expected)


@each_kind
def test_other_errors_are_not_hidden(kind):
    def fail(*_):
        raise ZeroDivisionError

    flux = build()
    handle = flux.pipeline.transformer.transformer_blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        flux.bind(kind(BOTH))
    handle.remove()
    assert count_hooks(flux.pipeline) == 0


@each_kind
def test_a_pipeline_of_a_folder_is_the_one_that_was_saved(kind, folder):
    flux = load(folder)
    assert (flux.device, flux.text_length, flux.denoising) == ("cpu", TEXT_LENGTH, Denoising(SIDE))
    assert not any(getattr(flux.pipeline, part).training for part in WEIGHTS)
    assert same(flux.bind(kind(BOTH)), build().bind(kind(BOTH)))


@each_kind
def test_logits_and_pictures_have_their_types_in_half_precision(kind, folder):
    flux = load(folder, dtype="bfloat16")
    assert {getattr(flux.pipeline, part).dtype for part in WEIGHTS} == {torch.bfloat16}
    for answer in flux.bind(kind(BOTH)).values():
        assert answer.player_logits.dtype == answer.background_logits.dtype == torch.float32
        assert answer.player_logits.isfinite().all()
        assert answer.picture is None or answer.picture.dtype == np.uint8


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float64", FLOAT32_TOLERANCE)])
def test_logits_of_a_photo_are_close_in_every_type(dtype, tolerance, folder):
    found, expected = (load(folder, dtype=each).bind(Photo(BOTH)) for each in (dtype, "float32"))
    assert same(found, expected, tolerance)


def test_a_guidance_reaches_the_model_in_every_type(tmp_path):
    build_pipeline(guidance=True).save_pretrained(tmp_path)
    for dtype in ("bfloat16", "float32", "float64"):
        when = Denoising(SIDE, n_steps=28, step=14, guidance=3)
        flux = Flux.load(str(tmp_path), None, when, TEXT_LENGTH, device="cpu", dtype=dtype)
        with recorded(flux.pipeline.transformer) as passes:
            flux.bind(Photo())
        assert passes[0]["guidance"].item() == 3


@pytest.mark.parametrize("dtype", ["nonsense", "float16", "nn", None])
def test_a_type_that_is_none_is_refused(dtype, folder):
    with refused(f"model\\.dtype={dtype!r}: give one of float32, bfloat16, float64"):
        load(folder, dtype=dtype)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_offloading_from_the_cpu_is_refused(device, folder):
    with refused(r"model\.offload=true is for a GPU: leave it out on the CPU"):
        load(folder, offload=True, device=device)


@pytest.mark.parametrize("bits", [3, 16, 0])
def test_a_text_encoder_of_other_bits_is_refused(bits, folder):
    with refused(rf"model\.text_encoder_bits={bits}: give 8, 4 or null"):
        load(folder, text_encoder_bits=bits)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_text_encoder_without_bitsandbytes_is_refused(bits, folder, monkeypatch):
    monkeypatch.setattr("metagame.models.flux.is_bitsandbytes_available", lambda: False)
    with refused(rf"model\.text_encoder_bits={bits} needs bitsandbytes: install it with 'pip install bitsandbytes'"):
        load(folder, text_encoder_bits=bits)


@pytest.mark.parametrize("change", [lambda folder: shutil.rmtree(folder / "text_encoder_2"), shutil.rmtree])
def test_a_text_encoder_that_is_missing_is_told_also_where_it_is_to_be_quantized(change, copied):
    change(copied)
    copied.mkdir(exist_ok=True)
    with refused(r"model\.checkpoint='.*' cannot be loaded from that folder"):
        load(copied, text_encoder_bits=8)


def test_of_a_pipeline_the_text_encoder_alone_is_quantized(folder, monkeypatch):
    asked = []
    own = T5EncoderModel.from_pretrained

    def from_pretrained(*args, quantization_config, **settings):
        asked.append(quantization_config)
        return own(*args, **settings)

    monkeypatch.setattr("metagame.models.flux.is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", from_pretrained)
    found = load(folder, text_encoder_bits=8).bind(Photo())
    assert [(config.load_in_8bit, config.load_in_4bit) for config in asked] == [(True, False)]
    assert same(found, build().bind(Photo()))


def test_weights_that_do_not_fit_the_device_are_told_with_advice(folder, monkeypatch):
    def move(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(FluxPipeline, "to", move)
    with refused("does not fit the memory of cpu: set model.offload=true, or model.text_encoder_bits=8"):
        load(folder)


def truncate(folder):
    path = folder / "transformer" / WEIGHTS["transformer"][0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAKS = {
    "no model_index.json": lambda folder: (folder / "model_index.json").unlink(),
    "broken model_index.json": lambda folder: (folder / "model_index.json").write_text("{"),
    "no parts": lambda folder: [shutil.rmtree(part) for part in folder.iterdir() if part.is_dir()],
    "truncated transformer": truncate,
    "no transformer": lambda folder: shutil.rmtree(folder / "transformer"),
    "no autoencoder": lambda folder: shutil.rmtree(folder / "vae"),
    "no text encoder": lambda folder: shutil.rmtree(folder / "text_encoder_2"),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "no T5 tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer_2"),
    "no file of the T5 tokenizer": lambda folder: (folder / "tokenizer_2" / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_a_folder_that_is_broken_is_named(change, copied):
    change(copied)
    with refused(rf"model\.checkpoint='{copied}' cannot be loaded from that folder \(.+\): save the model there again"):
        load(copied)


def test_a_folder_of_another_model_is_refused():
    with refused(r"model\.checkpoint='.*clip' cannot be loaded from that folder"):
        load(ROOT / "data/tiny/clip")


@each_part
def test_a_checkpoint_that_lacks_a_weight_is_refused(part, copied):
    name = WEIGHTS[part][1]
    rewrite(copied, part, lambda weights: weights.pop(name))
    with refused(rf"model\.checkpoint='{copied}'.*{re.escape(name)}"):
        load(copied)


@each_part
def test_a_checkpoint_with_a_weight_of_another_shape_is_refused(part, copied):
    name = WEIGHTS[part][1]
    rewrite(copied, part, lambda weights: weights.update({name: torch.zeros(3)}))
    with refused(rf"model\.checkpoint='{copied}'"):
        load(copied)


@pytest.mark.parametrize("name", ["nobody/nothing", "/nowhere/to/be/found", "./no_such_folder", "data/tiny/nothing"])
@pytest.mark.parametrize("settings", [{}, {"text_encoder_bits": 8}], ids=["whole", "quantized"])
def test_a_checkpoint_that_is_nowhere_is_refused(settings, name, offline):
    with refused(rf"model\.checkpoint='{name}' is no folder here"):
        load(name, **settings)


def test_a_checkpoint_that_is_nowhere_is_told_in_one_sentence_alone(offline, caplog):
    diffusers_logging.add_handler(caplog.handler)
    try:
        with refused("fetch it with 'hf download nobody/nothing --revision v1'"):
            load("nobody/nothing", "v1")
    finally:
        diffusers_logging.remove_handler(caplog.handler)
    assert caplog.messages == []


def test_a_gated_checkpoint_names_its_page(monkeypatch):
    def gated(*args, **settings):
        raise GatedRepoError("401 Client Error", response=requests.Response())

    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.model_info", gated)
    with refused(r"model\.checkpoint='org/gated' is gated: .*https://huggingface\.co/org/gated, then log in"):
        load("org/gated")


def test_the_t5_tokenizer_is_that_of_the_pipeline(folder):
    tokenizer = load_t5_tokenizer(str(folder), None)
    assert concept_token(tokenizer, "car") == "▁car"
    with refused("concept 'boats' is 2 T5 tokens"):
        concept_token(tokenizer, "boats")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("no T5 tokenizer", "has no folder tokenizer_2: give that of a FLUX pipeline"),
        ("no file of the T5 tokenizer", "cannot be loaded from that folder"),
    ],
)
def test_a_t5_tokenizer_that_is_missing_is_told(change, told, copied):
    BREAKS[change](copied)
    with refused(rf"checkpoint.{{1,2}}{copied}.* {told}"):
        load_t5_tokenizer(str(copied), None)


@pytest.mark.parametrize("name", ["nobody/nothing", "/nowhere/to/be/found"])
def test_a_t5_tokenizer_of_no_checkpoint_is_refused(name, offline):
    with refused(rf"model\.checkpoint='{name}' is no folder here"):
        load_t5_tokenizer(name, None)


@each_part
def test_revision_of_a_folder_changes_with_its_weights(part, folder, copied):
    revision = load(folder).revision
    assert re.fullmatch("[0-9a-f]{16}", revision)
    assert load(copied).revision == revision
    rewrite(copied, part, lambda weights: weights[WEIGHTS[part][1]].mul_(1.5))
    assert load(copied).revision != revision


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", [COMMIT, COMMIT[:-1], COMMIT.upper(), f"{COMMIT}0"])
def test_revision_of_a_folder_named_by_a_commit_is_the_commit(name, folder, tmp_path):
    revision = load(shutil.copytree(folder, tmp_path / name)).revision
    assert revision == (COMMIT if name == COMMIT else load(folder).revision)


@pytest.mark.parametrize("revision", ["main", None, COMMIT])
def test_a_checkpoint_in_the_cache_of_the_hub_is_found_by_its_name(revision, folder, tmp_path, offline, monkeypatch):
    cached = tmp_path / "models--org--flux"
    shutil.copytree(folder, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    flux = load("org/flux", revision)
    assert flux.revision == COMMIT
    assert same(flux.bind(Photo()), build().bind(Photo()))


@pytest.fixture
def progress_bars():
    """diffusers and transformers as if they had never been told to be quiet."""
    libraries = [(each, each.is_progress_bar_enabled()) for each in (diffusers_logging, transformers_logging)]
    for library, _ in libraries:
        library.enable_progress_bar()
    yield
    for library, shown in libraries:
        (library.enable_progress_bar if shown else library.disable_progress_bar)()


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("change", [lambda folder: None, truncate], ids=["whole", "broken"])
def test_progress_bars_of_diffusers_are_as_before(change, shown, copied, progress_bars):
    change(copied)
    if not shown:
        diffusers_logging.disable_progress_bar()
    try:
        load(copied)
    except UserError:
        assert change is truncate
    assert diffusers_logging.is_progress_bar_enabled() == shown


def test_loading_and_painting_show_no_progress_bars(copied, capsys, progress_bars):
    flux = load(copied)
    flux.bind(painted())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_loading_a_pipeline_in_shards_shows_no_progress_bars(part, copied, capsys, progress_bars):
    """As on the hub, where the transformer is in three shards and T5 in two."""
    (copied / part / WEIGHTS[part][0]).unlink()
    getattr(build_pipeline(), part).save_pretrained(copied / part, max_shard_size="5KB")
    assert len(list((copied / part).glob("*.safetensors"))) > 1
    capsys.readouterr()
    flux = load(copied)
    assert capsys.readouterr() == ("", "")
    assert same(flux.bind(Photo()), build().bind(Photo()))
