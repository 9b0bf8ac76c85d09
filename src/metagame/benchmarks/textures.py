"""Handwritten digits on striped, dotted and plain grounds, where it is known which class depends on which texture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image

SIDE, PERIOD = 16, 4
"""Pixels of an image's side; and from one stripe, or dot, to the next, which is a patch."""
STRONGEST = 0.3
"""Mean brightness of a ground of strength 1, where a digit's strokes are 1."""
NOISE = 0.05
DEPENDENT = {3: "striped"}
"""The digits that a model is trained to see on one texture only, and that texture."""

Ground = Float[np.ndarray, "16 16"]
_ON = np.arange(SIDE) % PERIOD < PERIOD // 2
TEXTURES: dict[str, Ground] = {
    "striped": 2.0 * np.tile(_ON[:, None], (1, SIDE)),
    "dotted": 2.0 * (_ON[:, None] == _ON),
    "plain": np.ones((SIDE, SIDE)),
}
"""The same in each patch, so that single tokens tell them apart. Neither brightness nor contrast does: all have mean 1;
stripes and dots, which are two pixels wide and staggered, have variance 1 and no correlation."""


def strengths(rng: np.random.Generator, count: int) -> Float[np.ndarray, " count"]:
    """How strong grounds are, uniform from 0.2 to 1."""
    return rng.uniform(0.2, 1.0, count)


def ground(texture: str, strength: float, rng: np.random.Generator) -> Ground:
    """A ground of this texture with some noise, from 0 to 1."""
    return (TEXTURES[texture] * STRONGEST * strength + rng.normal(0, NOISE, (SIDE, SIDE))).clip(0, 1)


def enlarged(digit: Image.Image) -> Ground:
    """The strokes of a digit of 8 x 8 pixels, from 0 to 1."""
    return np.asarray(digit.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255


def drawn(brightness: Ground) -> Image.Image:
    """Brightness from 0 to 1 as an image."""
    return Image.fromarray(np.round(255 * brightness).astype(np.uint8)).convert("RGB")
