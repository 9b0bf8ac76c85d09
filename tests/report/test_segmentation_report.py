"""Table 3 and Figure 13 from records that are written here, against scores that are pooled by loops."""

from __future__ import annotations

from collections import Counter, defaultdict
from inspect import signature
from itertools import product

import numpy as np
import pytest
from hydra import compose
from omegaconf import OmegaConf

from metagame.benchmarks.segmentation import BASELINE, LEFT_OUT, Cell
from metagame.jobs.spec import locate
from metagame.report.experiment import write_report
from metagame.report.published import published
from metagame.report.reproduction import segmentation_reproduction
from metagame.report.results import tell_apart
from metagame.report.segmentation import (
    ABLATION_TITLES,
    FIRST,
    MEAN_FIRST,
    META,
    METRICS,
    PER_LAYER,
    STYLES,
    TINY_NOTE,
    ablations_figure,
    role,
    segmentation_table,
)
from metagame.report.table import read_table
from tests.conftest import close
from tests.tiny.jobs import shipped_configs
from tests.tiny.reports import CONCEPT_METHODS, Made, column_keys, drawn, holds, made_up, noted, stub_config, two_errors

LABELS = {
    FIRST: "ConceptAttention",
    MEAN_FIRST: "ConceptAttention, mean first",
    META: "Meta-ConceptAttention",
    PER_LAYER: "Meta-ConceptAttention, each layer",
    "another": "Another",
}
METHODS = CONCEPT_METHODS | {"another": {"name": "another", "label": "Another", "method": {}}}
SHARES = {FIRST: 0.5, MEAN_FIRST: 0.45, META: 0.7, PER_LAYER: 0.72, "another": 0.4}
"""How well each method does, unless a test says otherwise."""
IMAGES = {"bus stop": "3", "herd": "57", "plane": "3", "shed": "5", "yard": "357"}
"""Classes by image."""
ABLATIONS = (BASELINE, "decoupled", "last_layers", "prompt")
SIZES = ("n0", "d10", "n20")
TRACKS = [("VOC", "single"), ("VOC", "multi"), ("ImageNet-Seg", "single")]
FIGURE13 = published("figure13")
FLUX = {"tiny": "data/tiny/flux", "paper": "black-forest-labs/FLUX.1-schnell"}
"""The shipped checkpoints."""


def usual(cell, method, track):
    return SHARES[method]


def reverse(cell, method, track):
    return 1 - SHARES[method]


def meta_is(**shares):
    """The metagame's (pixels and classes, average precision) by players; ConceptAttention has half of both."""
    return lambda cell, method, track: 0.5 if method == FIRST else shares[cell.split()[0]]


def counts(image, track, share):
    """Counts of an image where about this share is right, of (pixels and classes, average precision)."""
    rng = np.random.default_rng(list(image.encode()))
    right, precise = np.broadcast_to(share, 2) + rng.uniform(-0.1, 0.1)
    pixels, names = int(rng.integers(900, 2200)), IMAGES[image] if track == "multi" else "01"
    union = {name: int(rng.integers(100, 900)) for name in names}
    found = {name: int(right * count) for name, count in union.items()}
    precision = dict.fromkeys(names, float(precise))
    if image == "yard":  # a class that is predicted here, and nowhere is
        union["9"], found["9"] = 40, 0
    if track == "single":
        union, found, precision = list(union.values()), list(found.values()), float(precise)
    return {"correct": int(right * pixels), "pixels": pixels, "intersection": found, "union": union, "ap": precision}


def job(
    folder,
    share=usual,
    methods=(FIRST, META),
    images=tuple(IMAGES),
    players=("n20",),
    ablations=(BASELINE,),
    left_out=(),
    failed=(),
    **changes,
):
    """The variants of a job: of each cell, method and track ``share`` is right; ``changes`` are of its config.

    In the cells that are ``left_out`` there is no image with several classes.
    """
    benchmark = {"name": "voc", "tracks": ["single", "multi"], "expected": {"images": len(images)}}
    cfg = stub_config(
        folder,
        name="table3",
        model={"name": "flux_schnell", "label": "FLUX", "checkpoint": FLUX[changes.get("scale__name", "tiny")]},
        attribution={"label": "Maps", "variants": {method: METHODS[method] for method in methods}},
        benchmark=benchmark | {"players": list(players), "ablations": list(ablations)},
        **changes,
    )
    cells = [Cell(size, ablation).name for size, ablation in product(players, ablations)]
    made = {method: {} for method in methods}
    for method, image in product(methods, images):
        absent = [cell for cell in left_out if len(IMAGES[image]) > 1]
        tracks = [track for track in cfg.benchmark.tracks if track == "multi" or len(IMAGES[image]) == 1]
        scores = {
            cell: {track: counts(image, track, share(cell, method, track)) for track in tracks}
            for cell in cells
            if cell not in absent
        }
        made[method][image] = Made(scores | {LEFT_OUT: absent})
    return made_up(cfg, made, failed)


def imagenet(folder, **settings):
    chosen = {"images": ("bus stop", "plane", "shed"), "benchmark__name": "imagenet_seg"}
    return job(folder, **chosen, benchmark__tracks=["single"], **settings)


def table_of(folder, *args, **settings):
    return segmentation_table(job(folder, *args, **settings), settings.get("scale__name", "tiny"))


def images_of(results, cell, method, track):
    """The counts of every image that one method of a job has."""
    result = next(result for result in results if result.variant.name == method)
    found = [record.scores.get(cell, {}).get(track) for record in result.done]
    return [each for each in found if each is not None]


def by_loops(images, track):
    """Acc, mIoU and mAP, image by image and class by class."""
    found, union, precision = Counter(), Counter(), defaultdict(list)
    for image in images:
        by_class = image if track == "multi" else {key: dict(enumerate(np.ravel(image[key]))) for key in image}
        found.update(by_class["intersection"])
        union.update(by_class["union"])
        for name, value in by_class["ap"].items():
            precision[name].append(value)
    accuracy = sum(image["correct"] for image in images) / sum(image["pixels"] for image in images)
    overlaps, means = [found[name] / union[name] for name in union], map(np.mean, precision.values())
    return np.array([accuracy, np.mean(overlaps), np.mean(list(means))])


def without(images, track):
    """Acc, mIoU and mAP of all images but one, for each of them."""
    return np.array([by_loops([each for each in images if each is not left_out], track) for left_out in images])


def cells_of(row):
    return [row[name] for name in METRICS]


def means_of(row):
    return [cell["mean"] for cell in cells_of(row)]


def test_there_is_a_row_for_each_benchmark_track_cell_and_method(tmp_path):
    chosen = {"players": ("n0", "n20"), "ablations": (BASELINE, "prompt")}
    table = segmentation_table([*job(tmp_path, **chosen), *imagenet(tmp_path, **chosen)], "tiny")
    places = product(TRACKS, ("n0", "n20"), ("baseline", "prompt"), (LABELS[FIRST], LABELS[META]))
    names = ("track", "players", "ablation", "method")
    found = [((row["benchmark"], row["track"]), *(row[name] for name in names[1:])) for row in table.rows]
    assert found == list(places)
    assert column_keys(table) == ["benchmark", *names, *METRICS, "n"]
    assert {column.type for column in table.columns if column.key in METRICS} == {"mean"}
    assert column_keys(table_of(tmp_path)) == ["benchmark", "track", "method", *METRICS, "n"]  # of one cell


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        *((settings, name) for name, settings in CONCEPT_METHODS.items()),
        ({"base": FIRST, "label": "X", "method": {}}, FIRST),
        (METHODS[FIRST] | {"base": "own"}, None),
    ],
)
def test_what_a_method_is_to_the_paper_is_read_from_its_settings_and_not_from_its_name(settings, found):
    cfg = stub_config("unused", attribution=settings | {"name": "other"})
    (result,) = made_up(cfg, {})
    assert role(result.variant) == found


def test_scores_are_pooled_over_images_with_the_error_of_leaving_one_out(tmp_path):
    results = job(tmp_path, methods=tuple(LABELS), players=("n0", "n20"))
    methods = {label: method for method, label in LABELS.items()}
    rows = segmentation_table(results, "tiny").rows
    assert len(rows) == 2 * 2 * len(LABELS)
    for row in rows:
        images = images_of(results, row["players"], methods[row["method"]], row["track"])
        assert close(means_of(row), by_loops(images, row["track"]), 6e-7)
        assert close([cell["two_se"] for cell in cells_of(row)], two_errors(without(images, row["track"])), 6e-7)
        assert {cell["n"] for cell in cells_of(row)} == {len(images)} == {row["n"]}
    rows = table_of(tmp_path, images=("herd", "yard")).rows  # of several classes each
    assert {(row["track"], row["n"]) for row in rows} == {("multi", 2)}


def test_one_image_has_no_error(tmp_path):
    results = job(tmp_path, images=("plane",), methods=(FIRST, MEAN_FIRST))
    table = segmentation_table(results, "tiny")
    assert {cell["two_se"] for row in table.rows for cell in cells_of(row)} == {None}
    (note,) = noted(table, "Averaging over layers")
    assert note.count("± –") == 2 * len(METRICS)
    drawing = ablations_figure(results)
    drawn(drawing.figures["miou"])
    (axes,) = grid(drawing)["mIoU"][0]
    (bars,) = axes.containers[0].lines[2]
    assert all(segment[0, 1] == segment[1, 1] for segment in bars.get_segments())


@pytest.mark.parametrize(("name", "n_cells"), [("voc", 12), ("coco", 16), ("imagenet_seg", 16)])
def test_every_published_value_stands_on_its_row(tmp_path, name, n_cells):
    cells, tracks = FIGURE13["cells"][name], ["single"] if name == "imagenet_seg" else ["single", "multi"]
    sizes = [cell for cell in cells if " " not in cell]
    chosen = {"players": sizes, "ablations": ABLATIONS, "scale__name": "paper", "images": ("plane",)}
    table = table_of(tmp_path, **chosen, benchmark__name=name, benchmark__tracks=tracks)
    titles, methods = ({title: key for key, title in names.items()} for names in (ABLATION_TITLES, LABELS))
    for row, values in zip(table.rows, table.published, strict=True):
        cell = cells[Cell(row["players"], titles[row["ablation"]]).name]
        assert values == dict(zip(METRICS, cell[methods[row["method"]]][row["track"]], strict=True))
    assert len(table.rows) == len(cells) * len(tracks) * 2 == n_cells * len(tracks) * 2


@pytest.mark.parametrize(
    "settings",
    [{"methods": (MEAN_FIRST, PER_LAYER)}, {"players": ("n24",)}, {"benchmark__name": "own"}],
    ids=["methods", "players of another benchmark", "benchmark"],
)
def test_what_the_paper_has_not_has_no_published_value(tmp_path, settings):
    table = table_of(tmp_path, **settings)
    assert table.published == [{}] * len(table.rows)


AT_PAPER_SCALE = {**FIGURE13["settings"], **FIGURE13["data_settings"]["coco"]}
SCALES = ("tiny", "paper")


@pytest.mark.parametrize(
    ("key", "scale", "shown"),
    [
        *((key, "paper", set()) for key in AT_PAPER_SCALE),
        *((key, scale, {"single"}) for key in FIGURE13["multi_settings"] for scale in SCALES),
        *((key, scale, set()) for key in ("model", "model.checkpoint") for scale in SCALES),
    ],
)
def test_published_values_are_not_beside_what_was_made_with_other_settings_and_a_note_says_so(
    tmp_path, key, scale, shown
):
    value = False if key == "benchmark.data.crowds" else "other"
    changes = {("model.name" if key == "model" else key).replace(".", "__"): value}
    table = table_of(tmp_path, scale__name=scale, benchmark__name="coco", **changes)
    assert {row["track"] for row, values in zip(table.rows, table.published, strict=True) if values} == shown
    (note,) = noted(table, "Published values were not made with")
    assert note.startswith(f"Published values were not made with {key}={str(value).lower()}; none stand beside ")


def test_settings_of_the_published_numbers_that_the_tiny_scale_stands_in_for_do_not_matter_there(tmp_path):
    table = table_of(tmp_path, benchmark__name="coco", **{key.replace(".", "__"): "other" for key in AT_PAPER_SCALE})
    assert all(table.published)
    assert not noted(table, "Published values were not made with")


def test_the_shipped_configs_have_the_settings_of_the_published_numbers():
    n_of_data = {name: len(settings) for name, settings in FIGURE13["data_settings"].items()}
    assert n_of_data == {"voc": 2, "coco": 3, "imagenet_seg": 1}
    assert (len(AT_PAPER_SCALE), len(FIGURE13["multi_settings"])) == (20, 2)
    with shipped_configs():
        for name, of_data in FIGURE13["data_settings"].items():
            chosen = [f"model={FIGURE13['model']}", "attribution=concept_maps", f"benchmark={name}", "scale=paper"]
            cfg = compose("config", overrides=chosen)
            defaults = {
                f"benchmark.data.{name}": each.default
                for name, each in signature(locate(cfg.benchmark.data._target_)).parameters.items()
            }
            for key, value in {**FIGURE13["settings"], **FIGURE13["multi_settings"], **of_data}.items():
                assert OmegaConf.select(cfg, key, default=defaults.get(key), throw_on_missing=True) == value, key


FEW_LAYERS = {"ablations": ("last_layers",), "benchmark__n_layers": 6, "benchmark__fewer_layers": 1}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "Model: FLUX."),
        ({"players": ("d4",)}, "Players: d4: the classes of the image and 4 distractors."),
        ({"players": ("n0", "n20")}, "n0: only the classes of the image; n20: 20 concepts in all"),
        ({"ablations": ("decoupled",)}, "Ablations: in decoupled, concepts attend to the image only"),
        (FEW_LAYERS, "last layers uses only the last 1 of the 6 layers of the baseline"),
        ({"benchmark__channels": "players"}, "to the player, be it a class of the image or a distractor"),
        ({"model__denoising__resample": "NEAREST"}, "by Pillow's nearest neighbour; the paper's code"),
        ({"model__denoising__resample": "torch_nearest"}, "by torch's nearest neighbour, as in the paper's code"),
        ({"model__denoising__noise": "device"}, "Noise is drawn on the model's device, in its type"),
        ({"model__vae_dtype": "float32"}, "The autoencoder computes in float32, as in the paper's code"),
        ({"model__denoising__posterior": "mean"}, "Latents are means of the autoencoder's distribution; the paper's"),
        ({"model__denoising__noise": "cpu"}, "Noise is drawn on the CPU; the paper's code draws it on a GPU"),
        ({"model__vae_dtype": "bfloat16"}, "The autoencoder computes in bfloat16; that of the paper's code"),
    ],
)
def test_a_note_says_what_the_names_and_settings_of_the_jobs_mean(tmp_path, settings, said):
    assert noted(table_of(tmp_path, **settings), said)


def test_notes_say_nothing_of_what_is_not_there(tmp_path):
    assert not noted(table_of(tmp_path, players=("n0", "n20")), "Ablations:")
    results = job(tmp_path)
    assert TINY_NOTE in segmentation_table(results, "tiny").notes
    assert TINY_NOTE not in segmentation_table(results, "paper").notes
    for methods in ((MEAN_FIRST, META), (FIRST, PER_LAYER)):
        assert not noted(table_of(tmp_path, methods=methods), "Averaging over layers")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["Maps (benchmark.channels=present)", "Maps (benchmark.channels=players)"]),
        ({"benchmark__name": "coco"}, ["voc", "coco"]),
    ],
)
def test_jobs_with_different_settings_are_called_by_what_is_enough_to_tell_them_apart(tmp_path, changes, names):
    present = job(tmp_path, benchmark__channels="present")
    players = job(tmp_path, benchmark__channels="players", **changes)
    first, second = noted(segmentation_table([*present, *players], "tiny"), "each pixel is")
    assert first.startswith(f"{names[0]}: multi: each pixel is assigned to the class")
    assert second.startswith(f"{names[1]}: multi: each pixel is assigned to the player")


def test_the_claims_say_as_much_as_the_published_values_bear():
    """More would not hold: mIoU without distractors, mAP with them, go either way."""
    better = {(name, alone): set() for name in METRICS for alone in (True, False)}
    for cell, methods in [each for cells in FIGURE13["cells"].values() for each in cells.items()]:
        for track, (place, name) in product(methods[META], enumerate(METRICS)):
            first, meta = (methods[method][track][place] for method in (FIRST, META))
            better[name, cell.split()[0] == "n0"].add(meta > first)
    always = [key for key, answers in better.items() if answers == {key[0] != "map"}]
    assert always == [("acc", True), ("acc", False), ("miou", False), ("map", True)]
    assert set(FIGURE13["claims"]) == set(METRICS)


@pytest.mark.parametrize(
    ("shares", "answers"),
    [
        ({"n20": (0.7, 0.7)}, [True, True]),
        ({"n20": (0.3, 0.7)}, [False, False]),
        ({"n0": (0.7, 0.3)}, [True, None, True]),
        ({"n20": (0.7, 0.7), "n0": (0.7, 0.3)}, [True, True, True]),
        ({"n20": (0.7, 0.3), "n0": (0.7, 0.3)}, [True, True, True]),
        ({"n20": (0.7, 0.7), "n0": (0.3, 0.3)}, [False, True, True]),
        ({"n20": (0.7, 0.7), "n0": (0.7, 0.7)}, [True, True, False]),
        ({"n20": (0.3, 0.7), "d10": (0.7, 0.7)}, [False, False]),
        ({"n20": (0.5, 0.5)}, [None, None]),
    ],
)
def test_the_claims_are_answered_from_the_cells_at_hand(tmp_path, shares, answers):
    table = table_of(tmp_path, meta_is(**shares), players=tuple(shares))
    assert holds(table) == answers
    texts = [each["claim"] for each in FIGURE13["claims"].values()]
    assert [claim["claim"] for claim in table.claims] == texts[: len(answers)]


@pytest.mark.parametrize("worse", [("n20", "multi"), ("n20 prompt", "single")])
def test_a_claim_of_every_cell_fails_with_one_track_of_one_cell(tmp_path, worse):
    def share(cell, method, track):
        return 0.3 if method == META and (cell, track) == worse else SHARES[method]

    table = segmentation_table([*job(tmp_path, share, ablations=(BASELINE, "prompt")), *imagenet(tmp_path)], "tiny")
    assert holds(table) == [False, False]


@pytest.mark.parametrize(
    ("change", "answers"),
    [
        ({}, [True, True]),
        ({"share": reverse}, [False, False]),
        ({"methods": (FIRST,), "attribution__name": "other"}, [None, None]),
        ({"seed": 1}, [None, None]),
        ({"images": ("bus stop", "plane", "herd")}, [None, None]),
    ],
    ids=["setting", "worse", "one method", "another setting", "images"],
)
def test_methods_of_two_jobs_are_compared_in_one_setting_and_on_the_same_images(tmp_path, change, answers):
    results = [*job(tmp_path, methods=(FIRST,)), *job(tmp_path, **{"methods": (META,)} | change)]
    assert holds(segmentation_table(results, "tiny")) == answers


@pytest.mark.parametrize(
    ("jobs", "text"),
    [
        ([(MEAN_FIRST,), (FIRST,)], "before the softmax instead of after it changes ConceptAttention by: "),
        ([(META, PER_LAYER)], "before the metagame instead of after it changes Meta-ConceptAttention by: "),
    ],
    ids=["first order, of two jobs", "metagame, of one"],
)
def test_the_order_of_softmax_and_mean_is_told_of_every_cell_with_sign_and_error(tmp_path, jobs, text):
    results = [result for methods in jobs for result in job(tmp_path, methods=methods, players=("n0", "n20"))]
    left, right = [method for methods in jobs for method in methods]
    changes = []
    for track, cell in product(("single", "multi"), ("n0", "n20")):
        ours, theirs = (images_of(results, cell, method, track) for method in (left, right))
        values = by_loops(ours, track) - by_loops(theirs, track)
        errors = two_errors(without(ours, track) - without(theirs, track))
        parts = [f"{label} {v:+.3f} ± {e:.3f}" for label, v, e in zip(METRICS.values(), values, errors, strict=True)]
        changes.append(f"VOC {track} {cell} {', '.join(parts)}")
    table = segmentation_table(results, "tiny")
    assert noted(table, "Averaging") == [f"Averaging over layers {text}{'; '.join(changes)}."]
    assert "-0.0" in changes[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"benchmark__expected": {"images": 80, "single": 33}}, ["VOC: 6 images here, 80 expected."]),
        ({"benchmark__expected": {"images": 80}, "limit": 5}, []),
        ({"benchmark__expected": {"images": 6}}, []),
        ({"benchmark__expected": None}, []),
    ],
    ids=["fewer", "limited", "complete", "not known"],
)
def test_images_that_are_not_there_failed_or_are_left_out_are_told_once_for_the_jobs_on_them(tmp_path, changes, told):
    chosen = {"failed": ["torn"], "players": ("n0", "n20"), "left_out": ("n20",)} | changes
    first, metas = (job(tmp_path, methods=methods, **chosen) for methods in ((FIRST,), (META, PER_LAYER)))
    table = segmentation_table([*first, *metas], "tiny")
    assert noted(table, "expected") == told
    assert len(noted(table, "Maps")) == len(noted(table, "torn failed")) == 2  # a job of two methods, and another one
    (note,) = noted(table, "left out")
    assert note.startswith("VOC n20: 2 images ")
    multi = {(row["players"], row["n"]) for row in table.rows if row["track"] == "multi"}
    assert multi == {("n0", 5), ("n20", 3)}


@pytest.mark.parametrize(
    ("change", "column", "names"),
    [
        ({"seed": 1}, "benchmark", ["VOC (seed=0)", "VOC (seed=1)"]),
        ({"benchmark__name": "coco"}, "benchmark", ["VOC", "COCO"]),
        ({"model__name": "flux_dev", "model__label": "FLUX.1-dev"}, "model", ["FLUX", "FLUX.1-dev"]),
        ({"model__name": "flux_dev"}, "benchmark", ["VOC (model=flux_schnell)", "VOC (model=flux_dev)"]),
    ],
    ids=["seed", "benchmark", "model", "model of the same label"],
)
def test_jobs_of_a_sweep_have_rows_and_curves_of_their_own(tmp_path, change, column, names):
    both = [job(tmp_path), job(tmp_path, reverse, **change)]
    results = tell_apart([*both[0], *both[1]])
    table = segmentation_table(results, "tiny")
    rows = [row for row in table.rows if row["track"] == "multi"]
    assert list(dict.fromkeys(row[column] for row in rows)) == names
    assert ("model" in column_keys(table)) == (column == "model")
    panels = grid(ablations_figure(results))["Acc"][1::2]
    for own, name, (axes,) in zip(both, names, panels, strict=True):
        assert name in axes.get_ylabel().split("\n")
        for method in (FIRST, META):
            (row,) = [row for row in rows if (row[column], row["method"]) == (name, LABELS[method])]
            expected = by_loops(images_of(own, "n20", method, "multi"), "multi")
            assert close(means_of(row), expected, 6e-7)
            assert close(curves(axes)[method], [[0, expected[0]]], 1e-6)


def test_two_jobs_of_one_method_and_setting_have_rows_and_curves_of_their_own(tmp_path):
    results = [
        *job(tmp_path, methods=(FIRST,)), *job(tmp_path, meta_is(n20=0.6), (META,), attribution__name="one"),
        *job(tmp_path, meta_is(n20=0.3), (META,), attribution__variants__meta_concept_attention__order=2),
    ]  # fmt: skip
    table, figure = segmentation_table(tell_apart(results), "tiny"), ablations_figure(results)
    rows = [row for row in table.rows if row["track"] == "multi"]
    methods = [LABELS[FIRST], "Meta-ConceptAttention", "Meta-ConceptAttention, pairs"]
    assert [row["method"] for row in rows] == legend_of(figure)[1] == methods
    assert holds(table) == [False, False]
    (axes,) = grid(figure)["Acc"][1]
    lines = [container.lines[0] for container in axes.containers]
    assert close([float(line.get_ydata()[0]) for line in lines], [row["acc"]["mean"] for row in rows], 1e-6)
    assert len({line.get_color() for line in lines}) == 3


def grid(drawing):
    """For each metric the rows of its panels."""
    found = {}
    for metric, figure in drawing.figures.items():
        n_columns = figure.axes[0].get_gridspec().ncols
        starts = range(0, len(figure.axes), n_columns)
        found[METRICS[metric]] = [figure.axes[start : start + n_columns] for start in starts]
    return found


def legend_of(drawing):
    """Title and entries of the legend, which is the same in all figures."""
    legends = [legend for figure in drawing.figures.values() for legend in figure.legends]
    found = [(legend.get_title().get_text(), [text.get_text() for text in legend.texts]) for legend in legends]
    assert found == [found[0]] * len(drawing.figures)
    return found[0]


def curves(axes):
    """By method the places and values that are drawn with bars of errors."""
    methods = {STYLES[False][0]: FIRST, STYLES[True][0]: META}
    lines = [container.lines[0] for container in axes.containers]
    return {methods[line.get_color()]: line.get_xydata().tolist() for line in lines}


def dashed(axes):
    """By colour the curves that are drawn faintly."""
    return {line.get_color(): line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "--"}


def test_there_is_a_figure_a_metric_with_a_column_an_ablation_and_a_row_a_track_of_curves_with_errors(tmp_path):
    chosen = {"players": SIZES, "ablations": ABLATIONS}
    results = [*job(tmp_path, **chosen), *imagenet(tmp_path, **chosen)]
    blocks, rows_of_table = grid(ablations_figure(results)), segmentation_table(results, "tiny").rows
    assert list(blocks) == list(METRICS.values())
    for (metric, rows), (place, track) in product(zip(METRICS, blocks.values(), strict=True), enumerate(TRACKS)):
        assert rows[place][0].get_ylabel() == "\n".join(track)
        assert [axes.get_title() for axes in rows[place]] == (
            list(ABLATION_TITLES.values()) if place == 0 else [""] * 4
        )
        assert {axes.get_xlabel() for axes in rows[-1]} == {"players"}
        assert {axes.get_ylim() for axes in rows[place]} == {(0, 1.02)}
        assert [label.get_text() for label in rows[0][0].get_xticklabels()] == list(SIZES)
        assert not any(map(dashed, rows[place]))  # published curves, which are of another scale
        for axes, ablation in zip(rows[place], ABLATION_TITLES.values(), strict=True):
            for (method, points), container in zip(curves(axes).items(), axes.containers, strict=True):
                where = (*track, ablation, LABELS[method])
                names = ("benchmark", "track", "ablation", "method")
                cells = [row[metric] for row in rows_of_table if tuple(row[name] for name in names) == where]
                assert points == [[place, cell["mean"]] for place, cell in enumerate(cells)]
                (bars,) = container.lines[2]
                spans = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
                assert close(spans, [2 * cell["two_se"] for cell in cells])


def test_published_curves_are_drawn_at_paper_scale_where_the_paper_has_them(tmp_path):
    sizes, ablations = ("n0", "n10", "n20"), (BASELINE, "prompt")  # it has no n10
    chosen = {"scale__name": "paper", "players": sizes, "ablations": ablations, "images": ("plane", "shed")}
    figure = ablations_figure(job(tmp_path, **chosen))
    blocks, (title, entries) = grid(figure), legend_of(figure)
    assert entries == [LABELS[FIRST], LABELS[META], "published"]
    assert "two standard errors" in title
    for (number, rows), ablation in product(enumerate(blocks.values()), ablations):
        cells = {place: FIGURE13["cells"]["voc"][Cell(sizes[place], ablation).name] for place in (0, 2)}
        for track, row in zip(("single", "multi"), rows, strict=True):
            assert dashed(row[ablations.index(ablation)]) == {
                STYLES[method == META][0]: [[place, cell[method][track][number]] for place, cell in cells.items()]
                for method in (FIRST, META)
            }


@pytest.mark.parametrize("method", [FIRST, META])
def test_a_figure_is_drawn_of_one_method_alone_and_none_of_others(tmp_path, method):
    results = job(tmp_path, methods=(method, PER_LAYER), images=("herd",), players=SIZES, scale__name="paper")
    for ((axes,),) in grid(ablations_figure(results)).values():
        assert [name for name, points in curves(axes).items() if points] == [method]
        assert len(dashed(axes)) == 1
    assert ablations_figure(results[1:]) is None


def test_the_metagame_is_compared_like_for_like_with_the_mean_first_on_the_same_logits(tmp_path):
    def share(cell, method, track):
        return {FIRST: 0.3, META: 0.6, MEAN_FIRST: 0.8 if track == "single" else 0.5}[method]

    results = job(tmp_path, share, (FIRST, MEAN_FIRST, META))
    alike = [claim for claim in segmentation_table(results, "tiny").claims if claim["claim"].startswith("beyond")]
    assert [claim["holds"] for claim in alike][:2] == [False, False]
    assert alike[0]["difference"].startswith("Meta-ConceptAttention - ConceptAttention, mean first, ")
    assert "single" in alike[0]["difference"]
    assert legend_of(ablations_figure(results))[1] == [LABELS[FIRST], LABELS[MEAN_FIRST], LABELS[META]]


def test_the_reproduction_check_sets_every_metric_of_every_cell_beside_the_published_one(tmp_path):
    check = segmentation_reproduction(job(tmp_path, players=("n20", "n0")))
    places = list(product(("single", "multi"), (FIRST, META)))
    assert [block.name for block in check.blocks] == [f"{LABELS[method]} of VOC {track}" for track, method in places]
    for block, (track, method) in zip(check.blocks, places, strict=True):
        cells = [FIGURE13["cells"]["voc"][place][method][track] for place in ("n20", "n0")]
        assert [each.theirs for each in block.comparisons] == [*cells[0], *cells[1]]
        columns = [(each.place, each.column) for each in block.comparisons]
        assert columns == list(product(("n20", "n0"), ("Acc", "mIoU", "mAP")))
    limited = segmentation_reproduction(job(tmp_path / "limited", limit=2))
    (verdict,) = {block.verdict() for block in limited.blocks}
    assert verdict.startswith("not counted: limit=2, ")
    assert drawn(check.figure().figures[""])


def test_at_paper_scale_the_check_stands_in_a_folder_of_its_own_and_its_verdict_in_the_notes(tmp_path, monkeypatch):
    report = {
        "table": {"_target_": "metagame.report.segmentation.segmentation_table"},
        "reproduction": {"_target_": "metagame.report.reproduction.segmentation_reproduction"},
    }
    results = job(tmp_path / "table3", scale__name="paper", report=report)
    monkeypatch.setattr("metagame.report.experiment.read_job", lambda cfg, name: results)
    write_report([results[0].config], ["job"])
    (note,) = [note for note in read_table(tmp_path / "table3").notes if note.startswith("Reproduction check: ")]
    assert note.endswith("4 of 4 published blocks are compared. See table3-reproduction.")
    found = {path.name for path in (tmp_path / "table3-reproduction").iterdir()}
    assert found >= {"table.json", "table.md", "figure.png", "comparisons.csv"}
    monkeypatch.setattr("metagame.report.reproduction.Reproduction.figure", lambda self: 1 / 0)
    write_report([results[0].config], ["job"])
    assert any("could not be made (ZeroDivisionError" in note for note in read_table(tmp_path / "table3").notes)
