"""Table 3 and Figure 13 from records that are written here, against scores that are pooled by loops."""

from __future__ import annotations

import io
import json
import math
from itertools import product

import numpy as np
import pytest
from matplotlib.figure import Figure

from metagame.benchmarks.segmentation import BASELINE, LEFT_OUT
from metagame.report.experiment import save_figure
from metagame.report.published import published
from metagame.report.results import MOST_FAILURES, tell_apart
from metagame.report.segmentation import (
    ABLATION_TITLES,
    BENCHMARKS,
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
from metagame.report.table import write_table
from tests.conftest import close
from tests.tiny.reports import Made, made_up, only, stub_config

LABELS = {
    FIRST: "ConceptAttention",
    MEAN_FIRST: "ConceptAttention, mean first",
    META: "Meta-ConceptAttention",
    PER_LAYER: "Meta-ConceptAttention, each layer",
}
METHODS = {
    FIRST: {"name": FIRST, "label": "ConceptAttention", "base": FIRST, "method": {"mean_first": False}},
    MEAN_FIRST: {"name": "concept_mean_first", "label": "ConceptAttention, mean first", "base": "concept_mean_first"}
    | {"method": {"mean_first": True}},
    META: {"name": META, "label": "ConceptAttention", "base": FIRST, "meta": True, "method": {"mean_first": True}},
    PER_LAYER: {"name": PER_LAYER, "label": "ConceptAttention, each layer", "base": FIRST, "meta": True}
    | {"method": {"mean_first": False}},
    "another": {"name": "another", "label": "Another", "method": {}},
}
"""The shipped configs of the methods, and one of a user's own."""
SHARES = {FIRST: 0.5, MEAN_FIRST: 0.45, META: 0.7, PER_LAYER: 0.72}
"""How well each method does, unless a test says otherwise."""
IMAGES = {"bus stop": ("3",), "herd": ("5", "7"), "plane": ("3",), "shed": ("5",), "yard": ("3", "5", "7")}
"""Classes by image."""
ABLATIONS = ("baseline", "decoupled", "last_layers", "prompt")
FIGURE13 = published("figure13")


def usual(cell, method, track):
    return SHARES[method]


def counts(image, track, share):
    """Counts of an image where about this share is right, of (pixels and classes, average precision)."""
    share, precise = share if isinstance(share, tuple) else (share, share)
    rng = np.random.default_rng(list(image.encode()))
    share, precise = np.array([share, precise]) + rng.uniform(-0.1, 0.1)
    pixels = int(rng.integers(900, 2200))
    if track == "single":
        union = rng.integers(300, 900, 2).tolist()
        intersection = [int(share * count) for count in union]
        return {"correct": int(share * pixels), "pixels": pixels, "intersection": intersection, "union": union} | {
            "ap": float(precise)
        }
    union = {name: int(rng.integers(100, 500)) for name in IMAGES[image]}
    intersection = {name: int(share * count) for name, count in union.items()}
    if image == "yard":  # a class that is predicted here, and nowhere is
        union["9"], intersection["9"] = 40, 0
    return {"correct": int(share * pixels), "pixels": pixels, "intersection": intersection, "union": union} | {
        "ap": {name: float(precise) for name in IMAGES[image]}
    }


def job(
    folder,
    share=usual,
    methods=(FIRST, META),
    images=tuple(IMAGES),
    players=("n20",),
    ablations=("baseline",),
    left_out=(),
    failed=(),
    name="concept_maps",
    **changes,
):
    """The variants of a job whose records are in its folder.

    Args:
        folder: of the experiment.
        share: function of the name of a cell, method and track: how much is right.
        methods: that it has.
        images: that are done.
        players: as of the benchmark.
        ablations: as of the benchmark.
        left_out: names of cells that no image with several classes is in.
        failed: ids of images that failed.
        name: of the attribution.
        changes: of the config, by dotted key with ``__`` for the dot.
    """
    cfg = stub_config(
        folder,
        name="table3",
        model={"name": "flux_schnell", "label": "FLUX", "checkpoint": "somewhere"},
        attribution={"name": name, "label": "Maps", "variants": {method: METHODS[method] for method in methods}},
        benchmark={"name": "voc", "tracks": ["single", "multi"], "expected": {"images": len(images)}}
        | {"players": list(players), "ablations": list(ablations)},
        **changes,
    )
    cells = [size if ablation == BASELINE else f"{size} {ablation}" for size, ablation in product(players, ablations)]
    made = {}
    for method, image in product(methods, images):
        absent = [cell for cell in left_out if len(IMAGES[image]) > 1]
        tracks = [track for track in cfg.benchmark.tracks if track == "multi" or len(IMAGES[image]) == 1]
        scores = {
            cell: {track: counts(image, track, share(cell, method, track)) for track in tracks}
            for cell in cells
            if cell not in absent
        }
        made.setdefault(method, {})[image] = Made(scores | {LEFT_OUT: absent})
    return made_up(cfg, made if images else {method: {} for method in methods}, failed)


def imagenet(folder, *arguments, **settings):
    return job(
        folder, *arguments, images=("bus stop", "plane", "shed"), benchmark__name="imagenet_seg",
        benchmark__tracks=["single"], **settings,
    )  # fmt: skip


def images_of(results, cell, method, track):
    """The counts of every image that one method of a job has."""
    result = next(result for result in results if result.variant.name == method)
    found = [record.scores.get(cell, {}).get(track) for record in result.done]
    return [each for each in found if each is not None]


def by_loops(images, track):
    """Acc, mIoU and mAP, with no arrays."""
    correct, pixels, found, union, precision = 0, 0, {}, {}, {}
    for image in images:
        correct += image["correct"]
        pixels += image["pixels"]
        by_class = image if track == "multi" else {
            "intersection": dict(enumerate(image["intersection"])), "union": dict(enumerate(image["union"])),
            "ap": {"": image["ap"]},
        }  # fmt: skip
        for name, count in by_class["union"].items():
            union[name] = union.get(name, 0) + count
            found[name] = found.get(name, 0) + by_class["intersection"][name]
        for name, value in by_class["ap"].items():
            precision.setdefault(name, []).append(value)
    overlaps = [found[name] / union[name] for name in union]
    means = [sum(values) / len(values) for values in precision.values()]
    return np.array([correct / pixels, sum(overlaps) / len(overlaps), sum(means) / len(means)])


def two_errors(values_without):
    n = len(values_without)
    return 2 * np.sqrt((n - 1) / n * ((values_without - values_without.mean(0)) ** 2).sum(0))


def without(images, track):
    """Acc, mIoU and mAP of all images but one, for each of them."""
    return np.array([by_loops([each for each in images if each is not left_out], track) for left_out in images])


def cells_of(row):
    return [row[name] for name in METRICS]


def means_of(row):
    return [cell["mean"] for cell in cells_of(row)]


def keys(table):
    return [column.key for column in table.columns]


def places(table):
    names = ("benchmark", "model", "track", "players", "ablation", "method")
    return [tuple(row[name] for name in names if name in keys(table)) for row in table.rows]


def holds(table):
    return [claim["holds"] for claim in table.claims]


def noted(table, text):
    return [note for note in table.notes if text in note]


def test_there_is_a_row_for_each_benchmark_track_cell_and_method(tmp_path):
    chosen = {"players": ("n0", "n20"), "ablations": ("baseline", "prompt")}
    table = segmentation_table([*job(tmp_path, **chosen), *imagenet(tmp_path, **chosen)], "tiny")
    cells = [("n0", "baseline"), ("n0", "prompt"), ("n20", "baseline"), ("n20", "prompt")]
    tracks = [("VOC", "single"), ("VOC", "multi"), ("ImageNet-Seg", "single")]
    methods = ("ConceptAttention", "Meta-ConceptAttention")
    assert places(table) == [(*track, *cell, method) for track in tracks for cell in cells for method in methods]
    assert keys(table) == ["benchmark", "track", "players", "ablation", "method", "acc", "miou", "map", "n"]
    assert {column.type for column in table.columns if column.key in METRICS} == {"mean"}


def test_one_cell_is_named_in_the_notes_and_has_no_columns(tmp_path):
    table = segmentation_table(job(tmp_path, players=("d4",), ablations=("decoupled",)), "tiny")
    assert keys(table) == ["benchmark", "track", "method", "acc", "miou", "map", "n"]
    assert noted(table, "Players: d4 decoupled.")


def test_several_cells_are_not_named_in_the_notes(tmp_path):
    assert not noted(segmentation_table(job(tmp_path, players=("n0", "d4")), "tiny"), "Players:")


def test_methods_have_the_names_of_the_paper_and_unknown_ones_their_own(tmp_path):
    table = segmentation_table(job(tmp_path, lambda *_: 0.5, tuple(METHODS)), "tiny")
    assert [row["method"] for row in table.rows] == [*LABELS.values(), "Another"] * 2


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, FIRST),
        ({"method": {}}, FIRST),
        ({"method": {"mean_first": True}}, MEAN_FIRST),
        ({"meta": True}, PER_LAYER),
        ({"meta": True, "method": {"mean_first": True}}, META),
        ({"base": "own"}, None),
    ],
)
def test_what_a_method_is_to_the_paper_is_read_from_its_settings_and_not_from_its_name(changes, found):
    cfg = stub_config("unused", attribution=METHODS[FIRST] | changes)
    assert role(only(made_up(cfg, {})).variant) == found


@pytest.mark.parametrize("track", ["single", "multi"])
@pytest.mark.parametrize("method", LABELS)
def test_scores_are_pooled_over_images_with_the_error_of_leaving_one_out(tmp_path, method, track):
    results = job(tmp_path, methods=tuple(LABELS), players=("n0", "n20"))
    (row,) = [
        row
        for row in segmentation_table(results, "tiny").rows
        if (row["method"], row["track"], row["players"]) == (LABELS[method], track, "n20")
    ]
    images = images_of(results, "n20", method, track)
    assert close(means_of(row), by_loops(images, track), 6e-7)
    assert close([cell["two_se"] for cell in cells_of(row)], two_errors(without(images, track)), 6e-7)
    assert {cell["n"] for cell in cells_of(row)} == {len(images)} == {int(row["n"])}


def test_the_loops_are_right_on_an_example_by_hand(tmp_path):
    """Class 3: 5 of 10 and 1 of 6 pixels; class 5: 3 of 4."""
    images = [
        {"correct": 8, "pixels": 10, "intersection": {"3": 5}, "union": {"3": 10}, "ap": {"3": 0.5}},
        {
            "correct": 2, "pixels": 10, "intersection": {"3": 1, "5": 3}, "union": {"3": 6, "5": 4},
            "ap": {"3": 1.0, "5": 0.25},
        },
    ]  # fmt: skip
    assert close(by_loops(images, "multi"), [10 / 20, (6 / 16 + 3 / 4) / 2, (0.75 + 0.25) / 2])


def test_only_images_with_one_class_are_of_the_single_track(tmp_path):
    rows = segmentation_table(job(tmp_path), "tiny").rows
    assert {(row["track"], row["n"]) for row in rows} == {("single", "3"), ("multi", "5")}


def test_a_track_that_no_image_has_is_no_row(tmp_path):
    rows = segmentation_table(job(tmp_path, images=("herd", "yard")), "tiny").rows
    assert {row["track"] for row in rows} == {"multi"}


def test_one_image_has_no_error(tmp_path):
    table = segmentation_table(job(tmp_path, images=("plane",)), "tiny")
    assert {cell["two_se"] for row in table.rows for cell in cells_of(row)} == {None}
    assert {row["n"] for row in table.rows} == {"1"}


def test_the_samples_of_a_table_are_those_of_its_largest_job(tmp_path):
    results = [*job(tmp_path, failed=["torn"]), *imagenet(tmp_path)]
    assert segmentation_table(results, "tiny").n_samples == 5


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_published_value_stands_on_its_row(tmp_path, name):
    cells = FIGURE13["cells"][name]
    sizes = [cell for cell in cells if " " not in cell]
    build = imagenet if name == "imagenet_seg" else job
    chosen = {"players": sizes, "ablations": ABLATIONS, "scale__name": "paper", "benchmark__name": name}
    if name == "imagenet_seg":
        del chosen["benchmark__name"]
    table = segmentation_table(build(tmp_path, **chosen), "paper")
    titles, methods = ({title: key for key, title in names.items()} for names in (ABLATION_TITLES, LABELS))
    for row, values in zip(table.rows, table.published, strict=True):
        cell = " ".join([row["players"]] + [titles[row["ablation"]]] * (row["ablation"] != "baseline"))
        assert values == dict(zip(METRICS, cells[cell][methods[row["method"]]][row["track"]], strict=True))
    n_tracks = 1 if name == "imagenet_seg" else 2
    assert len(table.rows) == len(cells) * n_tracks * 2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"methods": (MEAN_FIRST, PER_LAYER)}, "the paper has not these methods"),
        ({"players": ("n10",)}, "nor this number of players"),
        ({"players": ("n24",)}, "nor this one on VOC"),
        ({"benchmark__name": "own"}, "nor this benchmark"),
    ],
)
def test_what_the_paper_has_not_has_no_published_value(tmp_path, settings, reason):
    table = segmentation_table(job(tmp_path, **settings), "paper")
    assert table.published == [{}] * len(table.rows), reason


def test_the_published_values_are_of_44_cells():
    cells = FIGURE13["cells"]
    assert {name: len(each) for name, each in cells.items()} == {"voc": 12, "coco": 16, "imagenet_seg": 16}
    for name, each in cells.items():
        sizes = ("n0", "d10", "n20") if name == "voc" else ("n0", "d10", "n20", "n24")
        assert set(each) == {f"{size} {ablation}".removesuffix(" baseline") for size in sizes for ablation in ABLATIONS}
        for methods in each.values():
            assert list(methods) == [FIRST, META]
            for tracks in methods.values():
                assert list(tracks) == (["single"] if name == "imagenet_seg" else ["single", "multi"])
                assert all(len(values) == len(METRICS) and 0 < min(values) <= max(values) < 1
                           for values in tracks.values())  # fmt: skip


def test_the_claims_hold_of_the_published_values():
    pairs = [
        (cell.split()[0], dict(zip(METRICS, first, strict=True)), dict(zip(METRICS, meta, strict=True)))
        for cells in FIGURE13["cells"].values()
        for cell, methods in cells.items()
        for first, meta in zip(methods[FIRST].values(), methods[META].values(), strict=True)
    ]
    assert len(pairs) == 12 * 2 + 16 * 2 + 16
    assert all(meta["acc"] > first["acc"] for _, first, meta in pairs)
    assert all(meta["miou"] > first["miou"] for size, first, meta in pairs if size != "n0")
    assert all(meta["map"] < first["map"] for size, first, meta in pairs if size == "n0")
    assert set(FIGURE13["claims"]) == set(METRICS)


@pytest.mark.parametrize("name", ["acc", "miou", "map"])
def test_the_claims_say_as_much_as_the_published_values_bear(name):
    """More would not hold: mIoU without distractors, mAP with them, go either way."""
    pairs = [
        (cell.split()[0] == "n0", first[list(METRICS).index(name)] < meta[list(METRICS).index(name)])
        for cells in FIGURE13["cells"].values()
        for cell, methods in cells.items()
        for first, meta in zip(methods[FIRST].values(), methods[META].values(), strict=True)
    ]
    found = [{better for alone, better in pairs if alone is without_rivals} for without_rivals in (True, False)]
    assert found == {"acc": [{True}, {True}], "miou": [{True, False}, {True}], "map": [{False}, {True, False}]}[name]


def meta_is(**shares):
    """The metagame's (pixels and classes, average precision) by players; ConceptAttention has half of both."""
    return lambda cell, method, track: 0.5 if method == FIRST else shares[cell.split()[0]]


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
    table = segmentation_table(job(tmp_path, meta_is(**shares), players=tuple(shares)), "tiny")
    assert holds(table) == answers
    assert [claim["claim"] for claim in table.claims] == list(FIGURE13["claims"].values())[: len(answers)]


@pytest.mark.parametrize("worse", list(product(["n20", "n20 prompt"], ["single", "multi"])))
def test_a_claim_of_every_cell_fails_with_one_track_of_one_cell(tmp_path, worse):
    def share(cell, method, track):
        return 0.3 if method == META and (cell, track) == worse else SHARES[method]

    table = segmentation_table([*job(tmp_path, share, ablations=("baseline", "prompt")), *imagenet(tmp_path)], "tiny")
    assert holds(table) == [False, False]


@pytest.mark.parametrize("method", [FIRST, META])
def test_a_method_alone_decides_no_claim(tmp_path, method):
    table = segmentation_table(job(tmp_path, methods=(method,), players=("n0", "n20")), "tiny")
    assert holds(table) == [None, None]


@pytest.mark.parametrize(("meta", "answers"), [((0.7, 0.3), [True, None, True]), ((0.3, 0.7), [False, None, False])])
def test_methods_of_two_jobs_are_compared(tmp_path, meta, answers):
    results = [
        result
        for method in (META, FIRST)
        for result in job(tmp_path, meta_is(n0=meta), (method,), players=("n0",), name=method)
    ]
    assert holds(segmentation_table(results, "tiny")) == answers


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"benchmark__channels": "players"}, {"model__checkpoint": "elsewhere"}]
)
def test_methods_of_jobs_of_another_setting_are_not_compared(tmp_path, change):
    results = [*job(tmp_path, methods=(FIRST,)), *job(tmp_path, methods=(META,), **change)]
    assert holds(segmentation_table(results, "tiny")) == [None, None]


def test_methods_of_two_jobs_are_compared_on_the_same_images_only(tmp_path):
    fewer = ("bus stop", "plane", "herd")
    results = [*job(tmp_path, methods=(FIRST,)), *job(tmp_path, methods=(META,), images=fewer)]
    assert holds(segmentation_table(results, "tiny")) == [None, None]


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        (MEAN_FIRST, FIRST, "Mean over layers before the softmax instead of after changes ConceptAttention by: "),
        (META, PER_LAYER, "Mean over layers before the metagame instead of after changes Meta-ConceptAttention by: "),
    ],
)
def test_the_order_of_softmax_and_mean_is_told_with_sign_and_error(tmp_path, left, right, text, apart):
    jobs = [(left,), (right,)] if apart else [(left, right)]
    results = [result for methods in jobs for result in job(tmp_path, methods=methods)]
    changes = []
    for track in ("single", "multi"):
        ours, theirs = (images_of(results, "n20", name, track) for name in (left, right))
        values = by_loops(ours, track) - by_loops(theirs, track)
        errors = two_errors(without(ours, track) - without(theirs, track))
        parts = [f"{label} {v:+.3f} ± {e:.3f}" for label, v, e in zip(METRICS.values(), values, errors, strict=True)]
        changes.append(f"VOC {track} n20 {', '.join(parts)}")
    assert noted(segmentation_table(results, "tiny"), "Mean over layers") == [f"{text}{'; '.join(changes)}."]
    assert "-0.0" in changes[0]


def test_the_order_of_softmax_and_mean_is_told_of_every_cell_and_benchmark(tmp_path):
    chosen = {"methods": (FIRST, MEAN_FIRST), "players": ("n0", "n20")}
    table = segmentation_table([*job(tmp_path, **chosen), *imagenet(tmp_path, **chosen)], "tiny")
    (note,) = noted(table, "Mean over layers")
    for place in ("VOC single n0", "VOC single n20", "VOC multi n0", "VOC multi n20", "ImageNet-Seg single n20"):
        assert note.count(f"{place} Acc") == 1


def test_a_change_of_one_image_has_no_error(tmp_path):
    results = job(tmp_path, methods=(FIRST, MEAN_FIRST), images=("herd",))
    (note,) = noted(segmentation_table(results, "tiny"), "Mean over layers")
    assert note.count("± –") == 3


@pytest.mark.parametrize("methods", [(FIRST, META), (MEAN_FIRST, META), (FIRST, PER_LAYER)])
def test_without_both_orders_nothing_is_told_of_them(tmp_path, methods):
    assert not noted(segmentation_table(job(tmp_path, methods=methods), "tiny"), "Mean over layers")


def test_images_that_a_cell_leaves_out_are_counted(tmp_path):
    table = segmentation_table(job(tmp_path, players=("n0", "n20"), left_out=("n20",)), "tiny")
    (note,) = noted(table, "left out")
    assert note.startswith("VOC n20: 2 images ")
    multi = {(row["players"], row["n"]) for row in table.rows if row["track"] == "multi"}
    assert multi == {("n0", "5"), ("n20", "3")}


def test_where_no_image_is_left_out_nothing_is_told_of_it(tmp_path):
    assert not noted(segmentation_table(job(tmp_path), "tiny"), "left out")


def test_two_jobs_on_the_same_images_tell_once_what_is_left_out_and_missing(tmp_path):
    settings = {"left_out": ("n20",), "benchmark__expected": {"images": 80}}
    results = [result for method in (FIRST, META) for result in job(tmp_path, methods=(method,), **settings)]
    table = segmentation_table(results, "tiny")
    assert len(noted(table, "left out")) == 1
    assert len(noted(table, "80 expected")) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"benchmark__expected": {"images": 80, "single": 33}}, True),
        ({"benchmark__expected": {"images": 80}, "limit": 5}, False),
        ({"benchmark__expected": {"images": 6}}, False),
        ({"benchmark__expected": {"single": 80}}, False),
        ({"benchmark__expected": None}, False),
    ],
)
def test_a_benchmark_that_is_not_complete_is_told_unless_it_was_limited(tmp_path, changes, told):
    table = segmentation_table(job(tmp_path, failed=["torn"], **changes), "tiny")
    assert noted(table, "expected") == ["VOC: 6 images here, 80 expected."] * told


@pytest.mark.parametrize("more", [0, 1, 5])
def test_failed_images_are_named_and_of_many_the_first_ones(tmp_path, more):
    failed = [f"torn {number}" for number in range(MOST_FAILURES + more)]
    table = segmentation_table(job(tmp_path, failed=failed), "tiny")
    expected = [f"Maps: sample {name} failed: no memory for {name}" for name in failed[:MOST_FAILURES]]
    if more:
        expected.append(f"Maps: {more} more samples failed, {len(failed)} in all; see its records.jsonl.")
    assert noted(table, "failed") == expected
    assert {row["n"] for row in table.rows} == {"3", "5"}


def test_few_failed_images_are_all_named(tmp_path):
    table = segmentation_table(job(tmp_path, failed=["torn", "lost"]), "tiny")
    assert len(noted(table, "failed")) == 2


def test_the_tiny_model_is_not_measured_by_the_paper(tmp_path):
    results = job(tmp_path)
    assert TINY_NOTE in segmentation_table(results, "tiny").notes
    assert TINY_NOTE not in segmentation_table(results, "paper").notes


@pytest.fixture
def two_models(tmp_path):
    """Jobs of two models, of which the second one's metagame is worse."""
    settings = {"methods": (FIRST, META, MEAN_FIRST)}
    other = {"model__name": "flux_dev", "model__label": "FLUX.1-dev"}
    return [
        *job(tmp_path, **settings),
        *job(tmp_path, lambda cell, method, track: 1 - SHARES[method], **settings, **other),
    ]


def test_two_models_are_told_apart_in_the_rows(two_models):
    table = segmentation_table(two_models, "tiny")
    assert keys(table)[:4] == ["benchmark", "track", "model", "method"]
    assert [row["model"] for row in table.rows] == ["FLUX"] * 6 + ["FLUX.1-dev"] * 6
    assert "model" not in keys(segmentation_table(two_models[:3], "tiny"))
    for results, rows in zip((two_models[:3], two_models[3:]), (table.rows[:6], table.rows[6:]), strict=True):
        for row, method in zip(rows[3:], (FIRST, META, MEAN_FIRST), strict=True):
            assert close(means_of(row), by_loops(images_of(results, "n20", method, "multi"), "multi"), 6e-7)


def test_methods_are_compared_within_their_model(two_models):
    assert [holds(segmentation_table(each, "tiny")) for each in (two_models, two_models[:3], two_models[3:])] == [
        [False, False], [True, True], [False, False],
    ]  # fmt: skip


def test_notes_of_two_models_name_them(two_models):
    (note,) = noted(segmentation_table(two_models, "tiny"), "Mean over layers")
    changes = note.rstrip(".").split(": ", 1)[1].split("; ")
    assert len(changes) == 4
    assert ["FLUX.1-dev" in change for change in changes] == [False, False, True, True]


def test_jobs_that_differ_in_a_setting_are_told_apart_in_the_rows(tmp_path):
    results = tell_apart([*job(tmp_path), *job(tmp_path, usual, benchmark__channels="players")])
    table = segmentation_table(results, "tiny")
    shown = [tuple(row[key] for key in keys(table) if isinstance(row[key], str)) for row in table.rows]
    assert len(set(shown)) == len(shown)
    assert {row["method"] for row in table.rows} == {LABELS[FIRST], LABELS[META]}


OTHER = {"model__name": "flux_dev", "model__label": "FLUX.1-dev"}


@pytest.mark.parametrize(
    ("change", "column", "names"),
    [
        ({"seed": 1}, "benchmark", ["VOC (seed=0)", "VOC (seed=1)"]),
        ({"benchmark__name": "coco"}, "benchmark", ["VOC", "COCO"]),
        (OTHER, "model", ["FLUX", "FLUX.1-dev"]),
        ({"model__name": "flux_dev"}, "benchmark", ["VOC (model=flux_schnell)", "VOC (model=flux_dev)"]),
    ],
)
def test_jobs_of_a_sweep_have_rows_and_curves_of_their_own(tmp_path, change, column, names):
    both = [job(tmp_path), job(tmp_path, lambda cell, method, track: 1 - SHARES[method], **change)]
    results = tell_apart([*both[0], *both[1]])
    rows = [row for row in segmentation_table(results, "tiny").rows if row["track"] == "multi"]
    assert list(dict.fromkeys(row[column] for row in rows)) == names
    panels = grid(drawn(ablations_figure(results)))["Acc"][1::2]
    for own, name, (axes,) in zip(both, names, panels, strict=True):
        for method in (FIRST, META):
            (row,) = [row for row in rows if (row[column], row["method"]) == (name, LABELS[method])]
            expected = by_loops(images_of(own, "n20", method, "multi"), "multi")
            assert close(means_of(row), expected, 6e-7)
            assert close(curves(axes)[method], [[0, expected[0]]], 1e-6)


def test_two_jobs_of_one_method_and_setting_have_rows_and_curves_of_their_own(tmp_path):
    results = [
        *job(tmp_path, methods=(FIRST,)), *job(tmp_path, meta_is(n20=0.6), (META,), name="one"),
        *job(tmp_path, meta_is(n20=0.3), (META,), name="two", attribution__variants__meta_concept_attention__order=2),
    ]  # fmt: skip
    table = segmentation_table(tell_apart(results), "tiny")
    methods = [LABELS[FIRST], "Meta-ConceptAttention", "Meta-ConceptAttention, pairs"]
    assert [row["method"] for row in table.rows if row["track"] == "multi"] == methods
    assert holds(table) == [False, False]
    figure = drawn(ablations_figure(results))
    (axes,) = grid(figure)["Acc"][1]
    values = [float(container.lines[0].get_ydata()[0]) for container in axes.containers]
    assert close(values, [row["acc"]["mean"] for row in table.rows if row["track"] == "multi"], 1e-6)
    assert len({container.lines[0].get_color() for container in axes.containers}) == 3
    assert [text.get_text() for text in figure.legends[0].texts] == methods


def test_failures_name_the_benchmark_where_there_are_several(tmp_path):
    results = tell_apart([*job(tmp_path, failed=["torn"]), *imagenet(tmp_path, failed=["torn"])])
    assert noted(segmentation_table(results, "tiny"), "failed") == [
        "Maps (benchmark=voc): sample torn failed: no memory for torn",
        "Maps (benchmark=imagenet_seg): sample torn failed: no memory for torn",
    ]


def test_equal_runs_give_equal_bytes(tmp_path):
    written = []
    for name in ("first", "second"):
        folder = tmp_path / name
        results = [*job(folder, methods=tuple(LABELS), players=("n0", "n20"), failed=["torn"]), *imagenet(folder)]
        paths = write_table(segmentation_table(results, "tiny"), folder)
        written.append({path.name: path.read_bytes() for path in paths})
    assert written[0] == written[1]
    rows = json.loads(written[0]["table.json"])["rows"]
    assert all(math.isfinite(cell[part]) for row in rows for cell in cells_of(row) for part in ("mean", "two_se"))


def drawn(figure):
    """Draw it coarsely: what cannot be drawn raises."""
    figure.savefig(io.BytesIO(), dpi=20, format="png")
    return figure


def grid(figure):
    """For each metric the rows of its panels."""
    found = {}
    for block in figure.subfigs:
        n_columns = block.axes[0].get_gridspec().ncols
        found[block.get_suptitle()] = [
            block.axes[start : start + n_columns] for start in range(0, len(block.axes), n_columns)
        ]
    return found


def curves(axes):
    """By method the places and values that are drawn with bars of errors."""
    methods = {STYLES[meta][0]: method for meta, method in ((False, FIRST), (True, META))}
    lines = [container.lines[0] for container in axes.containers]
    return {methods[line.get_color()]: line.get_xydata().tolist() for line in lines}


def dashed(axes):
    return [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "--"]


SIZES = ("n0", "d10", "n20")
ALL_CELLS = {"players": SIZES, "ablations": ABLATIONS}


@pytest.fixture(scope="module")
def all_cells(tmp_path_factory):
    """VOC and ImageNet-Seg in all cells of the former."""
    folder = tmp_path_factory.mktemp("cells")
    return [*job(folder, **ALL_CELLS), *imagenet(folder, **ALL_CELLS)]


@pytest.fixture(scope="module")
def blocks(all_cells):
    """The panels of these."""
    return grid(ablations_figure(all_cells))


def test_a_figure_has_a_block_a_metric_a_column_an_ablation_and_a_row_a_track(blocks):
    assert list(blocks) == ["Acc", "mIoU", "mAP"]
    for rows in blocks.values():
        assert [row[0].get_ylabel() for row in rows] == ["VOC\nsingle", "VOC\nmulti", "ImageNet-Seg\nsingle"]
        assert [axes.get_title() for axes in rows[0]] == ["baseline", "decoupled", "last layers", "prompt"]
        assert {axes.get_xlabel() for axes in rows[-1]} == {"players"}
        assert {axes.get_title() for row in rows[1:] for axes in row} == {""}


def test_the_benchmarks_of_imagenet_have_the_single_track_only(tmp_path):
    rows = grid(ablations_figure(imagenet(tmp_path)))["Acc"]
    assert [row[0].get_ylabel() for row in rows] == ["ImageNet-Seg\nsingle"]


def test_each_panel_has_a_curve_of_either_method_with_its_errors(all_cells, blocks):
    table = segmentation_table(all_cells, "tiny")
    tracks = [("VOC", "single"), ("VOC", "multi"), ("ImageNet-Seg", "single")]
    for (metric, title), (row, track), (column, ablation) in product(
        METRICS.items(), enumerate(tracks), enumerate(ABLATIONS)
    ):
        axes = blocks[title][row][column]
        for number, (method, points) in enumerate(curves(axes).items()):
            cells = [
                each[metric]
                for each in table.rows
                if (each["benchmark"], each["track"]) == track
                and (each["ablation"], each["method"]) == (ABLATION_TITLES[ablation], LABELS[method])
            ]
            assert points == [[place, cell["mean"]] for place, cell in enumerate(cells)]
            (bars,) = axes.containers[number].lines[2]
            spans = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
            assert close(spans, [2 * cell["two_se"] for cell in cells])


@pytest.mark.parametrize("sizes", [SIZES, SIZES[::-1], ("n20", "n0")])
def test_players_stand_in_the_order_of_the_config(tmp_path, sizes):
    figure = ablations_figure(job(tmp_path, players=sizes))
    for rows in grid(figure).values():
        for axes in rows[0]:
            assert [label.get_text() for label in axes.get_xticklabels()] == list(sizes)
            assert [place for place, _ in curves(axes)[META]] == list(range(len(sizes)))


def test_the_panels_of_a_row_share_their_axis_of_scores(blocks):
    for rows in blocks.values():
        for row in rows:
            assert len({axes.get_ylim() for axes in row}) == 1


def test_published_curves_are_drawn_at_paper_scale(tmp_path):
    ablations = ("baseline", "prompt")
    chosen = {"scale__name": "paper", "players": SIZES, "ablations": ablations}
    results = [*job(tmp_path, **chosen), *imagenet(tmp_path, **chosen)]
    figure = ablations_figure(results)
    tracks = [("voc", "single"), ("voc", "multi"), ("imagenet_seg", "single")]
    for number, rows in enumerate(grid(figure).values()):
        for (name, track), row in zip(tracks, rows, strict=True):
            for ablation, axes in zip(ablations, row, strict=True):
                cells = [FIGURE13["cells"][name][f"{size} {ablation}".removesuffix(" baseline")] for size in SIZES]
                assert dashed(axes) == [
                    [[place, cell[method][track][number]] for place, cell in enumerate(cells)]
                    for method in (FIRST, META)
                ]


def test_published_curves_are_not_drawn_at_other_scales(blocks):
    assert not any(dashed(axes) for rows in blocks.values() for row in rows for axes in row)


def test_what_the_paper_has_not_has_no_published_curve(tmp_path):
    chosen = {"players": ("n0", "n10", "n20"), "scale__name": "paper"}
    for results, points in (
        (job(tmp_path / "voc", **chosen), [0, 2]),
        (job(tmp_path / "own", benchmark__name="own", **chosen), []),
    ):
        (axes,) = grid(drawn(ablations_figure(results)))["Acc"][0]
        assert [[place for place, _ in line] for line in dashed(axes)] == [points] * (2 if points else 0)


@pytest.mark.parametrize(("scale", "more"), [("tiny", []), ("paper", ["published"])])
def test_the_legend_names_the_methods_and_at_paper_scale_the_published_values(tmp_path, scale, more):
    (legend,) = ablations_figure(job(tmp_path, scale__name=scale)).legends
    assert [text.get_text() for text in legend.texts] == ["ConceptAttention", "Meta-ConceptAttention", *more]
    assert "two standard errors" in legend.get_title().get_text()


def test_colours_tell_the_methods_apart_and_published_curves_have_those_of_their_method(tmp_path):
    (axes,) = grid(ablations_figure(job(tmp_path, players=SIZES, scale__name="paper")))["Acc"][0]
    ours = [container.lines[0].get_color() for container in axes.containers]
    assert [line.get_color() for line in axes.lines if line.get_linestyle() == "--"] == ours
    assert len(set(ours)) == 2


def test_several_models_have_rows_of_their_own(tmp_path, two_models):
    rows = grid(drawn(ablations_figure(two_models)))["Acc"]
    labels = [f"VOC\n{model}\n{track}" for model in ("FLUX", "FLUX.1-dev") for track in ("single", "multi")]
    assert [row[0].get_ylabel() for row in rows] == labels
    for results, row in zip((two_models[:3], two_models[3:]), (rows[1], rows[3]), strict=True):
        ((_, value),) = curves(row[0])[META]
        assert close(value, by_loops(images_of(results, "n20", META, "multi"), "multi")[0], 6e-7)


@pytest.mark.parametrize("method", [FIRST, META])
def test_a_figure_is_drawn_of_one_method_alone(tmp_path, method):
    results = job(tmp_path, methods=(method, MEAN_FIRST), players=SIZES, scale__name="paper")
    figure = drawn(ablations_figure(results))
    for rows in grid(figure).values():
        for row in rows:
            for axes in row:
                assert [name for name, points in curves(axes).items() if points] == [method]
                assert len(dashed(axes)) == 1


def test_methods_of_two_jobs_are_drawn_in_one_panel(tmp_path):
    results = [result for method in (FIRST, META) for result in job(tmp_path, methods=(method,), players=SIZES)]
    rows = grid(ablations_figure(results))["Acc"]
    assert [row[0].get_ylabel() for row in rows] == ["VOC\nsingle", "VOC\nmulti"]
    assert [len(points) for points in curves(rows[0][0]).values()] == [3, 3]


def test_an_image_alone_is_drawn_without_errors(tmp_path):
    results = job(tmp_path, images=("herd",), players=SIZES)
    (axes,) = grid(drawn(ablations_figure(results)))["mIoU"][0]
    (bars,) = axes.containers[0].lines[2]
    assert all(segment[0, 1] == segment[1, 1] for segment in bars.get_segments())


def test_other_methods_alone_do_not_end_the_report(tmp_path):
    figure = ablations_figure(job(tmp_path, methods=(MEAN_FIRST, PER_LAYER)))
    assert figure is None or isinstance(drawn(figure), Figure)


def test_a_figure_saved_twice_is_the_same_bytes(tmp_path):
    results = job(tmp_path, players=("n0", "n20"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_figure(ablations_figure(results), tmp_path / name)
    for name in ("figure.png", "figure.pdf"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
