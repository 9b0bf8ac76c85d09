"""The figure of prompts whose pairs are of several kinds: what each method finds of each kind beside closeness."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metagame.report.drawing import Drawing
from metagame.report.groups import Group, by_setting
from metagame.report.maps import COLORS
from metagame.report.recall import kinds_of, measure, percentiles_of_kind
from metagame.report.results import JobResult
from metagame.report.scores import mean_cell

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
ALL = "all pairs"


def kinds_figure(results: list[JobResult]) -> Drawing | None:
    """A panel for each model: percentile at equal distance by kind, ± 2 standard errors; None without pairs."""
    groups = [group for group in by_setting(results) if any(measure(each, "percentile") for each in group.results)]
    if not groups:
        return None
    names = [ALL, *kinds_of(results)]
    width = 1.6 + 1.15 * len(names)
    figure = Figure(figsize=(width, 0.8 + 3.0 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        _draw(axes, group, names)
    panels[-1].set_xticks(range(len(names)), names)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=int(width / 1.5), frameon=False, fontsize=9)
    return Drawing.single(
        figure,
        "Where annotated pairs of tokens rank among the pairs of the same distance in their prompt, by the kind of the"
        " pair. 1 is above all of them, the dashed line at 0.5 is chance, so closeness alone gains nothing here.",
        "Points are means over prompts, bars are two standard errors: a method finds a kind of pair where its bar lies"
        " above the line.",
    )


def _draw(axes: Axes, group: Group, names: list[str]) -> None:
    places = np.linspace(-0.3, 0.3, len(group.results))
    for result, shift, color, marker in zip(group.results, places, cycle(COLORS), cycle(MARKERS), strict=False):
        found = {name: _percentiles(result, name) for name in names}
        cells = {at: mean_cell(found[name]) for at, name in enumerate(names) if found[name]}
        axes.errorbar(
            [at + shift for at in cells],
            [cell["mean"] for cell in cells.values()],
            yerr=[cell["two_se"] or 0.0 for cell in cells.values()],
            color=color, marker=marker, markersize=5, linestyle="", capsize=2, label=result.label,
        )  # fmt: skip
    axes.axhline(0.5, color="0.4", linewidth=0.8, linestyle="--")
    axes.annotate("chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                  va="center", fontsize=8, color="0.3")  # fmt: skip
    for boundary in np.arange(0.5, len(names) - 1):
        axes.axvline(boundary, color="0.9", linewidth=0.8)
    axes.set_title(group.name, fontsize=10)
    axes.set_ylabel("percentile among pairs\nof the same distance")
    axes.set_xlim(-0.5, len(names) - 0.5)


def _percentiles(result: JobResult, name: str) -> list[float]:
    return list(measure(result, "percentile").values()) if name == ALL else percentiles_of_kind(result, name)
