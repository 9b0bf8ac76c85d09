"""Heat maps of tokens with the answer and the strongest directed pairs (Figures 3, 11 and 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure

from metagame.contracts import WHOLE, Explanation
from metagame.report.drawing import Drawing
from metagame.report.groups import Group, by_setting, stacked
from metagame.report.labels import told_apart
from metagame.report.maps import heat_scale
from metagame.report.recall import RECALL_CAPTION, at_matches, curve_styles, draw_recall
from metagame.report.results import JobResult

TOP = 10
MOST_PROMPTS, MOST_JOBS = 6, 4
MOST_PRINTED = 16
"""Tokens of a matrix whose values are printed in its cells."""
ANSWER_LINES, ANSWER_WIDTH = 9, 44
WITHOUT_MODEL = ("position", "random")
"""Families of methods whose maps say nothing of a model."""
TOKENS_CAPTION = (
    "How the tokens of a prompt influence each other's attribution to the model's answer. The row is the target i, the"
    " column is the player j, and the entry is the influence of j on the attribution of i, in logits; orange raises it,"
    " purple lowers it, and all prompts of a job share one colour scale. Bars are the sums of the rows: in a metagame,"
    " the first-order attributions. The text beside them is the model's answer and the pairs of largest size. Expect"
    " pairs of words that mean something only together to stand out from the rest."
)
BAR_HEIGHT = 0.85
"""Inches of the colour scale."""


@dataclass(frozen=True)
class Shown:
    """What is shown of one prompt.

    Attributes:
        text, answer: of the model.
        tokens: the players.
        matrix: meta-attributions; row = target i, column = player j.
    """

    text: str
    answer: str
    tokens: list[str]
    matrix: Float[np.ndarray, "n n"]

    def strongest(self) -> list[tuple[str, float]]:
        """The directed pairs ``player → target`` of largest size, with their entries."""
        names = told_apart(self.tokens)
        size = np.abs(self.matrix) * ~np.eye(len(self.matrix), dtype=bool)
        targets, players = np.unravel_index(np.argsort(-size, axis=None, kind="stable")[:TOP], size.shape)
        return [
            (f"{names[player]} → {names[target]}", float(self.matrix[target, player]))
            for target, player in zip(targets, players, strict=True)
            if player != target
        ]


@dataclass(frozen=True)
class ShownJob:
    """What is shown of one job.

    Attributes:
        group: of the jobs that differ in their method only.
        result: of one of them.
        prompts: of the job, six at most.
    """

    group: Group
    result: JobResult
    prompts: list[Shown]

    @property
    def height(self) -> float:
        """Inches of its part of a figure."""
        return BAR_HEIGHT + sum(map(_prompt_height, self.prompts))


def tokens_figure(results: list[JobResult]) -> Drawing | None:
    """A row for each of the first six prompts (Figures 11 and 12) of the first four jobs with a matrix.

    None where no job has one.
    """
    jobs = [ShownJob(group, result, shown_prompts(result)) for group, result in _with_matrix(results)]
    if not jobs:
        return None
    shown = jobs[:MOST_JOBS]
    figure = Figure(figsize=(11, sum(job.height for job in shown)), layout="constrained")
    for part, job in zip(stacked(figure, [job.height for job in shown]), shown, strict=True):
        _draw_prompts(part, job, len(jobs) - len(shown))
    return Drawing.single(figure, TOKENS_CAPTION)


def tokens_and_recall_figure(results: list[JobResult], prompts: Sequence[str]) -> Drawing | None:
    """Some prompts on the left, the recall of all prompts on the right (Figure 3).

    Of the first four jobs with a matrix; None where no job has one.

    Args:
        results: of the jobs.
        prompts: ids of those to show; the first ones where none of them was asked.
    """
    results = at_matches(results)
    jobs = [
        ShownJob(group, result, shown_prompts(result, prompts) or shown_prompts(result)[: len(prompts)])
        for group, result in _with_matrix(results)
    ]
    if not jobs:
        return None
    shown = jobs[:MOST_JOBS]
    styles = curve_styles([result for job in shown for result in job.group.results])
    figure = Figure(figsize=(15.5, sum(job.height for job in shown)), layout="constrained")
    for part, job in zip(stacked(figure, [job.height for job in shown]), shown, strict=True):
        left, right = part.subfigures(1, 2, squeeze=False, width_ratios=[11, 4.5])[0]
        _draw_prompts(left, job, len(jobs) - len(shown))
        axes = right.subplots()
        draw_recall(axes, job.group.results, styles)
        axes.set_box_aspect(1)
        axes.set_xlabel("K, % of all directed pairs")
        axes.set_ylabel("recall of annotated pairs")
        axes.set_title(f"{job.group.name}: mean over prompts ± 2 SE", fontsize=10)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return Drawing.single(figure, f"Left: {_lowered(TOKENS_CAPTION)}", f"Right: {_lowered(RECALL_CAPTION)}")


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:]


def _with_matrix(results: Sequence[JobResult]) -> list[tuple[Group, JobResult]]:
    """The jobs of methods that have values of pairs of tokens; those that ask no model where there are no others."""
    found = [
        (group, result)
        for group in by_setting(results)
        for result in group.results
        if any(_has_matrix(result.explanations(record)[WHOLE]) for record in result.done[:1])
    ]
    return [each for each in found if each[1].variant.family not in WITHOUT_MODEL] or found


def _has_matrix(explanation: Explanation) -> bool:
    return explanation.meta is not None and explanation.meta.order == 1


def shown_prompts(result: JobResult, prompts: Sequence[str] | None = None) -> list[Shown]:
    """The first finished prompts of a job, or those of them with these ids, in order; six at most."""
    records = [record for record in result.done if prompts is None or record.sample in prompts][:MOST_PROMPTS]
    found = [(record.scores, result.explanations(record)[WHOLE]) for record in records]
    return [
        Shown(scores["text"], scores["answer"], list(each.players), each.meta.values)
        for scores, each in found
        if each.meta is not None and each.meta.order == 1
    ]


def _prompt_height(shown: Shown) -> float:
    return max(3.4, 1.2 + 0.19 * len(shown.tokens))


def _draw_prompts(figure: Figure | SubFigure, job: ShownJob, n_more: int) -> None:
    """A row for each prompt of a job, and the colour scale that they share; ``n_more`` jobs are not shown."""
    shown, result = job.prompts, job.result
    scale = heat_scale([each.matrix.ravel() for each in shown], quantile=1.0)
    sums = [0.0, *(each.matrix.sum(1).max() for each in shown), *(each.matrix.sum(1).min() for each in shown)]
    heights = [*map(_prompt_height, shown), BAR_HEIGHT]
    *rows, last = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, each in zip(rows, shown, strict=True):
        _draw_prompt(row, each, scale, (min(sums) * 1.05, max(sums) * 1.05))
    below_maps, beside = last.subplots(1, 2, width_ratios=[6, 4.7])
    beside.set_axis_off()
    bar = figure.colorbar(scale, cax=below_maps, orientation="horizontal")
    left_out = len(result.done) - len(shown)
    absent = [f"{left_out} more prompts"] * (left_out > 0) + [f"{n_more} more jobs"] * (n_more > 0)
    more = f" ({', '.join(absent)} in the table)" if absent else ""
    bar.set_label(
        f"{result.label} of {job.group.name}, in logits{more}:\n"
        "influence of player j (column) on the attribution of target i (row)",
        fontsize=8,
    )
    bar.ax.tick_params(labelsize=8)


def _draw_prompt(figure: SubFigure, shown: Shown, scale: ScalarMappable, limits: tuple[float, float]) -> None:
    matrix, bars, text = figure.subplots(1, 3, width_ratios=[6, 1.3, 3.4])
    _draw_matrix(matrix, shown, scale)
    _draw_sums(bars, shown, scale)
    bars.set_xlim(limits)
    _write_pairs(text, shown)
    figure.suptitle("\n".join(wrap(shown.text, 130)), fontsize=9)


def _draw_matrix(axes: Axes, shown: Shown, scale: ScalarMappable) -> None:
    size = 8 if len(shown.tokens) <= 20 else 6
    lowest, highest = scale.get_clim()
    axes.imshow(shown.matrix, cmap=scale.cmap, vmin=lowest, vmax=highest, aspect="auto")
    places = range(len(shown.tokens))
    axes.set_xticks(places, shown.tokens, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(places, shown.tokens, fontsize=size)
    axes.tick_params(length=0)
    if len(shown.tokens) <= MOST_PRINTED:
        for (row, column), value in np.ndenumerate(shown.matrix):
            color = "white" if abs(value) > 0.6 * highest else "0.2"
            text = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # no minus before a zero
            axes.text(column, row, text, ha="center", va="center", fontsize=5.5, color=color)


def _draw_sums(axes: Axes, shown: Shown, scale: ScalarMappable) -> None:
    """The sums of the rows, which are the first-order attributions in a metagame."""
    sums = shown.matrix.sum(1)
    _, highest = scale.get_clim()
    colors = scale.to_rgba(0.6 * highest * np.sign(sums))
    axes.barh(range(len(sums)), sums, color=colors, height=0.8)
    axes.set_ylim(len(sums) - 0.5, -0.5)
    axes.set_yticks([])
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.tick_params(labelsize=7)
    axes.set_title("sum of the row", fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _write_pairs(axes: Axes, shown: Shown) -> None:
    """The answer, and the strongest pairs below it."""
    lines = wrap(" ".join(shown.answer.split()), ANSWER_WIDTH)
    if len(lines) > ANSWER_LINES:
        lines = [*lines[: ANSWER_LINES - 1], "…"]
    axes.set_axis_off()
    axes.text(0, 1, "Answer", weight="bold", fontsize=9, va="top", transform=axes.transAxes)
    axes.annotate(
        "\n".join([*lines, ""]), (0, 1), (0, -13), "axes fraction", "offset points", fontsize=8, va="top"
    )  # fmt: skip
    below = -13 - 11.5 * (len(lines) + 0.6)
    axes.annotate(
        "Strongest pairs (player → target)", (0, 1), (0, below), "axes fraction", "offset points", fontsize=9,
        weight="bold", va="top",
    )  # fmt: skip
    pairs = [f"{value:+.3f}".replace("-", "−") + f"  {name}" for name, value in shown.strongest()]
    axes.annotate("\n".join(pairs), (0, 1), (0, below - 13), "axes fraction", "offset points", fontsize=8, va="top")
