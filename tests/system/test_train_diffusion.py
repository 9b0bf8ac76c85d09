"""Training of the small FLUX: its tokenizers and prompts, the loss, a stopped training, the pipeline it writes."""

from __future__ import annotations

import json
import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import load_file
from torch import nn

from metagame.benchmarks.digit_scenes import BACKGROUNDS, SIDE, WORDS, draw_scene, full_prompt
from metagame.benchmarks.digits import Digits
from metagame.models.concepts import concept_token
from scripts import train_diffusion as script
from scripts.read_digits import paint
from scripts.train_diffusion import (
    CLIP_VOCABULARY,
    CONTEXT,
    GRID,
    LATENT_CHANNELS,
    MEAN_NOISE,
    PARTS,
    T5_VOCABULARY,
    TEXT_WORDS,
    autoencoder,
    batch,
    build_parts,
    build_tokenizers,
    flow_loss,
    pack,
    steps_of,
    tokenize,
    train,
    train_autoencoder,
    training_prompt,
)
from tests.conftest import close

PROMPT = "a three, a seven on sea"
PIECES = ["a", "three", ",", "a", "seven", "on", "sea"]


@cache
def digits(held_out=False):
    return Digits(held_out)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return build_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


# Words and prompts


def test_every_word_of_the_prompts_is_one_token_of_either_tokenizer(tokenizers):
    assert {*WORDS, *BACKGROUNDS, "a", "on", ","} == set(TEXT_WORDS)
    for word in TEXT_WORDS:
        assert concept_token(tokenizers["tokenizer_2"], word) == f"▁{word}"
        assert tokenizers["tokenizer"].tokenize(word) == [f"{word}</w>"]
    for vocabulary in (T5_VOCABULARY, CLIP_VOCABULARY):
        assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_a_prompt_goes_to_tokens_and_back_whatever_its_case(tokenizers):
    t5, clip = tokenizers["tokenizer_2"], tokenizers["tokenizer"]
    assert t5.convert_ids_to_tokens(t5(PROMPT)["input_ids"]) == [*(f"▁{piece}" for piece in PIECES), "</s>"]
    words = [f"{piece}</w>" for piece in PIECES]
    assert clip.convert_ids_to_tokens(clip(PROMPT)["input_ids"]) == ["<|startoftext|>", *words, "<|endoftext|>"]
    assert t5.convert_ids_to_tokens(t5("a bike")["input_ids"]) == ["▁a", "<unk>", "</s>"]
    for tokenizer in (t5, clip):
        text = tokenizer.decode(tokenizer(PROMPT)["input_ids"], skip_special_tokens=True)
        assert text.replace(" ,", ",").strip() == PROMPT
        assert tokenizer("A Three,A SEVEN on Sea")["input_ids"] == tokenizer(PROMPT)["input_ids"]


def test_ids_are_padded_and_cut_to_the_context_and_no_prompt_of_training_is_cut(tokenizers):
    found = tokenize(tokenizers, ["", PROMPT, "a one " * 20])
    assert found.clip.shape == found.t5.shape == (3, CONTEXT)
    assert (found.t5[0] == T5_VOCABULARY["<pad>"]).sum() == CONTEXT - 1
    assert found.t5[2, -1] == T5_VOCABULARY["</s>"]
    assert found.clip[2, -1] == CLIP_VOCABULARY["<|endoftext|>"]
    prompts = [full_prompt(draw_scene(digits(), np.random.default_rng(seed), 3), np.random.default_rng(0))
               for seed in range(20)]  # fmt: skip
    assert max(len(tokenizer(prompt)["input_ids"]) for tokenizer in tokenizers.values() for prompt in prompts) < CONTEXT


def test_prompts_name_every_digit_of_their_scene_in_any_order_mostly_in_full_else_bare_or_not():
    scene, rng = draw_scene(digits(), np.random.default_rng(3), 3), np.random.default_rng(0)
    prompts = [training_prompt(scene, rng) for _ in range(3000)]
    shares = [np.mean([" on " in prompt for prompt in prompts]), np.mean([prompt == "" for prompt in prompts])]
    assert shares == pytest.approx([0.6, 0.1], abs=0.03)
    named = [WORDS[label] for label in scene.labels]
    assert len(named) > 1
    full, bare = set(), set()
    for prompt in set(prompts) - {""}:
        words = prompt.replace(",", "").split()
        found = [word for word in words if word in WORDS]
        assert sorted(found) == sorted(named)
        (full if "on" in words else bare).add(tuple(found))
        assert words == found or prompt == f"{', '.join(f'a {name}' for name in found)} on {scene.background}"
    assert len(full) == len(bare) == math.factorial(len(named))


# Pictures and the loss


def test_a_batch_has_scenes_drawn_from_its_seed_alone_as_pictures_from_minus_one_to_one():
    state = torch.get_rng_state()
    first, again, other = (batch(digits(), 5, [0, step]) for step in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.images, again.images)
    assert first.prompts == again.prompts
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (5, 3, SIDE, SIDE)
    assert first.images.dtype == torch.float32
    rng = np.random.default_rng([0, 1])
    for image in first.images:
        assert close(image, draw_scene(digits(), rng).pixels.transpose(2, 0, 1) * 2 - 1, 1e-6)


def test_two_by_two_latents_make_a_token():
    latents = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    tokens = pack(latents)
    assert tokens.shape == (2, 6, 12)
    for picture, row, column, channel, below, right in np.ndindex(2, 2, 3, 3, 2, 2):
        value = tokens[picture, 3 * row + column, 4 * channel + 2 * below + right]
        assert value == latents[picture, channel, 2 * row + below, 2 * column + right]


def parts_with(scaling=1.0, shift=0.0, seed=0):
    """The parts, whose autoencoder says so of its latents."""
    parts = build_parts(seed)
    parts["vae"].register_to_config(scaling_factor=scaling, shift_factor=shift)
    parts["vae"].eval().requires_grad_(False)
    return parts


def test_parts_are_drawn_from_the_seed_and_not_from_the_global_generator():
    state = torch.get_rng_state()
    first, again, other = (build_parts(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(first) == list(PARTS)
    for name, part in first.items():
        assert same_weights(part, again[name])
        assert not same_weights(part, other[name])


class Guessing(nn.Module):
    """A transformer that writes down what it is asked, and answers by a function of that."""

    def __init__(self, answer=lambda hidden_states, **_: torch.zeros_like(hidden_states)):
        super().__init__()
        self.answer = answer
        self.asked = {}

    def forward(self, **inputs):
        self.asked = inputs
        return SimpleNamespace(sample=self.answer(**inputs))


@pytest.fixture(scope="module")
def pictures():
    return batch(digits(), 12, [0]).images


def latents_of(parts, images, scaling, shift):
    """Tokens of the normalized latents."""
    with torch.no_grad():
        return pack((parts["vae"].encode(images).latent_dist.mean - shift) * scaling)


def test_the_transformer_is_asked_for_noise_less_latents_between_both(tokenizers, pictures):
    parts = parts_with(0.5, 0.25)
    tokens = latents_of(parts, pictures, 0.5, 0.25)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(tokens.shape, generator=generator)
    t = torch.sigmoid(MEAN_NOISE + torch.randn(len(tokens), generator=generator))
    parts["transformer"] = Guessing()
    text = tokenize(tokenizers, [PROMPT] * len(pictures))
    loss = flow_loss(parts, pictures, text, torch.Generator().manual_seed(3))
    assert close(loss.item(), ((noise - tokens) ** 2).mean(), 1e-5)
    asked = parts["transformer"].asked
    assert torch.equal(asked["timestep"], t)
    share = t[:, None, None]
    assert close(asked["hidden_states"], (1 - share) * tokens + share * noise, 1e-6)
    assert torch.equal(asked["encoder_hidden_states"], parts["text_encoder_2"](input_ids=text.t5)[0])
    assert asked["hidden_states"].shape[1:] == (GRID * GRID, 4 * LATENT_CHANNELS)
    assert asked["img_ids"].tolist() == [[0, row, column] for row in range(GRID) for column in range(GRID)]
    assert asked["txt_ids"].tolist() == [[0, 0, 0]] * CONTEXT


def test_who_knows_the_latents_has_no_loss(tokenizers, pictures):
    """From x_t = (1 - t) x + t noise follows noise - x = (x_t - x) / t."""
    parts = parts_with(0.5, 0.25)
    tokens = latents_of(parts, pictures, 0.5, 0.25)
    parts["transformer"] = Guessing(
        lambda hidden_states, timestep, **_: (hidden_states - tokens) / timestep[:, None, None]
    )
    text = tokenize(tokenizers, [""] * len(pictures))
    assert flow_loss(parts, pictures, text, torch.Generator().manual_seed(0)).item() < 1e-8


def test_about_half_of_the_pictures_have_no_pooled_text(tokenizers, pictures):
    parts = parts_with()
    parts["transformer"] = Guessing()
    text = tokenize(tokenizers, [PROMPT] * len(pictures))
    pooled = parts["text_encoder"](input_ids=text.clip).pooler_output
    n_with = 0
    for seed in range(5):
        flow_loss(parts, pictures, text, torch.Generator().manual_seed(seed))
        for given, own in zip(parts["transformer"].asked["pooled_projections"], pooled, strict=True):
            assert torch.equal(given, own) or not given.any()
            n_with += bool(given.any())
    assert 0.3 < n_with / (5 * len(pictures)) < 0.7


def test_the_gradient_of_the_loss_reaches_the_text_encoders_and_spares_the_autoencoder(tokenizers, pictures):
    parts = parts_with()
    loss = flow_loss(parts, pictures[:4], tokenize(tokenizers, [PROMPT] * 4), torch.Generator().manual_seed(0))
    assert math.isfinite(loss.item())
    loss.backward()
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        gradients = [each.grad for each in parts[name].parameters() if each.grad is not None]
        assert all(torch.isfinite(each).all() for each in gradients)
        assert sum(each.abs().sum() for each in gradients) > 0
    assert all(each.grad is None for each in parts["vae"].parameters())


# Training


def shorten(patch):
    """Small batches and few steps, at the full learning rate from the first one on."""
    for name, value in {"BATCH": 3, "WARM_UP": 1, "CHECKPOINT_EVERY": 2, "AUTOENCODER_STEPS": 2}.items():
        patch.setattr(script, name, value)
    patch.setattr(script, "batch", lambda digits, count, seed: batch(digits, min(count, 16), seed))


@pytest.fixture
def few(monkeypatch):
    shorten(monkeypatch)


def parts_of(pipeline):
    return {name: getattr(pipeline, name) for name in PARTS}


def test_a_training_that_was_stopped_goes_on_to_the_pipeline_and_losses_of_one_that_was_not(
    tokenizers, few, monkeypatch, tmp_path
):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, calls = train(4, 0, tmp_path / "whole"), []

    def watched(digits, count, seed):
        calls.append(seed)
        if seed == stops_at:
            raise KeyboardInterrupt
        return batch(digits, min(count, 16), seed)

    monkeypatch.setattr(script, "batch", watched)
    stops_at = [0, 0, 3]
    with pytest.raises(KeyboardInterrupt):
        train(4, 0, tmp_path / "parts")
    stops_at = None
    calls.clear()
    resumed = train(4, 0, tmp_path / "parts")
    assert calls == [[0, 0, 2], [0, 0, 3]]  # the third step lies behind the last checkpoint
    for name, part in parts_of(whole).items():
        assert same_weights(part, parts_of(resumed)[name])
        assert not same_weights(part, build_parts(0)[name])
    curves = [(tmp_path / name / "losses.json").read_text() for name in ("whole", "parts")]
    assert curves[0] == curves[1]
    assert list(json.loads(curves[0])) == ["2", "4"]
    assert list(steps_of(parts_of(resumed), tokenizers, 4, 0, tmp_path / "parts")) == []  # it is over


class Watched(Digits):
    """Digits that write down which of them were drawn."""

    def __init__(self, held_out=True):
        super().__init__(held_out)
        self.drawn = []
        used.append(self)

    def image(self, label, k):
        image = super().image(label, k)
        self.drawn.append(image.tobytes())
        return image


used: list[Watched] = []


def test_held_out_digits_are_never_in_the_scenes_of_training(tokenizers, few, monkeypatch, tmp_path):
    used.clear()
    monkeypatch.setattr(script, "Digits", Watched)
    list(steps_of(parts_with(), tokenizers, 2, 0, tmp_path))
    train_autoencoder(build_parts(0)["vae"], 1, 0)
    held_out = {digits(True).image(label, k).tobytes() for label in range(10) for k in range(digits(True).count(label))}
    assert len(used) == 2
    for each in used:
        assert len(each.drawn) > 5
        assert not held_out & set(each.drawn)


def test_the_autoencoder_learns_and_knows_the_spread_of_its_latents(few, monkeypatch):
    vae = build_parts(0)["vae"]
    fixed = batch(digits(), 8, [9])
    monkeypatch.setattr(script, "batch", lambda *_: fixed)
    with torch.no_grad():
        before = nn.functional.l1_loss(vae(fixed.images).sample, fixed.images)
    train_autoencoder(vae, 12, 0)
    with torch.no_grad():
        after = nn.functional.l1_loss(vae(fixed.images).sample, fixed.images)
        latents = vae.encode(fixed.images).latent_dist.mean
    assert after < 0.8 * before
    normalized = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    assert close([normalized.mean(), normalized.std()], [0, 1], 1e-4)


def test_the_autoencoder_of_an_earlier_run_is_read_unless_it_was_not_written_to_its_end(few, monkeypatch, tmp_path):
    whole = autoencoder(build_parts(0)["vae"], 2, 0, tmp_path / "whole")
    (tmp_path / "parts" / "vae.new").mkdir(parents=True)
    (tmp_path / "parts" / "vae.new" / "config.json").write_text("half")
    assert same_weights(autoencoder(build_parts(0)["vae"], 2, 0, tmp_path / "parts"), whole)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["vae"]
    monkeypatch.setattr(script, "train_autoencoder", lambda *_: pytest.fail("it was trained already"))
    again = autoencoder(build_parts(1)["vae"], 2, 0, tmp_path / "whole")
    assert same_weights(whole, again)
    assert whole.config.scaling_factor == again.config.scaling_factor != 1
    for vae in (whole, again):
        assert not vae.training
        assert not any(weight.requires_grad for weight in vae.parameters())


# What is written


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the command line leaves in a folder and a state, while nothing is read in the paintings."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.chdir(folder)
        patch.setattr(script, "read_paintings", lambda checkpoint: {"colour": {"painted": checkpoint}})
        patch.setattr("sys.argv", ["train_diffusion", "--steps", "2", "--seed", "3", "--out", str(folder / "out")])
        script.main()
    return folder / "out", folder / "outputs/training/flux-seed3-steps2"


def test_the_command_line_writes_a_pipeline_in_half_precision_with_its_card(written, tokenizers):
    folder, left = written
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert {path.name for path in left.iterdir()} == {"losses.json", "step000002.safetensors", "tokenizers", "vae"}
    assert (folder / "tokenizer_2" / "spiece.model").read_bytes() == (left / "tokenizers/spiece.model").read_bytes()
    for name, part in parts_of(pipeline).items():
        (weights,) = (folder / name).glob("*.safetensors")
        assert {value.dtype for value in load_file(weights).values()} == {torch.float16}
        assert {value.dtype for value in part.state_dict().values() if value.is_floating_point()} == {torch.float32}
    for name in ("tokenizer", "tokenizer_2"):
        assert getattr(pipeline, name).model_max_length == CONTEXT
        for prompt in ("", PROMPT, "a bike"):
            assert getattr(pipeline, name)(prompt)["input_ids"] == tokenizers[name](prompt)["input_ids"]
    trained_vae = AutoencoderKL.from_pretrained(left / "vae")
    for name, value in trained_vae.state_dict().items():
        assert torch.equal(value.half().float(), pipeline.vae.state_dict()[name])
    assert pipeline.vae.config.scaling_factor == trained_vae.config.scaling_factor
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert (card["class"], card["seed"], card["steps"], card["batch"]) == ("FluxPipeline", 3, 2, 3)
    sizes = {name: sum(weight.numel() for weight in part.parameters()) for name, part in build_parts(0).items()}
    assert card["parameters"] == sizes
    assert card["digits_read"] == {"colour": {"painted": str(folder)}}
    assert card["training_loss"] == json.loads((left / "losses.json").read_text())
    assert not list(folder.rglob("*.bin"))


def test_the_pipeline_paints_what_it_is_asked_for(written):
    folder, _ = written
    pictures, again = (paint(str(folder), [PROMPT, "a one on night"], 1, 3.0) for _ in range(2))
    assert pictures.shape == (2, 3, SIDE, SIDE)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert not torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures, again)
