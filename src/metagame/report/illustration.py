"""Figures 2, 8 and 9: one image, and how each token of its caption, and each pair, moves the map of the caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import ceil

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from metagame.benchmarks.illustration import CAPTION, PART, CaptionedImage
from metagame.digests import digest
from metagame.errors import UserError
from metagame.jobs.build import build_part
from metagame.jobs.records import Record
from metagame.report.drawing import Drawing
from metagame.report.groups import by_setting, grouped, share_samples
from metagame.report.labels import told_apart
from metagame.report.maps import TOP, draw_edges, draw_map, edge_scale, heat_scale, interpolation, on_grid
from metagame.report.results import JobResult, failure_notes
from metagame.report.table import Column, Table

MOST_PAIRS = 6
COLUMNS = 6
"""At most."""
INDEX_NAMES = {"ksv": "k-SV", "stii": "STII", "fsii": "FSII", "sii": "SII", "banzhaf": "Banzhaf"}
"""What figures call the indices of :mod:`metagame.indices`."""

Map = Float[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class Illustrated:
    """What one method, its metagame and its pairs say of one sample.

    Attributes:
        sample: its id.
        captioned: the sample; None where its image is gone or another one.
        picture: the image as the model was given it, where that is not the sample's own.
        model: what tables call it.
        setting: what sets the jobs apart from others of the model that have the sample too; empty where nothing does.
        tokens: of the caption.
        parts: first-order maps of the caption and of its parts, with their titles.
        single: meta-attributions of the tokens, ``(rows, columns, n)``, or None where no such job is done.
        pairs: interactions, ``(rows, columns, n, n)``, or None.
        labels: of the jobs that gave ``parts``, ``single`` and ``pairs``, by these names.
        index: of the pairs' interactions, such as ``ksv``; empty where there are none.
    """

    sample: str
    captioned: CaptionedImage | None
    model: str
    setting: str
    tokens: list[str] = field(default_factory=list)
    parts: list[tuple[str, Map]] = field(default_factory=list)
    single: Float[np.ndarray, "rows columns n"] | None = None
    pairs: Float[np.ndarray, "rows columns n n"] | None = None
    picture: Image.Image | None = None
    labels: dict[str, str] = field(default_factory=dict)
    index: str = ""

    @property
    def caption(self) -> str:
        return self.sample if self.captioned is None else self.captioned.caption

    @property
    def method(self) -> str:
        """Label of the first job."""
        return next(iter(self.labels.values()))

    def singles(self) -> list[tuple[str, Map]]:
        """Name and map of each token."""
        if self.single is None:
            return []
        return [(token, self.single[..., place]) for place, token in enumerate(self.tokens)]

    def strongest_pairs(self) -> list[tuple[str, Map]]:
        """Name and map of the pairs of largest size, largest first."""
        if self.pairs is None:
            return []
        maps = {pair: self.pairs[..., pair[0], pair[1]] for pair in combinations(range(len(self.tokens)), 2)}
        found = sorted(maps, key=lambda pair: -np.abs(maps[pair]).sum())[:MOST_PAIRS]
        return [(f"{self.tokens[i]} + {self.tokens[j]}", maps[i, j]) for i, j in found]

    def rows(self) -> list[tuple[str, list[tuple[str, Map]]]]:
        """The rows of the figure: heading, and panels with their titles."""
        rows = [
            ("map of the text", self.parts),
            ("influence of a token", self.singles()),
            (f"interaction ({INDEX_NAMES.get(self.index, self.index)})", self.strongest_pairs()),
        ]
        return [(heading, panels) for heading, panels in rows if panels]

    @property
    def scale_key(self) -> tuple[str, str, str]:
        """The same for what shares its units: maps of one method and model."""
        return self.model, self.setting, self.method


def illustration_table(results: list[JobResult], scale: str) -> Table:
    """A row for each token and each of the strongest pairs: sum of its map, and its largest patch.

    Columns for model, setting, method and sample are there where these are several.
    """
    shown = list(_illustrated(results))
    models = list(dict.fromkeys(result.model for result in results))
    several = {
        "model": len(models) > 1,
        "setting": any(each.setting for each in shown),
        "method": _several_methods(shown),
        "sample": len({each.sample for each in shown}) > len({each.caption for each in shown}),
    }
    rows = []
    for each in shown:
        for role, maps in (("single", each.singles()), ("pairs", each.strongest_pairs())):
            for name, values in maps:
                about = {"model": each.model, "setting": each.setting, "method": each.labels[role]}
                about |= {"sample": each.sample}
                about = {key: value for key, value in about.items() if several[key]} | {"caption": each.caption}
                largest = values.flat[np.argmax(np.abs(values))]
                cells = {"total": round(float(values.sum()), 6), "largest": round(float(largest), 6)}
                rows.append(about | {"players": name} | cells)
    return Table(
        title=f"{results[0].config.name}: influence of tokens on the map of a caption",
        scale=scale,
        columns=[
            *(Column(key, key, "text") for key in several if several[key]),
            Column("caption", "caption", "text"),
            Column("players", "tokens", "text"),
            Column("total", "sum over patches", "number"),
            Column("largest", "largest patch", "number"),
        ],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=len({each.sample for each in shown}),
        notes=[
            f"{f'Model: {models[0]}. ' if len(models) == 1 else ''}Values are in the units of the method's map."
            f" Of the pairs, the {MOST_PAIRS} with the largest sum of sizes are shown.",
            "The published figures were made with absent=retokenized and side=null, which the paper's text does not"
            " mention, and on MetaCLIP-2 huge-quickgelu, although it names huge-378. This run has"
            f" {_settings(results)}.",
            *failure_notes(results),
        ],
    )


def _settings(results: Sequence[JobResult]) -> str:
    """How the images were cut, and what became of a caption without some tokens."""
    nodes = [result.config.benchmark for result in results]
    found = {f"absent={node.get('absent')}, side={node.get('side') or 'null'}" for node in nodes}
    return " and ".join(sorted(found))


def illustration_figure(results: list[JobResult]) -> Drawing | None:
    """For each image: lines from tokens to patches on the left; maps of coalitions, tokens and pairs on the right.

    Each image, setting and method has a part of its own; those of one setting and method share their scales of colours
    and of lines. None where there is no image to draw on.
    """
    shown = [each for each in _illustrated(results) if each.captioned is not None]
    if not shown:
        return None
    columns = _fewest_gaps([len(panels) for each in shown for _, panels in each.rows()])
    heights = [max(2, sum(ceil(len(panels) / columns) for _, panels in each.rows())) for each in shown]
    figure = Figure(figsize=(5.4 + 1.7 * columns, 1.9 * sum(heights) + 0.5 * len(shown)), layout="constrained")
    parts = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    captioned = [each.captioned for each in shown if each.captioned is not None]
    alike = grouped(shown, lambda each: each.scale_key)
    for part, each, own, height in zip(parts, shown, captioned, heights, strict=True):
        _draw(part, each.picture or own.image(), each, (height, columns), alike[each.scale_key])
        names = [each.method, each.model, each.setting]
        part.suptitle(f"“{each.caption}”: {', '.join(filter(None, names))}", fontsize=11)
    return Drawing.single(
        figure,
        "How the tokens of a caption shape the map that a method draws for it. Left: lines lead from each token to the"
        f" {TOP} patches whose attribution it changes most. Width is the size of the change; dashed lines are"
        " negative.",
        "Right, first row: the method's maps of the whole caption and of parts of it. Then the influence of each token"
        " on the map of the caption, which is what the metagame computes, and the interactions of the"
        f" {MOST_PAIRS} strongest pairs of tokens: what two tokens add together, beyond each alone.",
        "Orange raises the attribution of a patch and purple lowers it; maps show the picture in grey where they"
        " are zero. Values are in the units of the method's map, and all maps of one method and model share a"
        " scale; the arrows at its ends stand for the largest hundredth of the values.",
        "Expect the lines and the orange patches of a token to lie on what it names.",
    )


def _fewest_gaps(counts: Sequence[int]) -> int:
    """The number of columns, from four to COLUMNS, that leaves the fewest places empty; of equal ones the largest."""
    columns = min(range(COLUMNS, 3, -1), key=lambda columns: sum(-count % columns for count in counts))
    return min(columns, max(counts, default=1))


def _several_methods(shown: Sequence[Illustrated]) -> bool:
    """Whether two parts are of the same sample, model and setting, so that their methods are to be named."""
    places = [(each.sample, each.model, each.setting) for each in shown]
    return len(set(places)) < len(places)


def _draw(
    figure: SubFigure, image: Image.Image, shown: Illustrated, size: tuple[int, int], alike: Sequence[Illustrated]
) -> None:
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[4.4, 1 + 1.7 * size[1]])[0]
    _draw_lines(left, image, shown, alike)
    grid = right.subplots(*size, squeeze=False)
    scale = heat_scale([values for each in alike for _, panels in each.rows() for _, values in panels])
    for axes in grid.flat:
        axes.set_axis_off()
    row = 0
    for heading, panels in shown.rows():
        for place, (title, values) in enumerate(panels):
            axes = grid[row + place // size[1], place % size[1]]
            axes.set_axis_on()
            draw_map(axes, image, values, scale)
            axes.set_title(title, fontsize=9)
        grid[row, 0].set_ylabel(heading, fontsize=9)
        row += ceil(len(panels) / size[1])
    bar = right.colorbar(scale, ax=list(grid.flat), shrink=0.7, aspect=30, pad=0.01, extend="both")
    bar.set_label(f"attribution of a patch (units of {shown.method})", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _draw_lines(figure: SubFigure, image: Image.Image, shown: Illustrated, alike: Sequence[Illustrated]) -> None:
    axes = figure.subplots()
    if shown.single is None:
        axes.imshow(image, interpolation=interpolation(image))
        axes.set_axis_off()
        return
    scale = edge_scale([each.single for each in alike if each.single is not None])
    draw_edges(axes, image, shown.tokens, shown.single, scale)
    scale.add_legend(figure, "influence of a token on a patch")


def _illustrated(results: Sequence[JobResult]) -> Iterator[Illustrated]:
    """What is shown, by setting, sample and method."""
    groups = by_setting(results)
    several = share_samples(groups)
    for group in groups:
        known = {sample.id: sample for sample in build_part(group.results[0].config.benchmark).samples()}
        for name in group.done_ids:
            for own in _blocks(group.results):
                shown = Illustrated(name, known.get(name), group.model, group.difference if several else "")
                for result, record in _records(own, name):
                    shown = _with(shown, result, record)
                if shown.labels:
                    yield shown


def _records(results: Sequence[JobResult], sample: str) -> Iterator[tuple[JobResult, Record]]:
    for result in results:
        yield from ((result, record) for record in result.done if record.sample == sample)


def _with(shown: Illustrated, result: JobResult, record: Record) -> Illustrated:
    """What is shown, and what one more job says: first-order maps, those of tokens, or those of pairs."""
    explanations, picture = result.explanations(record), result.pictures(record).get(CAPTION)
    shown = shown if picture is None else replace(shown, picture=Image.fromarray(picture))
    whole = explanations[CAPTION]
    if whole.meta is None:
        parts = () if shown.captioned is None else shown.captioned.parts
        asked = [("whole caption", whole), *((part, explanations[f"{PART}{part}"]) for part in parts)]
        found = {"parts": [(title, on_grid(each, each.attribution)[0]) for title, each in asked]}
    else:
        values = on_grid(whole, whole.meta.values)[0]
        if whole.meta.order > 2:
            raise UserError(f"the figure shows single tokens and pairs: order={whole.meta.order} is neither.")
        found = {"single": values} if whole.meta.order == 1 else {"pairs": values}
        index = whole.meta.index or ""
        shown = replace(shown, index=index) if "pairs" in found else shown
    labels = shown.labels | dict.fromkeys(found, result.label)
    return replace(shown, tokens=told_apart(list(whole.players)), labels=labels, **found)


def _arguments(result: JobResult) -> str:
    return digest(result.method_identity["method"])


BLOCK_KEYS: tuple[Callable[[JobResult], str], ...] = (
    lambda result: result.variant.base, _arguments, lambda result: result.label,
)  # fmt: skip
"""What the jobs of a part have in common: the method; where two of them say the same of it, its arguments too."""


def _blocks(
    results: Sequence[JobResult], keys: Sequence[Callable[[JobResult], str]] = BLOCK_KEYS
) -> Iterator[list[JobResult]]:
    """Jobs that are shown together: a method, its metagame and that of pairs, at most one of each."""
    key, *others = keys
    for own in grouped(results, key).values():
        roles = {(result.variant.meta, result.variant.node.order) for result in own}
        if len(roles) == len(own) or not others:
            yield own
        else:
            yield from _blocks(own, others)
