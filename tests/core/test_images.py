from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from metagame.benchmarks.digits import Digits
from metagame.errors import UserError
from metagame.images import composite, read_image, square, to_rgb

RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)


@pytest.fixture(autouse=True)
def all_is_logged(caplog):
    caplog.set_level("INFO")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width, height, bands=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(pixels if bands > 1 else pixels[..., 0])


def pixel(image, x=0, y=0):
    return image.getpixel((x, y))


def test_a_file_and_its_bytes_are_the_same_image_and_rgb_is_not_spoken_of(tmp_path, caplog):
    image = noise(6, 4)
    (tmp_path / "x.png").write_bytes(encoded(image))
    for source in (tmp_path / "x.png", encoded(image)):
        assert np.array_equal(np.asarray(read_image(source, "x")), np.asarray(image))
    assert caplog.text == ""


def test_a_grey_image_gets_three_equal_channels_and_that_is_said(caplog):
    image = noise(6, 4, bands=1)
    colour = read_image(encoded(image), "grey.png")
    assert np.array_equal(np.asarray(colour), np.stack([np.asarray(image)] * 3, axis=-1))
    assert "grey.png" in caplog.text


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "La", "RGBA", "RGBa", "I;16"])
def test_images_of_every_mode_become_rgb(mode):
    image = Image.new("L", (4, 4), 255)
    image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, "L"))  # which Pillow makes them of
    image = Image.fromarray(np.full((4, 4), 65535, np.uint16)) if mode == "I;16" else image.convert(mode)
    converted = to_rgb(image, "x")
    assert converted.mode == "RGB"
    assert pixel(converted) == WHITE


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_values_of_fewer_bits_than_the_file_has_keep_their_shades(depth, caplog):
    shades = np.linspace(0, (1 << depth) - 1, 64).reshape(8, 8).astype(np.uint16)
    shown = np.asarray(read_image(encoded(Image.fromarray(shades)), "x"))[..., 0]
    assert np.array_equal(shown, shades >> (depth - 8))
    assert ("-bit values" in caplog.text) == (depth < 16)


def test_a_transparent_image_is_shown_on_white_and_that_is_said(caplog):
    image = Image.new("RGBA", (3, 3), (*RED, 255))
    image.putpixel((0, 0), (*BLUE, 0))
    image.putpixel((1, 0), (*BLUE, 128))
    shown = read_image(encoded(image), "clear.png")
    assert (pixel(shown, 0), pixel(shown, 2)) == (WHITE, RED)
    assert pixel(shown, 1) == pytest.approx((127, 127, 255), abs=1)
    assert "clear.png is transparent" in caplog.text


def test_a_lab_image_is_not_transparent(caplog):
    read_image(encoded(Image.fromarray(np.full((4, 4, 3), 128, np.uint8), "LAB"), "TIFF"), "lab.tif")
    assert "transparent" not in caplog.text


@pytest.mark.parametrize(
    ("opaque", "clear", "shown_opaque"),
    [(RED, BLUE, RED), (90, 7, (90, 90, 90)), (30001, 30000, (117, 117, 117))],  # both the same with 8 bits
    ids=["colours", "grey", "grey of 16 bits"],
)
def test_the_transparent_colour_of_a_file_is_shown_as_white(opaque, clear, shown_opaque):
    image = Image.fromarray(np.array([[opaque, clear]] * 2, np.uint16 if np.max(opaque) > 255 else np.uint8))
    shown = read_image(encoded(image, transparency=clear), "x")
    assert (pixel(shown, 0), pixel(shown, 1)) == (shown_opaque, WHITE)


@pytest.mark.parametrize(("options", "second"), [({}, BLUE), ({"transparency": 1}, WHITE)])
def test_a_palette_image_gets_its_colours_and_white_where_an_entry_is_transparent(options, second):
    image = Image.new("P", (2, 2))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    shown = read_image(encoded(image, **options), "x")
    assert (pixel(shown, 0), pixel(shown, 1)) == (RED, second)


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


def truncated(kind, share):
    content = encoded(noise(32, 32), kind)
    return content[: int(share * len(content))]


UNUSABLE = {
    **{f"is {x} x {y} pixels": encoded(Image.new("RGB", (x, y))) for x, y in ((1, 1), (1, 7), (7, 1))},
    "has mode F, whose range is not known": encoded(Image.new("F", (4, 4)), "TIFF"),
}
UNDECODED = {
    **{repr(start): start for start in (b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"P6\n3")},
    **{f"{kind} at 0.9": truncated(kind, 0.9) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM")},
    **{f"{kind} at 0.5": truncated(kind, 0.5) for kind in ("PNG", "JPEG", "GIF", "WEBP")},
}


@pytest.mark.parametrize("message", UNUSABLE)
def test_an_image_that_cannot_be_used_is_refused_in_one_line(message):
    with pytest.raises(UserError, match=rf"^image x\.png {message}: .*\.$"):
        read_image(UNUSABLE[message], "x.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNDECODED)
def test_a_file_that_is_no_whole_image_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=r"^image x\.png cannot be decoded: .*\.$"):
        read_image(UNDECODED[name], "x.png")


def test_an_absent_file_a_folder_and_what_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"x\.png does not exist"):
        read_image(tmp_path / "x.png", "x.png")
    with pytest.raises(UserError, match=r"x\.png cannot be decoded"):
        read_image(tmp_path, "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"x\.png cannot be decoded"):
        read_image(encoded(noise(8, 8)), "x.png")


@given(st.integers(2, 200), st.integers(2, 200), st.integers(1, 40))
def test_a_square_has_the_side_that_was_asked_for(width, height, side):
    assert square(noise(width, height), side).size == (side, side)


@pytest.mark.parametrize(("width", "height"), [(20, 10), (21, 10), (10, 21), (13, 9), (15, 15)])
def test_a_square_is_the_centre_of_the_image(width, height):
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = np.asarray(noise(width, height))
    assert np.array_equal(np.asarray(square(noise(width, height), side)), pixels[top : top + side, left : left + side])


@pytest.mark.parametrize(("width", "height"), [(20, 10), (31, 17), (17, 31), (11, 200)])
def test_the_short_side_is_resized_to_the_side_and_the_shape_is_kept(width, height):
    side = 8
    scale = side / min(width, height)
    resized = noise(width, height).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    expected = np.asarray(resized)[top : top + side, left : left + side]
    assert np.array_equal(np.asarray(square(noise(width, height), side)), expected)


@pytest.mark.parametrize("n_images", [2, 4])
def test_a_grid_is_filled_in_reading_order_and_empty_cells_are_black(n_images):
    colours = [RED, GREEN, BLUE, YELLOW][:n_images]
    grid = composite([Image.new("RGB", (9, 5), colour) for colour in colours], 6)
    assert grid.size == (12, 12)
    cells = [grid.crop((x, y, x + 6, y + 6)).getcolors() for y in (0, 6) for x in (0, 6)]
    assert cells == [[(36, colour)] for colour in [*colours, (0, 0, 0), (0, 0, 0)][:4]]


def test_held_out_digits_and_training_digits_are_the_whole_set_and_have_no_copy_in_common():
    from sklearn.datasets import load_digits

    held_out, training, all_digits = Digits(), Digits(held_out=False), load_digits()
    for label in range(10):
        assert held_out.count(label) == 50
        parts = [[part.image(label, k) for k in range(part.count(label))] for part in (training, held_out)]
        joined = np.stack([np.asarray(image)[..., 0] for part in parts for image in part])
        expected = all_digits.images[all_digits.target == label] * 255 / 16
        assert joined.shape == expected.shape
        assert np.abs(joined - expected).max() <= 0.5
        seen, unseen = ({image.tobytes() for image in part} for part in parts)
        assert seen.isdisjoint(unseen)
        assert {(image.mode, image.size) for part in parts for image in part} == {("RGB", (8, 8))}


@pytest.mark.parametrize(
    ("label", "k", "message"),
    [
        (-1, 0, "class -1 is not a digit: give labels 0 to 9"),
        (10, 0, "class 10 is not a digit"),
        (4, -1, "digit 4 has 50 images, so image -1 does not exist"),
        (4, 50, "digit 4 has 50 images, so image 50 does not exist"),
    ],
)
def test_a_digit_that_does_not_exist_is_refused(label, k, message):
    with pytest.raises(UserError, match=message):
        Digits().image(label, k)
