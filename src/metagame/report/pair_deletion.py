"""The table and the curves of token-pair insertion and deletion."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metagame.report.drawing import Drawing
from metagame.report.groups import by_setting
from metagame.report.maps import COLORS
from metagame.report.recall import END_TOKEN_NOTES, STYLES
from metagame.report.results import JobResult, failure_notes, setting_notes
from metagame.report.scores import DECIDED, Difference, decide, mean_cell, rounded_mean_cell
from metagame.report.table import Column, Table

CURVES = {"insertion": "area below insertion", "deletion": "area below deletion", "area": "area between the curves"}

DRAWN = {"insertion": "put in", "deletion": "taken out"}
"""The curves of the figure, and what happens to the tokens."""
SHARES = np.linspace(0, 1, 51)
"""Of a prompt's tokens, at which the curves of prompts are averaged."""

CLAIM = "Meta-AttnLRP has a larger area between the curves than sums of AttnLRP"


def pair_deletion_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x method; cells the areas of the curves, in logits, and the gain over random pairs."""
    columns = [Column("model", "model", "text"), Column("method", "method", "text")]
    columns += [Column(key, label, "mean") for key, label in CURVES.items()]
    gains = [_gain(*pair) for pair in _comparisons(results)]
    columns += [Column("gain", "gain over random", "mean"), Column("n", "prompts", "count")]
    return Table(
        title=f"{results[0].config.name}: insertion and deletion of token pairs",
        scale=scale,
        columns=columns,
        rows=[_row(result, results) for result in results],
        published=[{} for _ in results],
        n_samples=max(len(result.done) for result in results),
        claims=[decide(CLAIM, gains)] if gains else [],
        notes=[
            "Mean logit of the answer's tokens, averaged over the share of the prompt's tokens that are inserted"
            " (higher is better) or deleted (lower is better), strongest pairs first; mean ± 2 standard errors over"
            " prompts."
            " The area between the curves is insertion - deletion: higher is better.",
            "Gain: the area between the curves minus that of random pairs, prompt by prompt.",
            "Pairs are ranked by the size of their larger direction, those of first-order methods by |R_a + R_b|.",
            *setting_notes(results, "model.end_token", END_TOKEN_NOTES),
            DECIDED,
            *_comparison_notes(results),
            *failure_notes(results),
        ],
    )


def _row(result: JobResult, results: list[JobResult]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": result.model,
        "method": result.label,
        "n": len(result.done),
    }
    row |= {key: rounded_mean_cell([record.scores[key] for record in result.done]) for key in CURVES}
    return row | {"gain": rounded_mean_cell(_gains(result, results))}


def _gains(result: JobResult, results: list[JobResult]) -> list[float]:
    """The area less that of random pairs, on the prompts that both have."""
    for other in results:
        if other.uses("random_pairs") and other is not result and other.setting == result.setting:
            return _differences(result, other, "area")
    return []


def _differences(result: JobResult, other: JobResult, score: str) -> list[float]:
    """One job's score less another's, on the prompts that both have."""
    known = {record.sample: record.scores[score] for record in other.done}
    return [record.scores[score] - known[record.sample] for record in result.done if record.sample in known]


def _comparisons(results: list[JobResult]) -> list[tuple[JobResult, JobResult]]:
    """Meta-AttnLRP and AttnLRP, of which nothing else differs, with prompts that both have."""
    return [
        (meta, first)
        for meta in results
        for first in results
        if meta.uses("attnlrp", meta=True) and first.uses("attnlrp") and meta.setting == first.setting
        if _differences(meta, first, "area")
    ]


def _gain(meta: JobResult, first: JobResult) -> Difference:
    cell = rounded_mean_cell(_differences(meta, first, "area"))
    return Difference(f"{meta.label} - {first.label}, {meta.model}", cell)


def _comparison_notes(results: list[JobResult]) -> list[str]:
    """How far Meta-AttnLRP is from sums of AttnLRP in each curve, prompt by prompt."""
    notes = []
    for group in by_setting(results):
        for meta, first in _comparisons(group.results):
            cells = {score: mean_cell(_differences(meta, first, score)) for score in CURVES}
            texts = [
                f"{score} {cell['mean']:+.3f}" + ("" if cell["two_se"] is None else f" ± {cell['two_se']:.3f}")
                for score, cell in cells.items()
            ]
            notes.append(
                f"{group.name}: {meta.label} minus sums of {first.label}, prompt by prompt: {', '.join(texts)}."
            )
    return notes


def pair_deletion_figure(results: list[JobResult]) -> Drawing | None:
    """A row for each model: the curves of insertion and of deletion, the mean over prompts ± 2 standard errors.

    None where no record has curves: those of earlier versions have areas alone.
    """
    groups = [group for group in by_setting(results) if any(map(_with_curves, group.results))]
    if not groups:
        return None
    figure = Figure(figsize=(9, 0.9 + 3.1 * len(groups)), layout="constrained")
    grid = figure.subplots(len(groups), len(DRAWN), squeeze=False, sharex=True, sharey="row")
    for row, group in zip(grid, groups, strict=True):
        for axes, (curve, done) in zip(row, DRAWN.items(), strict=True):
            _draw_curves(axes, group.results, curve)
            axes.set_title(f"{group.name}: {curve}", fontsize=10)
            axes.set_xlabel(f"tokens {done}, % of the prompt")
        row[0].set_ylabel("mean logit of the answer")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return Drawing.single(
        figure,
        "What the model's answer gains and loses with pairs of tokens, strongest pair first. Insertion puts the tokens"
        " of one pair after the other into a prompt without any; deletion takes them out of the full prompt.",
        "Vertical axis: the mean logit of the tokens that the model answers to the full prompt. Lines are means over"
        " prompts, bands two standard errors.",
        "A faithful ranking rises fast in insertion and falls fast in deletion; the area between its two curves is in"
        " the table. Random pairs show what any order gives.",
        "All curves of a panel begin and end at the same two values, those of no token and of all tokens.",
    )


def _with_curves(result: JobResult) -> bool:
    return any("curve_shares" in record.scores for record in result.done)


def _draw_curves(axes: Axes, results: list[JobResult], curve: str) -> None:
    for result, color, style in zip(results, cycle(COLORS), cycle(STYLES), strict=False):
        scores = [record.scores for record in result.done if "curve_shares" in record.scores]
        if not scores:
            continue
        curves = [np.interp(SHARES, each["curve_shares"], each[f"{curve}_curve"]) for each in scores]
        cells = [mean_cell(list(values)) for values in np.transpose(curves)]
        mean, spread = (np.array([cell[part] or 0.0 for cell in cells]) for part in ("mean", "two_se"))
        axes.plot(100 * SHARES, mean, color=color, linestyle=style, linewidth=2, label=result.label)
        axes.fill_between(100 * SHARES, mean - spread, mean + spread, color=color, alpha=0.12, linewidth=0)
    axes.set_xlim(0, 100)
    axes.grid(alpha=0.3)
