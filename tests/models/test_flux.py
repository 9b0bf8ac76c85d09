from __future__ import annotations

import re
import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers import T5EncoderModel
from transformers.utils import logging as transformers_logging

from metagame.models.auto import load_model
from metagame.models.concepts import PaintedImage, concept_pieces, concept_token, load_t5_tokenizer
from metagame.models.flux import ConceptPlan, Denoising, Flux
from tests.reference import concept_stream as reference
from tests.tiny.checkpoints import edit_weights, without_network
from tests.tiny.flux import (
    BACKGROUND,
    CONCEPTS,
    PATCHES,
    PLAYERS,
    SIDE,
    TEXT_LENGTH,
    Photo,
    ask,
    build,
    count_hooks,
    counted,
    load,
    recorded,
    save,
    shared_pipeline,
)
from tests.tiny.jobs import ROOT
from tests.tiny.language import near
from tests.tiny.vision_language import picture, refused

FLOAT32_TOLERANCE = 1e-4
PROMPT = "a seven"
BOTH = {"joint": ask(), "decoupled": ask(cross_attention=False)}
NAMES = (*CONCEPTS[:20], "kite", "clock", "oven", "spoon")
WEIGHTS = {
    "transformer": ("diffusion_pytorch_model.safetensors", "transformer_blocks.0.attn.to_q.weight"),
    "vae": ("diffusion_pytorch_model.safetensors", "encoder.conv_in.weight"),
    "text_encoder": ("model.safetensors", "text_model.final_layer_norm.weight"),
    "text_encoder_2": ("model.safetensors", "encoder.final_layer_norm.weight"),
}


def painted(asked=BOTH, seed=31, prompt=PROMPT):
    return PaintedImage("painting", prompt, seed, asked)


def encoded(flux, names):
    """The encodings of concepts' first tokens."""
    pipeline = flux.pipeline
    tokens = [pipeline.tokenizer_2(name, padding="max_length", max_length=flux.text_length) for name in names]
    with torch.no_grad():
        return torch.cat([pipeline.text_encoder_2(torch.tensor([each["input_ids"]]))[0][:, 0] for each in tokens])


def stretched(image, when):
    """The pixels of the square that an image is stretched to."""
    if when.resample != "torch_nearest":
        return np.asarray(image.resize((when.side, when.side), Image.Resampling[when.resample.upper()]))
    rows, columns = ([i * length // when.side for i in range(when.side)] for length in image.size[::-1])
    return np.asarray(image)[rows][:, columns]


@torch.no_grad()
def latents_of(flux, image):
    """x_t from its definition."""
    when, vae = flux.denoising, flux.pipeline.vae
    pixels = torch.tensor(stretched(image, when) / 255 * 2 - 1, dtype=vae.dtype).permute(2, 0, 1)[None]
    posterior, generator = vae.encode(pixels).latent_dist, torch.Generator().manual_seed(when.seed)
    dtype = {"device": flux.pipeline.transformer.dtype, "cpu": torch.float32}[when.noise]
    noise = torch.randn(posterior.mean.shape, generator=generator, dtype=dtype)
    x = posterior.mean
    if when.posterior == "sample":
        x = x + posterior.std * torch.randn(x.shape, generator=generator, dtype=vae.dtype)
    t = 1 - when.step / when.n_steps
    return (1 - t) * (x - vae.config.shift_factor) * vae.config.scaling_factor + t * noise


def same(found, expected, tolerance=1e-5):
    """Whether two sets of answers have the same logits."""
    return found.keys() == expected.keys() and all(
        near(found[name].player_logits, expected[name].player_logits, tolerance)
        and near(found[name].background_logits, expected[name].background_logits, tolerance)
        for name in expected
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("flux"))


@pytest.fixture
def copied(folder, tmp_path):
    """A checkpoint to break."""
    return shutil.copytree(folder, tmp_path / "checkpoint")


def near_the_equations(found, expected):
    """Whether players and background have the logits of the slow twin, ``(L, n, P)``."""
    n_players = len(PLAYERS)
    return near(found.player_logits, expected[:, :n_players], FLOAT32_TOLERANCE) and near(
        found.background_logits, expected[:, n_players:], FLOAT32_TOLERANCE
    )


@pytest.mark.parametrize(("prompt", "guidance"), [("", None), ("a car on a street", None), ("a car on a street", 3.5)])
def test_logits_of_a_photo_are_those_of_the_equations(prompt, guidance):
    flux = build(guidance=guidance)
    photo = Photo({name: replace(question, prompt=prompt) for name, question in BOTH.items()})
    found = flux.bind(photo)
    with torch.no_grad():
        inputs = flux.inputs(latents_of(flux, photo.image()), flux.prompt(prompt))
    assert inputs["timestep"].item() == 1 - flux.denoising.step / flux.denoising.n_steps
    encodings = encoded(flux, PLAYERS + BACKGROUND)
    for name, question in BOTH.items():
        expected = reference.concept_logits(flux.pipeline.transformer, inputs, encodings, question.cross_attention)
        assert near_the_equations(found[name], expected[-2:])


@pytest.mark.parametrize("kind", [Photo, painted])
def test_every_question_is_answered_in_its_order_about_all_its_concepts_as_if_it_were_the_only_one(kind):
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
        assert same(flux.bind(kind({name: question})), {name: answer})
        assert (answer.players, answer.background) == (question.players, question.background)
        assert answer.targets == question.players + question.background
        assert answer.grid == (4, 4)
        n_layers = question.n_layers * (1 if kind is Photo else 4)  # of four steps
        assert answer.player_logits.shape == (n_layers, len(question.players), PATCHES)
        assert answer.background_logits.shape == (n_layers, len(question.background), PATCHES)
        assert answer.player_logits.dtype == answer.background_logits.dtype == torch.float32
        assert not answer.player_logits.requires_grad
        assert (answer.picture is None) == (kind is Photo)
    assert flux.bind(kind({})) == {}


def test_a_forward_pass_for_each_prompt_serves_all_cells_of_figure_13_which_share_their_sets():
    """A baseline, decoupled, of fewer layers and with a prompt, for each number of players."""
    cells = ({}, {"cross_attention": False}, {"n_layers": 1}, {"prompt": "a car, a bus"})
    pairs = [(size, cell) for size in (3, 24) for cell in cells]
    asked = {f"{size} {cell}": ask(NAMES[:size], CONCEPTS[20:], **{"n_layers": 2} | cell) for size, cell in pairs}
    flux = build()
    pipeline = flux.pipeline
    with recorded(pipeline.transformer) as passes, counted([pipeline.vae.encoder, pipeline.text_encoder_2]) as calls:
        assert len(flux.bind(Photo(asked))) == 8
    assert len(passes) == 2
    assert calls.count(pipeline.vae.encoder) == 1
    assert calls.count(pipeline.text_encoder_2) == 24 + 5 + 2  # concepts and prompts
    with counted([pipeline.text_encoder_2, *pipeline.transformer.single_transformer_blocks]) as calls:
        flux.bind(Photo(asked, picture(1, 40)))
    assert calls == []
    for prompted, sizes in ((False, [3 + 5, 24 + 5, 24 + 5]), (True, [3 + 5, 24 + 5])):
        plan = ConceptPlan.of({name: each for name, each in asked.items() if bool(each.prompt) == prompted})
        assert set(plan.decoupled) == (set() if prompted else {*NAMES, *CONCEPTS[20:]})
        assert plan.n_layers == 2
        sets = plan.sets(lambda name: torch.zeros(1, 2))
        assert [len(each.encodings) for each in sets] == sizes
        assert [each.cross_attention for each in sets] == [True, True, False][: len(sizes)]


def test_samples_do_not_depend_on_those_before_or_on_those_that_cannot_be_prepared():
    flux, photos = build(), [Photo(BOTH, picture(seed, 40)) for seed in range(3)]
    in_order = [flux.bind(photo)["joint"].player_logits for photo in photos]
    assert not near(in_order[0], in_order[1], 0.01)
    bad = [Photo({"bad": ask(("cars",))}), Photo(BOTH, None)]
    *found, many, absent, painting = flux.prepare([*photos[::-1], *bad, painted()])
    assert all(torch.equal(a["joint"].player_logits, b) for a, b in zip(found, in_order[::-1], strict=True))
    assert same(painting, build().bind(painted()))
    for failure, reason in ((many, "2 T5 tokens"), (absent, "sample photo has no image")):
        with refused(reason):
            raise failure.error


@pytest.mark.parametrize(
    ("step", "seed", "posterior", "noise"), [(0, 5, "sample", "device"), (1, 0, "mean", "cpu"), (3, 5, "sample", "cpu")]
)
def test_noise_is_mixed_in_as_the_schedule_says(step, seed, posterior, noise):
    flux, image = build(step=step, seed=seed, posterior=posterior, noise=noise), picture(0, 40)
    assert flux.denoising.noise_share == 1 - step / 4
    with torch.no_grad():
        found = flux.noisy_latents(image)
    assert found.dtype == torch.float32
    assert near(found, latents_of(flux, image), 1e-6)


@pytest.mark.parametrize(
    "resample", ["torch_nearest", "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "Nearest"]
)
def test_images_are_stretched_to_a_square_of_values_from_minus_one_to_one(resample):
    for size in ((40, 24), (9, 30)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        when = Denoising(SIDE, resample=resample)
        found = when.pixels(image)
        assert (found.shape, found.dtype) == ((1, 3, SIDE, SIDE), torch.float32)
        assert near(found[0].permute(1, 2, 0), stretched(image, when) / 255 * 2 - 1, 1e-6)


@pytest.mark.parametrize("guidance", [None, 3.5])
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


@pytest.mark.parametrize(
    ("guidance", "step", "all_steps", "pooled", "steps"),
    [(None, 0, False, True, [0]), (3.5, 2, False, False, [2]), (None, 2, True, False, range(4))],
)
def test_a_painting_is_watched_at_its_step_or_at_all(guidance, step, all_steps, pooled, steps):
    flux = build(guidance=guidance, step=step, all_steps=all_steps, pooled_concepts=pooled)
    with recorded(flux.pipeline.transformer) as passes:
        found = flux.bind(painted())
    assert [float(each["timestep"]) for each in passes] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert all(each["pooled_projections"].any() for each in passes)
    encodings, transformer = encoded(flux, PLAYERS + BACKGROUND), flux.pipeline.transformer
    passes = [{name: value for name, value in each.items() if value is not None} for each in passes]
    for name, question in BOTH.items():
        layers = [
            reference.concept_logits(transformer, passes[each], encodings, question.cross_attention, pooled)[-2:]
            for each in steps
        ]
        assert near_the_equations(found[name], torch.cat(layers))


@pytest.mark.parametrize(("n_steps", "guidance"), [(3, None), (1, 3.5)])
def test_a_painting_is_the_pipelines_own_whatever_the_prompt_of_a_question(n_steps, guidance):
    flux = build(guidance=guidance, n_steps=n_steps, step=0)
    found = flux.bind(painted(BOTH | {"prompted": ask(prompt="a car")}))
    assert torch.equal(found["prompted"].player_logits, found["joint"].player_logits)
    expected = flux.pipeline(
        PROMPT, height=SIDE, width=SIDE, num_inference_steps=n_steps, guidance_scale=3.5, output_type="pil",
        max_sequence_length=TEXT_LENGTH, generator=torch.Generator().manual_seed(31),
    ).images[0]  # fmt: skip
    for answer in found.values():
        assert answer.picture.dtype == np.uint8
        assert np.array_equal(answer.picture, np.asarray(expected))


LONG = "a car on a street a cat"


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (ask(("car", "boats")), r"concept 'boats' is 2 T5 tokens \(▁boat, s\): use a word that is one token"),
        (ask(("car",), ("a car",)), r"concept 'a car' is 2 T5 tokens"),
        (ask(("car", "xylophone")), "concept 'xylophone' is unknown to the T5 tokenizer"),
        (ask(("",)), "concept '' is unknown to the T5 tokenizer"),
        (ask(("car", "bus", "car")), "concept 'car' is given twice"),
        (ask(("car", "bus"), ("sky", "bus"), cross_attention=False), "concept 'bus' is given twice"),
        (ask(("car",), (" car",)), r"concepts 'car' and ' car' are the same T5 token \(▁car\)"),
        (ask(()), "a question has no players: give at least one concept"),
        (ask(n_layers=4), "n_layers=4 must be from 1 to 3"),
        (ask(n_layers=0), "n_layers=0 must be from 1 to 3"),
        (ask(prompt=LONG), r"the prompt has 8 tokens, but model\.text_length=6, so '.*cat' would be cut off"),
        (painted({"bad": ask(("cars",))}), "concept 'cars' is 2 T5 tokens"),
        (painted(prompt=LONG), r"the prompt has 8 tokens, but model\.text_length=6, so '.*cat' would be cut off"),
    ],
)
def test_a_question_or_prompt_that_cannot_be_asked_is_refused(sample, reason):
    with refused(reason):
        build().bind(sample if isinstance(sample, PaintedImage) else Photo({"good": ask(), "bad": sample}))


def test_what_clip_does_not_read_of_a_prompt_is_told(caplog):
    flux = build()
    flux.bind(painted(prompt="a motorcycle on a street"))
    assert "CLIP's pooled text leaves out" in caplog.text
    assert f"takes only {flux.pipeline.tokenizer.model_max_length - 2} tokens" in caplog.text
    caplog.clear()
    flux.bind(painted(prompt="a car"))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"side": SIDE + 2}, "denoising.side=18 must be a multiple of 4 pixels"),
        ({"step": 4}, "denoising.step=4 must be from 0 to 3"),
        ({"step": -1}, "denoising.step=-1 must be from 0 to 3"),
        ({"resample": "wild"}, "denoising.resample='wild' is unknown: choose one of torch_nearest, nearest, box"),
        ({"posterior": "Mean"}, "denoising.posterior='Mean' is unknown"),
        ({"noise": "gpu"}, "denoising.noise='gpu' is unknown"),
        ({"text_length": 1}, "text_length=1 must be from 2 to 512"),
        ({"text_length": 513}, "text_length=513 must be from 2 to 512"),
        ({"guided": True}, "this model needs a guidance scale: set model.denoising.guidance"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_suit_the_pipeline_are_refused(settings, reason):
    def adapt(guided=False, text_length=TEXT_LENGTH, side=SIDE, **denoising):
        return Flux(shared_pipeline(guided), "random", "cpu", Denoising(side, **denoising), text_length)

    with refused(reason):
        adapt(**settings)


@pytest.mark.parametrize(
    ("kind", "part", "place"),
    [
        (Photo, "transformer", "transformer_blocks.1.ff"),
        (Photo, "vae", "encoder"),
        (Photo, "text_encoder_2", "encoder"),
        (painted, "text_encoder_2", "encoder"),
        (painted, "transformer", "single_transformer_blocks.0"),
    ],
)
def test_memory_that_does_not_suffice_is_told_with_advice_and_other_errors_are_not_hidden(kind, part, place):
    flux, sample = build(), kind(BOTH)
    module = getattr(flux.pipeline, part).get_submodule(place)
    out_of_memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore.")
    told = refused("the model does not fit the memory of cpu: set model.offload=true, or model.text_encoder_bits=8")
    for error, raised in ((out_of_memory, told), (ZeroDivisionError(), pytest.raises(ZeroDivisionError))):
        handle = module.register_forward_pre_hook(mock.Mock(side_effect=error))
        with raised:
            flux.bind(sample)
        handle.remove()
        assert count_hooks(flux.pipeline) == 0
    assert same(flux.bind(sample), build().bind(sample))


def test_without_settings_pictures_have_the_side_of_the_checkpoint_and_noise_is_the_same_everywhere(caplog):
    flux = load_model(ROOT / "data/tiny/flux", device="cpu")
    assert (flux.denoising, flux.text_length) == (Denoising(48, noise="cpu"), 16)
    assert caplog.messages == []


@pytest.mark.parametrize(("noise", "differ"), [("device", True), ("cpu", False)])
def test_the_revision_says_where_noise_is_drawn_if_it_differs_and_a_log_line_if_that_is_no_gpu(
    noise, differ, folder, monkeypatch, caplog
):
    monkeypatch.setattr("metagame.models.flux.moved", lambda pipeline, *_: pipeline)
    monkeypatch.setattr("metagame.models.flux.settle_device", lambda device: device)
    one, same_kind = (load(folder, noise=noise, device=device).revision for device in ("cuda", "cuda:1"))
    assert one == same_kind
    assert caplog.messages == []
    assert (load(folder, noise=noise, device="cpu").revision != one) == differ
    assert ("Noise is drawn on cpu, but the published numbers used noise drawn on a GPU" in caplog.text) == differ


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float64", FLOAT32_TOLERANCE)])
def test_logits_are_in_single_precision_and_close_whatever_the_type_of_the_weights(dtype, tolerance, folder):
    flux = load(folder, dtype=dtype, noise="cpu")
    types = {part: getattr(flux.pipeline, part).dtype for part in WEIGHTS}
    assert types == dict.fromkeys(WEIGHTS, getattr(torch, dtype)) | {"vae": torch.float32}
    answers = flux.bind(Photo(BOTH))
    assert same(answers, build(noise="cpu").bind(Photo(BOTH)), tolerance)
    if dtype == "bfloat16":  # CLIP's causal mask overflows in float64
        answers |= flux.bind(painted({"painting": ask()}))
        assert answers["painting"].picture.dtype == np.uint8
    for answer in answers.values():
        assert answer.player_logits.dtype == answer.background_logits.dtype == torch.float32
        assert answer.player_logits.isfinite().all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_guidance_reaches_the_model_in_every_type(dtype, tmp_path):
    build(guidance=3.0).pipeline.save_pretrained(tmp_path)
    when = Denoising(SIDE, n_steps=28, step=14, guidance=3)
    flux = Flux.load(str(tmp_path), None, when, TEXT_LENGTH, device="cpu", dtype=dtype)
    with recorded(flux.pipeline.transformer) as passes:
        flux.bind(Photo())
    assert passes[0]["guidance"].item() == 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dtype": "float16"}, r"dtype='float16' is unknown"),
        ({"vae_dtype": "half"}, r"vae_dtype='half' is unknown"),
        ({"offload": True}, "offload=true needs a GPU"),
        ({"offload": True, "device": "cpu:0"}, "offload=true needs a GPU"),
        ({"text_encoder_bits": 3}, "text_encoder_bits=3 must be 8, 4 or null"),
        ({"text_encoder_bits": 0}, "text_encoder_bits=0 must be 8, 4 or null"),
        ({"text_encoder_bits": 4}, "text_encoder_bits=4 needs bitsandbytes: install it with 'pip install bitsandbyte"),
    ],
    ids=str,
)
def test_settings_of_a_pipeline_are_checked(settings, reason, folder, monkeypatch):
    monkeypatch.setattr("metagame.models.flux.is_bitsandbytes_available", lambda: False)
    with refused(rf"model\.{reason}"):
        load(folder, **settings)


def test_of_a_pipeline_the_text_encoder_alone_is_quantized(folder, monkeypatch):
    asked, own = [], T5EncoderModel.from_pretrained

    def from_pretrained(*args, quantization_config, **settings):
        asked.append(quantization_config)
        return own(*args, **settings)

    monkeypatch.setattr("metagame.models.flux.is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", from_pretrained)
    found = load(folder, text_encoder_bits=8).bind(Photo())
    assert [(config.load_in_8bit, config.load_in_4bit) for config in asked] == [(True, False)]
    assert same(found, build().bind(Photo()))


def test_weights_that_do_not_fit_the_device_are_told_with_advice(folder, monkeypatch):
    monkeypatch.setattr(FluxPipeline, "to", mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.")))
    with refused("does not fit the memory of cpu: set model.offload=true, or model.text_encoder_bits=8"):
        load(folder)


def truncate(folder):
    for path in (folder / "transformer").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("lost", "bits"), [("model_index.json", None), ("text_encoder_2/config.json", 8)])
def test_a_folder_that_is_broken_is_named(lost, bits, copied):
    (copied / lost).unlink()
    with refused(rf"model\.checkpoint='{copied}' cannot be loaded from that folder \(.+\): save the model there again"):
        load(copied, text_encoder_bits=bits)


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_checkpoint_that_lacks_a_weight_or_has_one_of_another_shape_is_refused(part, copied):
    file, name = WEIGHTS[part]
    edit_weights(copied / part / file, lambda weights: weights.update({name: torch.zeros(3)}))
    with refused(rf"model\.checkpoint='{copied}'"):
        load(copied)
    edit_weights(copied / part / file, lambda weights: weights.pop(name))
    with refused(rf"model\.checkpoint='{copied}'.*{re.escape(name)}"):
        load(copied)


def test_the_t5_tokenizer_is_that_of_the_pipeline_and_told_where_it_is_missing(copied, monkeypatch):
    tokenizer = load_t5_tokenizer(str(copied), None)
    assert concept_token(tokenizer, "car") == "▁car"
    assert concept_pieces(tokenizer, "cars") == ["▁car", "s"]
    (copied / "tokenizer_2" / "tokenizer.json").unlink()
    with refused(rf"model\.checkpoint='{copied}.* cannot be loaded from that folder"):
        load_t5_tokenizer(str(copied), None)
    shutil.rmtree(copied / "tokenizer_2")
    with refused(rf"checkpoint.{{1,2}}{copied}.* has no folder tokenizer_2"):
        load_t5_tokenizer(str(copied), None)
    without_network(monkeypatch)
    with refused(r"model\.checkpoint='nobody/nothing' is not a local folder"):
        load_t5_tokenizer("nobody/nothing", None)


def test_a_pipeline_in_shards_is_the_one_that_was_saved_and_shows_no_progress_bars_which_others_do(copied, capsys):
    """As on the hub, where the transformer is in three shards and T5 in two."""
    for part in ("transformer", "text_encoder_2"):
        (copied / part / WEIGHTS[part][0]).unlink()
        getattr(build().pipeline, part).save_pretrained(copied / part, max_shard_size="5KB")
        assert len(list((copied / part).glob("*.safetensors"))) > 1
    diffusers_logging.enable_progress_bar()
    transformers_logging.disable_progress_bar()
    capsys.readouterr()
    flux, samples = load(copied), (Photo(BOTH), painted())
    found = [flux.bind(sample) for sample in samples]
    assert capsys.readouterr() == ("", "")
    assert all(same(answers, build().bind(sample)) for answers, sample in zip(found, samples, strict=True))
    assert (flux.device, flux.text_length, flux.denoising) == ("cpu", TEXT_LENGTH, Denoising(SIDE, noise="cpu"))
    assert not any(getattr(flux.pipeline, part).training for part in WEIGHTS)
    truncate(copied)
    with refused("cannot be loaded from that folder"):
        load(copied)
    assert diffusers_logging.is_progress_bar_enabled()
    assert not transformers_logging.is_progress_bar_enabled()
