"""Tables 2 and 4: recognition in the pointing game; Figure 7: whom the words of some scenes point to."""

from __future__ import annotations

from itertools import product

import numpy as np
from matplotlib.figure import Figure

from metagame.benchmarks.pointing_game import SCENARIOS
from metagame.jobs import build
from metagame.report.maps import TOP, draw_edges, edge_scale
from metagame.report.published import published
from metagame.report.results import JobResult, failure_notes
from metagame.report.scores import all_hold, rounded_mean_cell
from metagame.report.table import Column, Table

TINY_NOTE = (
    "Published values are of the real models on ImageNet; the tiny ones were trained on handwritten digits and need not"
    " agree with them."
)
OBJECTS = tuple(f"objects_{m}" for m in SCENARIOS)


def pointing_game_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x method; cells the mean recognition with 1 to 4 objects, over games and images."""
    known = published("table2")
    columns = [Column("model", "model", "text"), Column("method", "method", "text")]
    columns += [Column(key, f"{m} object{'s' * (m > 1)}", "mean") for m, key in zip(SCENARIOS, OBJECTS, strict=True)]
    columns += [Column("n", "images", "text")]
    return Table(
        title=f"{results[0].config.name}: interaction recognition in the pointing game",
        scale=scale,
        columns=columns,
        rows=[_row(result) for result in results],
        published=[_published_row(result, known["rows"]) for result in results],
        n_samples=max(len(result.done) for result in results),
        claims=_claims(results, known["claims"]),
        notes=[
            "Recognition: share of the attribution that lies, positive, on the quadrant of its word or, negative, off"
            " it; mean ± 2 standard errors over games x images. Any map that is not negative has 0.25 where it is asked"
            " for four words.",
            "Claims compare means over the four columns, unless they speak of each; with FIxLIP, on its images.",
            *([TINY_NOTE] if scale == "tiny" else []),
            *_zero_notes(results),
            *failure_notes(results),
        ],
    )


def _row(result: JobResult) -> dict:
    row = {
        "model": result.config.model.label,
        "method": result.config.attribution.label,
        "n": str(len(result.done)),
    }
    for key in OBJECTS:
        scores = [record.scores[key] for record in result.done if record.scores.get(key) is not None]
        row[key] = rounded_mean_cell(scores)
    return row


def _published_row(result: JobResult, rows: list[dict]) -> dict:
    method = result.config.attribution.method
    if method.get("start_layer", "last") != "last" or method.get("heads", "one") != "one":
        return {}
    for row in rows:
        if (row["model"], row["attribution"], row["meta"]) == _kind(result):
            return dict(zip(OBJECTS, row["objects"], strict=True))
    return {}


def _kind(result: JobResult) -> tuple[str, str, bool]:
    """Model, first-order method, and whether its metagame is played."""
    attribution = result.config.attribution
    return result.config.model.name, attribution.name.removeprefix("meta_"), bool(attribution.meta)


def _zero_notes(results: list[JobResult]) -> list[str]:
    """A footnote for each job with maps that have no score, being zero everywhere."""
    notes = []
    for result in results:
        counts = [sum(record.scores.get(key) is None for record in result.done) for key in OBJECTS]
        if any(counts):
            name = f"{result.config.attribution.label} of {result.config.model.label}"
            notes.append(f"{name}: left out, since all maps are zero: {', '.join(map(str, counts))} images.")
    return notes


def _claims(results: list[JobResult], texts: dict[str, str]) -> list[dict]:
    """The paper's claims about the models at hand, answered from this run's numbers."""
    jobs = {_kind(result): result for result in results if result.done}
    models = sorted({model for model, *_ in jobs})
    answers: dict[str, bool | None] = {
        "meta_beats_first_order": _meta_beats_first_order(jobs),
        "meta_beats_fixlip": all_hold([_best_meta_beats_fixlip(jobs, model) for model in models]),
    }
    siglips = [model for model in models if model.startswith("siglip")]
    if siglips:
        answers["mask_siglip_is_best"] = all_hold([_is_best(jobs, (model, "mask_siglip", True)) for model in siglips])
    metaclips = [model for model in models if model.startswith("metaclip2")]
    if metaclips:
        rivals = [
            [jobs.get((model, name, True)) for name in ("generic_attention", "grad_eclip")] for model in metaclips
        ]
        answers["attention_beats_grad_eclip"] = all_hold([_beats(attention, eclip) for attention, eclip in rivals])
    return [{"claim": texts[name], "holds": holds} for name, holds in answers.items()]


def _any_holds(answers: list[bool | None]) -> bool | None:
    """Whether one holds; None where none is true and one is not known, or there is none."""
    if True in answers:
        return True
    return None if None in answers or not answers else False


def _beats(result: JobResult | None, rival: JobResult | None) -> bool | None:
    """Whether the mean recognition over the scenarios is larger, on the samples that both have; None: not known."""
    if result is None or rival is None:
        return None
    samples = {record.sample for record in result.done} & {record.sample for record in rival.done}
    ours, theirs = _score(result, samples), _score(rival, samples)
    return None if ours is None or theirs is None else ours > theirs


def _score(result: JobResult, samples: set[str]) -> float | None:
    """Mean recognition over the four scenarios of some samples; None where a scenario has no score."""
    records = [record for record in result.done if record.sample in samples]
    columns = [[r.scores[key] for r in records if r.scores.get(key) is not None] for key in OBJECTS]
    return float(np.mean([np.mean(column) for column in columns])) if all(columns) else None


def _meta_beats_first_order(jobs: dict[tuple, JobResult]) -> bool | None:
    pairs = [(jobs[kind], jobs[*kind[:2], False]) for kind in jobs if kind[2] and (*kind[:2], False) in jobs]
    cells = [(_row(meta)[key], _row(first)[key]) for (meta, first), key in product(pairs, OBJECTS)]
    return all_hold([a["mean"] > b["mean"] if a and b else None for a, b in cells])


def _best_meta_beats_fixlip(jobs: dict[tuple, JobResult], model: str) -> bool | None:
    fixlip = jobs.get((model, "fixlip", False))
    return _any_holds([_beats(result, fixlip) for kind, result in jobs.items() if kind[0] == model and kind[2]])


def _is_best(jobs: dict[tuple, JobResult], kind: tuple[str, str, bool]) -> bool | None:
    rivals = [result for other, result in jobs.items() if other[0] == kind[0] and other != kind]
    return all_hold([_beats(jobs.get(kind), rival) for rival in rivals])


def scenes_figure(results: list[JobResult], images: list[int]) -> Figure:
    """Figure 7: a row for each scene, a column for each number of words; lines from words to their strongest patches.

    Args:
        results: of one job of a meta variant.
        images: which images of the first game to show, counted from 0.
    """
    result = results[0]
    scenes = {scene.id: scene for scene in build(result.config.benchmark).samples()}
    records = {record.sample: record for record in result.done}
    game = next(iter(scenes.values())).game
    shown = [f"{game}/{k}" for k in images if f"{game}/{k}" in records]
    arrays = {name: result.arrays(records[name]) for name in shown}
    scale = edge_scale([arrays[name][f"{m}.matrix"] for name, m in product(shown, SCENARIOS)])
    figure = Figure(figsize=(3.0 * len(SCENARIOS) + 0.6, 3.5 * max(len(shown), 1) + 0.5), layout="constrained")
    grid = figure.subplots(max(len(shown), 1), len(SCENARIOS), squeeze=False)
    for row, name in zip(grid, shown, strict=False):
        scene = scenes[name]
        for axes, m in zip(row, SCENARIOS, strict=True):
            draw_edges(axes, scene.image(), scene.words[:m], arrays[name][f"{m}.matrix"], scale)
            recognition = records[name].scores[f"objects_{m}"]
            axes.set_title("" if recognition is None else f"recognition {recognition:.2f}", fontsize=10)
        row[0].set_ylabel(f"image {scene.k}", fontsize=10)
    name = f"{result.config.attribution.label}, {result.config.model.label}"
    scale.add_legend(figure, f"{name}: influence of a word on the attribution of a patch, {TOP} largest of each word")
    return figure
