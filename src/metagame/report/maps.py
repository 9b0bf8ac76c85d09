"""Maps of image patches: heat maps on the picture, and lines from pieces of a text to the patches they point to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from metagame.contracts import Explanation
from metagame.errors import UserError

# Okabe and Ito's colours without black and yellow, which vanish on pictures; then Tol's muted ones and grey: twelve, as
# many as an exact metagame has players.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00",
    "#332288", "#999933", "#882255", "#DDCC77", "#666666", "#AA4499",
)  # fmt: skip
DIVERGING = "PuOr_r"
TOP = 10
SMALL = 128
"""Pixels of the longer side of a picture that is drawn pixel by pixel."""
FADING = 0.15
"""How much white is mixed into a picture below lines."""


def on_grid(
    explanation: Explanation, values: Float[np.ndarray, " t *n"] | None
) -> Float[np.ndarray, "maps rows columns *n"]:
    """What an explanation says of patches, such as its attribution, by map, row and column.

    Raises:
        UserError: it does not say it, or not of patches.
    """
    if values is None or explanation.grid is None:
        raise UserError("the figure shows maps of patches: choose a method that attributes patches of an image.")
    return values.reshape(-1, *explanation.grid, *values.shape[1:])


def word_colors(pieces: Sequence[str]) -> list[str]:
    """A colour for each piece of a text, by place; after twelve they begin anew."""
    return [COLORS[place % len(COLORS)] for place in range(len(pieces))]


@dataclass(frozen=True)
class EdgeScale:
    """What the width of a line means, for all panels of a figure.

    Attributes:
        largest: the size of a value that is drawn four points wide, as are larger ones.
    """

    largest: float

    def share(self, value: float) -> float:
        """The size of a value, as a share of the largest, at most 1."""
        return min(abs(value) / self.largest, 1.0)

    def width(self, value: float) -> float:
        return 0.3 + 3.7 * self.share(value)

    def add_legend(self, figure: Figure | SubFigure, title: str) -> None:
        """Three widths with their values, and what a dashed line is."""
        lines = [
            Line2D([], [], color="0.3", linewidth=self.width(share * self.largest), label=f"{share * self.largest:.2g}")
            for share in (0.25, 0.5, 1.0)
        ]
        lines.append(Line2D([], [], color="0.3", linewidth=1.5, linestyle=(0, (2, 1.5)), label="negative"))
        figure.legend(handles=lines, title=title, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def edge_scale(maps: Iterable[Float[np.ndarray, " ..."]]) -> EdgeScale:
    """One scale for several panels."""
    return EdgeScale(max((float(np.abs(each).max()) for each in maps), default=0.0) or 1.0)


def draw_edges(
    axes: Axes,
    image: Image.Image,
    pieces: Sequence[str],
    maps: Float[np.ndarray, "rows columns m"],
    scale: EdgeScale,
    top: int = TOP,
) -> None:
    """The picture, the pieces below it, and lines from each to its ``top`` patches of largest size, which are tinted.

    Small pictures are drawn pixel by pixel.
    """
    n_rows, n_columns, n_pieces = maps.shape
    width, height = image.width / n_columns, image.height / n_rows
    lowest = image.height * 1.16
    axes.imshow(_faded(image), interpolation=interpolation(image))
    places = (np.arange(len(pieces)) + 0.5) * image.width / len(pieces)
    flat = maps.reshape(-1, n_pieces).T
    for piece, color, place, values in zip(pieces, word_colors(pieces), places, flat, strict=True):
        strongest = np.argsort(-np.abs(values), kind="stable")[:top]
        for index in strongest[values[strongest] != 0]:
            row, column = divmod(int(index), n_columns)
            share = scale.share(values[index])
            style = "-" if values[index] > 0 else (0, (2, 1.5))
            tint = to_rgba(color, 0.55 * share if values[index] > 0 else 0)
            corner = (column * width - 0.5, row * height - 0.5)
            axes.add_patch(
                Rectangle(corner, width, height, facecolor=tint, edgecolor=color, linewidth=0.8, linestyle=style)
            )
            ends = ([place, (column + 0.5) * width - 0.5], [lowest, (row + 0.5) * height - 0.5])
            axes.plot(*ends, color=color, linewidth=scale.width(values[index]), linestyle=style, alpha=0.75)
        box = {"boxstyle": "round,pad=0.25", "facecolor": color, "edgecolor": "none"}
        size = 9 if len(pieces) <= 6 else 7
        axes.text(place, lowest, piece, color="white", weight="bold", ha="center", va="center", fontsize=size, bbox=box)
    axes.set_xlim(-0.5, image.width - 0.5)
    axes.set_ylim(lowest + image.height * 0.07, -0.5)
    _bare(axes)


def heat_scale(maps: Iterable[Float[np.ndarray, " ..."]], quantile: float = 0.99) -> ScalarMappable:
    """One diverging colour scale, zero in its middle, for several panels; clips sizes beyond their ``quantile``."""
    sizes = np.abs(np.concatenate([np.zeros(1), *map(np.ravel, maps)]))
    largest = float(np.quantile(sizes, quantile) or sizes.max() or 1.0)
    return ScalarMappable(Normalize(-largest, largest), DIVERGING)


def draw_map(axes: Axes, image: Image.Image, values: Float[np.ndarray, "rows columns"], scale: ScalarMappable) -> None:
    """The picture in pale grey, tinted by the map; it stays grey where the map is zero."""
    grey = np.asarray(image.convert("L"))[..., None] / 255
    tint = Image.fromarray(scale.to_rgba(values, bytes=True)[..., :3])
    tint = np.asarray(tint.resize(image.size, Image.Resampling.NEAREST)) / 255
    axes.imshow(tint * (0.72 + 0.28 * grey), interpolation=interpolation(image))
    _bare(axes)


def interpolation(image: Image.Image) -> Literal["nearest", "auto"]:
    """How a picture is enlarged: pixels of small ones stay squares, so that nobody takes blur for content."""
    return "nearest" if max(image.size) <= SMALL else "auto"


def _faded(image: Image.Image) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, "white"), FADING)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
