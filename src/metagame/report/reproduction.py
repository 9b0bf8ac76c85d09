"""Does a run at paper scale reproduce the published numbers? A table of the answer, and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from metagame.jobs.labels import has_shipped_weights
from metagame.jobs.spec import Variant
from metagame.report.drawing import Drawing
from metagame.report.groups import grouped
from metagame.report.maps import COLORS
from metagame.report.pointing_game import OBJECTS, PUBLISHED_FIXLIP, is_other_fixlip, published_name, scene_scores
from metagame.report.published import published_images, published_means
from metagame.report.results import JobResult
from metagame.report.scores import clustered_cell
from metagame.report.segmentation import METRICS, Score, segmentation_scores, setting_names
from metagame.report.table import Column, Table

TOLERANCE = 0.01
"""A mean difference up to this is no deviation, even where it is significant: it is the last digit that is printed."""
SAME_IMAGES, OTHER_IMAGES = 0.8, 0.5
"""The scores of a block's images correlate with the published ones at least so much in the median scenario; those of
a single scenario that correlate less than the second number are of other images."""
VARIES = 0.005
"""Published scores with a smaller standard deviation are too equal for a correlation."""
CHANCE = 0.0455
"""How often a difference is beyond two standard errors by chance."""


@dataclass(frozen=True)
class Comparison:
    """A number of the run beside the published one.

    Attributes:
        place: what it is of, such as ``fish-koala-balloon-laptop``.
        column: of the table, such as ``2 objects``.
        ours, theirs: the values.
        error: the standard error of the difference: of ours, of theirs, and of the rounding of what is published.
        correlation: over the images, of ours and theirs; None where it is not known.
    """

    place: str
    column: str
    ours: float
    theirs: float
    error: float
    correlation: float | None = None

    @property
    def difference(self) -> float:
        return self.ours - self.theirs

    @property
    def is_within(self) -> bool:
        """Whether the difference is within two standard errors."""
        return abs(self.difference) <= 2 * self.error


@dataclass(frozen=True)
class Block:
    """All comparisons of a method with a model, or of a method with a benchmark.

    Attributes:
        where: the model or the benchmark.
        method: what tables call it.
        variant: of the job.
        comparisons: what is compared.
        aside: why the block does not count; empty where it does.
    """

    where: str
    method: str
    variant: Variant
    comparisons: list[Comparison]
    aside: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} of {self.where}"

    @property
    def correlation(self) -> float | None:
        """The median over the scenarios whose images can be compared."""
        known = [each.correlation for each in self.comparisons if each.correlation is not None]
        return float(np.median(known)) if known else None

    def deviations(self) -> list[str]:
        """In which respects the block deviates from the published one, in words; [] where it is reproduced."""
        found, n = [], len(self.comparisons)
        beyond = [each for each in self.comparisons if not each.is_within]
        if len(beyond) > binom.ppf(0.99, n, CHANCE):
            found.append(f"{len(beyond)} of {n} differences beyond two standard errors")
        for column, group in grouped(self.comparisons, lambda each: each.column).items():
            mean = float(np.mean([each.difference for each in group]))
            error = float(np.sqrt(np.sum([each.error**2 for each in group]))) / len(group)
            if abs(mean) > max(TOLERANCE, 2 * error):
                found.append(f"{column} {mean:+.3f} ± {2 * error:.3f}")
        if self.correlation is not None and self.correlation < SAME_IMAGES:
            found.append(f"image by image, a correlation of only {self.correlation:.2f}: other images, or other crops")
        elif self.correlation is not None:
            others = [each for each in self.comparisons if (each.correlation or 1.0) < OTHER_IMAGES]
            places = ", ".join(dict.fromkeys(each.place for each in others))
            found += [f"other images in {places}"] if others else []
        return found

    def verdict(self) -> str:
        if self.aside:
            return f"not counted: {self.aside}"
        return "; ".join(self.deviations()) or "reproduced"


@dataclass(frozen=True)
class Reproduction:
    """The answer for an experiment.

    Attributes:
        blocks: what is compared.
        known: how many blocks the paper has.
    """

    blocks: list[Block]
    known: int

    @property
    def verdict(self) -> str:
        """One sentence: reproduced, reproduced but for some blocks, or not reproduced."""
        counted = [block for block in self.blocks if not block.aside]
        wrong = [block for block in counted if block.deviations()]
        scope = f"{len(counted)} of {self.known} published blocks are compared"
        if not counted:
            return f"Reproduction check: nothing is compared; {scope}."
        reasons = "; ".join(f"{block.name} ({block.verdict()})" for block in wrong)
        if not wrong:
            return f"Reproduction check: reproduced; {scope}."
        answer = "reproduced but for" if 2 * len(wrong) <= len(counted) else "not reproduced:"
        return f"Reproduction check: {answer} {reasons}; {scope}."

    def table(self, name: str, scale: str) -> Table:
        """A row for each block."""
        columns: list[tuple[str, str, Literal["text", "mean", "number"]]] = [
            ("where", "model or benchmark", "text"), ("method", "method", "text"),
            ("within", "within two standard errors", "text"), ("difference", "mean difference", "mean"),
            ("largest", "most standard errors away", "text"),
            ("correlation", "correlation of the images", "number"), ("verdict", "verdict", "text"),
        ]  # fmt: skip
        return Table(
            title=f"{name}: does the run reproduce the published numbers?",
            scale=scale,
            columns=[Column(*column) for column in columns],
            rows=[_row(block) for block in self.blocks],
            published=[{} for _ in self.blocks],
            n_samples=sum(len(block.comparisons) for block in self.blocks),
            notes=[
                self.verdict,
                "A difference is ours less the published value, scenario by scenario or metric by metric; its standard"
                " error takes both runs as independent, so a run on the same images lies within it more often than"
                " not. The correlation is over the images of a scenario, median over scenarios; it reveals other"
                " images, or another preparation of them, before the means do.",
                "A block deviates where more differences are beyond two standard errors than chance allows (1 %), where"
                f" a column's mean differs by more than {TOLERANCE} and two standard errors, or where the images do"
                f" not correlate ({SAME_IMAGES} in the median, {OTHER_IMAGES} in each scenario).",
            ],
        )

    def comparisons(self) -> list[dict[str, Any]]:
        """All comparisons, a mapping each."""
        return [
            {
                "where": block.where, "method": block.method, "place": each.place, "column": each.column,
                "ours": each.ours, "published": each.theirs, "difference": each.difference, "error": each.error,
                "within": each.is_within, "correlation": each.correlation,
            }
            for block in self.blocks
            for each in block.comparisons
        ]  # fmt: skip

    def figure(self) -> Drawing | None:
        """Ours against the published values, and the correlation of the images, for each model or benchmark.

        None where nothing is compared.
        """
        panels = grouped([block for block in self.blocks if block.comparisons], lambda block: block.where)
        if not panels:
            return None
        with_images = any(block.correlation is not None for block in self.blocks)
        heights = [3, 1.4] if with_images else [3]
        figure = Figure(figsize=(4.4 * len(panels), 1.9 * sum(heights)), layout="constrained")
        grid = figure.subplots(len(heights), len(panels), squeeze=False, height_ratios=heights)
        for column, (where, blocks) in zip(grid.T, panels.items(), strict=True):
            column[0].set_title(where, fontsize=11)
            _draw_values(column[0], blocks)
            if with_images:
                _draw_correlations(column[1], blocks)
        return Drawing.single(
            figure,
            "Values of this run against the published ones: a point for each scenario or metric, a colour for each"
            " method, squares for metagames. Points on the grey line agree; bars are two standard errors of the"
            " difference.",
            "Below, how well the scores of single images correlate with the published ones: near 1 where the images"
            " are the same."
            if with_images
            else "",
        )


def pointing_game_reproduction(results: Sequence[JobResult]) -> Reproduction:
    """Tables 2 and 4: scenario by scenario and image by image where the authors published that, else by the means."""
    models = {result.config.model.name for result in results if has_shipped_weights(result.config)}
    blocks = [block for result in results if (block := _pointing_game_block(result)) is not None]
    return Reproduction(blocks, sum(name[0] in models for name in published_means()))


def segmentation_reproduction(results: Sequence[JobResult]) -> Reproduction:
    """Table 3 and Figure 13: a block for each benchmark, track and method, of all cells and metrics."""
    scores, names = [score for score in segmentation_scores(results) if score.published()], setting_names(results)
    blocks = []
    for own in grouped(scores, lambda each: (each.result.setting, each.track, each.result.label)).values():
        first = own[0]
        comparisons = [each for score in own for each in _cell_comparisons(score)]
        where = f"{names[first.result.setting]} {first.track}"
        blocks.append(Block(where, first.result.label, first.result.variant, comparisons, _segmentation_aside(first)))
    return Reproduction(blocks, len(blocks))


def _row(block: Block) -> dict[str, Any]:
    within = sum(each.is_within for each in block.comparisons)
    furthest = max(block.comparisons, key=lambda each: abs(each.difference) / each.error, default=None)
    return {
        "where": block.where,
        "method": block.method,
        "within": f"{within} of {len(block.comparisons)}",
        "difference": _mean_difference(block.comparisons),
        "largest": "" if furthest is None else f"{furthest.place}, {furthest.column}: {furthest.difference:+.3f}",
        "correlation": None if block.correlation is None else round(block.correlation, 3),
        "verdict": block.verdict(),
    }


def _mean_difference(comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    if not comparisons:
        return None
    mean = float(np.mean([each.difference for each in comparisons]))
    two_se = 2 * float(np.sqrt(np.sum([each.error**2 for each in comparisons]))) / len(comparisons)
    return {"mean": round(mean, 6), "two_se": round(two_se, 6), "n": len(comparisons)}


def _pointing_game_block(result: JobResult) -> Block | None:
    """None where nothing is published of the job."""
    row = published_name(result)
    if row is None or row not in published_means():
        return None
    aside = ""
    if is_other_fixlip(result):
        aside = f"attribution={result.variant.node.name}, but the published numbers are of {PUBLISHED_FIXLIP}"
    images = published_images().get(row)
    if images is not None:
        comparisons = [each for m, key in enumerate(OBJECTS, 1) for each in _scenarios(result, m, key, images[m])]
    else:
        comparisons = list(_printed(result, published_means()[row]))
        aside = aside or ("" if comparisons else "the means can only be compared for all 500 images")
    return Block(result.model, result.label, result.variant, comparisons, aside)


def _scenarios(result: JobResult, m: int, key: str, images: dict[tuple[str, str], float]) -> Iterator[Comparison]:
    """Of each game, on the images that both have a score of."""
    ours = scene_scores(result, [key])
    for game, places in grouped([place for place in images if place in ours], lambda place: place[0]).items():
        if len(places) < 2:
            continue
        x, y = (np.array([each[place] for place in places]) for each in (ours, images))
        rounding = 0.001**2 / 12
        error = float(np.sqrt((x.var(ddof=1) + y.var(ddof=1) + rounding) / len(places)))
        known = y.std(ddof=1) >= VARIES
        correlation = (float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 else 0.0) if known else None
        yield Comparison(game, _objects(m), float(x.mean()), float(y.mean()), error, correlation)


def _printed(result: JobResult, means: Sequence[float]) -> Iterator[Comparison]:
    """Of the means over all games and images, two decimals of which are printed."""
    for m, (key, theirs) in enumerate(zip(OBJECTS, means, strict=True), 1):
        cell = clustered_cell(scene_scores(result, [key]))
        if cell is not None and cell["n"] == 500 and cell["two_se"] is not None:
            error = float(np.sqrt(2 * (cell["two_se"] / 2) ** 2 + 0.01**2 / 12))
            yield Comparison("all games", _objects(m), cell["mean"], theirs, error)


def _objects(m: int) -> str:
    return f"{m} object{'s' * (m > 1)}"


def _cell_comparisons(score: Score) -> Iterator[Comparison]:
    for name, theirs in score.published().items():
        cell = score.metrics[name].cell()
        if cell is not None and cell["two_se"] is not None:
            error = float(np.sqrt(2 * (cell["two_se"] / 2) ** 2 + 0.0001**2 / 12))
            yield Comparison(score.cell.name, METRICS[name], cell["mean"], theirs, error)


def _segmentation_aside(score: Score) -> str:
    limit = score.result.config.limit
    return "" if limit is None else f"limit={limit}, but the published numbers are of all images"


def _styles(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """A colour for each method; its metagame has filled squares."""
    bases = list(dict.fromkeys(block.variant.base for block in blocks))
    colors = [COLORS[bases.index(block.variant.base) % len(COLORS)] for block in blocks]
    return [
        {"color": color, "markersize": 4.5, "alpha": 0.8}
        | ({"marker": "s"} if block.variant.meta else {"marker": "o", "markerfacecolor": "white"})
        for block, color in zip(blocks, colors, strict=True)
    ]


def _draw_values(axes: Axes, blocks: Sequence[Block]) -> None:
    for block, style in zip(blocks, _styles(blocks), strict=True):
        x, y, bars = np.transpose([[each.theirs, each.ours, 2 * each.error] for each in block.comparisons])
        axes.errorbar(x, y, bars, linestyle="", elinewidth=0.7, label=block.method, **style)
    axes.axline((0.5, 0.5), slope=1, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel("published", fontsize=9)
    axes.set_ylabel("this run, ± 2 standard errors\nof the difference", fontsize=9)
    axes.legend(fontsize=7.5, frameon=False)


def _draw_correlations(axes: Axes, blocks: Sequence[Block]) -> None:
    for place, (block, style) in enumerate(zip(blocks, _styles(blocks), strict=True)):
        known = [each.correlation for each in block.comparisons if each.correlation is not None]
        axes.plot(np.linspace(place - 0.25, place + 0.25, len(known)), known, linestyle="", **style)
    axes.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(blocks)), [block.method for block in blocks], fontsize=8, rotation=30, ha="right")
    axes.set_ylabel("correlation of\nthe images", fontsize=9)
    axes.set_ylim(min(axes.get_ylim()[0], -0.05), 1.1)
