"""The pointing game in both directions: table, and maps of the words of a scene beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from metagame.benchmarks.both_ways import TEXT
from metagame.benchmarks.pointing_game import Scene, game_and_image, word_maps
from metagame.contracts import Explanation
from metagame.errors import UserError
from metagame.images import grid_side
from metagame.jobs.build import build_part
from metagame.report.drawing import Drawing, caption_of
from metagame.report.groups import Group, by_setting
from metagame.report.maps import draw_map, heat_scale, interpolation
from metagame.report.results import JobResult, failure_notes
from metagame.report.scores import Difference, clustered_cell, decide
from metagame.report.table import Column, Table

OTHER_SIDES = {
    "generic_attention_text": ("generic_attention",),
    "mask_clip_text": ("mask_clip", "mask_siglip"),
    "grad_eclip_text": ("grad_eclip", "grad_esiglip"),
}
"""Of each method for words, by the names of their configs, those for patches that it is compared with."""
UNITS = {"generic_attention_text": "logit"}
"""Of the methods whose attributions are not in units of the cosine."""
SCORES = {"pointing": "pointing", "earlier": "earlier word's", "mass": "positive mass", "recognition": "recognition"}
CHANCE = 0.25
"""Pointing and positive mass of a map that is the same everywhere."""
TO_WORD, TO_PATCHES, ALONE = "patches → word", "word → patches", "first-order map of the word alone"


def both_ways_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x method x direction; means over games and images."""
    groups = by_setting(results)
    return Table(
        title=f"{results[0].config.name}: which patches move a word, and which patches a word moves",
        scale=scale,
        columns=[
            Column("model", "model", "text"), Column("method", "method", "text"), Column("map", "map", "text"),
            *(Column(key, label, "mean") for key, label in SCORES.items()), Column("n", "images", "count"),
        ],
        rows=[_row(group, result) for group in groups for result in group.results],
        published=[{} for _ in results],
        n_samples=max(len(result.done) for result in results),
        claims=_claims(groups),
        notes=[
            "Each image holds four objects, one in each quadrant, and the text names them. Patches → word: how each"
            " patch changes the attribution of a word in the text encoder. Word → patches: how the word changes the"
            " attribution of each patch in the image encoder. First-order maps are those of the text that is the word"
            " alone. The one map of the whole text, which is the same for all words, has pointing and positive mass"
            f" {CHANCE}, as a map that is the same everywhere has.",
            "Pointing: the share of words whose own quadrant has the largest sum. Earlier word's: the share of words of"
            " which a word before them in the text has that quadrant, 0.375 by chance. Positive mass: the share of"
            " what is positive that lies in the own quadrant. Recognition: as in Table 2, where what is negative"
            " elsewhere counts too; values of random sign have 0.5.",
            "Mean ± 2 standard errors over scenes, clustered by image within games. Metagames of patches are estimated,"
            " from the same coalitions in all scenes; the pixels of an absent patch are 0 after normalisation.",
            "A claim is decided if the mean difference, scene by scene, is larger than two standard errors.",
            *failure_notes(results),
        ],
    )  # fmt: skip


def _row(group: Group, result: JobResult) -> dict:
    row = {"model": group.name, "method": result.label, "map": _direction(result), "n": len(result.done)}
    return row | {score: clustered_cell(_values(result, score)) for score in SCORES}


def _direction(result: JobResult) -> str:
    if not result.variant.meta:
        return ALONE
    return TO_WORD if result.variant.base in OTHER_SIDES else TO_PATCHES


def _values(result: JobResult, score: str = "pointing") -> dict[tuple[str, str], float]:
    """The score of each scene that has one, by game and image."""
    scored = {game_and_image(record.sample): record.scores[score] for record in result.done}
    return {place: value for place, value in scored.items() if value is not None}


def _over_chance(group: Group, result: JobResult) -> list[Difference]:
    cell = clustered_cell({place: value - CHANCE for place, value in _values(result).items()})
    return [Difference(f"{result.label} - {CHANCE}, {group.name}", cell)]


def _over(group: Group, result: JobResult, *, meta: bool) -> list[Difference]:
    """Over the method for patches, or its metagame."""
    ours, bases = _values(result), OTHER_SIDES[result.variant.base]
    differences = []
    for rival in [each for each in group.results for base in bases if each.uses(base, meta=meta)]:
        theirs = _values(rival)
        cell = clustered_cell({place: ours[place] - theirs[place] for place in ours if place in theirs})
        differences.append(Difference(f"{result.label} - {rival.label}, {group.name}", cell))
    return differences


Side = Callable[[Group, JobResult], list[Difference]]


def _over_metagame(group: Group, result: JobResult) -> list[Difference]:
    return _over(group, result, meta=True)


def _over_first_order(group: Group, result: JobResult) -> list[Difference]:
    return _over(group, result, meta=False)


CLAIMS: Mapping[str, Side] = {
    "points to the object of the word more often than chance": _over_chance,
    "points there more often than its map from word to patches": _over_metagame,
    "points there more often than the first-order map of the word alone": _over_first_order,
}


def _claims(groups: Sequence[Group]) -> list[dict]:
    """Of each method for words, over all models."""
    found: dict[str, list[tuple[Group, JobResult]]] = {}
    for group in groups:
        for result in group.results:
            if _direction(result) == TO_WORD:
                found.setdefault(result.variant.label, []).append((group, result))
    return [
        decide(f"{label} {claim}", [each for place in places for each in side(*place)])
        for label, places in found.items()
        for claim, side in CLAIMS.items()
    ]


@dataclass(frozen=True)
class Maps:
    """A row of the figure.

    Attributes:
        heading: method and direction.
        titles: of each word's panel.
        values: the map of each word.
        unit: of the values, and of what.
    """

    heading: str
    titles: list[str]
    values: Float[np.ndarray, "4 rows columns"]
    unit: str


def both_ways_figure(results: list[JobResult], image: int) -> Drawing | None:
    """A figure for each model: of each method for words both directions, a row each, a column for each word.

    None where no job has computed the scene.

    Args:
        results: of the jobs.
        image: which image of the first game to show, counted from 0.
    """
    figures = {}
    for group in by_setting(results):
        scene = _scene(group, image)
        rows = [pair for result in group.results if (pair := _pair(group, result, scene))]
        if rows:
            name = group.results[0].config.model.name
            figures[f"{name}_{len(figures)}" if name in figures else name] = _draw(group, scene, rows)
    return Drawing(figures, caption_of(*CAPTION)) if figures else None


def _scene(group: Group, image: int) -> Scene:
    scenes: list[Scene] = build_part(group.results[0].config.benchmark).samples()
    shown = [scene for scene in scenes if scene.game == scenes[0].game]
    if not 0 <= image < len(shown):
        raise UserError(f"report.figure.image={image} must be an image of the first game: 0 to {len(shown) - 1}.")
    return shown[image]


CAPTION = (
    "Both directions of the metagame between an image and a text that names its four objects, one in each quadrant."
    " There is a figure for each model, and two rows for each method; the black frame is the word's own quadrant.",
    "Patches → word: the patches play, and the map shows how much each of them raises (orange) or lowers (purple) what"
    " the word counts for the similarity of text and image. Its values add up to the difference of the two numbers"
    " above it: what the word counts with a blank image, whose patches are all absent, and with the whole one.",
    "Word → patches: the words play, and the map shows how much the word raises or lowers what each patch counts.",
    "The unit stands at the colour bar. Each row has its own scale, beyond whose arrows lies the largest hundredth of"
    " its values; maps show the picture in grey where they are zero.",
    "Expect orange inside the frame.",
)


def _pair(group: Group, result: JobResult, scene: Scene) -> list[Maps]:
    """The rows of a method for words: its own, and that of the method for patches."""
    if _direction(result) != TO_WORD:
        return []
    bases = OTHER_SIDES[result.variant.base]
    others = [each for each, base in product(group.results, bases) if each.uses(base, meta=True)]
    found = [(each, record) for each in (result, *others) for record in each.done if record.sample == scene.id]
    unit = UNITS.get(result.variant.base, "cosine")
    return [_maps(each, each.explanations(record)[TEXT], scene, unit) for each, record in found]


def _maps(result: JobResult, whole: Explanation, scene: Scene, unit: str) -> Maps:
    values = word_maps(whole, len(scene.words))
    side = grid_side(len(values))
    titles, of = list(scene.words), "patch"
    if _direction(result) == TO_WORD and whole.meta is not None:
        empty, full = whole.meta.empty, whole.meta.first_order
        ends = zip(scene.words, np.asarray(empty), np.asarray(full), strict=True)
        told = [f"{word}\n{before:.3f} (blank) → {after:.3f} (image)" for word, before, after in ends]
        titles, of = [each.replace("-", "−") for each in told], "word"
    maps = values.T.reshape(-1, side, side)
    return Maps(f"{result.label}\n{_direction(result)}", titles, maps, f"attribution\nof a {of} ({unit})")


def _draw(group: Group, scene: Scene, pairs: Sequence[Sequence[Maps]]) -> Figure:
    rows, picture = [row for pair in pairs for row in pair], scene.image()
    figure = Figure(figsize=(11.5, 2.0 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), 1 + len(scene.words), squeeze=False)
    for axes in grid[:, 0]:
        axes.set_axis_off()
    grid[0, 0].imshow(picture, interpolation=interpolation(picture))
    grid[0, 0].set_title("image", fontsize=9)
    for panels, row in zip(grid[:, 1:], rows, strict=True):
        _draw_row(figure, list(panels), picture, row)
    figure.suptitle(f"{group.name}: “{' '.join(scene.words)}”", fontsize=11)
    return figure


def _draw_row(figure: Figure, panels: list[Axes], picture: Image.Image, row: Maps) -> None:
    scale = heat_scale(row.values)
    for place, (axes, title, values) in enumerate(zip(panels, row.titles, row.values, strict=True)):
        draw_map(axes, picture, values, scale)
        _frame(axes, place)
        axes.set_title(title, fontsize=8)
    panels[0].set_ylabel(row.heading, fontsize=8)
    bar = figure.colorbar(scale, ax=panels, shrink=0.85, aspect=14, pad=0.01, extend="both")
    bar.set_label(row.unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _frame(axes: Axes, quadrant: int) -> None:
    """A frame around a quadrant, counted in reading order."""
    left, right, bottom, top = axes.images[0].get_extent()
    width, height = (right - left) / 2, (bottom - top) / 2
    row, column = divmod(quadrant, 2)
    corner = (left + column * width, top + row * height)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="black", linewidth=1.6, clip_on=False))
