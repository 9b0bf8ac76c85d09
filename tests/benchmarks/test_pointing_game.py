from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hydra import compose
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from metagame.benchmarks.digits import Digits
from metagame.benchmarks.pointing_game import (
    ComposedScenes,
    Images,
    PointingGame,
    PreparedScenes,
    quadrants,
    recognition,
    word_maps,
)
from metagame.contracts import WHOLE, Failure
from metagame.errors import UserError
from metagame.estimators.exact import MAX_PLAYERS
from metagame.experiments import finish
from metagame.jobs.fingerprint import files_digest
from metagame.jobs.grid import sweep_configs
from metagame.jobs.records import Record, RecordStore, pack, unpack
from metagame.jobs.run import run_job
from metagame.jobs.spec import is_left_out, job_folder, variants
from metagame.models.vision_language import Sample
from metagame.report.maps import TOP, draw_edges, draw_map, edge_scale, heat_scale, word_colors
from metagame.report.pointing_game import OBJECTS, pointing_game_table, scenes_figure
from metagame.report.published import published
from metagame.report.results import JobResult, tell_apart
from metagame.report.table import markdown, write_table
from tests.conftest import close, unchecked
from tests.reference import pointing_game as twin
from tests.tiny.benchmarks import explained
from tests.tiny.jobs import ROOT, Plain, job_config, shipped_configs, terminal_free_environment

PAPER_CLASSES = {
    "fish": 0, "koala": 105, "plane": 404, "balloon": 417, "church": 497, "jeep": 609, "laptop": 620, "lemon": 951,
    "pizza": 963, "acorn": 988,
}  # fmt: skip
PAPER_GAMES = [
    "fish-koala-balloon-laptop", "koala-plane-church-lemon", "plane-balloon-jeep-pizza",
    "balloon-church-laptop-acorn", "church-jeep-lemon-fish", "jeep-laptop-pizza-koala", "laptop-lemon-acorn-plane",
    "lemon-pizza-fish-balloon", "pizza-acorn-koala-church", "acorn-fish-plane-jeep",
]  # fmt: skip
CLASSES = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
GAMES = ["zero-one-two-three", "four-three-two-one"]
BENCHMARK = ROOT / "configs/benchmark"
CLASSES_OF = {scale: OmegaConf.load(BENCHMARK / f"classes/{scale}.yaml") for scale in ("tiny", "paper")}
GAMES_OF = {
    "tiny": OmegaConf.load(BENCHMARK / "by_scale/tiny/pointing_game.yaml").games,
    "paper": OmegaConf.load(BENCHMARK / "pointing_game.yaml").games,
}
CLAIMS = published("table2")["claims"]


@st.composite
def map_sets(draw, elements=None, n_words=None):
    """Maps ``(P, m)`` of 1 to 4 words on an even grid, and its side."""
    side = draw(st.sampled_from([2, 4, 6]))
    m = draw(st.integers(1, 4)) if n_words is None else n_words
    if elements is None:
        elements = st.one_of(st.just(0.0), st.floats(-10, 10))
    return draw(arrays(np.float64, (side * side, m), elements=elements, fill=st.nothing())), side


def perfect(side, m):
    """Each word positive on its own quadrant, negative elsewhere."""
    return np.where(quadrants(side * side)[:, :m], 2.0, -0.5)


@given(map_sets())
def test_recognition_is_what_its_definition_says(case):
    maps, side = case
    ours, theirs = recognition(maps), twin.recognition(maps, side)
    if theirs is None:
        assert ours is None
    else:
        assert close(ours, theirs)
        assert 0 <= ours <= 1


@given(map_sets(st.floats(0.01, 10), n_words=1))
def test_one_positive_map_for_four_words_has_a_quarter(case):
    (single, _) = case
    assert close(recognition(np.repeat(single, 4, axis=1)), 0.25)


@given(map_sets(st.floats(0.01, 10)))
def test_negated_maps_have_the_rest(case):
    maps, _ = case
    assert close(recognition(-maps), 1 - recognition(maps))


@given(map_sets(st.floats(-10, 10).filter(lambda value: abs(value) > 0.01)), st.floats(1e-3, 1e3))
def test_recognition_does_not_depend_on_the_unit(case, unit):
    maps, _ = case
    assert close(recognition(unit * maps), recognition(maps))


@pytest.mark.parametrize(("side", "m"), list(product([2, 4, 14], [1, 2, 3, 4])))
def test_maps_that_point_to_their_objects_have_one_and_the_opposite_zero(side, m):
    assert recognition(perfect(side, m)) == 1
    assert recognition(-perfect(side, m)) == 0


def test_maps_that_point_to_another_object_are_wrong():
    assert recognition(np.roll(quadrants(16).astype(float), 1, axis=1)) == 0


def test_recognition_by_hand():
    maps = np.array([[3.0, -1.0], [1.0, 2.0], [-0.5, 0.0], [0.0, 0.25]])
    assert recognition(maps) == (3 + 0.5 + 1 + 2) / (3 + 1 + 0.5 + 1 + 2 + 0.25)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_maps_that_are_zero_everywhere_have_no_score(m):
    assert recognition(np.zeros((16, m))) is None


@pytest.mark.parametrize("side", [1, 3, 7])
def test_a_grid_with_an_odd_side_is_refused(side):
    with pytest.raises(UserError, match=f"a grid of {side} x {side} patches has no quadrants"):
        recognition(np.ones((side * side, 2)))


@pytest.mark.parametrize("n_patches", [2, 8, 50])
def test_patches_that_make_no_square_are_refused(n_patches):
    with pytest.raises(UserError, match=f"{n_patches} patches make no square grid"):
        recognition(np.ones((n_patches, 2)))


def test_quadrants_are_in_reading_order():
    places = quadrants(16).argmax(1).reshape(4, 4)
    assert places.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert (quadrants(16).sum(1) == 1).all()


def test_the_quadrants_of_patches_are_those_of_the_picture():
    """What is red in a grid of pictures is where the quadrant of the first word is."""
    for place in range(4):
        solid = [Image.new("RGB", (8, 8), "white" if place == cell else "black") for cell in range(4)]
        scenes = ComposedScenes(Solid(solid), 8)
        grid = np.asarray(scenes.image("a-b-c-d", range(4), 0))[..., 0]
        patches = grid.reshape(4, 4, 4, 4).mean((1, 3)).ravel() > 128
        assert np.array_equal(patches, quadrants(16)[:, place])


@dataclass(frozen=True)
class Solid(Images):
    pictures: list

    def image(self, label, k):
        return self.pictures[label]


class Filed(Digits):
    """Digits that are read from a file each."""

    def files(self, label, k):
        return [Path(f"{label}-{k}.png")]


def game(games=GAMES, n_images=2, n_games=None, classes=None):
    return PointingGame(ComposedScenes(Digits(), 32), classes or CLASSES, games, n_images, n_games)


def test_the_classes_and_games_of_the_paper():
    assert OmegaConf.to_container(CLASSES_OF["paper"]) == PAPER_CLASSES
    assert list(GAMES_OF["paper"]) == PAPER_GAMES


def test_the_digit_games_are_ten_games_of_the_ten_digits():
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert OmegaConf.to_container(CLASSES_OF["tiny"]) == {word: value for value, word in enumerate(digits)}
    assert len(set(GAMES_OF["tiny"])) == 10


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_in_ten_games_each_class_stands_once_in_each_place(scale):
    for words in zip(*(each.split("-") for each in GAMES_OF[scale]), strict=True):
        assert sorted(words) == sorted(CLASSES_OF[scale])


def test_samples_are_games_by_images():
    samples = game().samples()
    assert [sample.id for sample in samples] == [f"{name}/{k}" for name in GAMES for k in range(2)]
    assert [sample.labels for sample in samples[1:3]] == [(0, 1, 2, 3), (4, 3, 2, 1)]
    assert samples[2].words == ["four", "three", "two", "one"]
    assert all(isinstance(sample, Sample) for sample in samples)


def test_the_image_of_a_sample_is_image_k_of_each_class_in_reading_order():
    grid = game().samples()[3].image()
    digits = Digits()
    assert grid.size == (64, 64)
    for label, corner in zip((4, 3, 2, 1), ((0, 0), (32, 0), (0, 32), (32, 32)), strict=True):
        expected = digits.image(label, 1).resize((32, 32), Image.Resampling.BICUBIC)
        cell = grid.crop((*corner, corner[0] + 32, corner[1] + 32))
        assert np.array_equal(np.asarray(cell), np.asarray(expected))


def test_the_files_of_a_sample_are_those_of_its_four_images():
    scenes = ComposedScenes(Filed(), 32)
    sample = PointingGame(scenes, CLASSES, GAMES, 2).samples()[3]
    assert list(sample.files()) == [Path(f"{label}-1.png") for label in (4, 3, 2, 1)]
    assert list(game().samples()[3].files()) == list(game().files()) == []


def test_the_file_of_a_sample_with_a_prepared_grid_is_the_grid(tmp_path):
    samples = PointingGame(PreparedScenes(str(tmp_path)), CLASSES, GAMES, 2).samples()
    assert [list(sample.files()) for sample in samples] == [
        [tmp_path / name / f"{k:02d}.png"] for name in GAMES for k in range(2)
    ]


def test_a_grid_that_is_made_again_is_told_apart_by_the_files_of_its_sample_alone(tmp_path):
    def digests():
        samples = PointingGame(PreparedScenes(str(tmp_path)), CLASSES, GAMES, 2).samples()
        return [files_digest(sample.files()) for sample in samples]

    for name, k in product(GAMES, range(2)):
        (tmp_path / name).mkdir(exist_ok=True)
        ComposedScenes(Digits(), 32).image(name, (0, 1, 2, 3), k).save(tmp_path / name / f"{k:02d}.png")
    before = digests()
    ComposedScenes(Digits(), 32).image(GAMES[0], (0, 1, 2, 3), 7).save(tmp_path / GAMES[0] / "01.png")
    assert [old != new for old, new in zip(before, digests(), strict=True)] == [False, True, False, False]


@unchecked()
def test_scenario_m_asks_about_the_first_m_words():
    players = game().samples()[0].texts(tokenizer=None)
    assert {m: each.labels for m, each in players.items()} == {
        "1": ("zero",), "2": ("zero", "one"), "3": ("zero", "one", "two"), "4": ("zero", "one", "two", "three"),
    }  # fmt: skip


def test_the_first_games_only_where_that_is_asked_for():
    assert [sample.id for sample in game(n_games=1).samples()] == [f"{GAMES[0]}/0", f"{GAMES[0]}/1"]
    assert len(game(n_games=7).samples()) == 4


@pytest.mark.parametrize(("n_images", "n_games"), [(0, None), (-1, None), (2, 0), (2, -3)])
def test_numbers_of_games_and_images_that_are_not_positive_are_refused(n_images, n_games):
    with pytest.raises(UserError, match=f"n_images={n_images}, benchmark.n_games={n_games}: give positive numbers"):
        game(n_images=n_images, n_games=n_games)


@pytest.mark.parametrize(
    "name",
    ["", "zero-one-two", "zero-one-two-three-four", "zero-one-two-ten", "zero-one-two-zero", "zero one two three"],
)
def test_a_game_that_is_not_four_different_known_words_is_refused(name):
    with pytest.raises(UserError, match=f"game {name!r}: give four different words of benchmark.classes"):
        game([GAMES[0], name])


@pytest.mark.parametrize(
    ("overrides", "n_games", "n_images"),
    [
        (["scale=tiny"], None, 50),
        (["scale=paper"], None, 50),
        (["scale=tiny", "attribution=fixlip"], 3, 10),
        (["scale=paper", "attribution=fixlip"], 3, 50),
    ],
)
def test_the_shipped_game_has_50_images_of_ten_games_and_fewer_for_fixlip(overrides, n_games, n_images):
    with shipped_configs():
        cfg = compose("config", overrides=["model=clip_vitb16", "benchmark=pointing_game", *overrides])
    assert (cfg.benchmark.n_games, cfg.benchmark.n_images) == (n_games, n_images)


def test_a_first_order_map_is_the_map_of_every_word():
    values = np.arange(4.0)
    assert word_maps(explained(values, grid=(2, 2)), 3).tolist() == [[value] * 3 for value in values]


def test_meta_attributions_are_the_maps_of_their_words():
    matrix = np.arange(8.0).reshape(4, 2)
    assert np.array_equal(word_maps(explained(np.ones(4), matrix, grid=(2, 2)), 2), matrix)


def test_a_metagame_of_pairs_of_words_is_judged_by_its_first_order_map():
    pairs = np.ones((4, 2, 2))
    assert np.array_equal(word_maps(explained(np.arange(4), pairs, grid=(2, 2), order=2), 2)[:, 1], np.arange(4))


def test_a_method_without_maps_of_words_is_refused():
    with pytest.raises(UserError, match="the pointing game needs a map of each word"):
        word_maps(explained(values=np.ones((4, 2, 2)), grid=(2, 2), order=2), 2)


@unchecked()
def test_the_scores_are_the_recognition_of_each_scenario():
    rng = np.random.default_rng(0)
    maps = {str(m): rng.normal(size=(16, m)) for m in (1, 2, 3)} | {"4": np.zeros((16, 4))}
    explanations = {m: explained(values=values, grid=(4, 4)) for m, values in maps.items()}
    scores = game().score(game().samples()[0], dict.fromkeys(explanations), explanations)
    assert list(scores) == list(OBJECTS)
    assert scores["objects_4"] is None
    for m in (1, 2, 3):
        assert close(scores[f"objects_{m}"], twin.recognition(maps[str(m)], 4))


LABELS = {
    "clip_vitb16": "CLIP", "metaclip2_vith14": "MetaCLIP-2", "siglip2_vitl16": "SigLIP-2 (L/16)",
    "siglip2_vitb32": "SigLIP-2 (B/32)",
}  # fmt: skip


def result(
    model="clip_vitb16",
    attribution="grad_eclip",
    scores=(0.5,),
    failed=(),
    missing=0,
    folder="unused",
    meta=None,
    **method,
):
    """A job: of image k of the game ``a-b-c-d`` its scores, a number for all four scenarios or four of them."""
    base = attribution.removeprefix("meta_")
    meta = attribution.startswith("meta_") if meta is None else meta
    config = OmegaConf.create(
        {
            "name": "table2",
            "scale": {"name": "tiny"},
            "seed": 0,
            "model": {"name": model, "label": LABELS[model]},
            "attribution": {"name": attribution, "label": base.upper(), "family": "x", "base": base, "meta": meta}
            | {"method": {"_target_": base, **method}},
            "benchmark": {"name": "pointing_game"},
            "estimator": {"name": "exact"},
        }
    )
    fours = [score if isinstance(score, list) else [score] * 4 for score in scores]
    records = [
        Record(f"d{k}", f"a-b-c-d/{k}", "done", scores=dict(zip(OBJECTS, four, strict=True)))
        for k, four in enumerate(fours)
    ]
    records += [Record(f"f{k}", f"a-b-c-d/{k}", "failed", error="no memory") for k in failed]
    ids = [f"a-b-c-d/{k}" for k in range(len(records) + missing)]
    (variant,) = variants(config)
    method = {"name": attribution, "meta": meta, "method": {"_target_": base, **method}}
    parts = {"model": {"name": model}, "benchmark": {"name": "pointing_game"}, "seed": 0, "scale": "tiny"}
    identity = parts | {"attribution": {variant.name: method}}
    return JobResult(config, variant, Path(folder), identity, ids, records, 0, variant.label)


def claims(*results):
    """What the claims are answered with, by name."""
    names = {text: name for name, text in CLAIMS.items()}
    return {names[claim["claim"]]: claim["holds"] for claim in pointing_game_table(list(results), "tiny").claims}


def test_a_row_is_the_mean_over_images_with_two_standard_errors():
    scores = [[0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.5, 0.9], [0.2, 0.2, 0.1, 0.2]]
    (row,) = pointing_game_table([result(scores=scores)], "tiny").rows
    assert (row["model"], row["method"], row["n"]) == ("CLIP", "GRAD_ECLIP", "3")
    for key, values in zip(OBJECTS, np.transpose(scores), strict=True):
        spread = 2 * np.sqrt(((values - values.mean()) ** 2).sum() / 2) / np.sqrt(3)
        assert close(row[key]["mean"], values.mean(), 1e-6)
        assert close(row[key]["two_se"], spread, 1e-6)
        assert row[key]["n"] == 3


def test_one_image_has_no_standard_error():
    (row,) = pointing_game_table([result(scores=[0.5])], "tiny").rows
    assert row["objects_1"] == {"mean": 0.5, "two_se": None, "n": 1}


def test_images_whose_maps_are_zero_are_left_out_and_counted():
    scores = [[0.5, None, None, 0.1], [0.7, 0.3, None, 0.1], 0.6]
    table = pointing_game_table([result(scores=scores), result(attribution="mask_clip")], "tiny")
    row = table.rows[0]
    assert [row[key]["n"] for key in OBJECTS] == [3, 2, 1, 3]
    assert (row["objects_2"]["mean"], row["objects_3"]["mean"]) == (0.45, 0.6)
    assert [note for note in table.notes if "zero" in note] == [
        "GRAD_ECLIP of CLIP: left out, since all maps are zero: 0, 1, 2, 0 images."
    ]


def test_a_column_without_any_score_is_a_dash(tmp_path):
    table = pointing_game_table([result(scores=[[0.5, 0.5, 0.5, None]])], "tiny")
    assert table.rows[0]["objects_4"] is None
    assert "–" in markdown(table)
    write_table(table, tmp_path)


def test_rows_come_in_the_order_of_the_jobs():
    results = [result(model, name) for model in LABELS for name in ("grad_eclip", "meta_grad_eclip")]
    rows = pointing_game_table(results, "tiny").rows
    assert [(row["model"], row["method"]) for row in rows] == [
        (label, name) for label in LABELS.values() for name in ("GRAD_ECLIP", "Meta-GRAD_ECLIP")
    ]


def test_the_number_of_images_is_that_of_the_finished_ones():
    results = [result(scores=[0.1] * 5, failed=[5]), result(attribution="fixlip", scores=[0.1] * 2)]
    table = pointing_game_table(results, "tiny")
    assert [row["n"] for row in table.rows] == ["5", "2"]
    assert table.n_samples == 5


def test_published_values_stand_beside_the_rows_they_belong_to():
    rows = {("clip_vitb16", "meta_generic_attention"): [0.84, 0.87, 0.89, 0.90]}
    rows |= {("metaclip2_vith14", "generic_attention"): [0.84, 0.45, 0.32, 0.25]}
    rows |= {("clip_vitb16", "mask_clip"): [None, None, None, 0.25]}
    results = [result(*row) for row in rows]
    for row, values in zip(pointing_game_table(results, "paper").published, rows.values(), strict=True):
        assert [row[key] for key in OBJECTS] == values


def test_a_row_that_the_paper_has_not_has_no_published_values():
    results = [result("siglip2_vitl16", "meta_mask_siglip"), result(attribution="fixlip")]
    assert pointing_game_table(results, "paper").published == [{}, {}]


def test_the_metagame_of_a_first_order_config_has_the_published_values_of_the_meta_variant():
    switched, shipped = result(attribution="grad_eclip", meta=True), result(attribution="meta_grad_eclip")
    assert pointing_game_table([switched], "paper").published == pointing_game_table([shipped], "paper").published


@pytest.mark.parametrize(("scale", "said"), [("tiny", True), ("paper", False)])
def test_the_tiny_table_says_that_the_published_values_are_of_other_models(scale, said):
    notes = pointing_game_table([result()], scale).notes
    assert any(note.startswith("Published values are of the real models") for note in notes) is said


def test_failed_and_missing_samples_are_named_with_their_model():
    results = [result(failed=[7]), result("metaclip2_vith14", scores=[0.1], missing=2)]
    notes = pointing_game_table(results, "tiny").notes
    assert "GRAD_ECLIP of CLIP: sample a-b-c-d/7 failed: no memory" in notes
    assert "GRAD_ECLIP of MetaCLIP-2: 2 of 3 samples not computed yet." in notes


def test_a_job_without_a_finished_sample_keeps_its_row_and_decides_nothing():
    results = [result(scores=[], failed=[0]), result(attribution="meta_grad_eclip")]
    table = pointing_game_table(results, "tiny")
    assert table.rows[0] | dict.fromkeys(OBJECTS) == table.rows[0]
    assert table.rows[0]["n"] == "0"
    assert claims(*results)["meta_beats_first_order"] is None


@pytest.mark.parametrize(
    ("first", "meta", "holds"),
    [
        (0.3, 0.5, True),
        (0.5, 0.3, False),
        (0.5, 0.5, False),
        ([0.3, 0.3, 0.3, 0.3], [0.9, 0.9, 0.2, 0.9], False),
        ([0.3, 0.3, 0.3, None], 0.5, None),
        ([0.3, 0.3, 0.3, None], [0.5, 0.2, 0.5, 0.5], False),
    ],
)
def test_the_meta_variant_beats_its_method_where_it_does_so_in_every_column(first, meta, holds):
    found = claims(result(scores=[first]), result(attribution="meta_grad_eclip", scores=[meta]))
    assert found["meta_beats_first_order"] is holds


@pytest.mark.parametrize(("other", "holds"), [(0.5, True), (0.1, False)])
def test_every_meta_variant_of_every_model_has_to_beat_its_method(other, holds):
    results = [result(scores=[0.3]), result(attribution="meta_grad_eclip", scores=[0.5])]
    results += [result("metaclip2_vith14", "generic_attention", [0.3])]
    results += [result("metaclip2_vith14", "meta_generic_attention", [other])]
    assert claims(*results)["meta_beats_first_order"] is holds


def test_a_meta_variant_is_not_compared_with_another_method_or_model():
    results = [result(scores=[0.9]), result(attribution="meta_mask_clip", scores=[0.1])]
    results += [result("metaclip2_vith14", "mask_clip", [0.9])]
    assert claims(*results)["meta_beats_first_order"] is None


def with_seed(seed, *arguments, **settings):
    """A job of another seed."""
    job = result(*arguments, **settings)
    return replace(job, identity=job.identity | {"seed": seed})


@pytest.mark.parametrize(("first", "meta", "holds"), [(0.3, 0.5, True), (0.5, 0.3, False)])
@pytest.mark.parametrize("order", [1, -1])
def test_a_meta_variant_has_to_beat_its_method_with_every_seed_and_option(first, meta, holds, order):
    usual = [result(scores=[0.3]), result(attribution="meta_grad_eclip", scores=[0.5])]
    other_seed = [with_seed(1, scores=[first]), with_seed(1, attribution="meta_grad_eclip", scores=[meta])]
    assert claims(*[*usual, *other_seed][::order])["meta_beats_first_order"] is holds
    native = [result(scores=[first], heads="native")]
    native += [result(attribution="meta_grad_eclip", scores=[meta], heads="native")]
    assert claims(*[*usual, *native][::order])["meta_beats_first_order"] is holds


def test_a_meta_variant_is_not_compared_with_its_method_of_another_seed_or_option():
    meta = result(attribution="meta_grad_eclip", scores=[0.1])
    for first in (with_seed(1, scores=[0.9]), result(scores=[0.9], heads="native")):
        assert claims(meta, first)["meta_beats_first_order"] is None


@pytest.mark.parametrize(("other", "holds"), [(0.5, True), (0.7, False)])
def test_each_job_of_fixlip_has_to_be_beaten(other, holds):
    results = [result(attribution="meta_grad_eclip", scores=[0.6])]
    results += [result(attribution="fixlip", scores=[score], budget=score) for score in (other, 0.4)]
    assert claims(*results)["meta_beats_fixlip"] is holds


def test_fixlip_is_compared_although_it_plays_fewer_games():
    meta, fixlip = result(attribution="meta_grad_eclip", scores=[0.6]), result(attribution="fixlip", scores=[0.5])
    fewer = fixlip.identity["benchmark"] | {"n_games": 3, "n_images": 10}
    fixlip = replace(fixlip, identity=fixlip.identity | {"benchmark": fewer})
    assert claims(meta, fixlip)["meta_beats_fixlip"] is True


@pytest.mark.parametrize(
    ("meta", "other", "fixlip", "holds"),
    [(0.6, 0.1, 0.5, True), (0.1, 0.6, 0.5, True), (0.4, 0.1, 0.5, False), (0.5, 0.1, 0.5, False)],
)
def test_the_best_meta_variant_is_compared_with_fixlip(meta, other, fixlip, holds):
    results = [result(attribution="meta_grad_eclip", scores=[meta]), result(attribution="fixlip", scores=[fixlip])]
    results += [result(attribution="meta_mask_clip", scores=[other]), result(attribution="grad_eclip", scores=[0.9])]
    assert claims(*results)["meta_beats_fixlip"] is holds


@pytest.mark.parametrize(
    ("meta", "fixlip", "holds"),
    [([0.9, 0.1, 0.1, 0.1], [0.5], True), ([0.1, 0.9, 0.9, 0.9], [0.5], False), ([0.9, 0.2, 0, 0], [0.5, 0.5], True)],
)
def test_fixlip_is_compared_on_its_own_images_only(meta, fixlip, holds):
    results = [result(attribution="meta_grad_eclip", scores=meta), result(attribution="fixlip", scores=fixlip)]
    assert claims(*results)["meta_beats_fixlip"] is holds


def test_fixlip_is_compared_by_the_mean_over_the_four_columns():
    results = [result(attribution="meta_grad_eclip", scores=[[0.1, 0.9, 0.9, 0.9]]), result(attribution="fixlip")]
    assert claims(*results)["meta_beats_fixlip"] is True


@pytest.mark.parametrize(("other", "holds"), [(None, None), (0.6, True), (0.4, False)])
def test_fixlip_has_to_be_beaten_on_every_model(other, holds):
    results = [result(attribution="meta_grad_eclip", scores=[0.6]), result(attribution="fixlip", scores=[0.5])]
    results += [result("metaclip2_vith14", "meta_grad_eclip", [0.5 if other is None else other])]
    if other is not None:
        results += [result("metaclip2_vith14", "fixlip", [0.5])]
    assert claims(*results)["meta_beats_fixlip"] is holds


def test_without_fixlip_or_without_meta_variants_its_claim_is_not_decided():
    assert claims(result(attribution="meta_grad_eclip"))["meta_beats_fixlip"] is None
    assert claims(result(attribution="fixlip"), result())["meta_beats_fixlip"] is None


SIGLIPS = ("siglip2_vitl16", "siglip2_vitb32")


@pytest.mark.parametrize(
    ("large", "small", "holds"), [(0.6, 0.6, True), (0.6, 0.4, False), (0.4, 0.6, False), (0.5, 0.6, False)]
)
def test_meta_mask_siglip_has_to_be_the_best_on_both_models(large, small, holds):
    results = [result(model, "meta_generic_attention", [0.5]) for model in SIGLIPS]
    results += [
        result(model, "meta_mask_siglip", [score]) for model, score in zip(SIGLIPS, (large, small), strict=True)
    ]
    assert claims(*results)["mask_siglip_is_best"] is holds


@pytest.mark.parametrize("rival", ["mask_siglip", "generic_attention", "meta_grad_esiglip", "fixlip"])
@pytest.mark.parametrize(("score", "holds"), [(0.5, True), (0.7, False)])
def test_every_row_of_the_model_is_a_rival_of_meta_mask_siglip(rival, score, holds):
    results = [result("siglip2_vitl16", "meta_mask_siglip", [0.6]), result("siglip2_vitl16", rival, [score])]
    assert claims(*results)["mask_siglip_is_best"] is holds


@pytest.mark.parametrize(("mask", "holds"), [([0.9, 0.1, 0.1, 0.1], True), ([0.1, 0.9, 0.9, 0.9], False)])
def test_meta_mask_siglip_is_compared_with_fixlip_on_the_images_of_fixlip(mask, holds):
    results = [result("siglip2_vitl16", "meta_mask_siglip", mask), result("siglip2_vitl16", "fixlip", [0.5])]
    assert claims(*results)["mask_siglip_is_best"] is holds


def test_a_claim_on_siglip_is_not_decided_alone_and_not_made_of_other_models():
    assert claims(result("siglip2_vitl16", "meta_mask_siglip"))["mask_siglip_is_best"] is None
    assert claims(result("siglip2_vitl16", "mask_siglip"))["mask_siglip_is_best"] is None
    assert "mask_siglip_is_best" not in claims(result(), result("metaclip2_vith14"))


@pytest.mark.parametrize(("attention", "holds"), [(0.6, True), (0.4, False)])
def test_attention_is_compared_with_grad_eclip_on_metaclip(attention, holds):
    results = [result("metaclip2_vith14", "meta_generic_attention", [attention])]
    results += [result("metaclip2_vith14", "meta_grad_eclip", [0.5])]
    assert claims(*results)["attention_beats_grad_eclip"] is holds


def test_the_claim_on_attention_needs_both_meta_variants_of_metaclip():
    results = [result("metaclip2_vith14", "meta_generic_attention"), result("metaclip2_vith14", "grad_eclip")]
    assert claims(*results)["attention_beats_grad_eclip"] is None
    clip = [result(attribution="meta_generic_attention"), result(attribution="meta_grad_eclip")]
    assert "attention_beats_grad_eclip" not in claims(*clip)


NO_SCORE = [0.9, 0.9, 0.9, None]


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        (
            "attention_beats_grad_eclip",
            [("metaclip2_vith14", "meta_generic_attention", [NO_SCORE]), ("metaclip2_vith14", "meta_grad_eclip")],
        ),
        (
            "attention_beats_grad_eclip",
            [("metaclip2_vith14", "meta_generic_attention"), ("metaclip2_vith14", "meta_grad_eclip", [NO_SCORE])],
        ),
        ("mask_siglip_is_best", [("siglip2_vitl16", "meta_mask_siglip"), ("siglip2_vitl16", "fixlip", [NO_SCORE])]),
        ("meta_beats_fixlip", [("clip_vitb16", "meta_grad_eclip"), ("clip_vitb16", "fixlip", [NO_SCORE])]),
    ],
)
def test_a_claim_about_a_row_with_an_empty_column_is_not_decided(name, jobs):
    assert claims(*(result(*job) for job in jobs))[name] is None


def test_labels_are_told_apart_within_a_model_and_not_between_models():
    results = [result(heads="one"), result(heads="native"), result("metaclip2_vith14", heads="one")]
    labels = [each.label for each in tell_apart(results)]
    assert labels == ["GRAD_ECLIP (method.heads=one)", "GRAD_ECLIP (method.heads=native)", "GRAD_ECLIP"]


def grid(experiment):
    params = OmegaConf.load(ROOT / f"configs/experiment/{experiment}.yaml").hydra.sweeper.params
    with shipped_configs():
        return sweep_configs([f"{key}={value}" for key, value in params.items()], [f"experiment={experiment}"])


def test_a_combination_is_left_out_where_an_entry_names_all_its_parts():
    cfg = job_config("unused", leave_out=[{"model": "plain", "attribution": "share"}])
    other = job_config("unused", leave_out=[{"model": "plain", "attribution": "other"}, {"model": "another"}])
    assert is_left_out(cfg)
    assert not is_left_out(other)
    assert is_left_out(job_config("unused", leave_out=[{"benchmark": "numbers"}]))
    assert is_left_out(job_config("unused", leave_out=[{"scale": "tiny", "model": ["another", "plain"]}]))
    assert not is_left_out(job_config("unused", leave_out=[{"scale": "tiny", "model": ["another", "third"]}]))
    assert not is_left_out(job_config("unused", leave_out=[]))


@pytest.mark.slow
def test_table_2_leaves_mask_clip_on_metaclip_out():
    jobs = {(cfg.model.name, cfg.attribution.name) for cfg in grid("table2")}
    methods = {f"{meta}{name}" for meta in ("", "meta_") for name in ("generic_attention", "mask_clip", "grad_eclip")}
    methods.add("fixlip")
    expected = set(product(["clip_vitb16", "metaclip2_vith14"], methods))
    expected -= {("metaclip2_vith14", "mask_clip"), ("metaclip2_vith14", "meta_mask_clip")}
    assert jobs == expected
    assert len(jobs) == 12


@pytest.mark.slow
def test_table_4_plays_seven_methods_on_two_models():
    jobs = [(cfg.model.name, cfg.attribution.name) for cfg in grid("table4")]
    assert len(jobs) == len(set(jobs)) == 14
    assert {model for model, _ in jobs} == set(SIGLIPS)


@pytest.mark.slow
def test_a_combination_that_is_left_out_says_so_in_one_line_when_it_is_asked_for(tmp_path):
    arguments = ["experiment=table2", "hydra.mode=RUN", "model=metaclip2_vith14", "attribution=mask_clip"]
    done = subprocess.run(
        [sys.executable, "run.py", *arguments, f"output_dir={tmp_path}"],
        cwd=ROOT, env=terminal_free_environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "left out" in line]
    assert said == ["metaclip2_vith14 x mask_clip is left out of table2 on purpose."]
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert not (tmp_path / "jobs").exists()


PICTURE = Image.new("RGB", (64, 64), (40, 90, 160))


def drawn(maps, pieces, scale=None, picture=PICTURE):
    axes = Figure().subplots()
    draw_edges(axes, picture, pieces, maps.reshape(8, 8, -1), scale or edge_scale([maps]))
    return axes


def ends(axes):
    """Of each line the place of the patch it ends at: (row, column) in an 8 x 8 grid."""
    return [tuple(int((line.get_data()[axis][1] + 0.5) // 8) for axis in (1, 0)) for line in axes.lines]


def test_each_word_has_lines_to_its_ten_patches_of_largest_size():
    maps = np.random.default_rng(1).normal(size=(64, 3))
    axes = drawn(maps, ["a", "b", "c"])
    colors = word_colors(["a", "b", "c"])
    for word, color in enumerate(colors):
        found = {end for end, line in zip(ends(axes), axes.lines, strict=True) if line.get_color() == color}
        expected = np.argsort(-np.abs(maps[:, word]))[:TOP]
        assert found == {divmod(int(index), 8) for index in expected}
    assert TOP == 10
    assert len(set(colors)) == 3


def test_patches_whose_value_is_zero_have_no_line():
    maps = np.zeros((64, 1))
    maps[[3, 20], 0] = 1.0, -0.5
    assert sorted(ends(drawn(maps, ["a"]))) == [(0, 3), (2, 4)]
    assert ends(drawn(np.zeros((64, 2)), ["a", "b"])) == []


def test_lines_of_negative_values_are_dashed():
    maps = np.zeros((64, 1))
    maps[[3, 20], 0] = 1.0, -0.5
    axes = drawn(maps, ["a"])
    assert {end: line.is_dashed() for end, line in zip(ends(axes), axes.lines, strict=True)} == {
        (0, 3): False,
        (2, 4): True,
    }


def test_the_width_of_a_line_is_its_value_on_the_scale():
    maps = np.random.default_rng(2).normal(size=(64, 2))
    scale = edge_scale([maps, 3 * maps])
    assert scale.largest == np.abs(3 * maps).max()
    axes = drawn(maps, ["a", "b"], scale)
    values = np.concatenate([np.sort(np.abs(maps[:, word]))[::-1][:TOP] for word in range(2)])
    assert close(sorted(line.get_linewidth() for line in axes.lines), sorted(scale.width(value) for value in values))


def test_a_line_starts_at_its_word():
    axes = drawn(np.random.default_rng(3).normal(size=(64, 4)), ["a", "b", "c", "d"])
    places = {text.get_text(): text.get_position() for text in axes.texts}
    starts = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
    assert list(places) == ["a", "b", "c", "d"]
    assert starts == [place for place in places.values() for _ in range(TOP)]
    assert sorted(x for x, _ in places.values()) == [x for x, _ in places.values()]


def test_words_that_stand_twice_are_two_labels():
    axes = drawn(np.ones((64, 2)), ["one", "one"])
    assert [text.get_text() for text in axes.texts] == ["one", "one"]
    assert len(axes.lines) == 2 * TOP


def test_more_words_than_colours_are_drawn():
    assert len(drawn(np.ones((64, 9)), list("abcdefghi")).texts) == 9


def test_maps_that_are_zero_everywhere_have_a_scale():
    assert edge_scale([np.zeros((4, 2))]).width(0.0) < edge_scale([]).width(1.0)


def test_heat_maps_share_a_scale_with_zero_in_its_middle():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, 64)) * [[1.0], [5.0]]
    shared = heat_scale([first, second]).norm
    assert shared.vmin == -shared.vmax
    assert np.abs(first).max() < shared.vmax <= np.abs(second).max()
    assert heat_scale([-first]).norm.vmax == heat_scale([first]).norm.vmax


@pytest.mark.parametrize("maps", [[], [np.zeros(4)]])
def test_heat_maps_of_nothing_have_a_scale(maps):
    norm = heat_scale(maps).norm
    assert norm.vmin == -norm.vmax < 0


def tinted(values, scale=None):
    """The colours of a drawn map at the middle of each patch, ``(P, 3)``."""
    axes = Figure().subplots()
    picture = Image.new("RGB", (64, 64), (128, 128, 128))
    draw_map(axes, picture, values.reshape(8, 8), scale or heat_scale([values]))
    shown = np.asarray(axes.images[-1].get_array())
    return shown[4::8, 4::8, :3].reshape(64, 3)


def test_a_map_tints_positive_and_negative_patches_and_leaves_the_others_grey():
    values = np.zeros(64)
    values[[9, 50]] = 1.0, -1.0
    colors = tinted(values)
    others = np.delete(colors, [9, 50], axis=0)
    assert np.ptp(others, axis=0).max() == 0
    assert np.ptp(others[0]) < 0.05
    assert np.abs(colors[9] - colors[50]).max() > 0.2
    assert np.abs(colors[9] - others[0]).max() > 0.2


def test_the_same_value_has_the_same_colour_in_panels_that_share_a_scale():
    first, second = np.linspace(-1, 1, 64), np.full(64, -1.0)
    second[7] = 4.0
    scale = heat_scale([first, second])
    assert np.array_equal(tinted(first, scale)[0], tinted(second, scale)[0])


def scenes_result(tmp_path, maps, failed=()):
    """A job on digits with the maps of each image and scenario, ``maps[k][m] (64, m)``, in its folder."""
    job = result(attribution="meta_grad_eclip", scores=[0.5] * len(maps), folder=tmp_path)
    target = "metagame.benchmarks"
    job.config.benchmark = {
        "name": "pointing_game", "_target_": f"{target}.pointing_game.PointingGame", "classes": CLASSES, "games": GAMES,
        "scenes": {"_target_": f"{target}.pointing_game.ComposedScenes", "side": 32,
                   "images": {"_target_": f"{target}.digits.Digits"}},
        "n_games": None, "n_images": len(maps) + len(failed),
    }  # fmt: skip
    store, records = RecordStore(tmp_path), []
    for k, by_m in enumerate(maps):
        labels, arrays = pack({str(m): explained(values=values, grid=(8, 8)) for m, values in by_m.items()}, {})
        about = {"scores": {f"objects_{m}": recognition(values) for m, values in by_m.items()}, "labels": labels}
        records.append(Record(f"k{k}", f"{GAMES[0]}/{k}", "done", arrays=list(arrays), **about))
        store.append(records[-1], arrays)
    return replace(job, sample_ids=[record.sample for record in records], records=records)


def scene_maps(n_images, seed=0):
    rng = np.random.default_rng(seed)
    return [{m: rng.normal(size=(64, m)) * (k + 1) for m in range(1, 5)} for k in range(n_images)]


def panels(figure):
    return [axes for axes in figure.axes if axes.images]


def test_the_figure_of_scenes_has_a_row_for_each_image_and_a_column_for_each_number_of_words(tmp_path):
    maps = scene_maps(3)
    figure = scenes_figure([scenes_result(tmp_path, maps)], images=[0, 2])
    figure.savefig(io.BytesIO(), dpi=20, format="png")
    words = GAMES[0].split("-")
    assert [[text.get_text() for text in axes.texts] for axes in panels(figure)] == 2 * [words[:m] for m in range(1, 5)]
    assert [len(axes.lines) for axes in panels(figure)] == 2 * [TOP * m for m in range(1, 5)]
    titles = [axes.get_title() for axes in panels(figure)]
    assert titles == [f"recognition {recognition(maps[k][m]):.2f}" for k in (0, 2) for m in range(1, 5)]


def test_all_panels_of_the_figure_share_one_scale(tmp_path):
    maps = scene_maps(2)
    figure = scenes_figure([scenes_result(tmp_path, maps)], images=[0, 1])
    scale = edge_scale([values for by_m in maps for values in by_m.values()])
    for axes, (k, m) in zip(panels(figure), product(range(2), range(1, 5)), strict=True):
        largest = max(line.get_linewidth() for line in axes.lines)
        assert close(largest, scale.width(np.abs(maps[k][m]).max()))


def test_the_figure_says_the_method_and_the_model(tmp_path):
    figure = scenes_figure([scenes_result(tmp_path, scene_maps(1))], images=[0])
    titles = [legend.get_title().get_text() for legend in figure.legends]
    assert len(titles) == 1
    assert titles[0].startswith("Meta-GRAD_ECLIP, CLIP")


def test_each_job_has_a_part_of_the_figure_with_its_own_maps_and_scale(tmp_path):
    maps = [scene_maps(1), scene_maps(1, seed=1)]
    jobs = [scenes_result(tmp_path / str(place), each) for place, each in enumerate(maps)]
    config = OmegaConf.merge(jobs[1].config, {"model": {"label": "Other"}})
    figure = scenes_figure([jobs[0], replace(jobs[1], config=config)], images=[0])
    figure.savefig(io.BytesIO(), dpi=20, format="png")
    names = [part.legends[0].get_title().get_text().split(":")[0] for part in figure.subfigs]
    assert names == ["Meta-GRAD_ECLIP, CLIP", "Meta-GRAD_ECLIP, Other"]
    for part, (by_m,) in zip(figure.subfigs, maps, strict=True):
        scale = edge_scale(by_m.values())
        for axes, m in zip(panels(part), range(1, 5), strict=True):
            assert axes.get_title() == f"recognition {recognition(by_m[m]):.2f}"
            assert close(max(line.get_linewidth() for line in axes.lines), scale.width(np.abs(by_m[m]).max()))


def test_without_any_of_the_images_there_is_no_figure(tmp_path):
    assert scenes_figure([scenes_result(tmp_path, scene_maps(1))], images=[7]) is None


def test_images_that_were_not_computed_are_left_out_of_the_figure(tmp_path):
    figure = scenes_figure([scenes_result(tmp_path, scene_maps(1))], images=[0, 7])
    figure.savefig(io.BytesIO(), dpi=20, format="png")
    assert len(panels(figure)) == 4


def test_a_scene_whose_maps_are_zero_has_no_recognition_over_it(tmp_path):
    maps = [{m: np.zeros((64, m)) for m in range(1, 5)}]
    figure = scenes_figure([scenes_result(tmp_path, maps)], images=[0])
    figure.savefig(io.BytesIO(), dpi=20, format="png")
    assert [axes.get_title() for axes in panels(figure)] == [""] * 4


def tiny_config(output_dir, *overrides):
    """The shipped game on the embedded CLIP; within ``shipped_configs``."""
    parts = ["model=clip_vitb16", "attribution=meta_grad_eclip", "benchmark=pointing_game", f"output_dir={output_dir}"]
    return compose("config", overrides=[*parts, "limit=3", *overrides])


def play(output_dir, *overrides):
    """Run a job and write its table; its config and outcome."""
    with shipped_configs():
        cfg = tiny_config(output_dir, *overrides)
        outcome = run_job(cfg)
        finish([cfg])
    return cfg, outcome


def records(cfg):
    return {record.sample: record for record in RecordStore(job_folder(cfg)).read().values()}


def explanations(cfg, record):
    return unpack(record, RecordStore(job_folder(cfg)).load_arrays(record))


def contents(cfg):
    """Everything that the job found, as bytes by sample: scores and arrays; and its table."""
    store = RecordStore(job_folder(cfg))
    samples = {
        record.sample: (
            json.dumps(record.scores),
            {name: array.tobytes() for name, array in store.load_arrays(record).items()},
        )
        for record in store.read().values()
    }
    return samples, (Path(cfg.output_dir) / "table.json").read_bytes()


SAMPLES = [f"zero-one-three-six/{k}" for k in range(3)]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Meta-Grad-ECLIP on three scenes."""
    return play(tmp_path_factory.mktemp("played"))


@pytest.mark.slow
def test_a_job_of_the_game_scores_every_scenario_of_every_image(played):
    cfg, outcome = played
    assert (outcome.n_samples, outcome.n_done, outcome.errors) == (3, 3, ())
    assert list(records(cfg)) == SAMPLES
    for record in records(cfg).values():
        assert list(record.scores) == list(OBJECTS)
        assert all(0 < score < 1 for score in record.scores.values())


@pytest.mark.slow
def test_each_number_of_words_is_a_question_of_its_own(played):
    cfg, _ = played
    for record in records(cfg).values():
        found = explanations(cfg, record)
        assert list(found) == ["4", "3", "2", "1"]
        for m in range(1, 5):
            words = record.sample.split("/")[0].split("-")[:m]
            first, meta = found[str(m)].attribution, found[str(m)].meta
            assert (found[str(m)].players, found[str(m)].grid) == (tuple(words), (8, 8))
            assert (meta.values.shape, first.shape, meta.empty.shape) == ((64, m), (64,), (64,))
            assert np.abs(meta.values.sum(1) - (first - meta.empty)).max() < 1e-5 * np.abs(first).max()
            assert close(record.scores[f"objects_{m}"], twin.recognition(meta.values, 8))


@pytest.mark.slow
def test_the_map_of_nothing_is_the_same_in_every_scenario(played):
    cfg, _ = played
    for record in records(cfg).values():
        empty = {m: each.meta.empty for m, each in explanations(cfg, record).items()}
        assert all(close(empty[m], empty["1"], 1e-5 * np.abs(empty["1"]).max()) for m in "234")


@pytest.mark.slow
def test_the_table_of_a_job_is_the_mean_of_its_records(played):
    cfg, _ = played
    table = json.loads((Path(cfg.output_dir) / "table.json").read_text(encoding="utf-8"))
    for key in OBJECTS:
        scores = [record.scores[key] for record in records(cfg).values()]
        assert close(table["rows"][0][key]["mean"], np.mean(scores), 1e-6)
    assert "Only the first 3 samples (limit=3)." in table["notes"]
    assert [claim["holds"] for claim in table["claims"]] == [None, None]


@pytest.mark.slow
def test_a_first_order_map_has_a_quarter_with_four_words(tmp_path):
    cfg, outcome = play(tmp_path, "attribution=grad_eclip", "limit=2")
    assert outcome.n_done == 2
    for record in records(cfg).values():
        assert close(record.scores["objects_4"], 0.25, 1e-6)
        assert list(record.scores) == list(OBJECTS)
        assert record.arrays == [f"{m}.attribution" for m in (4, 3, 2, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("n_before", [0, 1, 2])
def test_a_job_that_was_stopped_and_goes_on_ends_as_if_it_had_not_been(played, tmp_path, monkeypatch, n_before):
    score, calls = PointingGame.score, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) > n_before:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(PointingGame, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path)
    monkeypatch.setattr(PointingGame, "score", score)
    cfg, outcome = play(tmp_path)
    assert (outcome.n_done, outcome.n_failed) == (3, 0)
    assert contents(cfg) == contents(played[0])
    lines = (outcome.folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["sample"] for line in lines] == SAMPLES


@pytest.mark.slow
def test_the_table_does_not_depend_on_how_many_images_are_encoded_together(played, tmp_path):
    cfg, outcome = play(tmp_path, "model.batch_size=2")
    assert outcome.folder.name == played[1].folder.name
    ours, theirs = (json.loads(contents(each)[1])["rows"][0] for each in (cfg, played[0]))
    assert all(close(ours[key]["mean"], theirs[key]["mean"], 2e-6) for key in OBJECTS)


@pytest.mark.slow
def test_a_grid_that_cannot_be_decoded_fails_alone_and_the_table_names_it(played, tmp_path):
    game_name = SAMPLES[0].split("/")[0]
    folder = tmp_path / "grids" / game_name
    folder.mkdir(parents=True)
    for k in (0, 2):
        ComposedScenes(Digits(), 32).image(game_name, (0, 1, 3, 6), k).save(folder / f"{k:02d}.png")
    (folder / "01.png").write_bytes((folder / "00.png").read_bytes()[:200])
    cfg, outcome = play(tmp_path, "benchmark/scenes=paper", f"benchmark.scenes.root={tmp_path / 'grids'}")
    error = f"image {folder / '01.png'} cannot be decoded: replace the file."
    assert (outcome.n_done, outcome.errors) == (2, (error,))
    assert {sample: record.status for sample, record in records(cfg).items()} == dict(
        zip(SAMPLES, ("done", "failed", "done"), strict=True)
    )
    whole = records(played[0])
    for sample in (SAMPLES[0], SAMPLES[2]):
        ours, theirs = records(cfg)[sample].scores, whole[sample].scores
        assert all(close(ours[key], theirs[key], 1e-5) for key in OBJECTS)
    notes = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))["notes"]
    assert f"Meta-Grad-ECLIP: sample {SAMPLES[1]} failed: {error}" in notes


@pytest.mark.slow
def test_a_scene_that_fails_for_an_unforeseen_reason_fails_alone(tmp_path, monkeypatch):
    image = ComposedScenes.image

    def sometimes(self, name, labels, k):
        if k == 1:
            raise ValueError("a codec of its own")
        return image(self, name, labels, k)

    monkeypatch.setattr(ComposedScenes, "image", sometimes)
    _, outcome = play(tmp_path)
    assert (outcome.n_done, outcome.errors) == (2, ("ValueError: a codec of its own",))


@pytest.mark.slow
def test_missing_grids_are_told_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(UserError, match=r"make the grids with 'python -m scripts\.prepare_pointing_game"):
        play(tmp_path, "benchmark/scenes=paper", f"benchmark.scenes.root={tmp_path / 'absent'}")


class Together(Plain):
    """A model that prepares samples in batches and writes down each batch; ids in ``broken`` cannot be prepared."""

    runtime_arguments = frozenset({"batch_size"})

    def __init__(self, log, batch_size=2, broken=(), stop=()):
        super().__init__()
        self.batches = Path(log)
        self.batch_size = batch_size
        self.broken = set(broken)
        self.stop = set(stop)

    def prepare(self, samples):
        with self.batches.open("a", encoding="utf-8") as file:
            file.write(" ".join(sample.id for sample in samples) + "\n")
        if self.stop & {sample.id for sample in samples}:
            raise RuntimeError("too many at once")
        return [Failure(UserError(f"no {each.id}.")) if each.id in self.broken else {WHOLE: each} for each in samples]


class OneByOne(Plain):
    """A model that is given several samples and binds one after the other; it cannot bind the number 2."""

    batch_size = 3

    def bind(self, sample):
        if sample.value == 2:
            raise ValueError("two is too many")
        return super().bind(sample)


def stub_config(tmp_path, values=5, fail_fast=False, **model):
    model = {"name": "together", "_target_": f"{__name__}.Together", "log": str(tmp_path / "log")} | model
    return job_config(tmp_path, model=model, benchmark__values=list(range(1, values + 1)), fail_fast=fail_fast)


def batches(tmp_path):
    return (tmp_path / "log").read_text(encoding="utf-8").splitlines()


def statuses(cfg):
    return {sample: record.status for sample, record in records(cfg).items()}


def test_a_model_prepares_the_samples_of_a_batch_together(tmp_path):
    outcome = run_job(stub_config(tmp_path))
    assert batches(tmp_path) == ["1 2", "3 4", "5"]
    assert outcome.n_done == 5


def test_the_scores_of_a_batch_are_those_of_its_samples(tmp_path):
    cfg = stub_config(tmp_path)
    run_job(cfg)
    assert {sample: record.scores["value"] for sample, record in records(cfg).items()} == {
        str(value): float(value) for value in range(1, 6)
    }
    folder = RecordStore(job_folder(cfg))
    assert folder.load_arrays(records(cfg)["4"])["attribution"].tolist() == [4.0, 4.0]


def test_a_sample_that_cannot_be_prepared_is_recorded_and_the_others_go_on(tmp_path):
    cfg = stub_config(tmp_path, broken=["2", "3"])
    outcome = run_job(cfg)
    assert statuses(cfg) == {"1": "done", "2": "failed", "3": "failed", "4": "done", "5": "done"}
    assert records(cfg)["2"].error == "no 2."
    assert outcome.errors == ("no 2.", "no 3.")


def test_a_batch_of_which_nothing_can_be_prepared_does_not_stop_the_others(tmp_path):
    cfg = stub_config(tmp_path, broken=["1", "2"])
    assert run_job(cfg).n_done == 3


def test_a_batch_that_cannot_be_prepared_as_a_whole_is_recorded_and_the_others_go_on(tmp_path):
    cfg = stub_config(tmp_path, stop=["3"])
    outcome = run_job(cfg)
    assert statuses(cfg) == {"1": "done", "2": "done", "3": "failed", "4": "failed", "5": "done"}
    assert outcome.errors == ("RuntimeError: too many at once",)


def test_a_failed_preparation_stops_a_job_that_fails_fast(tmp_path):
    cfg = stub_config(tmp_path, broken=["2"], fail_fast=True)
    with pytest.raises(UserError, match="no 2"):
        run_job(cfg)
    assert statuses(cfg) == {"1": "done", "2": "failed"}


def test_only_batches_with_unfinished_samples_are_prepared_again_and_whole(tmp_path, monkeypatch):
    cfg = stub_config(tmp_path, values=6)
    prepare = Together.prepare

    def without_3(self, samples):
        prepared = zip(samples, prepare(self, samples), strict=True)
        return [Failure(UserError("no 3.")) if sample.id == "3" else each for sample, each in prepared]

    monkeypatch.setattr(Together, "prepare", without_3)
    assert run_job(cfg).n_failed == 1
    monkeypatch.setattr(Together, "prepare", prepare)
    (tmp_path / "log").unlink()
    assert run_job(cfg).n_done == 6
    assert batches(tmp_path) == ["3 4"]


def test_the_batch_size_does_not_change_where_the_results_are(tmp_path):
    assert job_folder(stub_config(tmp_path, batch_size=2)) == job_folder(stub_config(tmp_path, batch_size=50))


def test_a_model_without_batches_prepares_one_sample_after_the_other(tmp_path):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "plain"))
    assert run_job(cfg).n_done == 3
    lines = (tmp_path / "plain").read_text(encoding="utf-8").splitlines()
    assert [line.split()[1] for line in lines] == ["1", "2", "3"]


def test_a_model_with_a_batch_size_but_without_batches_works_too(tmp_path):
    cfg = job_config(tmp_path, model={"name": "single", "_target_": f"{__name__}.OneByOne"})
    run_job(cfg)
    assert statuses(cfg) == {"1": "done", "2": "failed", "3": "done"}
    assert records(cfg)["2"].error == "ValueError: two is too many"


def test_samples_of_another_kind_fail_with_one_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(Together, "sample_type", Image.Image)
    outcome = run_job(stub_config(tmp_path))
    assert outcome.errors == ("model Together does not explain samples of benchmark Numbers.",)
    assert outcome.n_failed == 5


def test_as_many_pieces_as_an_exact_metagame_plays_have_colours_of_their_own():
    assert len(set(word_colors("abcdefghijkl"))) == MAX_PLAYERS
