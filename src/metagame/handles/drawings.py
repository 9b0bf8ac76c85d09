"""Drawings of a result: its matrix, its strongest pairs as arrows, and maps of an image's patches."""

from __future__ import annotations

from math import ceil
from numbers import Integral, Real
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from metagame.errors import UserError
from metagame.extras import needed_by
from metagame.handles.pairs import map_names, player_names, target_names

with needed_by("plot()"):
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.ticker import MaxNLocator
    from PIL import Image

    from metagame.report.maps import DIVERGING, EdgeScale, draw_edges, draw_map

if TYPE_CHECKING:
    from metagame.meta import MetaAttributions

MOST_NAMED, MOST_NUMBERED, MOST_MAPS, MAPS_IN_ROW = 60, 10, 24, 6
PIXELS = 24
"""Of a patch, where there is no picture."""


def draw(phi: MetaAttributions, axes: Axes | None, kind: str | None, top: int | None, limit: float | None) -> Axes:
    """See :meth:`metagame.meta.MetaAttributions.plot`."""
    kinds = {"matrix": _draw_matrix, "arrows": _draw_arrows, "maps": _draw_maps}
    if kind is not None and kind not in kinds:
        raise UserError(f"kind={kind!r} is unknown: choose one of {', '.join(kinds)}.")
    if phi.order != 1 or phi.values.dtype == object:
        what = "formulas" if phi.order == 1 else f"values of order {phi.order}"
        raise UserError(f"plot() draws numbers of order 1, but these are {what}: print them, or use top_pairs().")
    if top is not None and (not isinstance(top, Integral) or top < 1):
        raise UserError(f"top={top!r} must be a positive integer.")
    if limit is not None and not (isinstance(limit, Real) and 0 < limit < np.inf):
        raise UserError(f"limit={limit!r} must be a positive number, or None for the largest value.")
    chosen = kind or ("matrix" if phi.grid is None else "maps")
    if chosen == "maps" and phi.grid is None:
        raise UserError("kind='maps' needs targets that are patches of an image: choose matrix or arrows.")
    if top is not None and chosen != "arrows":
        raise UserError(f"top={top} would change nothing in kind={chosen!r}: leave it out, or choose kind='arrows'.")
    if axes is None:
        axes = pyplot.subplots(layout="constrained")[1]
    kinds[chosen](phi, axes, top or 10, float(np.abs(phi.values).max()) or 1.0 if limit is None else limit)
    output = f"output “{shorten(phi.output, 60)}”" if phi.output else ""
    axes.set_title(", ".join(filter(None, [phi.method or "meta-attributions", output])))
    return axes


def _scale(limit: float) -> ScalarMappable:
    return ScalarMappable(Normalize(-limit, limit), DIVERGING)


def _draw_matrix(phi: MetaAttributions, axes: Axes, top: int, limit: float) -> None:
    image = axes.imshow(phi.values, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    players, targets = player_names(phi), target_names(phi)
    if len(players) <= MOST_NAMED:
        axes.set_xticks(range(len(players)), players, rotation=60, ha="right", rotation_mode="anchor")
    if len(targets) <= MOST_NAMED:
        axes.set_yticks(range(len(targets)), targets)
    if max(phi.values.shape) <= MOST_NUMBERED:
        for (row, column), value in np.ndenumerate(phi.values):
            ink = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(column, row, f"{value:.2g}".replace("-", "−"), ha="center", va="center", fontsize=7, color=ink)
    axes.set_xlabel("player j")
    axes.set_ylabel("target i")
    label = "influence of j on the attribution of i" if phi.directed else "value of the pair i, j"
    axes.figure.colorbar(image, ax=axes, label=label)


def _draw_arrows(phi: MetaAttributions, axes: Axes, top: int, limit: float) -> None:
    if phi.grid is not None:
        _draw_edges(phi, axes, top, limit)
        return
    players, targets = player_names(phi), target_names(phi)
    below = 0.0 if phi.endogenous else -1.0
    at_player, at_target = (
        {name: (float(place), height) for name, place in zip(names, _places(len(names)), strict=True)}
        for names, height in ((players, 0.0), (targets, below))
    )
    shown, colors = phi.top_pairs(top), _scale(1.0)
    for pair in shown:
        share = min(abs(pair.value) / limit, 1.0)
        arrow = FancyArrowPatch(
            at_player[pair.players[0]], at_target[pair.target], arrowstyle="-|>" if phi.directed else "-",
            connectionstyle="arc3,rad=-0.5" if phi.endogenous else "arc3", color=colors.to_rgba(np.sign(pair.value)),
            linewidth=0.5 + 3.5 * share, mutation_scale=8 + 6 * share, shrinkA=12, shrinkB=12,
        )  # fmt: skip
        axes.add_patch(arrow)
    for name, (x, y) in [*at_player.items(), *({} if phi.endogenous else at_target).items()]:
        axes.text(x, y, name, ha="center", va="center", fontsize=9)
    height = 0.3 if phi.endogenous else 0.0
    axes.set_xlim(-0.06, 1.06)
    axes.set_ylim(below - height - 0.1, height + 0.1)
    axes.set_axis_off()
    note = f"the {len(shown)} strongest; the thickest stand for {limit:.2g}; orange: positive, purple: negative"
    axes.annotate(note, (0.5, 0), xycoords="axes fraction", ha="center", va="top", fontsize=8, color="0.3")


def _places(n: int) -> np.ndarray:
    return np.linspace(0, 1, n) if n > 1 else np.array([0.5])


def _draw_edges(phi: MetaAttributions, axes: Axes, top: int, limit: float) -> None:
    """Lines from each player to its patches of largest size."""
    maps = _maps(phi)
    if len(maps) != 1:
        raise UserError(f"kind='arrows' draws one map, but there are {len(maps)}: choose kind='maps'.")
    draw_edges(axes, _picture(phi), player_names(phi), maps[0], EdgeScale(limit), top)


def _draw_maps(phi: MetaAttributions, axes: Axes, top: int, limit: float) -> None:
    """A panel for each map and player, inside of the Axes."""
    maps = _maps(phi)
    names = map_names(phi) if len(maps) > 1 else [""]
    panels = [
        (f"{player} → {name}" if name else player, each[..., column])
        for name, each in zip(names, maps, strict=True)
        for column, player in enumerate(player_names(phi))
    ]
    left_out = len(panels) - MOST_MAPS
    panels = panels[:MOST_MAPS]
    columns = min(MAPS_IN_ROW, len(panels)) if len(maps) == 1 else min(MOST_MAPS, phi.values.shape[1])
    rows = ceil(len(panels) / columns)
    axes.set_axis_off()
    picture = _picture(phi)
    for place, (title, values) in enumerate(panels):
        row, column = divmod(place, columns)
        inset = axes.inset_axes((column / columns, 1 - (row + 1) / rows, 0.94 / columns, 0.84 / rows))
        draw_map(inset, picture, values, _scale(limit))
        inset.set_title(title, fontsize=8, pad=2)
    label = "influence on the attribution of the patch" + (f"; {left_out} more maps not shown" if left_out > 0 else "")
    bar = axes.figure.colorbar(_scale(limit), ax=axes, orientation="horizontal", shrink=0.6, label=label)
    bar.locator = MaxNLocator(4, symmetric=True)


def _maps(phi: MetaAttributions) -> np.ndarray:
    """By map, row, column and player."""
    rows, columns = phi.grid or (1, 1)
    return phi.values.reshape(-1, rows, columns, phi.values.shape[1])


def _picture(phi: MetaAttributions) -> Image.Image:
    """The image, or a white one."""
    if phi.picture is not None:
        return Image.fromarray(phi.picture)
    rows, columns = phi.grid or (1, 1)
    return Image.new("RGB", (columns * PIXELS, rows * PIXELS), "white")
