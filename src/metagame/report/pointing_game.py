"""Tables 2 and 4: recognition in the pointing game; Figure 7: whom the words of some scenes point to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure, SubFigure

from metagame.benchmarks.pointing_game import SCENARIOS, Scene, word_maps
from metagame.digests import digest
from metagame.jobs.build import build_part
from metagame.report.groups import grouped, stacked
from metagame.report.maps import TOP, draw_edges, edge_scale, on_grid
from metagame.report.published import published
from metagame.report.results import JobResult, failure_notes
from metagame.report.scores import all_hold, rounded_mean_cell
from metagame.report.table import Column, Table

TINY_NOTE = (
    "Published values are of the real models on ImageNet; the tiny ones were trained on handwritten digits and need not"
    " agree with them."
)
OBJECTS = tuple(f"objects_{m}" for m in SCENARIOS)
SIGLIPS = ("siglip2_vitl16", "siglip2_vitb32")
METACLIPS = ("metaclip2_vith14", "metaclip2_vith14_378")
"""The models that claims are about, by the names of their configs."""


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
    row = {"model": result.model, "method": result.label, "n": str(len(result.done))}
    for key in OBJECTS:
        scores = [record.scores[key] for record in result.done if record.scores.get(key) is not None]
        row[key] = rounded_mean_cell(scores)
    return row


def _published_row(result: JobResult, rows: list[dict]) -> dict:
    method = result.variant.node.method
    if method.get("start_layer", "last") != "last" or method.get("heads", "one") != "one":
        return {}
    kind = result.config.model.name, result.variant.base, result.variant.meta
    for row in rows:
        if (row["model"], row["attribution"], row["meta"]) == kind:
            return dict(zip(OBJECTS, row["objects"], strict=True))
    return {}


def _zero_notes(results: list[JobResult]) -> list[str]:
    """A footnote for each job with maps that have no score, being zero everywhere."""
    notes = []
    for result in results:
        counts = [sum(record.scores.get(key) is None for record in result.done) for key in OBJECTS]
        if any(counts):
            name = f"{result.label} of {result.model}"
            notes.append(f"{name}: left out, since all maps are zero: {', '.join(map(str, counts))} images.")
    return notes


def _game(result: JobResult) -> str:
    """The same for jobs that are compared: of one model, scenes, seed and scale; FIxLIP plays fewer of the games."""
    sizes = ("n_games", "n_images")
    benchmark = {key: value for key, value in result.identity["benchmark"].items() if key not in sizes}
    return digest(result.circumstances | {"benchmark": benchmark})


def _arguments(result: JobResult) -> str:
    """The same for a method and its metagame where nothing else differs."""
    return digest(result.method_identity["method"])


def _claims(results: list[JobResult], texts: dict[str, str]) -> list[dict]:
    """The paper's claims about the models at hand, answered from this run's numbers."""
    games = list(grouped([result for result in results if result.done], _game).values())
    answers: dict[str, bool | None] = {
        "meta_beats_first_order": _meta_beats_first_order(games),
        "meta_beats_fixlip": all_hold([_best_meta_beats_fixlip(game) for game in games]),
    }
    siglips = [game for game in games if game[0].config.model.name in SIGLIPS]
    if siglips:
        answers["mask_siglip_is_best"] = all_hold([_is_best(game, "mask_siglip") for game in siglips])
    metaclips = [game for game in games if game[0].config.model.name in METACLIPS]
    if metaclips:
        rivals = [
            pair
            for game in metaclips
            for pair in product(*(_metagames(game, base) or [None] for base in ("generic_attention", "grad_eclip")))
        ]
        answers["attention_beats_grad_eclip"] = all_hold([_beats(attention, eclip) for attention, eclip in rivals])
    return [{"claim": texts[name], "holds": holds} for name, holds in answers.items()]


def _metagames(game: Sequence[JobResult], base: str) -> list[JobResult]:
    return [result for result in game if result.uses(base, meta=True)]


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


def _meta_beats_first_order(games: Sequence[Sequence[JobResult]]) -> bool | None:
    pairs = [
        (meta, first)
        for game in games
        for meta, first in product(game, repeat=2)
        if meta.variant.meta and first.uses(meta.variant.base) and _arguments(meta) == _arguments(first)
    ]
    cells = [(_row(meta)[key], _row(first)[key]) for (meta, first), key in product(pairs, OBJECTS)]
    return all_hold([a["mean"] > b["mean"] if a and b else None for a, b in cells])


def _best_meta_beats_fixlip(game: Sequence[JobResult]) -> bool | None:
    rivals = [result for result in game if result.uses("fixlip")] or [None]
    metas = [result for result in game if result.variant.meta]
    return all_hold([_any_holds([_beats(meta, rival) for meta in metas]) for rival in rivals])


def _is_best(game: Sequence[JobResult], base: str) -> bool | None:
    """Whether the metagame of a method beats every other job."""
    own = _metagames(game, base)
    rivals = [result for result in game if not result.uses(base, meta=True)]
    return all_hold([_beats(result, rival) for result, rival in product(own or [None], rivals)])


@dataclass(frozen=True)
class ShownScenes:
    """What is shown of one job.

    Attributes:
        result: of the job.
        scenes: of them, a row each.
        maps: of each scene, by its id, and scenario: ``(rows, columns, m)``.
    """

    result: JobResult
    scenes: list[Scene]
    maps: dict[str, dict[int, Float[np.ndarray, "rows columns _"]]]


def scenes_figure(results: list[JobResult], images: Sequence[int]) -> Figure | None:
    """Figure 7: a row for each scene, a column for each number of words; lines from words to their strongest patches.

    Each job has a part of its own. None where no job has computed one of the scenes.

    Args:
        results: of jobs whose methods have a map of each word.
        images: which images of the first game to show, counted from 0.
    """
    jobs = [job for result in results if (job := _shown_scenes(result, images)).scenes]
    if not jobs:
        return None
    heights = [3.5 * len(job.scenes) + 0.5 for job in jobs]
    figure = Figure(figsize=(3.0 * len(SCENARIOS) + 0.6, sum(heights)), layout="constrained")
    for part, job in zip(stacked(figure, heights), jobs, strict=True):
        _draw_scenes(part, job)
    return figure


def _shown_scenes(result: JobResult, images: Sequence[int]) -> ShownScenes:
    scenes: list[Scene] = build_part(result.config.benchmark).samples()
    wanted = [f"{scenes[0].game}/{k}" for k in images]
    records = {record.sample: record for record in result.done}
    shown = [scene for name in wanted for scene in scenes if scene.id == name and name in records]
    maps = {}
    for scene in shown:
        by_question = {m: result.explanations(records[scene.id])[str(m)] for m in SCENARIOS}
        maps[scene.id] = {m: on_grid(each, word_maps(each, m))[0] for m, each in by_question.items()}
    return ShownScenes(result, shown, maps)


def _draw_scenes(part: Figure | SubFigure, job: ShownScenes) -> None:
    result = job.result
    scores = {record.sample: record.scores for record in result.done}
    scale = edge_scale([values for by_m in job.maps.values() for values in by_m.values()])
    grid = part.subplots(len(job.scenes), len(SCENARIOS), squeeze=False)
    for row, scene in zip(grid, job.scenes, strict=True):
        for axes, m in zip(row, SCENARIOS, strict=True):
            draw_edges(axes, scene.image(), scene.words[:m], job.maps[scene.id][m], scale)
            recognition = scores[scene.id][f"objects_{m}"]
            axes.set_title("" if recognition is None else f"recognition {recognition:.2f}", fontsize=10)
        row[0].set_ylabel(f"image {scene.k}", fontsize=10)
    name = f"{result.label}, {result.model}"
    scale.add_legend(part, f"{name}: influence of a word on the attribution of a patch, {TOP} largest of each word")
