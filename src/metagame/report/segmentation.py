"""Table 3 and Figure 13: segmentation by concepts, of every cell, track and method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, cycle, product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metagame.benchmarks.segmentation import BASELINE, LEFT_OUT, TRACKS, Cell
from metagame.jobs.spec import Variant
from metagame.report.drawing import Drawing, caption_of
from metagame.report.groups import Group, by_setting, grouped
from metagame.report.jackknife import JackknifeRatio
from metagame.report.maps import COLORS
from metagame.report.published import other_settings, other_weights, published
from metagame.report.results import JobResult, failure_notes, setting_notes
from metagame.report.scores import Difference, decide
from metagame.report.table import DASH, Column, Table

FIRST, MEAN_FIRST = "concept_attention", "mean_first"
META, PER_LAYER = "meta_concept_attention", "meta_per_layer"
ROLES = {(False, False): FIRST, (False, True): MEAN_FIRST, (True, True): META, (True, False): PER_LAYER}
"""ConceptAttention and its metagame, in the paper's order of softmax and mean over layers and in the other one."""
BASES = ("concept_attention", "concept_mean_first")
"""Base names of these, see :class:`metagame.jobs.spec.AttributionKeys`."""
BENCHMARKS = {"voc": "VOC", "coco": "COCO", "imagenet_seg": "ImageNet-Seg"}
LIKE_FOR_LIKE = (
    "beyond the paper: Meta-ConceptAttention has a higher {metric} in every cell than ConceptAttention that averages"
    " over layers first, on the same logits"
)
METRICS = {"acc": "Acc", "miou": "mIoU", "map": "mAP"}
METRIC_NAMES = {
    "acc": "Acc: pixel accuracy", "miou": "mIoU: mean intersection over union", "map": "mAP: mean average precision",
}  # fmt: skip
ABLATION_TITLES = {
    BASELINE: "baseline", "decoupled": "decoupled", "last_layers": "last layers", "prompt": "prompt",
}  # fmt: skip
ABLATION_TEXTS = {
    BASELINE: "baseline has none of these changes",
    "decoupled": "in decoupled, concepts attend to the image only, not to each other",
    "last_layers": "last layers uses {layers} of the baseline",
    "prompt": "in prompt, the model is also given a text prompt that names the classes in the image",
}
CHANNEL_NOTES = {
    "present": "multi: each pixel is assigned to the class of the image, or the background concept, with the largest"
    " map.",
    "players": "multi: each pixel is assigned to the player, be it a class of the image or a distractor, or to the"
    " background concept, with the largest map.",
}
FULL_CLASS_NOTES = {
    "skipped": "A class that fills all labelled pixels of an image has no AP there, as in the paper's code.",
    "counted": "A class that fills all labelled pixels of an image has an AP of 1 there; the paper's code skips it.",
}
RESAMPLE_NOTES = {
    "torch_nearest": "Images are stretched by torch's nearest neighbour, as in the paper's code.",
    "nearest": "Images are stretched by Pillow's nearest neighbour; the paper's code takes torch's.",
}
POSTERIOR_NOTES = {
    "sample": "Latents are samples of the autoencoder's distribution, as in the paper's code.",
    "mean": "Latents are means of the autoencoder's distribution; the paper's code samples them.",
}
NOISE_NOTES = {
    "device": "Noise is drawn on the model's device, in its type; the paper's code draws it on a GPU.",
    "cpu": "Noise is drawn on the CPU; the paper's code draws it on a GPU.",
}
VAE_DTYPE_NOTES = {
    "float32": "The autoencoder computes in float32, as in the paper's code.",
    "bfloat16": "The autoencoder computes in bfloat16; that of the paper's code computes in float32.",
    "float64": "The autoencoder computes in float64; that of the paper's code computes in float32.",
}
TINY_NOTE = (
    "Published values are of FLUX.1-schnell; the tiny model was trained on scenes of handwritten digits and need not"
    " agree with them."
)


def role(variant: Variant) -> str | None:
    """Which of the paper's two methods a variant is, or of these two in the other order; None: another method."""
    if variant.base not in BASES:
        return None
    return ROLES[variant.meta, bool(variant.node.method.get("mean_first", False))]


@dataclass(frozen=True)
class Score:
    """Counts of a job's images in one cell and track, by one method.

    Attributes:
        result: the job's variant.
        cell: of its benchmark.
        track: one of TRACKS.
        counts: by image, see :mod:`metagame.benchmarks.segmentation_metrics`.
    """

    result: JobResult
    cell: Cell
    track: str
    counts: dict[str, dict[str, Any]]

    @property
    def role(self) -> str | None:
        return role(self.result.variant)

    @cached_property
    def metrics(self) -> dict[str, JackknifeRatio]:
        """The keys of METRICS."""
        counts = list(self.counts.values())
        accuracy = [[[each[name]] for each in counts] for name in ("correct", "pixels")]
        if self.track == "single":
            overlap = [[each[name] for each in counts] for name in ("intersection", "union")]
            precision = [[[each["ap"]] for each in counts], [[1] for _ in counts]]
        else:
            overlap = [_by_class([each[name] for each in counts], counts) for name in ("intersection", "union")]
            here = [dict.fromkeys(each["ap"], 1) for each in counts]
            precision = [_by_class([each["ap"] for each in counts], counts), _by_class(here, counts)]
        pairs = zip(METRICS, (accuracy, overlap, precision), strict=True)
        return {name: JackknifeRatio.of_ratios(*map(np.asarray, pair)) for name, pair in pairs}

    def published(self) -> dict[str, float]:
        """The paper's values of the keys of METRICS; {} where there are none, or they were made with other settings."""
        return {} if self.other_settings() else self.printed()

    def printed(self) -> dict[str, float]:
        """The paper's values of this cell, track and method, with whatever settings; {} where there are none."""
        cells = published("figure13")["cells"].get(self.result.config.benchmark.name, {})
        values = cells.get(self.cell.name, {}).get(self.role, {}).get(self.track)
        return dict(zip(METRICS, values, strict=True)) if values else {}

    def other_settings(self) -> list[str]:
        """What of the job's settings is not as the published numbers were made; the tiny scale stands in for them."""
        config, theirs = self.result.config, published("figure13")
        if config.model.name != theirs["model"]:
            return [f"model={config.model.name}"]
        settings = theirs["multi_settings"] if self.track == "multi" else {}
        if config.scale.name != "tiny":
            settings = settings | theirs["settings"] | theirs["data_settings"].get(config.benchmark.name, {})
        return [*other_weights(config), *other_settings(config, settings)]


def segmentation_table(results: list[JobResult], scale: str) -> Table:
    """A row for each benchmark, track, cell and method."""
    scores, names = segmentation_scores(results), setting_names(results)
    several_models = _several_models(results)
    several_cells = len({score.cell for score in scores}) > 1
    columns = [Column("benchmark", "benchmark", "text"), Column("track", "track", "text")]
    columns += [Column("model", "model", "text")] if several_models else []
    if several_cells:
        columns += [Column("players", "players", "text"), Column("ablation", "ablation", "text")]
    columns += [Column("method", "method", "text")]
    columns += [Column(key, label, "mean") for key, label in METRICS.items()]
    return Table(
        title=f"{results[0].config.name}: segmentation by concepts",
        scale=scale,
        columns=[*columns, Column("n", "images", "count")],
        rows=[_row(score, names[score.result.setting]) for score in scores],
        published=[score.published() for score in scores],
        n_samples=max(len(result.done) for result in results),
        claims=_claims(scores),
        notes=[
            *_model_notes(results),
            "single: images with one class, whose map is thresholded at its mean. Acc and mIoU are pooled over images;"
            " ± 2 standard errors, from the jackknife over images.",
            *setting_notes(results, "benchmark.channels", CHANNEL_NOTES),
            *_cell_notes(scores),
            *_count_wins(scores),
            *setting_notes(results, "benchmark.full_classes", FULL_CLASS_NOTES),
            *setting_notes(results, "model.denoising.resample", RESAMPLE_NOTES),
            *setting_notes(results, "model.denoising.posterior", POSTERIOR_NOTES),
            *setting_notes(results, "model.denoising.noise", NOISE_NOTES),
            *setting_notes(results, "model.vae_dtype", VAE_DTYPE_NOTES),
            *_swap_notes(scores, _full_names(results)),
            *([TINY_NOTE] if scale == "tiny" and any(score.published() for score in scores) else []),
            *_unpublished_notes(scores, _full_names(results)),
            *_count_notes(results),
            *failure_notes(results),
        ],
    )


def segmentation_scores(results: Sequence[JobResult]) -> list[Score]:
    """The scores of every benchmark, track, cell and method that have an image; labels are told apart."""
    return list(_scores(_told_apart(results)))


def _scores(results: Sequence[JobResult]) -> Iterator[Score]:
    """In the order of jobs, tracks, cells and methods."""
    for variants in grouped(results, lambda result: result.folder).values():
        benchmark = variants[0].config.benchmark
        cells = [Cell(size, ablation) for size in benchmark.players for ablation in benchmark.ablations]
        for track, cell, result in product(TRACKS, cells, variants):
            found = {record.sample: record.scores.get(cell.name, {}).get(track) for record in result.done}
            counts = {sample: each for sample, each in found.items() if each is not None}
            if counts:
                yield Score(result, cell, track, counts)


def players_text(players: str) -> str:
    """What a size of :class:`metagame.benchmarks.segmentation.Cell` means."""
    number = players[1:]
    if players == "n0":
        return "n0: only the classes of the image"
    if players[0] == "d":
        return f"{players}: the classes of the image and {number} distractors"
    return f"{players}: {number} concepts in all, the classes of the image and distractors"


def _cell_notes(scores: Sequence[Score]) -> list[str]:
    """What the sizes and the ablations at hand mean."""
    sizes = "; ".join(dict.fromkeys(players_text(score.cell.players) for score in scores))
    ablations = list(dict.fromkeys(score.cell.ablation for score in scores))
    notes = [f"Players: {sizes}. Distractors are classes that are not in the image."] if sizes else []
    if ablations not in ([], [BASELINE]):
        notes.append(f"Ablations: {_ablation_texts(scores)}.")
    return notes


def _ablation_texts(scores: Sequence[Score]) -> str:
    """What the ablations at hand mean."""
    ablations = dict.fromkeys(score.cell.ablation for score in scores)
    return "; ".join(ABLATION_TEXTS[ablation] for ablation in ablations).format(layers=_fewer_layers(scores))


def _fewer_layers(scores: Sequence[Score]) -> str:
    """How many layers the ablation of layers leaves, as the jobs have it."""
    nodes = [score.result.config.benchmark for score in scores]
    known = {(node.fewer_layers, node.n_layers) for node in nodes if "fewer_layers" in node and "n_layers" in node}
    return " or ".join(f"only the last {few} of the {most} layers" for few, most in sorted(known)) or "fewer layers"


def _unpublished_notes(scores: Sequence[Score], names: Mapping[str, str]) -> list[str]:
    """Beside which rows published values are missing because of the job's settings, and because of which."""
    left_out = [score for score in scores if score.printed() and not score.published()]
    return [
        f"Published values were not made with {reason}; none stand beside"
        f" {'; '.join(dict.fromkeys(f'{names[each.result.setting]} {each.track}' for each in own))}."
        for reason, own in grouped(left_out, lambda each: ", ".join(each.other_settings())).items()
    ]


def _by_class(values: Sequence[Mapping[str, float]], counts: Sequence[dict[str, Any]]) -> np.ndarray:
    """Numbers by class as an array ``(n, classes)``, 0 where an image has none."""
    classes = sorted({name for each in counts for name in (*each["union"], *each["ap"])})
    return np.array([[each.get(name, 0) for name in classes] for each in values]).reshape(len(values), len(classes))


def _groups(results: Sequence[JobResult]) -> list[Group]:
    return by_setting(results, lambda result: (result.config.benchmark.name, result.model))


def _told_apart(results: Sequence[JobResult]) -> list[JobResult]:
    """The results in their order, with labels that are told apart within their setting: it has a name of its own."""
    labels = {
        (result.folder, result.variant.name): result.label for group in _groups(results) for result in group.results
    }
    return [replace(result, label=labels[result.folder, result.variant.name]) for result in results]


def setting_names(results: Sequence[JobResult]) -> dict[str, str]:
    """The benchmark of each setting, with what tells it from others of the same benchmark and model."""
    names = {}
    for group in _groups(results):
        benchmark = group.results[0].config.benchmark.name
        name = BENCHMARKS.get(benchmark, benchmark)
        names[group.results[0].setting] = f"{name} ({group.difference})" if group.difference else name
    return names


def _full_names(results: Sequence[JobResult]) -> dict[str, str]:
    """As :func:`setting_names`, with the model where there are several."""
    several, names = _several_models(results), setting_names(results)
    models = {result.setting: result.model for result in results}
    return {setting: f"{name}, {models[setting]}," if several else name for setting, name in names.items()}


def _several_models(results: Sequence[JobResult]) -> bool:
    return len({result.model for result in results}) > 1


def _model_notes(results: Sequence[JobResult]) -> list[str]:
    """The model, where no column or row names it."""
    return [] if _several_models(results) else [f"Model: {results[0].model}."]


def _row(score: Score, benchmark: str) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "model": score.result.model,
        "track": score.track,
        "players": score.cell.players,
        "ablation": ABLATION_TITLES[score.cell.ablation],
        "method": score.result.label,
        "n": len(score.counts),
    } | {name: pooled.cell() for name, pooled in score.metrics.items()}


def _pairs(scores: Sequence[Score], left: str, right: str) -> list[tuple[Score, Score]]:
    """Scores of two methods on the same images, of one job or of two."""
    places = grouped(scores, lambda each: (each.result.setting, each.cell, each.track))
    pairs = [(each, other) for place in places.values() for each, other in product(place, repeat=2)]
    return [
        (each, other)
        for each, other in pairs
        if (each.role, other.role) == (left, right) and list(each.counts) == list(other.counts)
    ]


def _rivals(scores: Sequence[Score]) -> list[tuple[Score, Score]]:
    """The metagame and ConceptAttention, where they are not the same (a player alone, in one layer)."""
    return [
        (meta, first)
        for meta, first in _pairs(scores, META, FIRST)
        if any(meta.metrics[name].value != first.metrics[name].value for name in METRICS)
    ]


def _count_wins(scores: Sequence[Score]) -> list[str]:
    """In how many cells and tracks the metagame has the higher value of each metric."""
    pairs = _rivals(scores)
    wins = {name: sum(a.metrics[name].value > b.metrics[name].value for a, b in pairs) for name in METRICS}
    text = ", ".join(f"{METRICS[name]} in {number}" for name, number in wins.items())
    return [f"Meta-ConceptAttention is higher, of {len(pairs)} cells and tracks, by {text}."] if len(pairs) > 1 else []


def _claims(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The paper's claims about the cells at hand, and the same against the rival that has the same logits."""
    paper, pairs = published("figure13")["claims"], _rivals(scores)
    alone = [pair for pair in pairs if pair[0].cell.players == "n0"]
    crowded = [pair for pair in pairs if pair[0].cell.players != "n0"]
    differences = {"acc": _differences(pairs, "acc"), "miou": _differences(crowded, "miou")}
    if alone:
        differences["map"] = _differences([(first, meta) for meta, first in alone], "map")
    claims = [decide(**paper[name], differences=each) for name, each in differences.items()]
    alike = _pairs(scores, META, MEAN_FIRST)
    for name, title in METRICS.items() if alike else ():
        claims.append(decide(LIKE_FOR_LIKE.format(metric=title), _differences(alike, name)))
    return claims


def _differences(pairs: Sequence[tuple[Score, Score]], metric: str) -> list[Difference]:
    """Of the left score over the right one, image by image."""
    names = _full_names([score.result for score, _ in pairs])
    return [
        Difference(
            f"{a.result.label} - {b.result.label}, {names[a.result.setting]} {a.track} {a.cell.name}",
            (a.metrics[metric] - b.metrics[metric]).cell(),
        )
        for a, b in pairs
    ]


def _swap_notes(scores: Sequence[Score], names: dict[str, str]) -> list[str]:
    """What the order of softmax and mean over layers changes, for each benchmark and track."""
    notes = []
    for before, after, text in (
        (MEAN_FIRST, FIRST, "Averaging over layers before the softmax instead of after it changes ConceptAttention"),
        (
            META,
            PER_LAYER,
            "Averaging over layers before the metagame instead of after it changes Meta-ConceptAttention",
        ),
    ):
        changes = [
            f"{names[a.result.setting]} {a.track} {a.cell.name} "
            + ", ".join(f"{METRICS[name]} {_signed((a.metrics[name] - b.metrics[name]).cell())}" for name in METRICS)
            for a, b in _pairs(scores, before, after)
        ]
        if changes:
            notes.append(f"{text} by: {'; '.join(changes)}.")
    return notes


def _signed(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return DASH
    spread = DASH if cell["two_se"] is None else f"{cell['two_se']:.3f}"
    return f"{cell['mean']:+.3f} ± {spread}"


def _count_notes(results: Sequence[JobResult]) -> list[str]:
    """Images that a cell leaves out, and benchmarks that are not complete."""
    notes, names = [], _full_names(results)
    for group in _groups(results):
        name = names[group.results[0].setting]
        by_image = {record.sample: record.scores[LEFT_OUT] for result in group.results for record in result.done}
        left_out = list(chain.from_iterable(by_image.values()))
        notes += [
            f"{name} {cell}: {left_out.count(cell)} images are left out, because of their number of classes."
            for cell in dict.fromkeys(left_out)
        ]
        config, n_images = group.results[0].config, len(group.sample_ids)
        expected = (config.benchmark.expected or {}).get("images")
        if config.limit is None and expected not in (None, n_images):
            notes.append(f"{name}: {n_images} images here, {expected} expected.")
    return notes


def ablations_figure(results: list[JobResult]) -> Drawing | None:
    """Figure 13: for each metric a figure with a row for each benchmark and track, a column for each ablation.

    Published curves are drawn faintly at paper scale. None where no image has a score of either method.
    """
    scores = [score for score in segmentation_scores(results) if score.role in (FIRST, MEAN_FIRST, META)]
    if not scores:
        return None
    names = _full_names(results)
    caption = caption_of(
        "Segmentation by the maps of concepts, over the number of concepts that compete; one figure for each metric:"
        f" {', '.join(METRIC_NAMES.values())}. All three range from 0 to 1, and higher is better.",
        "Rows are benchmarks: in single, the map of an image's one class is split into foreground and background; in"
        " multi, each pixel goes to the concept with the largest map, as the notes of the table say.",
        f"Columns are ablations: {_ablation_texts(scores)}.",
        "Points are values over all images, bars are two standard errors.",
        *_cell_notes(scores)[:1],
        *_model_notes(results),
        "In the paper, ConceptAttention falls as distractors are added and its metagame does not.",
    )
    return Drawing({metric: _metric_figure(scores, metric, names) for metric in METRICS}, caption)


def _metric_figure(scores: Sequence[Score], metric: str, names: Mapping[str, str]) -> Figure:
    styles = _styles(scores)
    rows = list(dict.fromkeys((score.result.setting, score.track) for score in scores))
    ablations = list(dict.fromkeys(score.cell.ablation for score in scores))
    figure = Figure(figsize=(max(1.9 * len(ablations) + 1.2, 5.5), 1.5 * len(rows) + 1.4), layout="constrained")
    figure.suptitle(METRIC_NAMES[metric], fontsize=12, fontweight="bold")
    grid = figure.subplots(len(rows), len(ablations), squeeze=False, sharey=True)
    for line, (setting, track) in zip(grid, rows, strict=True):
        own = [each for each in scores if (each.result.setting, each.track) == (setting, track)]
        for axes, ablation in zip(line, ablations, strict=True):
            _draw_curves(axes, [each for each in own if each.cell.ablation == ablation], metric, styles)
        line[0].set_ylabel("\n".join((*names[setting].rstrip(",").split(", "), track)), fontsize=9)
    for axes, ablation in zip(grid[0], ablations, strict=True):
        axes.set_title(ABLATION_TITLES[ablation], fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("players", fontsize=8)
    grid[0, 0].set_ylim(0, 1.02)
    _add_legend(figure, styles, with_published=any(_is_paper(score) and score.published() for score in scores))
    return figure


def _is_paper(score: Score) -> bool:
    return score.result.config.scale.name == "paper"


class Style(NamedTuple):
    """How the line of a method is drawn."""

    color: str
    marker: str
    width: float


STYLES = {False: Style(COLORS[0], "o", 3.6), True: Style(COLORS[1], "s", 1.3)}
"""Of a first-order method, and of its metagame, which is drawn on top: both can be seen where they coincide."""


def _styles(scores: Sequence[Score]) -> dict[str, Style]:
    """By label, first-order methods first; further ones of a kind have colours of their own."""
    metas = {score.result.label: score.result.variant.meta for score in scores}
    styles: dict[str, Style] = {}
    more = cycle(COLORS[2:])
    for label, meta in sorted(metas.items(), key=lambda item: item[1]):
        style = STYLES[meta]
        styles[label] = style._replace(color=next(more)) if style in styles.values() else style
    return styles


def _draw_curves(axes: Axes, scores: Sequence[Score], metric: str, styles: dict[str, Style]) -> None:
    sizes = list(dict.fromkeys(score.cell.players for score in scores))
    for label, (color, marker, width) in styles.items():
        own = [(sizes.index(score.cell.players), score) for score in scores if score.result.label == label]
        cells = [(place, score.metrics[metric].cell()) for place, score in own]
        known = [(place, cell["mean"], cell["two_se"] or 0) for place, cell in cells if cell is not None]
        if known:
            places, values, bars = zip(*known, strict=True)
            axes.errorbar(
                places, values, bars, color=color, marker=marker, markersize=3 + width / 2, linewidth=width,
                elinewidth=1.3, capsize=2,
            )  # fmt: skip
        faint = [(place, score.published()) for place, score in own if _is_paper(score)]
        faint = [(place, values[metric]) for place, values in faint if values]
        if faint:
            axes.plot(*zip(*faint, strict=True), color=color, alpha=0.35, linestyle="--", linewidth=1.2)
    axes.set_xticks(range(len(sizes)), sizes, fontsize=7)
    axes.set_xlim(-0.4, len(sizes) - 0.6)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _add_legend(figure: Figure, styles: dict[str, Style], with_published: bool) -> None:
    lines = [
        Line2D([], [], color=color, marker=marker, markersize=4, linewidth=width, label=label)
        for label, (color, marker, width) in styles.items()
    ]
    if with_published:
        lines.append(Line2D([], [], color="0.3", alpha=0.5, linestyle="--", label="published"))
    figure.legend(
        handles=lines, loc="outside lower center", ncols=min(3, len(lines)), frameon=False, fontsize=9,
        title="Players: n0 is the image's classes alone, dK these and K distractors, nK is K concepts in all.\n"
        "Bars are two standard errors.",
        title_fontsize=8,
    )  # fmt: skip
