"""Training of the small FLUX: its tokenizers and prompts, the loss, a stopped training, the pipeline it writes."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import load_file
from torch import nn

from metagame.benchmarks.digit_scenes import BACKGROUNDS, SIDE, WORDS, draw_scene
from metagame.benchmarks.digits import Digits
from metagame.models.concepts import concept_token
from scripts import train_diffusion as script
from scripts.read_digits import paint
from scripts.train_diffusion import CONTEXT, GRID, PARTS, TEXT_WORDS, build_parts, flow_loss, steps_of, tokenize
from tests.conftest import close

PROMPT = "a three, a seven on sea"
DIGITS = Digits(held_out=False)
batch = script.batch


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return script.build_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


# Words and prompts


def test_every_word_of_the_prompts_is_one_token_of_either_tokenizer_whatever_its_case(tokenizers):
    t5, clip = tokenizers["tokenizer_2"], tokenizers["tokenizer"]
    assert {*WORDS, *BACKGROUNDS, "a", "on", ","} == set(TEXT_WORDS)
    for word in TEXT_WORDS:
        assert concept_token(t5, word) == f"▁{word}"
        assert clip.tokenize(word) == [f"{word}</w>"]
    assert t5.convert_ids_to_tokens(t5("a bike")["input_ids"]) == ["▁a", "<unk>", "</s>"]
    expected = ["<|startoftext|>", "sea</w>", ",</w>", "<|endoftext|>"]
    assert clip.convert_ids_to_tokens(clip("sea,")["input_ids"]) == expected
    for tokenizer in (t5, clip):
        assert tokenizer("A Three,A SEVEN on Sea")["input_ids"] == tokenizer(PROMPT)["input_ids"]
    assert tokenize(tokenizers, ["", PROMPT, "a one " * 20]).t5.shape == (3, CONTEXT)


def test_prompts_name_every_digit_of_their_scene_in_any_order_mostly_in_full_else_bare_or_not():
    scene, rng = draw_scene(DIGITS, np.random.default_rng(3), 3), np.random.default_rng(0)
    prompts = [script.training_prompt(scene, rng) for _ in range(3000)]
    shares = [np.mean([" on " in prompt for prompt in prompts]), np.mean([prompt == "" for prompt in prompts])]
    assert shares == pytest.approx([0.6, 0.1], abs=0.03)
    named = [WORDS[label] for label in scene.labels]
    assert len(named) > 1
    found = {
        prompt: [word for word in prompt.replace(",", "").split() if word in WORDS] for prompt in {*prompts} - {""}
    }
    for prompt, words in found.items():
        assert sorted(words) == sorted(named)
        full = f"{', '.join(f'a {name}' for name in words)} on {scene.background}"
        assert prompt == (full if "on" in prompt.split() else " ".join(words))
    assert len(found) == 2 * math.factorial(len(named))


# Pictures and the loss


def test_a_batch_has_scenes_drawn_from_its_seed_alone_as_pictures_from_minus_one_to_one():
    first, again, other = (batch(DIGITS, 5, [0, step]) for step in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert first.prompts == again.prompts
    assert not torch.equal(first.images, other.images)
    assert first.images.dtype == torch.float32
    rng = np.random.default_rng([0, 1])
    for image in first.images:
        assert close(image, draw_scene(DIGITS, rng).pixels.transpose(2, 0, 1) * 2 - 1, 1e-6)


class Guessing(nn.Module):
    """A transformer that writes down what it is asked, and predicts noise less these latents, of which it knows."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens
        self.asked = {}

    def forward(self, **inputs):
        self.asked = inputs  # from x_t = (1 - t) x + t noise follows noise - x = (x_t - x) / t
        return SimpleNamespace(sample=(inputs["hidden_states"] - self.tokens) / inputs["timestep"][:, None, None])


@pytest.fixture(scope="module")
def pictures():
    return batch(DIGITS, 12, [0]).images


@pytest.fixture
def parts():
    """The parts, with a scaled autoencoder."""
    parts = build_parts(0)
    parts["vae"].register_to_config(scaling_factor=0.5, shift_factor=0.25)
    parts["vae"].eval().requires_grad_(False)
    return parts


@pytest.fixture
def tokens(parts, pictures):
    """Of the normalized latents."""
    return script.pack((parts["vae"].encode(pictures).latent_dist.mean - 0.25) * 0.5)


def test_the_transformer_is_asked_for_noise_less_latents_between_both(tokenizers, parts, pictures, tokens):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(tokens.shape, generator=generator)
    t = torch.sigmoid(script.MEAN_NOISE + torch.randn(len(tokens), generator=generator))
    text = tokenize(tokenizers, [PROMPT] * len(pictures))
    losses = []
    for wrong_by in (0.0, 2.0):
        parts["transformer"] = Guessing(tokens + wrong_by * t[:, None, None])
        losses.append(flow_loss(parts, pictures, text, torch.Generator().manual_seed(3)).item())
    assert losses == pytest.approx([0, 4], abs=1e-5)
    asked = parts["transformer"].asked
    assert torch.equal(asked["timestep"], t)
    share = t[:, None, None]
    assert close(asked["hidden_states"], (1 - share) * tokens + share * noise, 1e-6)
    assert torch.equal(asked["encoder_hidden_states"], parts["text_encoder_2"](input_ids=text.t5)[0])
    assert asked["img_ids"].tolist() == [[0, row, column] for row in range(GRID) for column in range(GRID)]
    assert asked["txt_ids"].tolist() == [[0, 0, 0]] * CONTEXT


def test_about_half_of_the_pictures_have_no_pooled_text(tokenizers, parts, pictures, tokens):
    parts["transformer"] = Guessing(tokens)
    text = tokenize(tokenizers, [PROMPT] * len(pictures))
    pooled, n_with = parts["text_encoder"](input_ids=text.clip).pooler_output, 0
    for seed in range(5):
        flow_loss(parts, pictures, text, torch.Generator().manual_seed(seed))
        for given, own in zip(parts["transformer"].asked["pooled_projections"], pooled, strict=True):
            assert torch.equal(given, own) or not given.any()
            n_with += bool(given.any())
    assert 0.3 < n_with / (5 * len(pictures)) < 0.7


# Training


@pytest.fixture(scope="module", autouse=True)
def few():
    """Small batches and few steps, at the full learning rate from the first one on."""
    settings = {"BATCH": 3, "WARM_UP": 1, "CHECKPOINT_EVERY": 2, "AUTOENCODER_STEPS": 2}
    settings["batch"] = lambda digits, count, seed: batch(digits, min(count, 16), seed)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setattr(script, name, value)
        yield


def parts_of(pipeline):
    return {name: getattr(pipeline, name) for name in PARTS}


def test_a_training_that_was_stopped_goes_on_to_the_pipeline_and_losses_of_one_that_was_not(
    tokenizers, monkeypatch, tmp_path
):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, calls, stops_at = script.train(4, 0, tmp_path / "whole"), [], [[0, 0, 3]]

    def watched(digits, count, seed):
        calls.append(seed)
        if seed in stops_at:
            raise KeyboardInterrupt
        return batch(digits, min(count, 16), seed)

    monkeypatch.setattr(script, "batch", watched)
    with pytest.raises(KeyboardInterrupt):
        script.train(4, 0, tmp_path / "parts")
    stops_at.clear()
    calls.clear()
    resumed = script.train(4, 0, tmp_path / "parts")
    assert calls == [[0, 0, 2], [0, 0, 3]]  # the third step lies behind the last checkpoint
    for name, part in parts_of(whole).items():
        assert same_weights(part, parts_of(resumed)[name])
        assert not same_weights(part, build_parts(0)[name])
    curves = [(tmp_path / name / "losses.json").read_text() for name in ("whole", "parts")]
    assert curves[0] == curves[1]
    assert list(json.loads(curves[0])) == ["2", "4"]
    assert list(steps_of(parts_of(resumed), tokenizers, 4, 0, tmp_path / "parts")) == []  # it is over


def test_held_out_digits_are_never_in_the_scenes_of_training(tokenizers, parts, tmp_path, drawn_held_out):
    list(steps_of(parts, tokenizers, 2, 0, tmp_path))
    script.train_autoencoder(build_parts(0)["vae"], 1, 0)
    assert len(drawn_held_out) > 10
    assert not any(drawn_held_out)


def test_the_autoencoder_learns_and_knows_the_spread_of_its_latents(monkeypatch):
    vae, fixed = build_parts(0)["vae"], batch(DIGITS, 8, [9])
    monkeypatch.setattr(script, "batch", lambda *_: fixed)
    before = nn.functional.l1_loss(vae(fixed.images).sample, fixed.images)
    script.train_autoencoder(vae, 12, 0)
    with torch.no_grad():
        assert nn.functional.l1_loss(vae(fixed.images).sample, fixed.images) < 0.8 * before
        latents = vae.encode(fixed.images).latent_dist.mean
    normalized = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    assert close([normalized.mean(), normalized.std()], [0, 1], 1e-4)


def test_the_autoencoder_of_an_earlier_run_is_read_unless_it_was_not_written_to_its_end(monkeypatch, tmp_path):
    (tmp_path / "vae.new").mkdir()
    (tmp_path / "vae.new" / "config.json").write_text("half")
    whole = script.autoencoder(build_parts(0)["vae"], 2, 0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
    monkeypatch.setattr(script, "train_autoencoder", lambda *_: pytest.fail("it was trained already"))
    again = script.autoencoder(build_parts(1)["vae"], 2, 0, tmp_path)
    assert same_weights(whole, again)
    assert whole.config.scaling_factor == again.config.scaling_factor != 1
    assert not again.training
    assert not any(weight.requires_grad for weight in again.parameters())


# What is written


@pytest.fixture(scope="module")
def written(tmp_path_factory, few):
    """What the command line leaves in a folder and a state, while nothing is read in the paintings."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(script, "read_paintings", lambda checkpoint: {"colour": {"painted": checkpoint}})
        patch.setattr("sys.argv", ["train_diffusion", "--steps", "2", "--seed", "3", "--out", str(folder / "out")])
        script.main()
    return folder / "out", folder / "outputs/training/flux-seed3-steps2"


def test_the_command_line_writes_a_pipeline_in_half_precision_with_its_card(written, tokenizers):
    folder, left = written
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert {path.name for path in left.iterdir()} == {"losses.json", "step000002.safetensors", "tokenizers", "vae"}
    for name in PARTS:
        (weights,) = (folder / name).glob("*.safetensors")
        assert {value.dtype for value in load_file(weights).values()} == {torch.float16}
    for name in ("tokenizer", "tokenizer_2"):
        assert getattr(pipeline, name).model_max_length == CONTEXT
        assert getattr(pipeline, name)(PROMPT)["input_ids"] == tokenizers[name](PROMPT)["input_ids"]
    trained_vae = AutoencoderKL.from_pretrained(left / "vae")
    assert same_weights(trained_vae.half().float(), pipeline.vae)
    assert pipeline.vae.config.scaling_factor == trained_vae.config.scaling_factor
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert (card["class"], card["seed"], card["steps"], card["batch"]) == ("FluxPipeline", 3, 2, 3)
    sizes = {name: sum(weight.numel() for weight in part.parameters()) for name, part in build_parts(0).items()}
    assert card["parameters"] == sizes
    assert card["digits_read"] == {"colour": {"painted": str(folder)}}
    assert card["training_loss"] == json.loads((left / "losses.json").read_text())


def test_the_pipeline_paints_what_it_is_asked_for(written):
    pictures, again = (paint(str(written[0]), [PROMPT, "a one on night"], 1, 3.0) for _ in range(2))
    assert pictures.shape == (2, 3, SIDE, SIDE)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert not torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures, again)
