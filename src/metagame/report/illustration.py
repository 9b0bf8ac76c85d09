"""Figures 2, 8 and 9: one image, and how each token of its caption, and each pair, moves the map of the caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import ceil

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from metagame.benchmarks.illustration import CAPTION, PART, CaptionedImage
from metagame.jobs import build
from metagame.records import Record
from metagame.report.labels import told_apart
from metagame.report.maps import draw_edges, draw_map, edge_scale, heat_scale
from metagame.report.results import JobResult, failure_notes
from metagame.report.table import Column, Table

MOST_PAIRS = 6
COLUMNS = 6


@dataclass(frozen=True)
class Illustrated:
    """What the jobs say of one sample.

    Attributes:
        tokens: of the caption.
        parts: first-order maps ``(P,)`` of the caption and of its parts, with their titles.
        single: meta-attributions of the tokens, ``(P, n)``, or None where no such job is done.
        pairs: interactions ``(P, n, n)``, or None.
    """

    tokens: list[str]
    parts: list[tuple[str, Float[np.ndarray, " P"]]]
    single: Float[np.ndarray, "P n"] | None
    pairs: Float[np.ndarray, "P n n"] | None

    def strongest_pairs(self) -> list[tuple[str, Float[np.ndarray, " P"]]]:
        """Name and map of the pairs of largest size, largest first."""
        if self.pairs is None:
            return []
        found = list(combinations(range(len(self.tokens)), 2))
        found.sort(key=lambda pair: -np.abs(self.pairs[:, pair[0], pair[1]]).sum())
        return [(f"{self.tokens[i]} + {self.tokens[j]}", self.pairs[:, i, j]) for i, j in found[:MOST_PAIRS]]

    def rows(self) -> list[tuple[str, list[tuple[str, Float[np.ndarray, " P"]]]]]:
        """The rows of the figure: heading, and panels with their titles."""
        single = [] if self.single is None else list(zip(self.tokens, self.single.T, strict=True))
        return [
            (heading, panels)
            for heading, panels in (
                ("map of the text", self.parts),
                ("influence of a token", single),
                ("interaction of tokens", self.strongest_pairs()),
            )
            if panels
        ]


def illustration_table(results: list[JobResult], scale: str) -> Table:
    """A row for each token and each of the strongest pairs: sum of its map, and its largest patch."""
    rows = []
    for sample in _samples(results):
        shown = _illustrated(results, sample.id)
        single = [] if shown.single is None else zip(shown.tokens, shown.single.T, strict=True)
        for name, values in [*single, *shown.strongest_pairs()]:
            largest = values[np.argmax(np.abs(values))]
            cells = {"total": round(float(values.sum()), 6), "largest": round(float(largest), 6)}
            rows.append({"caption": sample.caption, "players": name} | cells)
    return Table(
        title=f"{results[0].config.name}: influence of tokens on the map of a caption",
        scale=scale,
        columns=[
            Column("caption", "caption", "text"),
            Column("players", "tokens", "text"),
            Column("total", "sum over patches", "number"),
            Column("largest", "largest patch", "number"),
        ],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=max(len(result.done) for result in results),
        notes=[
            f"Model: {results[0].config.model.label}. Units of the method's map. Of pairs, the {MOST_PAIRS} with the"
            " largest sum of sizes.",
            *failure_notes(results),
        ],
    )


def illustration_figure(results: list[JobResult]) -> Figure:
    """For each image: lines from tokens to patches on the left; maps of coalitions, tokens and pairs on the right.

    All heat maps of an image share one colour scale.
    """
    done = {record.sample for result in results for record in result.done}
    samples = [sample for sample in _samples(results) if sample.id in done]
    shown = [_illustrated(results, sample.id) for sample in samples]
    columns = min(COLUMNS, max(len(panels) for each in shown for _, panels in each.rows()))
    heights = [max(2, sum(ceil(len(panels) / columns) for _, panels in each.rows())) for each in shown]
    figure = Figure(figsize=(5.4 + 1.7 * columns, 1.9 * sum(heights) + 0.5 * len(shown)), layout="constrained")
    parts = np.atleast_1d(figure.subfigures(len(samples), 1, height_ratios=heights))
    for part, sample, each, height in zip(parts, samples, shown, heights, strict=True):
        _draw(part, sample, each, (height, columns), results[0].config.model.label)
    return figure


def _draw(figure: SubFigure, sample: CaptionedImage, shown: Illustrated, size: tuple[int, int], model: str) -> None:
    image = sample.image()
    left, right = figure.subfigures(1, 2, width_ratios=[4.4, 1 + 1.7 * size[1]])
    _draw_lines(left, image, shown)
    grid = right.subplots(*size, squeeze=False)
    maps = [values for _, panels in shown.rows() for _, values in panels]
    scale = heat_scale(maps)
    for axes in grid.flat:
        axes.set_axis_off()
    row = 0
    for heading, panels in shown.rows():
        for place, (title, values) in enumerate(panels):
            axes = grid[row + place // size[1], place % size[1]]
            axes.set_axis_on()
            draw_map(axes, image, values, scale)
            axes.set_title(title, fontsize=9)
        grid[row, 0].set_ylabel(heading, fontsize=9)
        row += ceil(len(panels) / size[1])
    bar = right.colorbar(scale, ax=list(grid.flat), shrink=0.7, aspect=30, pad=0.01, extend="both")
    bar.set_label("attribution of a patch (one scale)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f"“{sample.caption}” ({model})", fontsize=11)


def _draw_lines(figure: SubFigure, image: Image.Image, shown: Illustrated) -> None:
    axes = figure.subplots()
    if shown.single is None:
        axes.imshow(image)
        axes.set_axis_off()
        return
    scale = edge_scale([shown.single])
    draw_edges(axes, image, shown.tokens, shown.single, scale)
    scale.add_legend(figure, "influence of a token on a patch")


def _samples(results: list[JobResult]) -> list[CaptionedImage]:
    return build(results[0].config.benchmark).samples()


def _illustrated(results: list[JobResult], sample: str) -> Illustrated:
    """Gather one sample's maps from the jobs: first-order, meta, pairs."""
    tokens, parts, single, pairs = [], [], None, None
    for record, arrays in _records(results, sample):
        tokens = told_apart(record.scores[f"tokens of {CAPTION}"])
        if f"{CAPTION}.matrix" in arrays:
            single = arrays[f"{CAPTION}.matrix"]
        elif f"{CAPTION}.pairs" in arrays:
            pairs = arrays[f"{CAPTION}.pairs"]
        else:
            whole = arrays.pop(f"{CAPTION}.first_order")
            titles = (name.removesuffix(".first_order").removeprefix(PART) for name in arrays)
            parts = [("whole caption", whole), *zip(titles, arrays.values(), strict=True)]
    return Illustrated(tokens, parts, single, pairs)


def _records(results: list[JobResult], sample: str) -> Iterator[tuple[Record, dict[str, np.ndarray]]]:
    for result in results:
        for record in result.done:
            if record.sample == sample:
                yield record, result.arrays(record)
