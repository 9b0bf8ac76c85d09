"""Training of the small vision-language models: scenes, the loss, a stopped training, what they learned."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import log_softmax, logsigmoid, normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from metagame.benchmarks.digits import Digits
from metagame.models.clip import CLIP
from scripts import train_vision_language as script
from scripts.train_vision_language import (
    CELL,
    CONTEXT,
    RECIPES,
    SIDE,
    VOCABULARY,
    WORDS,
    Scenes,
    build_image_processor,
    build_model,
    build_tokenizer,
    contrastive_loss,
    draw_scenes,
    loss_at,
    matching_loss,
    steps_of,
    tokenize,
    train,
    word_recall,
)
from tests.tiny.jobs import ROOT

TINY = ROOT / "data/tiny"
SMALLEST = RECIPES["siglip2_p16"]
each_recipe = pytest.mark.parametrize("name", RECIPES)


@cache
def digits(held_out):
    return Digits(held_out)


@cache
def digit_images(held_out):
    """The label of each digit of a part of the set, by its picture in a quadrant of a scene, and by its own."""
    found = {}
    for label in range(10):
        for k in range(digits(held_out).count(label)):
            image = digits(held_out).image(label, k)
            enlarged = image.convert("L").resize((CELL, CELL), Image.Resampling.BICUBIC)
            found[np.asarray(enlarged).tobytes()] = found[image.tobytes()] = label
    return found


def scenes_of(count, seed=0, held_out=False, augment=True):
    return draw_scenes(digits(held_out), count, np.random.default_rng(seed), augment)


def words_of(row):
    return {WORDS[label] for label in row.nonzero().flatten().tolist()}


def cells(image):
    """The four quadrants of a scene as 32 x 32 arrays of 0 to 1, in reading order."""
    grey = (image[0].numpy() + 1) / 2
    return [grey[top : top + CELL, left : left + CELL] for top in (0, CELL) for left in (0, CELL)]


# Scenes


def test_scenes_are_drawn_from_their_generator_and_have_one_to_four_digits_and_captions_that_name_some_of_them():
    state = torch.get_rng_state()
    scenes, again, other = (scenes_of(200, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(getattr(scenes, name), getattr(again, name)) for name in ("images", "present", "captioned"))
    assert scenes.captions == again.captions
    assert not torch.equal(scenes.images, other.images)
    assert scenes.images.shape == (200, 3, SIDE, SIDE)
    assert scenes.images.dtype == torch.float32
    assert (scenes.images.min(), scenes.images.max()) == (-1, 1)
    assert torch.equal(scenes.images[:, 0], scenes.images[:, 2])
    assert set(scenes.present.sum(1).tolist()) == {1, 2, 3, 4}
    assert scenes.present.any(0).all()
    for caption, present, captioned in zip(scenes.captions, scenes.present, scenes.captioned, strict=True):
        named = caption.split()
        assert set(named) == words_of(captioned) <= words_of(present)
        assert len(named) == len(set(named)) >= 1
    n_missing = (scenes.present & ~scenes.captioned).sum(1)
    orders = {tuple(WORDS.index(word) for word in caption.split()) for caption in scenes.captions}
    assert 0 < (n_missing == 0).float().mean() < 1
    assert any(list(order) != sorted(order) for order in orders)


@pytest.mark.parametrize("held_out", [True, False])
def test_the_digits_of_a_scene_are_those_of_its_labels_and_of_its_part_of_the_set_in_any_quadrant(held_out):
    """Without augmentation every filled quadrant is one digit, enlarged: which one tells label and part."""
    known, places = digit_images(held_out), set()
    scenes = scenes_of(60, held_out=held_out, augment=False)
    for image, present in zip(scenes.images, scenes.present, strict=True):
        filled = {place: cell for place, cell in enumerate(cells(image)) if cell.max() > 0}
        shown = [known[np.round(cell * 255).astype(np.uint8).tobytes()] for cell in filled.values()]
        assert sorted(shown) == present.nonzero().flatten().tolist()
        places |= set(filled) if len(filled) == 1 else set()
    assert places == {0, 1, 2, 3}


class Watched(Digits):
    """Digits that write down which of them were drawn."""

    def __init__(self, held_out=True):
        super().__init__(held_out)
        self.drawn = []

    def image(self, label, k):
        image = super().image(label, k)
        self.drawn.append(image.tobytes())
        return image


@pytest.mark.parametrize("held_out", [True, False])
def test_the_recall_is_measured_on_held_out_digits_which_are_never_in_the_scenes_of_training(
    small, monkeypatch, tmp_path, held_out
):
    made = []
    monkeypatch.setattr(script, "Digits", lambda *told, **named: made.append(Watched(*told, **named)) or made[-1])
    model, tokenizer = build_model(SMALLEST, 0), build_tokenizer(SMALLEST)
    if held_out:
        word_recall(model, tokenizer, seed=0, count=30)
    else:
        list(steps_of(model, SMALLEST, tokenizer, 3, 0, tmp_path))
    (used,) = made
    assert len(used.drawn) > 50
    assert set(used.drawn) <= digit_images(held_out).keys() - digit_images(not held_out).keys()


# The loss


class Fixed(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, **inputs):
        return type("Output", (), {"logits_per_image": self.logits})()


def by_words(*rows):
    return torch.tensor([[word in row.split() for word in WORDS] for row in rows])


# Scene 0 shows one, two; scene 1 shows one, two, three; scene 2 shows four.
PRESENT = by_words("one two", "one two three", "four")
CAPTIONS = ["two one", "one three", "four"]
SCENES = Scenes(torch.zeros(3, 3, SIDE, SIDE), PRESENT, by_words(*CAPTIONS), CAPTIONS)
FITS = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]])
LOGITS = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, -0.4], [-2.0, 0.7, 1.1]])


def test_to_a_siglip_a_caption_fits_every_scene_that_holds_its_words():
    expected = -logsigmoid((2 * FITS - 1) * LOGITS).sum().item() / 3
    assert matching_loss(Fixed(LOGITS), {}, SCENES).item() == pytest.approx(expected, abs=1e-6)
    right, diagonal, wrong = (
        matching_loss(Fixed(20 * logits), {}, SCENES) for logits in (FITS - 0.5, torch.eye(3) - 0.5, 0.5 - FITS)
    )
    assert right < diagonal < wrong


@pytest.mark.parametrize("name", ["clip", "metaclip2"])
@torch.no_grad()
def test_to_a_clip_a_caption_belongs_to_its_own_scene_by_the_model_s_own_logits_of_the_patches_that_are_seen(name):
    model, tokenizer = build_model(RECIPES[name], 0), build_tokenizer(RECIPES[name])
    scenes, n_patches = scenes_of(5), (SIDE // RECIPES[name].patch) ** 2
    tokens, every = tokenize(tokenizer, scenes.captions), torch.arange(n_patches).expand(5, -1)
    logits = model(pixel_values=scenes.images, **tokens).logits_per_image
    expected = -(log_softmax(logits, 0).diag() + log_softmax(logits, 1).diag()).mean().item() / 2
    assert contrastive_loss(model, tokens, scenes, every).item() == pytest.approx(expected, abs=1e-4)
    seen = every[:, :3].clone()
    partial = contrastive_loss(model, tokens, scenes, seen)
    pixels = scenes.images.clone()
    pixels[:, :, -RECIPES[name].patch :] = 1  # the lowest row of patches is not among the first three
    changed = replace(scenes, images=pixels)
    assert contrastive_loss(model, tokens, changed, seen).item() == pytest.approx(partial.item(), abs=1e-5)
    assert contrastive_loss(model, tokens, changed, every).item() != pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("progress", "most", "n_seen"), [(0.05, 1, 16), (0.13, 2, 12), (0.3, 3, 12), (0.5, 4, 12), (0.9, 4, 16)]
)
def test_a_clip_meets_scenes_of_more_and_more_digits_and_captions_without_words(monkeypatch, progress, most, n_seen):
    met = []
    monkeypatch.setattr(script, "contrastive_loss", lambda model, tokens, scenes, seen: met.append((scenes, seen)))
    recipe = RECIPES["clip"]
    for seed in range(3):
        loss_at(progress, None, recipe, build_tokenizer(recipe), digits(False), np.random.default_rng(seed))
    for scenes, seen in met:
        assert scenes.present.sum(1).max() == most
        assert (seen.shape, len(set(seen[0].tolist()))) == ((recipe.batch, n_seen), n_seen)
    assert "" in met[0][0].captions


@pytest.mark.parametrize("name", ["clip", "metaclip2"])
@torch.no_grad()
def test_a_clip_begins_with_positive_cosines_and_attention_to_near_patches(name):
    model, tokenizer = build_model(RECIPES[name], 0), build_tokenizer(RECIPES[name])
    scenes = scenes_of(5)
    images = model.get_image_features(pixel_values=scenes.images)
    texts = model.get_text_features(**tokenize(tokenizer, ["", *WORDS]))
    assert (normalize(images, dim=-1) @ normalize(texts, dim=-1).T).min() > 0.2
    first = CLIP.encoder_view_of(model).blocks[0]
    embedded = model.vision_model.pre_layrnorm(model.vision_model.embeddings(scenes.images))
    weights = first.forward(embedded)[0].mean((0, 1))[1:, 1:]  # of 4 x 4 patches
    assert weights[0, [1, 4, 5]].mean() > 1.2 * weights[0, [10, 11, 14, 15]].mean()


# The models and their training


@each_recipe
def test_models_are_drawn_from_the_seed_and_read_a_token_a_word_and_the_pixels_of_training(name):
    recipe, state = RECIPES[name], torch.get_rng_state()
    model, *others = (build_model(recipe, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    again, other = (each.state_dict() for each in others)
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())
    assert any(not torch.equal(value, other[key]) for key, value in model.state_dict().items())
    tokens = [*([] if recipe.siglip else [script.START]), "three", "seven", script.END]
    assert build_tokenizer(recipe)("three SEVEN")["input_ids"] == [VOCABULARY[token] for token in tokens]
    assert tokenize(build_tokenizer(recipe), ["three", "one two"])["input_ids"].shape == (2, CONTEXT)
    assert model.config.text_config.max_position_embeddings == CONTEXT
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    processed = build_image_processor(recipe)(images=Image.fromarray(pixels), return_tensors="pt")
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255 * 2 - 1
    assert (processed["pixel_values"][0] - expected).abs().max() < 1e-6


@pytest.fixture
def small(monkeypatch):
    """Small batches at the full learning rate from the first step on, and nothing measured."""
    for name, recipe in RECIPES.items():
        monkeypatch.setitem(RECIPES, name, replace(recipe, batch=16))
    monkeypatch.setattr(script, "WARM_UP", 1)
    monkeypatch.setattr(script, "LEARNING_RATE", 1e-3)
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 2)


@torch.no_grad()
def loss_of(name, model):
    """The loss on scenes that training does not meet."""
    recipe, rng = RECIPES[name], np.random.default_rng(99)
    return loss_at(0, model.eval(), recipe, build_tokenizer(recipe), digits(False), rng).item()


@pytest.mark.slow
@each_recipe
def test_a_few_steps_lower_the_loss_of_every_model(name, small, tmp_path):
    model = build_model(RECIPES[name], 0)
    before = loss_of(name, model)
    losses = list(steps_of(model.train(), RECIPES[name], build_tokenizer(RECIPES[name]), 12, 0, tmp_path))
    assert [step for step, _ in losses] == list(range(12))
    assert all(math.isfinite(loss) for _, loss in losses)
    assert loss_of(name, model) < before


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_before"), [("siglip2_p16", 1), ("siglip2_p16", 3), ("clip", 3)])
def test_a_training_that_was_stopped_goes_on_to_the_card_and_weights_of_one_that_was_not(
    small, monkeypatch, tmp_path, capsys, name, n_before
):
    monkeypatch.setattr(script, "word_recall", lambda *arguments: 0.5)
    recipe = RECIPES[name]
    whole = train(name, 4, 7, tmp_path / "whole", tmp_path / "whole_out")
    losses = list(steps_of(build_model(recipe, 7), recipe, build_tokenizer(recipe), 4, 7, tmp_path / "again"))
    assert whole["training_loss"] == {str(step + 1): round(loss, 4) for step, loss in losses}
    assert json.loads((tmp_path / "whole_out/card.json").read_text(encoding="utf-8")) == whole
    assert (whole["class"], whole["seed"], whole["steps"]) == (recipe.model.__name__, 7, 4)
    assert f"{name} step 4" in capsys.readouterr().out
    assert isinstance(AutoModel.from_pretrained(tmp_path / "whole_out"), recipe.model)
    calls = []

    def stop(*arguments):
        calls.append(1)
        if len(calls) > n_before:
            raise KeyboardInterrupt
        return loss_at(*arguments)

    monkeypatch.setattr(script, "loss_at", stop)
    with pytest.raises(KeyboardInterrupt):
        train(name, 4, 7, tmp_path / "parts", tmp_path / "parts_out")
    monkeypatch.setattr(script, "loss_at", loss_at)
    assert train(name, 4, 7, tmp_path / "parts", tmp_path / "parts_out") == whole
    files = [tmp_path / folder / "model.safetensors" for folder in ("whole_out", "parts_out")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert list(steps_of(build_model(recipe, 7), recipe, build_tokenizer(recipe), 4, 7, tmp_path / "parts")) == []


def test_the_recall_is_one_for_a_model_that_sees_what_is_there_and_chance_for_one_that_knows_nothing(monkeypatch):
    class Seeing(torch.nn.Module):
        def forward(self, pixel_values, **tokens):
            return type("Output", (), {"logits_per_image": scenes.present.float()})()

    assert word_recall(build_model(SMALLEST, 0), build_tokenizer(SMALLEST), seed=0, count=200) < 0.5
    scenes = scenes_of(20, held_out=True, augment=False)
    monkeypatch.setattr(script, "draw_scenes", lambda *arguments, **settings: scenes)
    assert word_recall(Seeing(), build_tokenizer(RECIPES["clip"]), seed=0, count=20) == 1


# The committed models


@pytest.mark.slow
@each_recipe
def test_a_committed_checkpoint_is_small_and_names_the_digits_of_scenes_it_has_not_seen_as_it_says(name):
    folder = TINY / name
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2e6
    assert not [*folder.glob("*.bin"), *folder.glob("*.p*kl*")]
    assert (card["model"], card["class"]) == (name, RECIPES[name].model.__name__)
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    recall = word_recall(model, tokenizer, seed=12345, count=300)
    assert min(recall, card["word_recall_on_held_out_scenes"]) >= (0.95 if RECIPES[name].siglip else 0.9)
    assert recall == pytest.approx(card["word_recall_on_held_out_scenes"], abs=0.03)


@each_recipe
def test_a_committed_checkpoint_has_the_architecture_tokenizer_and_image_processor_of_its_recipe(name):
    recipe, folder = RECIPES[name], TINY / name
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    shapes = {key: value.shape for key, value in build_model(recipe, 0).state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    assert (type(model), model.config.vision_config.patch_size) == (recipe.model, recipe.patch)
    texts = ["three seven", "NINE", "dog"]
    assert tokenizer(texts)["input_ids"] == build_tokenizer(recipe)(texts)["input_ids"]
    assert tokenizer.model_max_length == CONTEXT
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    processors = build_image_processor(recipe), AutoImageProcessor.from_pretrained(folder, use_fast=False)
    ours, theirs = (each(images=image, return_tensors="pt")["pixel_values"] for each in processors)
    assert torch.equal(ours, theirs)
