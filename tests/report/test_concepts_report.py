"""Figure 4 from records that are written here: maps of concepts with more and more rivals."""

from __future__ import annotations

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
from metagame.report import concepts
from metagame.report.concepts import concepts_table
from metagame.report.maps import heat_scale
from metagame.report.results import tell_apart
from tests.conftest import close
from tests.tiny.reports import CONCEPT_METHODS, Made, column_keys, drawn, figure_of, made_up, stub_config

concepts_figure = figure_of(concepts.concepts_figure)
FIRST, META, MEAN_FIRST = "concept_attention", "meta_concept_attention", "mean_first"
PLAYERS = ("one", "two", "three", "four", "five")
SHOWN = ("four", "two", "one")
QUESTIONS = {"two, four": ("two", "four"), "four, two, one": SHOWN, ALL: PLAYERS}
OF_META, OF_ANOTHER = "Meta-ConceptAttention, all 5", "ConceptAttention, mean first, all 5"
OF_FIRST = [f"ConceptAttention, {asked}" for asked in ("two, four", "four, two, one", "all 5")]
GRID, PATCHES = (4, 4), 16
WHITE = np.full((8, 8, 3), 255, np.uint8)
"""A picture on which the colours of a map are seen as they are."""
NAME = "a two on sea (seed 31)"


def maps_of(methods=(FIRST, META), directional=True, seed=0):
    """What the methods say of each question: maps from 0 to 1, and what a concept does to another from -1 to 0."""
    rng, found = np.random.default_rng(seed), {method: {} for method in methods}
    for method, (question, players) in product(methods, QUESTIONS.items()):
        n, meta = len(players), None
        if directional and method == META:
            sign = np.where(np.eye(n, dtype=bool), 1, -1)[:, None]
            values = (sign * rng.random((n, PATCHES, n), np.float32)).reshape(-1, n)
            meta = MetaAttributions(values, players=players, targets=players, grid=GRID)
        attribution = rng.random((n + 1) * PATCHES, np.float32)
        found[method][question] = Explanation(players, (*players, "sea"), GRID, attribution=attribution, meta=meta)
    return found


def map_of(maps, question, method, concept):
    each = maps[method][question]
    return each.attribution.reshape(-1, PATCHES)[each.players.index(concept)]


def influence(maps, target, player):
    values = maps[META][ALL].meta.values.reshape(5, PATCHES, 5)
    return values[PLAYERS.index(target), :, PLAYERS.index(player)]


def job(folder, maps=None, picture=WHITE, image=None, failed=False, **changes):
    """The variants of a job with one sample: done, with these maps, or failed."""
    maps = maps_of() if maps is None else maps
    variants = {method: CONCEPT_METHODS[method] for method in maps}
    cfg = stub_config(
        folder,
        name="figure4",
        model={"name": "flux_schnell", "label": "FLUX", "denoising": {"side": 32}},
        attribution={"name": "concept_maps", "label": "Maps", "variants": variants},
        benchmark={
            "name": "concepts", "_target_": "metagame.benchmarks.concepts.Concepts",
            "prompt": "a two on sea", "sets": [list(players) for players in list(QUESTIONS.values())[:2]],
            "players": list(PLAYERS), "background": ["sea"], "n_layers": 2, "seed": 31, "image": image,
        },
        **changes,
    )  # fmt: skip
    name = f"{cfg.benchmark.prompt} (seed {cfg.benchmark.seed})"
    pictures = {} if picture is None else dict.fromkeys(QUESTIONS, picture)
    made = {method: {} if failed else {name: Made({}, by_question, pictures)} for method, by_question in maps.items()}
    return made_up(cfg, made, failed=[name] * failed)


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


def shows(axes, values, scale):
    """Whether a panel has these colours on each patch of a white picture of 8 x 8 pixels."""
    return close(axes.images[0].get_array()[::2, ::2], scale.to_rgba(values.reshape(4, 4), bytes=True)[..., :3] / 255)


def shows_influences(block, maps):
    scale = heat_scale([influence(maps, target, player) for target in SHOWN for player in SHOWN])
    return all(
        shows(axes, influence(maps, target, player), scale)
        for target, row in zip(SHOWN, rows_of(block), strict=True)
        for player, axes in zip(SHOWN, row, strict=True)
    )


def test_the_table_has_a_row_for_each_map_of_a_concept_and_each_influence(tmp_path):
    maps = maps_of()
    table = concepts_table(job(tmp_path, maps), "tiny")
    expected = [
        (title, concept, map_of(maps, question, FIRST, concept))
        for (question, players), title in zip(QUESTIONS.items(), OF_FIRST, strict=True)
        for concept in SHOWN
        if concept in players
    ]
    expected += [(OF_META, concept, map_of(maps, ALL, META, concept)) for concept in SHOWN]
    expected += [("directional", f"{j} → {i}", influence(maps, i, j)) for i in SHOWN for j in SHOWN]
    for row, (title, concept, values) in zip(table.rows, expected, strict=True):
        assert (row["map"], row["concept"]) == (title, concept)
        assert close(row["mean"], values.mean(), 1e-6)
        assert close(row["largest"], values[np.abs(values).argmax()], 1e-6)
        assert all(row[key] == round(row[key], 6) for key in ("mean", "largest"))
    assert (table.title.split(":")[0], table.scale, table.n_samples) == ("figure4", "tiny", 1)
    assert table.notes[0].startswith("Model: FLUX.")
    assert table.published == [{}] * len(table.rows)


@pytest.mark.parametrize(("side", "shown_side"), [(32, 32), (1024, 512)])
def test_ones_own_picture_is_shown_as_the_model_saw_it(tmp_path, side, shown_side):
    path, exif = tmp_path / "own.jpg", Image.Exif()
    exif[0x0112] = 6
    pixels = np.add.outer(np.arange(40) * 2, np.arange(90)).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(path, exif=exif, quality=95)
    results = job(tmp_path, maps_of((META,), directional=False), None, str(path), model__denoising__side=side)
    (axes,) = panels(concepts_figure(results).subfigs[0])
    shown = axes.images[0].get_array()
    with Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB").resize((shown_side, shown_side)), float)
    assert shown.shape == (shown_side, shown_side, 3)
    assert np.abs(shown - upright).mean() < 1


def test_maps_share_one_scale_from_zero_and_who_does_not_compete_is_said_to_be_no_player(tmp_path):
    maps = maps_of()
    maps[FIRST][ALL].attribution[PLAYERS.index("three") * PATCHES] = 5.0  # which is not shown
    block = drawn(concepts_figure(job(tmp_path, maps))).subfigs[1]
    columns = [*product(QUESTIONS, (FIRST,)), (ALL, META)]
    shown = [
        (axes, map_of(maps, question, method, concept) if concept in QUESTIONS[question] else None)
        for concept, row in zip(SHOWN, rows_of(block), strict=True)
        for (question, method), axes in zip(columns, row, strict=True)
    ]
    largest = max(values.max() for _, values in shown if values is not None)
    for axes, values in shown:
        if values is None:
            assert ([text.get_text() for text in axes.texts], list(axes.images)) == (["no player\nhere"], [])
        else:
            assert shows(axes, values, ScalarMappable(Normalize(0, largest), "viridis"))
    assert sum(values is None for _, values in shown) == 1
    assert close(bar_of(block).get_ylim(), [0, largest], 1e-6)
    assert bar_of(block).get_ylabel() == "map of a concept (share of a patch)"


def test_influences_share_one_scale_with_zero_in_its_middle_beside_the_painted_picture(tmp_path):
    maps, picture = maps_of(), np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    left, _, _ = concepts_figure(job(tmp_path, maps, picture)).subfigs
    (axes,) = panels(left)
    assert np.array_equal(axes.images[0].get_array(), picture)
    assert axes.get_title().replace("\n", " ") == NAME
    block = concepts_figure(job(tmp_path / "white", maps)).subfigs[2]
    assert shows_influences(block, maps)
    largest = heat_scale([influence(maps, target, player) for target in SHOWN for player in SHOWN]).norm.vmax
    assert close(bar_of(block).get_ylim(), [-largest, largest])
    assert bar_of(block).get_ylabel() == "influence on the map, all concepts compete"
    assert [row[0].get_ylabel() for row in rows_of(block)] == [f"on {target}" for target in SHOWN]
    assert [axes.get_title() for axes in rows_of(block)[0]] == [f"influence of\n{player}" for player in SHOWN]


@pytest.mark.parametrize(
    ("methods", "directional", "columns"),
    [
        ((META, MEAN_FIRST, FIRST), True, [*OF_FIRST, OF_META, OF_ANOTHER]),
        ((META,), True, [OF_META]),
        ((META,), False, [OF_META]),
        ((MEAN_FIRST,), False, [OF_ANOTHER]),
        ((FIRST,), False, OF_FIRST),
    ],
    ids=["several", "metagame", "metagame without influences", "another method", "ConceptAttention"],
)
def test_all_questions_of_concept_attention_come_first_then_other_methods(tmp_path, methods, directional, columns):
    results = job(tmp_path, maps_of(methods, directional))
    figure = concepts_figure(results)
    assert [", ".join(axes.get_title().split("\n")) for axes in rows_of(figure.subfigs[1])[0]] == columns
    assert [row[0].get_ylabel() for row in rows_of(figure.subfigs[1])] == list(SHOWN)
    maps = list(dict.fromkeys(row["map"] for row in concepts_table(results, "tiny").rows))
    assert maps == [*columns, "directional"][: len(columns) + directional]
    assert len(figure.subfigs) == 2 + directional


def test_maps_of_zeros_and_prompts_with_characters_of_formulas_are_drawn(tmp_path):
    maps = maps_of((META,))
    for each in maps[META].values():
        each.attribution[:] = each.meta.values[:] = 0
    assert drawn(concepts_figure(job(tmp_path, maps, benchmark__prompt=r"a $\two$ on sea")))


def test_jobs_and_variants_that_failed_are_noted_beside_those_that_did_not(tmp_path):
    failed = job(tmp_path, failed=True, attribution__name="other", attribution__label="Other", seed=1)
    assert concepts_figure(failed) is None
    done = job(tmp_path)
    assert concepts_figure([*failed, *done]).subfigs
    table = concepts_table([*failed, *done], "tiny")
    assert f"Other: sample {NAME} failed: no memory for {NAME}" in table.notes
    assert table.rows == concepts_table(done, "tiny").rows
    first, meta = done
    meta = replace(meta, records=[replace(record, status="failed", error="no memory") for record in meta.records])
    rows = concepts_table([first, meta], "tiny").rows
    assert {row["map"].split(", ")[0] for row in rows} == {"ConceptAttention"}


@pytest.mark.parametrize(
    ("change", "column", "names"),
    [
        ({"model__name": "flux_dev", "model__label": "FLUX.1-dev"}, "model", ["FLUX", "FLUX.1-dev"]),
        ({"benchmark__seed": 32}, "picture", [NAME, "a two on sea (seed 32)"]),
        ({"benchmark__n_layers": 1}, "setting", ["benchmark.n_layers=2", "benchmark.n_layers=1"]),
        ({"model__name": "flux_dev"}, "setting", ["model=flux_schnell", "model=flux_dev"]),
    ],
    ids=["model", "picture", "setting", "model of the same label"],
)
def test_jobs_of_a_sweep_are_not_mixed(tmp_path, change, column, names):
    both = [maps_of((META,)), maps_of((META,), seed=1)]
    results = tell_apart([*job(tmp_path, both[0]), *job(tmp_path, both[1], **change)])
    table, figure = concepts_table(results, "tiny"), concepts_figure(results)
    assert list(dict.fromkeys(row[column] for row in table.rows)) == names
    assert column in column_keys(table)
    for maps, name, part in zip(both, names, figure.subfigs, strict=True):
        means = [row["mean"] for row in table.rows if row[column] == name]
        expected = [map_of(maps, ALL, META, concept).mean() for concept in SHOWN]
        expected += [influence(maps, i, j).mean() for i in SHOWN for j in SHOWN]
        assert close(means, expected, 1e-6)
        assert shows_influences(part.subfigs[2], maps)


def test_two_options_of_a_method_have_columns_and_influences_of_their_own(tmp_path):
    both = [maps_of((META,)), maps_of((META,), seed=1)]
    change = {f"attribution__variants__{META}__method__mean_first": False}
    results = [*job(tmp_path, both[0]), *job(tmp_path, both[1], **change)]
    table, figure = concepts_table(results, "tiny"), drawn(concepts_figure(results))
    rows = table.rows
    assert column_keys(table)[0] == "map"  # nothing but the method differs
    labels = [f"Meta-ConceptAttention (method.mean_first={value})" for value in (True, False)]
    for maps, label, block in zip(both, labels, figure.subfigs[2:], strict=True):
        means = [row["mean"] for row in rows if row["map"] == f"{label}, all 5"]
        assert close(means, [map_of(maps, ALL, META, concept).mean() for concept in SHOWN], 1e-6)
        means = [row["mean"] for row in rows if row["map"] == f"directional, {label}"]
        assert close(means, [influence(maps, i, j).mean() for i in SHOWN for j in SHOWN], 1e-6)
        assert bar_of(block).get_ylabel() == f"influence on the map, all concepts compete, {label}"
        assert shows_influences(block, maps)
