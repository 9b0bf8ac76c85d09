"""Figures 1, 5 and 6: how each method explains sums of the adder, as numbers and as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from metagame.contracts import WHOLE, Explanation
from metagame.report.drawing import Drawing
from metagame.report.groups import Group, by_setting, grouped, stacked
from metagame.report.maps import DIVERGING
from metagame.report.results import JobResult, failure_notes
from metagame.report.table import Column, Table

PLAYERS = ("a", "op", "b")
SIGNED, WEIGHTS = DIVERGING, "Greys"
ATTENTION = "attention"
"""The family of methods whose values are attention weights."""
WEIGHT = "attention weight"
_HOW_TO_READ = (
    "φ is the attribution of a token, in the unit of the sum. In a matrix, the row is the target i, the column is the"
    " player j, and the entry is the influence of j on the attribution of i; orange is positive, purple is negative."
    " The rows of a metagame's matrix sum to φ"
)
FEWER_STEPS = "; with Meta-IG only nearly so, since it takes fewer steps along the path"


def addition_table(results: list[JobResult], scale: str) -> Table:
    """Rows are example x method; cells the first-order values phi_i and the second-order values j→i of the players."""
    several = len({result.model for result in results}) > 1
    columns = [Column("example", "example", "text")]
    columns += [Column("model", "model", "text")] if several else []
    columns += [Column("method", "method", "text")]
    columns += [Column("output", "f(x)", "number"), Column("empty_output", "f(∅)", "number")]
    columns += [Column(f"phi_{player}", f"φ_{player}", "number") for player in PLAYERS]
    columns += [Column(f"{j}_to_{i}", f"{j}→{i}", "number") for i in PLAYERS for j in PLAYERS]
    examples = list(dict.fromkeys(example for result in results for example in result.sample_ids))
    rows = [
        {"example": example} | ({"model": result.model} if several else {}) | _row(result, example)
        for example in examples
        for result in results
        if example in result.sample_ids
    ]
    return Table(
        title=f"{results[0].config.name}: first-order and second-order attributions of the adder's sums",
        scale=scale,
        columns=columns,
        rows=rows,
        published=[{} for _ in rows],
        n_samples=len({record.sample for result in results for record in result.done}),
        notes=[*([] if several else [f"Model: {results[0].model}."]), *_notes(results), *failure_notes(results)],
    )


def _notes(results: Sequence[JobResult]) -> list[str]:
    """How to read the values of the methods that are shown."""
    bases = {result.variant.base for result in results}
    sentences = {
        "Meta-IG takes fewer path steps than the IG row.": _meta_ig_takes_fewer_steps(results),
        "The φ of AttnLRP do not sum to f(x), because the positions and the token = receive a share.": (
            "attnlrp" in bases
        ),
        "The diagonal of STII and half of its other entries sum to SV.": "stii" in bases,
    }
    of_methods = " ".join(sentence for sentence, holds in sentences.items() if holds)
    shows_attention = any(result.variant.family == ATTENTION for result in results)
    attention = "Attention: weight of key j for query i, without the key =. " if shows_attention else ""
    return [
        "φ_i: attribution of token i, in units of the sum. j→i: influence of token j on the attribution of token i;"
        " of a meta variant, the values j→i sum to its φ_i.",
        *([of_methods] if of_methods else []),
        f"{attention}f(∅): output when a, op and b are masked.",
    ]


def _meta_ig_takes_fewer_steps(results: Sequence[JobResult]) -> bool:
    """Whether both IG and its metagame are shown, and the latter's paths are coarser."""
    of_first, of_meta = (
        [steps for each in results if each.uses("ig", meta=meta) if (steps := each.variant.node.method.get("steps"))]
        for meta in (False, True)
    )
    return bool(of_first and of_meta) and max(of_meta) < min(of_first)


def _how_to_read(results: Sequence[JobResult]) -> str:
    return _HOW_TO_READ + (FEWER_STEPS if _meta_ig_takes_fewer_steps(results) else "") + "."


def _row(result: JobResult, example: str) -> dict[str, str | float]:
    row: dict[str, str | float] = {"method": result.label}
    for record in result.done:
        if record.sample == example:
            row |= {key: _rounded(record.scores[key]) for key in ("output", "empty_output")}
            row |= _cells(result.explanations(record)[WHOLE])
    return row


def _cells(explanation: Explanation) -> dict[str, float]:
    cells = {}
    if explanation.attribution is not None:
        cells = {f"phi_{i}": value for i, value in zip(PLAYERS, explanation.attribution, strict=True)}
    if explanation.meta is not None:
        n = len(PLAYERS)  # attention weights have one more, of the token =
        cells |= {f"{PLAYERS[j]}_to_{PLAYERS[i]}": explanation.meta.values[i, j] for i in range(n) for j in range(n)}
    return {key: _rounded(value) for key, value in cells.items()}


def _rounded(value: float) -> float:
    """Six decimals: float64 sums may differ in the last digit between machines."""
    return round(float(value), 6) + 0.0


@dataclass(frozen=True)
class Panel:
    """One heat map, with what its rows and columns are called.

    Attributes:
        values: ``(rows, columns)``: one row of first-order values, or a row for each target.
        rows, columns: names.
    """

    values: Float[np.ndarray, "r c"]
    rows: Sequence[str]
    columns: Sequence[str]


def addition_figure(results: list[JobResult]) -> Drawing:
    """A row of panels per method, a column per example; one colour scale for attributions, one for attention weights.

    First-order panels have one row; second-order panels have a row per target i and a column per player j. Jobs of
    several models, seeds or benchmarks have a part each.
    """
    groups = by_setting(results)
    panels = [[[_panel_of(each, name) for name in group.sample_ids] for each in group.results] for group in groups]
    rows = [[_most_rows(row) for row in own] for own in panels]
    heights = [0.9 + sum(0.38 * height + 0.45 for height in own) + 0.4 * (len(groups) > 1) for own in rows]
    n_columns = max(len(group.sample_ids) for group in groups)
    figure = Figure(
        figsize=(2.6 + 2.5 * n_columns, sum(heights)), layout=ConstrainedLayoutEngine(hspace=0.02, wspace=0.02)
    )
    for part, group, own, n_rows in zip(stacked(figure, heights), groups, panels, rows, strict=True):
        _draw_group(part, group, own, n_rows)
        if len(groups) > 1:
            part.suptitle(group.name, fontsize=11)
    return Drawing.single(
        figure,
        "How each method explains the model's answer to a sum, f(x). Columns are sums, rows are methods.",
        _how_to_read(results),
        "Attention weights have a scale of their own: a row is a query, a column is a key, and rows sum to 1.",
        "Expect φ to sum to f(x), less the output for no token, for SV and IG; in a second-order matrix, expect large"
        " values where the operator meets the number that it adds or subtracts.",
    )


def _most_rows(panels: Sequence[Panel | None]) -> int:
    return max((len(panel.rows) for panel in panels if panel is not None), default=1)


def _draw_group(part: Figure | SubFigure, group: Group, panels: list[list[Panel | None]], n_rows: list[int]) -> None:
    examples, results = group.sample_ids, group.results
    grid = part.subplots(len(results), len(examples), squeeze=False, height_ratios=[n + 0.6 for n in n_rows])
    for unit, rows in grouped(range(len(results)), lambda row: _unit(results[row])).items():
        scale = _scale(unit, [panel for row in rows for panel in panels[row] if panel is not None])
        for row in rows:
            _draw_method(grid[row], results[row], panels[row], scale)
        bar = part.colorbar(scale, ax=list(grid[rows].flat), aspect=4 + 5 * len(rows), shrink=0.9, pad=0.02)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    for column, example in enumerate(examples):
        grid[0, column].set_title(_heading(group, example), fontsize=10)
    part.supxlabel("columns: player j (attention: key); rows: target i (attention: query)", fontsize=8)


def teaser_figure(results: list[JobResult]) -> Drawing:
    """One example, a column per family: its first-order method above, that method's meta-attributions below.

    All attributions share one colour scale, since all have the unit of the model's output.

    Jobs of several models, seeds or benchmarks have a part each.
    """
    groups = by_setting(results)
    families = [list(_families(group.results).values()) for group in groups]
    depths = [max(map(len, own)) for own in families]
    heights = [0.8 + 1.5 * depth for depth in depths]
    figure = Figure(figsize=(0.5 + 2.9 * max(map(len, families)), sum(heights)), layout="constrained")
    for part, group, own, depth in zip(stacked(figure, heights), groups, families, depths, strict=True):
        _draw_teaser(part, group, own, depth)
        title = _heading(group, group.sample_ids[0]).replace("\n", ",  ")
        part.suptitle(f"{group.name}:  {title}" if len(groups) > 1 else title, fontsize=11)
    return Drawing.single(
        figure,
        "Three ways to explain the model's answer to a sum, f(x): first-order methods above, and below, for each, how"
        " every token influences the attribution of every other.",
        _how_to_read(results),
        "Expect the operator and the number behind it to act through each other: their entries off the diagonal are"
        " large, those with the first number are near zero.",
    )


def _draw_teaser(part: Figure | SubFigure, group: Group, families: list[list[int]], depth: int) -> None:
    example, results = group.sample_ids[0], group.results
    grid = part.subplots(depth, len(families), squeeze=False, height_ratios=[1.4, *[3.3] * (depth - 1)])
    panels_of = [[_panel_of(results[row], example) for row in rows] for rows in families]
    by_unit = grouped(range(len(families)), lambda column: _unit(results[families[column][0]]))
    scales = {
        unit: _scale(unit, [panel for column in columns for panel in panels_of[column] if panel is not None])
        for unit, columns in by_unit.items()
    }
    for column, (rows, panels) in enumerate(zip(families, panels_of, strict=True)):
        scale = scales[_unit(results[rows[0]])]
        for axes in grid[len(rows) :, column]:
            axes.set_axis_off()
        for axes, row, panel in zip(grid[:, column], rows, panels, strict=False):
            _draw_or_say_missing(axes, panel, scale)
            axes.set_title(results[row].label, fontsize=10, fontweight="bold")
    for unit, columns in by_unit.items():
        bar = part.colorbar(scales[unit], ax=list(grid[:, columns].flat), shrink=0.9, pad=0.02)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    grid[-1, 0].set_ylabel("target i", fontsize=9)
    part.supxlabel("player j; entry (i, j): influence of j on the attribution of i", fontsize=8)


def _heading(group: Group, example: str) -> str:
    outputs = [r.scores["output"] for result in group.results for r in result.done if r.sample == example]
    return f"{example}\nf(x) = {_two_digits(outputs[0])}" if outputs else example


def _two_digits(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _families(results: Sequence[JobResult]) -> dict[str, list[int]]:
    """Rows of each family, in order."""
    return grouped(range(len(results)), lambda row: results[row].variant.family)


def _panel_of(result: JobResult, example: str) -> Panel | None:
    """The panel of an example, or None where nothing was computed."""
    for record in result.done:
        if record.sample == example:
            return _panel(result.explanations(record)[WHOLE])
    return None


def _panel(explanation: Explanation) -> Panel | None:
    if explanation.meta is not None:
        return Panel(explanation.meta.values, explanation.targets, explanation.players)
    if explanation.attribution is None:
        return None
    return Panel(explanation.attribution[None, :], ["φ"], explanation.targets)


def _unit(result: JobResult) -> str:
    """What a colour scale measures."""
    return WEIGHT if result.variant.family == ATTENTION else "attribution (units of the sum)"


def _scale(unit: str, panels: Sequence[Panel]) -> ScalarMappable:
    """Signed values: symmetric about 0 up to the largest. Attention weights: from 0 to 1."""
    if unit == WEIGHT:
        lowest = min((panel.values.min() for panel in panels), default=0.0)
        highest = max((panel.values.max() for panel in panels), default=1.0)
        return ScalarMappable(Normalize(min(lowest, 0), max(highest, 1)), WEIGHTS)
    limit = max((np.abs(panel.values).max() for panel in panels), default=1.0) or 1.0
    return ScalarMappable(Normalize(-limit, limit), SIGNED)


def _draw_method(axes_row: np.ndarray, result: JobResult, panels: list[Panel | None], scale: ScalarMappable) -> None:
    axes_row[0].annotate(
        result.label, (0, 0.5), (-34, 0), "axes fraction", "offset points",
        ha="right", va="center", fontsize=9, fontweight="bold",
    )  # fmt: skip
    for axes, panel in zip(axes_row, panels, strict=True):
        _draw_or_say_missing(axes, panel, scale)


def _draw_or_say_missing(axes: Axes, panel: Panel | None, scale: ScalarMappable) -> None:
    if panel is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not computed", ha="center", va="center", transform=axes.transAxes)
    else:
        _draw(axes, panel, scale)


def _draw(axes: Axes, panel: Panel, scale: ScalarMappable) -> None:
    lowest, highest = scale.get_clim()
    axes.imshow(panel.values, cmap=scale.cmap, vmin=lowest, vmax=highest, aspect="auto")
    axes.set_xticks(range(len(panel.columns)), _signs(panel.columns), fontsize=9)
    axes.set_yticks(range(len(panel.rows)), _signs(panel.rows), fontsize=9)
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(panel.values):
        red, green, blue, _ = scale.to_rgba(value)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        color = "white" if dark else "black"
        axes.text(column, row, _two_digits(value), ha="center", va="center", fontsize=8, color=color)


def _signs(tokens: Sequence[str]) -> list[str]:
    """Tokens with a minus that can be seen."""
    return [token.replace("-", "−") for token in tokens]
