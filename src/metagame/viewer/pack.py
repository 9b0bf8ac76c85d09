"""Arrays and pictures as text that a page can hold."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from metagame.errors import UserError

LARGEST_EXACT = 4096
"""Arrays with more values may be rounded to 16 bits, which the page says."""
LARGEST_SIDE = 448
"""Pixels of a sample's picture."""
LARGEST_MASK = 224
"""Pixels of a mask's side."""
UNLABELLED, NOT_LABELLED = -2, 255
"""In a mask the pixels that nobody labelled, and how their picture marks them."""
LARGEST_WEBP = 16383
"""Pixels of a side that the format can hold."""


def pack(values: np.ndarray, *, exact: bool = False) -> dict[str, Any]:
    """An array as base64, little-endian: float32, or int16 times ``scale`` where it is large and need not be exact.

    Raises:
        UserError: it holds NaN or inf, or no numbers.
    """
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise UserError("an array of the sample contains NaN or inf: remove its record and run it again.")
    if exact or values.size <= LARGEST_EXACT:
        kind, scale, stored = "float32", 1.0, values.astype("<f4")
    else:
        scale = float(np.abs(values).max()) / 32767 or 1.0
        kind, stored = "int16", np.rint(values / scale).astype("<i2")
    data = base64.b64encode(np.ascontiguousarray(stored).tobytes()).decode()
    return {"shape": list(values.shape), "type": kind, "scale": scale, "data": data}


def square_picture(image: Image.Image) -> Image.Image:
    """The picture as the maps lie on it: a square, of 448 pixels at most."""
    side = min(LARGEST_SIDE, max(image.size))
    return image if image.size == (side, side) else image.resize((side, side))


def picture_uri(image: Image.Image) -> str:
    """A picture as a data URI, small ones without loss."""
    return _uri(image, "PNG") if max(image.size) <= 128 else _uri(image, "WEBP", quality=88)


def mask_uri(mask: Int[np.ndarray, "h w"]) -> str:
    """A mask of :class:`metagame.contracts.Annotation` as grey PNG: 0 is nothing, 255 not labelled, k the k-th name."""
    levels = np.where(mask == UNLABELLED, NOT_LABELLED, np.clip(mask + 1, 0, NOT_LABELLED - 1)).astype(np.uint8)
    image = Image.fromarray(levels)
    side = min(LARGEST_MASK, max(image.size))
    return _uri(image if max(image.size) <= side else image.resize((side, side), Image.Resampling.NEAREST), "PNG")


def figure_uri(content: bytes) -> str:
    """A figure's PNG as a data URI of a fraction of its bytes.

    Raises:
        UserError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            picture = image.convert("RGB")
            picture.thumbnail((LARGEST_WEBP, LARGEST_WEBP))
            return _uri(picture, "WEBP", quality=90)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError("its figure.png cannot be decoded: run the experiment again.") from error


def _uri(image: Image.Image, kind: str, **settings: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
