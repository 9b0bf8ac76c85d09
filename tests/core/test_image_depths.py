"""Grey images whose file has more bits than their values, and modes that only look transparent."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from metagame.images import read_image


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_values_of_fewer_bits_than_the_file_has_keep_their_shades(depth, caplog):
    shades = np.linspace(0, (1 << depth) - 1, 64).reshape(8, 8).astype(np.uint16)
    shown = np.asarray(read_image(encoded(Image.fromarray(shades)), "x"))[..., 0]
    assert np.array_equal(shown, shades >> (depth - 8))
    assert ("-bit values" in caplog.text) == (depth < 16)


def test_a_lab_image_is_not_transparent(caplog):
    caplog.set_level("INFO")
    lab = Image.fromarray(np.full((4, 4, 3), 128, np.uint8), "LAB")
    read_image(encoded(lab, "TIFF"), "lab.tif")
    assert "transparent" not in caplog.text
