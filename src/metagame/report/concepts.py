"""Figure 4: maps of concepts with more and more rivals, and how concepts move each other's maps."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from metagame.benchmarks.concepts import ALL, OwnImage
from metagame.jobs import build
from metagame.report.maps import draw_map, heat_scale
from metagame.report.results import JobResult, failure_notes
from metagame.report.segmentation import FIRST, META, METHODS
from metagame.report.table import Column, Table


@dataclass(frozen=True)
class ConceptPicture:
    """What a job says of its picture.

    Attributes:
        image: as the model painted it, or as it was given.
        players: of each question.
        maps: of each question and method that was asked, ``(n, P)``.
        directional: of each question, ``(n targets, n players, P)``.
    """

    image: Image.Image
    players: dict[str, list[str]]
    maps: dict[tuple[str, str], Float[np.ndarray, "n P"]]
    directional: dict[str, Float[np.ndarray, "n n P"]]

    @property
    def shown(self) -> list[str]:
        """The concepts of the last question before that of all players."""
        return self.players[list(self.players)[-2]]

    def columns(self) -> list[tuple[str, str]]:
        """Question and method of each column of maps: all questions of ConceptAttention, then the other methods."""
        methods = dict.fromkeys(method for _, method in self.maps)
        first = [(question, FIRST) for question in self.players if (question, FIRST) in self.maps]
        return first + [(ALL, method) for method in methods if method != FIRST]

    def map(self, question: str, method: str, concept: str) -> Float[np.ndarray, " P"] | None:
        """The map of a concept, or None where it is no player."""
        players = self.players[question]
        return self.maps[question, method][players.index(concept)] if concept in players else None

    def influence(self, target: str, player: str) -> Float[np.ndarray, " P"]:
        """How the player moves the map of the target, where all players compete."""
        players = self.players[ALL]
        return self.directional[ALL][players.index(target), players.index(player)]


def concepts_table(results: list[JobResult], scale: str) -> Table:
    """A row for each concept that is shown and column of maps; then one for each directed pair of them."""
    done = [result for result in results if result.done]
    several = len(done) > 1
    rows = []
    for result in done:
        picture = _picture(result)
        job = {"model": result.config.model.label, "picture": result.done[0].sample}
        for question, method in picture.columns():
            for concept in picture.shown:
                values = picture.map(question, method, concept)
                if values is not None:
                    kind = f"{METHODS.get(method, method)}, {_rivals(picture, question)}"
                    rows.append(job | _row(kind, concept, values))
        if ALL in picture.directional:
            pairs = product(picture.shown, repeat=2)
            rows += [job | _row("directional", f"{j} → {i}", picture.influence(i, j)) for i, j in pairs]
    return Table(
        title=f"{results[0].config.name}: maps of concepts, and how concepts move each other's",
        scale=scale,
        columns=[
            *([Column("model", "model", "text"), Column("picture", "picture", "text")] if several else []),
            Column("map", "map", "text"),
            Column("concept", "concept", "text"),
            Column("mean", "mean over patches", "number"),
            Column("largest", "largest patch", "number"),
        ],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=max(len(result.done) for result in results),
        notes=[
            *([] if several else [f"Model: {results[0].config.model.label}."]),
            "Maps are from 0 to 1; j → i is the influence of concept j on the map of i, at most 0, and of a concept on"
            " itself its map without rivals.",
            *(["The figure shows the first job."] if several else []),
            *failure_notes(results),
        ],
    )


def concepts_figure(results: list[JobResult]) -> Figure | None:
    """The picture, the maps of the concepts that are shown, and their influence on each other; two scales."""
    done = [result for result in results if result.done]
    if not done:
        return None
    picture = _picture(done[0])
    columns, shown = picture.columns(), picture.shown
    directional = ALL in picture.directional
    widths = [2.2, 1.75 * len(columns), *([1.75 * len(shown)] if directional else [])]
    figure = Figure(figsize=(sum(widths) + 0.6, 1.6 * len(shown) + 0.6), layout="constrained")
    blocks = figure.subfigures(1, len(widths), width_ratios=widths, wspace=0.02)
    axes = blocks[0].subplots()
    axes.imshow(picture.image)
    axes.set_axis_off()
    axes.set_title(textwrap.fill(done[0].done[0].sample, 26), fontsize=9, parse_math=False)
    _draw_maps(blocks[1], picture)
    if directional:
        _draw_influence(blocks[2], picture)
    return figure


def _draw_maps(block: SubFigure, picture: ConceptPicture) -> None:
    columns, shown = picture.columns(), picture.shown
    grid = block.subplots(len(shown), len(columns), squeeze=False)
    maps = {(concept, each): picture.map(*each, concept) for concept in shown for each in columns}
    largest = max(float(values.max()) for values in maps.values() if values is not None)
    scale = ScalarMappable(Normalize(0, largest), "viridis")
    for row, concept in zip(grid, shown, strict=True):
        for axes, each in zip(row, columns, strict=True):
            _draw(axes, picture.image, maps[concept, each], scale)
        row[0].set_ylabel(concept, fontsize=10)
    for axes, (question, method) in zip(grid[0], columns, strict=True):
        axes.set_title(f"{METHODS.get(method, method)}\n{_rivals(picture, question)}", fontsize=8)
    bar = block.colorbar(scale, ax=list(grid.flat), shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("map of a concept (one scale)", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw_influence(block: SubFigure, picture: ConceptPicture) -> None:
    shown = picture.shown
    grid = block.subplots(len(shown), len(shown), squeeze=False)
    scale = heat_scale([picture.influence(target, player) for target in shown for player in shown])
    for row, target in zip(grid, shown, strict=True):
        for axes, player in zip(row, shown, strict=True):
            _draw(axes, picture.image, picture.influence(target, player), scale)
        row[0].set_ylabel(f"on {target}", fontsize=9)
    for axes, player in zip(grid[0], shown, strict=True):
        axes.set_title(f"influence of\n{player}", fontsize=8)
    bar = block.colorbar(scale, ax=list(grid.flat), shrink=0.8, aspect=30, pad=0.01, extend="both")
    bar.set_label("influence, all players (one scale)", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw(axes: Axes, image: Image.Image, values: Float[np.ndarray, " P"] | None, scale: ScalarMappable) -> None:
    if values is not None:
        draw_map(axes, image, values, scale)
        return
    axes.set_box_aspect(1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no player\nhere", ha="center", va="center", fontsize=8, color="0.5", transform=axes.transAxes)


def _picture(result: JobResult) -> ConceptPicture:
    record = result.done[0]
    arrays = result.arrays(record)
    players: dict[str, list[str]] = dict(record.scores)
    maps, directional = {}, {}
    for question in players:
        for method in METHODS:
            if f"{question}.{method}.players" in arrays:
                maps[question, method] = arrays[f"{question}.{method}.players"]
        if f"{question}.{META}.directional" in arrays:
            directional[question] = arrays[f"{question}.{META}.directional"]
    painted = arrays.get(f"{ALL}.picture")
    image = Image.fromarray(painted) if painted is not None else _own_image(result)
    return ConceptPicture(image, players, maps, directional)


def _own_image(result: JobResult) -> Image.Image:
    """The given image as the model saw it: a square."""
    sample: OwnImage = build(result.config.benchmark).samples()[0]
    side = min(512, result.config.model.denoising.side)
    return sample.image().resize((side, side))


def _rivals(picture: ConceptPicture, question: str) -> str:
    return f"all {len(picture.players[ALL])}" if question == ALL else question


def _row(kind: str, concept: str, values: Float[np.ndarray, " P"]) -> dict[str, str | float]:
    # of six decimals: what lies below differs by the batch that it was computed in
    return {
        "map": kind, "concept": concept, "mean": round(float(values.mean()), 6),
        "largest": round(float(values[np.abs(values).argmax()]), 6),
    }  # fmt: skip
