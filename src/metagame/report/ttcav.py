"""Which classes depend on which concepts, by T-TCAV: a table, and heat maps by layer.

The test is the source's, a one-sample t-test of the scores of all repeats against .5. Differs from it: p values are
corrected for the number of tests, and the random concept is tested too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from scipy.stats import ttest_1samp

from metagame.benchmarks.concept_scores import RANDOM
from metagame.contracts import WHOLE
from metagame.jobs.records import Record
from metagame.report.drawing import Drawing, caption_of
from metagame.report.groups import Group, by_setting, stacked
from metagame.report.maps import DIVERGING, heat_scale, on_grid
from metagame.report.results import JobResult, failure_notes
from metagame.report.scores import Difference, decide, rounded_mean_cell
from metagame.report.table import Column, Table

LEVEL = 0.05
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Cell:
    """One test: a concept, a class and a layer.

    Attributes:
        scores: of each repeat.
        effects: likewise.
        depends: whether the class is known to depend on the concept; None where nothing is known.
        p: of the test that the mean score is .5, corrected for the number of tests.
    """

    concept: str
    name: str
    layer: int
    scores: Float[np.ndarray, " r"]
    effects: Float[np.ndarray, " r"]
    depends: bool | None
    p: float

    @property
    def is_significant(self) -> bool:
        return self.p < LEVEL

    @property
    def is_found(self) -> bool:
        """Whether the class is said to depend on the concept: the score is above .5, and significantly so."""
        return self.is_significant and float(self.scores.mean()) > 0.5


def p_value(scores: Float[np.ndarray, " r"]) -> float:
    """Of the two-sided one-sample t-test that the mean is .5; 0 or 1 where all scores are the same."""
    if np.ptp(scores) == 0:
        return float(scores[0] == 0.5)
    return float(ttest_1samp(scores, 0.5).pvalue)


def cells_of(result: JobResult) -> list[Cell]:
    """The cells of a job, by layer, class and concept; p values times their number (Bonferroni), 1 at most."""
    found = [(record, place) for record in result.done for place in _places(record)]
    cells = [
        Cell(
            record.sample, record.scores["classes"][c], record.scores["layers"][at],
            np.array(record.scores["scores"][c][at]), np.array(record.scores["effects"][c][at]),
            _depends(record, record.scores["classes"][c]),
            min(1.0, len(found) * p_value(np.array(record.scores["scores"][c][at]))),
        )
        for record, (c, at) in found
    ]  # fmt: skip
    order = {name: place for place, name in enumerate(result.sample_ids)}
    names = [cell.name for cell in cells]
    return sorted(cells, key=lambda cell: (cell.layer, names.index(cell.name), order[cell.concept]))


def _places(record: Record) -> Iterator[tuple[int, int]]:
    return product(range(len(record.scores["classes"])), range(len(record.scores["layers"])))


def _depends(record: Record, name: str) -> bool | None:
    known = record.scores["depending"]
    return None if known is None else name in known


def ttcav_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x layer x class x concept: score, corrected p value, effect, and what is known."""
    rows, claims = [], []
    for name, result in _named(by_setting(results)):
        cells = cells_of(result)
        rows += [_row(name, cell) for cell in cells]
        claims += _claims(name, cells)
    return Table(
        title=f"{results[0].config.name}: which classes depend on which concepts",
        scale=scale,
        columns=[
            Column("model", "model", "text"),
            Column("layer", "layer", "count"),
            Column("class", "class", "text"),
            Column("concept", "concept", "text"),
            Column("score", "score", "mean"),
            Column("p", "p, corrected", "number"),
            Column("found", "found", "flag"),
            Column("depends", "depends in truth", "flag"),
            Column("effect", "effect on the logit", "mean"),
        ],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=max(len(result.done) for result in results),
        claims=claims,
        notes=[
            "Score: the share of the images of a class whose logit rises with the concept behind a layer; mean ± 2"
            " standard errors over repeats, which draw the images of the concept and of the others anew. 0.5 is what a"
            " direction without meaning has.",
            f"p: of a two-sided one-sample t-test that the mean score is 0.5, times the number of tests of the model"
            f" (Bonferroni). Found: p is below {LEVEL} and the score above 0.5.",
            "random: images of all concepts against others of them, the baseline.",
            "Errors and tests are of the draw of images of concepts, and not of the images of classes or the model.",
            "Effect: what a linear model would make of the step from the other concepts to this one, in units of the"
            " logit. The score is of its sign alone, so that a small effect counts as much as a large one.",
            *failure_notes(results),
        ],
    )


def _named(groups: Sequence[Group]) -> list[tuple[str, JobResult]]:
    """Each job with the name of its model, and of its method where there are several."""
    return [
        (group.name if len(group.results) == 1 else f"{group.name}, {result.label}", result)
        for group in groups
        for result in group.results
    ]


def _row(model: str, cell: Cell) -> dict[str, Any]:
    return {
        "model": model, "layer": cell.layer, "class": cell.name, "concept": cell.concept,
        "score": rounded_mean_cell(list(cell.scores)), "p": round(cell.p, 6), "found": cell.is_found,
        "depends": cell.depends, "effect": rounded_mean_cell(list(cell.effects)),
    }  # fmt: skip


def _claims(model: str, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What is found of what is known to be there, of the rest, and of the random concept."""
    concepts = [cell for cell in cells if cell.concept != RANDOM]
    true = dict.fromkeys((cell.name, cell.concept) for cell in concepts if cell.depends)
    claims = [_finds(model, [cell for cell in concepts if cell.name == name], concept) for name, concept in true]
    if true:
        independent = {cell.name for cell in concepts} - {name for name, _ in true}
        rest = [cell for cell in concepts if cell.name in independent]
        claims += [
            _finds_nothing(f"It finds no concept for the classes that depend on none ({model})", rest),
            _largest_effect(model, concepts),
        ]
    baseline = [cell for cell in cells if cell.concept == RANDOM]
    return [*claims, _finds_nothing(f"It finds nothing for the random concept ({model})", baseline)]


def _claim(claim: str, holds: bool | None, difference: str) -> dict[str, Any]:
    return {"claim": claim, "holds": holds, "difference": difference, "published": None}


def _finds(model: str, cells: Sequence[Cell], concept: str) -> dict[str, Any]:
    """Whether the concept of a class is found at some layers, and no other concept at any."""
    layers = [str(cell.layer) for cell in cells if cell.concept == concept and cell.is_found]
    others = [f"{cell.concept} at layer {cell.layer}" for cell in cells if cell.concept != concept and cell.is_found]
    found = f"{concept} at layers {', '.join(layers)}" if layers else f"{concept} at no layer"
    return _claim(
        f"It finds that class {cells[0].name} depends on {concept}, and on no other concept ({model})",
        bool(layers) and not others,
        "; ".join([found, *others]),
    )


def _finds_nothing(claim: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """Whether none of the cells is found; a score that is significantly below 0.5 is none that is found."""
    significant = sum(cell.is_significant for cell in cells)
    found = sum(cell.is_found for cell in cells)
    told = f"significant: {significant} of {len(cells)}, {found} of them above 0.5"
    return _claim(claim, not found if cells else None, told)


def _largest_effect(model: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """Whether at each layer a pair that is known to depend has a larger mean effect than every other pair."""
    differences = []
    for layer in dict.fromkeys(cell.layer for cell in cells):
        own = sorted((cell for cell in cells if cell.layer == layer), key=_mean_effect)
        best, rest = (next(cell for cell in reversed(own) if bool(cell.depends) is known) for known in (True, False))
        name = f"layer {layer}: {best.concept} on {best.name} - {rest.concept} on {rest.name}"
        differences.append(Difference(name, _apart(best.effects, rest.effects)))
    return decide(
        f"At every layer, a concept has a larger effect on the class that depends on it than any has on a class that"
        f" does not ({model})",
        differences,
    )


def _apart(one: Float[np.ndarray, " r"], other: Float[np.ndarray, " r"]) -> dict[str, Any]:
    """A cell of type ``mean`` of the difference of two means whose repeats are independent."""
    variance = one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)
    return {"mean": float(one.mean() - other.mean()), "two_se": float(2 * np.sqrt(variance)), "n": len(one)}


def ttcav_figure(results: list[JobResult]) -> Drawing | None:
    """Scores and effects of class x concept, a panel for each layer; and where in the images they are, by layer."""
    drawn = [(name, result) for name, result in _named(by_setting(results)) if result.done]
    if not drawn:
        return None
    tables = [(name, cells_of(result)) for name, result in drawn]
    effects = heat_scale([np.array([_mean_effect(cell) for cell in cells]) for _, cells in tables], quantile=1.0)
    figures = {
        "scores": _heat_map(tables, "score", ScalarMappable(Normalize(0, 1), DIVERGING), _mean_score, _starred),
        "effects": _heat_map(
            tables,
            "effect on the logit",
            effects,
            _mean_effect,
            lambda cell: f"{round(_mean_effect(cell), 2) + 0.0:.2f}".replace("-", "−"),
        ),
        "maps": _maps_figure(drawn),
    }
    return Drawing(
        figures,
        caption_of(
            "Scores: the share of the images of a class (row) whose logit rises with a concept (column) behind a layer;"
            " the mean over repeats. Orange is above 0.5, purple below.",
            f"A star marks a mean that differs from 0.5 in a two-sided t-test at {LEVEL}, corrected for the number of"
            " tests of the model. Expect none in the column of the random concept.",
            "A frame marks a class that depends on the concept in truth: expect orange with a star in it. Orange with a"
            " star elsewhere is a false alarm: the score has the signs of effects and not their sizes."
            if any(cell.depends for _, cells in tables for cell in cells)
            else "",
            "Effects: the same cells with the sizes, what a linear model would make of the step from the other concepts"
            " to this one, in units of the logit.",
            "Maps: in which patches the concept raises (orange) or lowers (purple) the logit of a class; mean over"
            " images and repeats, without a unit. Only classes that are known to depend on a concept are shown, if any"
            " are.",
        ),
    )


def _mean_score(cell: Cell) -> float:
    return float(cell.scores.mean())


def _mean_effect(cell: Cell) -> float:
    return float(cell.effects.mean())


def _starred(cell: Cell) -> str:
    return f"{_mean_score(cell):.2f}{'*' if cell.is_significant else ''}"


def _heat_map(
    tables: Sequence[tuple[str, Sequence[Cell]]],
    label: str,
    scale: ScalarMappable,
    value_of: Callable[[Cell], float],
    text_of: Callable[[Cell], str],
) -> Figure:
    """A row of panels for each model, a panel for each layer."""
    shapes = [[len(each) for each in _axes_of(cells)] for _, cells in tables]
    heights = [0.45 * n_classes + 1.3 for _, n_classes, _ in shapes]
    width = max(n_layers * (0.75 * n_concepts + 0.3) for n_layers, _, n_concepts in shapes) + 2.0
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    for part, (name, cells) in zip(stacked(figure, heights), tables, strict=True):
        layers, names, concepts = _axes_of(cells)
        panels = part.subplots(1, len(layers), squeeze=False, sharey=True)[0]
        for axes, layer in zip(panels, layers, strict=True):
            axes.set_title(f"layer {layer}", fontsize=9)
            axes.set_xticks(range(len(concepts)), concepts, fontsize=8)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.set_xlim(-0.5, len(concepts) - 0.5)
            axes.set_ylim(len(names) - 0.5, -0.5)
            for cell in (cell for cell in cells if cell.layer == layer):
                (color,) = scale.to_rgba(np.array([value_of(cell)]))
                place = concepts.index(cell.concept), names.index(cell.name)
                _draw_cell(axes, place, color, text_of(cell), framed=bool(cell.depends))
        panels[0].set_ylabel("class", fontsize=9)
        part.suptitle(name, fontsize=10)
        bar = part.colorbar(scale, ax=list(panels), pad=0.01)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def _axes_of(cells: Sequence[Cell]) -> tuple[list[int], list[str], list[str]]:
    """Layers, classes and concepts, in order."""
    return (
        list(dict.fromkeys(cell.layer for cell in cells)),
        list(dict.fromkeys(cell.name for cell in cells)),
        list(dict.fromkeys(cell.concept for cell in cells)),
    )


def _draw_cell(axes: Axes, place: tuple[int, int], color: Float[np.ndarray, " 4"], text: str, *, framed: bool) -> None:
    corner = (place[0] - 0.5, place[1] - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="white", linewidth=1))
    if framed:
        axes.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor="black", linewidth=2.5, zorder=3))
    ink = "white" if color[:3] @ LUMINANCE < 0.45 else "black"
    axes.text(*place, text, ha="center", va="center", fontsize=8, color=ink)


def _maps_figure(drawn: Sequence[tuple[str, JobResult]]) -> Figure:
    rows = [_shown(result) for _, result in drawn]
    heights = [1.0 * len(own) + 0.7 for own in rows]
    n_layers = max(len(result.done[0].scores["layers"]) for _, result in drawn)
    figure = Figure(figsize=(1.1 * n_layers + 2.6, sum(heights)), layout="constrained")
    for part, (name, result), own in zip(stacked(figure, heights), drawn, rows, strict=True):
        if own:
            _draw_maps(part, name, result, own)
    return figure


def _shown(result: JobResult) -> list[tuple[str, Record]]:
    """Class and concept of each row of maps: without the random concept, and of classes that are known to depend."""
    known = {name for record in result.done for name in record.scores["depending"] or ()}
    concepts = [record for record in result.done if record.sample != RANDOM]
    return [
        (name, record) for name in result.done[0].scores["classes"] if not known or name in known for record in concepts
    ]


def _draw_maps(part: Figure | SubFigure, model: str, result: JobResult, rows: Sequence[tuple[str, Record]]) -> None:
    layers = result.done[0].scores["layers"]
    maps = []
    for name, record in rows:
        explanation = result.explanations(record)[WHOLE]
        start = record.scores["classes"].index(name) * len(layers)
        maps.append(on_grid(explanation, explanation.attribution)[start : start + len(layers)])
    scale = heat_scale(maps, quantile=1.0)
    grid = part.subplots(len(rows), len(layers), squeeze=False)
    for own, (name, record), drawn in zip(grid, rows, maps, strict=True):
        for axes, values in zip(own, drawn, strict=True):
            axes.imshow(values, cmap=scale.cmap, norm=scale.norm)
            axes.set_xticks([])
            axes.set_yticks([])
        own[0].set_ylabel(f"{record.sample}\non class {name}", fontsize=8, rotation=0, ha="right", va="center")
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(f"layer {layer}", fontsize=8)
    part.suptitle(model, fontsize=10)
    bar = part.colorbar(scale, ax=list(grid.flat), pad=0.02)
    bar.set_label("weighted sensitivity, no unit", fontsize=8)
    bar.ax.tick_params(labelsize=7)
