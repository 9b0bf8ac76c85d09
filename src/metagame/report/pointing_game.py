"""Tables 2 and 4: recognition in the pointing game; Figure 7: whom the words of some scenes point to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from omegaconf import OmegaConf

from metagame.benchmarks.pointing_game import SCENARIOS, Scene, game_and_image, word_maps
from metagame.digests import digest
from metagame.jobs.build import build_part
from metagame.jobs.labels import has_shipped_weights
from metagame.report.drawing import Drawing
from metagame.report.groups import grouped, stacked
from metagame.report.maps import TOP, draw_edges, edge_scale, on_grid
from metagame.report.published import Row, other_weights, published, published_games, published_means
from metagame.report.results import JobResult, failure_notes
from metagame.report.scores import Difference, clustered_cell, decide
from metagame.report.table import Column, Table

SCALE_NOTES = {
    "tiny": "Published values are of the real models on ImageNet; the tiny ones were trained on handwritten digits and"
    " need not agree with them.",
    "small": "Published values are of other photographs, those of ImageNet's classes and games.",
}
OBJECTS = tuple(f"objects_{m}" for m in SCENARIOS)
SIGLIPS = ("siglip2_vitl16", "siglip2_vitb32")
METACLIPS = ("metaclip2_vith14", "metaclip2_vith14_378")
"""The models that claims are about, by the names of their configs."""
PROTOCOL = {"start_layer": "last", "heads": "one", "product": "of_means"}
"""Arguments of the methods with which the published numbers were made."""
PUBLISHED_FIXLIP = "fixlip_paper"
"""The choice of FIxLIP whose coalitions are drawn as theirs."""
OWN_CLAIM = "not in the paper: Meta-Patch IG beats FIxLIP on every model"
CLAIMS_NOTE = (
    "Claims compare the means over the four columns, unless they speak of each column, sample by sample; with FIxLIP,"
    " on the images that it has. A claim is decided if the difference is larger than two standard errors; the brackets"
    " hold the difference that speaks most against it."
)
PUBLISHED_NOTE = (
    "Published values were made with heads=one, product=of_means and encoding=jpeg, those of FIxLIP with"
    " attribution=fixlip_paper; the paper's text specifies neither heads nor encoding, and cites product=mean_of. "
)


def pointing_game_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x method; cells the mean recognition with 1 to 4 objects, over games and images."""
    columns = [Column("model", "model", "text"), Column("method", "method", "text")]
    columns += [Column(key, f"{m} object{'s' * (m > 1)}", "mean") for m, key in zip(SCENARIOS, OBJECTS, strict=True)]
    columns += [Column("n", "images", "count")]
    published_rows = [_published_row(result) for result in results]
    claims = _claims([result for result in results if is_of_the_paper(result)]) + _own_claims(results)
    return Table(
        title=f"{results[0].config.name}: interaction recognition in the pointing game",
        scale=scale,
        columns=columns,
        rows=[_row(result) for result in results],
        published=published_rows,
        n_samples=max(len(result.done) for result in results),
        claims=claims,
        notes=[
            "Recognition: the share of the attribution that is positive on the quadrant of its word or negative"
            " elsewhere; mean ± 2 standard errors. Image k is part of several games, so errors are clustered by image"
            " within games. A first-order method gives every word the same map, so a map without negative values"
            " scores 0.25 with four words.",
            *([CLAIMS_NOTE] if claims else []),
            *([PUBLISHED_NOTE + _other_settings(results)] if any(published_rows) else []),
            *_other_rows(results),
            *([SCALE_NOTES[scale]] if scale in SCALE_NOTES and any(published_rows) else []),
            *_zero_notes(results),
            *failure_notes(results),
        ],
    )


def _row(result: JobResult) -> dict:
    row = {"model": result.model, "method": result.label, "n": len(result.done)}
    for key in OBJECTS:
        row[key] = clustered_cell(scene_scores(result, [key]))
    return row


def _published_row(result: JobResult) -> dict:
    return dict(zip(OBJECTS, published_means().get(published_name(result), []), strict=False))


def published_name(result: JobResult) -> Row | None:
    """The row of the published tables that a job reproduces.

    None where an argument of its method, the model's weights or, at the paper's scale, the games are others.
    """
    method = result.variant.node.method
    if any(method.get(name, value) != value for name, value in PROTOCOL.items()):
        return None
    if not has_shipped_weights(result.config) or _plays_other_games(result):
        return None
    return result.config.model.name, result.variant.base, result.variant.meta


def _plays_other_games(result: JobResult) -> bool:
    """At the paper's scale; the other scales have images of other classes."""
    games = OmegaConf.select(result.config, "benchmark.games") or ()
    return result.config.scale.name == "paper" and not set(games) <= published_games()


def is_of_the_paper(result: JobResult) -> bool:
    """Whether Table 2 or 4 has rows of this method, with whatever arguments and model."""
    return any(base == result.variant.base for _, base, _ in published_means())


def _other_rows(results: list[JobResult]) -> list[str]:
    """Which rows are not in the paper, and what they leave out."""
    others = dict.fromkeys(result.label for result in results if not is_of_the_paper(result))
    return [f"Not in the paper: {', '.join(others)}. The paper's claims are not about them."] if others else []


def is_other_fixlip(result: JobResult) -> bool:
    """Whether this is FIxLIP with other coalitions than those of the published numbers."""
    return result.variant.base == "fixlip" and result.variant.node.name != PUBLISHED_FIXLIP


def _other_settings(results: list[JobResult]) -> str:
    """Which of this run's settings are not those of the published values."""
    found = set()
    for result in results:
        method, scenes = result.variant.node.method, result.config.benchmark.get("scenes", {})
        wanted = [(method, key, value) for key, value in PROTOCOL.items()] + [(scenes, "encoding", "jpeg")]
        found |= {f"{key}={node[key]}" for node, key, value in wanted if node.get(key, value) != value}
        found |= set(other_weights(result.config)) if is_of_the_paper(result) else set()
        found |= {"other games"} if _plays_other_games(result) else set()
        found |= {f"attribution={result.variant.node.name}"} if is_other_fixlip(result) else set()
    return f"This run has {', '.join(sorted(found))}." if found else "This run has the same."


def _zero_notes(results: list[JobResult]) -> list[str]:
    """A footnote for each job with maps that have no score, being zero everywhere."""
    notes = []
    for result in results:
        counts = [sum(record.scores.get(key) is None for record in result.done) for key in OBJECTS]
        if any(counts):
            name = f"{result.label} of {result.model}"
            notes.append(f"{name}: left out, because all maps are zero: {', '.join(map(str, counts))} images.")
    return notes


def _game(result: JobResult) -> str:
    """The same for jobs that are compared: of one model, scenes, seed and scale; FIxLIP plays fewer of the games."""
    sizes = ("n_games", "n_images", "played")
    benchmark = {key: value for key, value in result.identity["benchmark"].items() if key not in sizes}
    return digest(result.circumstances | {"benchmark": benchmark})


def _arguments(result: JobResult) -> str:
    """The same for a method and its metagame where nothing else differs."""
    return digest(result.method_identity["method"])


def _claims(results: list[JobResult]) -> list[dict]:
    """The paper's claims about the models and methods at hand, decided by paired differences of this run."""
    games = list(grouped([result for result in results if result.done], _game).values())
    found = {
        "meta_beats_first_order": _over_first_order(games),
        "meta_beats_fixlip": [each for game in games for each in _best_over_fixlip(game)],
    }
    siglips = [game for game in games if _is_one_of(game[0], SIGLIPS)]
    if siglips:
        found["mask_siglip_is_best"] = [each for game in siglips for each in _over_all_others(game, "mask_siglip")]
    metaclips = [game for game in games if _is_one_of(game[0], METACLIPS)]
    if metaclips:
        found["attention_beats_grad_eclip"] = [
            _difference(*pair)
            for game in metaclips
            for pair in product(_metagames(game, "generic_attention"), _metagames(game, "grad_eclip"))
        ]
    claims = published("pointing_game")["claims"]
    compared = {name: each for name, each in found.items() if any(difference.cell is not None for difference in each)}
    return [decide(**claims[name], differences=differences) for name, differences in compared.items()]


def _is_one_of(result: JobResult, models: Sequence[str]) -> bool:
    """Whether the job's model is one of those of the paper, with the paper's weights or the scale's stand-in."""
    return result.config.model.name in models and has_shipped_weights(result.config)


def _own_claims(results: list[JobResult]) -> list[dict]:
    """What is not in the paper: whether the metagame of Patch IG reaches FIxLIP."""
    games = grouped([result for result in results if result.done], _game).values()
    differences = [
        _difference(meta, rival)
        for game in games
        for meta in _metagames(game, "patch_ig")
        for rival in game
        if rival.uses("fixlip")
    ]
    return [decide(OWN_CLAIM, differences)] if differences else []


def _metagames(game: Sequence[JobResult], base: str) -> list[JobResult]:
    return [result for result in game if result.uses(base, meta=True)]


def _difference(result: JobResult, rival: JobResult, keys: Sequence[str] = OBJECTS) -> Difference:
    """Of the mean recognition over some scenarios, on the samples that both have scores of."""
    ours, theirs = scene_scores(result, keys), scene_scores(rival, keys)
    values = {place: ours[place] - theirs[place] for place in ours if place in theirs}
    m = keys[0].removeprefix("objects_")
    where = "" if tuple(keys) == OBJECTS else f", {m} object{'s' * (m != '1')}"
    return Difference(f"{result.label} - {rival.label}, {result.model}{where}", clustered_cell(values))


def scene_scores(result: JobResult, keys: Sequence[str]) -> dict[tuple[str, str], float]:
    """The mean over some scenarios of each sample that has a score in all, by game and image."""
    found = {}
    for record in result.done:
        scores = [score for key in keys if isinstance(score := record.scores.get(key), float)]
        if len(scores) == len(keys):
            found[game_and_image(record.sample)] = float(np.mean(scores))
    return found


def _over_first_order(games: Sequence[Sequence[JobResult]]) -> list[Difference]:
    return [
        _difference(meta, first, [key])
        for game in games
        for meta, first in product(game, repeat=2)
        if meta.variant.meta and first.uses(meta.variant.base) and _arguments(meta) == _arguments(first)
        for key in OBJECTS
    ]


def _best_over_fixlip(game: Sequence[JobResult]) -> list[Difference]:
    """The best metagame of a model against FIxLIP."""
    metas = [result for result in game if result.variant.meta]
    rivals = [result for result in game if result.uses("fixlip")]
    if not metas or not rivals:
        return [Difference(f"a metagame - FIxLIP, {game[0].model}", None)]
    against = [[_difference(meta, rival) for meta in metas] for rival in rivals]
    return [max(each, key=lambda difference: difference.margin) for each in against]


def _over_all_others(game: Sequence[JobResult], base: str) -> list[Difference]:
    """The metagame of a method against every other job."""
    own, rivals = _metagames(game, base), [result for result in game if not result.uses(base, meta=True)]
    if not own:
        return [Difference(f"the metagame of {base}, {game[0].model}", None)]
    return [_difference(*pair) for pair in product(own, rivals)]


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


def scenes_figure(results: list[JobResult], images: Sequence[int]) -> Drawing | None:
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
    return Drawing.single(
        figure,
        "Which patches each word of the text points to. Each picture holds four objects, one in each quadrant (white"
        " lines); from left to right, the text names the first one, two, three and all four of them.",
        f"Lines lead from each word to the {TOP} patches on which its influence is largest in size. Width is the size,"
        " on one scale for all pictures of a method, in the units of the method's map; dashed lines are negative.",
        "Recognition is the share of the influence that lies, positive, on the quadrant of its word or, negative,"
        " elsewhere: 1 is perfect, and a map without any preference has about one quarter.",
        "Expect solid lines to end in the quadrant of their word.",
    )


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
            _draw_quadrants(axes)
            recognition = scores[scene.id][f"objects_{m}"]
            axes.set_title("" if recognition is None else f"recognition {recognition:.2f}", fontsize=10)
        row[0].set_ylabel(f"image {scene.k}", fontsize=10)
    part.suptitle(f"{result.label} of {result.model}", fontsize=11)
    scale.add_legend(part, f"influence of a word on the attribution of a patch, the {TOP} largest of each word")


def _draw_quadrants(axes: Axes) -> None:
    """The borders of the four objects, through the middle of the picture."""
    left, right, bottom, top = axes.images[0].get_extent()
    across, down = (left + right) / 2, (bottom + top) / 2
    axes.vlines(across, top, bottom, colors="white", linewidth=1.5, zorder=1)
    axes.hlines(down, left, right, colors="white", linewidth=1.5, zorder=1)
