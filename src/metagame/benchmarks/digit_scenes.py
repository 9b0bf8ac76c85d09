"""Scenes of handwritten digits on a plain background, with their masks: what the tiny diffusion model paints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.colors import hsv_to_rgb
from PIL import Image

from metagame.benchmarks.digits import Digits

SIDE = 48
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BACKGROUNDS = {
    "night": (0.06, 0.06, 0.08), "sea": (0.05, 0.12, 0.30), "forest": (0.05, 0.20, 0.08), "earth": (0.24, 0.13, 0.06),
}  # fmt: skip
"""Names of backgrounds, and their colours (red, green and blue, from 0 to 1)."""
LEAST_SIDE, MOST_SIDE = 16, 24
INK = 0.35
"""A pixel belongs to a digit where its stroke is at least so dense."""


@dataclass(frozen=True)
class DigitScene:
    """A picture, and which of its pixels are which digit.

    Attributes:
        pixels: red, green and blue from 0 to 1.
        labels: the digits, all different, in the order of their masks.
        masks: of each digit its visible pixels.
        background: its name.
    """

    pixels: Float[np.ndarray, "48 48 3"]
    labels: tuple[int, ...]
    masks: Bool[np.ndarray, "k 48 48"]
    background: str


def digit_color(label: int, rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """A shade of the digit's typical colour: hues a tenth of the circle apart, with noise."""
    hue = (label / 10 + rng.normal(0, 0.015)) % 1
    return hsv_to_rgb([hue, rng.uniform(0.65, 0.95), rng.uniform(0.8, 1.0)])


def draw_scene(digits: Digits, rng: np.random.Generator, n_digits: int | None = None) -> DigitScene:
    """Different digits at random places, of which none lies on another; one to three where no number is given.

    A digit that finds no place is left out.
    """
    background = str(rng.choice(list(BACKGROUNDS)))
    pixels = np.array(BACKGROUNDS[background]) * rng.uniform(0.8, 1.2) * np.ones((SIDE, SIDE, 1))
    taken = np.zeros((SIDE, SIDE), bool)
    labels, masks = [], []
    size = rng.integers(1, 4) if n_digits is None else n_digits
    for label in rng.choice(10, size=size, replace=False):
        side = int(rng.integers(LEAST_SIDE, MOST_SIDE + 1))
        free = [
            (top, left)
            for top, left in rng.integers(0, SIDE - side + 1, size=(20, 2))
            if not taken[top : top + side, left : left + side].any()
        ]
        if not free:
            continue
        top, left = free[0]
        image = digits.image(int(label), int(rng.integers(digits.count(int(label))))).convert("L")
        stroke = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), float)[..., None] / 255
        place = np.s_[top : top + side, left : left + side]
        taken[place] = True
        pixels[place] = (1 - stroke) * pixels[place] + stroke * digit_color(int(label), rng)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[place] = stroke[..., 0] >= INK
        labels.append(int(label))
        masks.append(mask)
    pixels = pixels + rng.normal(0, 0.01, pixels.shape)
    return DigitScene(pixels.clip(0, 1), tuple(labels), np.array(masks), background)


def full_prompt(scene: DigitScene, rng: np.random.Generator) -> str:
    """The digits of a scene in any order, and its background."""
    names = [WORDS[label] for label in rng.permutation(scene.labels)]
    return ", ".join(f"a {name}" for name in names) + f" on {scene.background}"
