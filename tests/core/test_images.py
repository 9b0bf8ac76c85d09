from __future__ import annotations

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from metagame.benchmarks.digits import HELD_OUT, Digits
from metagame.errors import UserError
from metagame.images import composite, read_image, square, to_rgb

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width, height, bands=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(pixels if bands > 1 else pixels[..., 0])


def pixel(image, x=0, y=0):
    return image.getpixel((x, y))


def refused(source, name="x.png"):
    """The message of the refusal, which is one line."""
    with pytest.raises(UserError) as error:
        read_image(source, name)
    message = str(error.value)
    assert name in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_a_file_and_its_bytes_are_the_same_image(tmp_path):
    image = noise(6, 4)
    (tmp_path / "x.png").write_bytes(encoded(image))
    from_file, from_bytes = read_image(tmp_path / "x.png", "x"), read_image(encoded(image), "x")
    assert np.array_equal(np.asarray(from_file), np.asarray(image))
    assert np.array_equal(np.asarray(from_bytes), np.asarray(image))


def test_a_grey_image_gets_three_equal_channels_and_that_is_said(caplog):
    image = noise(6, 4, bands=1)
    with caplog.at_level("INFO"):
        colour = read_image(encoded(image), "grey.png")
    assert colour.mode == "RGB"
    assert all(np.array_equal(np.asarray(colour)[..., band], np.asarray(image)) for band in range(3))
    assert "grey.png" in caplog.text


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "La", "RGBA", "RGBa", "I;16"])
def test_images_of_every_mode_become_rgb(mode):
    image = Image.new("L", (4, 4), 255)
    image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, "L"))  # which Pillow makes them of
    image = Image.fromarray(np.full((4, 4), 65535, np.uint16)) if mode == "I;16" else image.convert(mode)
    converted = to_rgb(image, "x")
    assert converted.mode == "RGB"
    assert pixel(converted) == (255, 255, 255)


def test_a_grey_image_of_16_bits_keeps_its_shades():
    shades = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    converted = np.asarray(read_image(encoded(Image.fromarray(shades)), "x"))[..., 0]
    assert np.abs(converted - shades / 257).max() <= 1


def test_a_palette_image_gets_its_colours():
    image = Image.new("P", (4, 4))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    converted = read_image(encoded(image), "x")
    assert (pixel(converted), pixel(converted, 1)) == (RED, BLUE)


def test_a_transparent_image_is_shown_on_white_and_that_is_said(caplog):
    image = Image.new("RGBA", (3, 3), (*RED, 255))
    image.putpixel((0, 0), (*BLUE, 0))
    image.putpixel((1, 0), (*BLUE, 128))
    with caplog.at_level("INFO"):
        shown = read_image(encoded(image), "clear.png")
    assert pixel(shown, 0) == (255, 255, 255)
    assert pixel(shown, 1) == pytest.approx((127, 127, 255), abs=1)
    assert pixel(shown, 2) == RED
    assert "clear.png is transparent" in caplog.text


@pytest.mark.parametrize(
    ("opaque", "clear", "shown_opaque"),
    [
        (RED, BLUE, RED),
        (90, 7, (90, 90, 90)),
        (30001, 30000, (117, 117, 117)),  # both the same with 8 bits
    ],
    ids=["colours", "grey", "grey of 16 bits"],
)
def test_the_transparent_colour_of_a_file_is_shown_as_white(opaque, clear, shown_opaque):
    image = Image.fromarray(np.array([[opaque, clear]] * 2, np.uint16 if np.max(opaque) > 255 else np.uint8))
    shown = read_image(encoded(image, transparency=clear), "x")
    assert (pixel(shown, 0), pixel(shown, 1)) == (shown_opaque, (255, 255, 255))


def test_a_palette_image_with_a_transparent_entry_is_shown_on_white():
    image = Image.new("P", (2, 2))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    shown = read_image(encoded(image, transparency=1), "x")
    assert (pixel(shown, 0), pixel(shown, 1)) == (RED, (255, 255, 255))


TURNED = 6
"""Exif's number of a camera that was held upright: the image is turned clockwise to be seen."""


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_how_the_camera_was_held_is_not_forgotten(mode):
    image = noise(6, 4) if mode != "I;16" else Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) << 11)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = TURNED
    content = encoded(image if mode == "I;16" else image.convert(mode), exif=exif)
    of_file = ImageOps.exif_transpose(read_image(content, "x"))
    of_image = to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(content))), "x")
    assert of_file.size == (4, 6)
    assert np.array_equal(np.asarray(of_file), np.asarray(of_image))


def test_an_rgb_image_is_not_spoken_of(caplog):
    with caplog.at_level("INFO"):
        read_image(encoded(noise(4, 4)), "x")
    assert caplog.text == ""


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_an_image_with_a_side_of_one_pixel_is_refused(size):
    message = refused(encoded(Image.new("RGB", size)))
    assert f"{size[0]} x {size[1]}" in message


def test_an_absent_file_is_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "x.png")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"P6\n3"])
def test_a_file_that_is_no_image_is_refused(content):
    assert "cannot be decoded" in refused(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore")
def test_a_truncated_file_is_refused(kind, share):
    content = encoded(noise(32, 32), kind)
    assert "cannot be decoded" in refused(content[: int(share * len(content))])


def test_a_folder_in_the_place_of_an_image_is_refused(tmp_path):
    assert "cannot be decoded" in refused(tmp_path)


def test_an_image_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert "cannot be decoded" in refused(encoded(noise(8, 8)))


@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 40))
def test_a_square_has_the_side_that_was_asked_for(width, height, side):
    assert square(noise(width, height), side).size == (side, side)


@pytest.mark.parametrize("size", [(2, 200), (200, 2), (3, 101), (333, 7)])
def test_extreme_shapes_become_squares(size):
    assert square(noise(*size), 32).size == (32, 32)


@pytest.mark.parametrize("side", [8, 9, 15])
def test_a_square_of_its_own_side_is_left_as_it_is(side):
    image = noise(side, side)
    assert np.array_equal(np.asarray(square(image, side)), np.asarray(image))


@pytest.mark.parametrize(("width", "height"), [(20, 10), (21, 10), (10, 21), (13, 9)])
def test_a_square_is_the_centre_of_the_image(width, height):
    side = min(width, height)
    image = noise(width, height)
    cropped = np.asarray(square(image, side))
    left, top = (width - side) // 2, (height - side) // 2
    assert np.array_equal(cropped, np.asarray(image)[top : top + side, left : left + side])


@pytest.mark.parametrize(("width", "height"), [(20, 10), (31, 17), (17, 31), (11, 200)])
def test_the_short_side_is_resized_to_the_side_and_the_shape_is_kept(width, height):
    side = 8
    scale = side / min(width, height)
    resized = noise(width, height).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    expected = np.asarray(resized)[top : top + side, left : left + side]
    assert np.array_equal(np.asarray(square(noise(width, height), side)), expected)


@pytest.mark.parametrize("vertical", [False, True])
def test_what_lies_in_the_middle_stays_in_the_middle(vertical):
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 50:70] = 255
    image = Image.fromarray(pixels.transpose(1, 0, 2) if vertical else pixels)
    grey = np.asarray(square(image, 20))[..., 0].astype(int)
    assert np.abs(grey - grey[::-1, ::-1]).max() <= 1
    assert grey[10, 10] > 250
    assert grey[0, 0] < 5


def test_a_grid_is_filled_in_reading_order():
    grid = composite([Image.new("RGB", (9, 5), colour) for colour in (RED, GREEN, BLUE, YELLOW)], 6)
    assert grid.size == (12, 12)
    for corner, colour in (((0, 0), RED), ((6, 0), GREEN), ((0, 6), BLUE), ((6, 6), YELLOW)):
        cell = grid.crop((*corner, corner[0] + 6, corner[1] + 6))
        assert cell.getcolors() == [(36, colour)]


def test_empty_cells_of_a_grid_are_black():
    grid = composite([Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), GREEN)], 4)
    assert grid.crop((0, 4, 8, 8)).getcolors() == [(32, (0, 0, 0))]


def test_there_are_ten_classes_of_digits_with_50_held_out_each():
    assert [Digits().count(label) for label in range(10)] == [HELD_OUT] * 10
    assert HELD_OUT == 50


def test_held_out_digits_and_training_digits_are_the_whole_set_and_disjoint():
    from sklearn.datasets import load_digits

    held_out, training, all_digits = Digits(), Digits(held_out=False), load_digits()
    for label in range(10):
        counts = [part.count(label) for part in (training, held_out)]
        joined = [part.image(label, k) for part, n in zip((training, held_out), counts, strict=True) for k in range(n)]
        pixels = np.stack([np.asarray(image)[..., 0] for image in joined])
        expected = all_digits.images[all_digits.target == label] * 255 / 16
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).max() <= 0.5


def test_no_held_out_digit_is_a_copy_of_a_training_digit():
    held_out, training = Digits(), Digits(held_out=False)
    for label in range(10):
        seen = {training.image(label, k).tobytes() for k in range(training.count(label))}
        assert not any(held_out.image(label, k).tobytes() in seen for k in range(held_out.count(label)))


def test_a_digit_is_a_small_rgb_image():
    image = Digits().image(3, 0)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert np.asarray(image).max() == 255


@pytest.mark.parametrize("label", [-1, 10, 1000])
def test_a_label_that_is_no_digit_is_refused(label):
    with pytest.raises(UserError, match=re.escape(f"class {label} is not a digit: give labels 0 to 9")):
        Digits().image(label, 0)


@pytest.mark.parametrize("k", [-1, 50, 1000])
def test_a_digit_image_out_of_range_is_refused(k):
    with pytest.raises(UserError, match=f"digit 4 has 50 images, so image {k} does not exist"):
        Digits().image(4, k)
