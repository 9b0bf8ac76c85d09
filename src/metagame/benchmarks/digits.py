"""The handwritten digits that scikit-learn carries: images by class for the tiny scale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from metagame.errors import UserError

HELD_OUT = 50
"""Digits of each class that are for evaluation: the last ones; the others are for training."""


class Digits:
    """1,797 digits of 8x8 pixels, white on black; the class of a digit is its value.

    Args:
        held_out: the last 50 of each class, which no model here was trained on; False: the others.
    """

    def __init__(self, held_out: bool = True) -> None:
        self.held_out = held_out

    @cached_property
    def _pixels(self) -> list[np.ndarray]:
        """For each class its images, uint8 ``(count, 8, 8)``."""
        from sklearn.datasets import load_digits  # here, since importing it takes seconds

        data = load_digits()
        pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
        part = slice(-HELD_OUT, None) if self.held_out else slice(None, -HELD_OUT)
        return [pixels[data.target == digit][part] for digit in range(10)]

    def image(self, label: int, k: int) -> Image.Image:
        """Image ``k``, counted from 0, of digit ``label``.

        Raises:
            UserError: there is no such digit or image.
        """
        if label not in range(10):
            raise UserError(f"class {label} is not a digit: give labels 0 to 9 in benchmark.classes.")
        images = self._pixels[label]
        if not 0 <= k < len(images):
            raise UserError(
                f"digit {label} has {len(images)} images, so image {k} does not exist: give a number from 0 to"
                f" {len(images) - 1}."
            )
        return Image.fromarray(images[k]).convert("RGB")

    def files(self, label: int, k: int) -> Sequence[Path]:
        """None: the digits come with scikit-learn."""
        return ()

    def count(self, label: int) -> int:
        """How many images there are of digit ``label``."""
        return len(self._pixels[label])
