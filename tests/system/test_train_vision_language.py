from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from metagame.benchmarks.digits import Digits
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
    draw_scenes,
    load_checkpoint,
    matching_loss,
    save_checkpoint,
    steps_of,
    tokenize,
    train,
    word_recall,
)
from tests.tiny.jobs import ROOT

TINY = ROOT / "data/tiny"


@cache
def digits(held_out):
    return Digits(held_out)


def scenes_of(count, seed=0, held_out=False, augment=True):
    return draw_scenes(digits(held_out), count, np.random.default_rng(seed), augment)


def same_scenes(first, second):
    tensors = ("images", "present", "captioned")
    return first.captions == second.captions and all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in tensors
    )


def words_of(row):
    return {WORDS[label] for label in row.nonzero().flatten().tolist()}


def cells(image):
    """The four quadrants of a scene as 32 x 32 arrays of 0 to 1, in reading order."""
    grey = (image[0].numpy() + 1) / 2
    return [grey[top : top + CELL, left : left + CELL] for top in (0, CELL) for left in (0, CELL)]


def test_equal_generators_draw_equal_scenes_and_other_ones_do_not():
    assert same_scenes(scenes_of(6), scenes_of(6))
    assert not same_scenes(scenes_of(6), scenes_of(6, seed=1))


def test_drawing_scenes_leaves_the_global_generators_alone():
    np.random.seed(0)  # noqa: NPY002
    before, state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    scenes_of(3)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)


def test_scenes_are_images_in_the_range_of_the_models():
    scenes = scenes_of(20)
    assert scenes.images.shape == (20, 3, SIDE, SIDE)
    assert scenes.images.dtype == torch.float32
    assert (scenes.images.min(), scenes.images.max()) == (-1, 1)
    assert torch.equal(scenes.images[:, 0], scenes.images[:, 2])


def test_a_scene_has_one_to_four_different_digits_and_all_numbers_occur():
    scenes = scenes_of(200)
    assert set(scenes.present.sum(1).tolist()) == {1, 2, 3, 4}
    assert scenes.present.any(0).all()


def test_a_caption_names_what_is_captioned_and_that_is_shown():
    scenes = scenes_of(200)
    for caption, present, captioned in zip(scenes.captions, scenes.present, scenes.captioned, strict=True):
        named = caption.split()
        assert set(named) == words_of(captioned)
        assert len(named) == len(set(named)) >= 1
        assert words_of(captioned) <= words_of(present)


def test_captions_are_whole_and_partial_and_in_any_order():
    scenes = scenes_of(200)
    n_missing = (scenes.present & ~scenes.captioned).sum(1)
    orders = {tuple(WORDS.index(word) for word in caption.split()) for caption in scenes.captions}
    assert 0 < (n_missing == 0).float().mean() < 1
    assert any(list(order) != sorted(order) for order in orders)


@pytest.mark.parametrize("held_out", [True, False])
def test_the_digits_of_a_scene_are_those_of_its_labels_and_of_its_part_of_the_set(held_out):
    """Without augmentation every filled quadrant is one digit, enlarged: which one tells label and part."""
    known = {
        np.asarray(digits(held_out).image(label, k).convert("L").resize((CELL, CELL), Image.Resampling.BICUBIC))
        .tobytes(): label
        for label in range(10)
        for k in range(digits(held_out).count(label))
    }  # fmt: skip
    scenes = scenes_of(40, held_out=held_out, augment=False)
    for image, present in zip(scenes.images, scenes.present, strict=True):
        filled = [cell for cell in cells(image) if cell.max() > 0]
        shown = [known[np.round(cell * 255).astype(np.uint8).tobytes()] for cell in filled]
        assert sorted(shown) == present.nonzero().flatten().tolist()


def test_digits_stand_in_every_quadrant_whatever_their_number():
    scenes = scenes_of(100, augment=False)
    alone = [image for image, present in zip(scenes.images, scenes.present, strict=True) if present.sum() == 1]
    places = {next(place for place, cell in enumerate(cells(image)) if cell.max() > 0) for image in alone}
    assert places == {0, 1, 2, 3}


class Watched(Digits):
    """Digits that write down which of them were drawn."""

    def __init__(self, held_out):
        super().__init__(held_out)
        self.drawn = []

    def image(self, label, k):
        image = super().image(label, k)
        self.drawn.append(image.tobytes())
        return image


def test_held_out_digits_are_never_in_the_scenes_of_training(monkeypatch, tmp_path):
    made = []

    def watched(held_out=True):
        made.append(Watched(held_out))
        return made[-1]

    monkeypatch.setattr(script, "Digits", watched)
    monkeypatch.setattr(script, "BATCH", 32)
    recipe = RECIPES["siglip2_p16"]
    list(steps_of(build_model(recipe, 0), recipe, build_tokenizer(recipe), 3, 0, tmp_path))
    (used,) = made
    held_out = {digits(True).image(label, k).tobytes() for label in range(10) for k in range(digits(True).count(label))}
    assert len(used.drawn) > 100
    assert not held_out & set(used.drawn)


def test_the_recall_is_measured_on_held_out_digits(monkeypatch):
    made = []
    monkeypatch.setattr(script, "Digits", lambda held_out=True: made.append(held_out) or digits(held_out))
    word_recall(build_model(RECIPES["siglip2_p16"], 0), build_tokenizer(RECIPES["siglip2_p16"]), seed=0, count=4)
    assert made == [True]


class Fixed(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, **inputs):
        return type("Output", (), {"logits_per_image": self.logits})()


def by_words(*rows):
    return torch.tensor([[word in row.split() for word in WORDS] for row in rows])


# scene 0 shows one, two; scene 1 shows one, two, three; scene 2 shows four
PRESENT = ("one two", "one two three", "four")
CAPTIONED = ("two one", "one three", "four")
FITS = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]])


def example():
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, -0.4], [-2.0, 0.7, 1.1]])
    return Fixed(logits), Scenes(torch.zeros(3, 3, SIDE, SIDE), by_words(*PRESENT), by_words(*CAPTIONED), [*CAPTIONED])


def test_a_caption_fits_every_scene_that_holds_its_words_in_the_softmax_loss():
    model, scenes = example()
    by_image = -(FITS / FITS.sum(1, keepdim=True) * log_softmax(model.logits, 1)).sum(1).mean()
    by_text = -(FITS / FITS.sum(0, keepdim=True) * log_softmax(model.logits, 0)).sum(0).mean()
    loss = matching_loss(model, RECIPES["clip"], {}, scenes)
    assert loss.item() == pytest.approx((by_image + by_text).item() / 2, abs=1e-6)


def test_a_caption_fits_every_scene_that_holds_its_words_in_the_sigmoid_loss():
    model, scenes = example()
    loss = 0.0
    for image in range(3):
        for text in range(3):
            sign = 1 if FITS[image, text] else -1
            loss -= logsigmoid(sign * model.logits[image, text]).item() / 3
    assert matching_loss(model, RECIPES["siglip2_p8"], {}, scenes).item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("name", ["clip", "siglip2_p16"])
def test_the_loss_is_lowest_for_the_pairs_that_fit(name):
    _, scenes = example()
    right = matching_loss(Fixed(20 * (FITS - 0.5)), RECIPES[name], {}, scenes)
    diagonal = matching_loss(Fixed(20 * (torch.eye(3) - 0.5)), RECIPES[name], {}, scenes)
    wrong = matching_loss(Fixed(20 * (0.5 - FITS)), RECIPES[name], {}, scenes)
    assert right < diagonal < wrong


@pytest.fixture
def small(monkeypatch):
    """Small batches at the full learning rate from the first step on."""
    monkeypatch.setattr(script, "BATCH", 16)
    monkeypatch.setattr(script, "WARM_UP", 1)
    monkeypatch.setattr(script, "LEARNING_RATE", 1e-3)


def trained(name, n_steps, state, seed=0, stop=None):
    """A model after ``n_steps`` steps, or the first ``stop`` of them, and its losses."""
    recipe = RECIPES[name]
    model = build_model(recipe, seed)
    losses = []
    for step, loss in steps_of(model, recipe, build_tokenizer(recipe), n_steps, seed, state):
        losses.append((step, loss))
        if stop is not None and step + 1 == stop:
            break
    return model, losses


@torch.no_grad()
def loss_of(name, model):
    """The loss on scenes that training does not meet."""
    recipe, scenes = RECIPES[name], scenes_of(64, seed=99)
    return matching_loss(model.eval(), recipe, tokenize(build_tokenizer(recipe), scenes.captions), scenes).item()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_few_steps_lower_the_loss_of_every_model(name, small, tmp_path):
    before = loss_of(name, build_model(RECIPES[name], 0))
    model, losses = trained(name, 12, tmp_path)
    assert [step for step, _ in losses] == list(range(12))
    assert all(math.isfinite(loss) for _, loss in losses)
    assert loss_of(name, model) < before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip2_p16"])
def test_training_that_was_stopped_and_goes_on_ends_with_the_same_weights(name, small, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 3)
    whole, losses = trained(name, 6, tmp_path / "whole")
    _, before = trained(name, 6, tmp_path / "parts", stop=3)
    resumed, after = trained(name, 6, tmp_path / "parts")
    assert before + after == losses
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_steps_behind_the_last_checkpoint_are_done_again(small, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 2)
    _, losses = trained("siglip2_p16", 4, tmp_path / "whole")
    trained("siglip2_p16", 4, tmp_path / "parts", stop=3)
    _, after = trained("siglip2_p16", 4, tmp_path / "parts")
    assert after == losses[2:]


def test_a_training_that_is_over_has_no_steps_left(small, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 2)
    done, _ = trained("siglip2_p16", 2, tmp_path)
    again, losses = trained("siglip2_p16", 2, tmp_path)
    assert losses == []
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in done.state_dict().items())


def test_only_the_last_checkpoint_is_kept(tmp_path):
    model = build_model(RECIPES["siglip2_p16"], 0)
    optimiser = torch.optim.AdamW(model.parameters())
    for step in (100, 200):
        save_checkpoint(model, optimiser, tmp_path, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step000200.safetensors"]
    assert load_checkpoint(model, optimiser, tmp_path) == 200


@pytest.mark.parametrize("name", RECIPES)
def test_models_are_drawn_from_the_seed_and_not_from_the_global_generator(name):
    state = torch.get_rng_state()
    first, again, other = (build_model(RECIPES[name], seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", RECIPES)
def test_a_text_has_a_token_a_word_and_the_special_ones_of_its_model(name):
    recipe = RECIPES[name]
    ids = build_tokenizer(recipe)("three SEVEN")["input_ids"]
    words = [VOCABULARY[word] for word in ("three", "seven")]
    start = [] if recipe.siglip else [VOCABULARY[script.START]]
    assert ids == [*start, *words, VOCABULARY[script.END]]
    assert tokenize(build_tokenizer(recipe), ["three", "one two"])["input_ids"].shape == (2, CONTEXT)
    assert build_model(recipe, 0).config.text_config.max_position_embeddings == CONTEXT


@pytest.mark.parametrize("name", RECIPES)
def test_the_image_processor_gives_the_pixels_of_training(name):
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    processed = build_image_processor(RECIPES[name])(images=Image.fromarray(pixels), return_tensors="pt")
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255 * 2 - 1
    assert (processed["pixel_values"][0] - expected).abs().max() < 1e-6


@pytest.mark.slow
def test_a_trained_model_is_written_with_its_card_and_can_be_loaded(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(script, "word_recall", lambda *arguments: 0.5)
    (tmp_path / "state").mkdir()
    card = train("siglip2_p16", 4, 7, tmp_path / "state", tmp_path / "out")
    assert json.loads((tmp_path / "out/card.json").read_text(encoding="utf-8")) == card
    assert (card["class"], card["seed"], card["steps"]) == ("SiglipModel", 7, 4)
    assert list(card["training_loss"]) == ["1", "2", "3", "4"]
    _, losses = trained("siglip2_p16", 4, tmp_path / "again", seed=7)
    assert list(card["training_loss"].values()) == [round(loss, 4) for _, loss in losses]
    assert "siglip2_p16 step 4" in capsys.readouterr().out
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out"), RECIPES["siglip2_p16"].model)


def test_training_begins_where_there_is_no_folder_yet(small, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(script, "word_recall", lambda *arguments: 0.5)
    assert train("siglip2_p16", 2, 0, tmp_path / "a" / "b", tmp_path / "c" / "d")["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("n_before", [1, 3])
def test_a_training_that_was_stopped_writes_the_card_and_weights_of_one_that_was_not(
    small, monkeypatch, tmp_path, n_before
):
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 2)
    whole = train("siglip2_p16", 4, 0, tmp_path / "whole", tmp_path / "whole_out")
    calls = []

    def stop(*arguments):
        calls.append(1)
        if len(calls) > n_before:
            raise KeyboardInterrupt
        return matching_loss(*arguments)

    monkeypatch.setattr(script, "matching_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train("siglip2_p16", 4, 0, tmp_path / "parts", tmp_path / "parts_out")
    monkeypatch.setattr(script, "matching_loss", matching_loss)
    assert train("siglip2_p16", 4, 0, tmp_path / "parts", tmp_path / "parts_out") == whole
    files = [tmp_path / name / "model.safetensors" for name in ("whole_out", "parts_out")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(params=RECIPES)
def committed(request):
    return request.param, TINY / request.param


def card_of(folder):
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


def test_a_committed_checkpoint_is_small_and_says_how_it_was_made(committed):
    name, folder = committed
    card = card_of(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2e6
    assert not list(folder.glob("*.bin"))
    assert not list(folder.glob("*.p*kl*"))
    assert (card["model"], card["class"]) == (name, RECIPES[name].model.__name__)
    assert card["word_recall_on_held_out_scenes"] >= 0.95


def test_a_committed_checkpoint_has_the_architecture_of_its_recipe(committed):
    name, folder = committed
    model, expected = AutoModel.from_pretrained(folder), build_model(RECIPES[name], 0)
    assert type(model) is RECIPES[name].model
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    assert model.config.vision_config.patch_size == RECIPES[name].patch


def test_a_committed_checkpoint_comes_with_its_tokenizer_and_image_processor(committed):
    name, folder = committed
    recipe = RECIPES[name]
    texts = ["three seven", "NINE", "dog"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(texts)["input_ids"] == build_tokenizer(recipe)(texts)["input_ids"]
    assert tokenizer.model_max_length == CONTEXT
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    ours, theirs = (each(images=image, return_tensors="pt") for each in (build_image_processor(recipe), processor))
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


@pytest.mark.slow
def test_a_committed_checkpoint_names_the_digits_of_scenes_it_has_not_seen(committed):
    _, folder = committed
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    recall = word_recall(model, tokenizer, seed=12345, count=300)
    assert recall >= 0.95
    assert recall == pytest.approx(card_of(folder)["word_recall_on_held_out_scenes"], abs=0.03)


def test_the_recall_of_a_model_that_knows_nothing_is_that_of_chance():
    recipe = RECIPES["siglip2_p16"]
    assert word_recall(build_model(recipe, 0), build_tokenizer(recipe), seed=0, count=200) < 0.5


def test_the_recall_is_one_for_a_model_that_sees_what_is_there(monkeypatch):
    class Seeing(torch.nn.Module):
        def forward(self, pixel_values, **tokens):
            return type("Output", (), {"logits_per_image": scenes.present.float()})()

    scenes = scenes_of(20, held_out=True, augment=False)
    monkeypatch.setattr(script, "draw_scenes", lambda *arguments, **settings: scenes)
    assert word_recall(Seeing(), build_tokenizer(RECIPES["clip"]), seed=0, count=20) == 1
