"""Training of the small vision-language models: scenes, the loss, a stopped training, what they learned."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from metagame.benchmarks.digits import Digits
from scripts import train_vision_language as script
from scripts.train_vision_language import CELL, RECIPES, SIDE, VOCABULARY, WORDS, Scenes, build_model, build_tokenizer
from tests.tiny.jobs import ROOT

TINY = ROOT / "data/tiny"
DIGITS = Digits(held_out=False)
each_recipe = pytest.mark.parametrize("name", RECIPES)
each_clip = pytest.mark.parametrize("name", ["clip", "metaclip2"])


def scenes_of(count, seed=0, digits=DIGITS, augment=True):
    return script.draw_scenes(digits, count, np.random.default_rng(seed), augment)


# Scenes


def test_scenes_are_drawn_from_their_generator_and_have_one_to_four_digits_and_captions_that_name_some_of_them():
    state = torch.get_rng_state()
    scenes, again, other = (scenes_of(200, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(getattr(scenes, name), getattr(again, name)) for name in ("images", "present", "captioned"))
    assert scenes.captions == again.captions
    assert not torch.equal(scenes.images, other.images)
    assert (scenes.images.shape, scenes.images.dtype) == ((200, 3, SIDE, SIDE), torch.float32)
    assert (scenes.images.min(), scenes.images.max()) == (-1, 1)
    assert set(scenes.present.sum(1).tolist()) == {1, 2, 3, 4}
    assert scenes.present.any(0).all()
    orders = []
    for caption, present, captioned in zip(scenes.captions, scenes.present, scenes.captioned, strict=True):
        order = [WORDS.index(word) for word in caption.split()]
        assert sorted(order) == captioned.nonzero().flatten().tolist() != []
        assert present[order].all()
        orders.append(order)
    assert 0 < (scenes.present == scenes.captioned).all(1).float().mean() < 1
    assert any(order != sorted(order) for order in orders)


def test_the_digits_of_a_scene_are_those_of_its_labels_in_any_quadrant():
    """Without augmentation every filled quadrant is one digit, enlarged."""
    known, places = {}, set()
    for label in range(10):
        for k in range(DIGITS.count(label)):
            enlarged = DIGITS.image(label, k).convert("L").resize((CELL, CELL), Image.Resampling.BICUBIC)
            known[np.asarray(enlarged).tobytes()] = label
    scenes = scenes_of(60, augment=False)
    for image, present in zip(scenes.images[:, 0], scenes.present, strict=True):
        cells = [cell for rows in image.split(CELL) for cell in rows.split(CELL, dim=1)]
        filled = {place: (cell + 1) / 2 * 255 for place, cell in enumerate(cells) if cell.max() > -1}
        shown = [known[cell.round().numpy().astype(np.uint8).tobytes()] for cell in filled.values()]
        assert sorted(shown) == present.nonzero().flatten().tolist()
        places |= set(filled) if len(filled) == 1 else set()
    assert places == {0, 1, 2, 3}


def test_the_recall_is_measured_on_held_out_digits_which_are_never_in_the_scenes_of_training(
    small, tmp_path, drawn_held_out
):
    recipe = RECIPES["siglip2_p16"]
    model, tokenizer = build_model(recipe, 0), build_tokenizer(recipe)
    list(script.steps_of(model, recipe, tokenizer, 3, 0, tmp_path))
    n_of_training = len(drawn_held_out)
    script.word_recall(model, tokenizer, seed=0, count=30)
    assert 50 < n_of_training < len(drawn_held_out) - 50
    assert drawn_held_out == [place >= n_of_training for place in range(len(drawn_held_out))]


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


def test_to_a_siglip_a_caption_fits_every_scene_that_holds_its_words():
    captions = ["two one", "one three", "four"]
    present = by_words("one two", "one two three", "four")
    scenes = Scenes(torch.zeros(3, 3, SIDE, SIDE), present, by_words(*captions), captions)
    fits = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]])
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, -0.4], [-2.0, 0.7, 1.1]])
    expected = -logsigmoid((2 * fits - 1) * logits).sum().item() / 3
    assert script.matching_loss(Fixed(logits), {}, scenes).item() == pytest.approx(expected, abs=1e-6)


@each_clip
@torch.no_grad()
def test_to_a_clip_a_caption_belongs_to_its_own_scene_by_the_model_s_own_logits_of_the_patches_that_are_seen(name):
    model, patch, scenes = build_model(RECIPES[name], 0), RECIPES[name].patch, scenes_of(5)
    tokens = script.tokenize(build_tokenizer(RECIPES[name]), scenes.captions)
    every = torch.arange((SIDE // patch) ** 2).expand(5, -1)
    seen = every[:, :3].clone()
    pixels = scenes.images.clone()
    pixels[:, :, -patch:] = 1  # the lowest row of patches is not among the first three
    changed = replace(scenes, images=pixels)
    whole, whole_changed, partial, partial_changed = (
        script.contrastive_loss(model, tokens, drawn, patches).item()
        for patches in (every, seen)
        for drawn in (scenes, changed)
    )
    logits = model(pixel_values=scenes.images, **tokens).logits_per_image
    expected = -(log_softmax(logits, 0).diag() + log_softmax(logits, 1).diag()).mean().item() / 2
    assert whole == pytest.approx(expected, abs=1e-4)
    assert whole_changed != pytest.approx(expected, abs=1e-4)
    assert partial_changed == pytest.approx(partial, abs=1e-5)


# The models and their training


@each_recipe
def test_models_read_a_token_a_word_and_the_pixels_of_training(name):
    recipe = RECIPES[name]
    tokens = [*([] if recipe.siglip else [script.START]), "three", "seven", script.END]
    assert build_tokenizer(recipe)("three SEVEN")["input_ids"] == [VOCABULARY[token] for token in tokens]
    assert script.tokenize(build_tokenizer(recipe), ["three", "one two"])["input_ids"].shape == (2, script.CONTEXT)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    processed = script.build_image_processor(recipe)(images=Image.fromarray(pixels), return_tensors="pt")
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255 * 2 - 1
    assert (processed["pixel_values"][0] - expected).abs().max() < 1e-6


@pytest.fixture
def small(monkeypatch):
    """Small batches at the full learning rate from the first step on."""
    for name, recipe in RECIPES.items():
        monkeypatch.setitem(RECIPES, name, replace(recipe, batch=16))
    for name, value in {"WARM_UP": 1, "LEARNING_RATE": 1e-3, "CHECKPOINT_EVERY": 2}.items():
        monkeypatch.setattr(script, name, value)


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_to_the_card_and_weights_of_one_that_was_not(
    small, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(script, "word_recall", lambda *arguments: 0.5)
    recipe, loss_at, calls = RECIPES["clip"], script.loss_at, []
    whole = script.train("clip", 4, 7, tmp_path / "whole", tmp_path / "whole_out")
    parts = (build_model(recipe, 7), recipe, build_tokenizer(recipe), 4, 7)
    assert whole["training_loss"] == {
        str(step + 1): round(loss, 4) for step, loss in script.steps_of(*parts, tmp_path / "again")
    }
    assert json.loads((tmp_path / "whole_out/card.json").read_text(encoding="utf-8")) == whole
    assert (whole["class"], whole["seed"], whole["steps"]) == (recipe.model.__name__, 7, 4)
    assert "clip step 4" in capsys.readouterr().out
    assert isinstance(AutoModel.from_pretrained(tmp_path / "whole_out"), recipe.model)

    def stop(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return loss_at(*arguments)

    monkeypatch.setattr(script, "loss_at", stop)
    with pytest.raises(KeyboardInterrupt):
        script.train("clip", 4, 7, tmp_path / "parts", tmp_path / "parts_out")
    monkeypatch.setattr(script, "loss_at", loss_at)
    assert script.train("clip", 4, 7, tmp_path / "parts", tmp_path / "parts_out") == whole
    files = [tmp_path / folder / "model.safetensors" for folder in ("whole_out", "parts_out")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert list(script.steps_of(*parts, tmp_path / "parts")) == []  # it is over


def test_the_recall_is_one_for_a_model_that_sees_what_is_there_and_chance_for_one_that_knows_nothing(monkeypatch):
    recipe, scenes = RECIPES["siglip2_p16"], scenes_of(20, digits=Digits(), augment=False)
    assert script.word_recall(build_model(recipe, 0), build_tokenizer(recipe), seed=0, count=200) < 0.5
    monkeypatch.setattr(script, "draw_scenes", lambda *arguments, **settings: scenes)
    assert script.word_recall(Fixed(scenes.present.float()), build_tokenizer(recipe), seed=0, count=20) == 1


# The committed models


@pytest.mark.slow
@each_recipe
def test_a_committed_checkpoint_is_small_and_names_the_digits_of_scenes_it_has_not_seen_as_it_says(name):
    folder = TINY / name
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2e6
    assert not [*folder.glob("*.bin"), *folder.glob("*.p*kl*")]
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    recall = script.word_recall(model, tokenizer, seed=12345, count=300)
    assert min(recall, card["word_recall_on_held_out_scenes"]) >= (0.95 if RECIPES[name].siglip else 0.9)
    assert recall == pytest.approx(card["word_recall_on_held_out_scenes"], abs=0.03)


@each_recipe
def test_a_committed_checkpoint_has_the_architecture_tokenizer_and_image_processor_of_its_recipe(name):
    recipe, folder = RECIPES[name], TINY / name
    models = build_model(recipe, 0), AutoModel.from_pretrained(folder)
    tokenizers = build_tokenizer(recipe), AutoTokenizer.from_pretrained(folder)
    processors = script.build_image_processor(recipe), AutoImageProcessor.from_pretrained(folder, use_fast=False)
    ours, theirs = ({key: value.shape for key, value in model.state_dict().items()} for model in models)
    assert (type(models[0]), ours) == (type(models[1]), theirs)
    ours, theirs = (each(["three seven", "NINE", "dog"])["input_ids"] for each in tokenizers)
    assert (ours, script.CONTEXT) == (theirs, tokenizers[1].model_max_length)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    ours, theirs = (each(images=image, return_tensors="pt")["pixel_values"] for each in processors)
    assert torch.equal(ours, theirs)
