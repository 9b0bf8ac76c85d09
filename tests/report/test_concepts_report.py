"""Figure 4 from records that are written here: maps of concepts with more and more rivals."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL import Image, ImageOps

from metagame.benchmarks.concepts import ALL
from metagame.contracts import Explanation
from metagame.meta import MetaAttributions
from metagame.report.concepts import concepts_figure, concepts_table
from metagame.report.experiment import save_figure
from metagame.report.maps import heat_scale
from metagame.report.results import tell_apart
from metagame.report.table import write_table
from tests.conftest import close
from tests.tiny.reports import Made, made_up, stub_config

FIRST, META, MEAN_FIRST = "concept_attention", "meta_concept_attention", "mean_first"
VARIANTS = {
    FIRST: {"name": FIRST, "label": "ConceptAttention", "base": FIRST, "method": {"mean_first": False}},
    MEAN_FIRST: {"name": "concept_mean_first", "label": "ConceptAttention, mean first", "base": "concept_mean_first"}
    | {"method": {"mean_first": True}},
    META: {"name": META, "label": "ConceptAttention", "base": FIRST, "meta": True, "method": {"mean_first": True}},
}
PLAYERS = ["one", "two", "three", "four", "five"]
SETS = [["two", "four"], ["four", "two", "one"]]
SHOWN = SETS[-1]
QUESTIONS = {"two, four": SETS[0], "four, two, one": SETS[1], ALL: PLAYERS}
GRID = (4, 4)
PATCHES = 16
WHITE = np.full((8, 8, 3), 255, np.uint8)
"""A picture on which the colours of a map are seen as they are."""


def maps_of(methods=(FIRST, META), directional=True, seed=0, picture=WHITE):
    """What the methods of a job say: maps from 0 to 1, and what a concept does to another from -1 to 0."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for (question, players), method in product(QUESTIONS.items(), methods):
        n = len(players)
        arrays[f"{question}.{method}.players"] = rng.random((n, PATCHES), np.float32)
        arrays[f"{question}.{method}.background"] = rng.random((1, PATCHES), np.float32)
        if directional and method == META:
            own = np.eye(n, dtype=np.float32)[..., None]
            influence = rng.random((n, n, PATCHES), np.float32)
            arrays[f"{question}.{method}.directional"] = own * influence + (own - 1) * influence
        if picture is not None:
            arrays[f"{question}.picture"] = picture
    return arrays


def explained(arrays, question, method):
    """The explanation whose maps are these."""
    players, influence = tuple(QUESTIONS[question]), arrays.get(f"{question}.{method}.directional")
    maps = np.concatenate([arrays[f"{question}.{method}.{kind}"] for kind in ("players", "background")])
    meta = None
    if influence is not None:
        by_patch = influence.transpose(0, 2, 1).reshape(-1, len(players))
        meta = MetaAttributions(by_patch, players=players, targets=players, grid=GRID)
    return Explanation(players, (*players, "sea"), GRID, attribution=maps.ravel(), meta=meta)


def job(folder, arrays=None, image=None, failed=False, variants=VARIANTS, **changes):
    """The variants of a job with one sample: done, with these arrays, or failed."""
    arrays = maps_of() if arrays is None else arrays
    methods = list(dict.fromkeys(name.split(".")[1] for name in arrays if "picture" not in name))
    cfg = stub_config(
        folder,
        name="figure4",
        model={"name": "flux_schnell", "label": "FLUX", "denoising": {"side": 32}},
        attribution={"name": "concept_maps", "label": "Maps", "variants": {name: variants[name] for name in methods}},
        benchmark={
            "name": "concepts", "_target_": "metagame.benchmarks.concepts.Concepts",
            "prompt": "a two on sea", "sets": SETS, "players": PLAYERS, "background": ["sea"], "n_layers": 2,
            "seed": 31, "image": image,
        },
        **changes,
    )  # fmt: skip
    name = f"{cfg.benchmark.prompt} (seed {cfg.benchmark.seed})"
    pictures = {question: arrays[f"{question}.picture"] for question in QUESTIONS if f"{question}.picture" in arrays}
    made = {
        method: {name: Made({}, {question: explained(arrays, question, method) for question in QUESTIONS}, pictures)}
        for method in methods
    }
    return made_up(cfg, {method: {} for method in methods} if failed else made, failed=[name] * failed)


def values_of(arrays, question, method, concept):
    return arrays[f"{question}.{method}.players"][QUESTIONS[question].index(concept)]


def influence(arrays, target, player):
    return arrays[f"{ALL}.{META}.directional"][PLAYERS.index(target), PLAYERS.index(player)]


def panels(block):
    """The axes of a block of a figure without its colour bar."""
    return [axes for axes in block.axes if axes.get_label() != "<colorbar>"]


def rows_of(block):
    """The panels of each concept."""
    found = panels(block)
    n_columns = found[0].get_gridspec().ncols
    return [found[start : start + n_columns] for start in range(0, len(found), n_columns)]


def bar_of(block):
    (bar,) = [axes for axes in block.axes if axes.get_label() == "<colorbar>"]
    return bar


def texts(axes):
    return [text.get_text() for text in axes.texts]


def colors(axes):
    """What a panel shows of each patch of a white picture of 8 x 8 pixels."""
    return axes.images[0].get_array()[::2, ::2]


def shades(values, scale):
    return scale.to_rgba(values.reshape(4, 4), bytes=True)[..., :3] / 255


def drawn(figure):
    """Draw it coarsely: what cannot be drawn raises."""
    figure.savefig(io.BytesIO(), dpi=20, format="png")
    return figure


def test_the_table_has_a_row_for_each_map_of_a_concept_and_each_influence(tmp_path):
    arrays = maps_of()
    table = concepts_table(job(tmp_path, arrays), "tiny")
    expected = [
        (f"ConceptAttention, {shown_as}", concept, values_of(arrays, question, FIRST, concept))
        for question, shown_as in (("two, four", "two, four"), ("four, two, one", "four, two, one"), (ALL, "all 5"))
        for concept in SHOWN
        if concept in QUESTIONS[question]
    ]
    expected += [("Meta-ConceptAttention, all 5", concept, values_of(arrays, ALL, META, concept)) for concept in SHOWN]
    expected += [("directional", f"{j} → {i}", influence(arrays, i, j)) for i in SHOWN for j in SHOWN]
    assert [(row["map"], row["concept"]) for row in table.rows] == [each[:2] for each in expected]
    for row, (_, _, values) in zip(table.rows, expected, strict=True):
        assert close(row["mean"], values.mean(), 1e-6)
        assert close(row["largest"], values[np.abs(values).argmax()], 1e-6)


def test_the_table_says_the_model_and_what_its_numbers_are(tmp_path):
    table = concepts_table(job(tmp_path), "tiny")
    assert (table.title.split(":")[0], table.scale, table.n_samples) == ("figure4", "tiny", 1)
    assert table.notes[0].startswith("Model: FLUX.")
    assert table.published == [{}] * len(table.rows)


def test_numbers_are_of_six_decimals(tmp_path):
    rows = concepts_table(job(tmp_path), "tiny").rows
    assert all(row[key] == round(row[key], 6) for row in rows for key in ("mean", "largest"))


def test_equal_runs_give_equal_bytes(tmp_path):
    written = []
    for name in ("first", "second"):
        results = job(tmp_path / name, maps_of((FIRST,)))
        paths = write_table(concepts_table(results, "tiny"), tmp_path / name)
        save_figure(concepts_figure(results), tmp_path / name)
        paths += [tmp_path / name / f"figure.{kind}" for kind in ("png", "pdf")]
        written.append({path.name: path.read_bytes() for path in paths})
    assert written[0] == written[1]


def test_the_painted_picture_is_shown_with_its_prompt(tmp_path):
    picture = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    block = drawn(concepts_figure(job(tmp_path, maps_of(picture=picture)))).subfigs[0]
    (axes,) = panels(block)
    assert np.array_equal(axes.images[0].get_array(), picture)
    assert axes.get_title().replace("\n", " ") == "a two on sea (seed 31)"


@pytest.mark.parametrize(("side", "shown_side"), [(32, 32), (1024, 512)])
def test_ones_own_picture_is_shown_as_the_model_saw_it(tmp_path, side, shown_side):
    path, exif = tmp_path / "own.jpg", Image.Exif()
    exif[0x0112] = 6
    pixels = np.add.outer(np.arange(40) * 2, np.arange(90)).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(path, exif=exif, quality=95)
    result = job(tmp_path, maps_of(picture=None), str(path), model__denoising__side=side)
    (axes,) = panels(concepts_figure(result).subfigs[0])
    shown = axes.images[0].get_array()
    with Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB").resize((shown_side, shown_side)), float)
    assert shown.shape == (shown_side, shown_side, 3)
    assert np.abs(shown - upright).mean() < 1


def test_all_questions_of_concept_attention_stand_before_the_metagame(tmp_path):
    rows = rows_of(concepts_figure(job(tmp_path)).subfigs[1])
    assert [axes.get_title() for axes in rows[0]] == [
        "ConceptAttention\ntwo, four",
        "ConceptAttention\nfour, two, one",
        "ConceptAttention\nall 5",
        "Meta-ConceptAttention\nall 5",
    ]
    assert [row[0].get_ylabel() for row in rows] == SHOWN


def test_other_methods_follow_with_all_players(tmp_path):
    arrays = maps_of((FIRST, MEAN_FIRST, META))
    rows = rows_of(drawn(concepts_figure(job(tmp_path, arrays))).subfigs[1])
    assert [axes.get_title() for axes in rows[0]][2:] == [
        "ConceptAttention\nall 5", "ConceptAttention, mean first\nall 5", "Meta-ConceptAttention\nall 5",
    ]  # fmt: skip


def test_the_maps_share_one_scale_from_zero_to_the_largest_that_is_shown(tmp_path):
    arrays = maps_of()
    arrays[f"{ALL}.{FIRST}.players"][PLAYERS.index("three")] = 5.0
    block = concepts_figure(job(tmp_path, arrays)).subfigs[1]
    columns = [("two, four", FIRST), ("four, two, one", FIRST), (ALL, FIRST), (ALL, META)]
    maps = [
        [values_of(arrays, question, method, concept) if concept in QUESTIONS[question] else None
         for question, method in columns]
        for concept in SHOWN
    ]  # fmt: skip
    largest = max(values.max() for row in maps for values in row if values is not None)
    scale = ScalarMappable(Normalize(0, largest), "viridis")
    for row, panels_of_row in zip(maps, rows_of(block), strict=True):
        for values, axes in zip(row, panels_of_row, strict=True):
            assert values is None or close(colors(axes), shades(values, scale))
    assert close(bar_of(block).get_ylim(), [0, largest], 1e-6)


def test_a_concept_that_does_not_compete_is_said_to_be_no_player(tmp_path):
    rows = rows_of(drawn(concepts_figure(job(tmp_path))).subfigs[1])
    absent = [(concept, place) for concept, row in zip(SHOWN, rows, strict=True)
              for place, axes in enumerate(row) if texts(axes)]  # fmt: skip
    assert absent == [("one", 0)]
    axes = rows[SHOWN.index("one")][0]
    assert (texts(axes), list(axes.images)) == (["no player\nhere"], [])
    assert all(other.images for row in rows for other in row if other is not axes)


def test_influences_share_one_scale_with_zero_in_its_middle(tmp_path):
    arrays = maps_of()
    block = concepts_figure(job(tmp_path, arrays)).subfigs[2]
    scale = heat_scale([influence(arrays, target, player) for target in SHOWN for player in SHOWN])
    rows = rows_of(block)
    for target, row in zip(SHOWN, rows, strict=True):
        for player, axes in zip(SHOWN, row, strict=True):
            assert close(colors(axes), shades(influence(arrays, target, player), scale))
    low, high = bar_of(block).get_ylim()
    assert close(low, -high)
    assert close(high, scale.norm.vmax)
    assert [row[0].get_ylabel() for row in rows] == [f"on {target}" for target in SHOWN]
    assert [axes.get_title() for axes in rows[0]] == [f"influence of\n{player}" for player in SHOWN]


def test_the_scales_of_maps_and_of_influences_are_two(tmp_path):
    blocks = drawn(concepts_figure(job(tmp_path))).subfigs
    labels = [bar_of(block).get_ylabel() for block in blocks[1:]]
    assert labels == ["map of a concept (one scale)", "influence, all players (one scale)"]


def test_influences_that_were_not_asked_for_are_not_shown(tmp_path):
    results = job(tmp_path, maps_of(directional=False))
    assert len(drawn(concepts_figure(results)).subfigs) == 2
    assert not any(row["map"] == "directional" for row in concepts_table(results, "tiny").rows)


@pytest.mark.parametrize(
    ("methods", "columns"),
    [
        ((META,), ["Meta-ConceptAttention, all 5"]),
        ((MEAN_FIRST,), ["ConceptAttention, mean first, all 5"]),
        ((FIRST,), [f"ConceptAttention, {shown_as}" for shown_as in ("two, four", "four, two, one", "all 5")]),
    ],
)
def test_one_method_alone_has_its_own_columns(tmp_path, methods, columns):
    results = job(tmp_path, maps_of(methods))
    rows = rows_of(drawn(concepts_figure(results)).subfigs[1])
    assert [", ".join(axes.get_title().split("\n")) for axes in rows[0]] == columns
    maps = [row["map"] for row in concepts_table(results, "tiny").rows if row["map"] != "directional"]
    assert list(dict.fromkeys(maps)) == columns
    assert len(concepts_figure(results).subfigs) == (3 if META in methods else 2)


def test_a_map_of_zeros_is_drawn(tmp_path):
    arrays = {name: values if "picture" in name else values * 0 for name, values in maps_of().items()}
    drawn(concepts_figure(job(tmp_path, arrays)))


def test_without_a_finished_sample_there_is_no_figure(tmp_path):
    assert concepts_figure(job(tmp_path, failed=True)) is None


@pytest.mark.parametrize("order", [1, -1])
def test_a_job_that_failed_is_noted_beside_one_that_did_not(tmp_path, order):
    other = job(tmp_path, failed=True, attribution__name="other", attribution__label="Other", seed=1)
    results = [*job(tmp_path), *other][::order]
    assert drawn(concepts_figure(results)).subfigs
    table = concepts_table(results, "tiny")
    name = "a two on sea (seed 31)"
    assert f"Other: sample {name} failed: no memory for {name}" in table.notes
    assert len(table.rows) == len(concepts_table(job(tmp_path), "tiny").rows)


def test_a_variant_that_failed_leaves_the_others(tmp_path):
    first, meta = job(tmp_path)
    failed = [replace(record, status="failed", error="no memory") for record in meta.records]
    rows = concepts_table([first, replace(meta, records=failed)], "tiny").rows
    assert {row["map"].split(", ")[0] for row in rows} == {"ConceptAttention"}


SWEPT = [
    ({"model__name": "flux_dev", "model__label": "FLUX.1-dev"}, "model", ["FLUX", "FLUX.1-dev"]),
    ({"benchmark__seed": 32}, "picture", ["a two on sea (seed 31)", "a two on sea (seed 32)"]),
    ({"benchmark__n_layers": 1}, "setting", ["benchmark.n_layers=2", "benchmark.n_layers=1"]),
    ({"model__name": "flux_dev"}, "setting", ["model=flux_schnell", "model=flux_dev"]),
]


@pytest.mark.parametrize(("change", "column", "names"), SWEPT)
def test_jobs_of_a_sweep_are_not_mixed(tmp_path, change, column, names):
    both = [maps_of(), maps_of(seed=1)]
    results = tell_apart([*job(tmp_path, both[0]), *job(tmp_path, both[1], **change)])
    table = concepts_table(results, "tiny")
    assert list(dict.fromkeys(row[column] for row in table.rows)) == names
    assert column in [each.key for each in table.columns]
    for arrays, name in zip(both, names, strict=True):
        rows = [row for row in table.rows if row[column] == name]
        alone = concepts_table(job(tmp_path / "alone", arrays), "tiny").rows
        assert [(row["map"], row["concept"], row["mean"]) for row in rows] == [
            (row["map"], row["concept"], row["mean"]) for row in alone
        ]
    figure = drawn(concepts_figure(results))
    for part, arrays in zip(figure.subfigs, both, strict=True):
        for target, row in zip(SHOWN, rows_of(part.subfigs[2]), strict=True):
            for player, axes in zip(SHOWN, row, strict=True):
                scale = heat_scale([influence(arrays, i, j) for i in SHOWN for j in SHOWN])
                assert close(colors(axes), shades(influence(arrays, target, player), scale))


def test_jobs_of_one_picture_and_model_stand_side_by_side(tmp_path):
    own = {FIRST: maps_of((FIRST,)), META: maps_of((META,))}
    results = [*job(tmp_path, own[FIRST]), *job(tmp_path, own[META], attribution__name="other")]
    table = concepts_table(results, "tiny")
    assert [row["map"] for row in table.rows][-10] == "Meta-ConceptAttention, all 5"
    assert table.columns[0].key == "map"
    assert len(drawn(concepts_figure(results)).subfigs) == 3


def test_two_options_of_a_method_have_columns_and_influences_of_their_own(tmp_path):
    both = [maps_of((META,)), maps_of((META,), seed=1)]
    per_layer = VARIANTS | {META: VARIANTS[META] | {"method": {"mean_first": False}}}
    results = [*job(tmp_path, both[0]), *job(tmp_path, both[1], variants=per_layer)]
    rows = concepts_table(results, "tiny").rows
    labels = [f"Meta-ConceptAttention (method.mean_first={value})" for value in (True, False)]
    for arrays, label in zip(both, labels, strict=True):
        means = [row["mean"] for row in rows if row["map"] == f"{label}, all 5"]
        assert close(means, [values_of(arrays, ALL, META, concept).mean() for concept in SHOWN], 1e-6)
        means = [row["mean"] for row in rows if row["map"] == f"directional, {label}"]
        assert close(means, [influence(arrays, i, j).mean() for i in SHOWN for j in SHOWN], 1e-6)
    figure = drawn(concepts_figure(results))
    assert len(figure.subfigs) == 4
    assert [bar_of(block).get_ylabel() for block in figure.subfigs[2:]] == [
        f"influence, all players, {label} (one scale)" for label in labels
    ]


def test_characters_of_formulas_stay_as_they_are(tmp_path):
    drawn(concepts_figure(job(tmp_path, benchmark__prompt=r"a $\two$ on sea")))
