"""Digits that are read in paintings: the shares, the readers' training, and what is painted and read."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from metagame.benchmarks.digit_scenes import BACKGROUNDS, SIDE, WORDS, draw_scene
from metagame.benchmarks.digits import Digits
from scripts import read_digits as script
from scripts.read_digits import Pictures, paint, read, scenes, train_reader
from tests.conftest import close

PROMPTS = ["a one on sea", "a two on night", "a three on earth", "a four on forest", "a five on sea"]


class Reader(nn.Module):
    """Reads these digits, whatever it sees; writes down what it saw."""

    def __init__(self, *found):
        super().__init__()
        self.logits = torch.tensor([[0.01 if digit in digits else -0.0 for digit in range(10)] for digits in found])
        self.seen = []

    def forward(self, pixels):
        self.seen.append(pixels)
        return self.logits


def pictures_of(*shown):
    """Pictures that show these digits."""
    digits = torch.tensor([[digit in each for digit in range(10)] for each in shown])
    return Pictures(torch.rand(len(shown), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), digits)


@pytest.mark.parametrize(
    ("shown", "found", "named", "just_these"),
    [
        ([{1, 2}, {3}], [{1, 2}, {3}], 1, 1),
        ([{1, 2}, {3}], [set(range(10))] * 2, 1, 0),
        ([{1, 2}, {3}], [{1}, {3}], 0.6667, 0.5),  # digits count alike, however many a picture has
        ([{1}, {3}, {0}, {9}], [{1}, {4}, {0, 4}, {9}], 0.75, 0.5),
    ],
)
def test_the_shares_of_digits_and_of_pictures_that_are_read_where_their_logit_is_positive(
    shown, found, named, just_these
):
    pictures, reader = pictures_of(*shown), Reader(*found)
    assert read(reader, pictures) == {"named_digits_read": named, "pictures_with_just_these": just_these}
    assert torch.equal(reader.seen[0], pictures.pixels)


@pytest.mark.parametrize("held_out", [True, False])
def test_scenes_are_drawn_from_their_seed_alone_with_their_digits_and_full_prompts(drawn_held_out, held_out):
    state = torch.get_rng_state()
    pictures, prompts = scenes(20, [5, 1], held_out=held_out)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(drawn_held_out) == {held_out}
    rng, digits = np.random.default_rng([5, 1]), Digits(held_out)
    for pixels, shown, prompt in zip(pictures.pixels, pictures.digits, prompts, strict=True):
        assert close(pixels.permute(1, 2, 0), draw_scene(digits, rng).pixels, 1e-6)
        words, _, background = prompt.partition(" on ")
        named = {word for word in words.replace(",", "").split() if word != "a"}
        assert named == {WORDS[digit] for digit in shown.nonzero().flatten().tolist()}
        assert background in BACKGROUNDS


def test_readers_are_trained_on_scenes_of_training_in_their_colours_and_equal_whenever_they_are(monkeypatch):
    asked, seen, readers = [], [], []

    def few(count, seed, *, held_out):
        asked.append((count, seed, held_out))
        return scenes(2, seed, held_out=held_out)

    monkeypatch.setattr(script, "STEPS", 2)
    monkeypatch.setattr(script, "scenes", few)
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0]) if isinstance(module, nn.Sequential) else None
    )
    for grey in (False, True, False):
        readers.append(train_reader(grey=grey))
        torch.manual_seed(5)
    handle.remove()
    assert asked == [(script.BATCH, [5, step], False) for step in (0, 1)] * 3
    drawn = [scenes(2, [5, step], held_out=False)[0] for step in (0, 1)]
    expected = [*drawn, *(pictures.grey() for pictures in drawn), *drawn]
    assert all(torch.equal(pixels, pictures.pixels) for pixels, pictures in zip(seen, expected, strict=True))
    assert close(expected[2].pixels[:, 1], drawn[0].pixels.sum(1) / 3, 1e-6)
    first, grey, again = (reader(drawn[0].pixels) for reader in readers)
    assert first.shape == (2, 10)
    assert torch.equal(first, again)
    assert not torch.equal(first, grey)
    assert not any(reader.training for reader in readers)


class Painter:
    """A pipeline whose pictures are black but for a pixel, which tells the prompt's length."""

    tokenizer = SimpleNamespace(model_max_length=16)

    def __init__(self):
        self.asked = []

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompts, **settings):
        self.asked.append((prompts, settings))
        pictures = np.zeros((len(prompts), SIDE, SIDE, 3), np.float32)
        pictures[:, 1, 2, 0] = [len(prompt) for prompt in prompts]
        return SimpleNamespace(images=pictures)


@pytest.fixture
def painter(monkeypatch):
    found = Painter()
    monkeypatch.setattr(script.FluxPipeline, "from_pretrained", lambda checkpoint, **_: found)
    monkeypatch.setattr(script, "PAINTED_AT_ONCE", 2)
    return found


def test_paintings_stand_in_the_order_of_their_prompts(painter):
    pictures = paint("somewhere", PROMPTS, 7, 3.0)
    assert pictures.shape == (5, 3, SIDE, SIDE)
    assert pictures[:, 0, 1, 2].tolist() == [len(prompt) for prompt in PROMPTS]
    assert [prompts for prompts, _ in painter.asked] == [PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]]
    for _, settings in painter.asked:
        assert (settings["height"], settings["width"], settings["num_inference_steps"]) == (SIDE, SIDE, 7)
        assert (settings["max_sequence_length"], settings["true_cfg_scale"]) == (16, 3)
        assert set(settings["negative_prompt"]) == {""}
    assert len({settings["generator"].initial_seed() for _, settings in painter.asked}) == 3


def test_both_readers_read_held_out_scenes_and_the_paintings_of_their_prompts(painter, monkeypatch, capsys):
    drawn, prompts = scenes(4, [6], held_out=True)
    shown = [set(row.nonzero().flatten().tolist()) for row in drawn.digits]
    readers = {grey: Reader(*shown) for grey in (False, True)}
    monkeypatch.setattr(script, "train_reader", lambda *, grey: readers[grey])
    monkeypatch.setattr("sys.argv", ["read_digits", "--checkpoint", "here", "--prompts", "4", "--steps", "3"])
    script.main()
    everything = {"named_digits_read": 1.0, "pictures_with_just_these": 1.0}
    kinds = ("held_out_scenes", "painted, guidance 3", "painted, guidance 1")
    said = capsys.readouterr().out
    found = json.loads(said[said.index("{") :])  # behind the bar of the painting
    assert found == {kind: dict.fromkeys(kinds, everything) for kind in ("colour", "grey")}
    assert [prompt for asked, _ in painter.asked for prompt in asked] == prompts * 2
    assert [settings["true_cfg_scale"] for _, settings in painter.asked] == [3, 3, 1, 1]
    painted = Pictures(paint("here", prompts, 3, 3.0), drawn.digits)
    for grey, reader in readers.items():
        for pixels, pictures in zip(reader.seen, (drawn, painted, painted), strict=True):
            assert torch.equal(pixels, (pictures.grey() if grey else pictures).pixels)
