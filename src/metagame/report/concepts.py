"""Figure 4: maps of concepts with more and more rivals, and how concepts move each other's maps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
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
from metagame.contracts import Explanation
from metagame.errors import UserError
from metagame.jobs.build import build_part
from metagame.report.drawing import Drawing
from metagame.report.groups import Group, by_setting, share_samples, stacked
from metagame.report.maps import draw_map, heat_scale, interpolation, on_grid
from metagame.report.results import JobResult, failure_notes, setting_notes
from metagame.report.segmentation import FIRST, role
from metagame.report.table import Column, Table

STEP_NOTES = {
    True: "While the model generates a picture, concepts are read in all steps, as in the paper's code.",
    False: "While the model generates a picture, concepts are read in one step; the paper's code reads them in all.",
}
POOLED_NOTES = {
    True: "The pooled text of the prompt also modulates the concepts; in the paper's code, it does not.",
    False: "The pooled text of the prompt does not modulate the concepts, as in the paper's code.",
}
Map = Float[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class ConceptMaps:
    """What one method says of a picture.

    Attributes:
        label: of the method.
        asks_all: every question is shown of it, of other methods that of all players only.
        explanations: by question.
    """

    label: str
    asks_all: bool
    explanations: dict[str, Explanation]

    def map(self, question: str, concept: str) -> Map | None:
        """The map of a concept, or None where it is no player."""
        each = self.explanations[question]
        if concept not in each.players:
            return None
        return on_grid(each, each.attribution)[each.targets.index(concept)]

    @property
    def is_directional(self) -> bool:
        return self.explanations[ALL].meta is not None

    def influence(self, target: str, player: str) -> Map:
        """How the player moves the map of the target, where all players compete.

        Raises:
            UserError: the method does not say.
        """
        each = self.explanations[ALL]
        meta = each.meta
        if meta is None or meta.targets is None or meta.players is None:
            raise UserError(f"{self.label} does not say how concepts move each other's maps: leave it out.")
        return on_grid(each, meta.values)[meta.targets.index(target), ..., meta.players.index(player)]


@dataclass(frozen=True)
class ConceptPicture:
    """What the jobs of a group say of their picture.

    Attributes:
        group: of the jobs.
        sample: id of the picture.
        methods: of those that are done.
    """

    group: Group
    sample: str
    methods: list[ConceptMaps]

    @property
    def players(self) -> dict[str, tuple[str, ...]]:
        """Of each question."""
        return {question: each.players for question, each in self.methods[0].explanations.items()}

    @property
    def shown(self) -> tuple[str, ...]:
        """The concepts of the last question before that of all players."""
        return list(self.players.values())[-2]

    def columns(self) -> list[tuple[ConceptMaps, str]]:
        """Method and question of each column of maps: all questions of ConceptAttention, then the other methods."""
        first = [(method, question) for method in self.methods if method.asks_all for question in self.players]
        return first + [(method, ALL) for method in self.methods if not method.asks_all]

    def title(self, method: ConceptMaps, question: str, between: str) -> str:
        """What a column is called: the method, and who competes."""
        return f"{method.label}{between}{f'all {len(self.players[ALL])}' if question == ALL else question}"

    def directional(self) -> list[tuple[str, ConceptMaps]]:
        """The methods that say how concepts move each other's maps, and what tells them apart."""
        found = [method for method in self.methods if method.is_directional]
        return [(f", {method.label}" if len(found) > 1 else "", method) for method in found]

    def image(self) -> Image.Image:
        """As the model painted it, or as it was given and the model saw it: a square."""
        for result in self.group.results:
            for record in (record for record in result.done if record.sample == self.sample):
                pictures = result.pictures(record)
                if ALL in pictures:
                    return Image.fromarray(pictures[ALL])
        config = self.group.results[0].config
        own: OwnImage = build_part(config.benchmark).samples()[0]
        side = min(512, config.model.denoising.side)
        return own.image().resize((side, side))


def concepts_table(results: list[JobResult], scale: str) -> Table:
    """A row for each concept that is shown and column of maps; then one for each directed pair of them."""
    pictures = _pictures(results)
    several = len(pictures) > 1
    settings = several and share_samples([picture.group for picture in pictures])
    rows = []
    for picture in pictures:
        about = {"model": picture.group.model, "picture": picture.sample}
        about |= {"setting": picture.group.difference} if settings else {}
        for (method, question), concept in product(picture.columns(), picture.shown):
            values = method.map(question, concept)
            if values is not None:
                rows.append(about | _row(picture.title(method, question, ", "), concept, values))
        for which, method in picture.directional():
            for i, j in product(picture.shown, repeat=2):
                rows.append(about | _row(f"directional{which}", f"{j} → {i}", method.influence(i, j)))
    return Table(
        title=f"{results[0].config.name}: maps of concepts, and how concepts move each other's",
        scale=scale,
        columns=[
            *([Column("model", "model", "text"), Column("picture", "picture", "text")] if several else []),
            *([Column("setting", "setting", "text")] if settings else []),
            Column("map", "map", "text"),
            Column("concept", "concept", "text"),
            Column("mean", "mean over patches", "number"),
            Column("largest", "largest patch", "number"),
        ],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=len({picture.sample for picture in pictures}),
        notes=[
            *([] if several else [f"Model: {results[0].model}."]),
            "Maps range from 0 to 1. j → i is the influence of concept j on the map of concept i, which is at most 0;"
            " the influence of a concept on itself is its map without rivals.",
            *setting_notes(results, "model.denoising.all_steps", STEP_NOTES),
            *setting_notes(results, "model.denoising.pooled_concepts", POOLED_NOTES),
            *failure_notes(results),
        ],
    )


def concepts_figure(results: list[JobResult]) -> Drawing | None:
    """The picture, the maps of the concepts that are shown, and their influence on each other; two scales.

    Each picture and setting has a part of its own. None where no job has a finished one.
    """
    pictures = _pictures(results)
    if not pictures:
        return None
    widths = [_widths(picture) for picture in pictures]
    heights = [1.6 * len(picture.shown) + 0.6 + 0.4 * (len(pictures) > 1) for picture in pictures]
    figure = Figure(figsize=(max(map(sum, widths)) + 0.6, sum(heights)), layout="constrained")
    for part, picture, own in zip(stacked(figure, heights), pictures, widths, strict=True):
        _draw_picture(part, picture, own)
        if len(pictures) > 1:
            part.suptitle(picture.group.name, fontsize=11)
    directional = any(picture.directional() for picture in pictures)
    return Drawing.single(
        figure,
        "Maps of concepts on a picture. Each row is a concept, each column is a method and the concepts that compete;"
        " a map is the share of each patch that the concept wins, from 0 to 1, on one scale.",
        "Expect the map of a concept that is not in the picture to fade as soon as the concept that is there competes,"
        " and less so in Meta-ConceptAttention, a mean over sets of competitors.",
        "On the right, how each concept (column) changes the map of another (row) when all compete: purple, it takes"
        " patches away. On the diagonal is the map that a concept has without rivals."
        if directional
        else "",
    )


def _widths(picture: ConceptPicture) -> list[float]:
    """Inches of the picture, its maps, and of each method's influences."""
    return [2.2, 1.75 * len(picture.columns()), *[1.75 * len(picture.shown) for _ in picture.directional()]]


def _draw_picture(part: Figure | SubFigure, picture: ConceptPicture, widths: Sequence[float]) -> None:
    blocks = part.subfigures(1, len(widths), squeeze=False, width_ratios=widths, wspace=0.02)[0]
    image = picture.image()
    axes = blocks[0].subplots()
    axes.imshow(image, interpolation=interpolation(image))
    axes.set_axis_off()
    axes.set_title(textwrap.fill(picture.sample, 26), fontsize=9, parse_math=False)
    _draw_maps(blocks[1], picture, image)
    for block, (which, method) in zip(blocks[2:], picture.directional(), strict=True):
        _draw_influence(block, picture.shown, method, which, image)


def _draw_maps(block: SubFigure, picture: ConceptPicture, image: Image.Image) -> None:
    columns, shown = picture.columns(), picture.shown
    grid = block.subplots(len(shown), len(columns), squeeze=False)
    maps = [[method.map(question, concept) for method, question in columns] for concept in shown]
    largest = max(float(values.max()) for row in maps for values in row if values is not None)
    scale = ScalarMappable(Normalize(0, largest), "viridis")
    for row, concept, values_of_row in zip(grid, shown, maps, strict=True):
        for axes, values in zip(row, values_of_row, strict=True):
            _draw(axes, image, values, scale)
        row[0].set_ylabel(concept, fontsize=10)
    for axes, (method, question) in zip(grid[0], columns, strict=True):
        axes.set_title(picture.title(method, question, "\n"), fontsize=8)
    bar = block.colorbar(scale, ax=list(grid.flat), shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("map of a concept (share of a patch)", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw_influence(
    block: SubFigure, shown: Sequence[str], method: ConceptMaps, which: str, image: Image.Image
) -> None:
    grid = block.subplots(len(shown), len(shown), squeeze=False)
    scale = heat_scale([method.influence(target, player) for target in shown for player in shown])
    for row, target in zip(grid, shown, strict=True):
        for axes, player in zip(row, shown, strict=True):
            _draw(axes, image, method.influence(target, player), scale)
        row[0].set_ylabel(f"on {target}", fontsize=9)
    for axes, player in zip(grid[0], shown, strict=True):
        axes.set_title(f"influence of\n{player}", fontsize=8)
    bar = block.colorbar(scale, ax=list(grid.flat), shrink=0.8, aspect=30, pad=0.01, extend="both")
    bar.set_label(f"influence on the map, all concepts compete{which}", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw(axes: Axes, image: Image.Image, values: Map | None, scale: ScalarMappable) -> None:
    if values is not None:
        draw_map(axes, image, values, scale)
        return
    axes.set_box_aspect(1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no player\nhere", ha="center", va="center", fontsize=8, color="0.5", transform=axes.transAxes)


def _pictures(results: Sequence[JobResult]) -> list[ConceptPicture]:
    """The pictures that a job has finished, by setting."""
    pictures = []
    for group in by_setting(results):
        for name in group.done_ids:
            methods = [
                ConceptMaps(result.label, role(result.variant) == FIRST, result.explanations(record))
                for result in group.results
                for record in result.done
                if record.sample == name
            ]
            pictures.append(ConceptPicture(group, name, methods))
    return pictures


def _row(kind: str, concept: str, values: Map) -> dict[str, str | float]:
    # of six decimals: what lies below differs by the batch that it was computed in
    flat = values.ravel()
    return {
        "map": kind, "concept": concept, "mean": round(float(flat.mean()), 6),
        "largest": round(float(flat[np.abs(flat).argmax()]), 6),
    }  # fmt: skip
