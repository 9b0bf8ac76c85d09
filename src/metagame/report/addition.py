"""Figures 1, 5 and 6: how each method explains sums of the adder, as numbers and as heat maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from metagame.records import Record
from metagame.report.maps import DIVERGING
from metagame.report.results import JobResult, failure_notes
from metagame.report.table import Column, Table

PLAYERS = ("a", "op", "b")
SIGNED, WEIGHTS = DIVERGING, "Greys"


def addition_table(results: list[JobResult], scale: str) -> Table:
    """Rows are example x method; cells the first-order values phi_i and the second-order values j→i of the players."""
    columns = [Column("example", "example", "text"), Column("method", "method", "text")]
    columns += [Column("output", "f(x)", "number"), Column("empty_output", "f(∅)", "number")]
    columns += [Column(f"phi_{player}", f"φ_{player}", "number") for player in PLAYERS]
    columns += [Column(f"{j}_to_{i}", f"{j}→{i}", "number") for i in PLAYERS for j in PLAYERS]
    rows = []
    for example in _examples(results):
        for result in results:
            row = {"example": example, "method": result.config.attribution.label}
            for record in (record for record in result.done if record.sample == example):
                row |= {key: _rounded(record.scores[key]) for key in ("output", "empty_output")}
                row |= _cells(result.arrays(record))
            rows.append(row)
    return Table(
        title=f"{results[0].config.name}: first-order and second-order attributions of the adder's sums",
        scale=scale,
        columns=columns,
        rows=rows,
        published=[{} for _ in rows],
        n_samples=len(_examples(results)),
        notes=[
            "φ_i: attribution of token i, in units of the sum. j→i: influence of token j on the attribution of token i;"
            " of a meta variant, the values j→i sum to its φ_i.",
            "Meta-IG plays IG at fewer path steps than the IG row. AttnLRP's φ do not sum to f(x): positions and the"
            " token = take a share. Half of STII off the diagonal, and its diagonal, sum to SV.",
            "Attention: weight of key j for query i, without the key =. f(∅): output when a, op and b are masked.",
            *failure_notes(results),
        ],
    )


def _cells(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    cells = {f"phi_{player}": value for player, value in zip(PLAYERS, arrays.get("first_order", ()), strict=False)}
    if "matrix" in arrays:
        cells |= {f"{PLAYERS[j]}_to_{PLAYERS[i]}": arrays["matrix"][i, j] for i in range(3) for j in range(3)}
    return {key: _rounded(value) for key, value in cells.items()}


def _rounded(value: float) -> float:
    """Six decimals: float64 sums may differ in the last digit between machines."""
    return round(float(value), 6) + 0.0


def _examples(results: list[JobResult]) -> list[str]:
    return list(dict.fromkeys(sample for result in results for sample in result.sample_ids))


@dataclass(frozen=True)
class Panel:
    """One heat map: values ``(rows, columns)`` with what the rows and columns are called."""

    values: np.ndarray
    rows: list[str]
    columns: list[str]


def addition_figure(results: list[JobResult]) -> Figure:
    """A row of panels per method, a column per example; one colour scale per family of methods.

    First-order panels have one row; second-order panels have a row per target i and a column per player j.
    """
    examples = _examples(results)
    panels = [[_panel_of(result, example) for example in examples] for result in results]
    heights = [max((len(panel.rows) for panel in row if panel is not None), default=1) for row in panels]
    size = (2.6 + 2.5 * len(examples), 0.9 + sum(0.38 * height + 0.45 for height in heights))
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    grid = figure.subplots(len(results), len(examples), squeeze=False, height_ratios=[h + 0.6 for h in heights])
    for family, rows in _families(results).items():
        scale = _scale([panel for row in rows for panel in panels[row] if panel is not None])
        for row in rows:
            _draw_method(grid[row], results[row], panels[row], scale)
        unit = "attention weight" if family == "attention" else "attribution (units of the sum)"
        bar = figure.colorbar(scale, ax=list(grid[rows].flat), aspect=4 + 5 * len(rows), shrink=0.9, pad=0.02)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    for column, example in enumerate(examples):
        grid[0, column].set_title(_heading(results, example), fontsize=10)
    figure.supxlabel("columns: player j (attention: key); rows: target i (attention: query)", fontsize=8)
    return figure


def teaser_figure(results: list[JobResult]) -> Figure:
    """One example, a column per family: its first-order method above, that method's meta-attributions below."""
    example = _examples(results)[0]
    families = list(_families(results).values())
    depth = max(map(len, families))
    figure = Figure(figsize=(0.5 + 2.9 * len(families), 0.8 + 1.5 * depth), layout="constrained")
    grid = figure.subplots(depth, len(families), squeeze=False, height_ratios=[1.4, *[3.3] * (depth - 1)])
    for column, rows in enumerate(families):
        panels = [_panel_of(results[row], example) for row in rows]
        scale = _scale([panel for panel in panels if panel is not None])
        for axes in grid[len(rows) :, column]:
            axes.set_axis_off()
        for axes, row, panel in zip(grid[:, column], rows, panels, strict=False):
            _draw_or_say_missing(axes, panel, scale)
            axes.set_title(results[row].config.attribution.label, fontsize=10, fontweight="bold")
        bar = figure.colorbar(scale, ax=list(grid[:, column]), location="bottom", shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=7)
    grid[-1, 0].set_ylabel("target i", fontsize=9)
    figure.suptitle(_heading(results, example).replace("\n", ",  "), fontsize=11)
    figure.supxlabel(
        "player j; entry (i, j): influence of j on the attribution of i; row i sums to φ of i at equal steps",
        fontsize=8,
    )
    return figure


def _heading(results: list[JobResult], example: str) -> str:
    outputs = [r.scores["output"] for result in results for r in result.done if r.sample == example]
    return f"{example}\nf(x) = {_two_digits(outputs[0])}" if outputs else example


def _two_digits(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _families(results: list[JobResult]) -> dict[str, list[int]]:
    """Rows of each family, in order."""
    rows: dict[str, list[int]] = {}
    for row, result in enumerate(results):
        rows.setdefault(result.config.attribution.family, []).append(row)
    return rows


def _panel_of(result: JobResult, example: str) -> Panel | None:
    """The panel of an example, or None where it was not computed."""
    for record in result.done:
        if record.sample == example:
            return _panel(result, record)
    return None


def _panel(result: JobResult, record: Record) -> Panel:
    arrays = result.arrays(record)
    tokens = [*record.scores["players"], "="]
    if "matrix" in arrays:
        rows, columns = arrays["matrix"].shape
        return Panel(arrays["matrix"], tokens[:rows], tokens[:columns])
    return Panel(arrays["first_order"][None, :], ["φ"], tokens[:-1])


def _scale(panels: list[Panel]) -> ScalarMappable:
    """Signed values: symmetric about 0 up to the largest in the family. Attention (rows sum to 1): from 0 to 1."""
    if all((panel.values >= 0).all() and np.allclose(panel.values.sum(1), 1) for panel in panels):
        return ScalarMappable(Normalize(0, 1), WEIGHTS)
    limit = max((np.abs(panel.values).max() for panel in panels), default=1.0) or 1.0
    return ScalarMappable(Normalize(-limit, limit), SIGNED)


def _draw_method(axes_row: np.ndarray, result: JobResult, panels: list[Panel | None], scale: ScalarMappable) -> None:
    axes_row[0].annotate(
        result.config.attribution.label, (0, 0.5), (-34, 0), "axes fraction", "offset points",
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
    axes.imshow(panel.values, cmap=scale.cmap, norm=scale.norm, aspect="auto")
    axes.set_xticks(range(len(panel.columns)), _signs(panel.columns), fontsize=9)
    axes.set_yticks(range(len(panel.rows)), _signs(panel.rows), fontsize=9)
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(panel.values):
        red, green, blue, _ = scale.to_rgba(value)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        color = "white" if dark else "black"
        axes.text(column, row, _two_digits(value), ha="center", va="center", fontsize=8, color=color)


def _signs(tokens: list[str]) -> list[str]:
    """Tokens with a minus that can be seen."""
    return [token.replace("-", "−") for token in tokens]
