"""Pictures: reading them whatever their mode, squares, and 2x2 grids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import BytesIO
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metagame.errors import UserError

log = logging.getLogger(__name__)
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
DEPTHS = (8, 10, 12, 14)
"""Bits that a file of 16 may hold in truth."""


def read_image(source: Path | bytes, name: str) -> Image.Image:
    """An image from a file or its bytes, in RGB.

    Raises:
        UserError: there is no such file, it cannot be decoded, or the image has a side of one pixel.
    """
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source)) as image:
            image.load()
            return to_rgb(image, name)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"image {name} does not exist: give the path of an image file.") from error
    except Exception as error:  # a broken file raises whatever Pillow's decoder of that format meets
        raise UserError(f"image {name} cannot be decoded: replace the file.") from error


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The image in RGB: a grey one gets three equal channels, a transparent one a white ground; both are logged.

    Raises:
        UserError: it has a side of one pixel, or numbers whose range is not known.
    """
    if min(image.size) < 2:
        raise UserError(
            f"image {name} is {image.width} x {image.height} pixels: give an image whose sides have at least two"
            " pixels."
        )
    if image.mode.startswith("I;16"):
        image = _of_8_bits(image, name)
    if image.mode in ("I", "F"):
        raise UserError(
            f"image {name} has mode {image.mode}, whose range is not known: save it with 8 bits per channel."
        )
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        log.info("image %s is transparent: the model sees it on white.", name)
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
        flat.info.update(_kept(image))
        return flat
    if image.mode == "RGB":
        return image
    log.info("image %s has mode %s: the model sees it as RGB.", name, image.mode)
    return image.convert("RGB")


def _of_8_bits(image: Image.Image, name: str) -> Image.Image:
    """A grey image of 16 bits, of which cameras and scanners may fill fewer: as many as the largest value needs."""
    values = np.asarray(image)
    depth = next((bits for bits in DEPTHS if values.max() < 1 << bits), 16)
    if depth < 16:
        log.warning("image %s has %d-bit values stored in 16 bits: they are read as such.", name, depth)
    shades = (values >> (depth - 8)).astype(np.uint8)
    grey = Image.fromarray(shades)
    if "transparency" in image.info:  # one shade, which several values may share with 8 bits
        clear = values == image.info["transparency"]
        grey.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    grey.info.update(_kept(image))
    return grey


def _kept(image: Image.Image) -> dict[Any, Any]:
    """What is known of an image beside its pixels, such as how its camera was held; without its transparent colour."""
    return {key: value for key, value in image.info.items() if key != "transparency"}


def square(image: Image.Image, side: int) -> Image.Image:
    """The image, its short side resized to ``side`` (bicubic), its centre cropped to a square."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def bilinear_square(image: Image.Image, side: int) -> Image.Image:
    """The same as torchvision's Resize and CenterCrop make it: bilinear, and with their rounding."""
    short = min(image.size)
    width, height = (side * length // short for length in image.size)
    left, top = (round((length - side) / 2) for length in (width, height))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + side, top + side))


def through_jpeg(image: Image.Image, quality: int = 75) -> Image.Image:
    """The RGB image that is read again where this one was saved as JPEG."""
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def composite(images: Sequence[Image.Image], side: int) -> Image.Image:
    """Up to four RGB images as squares of ``side`` pixels in a 2x2 grid, in reading order; empty cells are black."""
    canvas = Image.new("RGB", (2 * side, 2 * side))
    for cell, image in enumerate(images):
        canvas.paste(square(image, side), (cell % 2 * side, cell // 2 * side))
    return canvas


def grid_side(n_patches: int) -> int:
    """Patches along one side of a square grid.

    Raises:
        UserError: they make no square.
    """
    side = isqrt(n_patches)
    if side * side != n_patches:
        raise UserError(f"{n_patches} patches do not form a square grid.")
    return side
