from __future__ import annotations

import io
import json
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
from torchvision import transforms

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
from metagame.experiments import finish, run_one
from metagame.images import bilinear_square
from metagame.jobs.records import Record, RecordStore, pack, unpack
from metagame.jobs.run import run_job
from metagame.jobs.spec import is_left_out, job_folder, variants
from metagame.models.vision_language import Sample
from metagame.report.maps import TOP, draw_edges, draw_map, edge_scale, heat_scale, word_colors
from metagame.report.pointing_game import OBJECTS, pointing_game_table, scenes_figure
from metagame.report.published import published
from metagame.report.results import JobResult, tell_apart
from metagame.report.scores import clustered_cell
from metagame.report.table import markdown, without_errors
from tests.conftest import close, unchecked
from tests.reference import pointing_game as twin
from tests.tiny.benchmarks import explained
from tests.tiny.jobs import ROOT, Plain, job_config, shipped_configs

PAPER_CLASSES = {
    "fish": 0, "koala": 105, "plane": 404, "balloon": 417, "church": 497, "jeep": 609, "laptop": 620, "lemon": 951,
    "pizza": 963, "acorn": 988,
}  # fmt: skip
CLASSES = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
GAMES = ["zero-one-two-three", "four-three-two-one"]
BENCHMARK = ROOT / "configs/benchmark"
CLASSES_OF = {scale: OmegaConf.load(BENCHMARK / f"classes/{scale}.yaml") for scale in ("tiny", "small", "paper")}
GAMES_OF = {
    "tiny": OmegaConf.load(BENCHMARK / "by_scale/tiny/pointing_game.yaml").games,
    "small": OmegaConf.load(BENCHMARK / "by_scale/small/pointing_game.yaml").games,
    "paper": OmegaConf.load(BENCHMARK / "pointing_game.yaml").games,
}
CLAIMS = {name: each["claim"] for name, each in published("pointing_game")["claims"].items()}
CLIP, METACLIP, LARGE, SMALL = "clip_vitb16", "metaclip2_vith14", "siglip2_vitl16", "siglip2_vitb32"
NUMBERS = st.one_of(st.just(0.0), st.floats(-10, 10))
NONZERO = st.floats(-10, 10).filter(lambda value: abs(value) > 0.01)


@st.composite
def map_sets(draw, elements=NUMBERS):
    """Maps ``(P, m)`` of 1 to 4 words on a square grid, and its side."""
    side, m = draw(st.sampled_from([2, 3, 4, 6, 7])), draw(st.integers(1, 4))
    return draw(arrays(np.float64, (side * side, m), elements=elements, fill=st.nothing())), side


@given(map_sets())
def test_recognition_is_what_its_definition_says(case):
    maps, side = case
    ours, theirs = recognition(maps), twin.recognition(maps, side)
    assert ours is None if theirs is None else close(ours, theirs) and 0 <= ours <= 1


@given(map_sets(NONZERO), st.floats(1e-3, 1e3))
def test_negated_maps_have_the_rest_the_unit_does_not_count_and_one_positive_map_for_four_words_has_a_quarter(
    case, unit
):
    maps, _ = case
    assert close(recognition(-maps), 1 - recognition(maps))
    assert close(recognition(unit * maps), recognition(maps))
    assert close(recognition(np.repeat(np.abs(maps[:, :1]), 4, axis=1)), 0.25)


def test_maps_that_point_to_their_objects_have_one_those_that_point_elsewhere_zero_and_zeros_no_score():
    perfect = np.where(quadrants(16)[:, :3], 2.0, -0.5)
    assert (recognition(perfect), recognition(-perfect)) == (1, 0)
    assert recognition(np.roll(quadrants(16).astype(float), 1, axis=1)) == 0
    assert recognition(np.zeros((16, 2))) is None
    maps = np.array([[3.0, -1.0], [1.0, 2.0], [-0.5, 0.0], [0.0, 0.25]])
    assert recognition(maps) == (3 + 0.5 + 1 + 2) / (3 + 1 + 0.5 + 1 + 2 + 0.25)


@pytest.mark.parametrize(
    ("n_patches", "reason"), [(1, "a single patch has no quadrants"), (8, "8 patches make no square grid")]
)
def test_patches_without_quadrants_are_refused(n_patches, reason):
    with pytest.raises(UserError, match=reason):
        recognition(np.ones((n_patches, 2)))


@dataclass(frozen=True)
class Solid(Images):
    """A white picture of class 0, black ones of the others."""

    white: int

    def image(self, label, k):
        return Image.new("RGB", (8, 8), "white" if label == self.white else "black")


def test_patches_in_the_middle_of_an_odd_grid_count_for_no_quadrant():
    assert quadrants(49).sum(0).tolist() == [9] * 4
    maps = np.where(quadrants(49), 1.0, 0.0)
    assert recognition(maps) == 1
    maps[3 * 7 + 3] = 1e6
    assert recognition(maps) == 1


def test_quadrants_are_those_of_the_picture_in_reading_order():
    for place in range(4):
        grid = np.asarray(ComposedScenes(Solid(place), 8).image("a-b-c-d", range(4), 0))[..., 0]
        assert np.array_equal(grid.reshape(4, 4, 4, 4).mean((1, 3)).ravel() > 128, quadrants(16)[:, place])


class Filed(Digits):
    """Digits that are read from a file each."""

    def files(self, label, k):
        return [Path(f"{label}-{k}.png")]


def game(games=GAMES, n_images=2, n_games=None, images=None, played=None):
    return PointingGame(ComposedScenes(images or Digits(), 32), CLASSES, games, n_images, n_games, played)


def test_the_classes_are_those_of_the_paper_and_digits():
    assert OmegaConf.to_container(CLASSES_OF["paper"]) == PAPER_CLASSES
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert list(CLASSES_OF["tiny"].items()) == [(word, value) for value, word in enumerate(digits)]


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_in_ten_games_each_class_stands_once_in_each_place(scale):
    assert len(set(GAMES_OF[scale])) == 10
    for words in zip(*(each.split("-") for each in GAMES_OF[scale]), strict=True):
        assert sorted(words) == sorted(CLASSES_OF[scale])


def test_samples_are_games_by_images():
    samples = game().samples()
    assert [sample.id for sample in samples] == [f"{name}/{k}" for name in GAMES for k in range(2)]
    assert [sample.labels for sample in samples[1:3]] == [(0, 1, 2, 3), (4, 3, 2, 1)]
    assert samples[2].words == ["four", "three", "two", "one"]
    assert all(isinstance(sample, Sample) for sample in samples)
    assert [sample.id for sample in game(n_games=1).samples()] == [f"{GAMES[0]}/0", f"{GAMES[0]}/1"]
    assert len(game(n_games=7).samples()) == 4
    assert [sample.id for sample in game(played=GAMES[1:]).samples()] == [f"{GAMES[1]}/0", f"{GAMES[1]}/1"]
    with pytest.raises(UserError, match=r"benchmark\.played has 'a-b-c-d', which is none of benchmark\.games"):
        game(played=["a-b-c-d"])


def test_the_image_of_a_sample_is_image_k_of_each_class_in_reading_order():
    grid = game().samples()[3].image()
    assert grid.size == (64, 64)
    for label, corner in zip((4, 3, 2, 1), ((0, 0), (32, 0), (0, 32), (32, 32)), strict=True):
        expected = Digits().image(label, 1).resize((32, 32), Image.Resampling.BICUBIC)
        cell = grid.crop((*corner, corner[0] + 32, corner[1] + 32))
        assert np.array_equal(np.asarray(cell), np.asarray(expected))


@dataclass(frozen=True)
class Noise(Images):
    """Pictures of noise, of other sides for each class."""

    def image(self, label, k):
        height, width = ((40, 90), (91, 41), (63, 64), (32, 32))[label]
        return Image.fromarray(np.random.default_rng([label, k]).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_grids_of_jpegs_are_those_that_torchvision_and_files_make(tmp_path):
    found = ComposedScenes(Noise(), 24, "jpeg").image("a-b-c-d", range(4), 1)
    expected = twin.grid_of_jpegs([Noise().image(label, 1) for label in range(4)], 24, tmp_path)
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    lossless = ComposedScenes(Noise(), 24, "lossless").image("a-b-c-d", range(4), 1)
    assert np.abs(np.asarray(lossless).astype(int) - np.asarray(found)).mean() > 10
    with pytest.raises(UserError, match="encoding='png': give 'jpeg' or 'lossless'"):
        ComposedScenes(Noise(), 24, "png")


@given(st.integers(2, 300), st.integers(2, 300), st.integers(1, 40))
def test_a_bilinear_square_is_torchvisions(width, height, side):
    image = Noise().image(0, 0).resize((width, height))
    expected = transforms.CenterCrop(side)(transforms.Resize(side)(image))
    assert np.array_equal(np.asarray(bilinear_square(image, side)), np.asarray(expected))


def prepared_samples(folder):
    (folder / "jpeg").mkdir()
    return PointingGame(PreparedScenes(str(folder), "jpeg"), CLASSES, GAMES, 2).samples()


def test_the_files_of_a_sample_are_those_of_its_four_images_or_its_prepared_grid(tmp_path):
    composed = game(images=Filed()).samples()[3]
    assert list(composed.files()) == [Path(f"{label}-1.png") for label in (4, 3, 2, 1)]
    assert list(game().samples()[3].files()) == list(game().files()) == []
    found = [list(sample.files()) for sample in prepared_samples(tmp_path)]
    assert found == [[tmp_path / "jpeg" / name / f"{k:02d}.png"] for name in GAMES for k in range(2)]


@unchecked()
def test_scenario_m_asks_about_the_first_m_words():
    players = game().samples()[0].texts(tokenizer=None)
    words = ("zero", "one", "two", "three")
    assert {m: each.labels for m, each in players.items()} == {str(m): words[:m] for m in range(1, 5)}


@pytest.mark.parametrize(("n_images", "n_games"), [(0, None), (2, -3)])
def test_numbers_of_games_and_images_that_are_not_positive_are_refused(n_images, n_games):
    with pytest.raises(UserError, match=f"n_images={n_images}, benchmark.n_games={n_games}: give positive numbers"):
        game(n_images=n_images, n_games=n_games)


@pytest.mark.parametrize("name", ["", "one-two", "one-two-three-four-zero", "one-two-ten-four", "one-two-one-three"])
def test_a_game_that_is_not_four_different_known_words_is_refused(name):
    with pytest.raises(UserError, match=f"game {name!r}: give four different words of benchmark.classes"):
        game([GAMES[0], name])


OF_METACLIP = ["plane-balloon-jeep-pizza", "church-jeep-lemon-fish", "lemon-pizza-fish-balloon"]


@pytest.mark.parametrize(
    ("scale", "model", "method", "n_games", "played", "n_images"),
    [
        ("tiny", CLIP, "grad_eclip", None, None, 50),
        ("tiny", CLIP, "fixlip", 3, None, 10),
        ("tiny", METACLIP, "fixlip", 3, None, 10),
        ("paper", METACLIP, "grad_eclip", None, None, 50),
        ("paper", METACLIP, "fixlip", None, OF_METACLIP, 50),
        *(("paper", model, "fixlip", None, None, 50) for model in (CLIP, LARGE, SMALL)),
    ],
)
def test_the_shipped_game_has_50_images_of_ten_games_and_fewer_for_fixlip(
    scale, model, method, n_games, played, n_images
):
    with shipped_configs():
        parts = [f"model={model}", "benchmark=pointing_game", f"scale={scale}", f"attribution={method}"]
        game = compose("config", overrides=parts).benchmark
    assert (game.n_games, game.played, game.n_images) == (n_games, played, n_images)
    assert set(played or ()) <= set(GAMES_OF["paper"])
    assert game.scenes.encoding == {"tiny": "lossless", "paper": "jpeg"}[scale]


def test_the_maps_of_words_are_the_meta_attributions_or_one_first_order_map_for_all():
    first, matrix, pairs = np.arange(4.0), np.arange(8.0).reshape(4, 2), np.ones((4, 2, 2))
    assert np.array_equal(word_maps(explained(first, matrix, grid=(2, 2)), 2), matrix)
    for order_2 in ({}, {"values": pairs, "order": 2}):
        assert word_maps(explained(first, grid=(2, 2), **order_2), 2).tolist() == [[value] * 2 for value in first]
    with pytest.raises(UserError, match="the pointing game needs a map of each word"):
        word_maps(explained(values=pairs, grid=(2, 2), order=2), 2)


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


LABELS = {CLIP: "CLIP", METACLIP: "MetaCLIP-2", LARGE: "SigLIP-2 (L/16)", SMALL: "SigLIP-2 (B/32)"}


def result(attribution="grad_eclip", scores=(0.5,), model=CLIP, *, failed=(), missing=0, seed=0, played=(), **changes):
    """A job: of image k of the game ``a-b-c-d`` its scores, a number for all four scenarios or four of them.

    Args:
        failed, missing: images without a score.
        seed, played: of its identity: the seed, settings of the benchmark.
        changes: ``meta``, ``folder``, or arguments of the method.
    """
    base = attribution.removeprefix("meta_")
    meta, folder = changes.pop("meta", attribution != base), changes.pop("folder", "unused")
    method = {"name": attribution, "meta": meta, "method": {"_target_": base, **changes}}
    config = OmegaConf.create(
        {
            "name": "table2", "scale": {"name": "tiny"}, "seed": 0, "model": {"name": model, "label": LABELS[model]},
            "attribution": method | {"label": base.upper(), "family": "x", "base": base},
            "benchmark": {"name": "pointing_game"}, "estimator": {"name": "exact"},
        }
    )  # fmt: skip
    fours = [score if isinstance(score, list) else [score] * 4 for score in scores]
    records = [
        Record(f"d{k}", f"a-b-c-d/{k}", "done", scores=dict(zip(OBJECTS, four, strict=True)))
        for k, four in enumerate(fours)
    ]
    records += [Record(f"f{k}", f"a-b-c-d/{k}", "failed", error="no memory") for k in failed]
    ids = [f"a-b-c-d/{k}" for k in range(len(records) + missing)]
    (variant,) = variants(config)
    identity = {"model": {"name": model}, "benchmark": {"name": "pointing_game", **dict(played)}, "seed": seed}
    identity |= {"scale": "tiny", "attribution": {"": method}}
    return JobResult(config, variant, Path(folder), identity, ids, records, 0, variant.label)


def test_a_row_is_the_mean_over_images_with_two_standard_errors():
    scores = [[0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.5, 0.9], [0.2, 0.2, 0.1, 0.2]]
    row, single = pointing_game_table([result(scores=scores), result("mask_clip", [0.5])], "tiny").rows
    assert (row["model"], row["method"], row["n"]) == ("CLIP", "GRAD_ECLIP", "3")
    for key, values in zip(OBJECTS, np.transpose(scores), strict=True):
        spread = 2 * np.sqrt(((values - values.mean()) ** 2).sum() / 2) / np.sqrt(3)
        assert close(row[key]["mean"], values.mean(), 1e-6)
        assert close(row[key]["two_se"], spread, 1e-6)
        assert row[key]["n"] == 3
    assert single["objects_1"] == {"mean": 0.5, "two_se": None, "n": 1}


def test_images_whose_maps_are_zero_are_left_out_and_counted():
    scores = [[0.5, None, None, 0.1], [0.7, 0.3, None, 0.1], 0.6]
    table = pointing_game_table([result(scores=scores), result("mask_clip")], "tiny")
    row = table.rows[0]
    assert [row[key]["n"] for key in OBJECTS] == [3, 2, 1, 3]
    assert (row["objects_2"]["mean"], row["objects_3"]["mean"]) == (0.45, 0.6)
    assert [note for note in table.notes if "zero" in note] == [
        "GRAD_ECLIP of CLIP: left out, since all maps are zero: 0, 1, 2, 0 images."
    ]
    nothing = pointing_game_table([result(scores=[[0.5, 0.5, 0.5, None]])], "tiny")
    assert nothing.rows[0]["objects_4"] is None
    assert "–" in markdown(nothing)


def test_rows_come_in_the_order_of_the_jobs_with_the_number_of_their_finished_images():
    results = [result("meta_grad_eclip", [0.1] * 2, METACLIP), result(scores=[0.1] * 5, failed=[5])]
    table = pointing_game_table([*results, result("fixlip", [], failed=[0])], "tiny")
    rows = [(row["model"], row["method"], row["n"]) for row in table.rows]
    assert rows == [("MetaCLIP-2", "Meta-GRAD_ECLIP", "2"), ("CLIP", "GRAD_ECLIP", "5"), ("CLIP", "FIXLIP", "0")]
    assert {table.rows[2][key] for key in OBJECTS} == {None}
    assert table.n_samples == 5


PUBLISHED = {
    "of the metagame": ([0.84, 0.87, 0.89, 0.90], result("meta_generic_attention")),
    "of a first-order config with a metagame": ([0.84, 0.87, 0.89, 0.90], result("generic_attention", meta=True)),
    "of the first order": ([0.84, 0.45, 0.32, 0.25], result("generic_attention", model=METACLIP)),
    "of the authors' images": ([0.296, 0.280, 0.265, 0.250], result("mask_clip")),
    "of Table 4": ([0.876, 0.884, 0.883, 0.864], result("meta_mask_siglip", model=LARGE)),
    "of a method without it": (None, result("meta_fixlip")),
    "of other arguments": (None, result("mask_clip", heads="native")),
    "of another setting": (None, result("generic_attention", product="mean_of")),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_values_stand_beside_the_rows_they_belong_to(case):
    values, job = PUBLISHED[case]
    (row,) = pointing_game_table([job], "paper").published
    means = {key: without_errors(cell) for key, cell in row.items()}
    assert means == ({} if values is None else pytest.approx(dict(zip(OBJECTS, values, strict=True)), abs=5.1e-4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "This run has the same."),
        ({"heads": "one", "product": "of_means"}, "This run has the same."),
        ({"heads": "native", "product": "mean_of"}, "This run has heads=native, product=mean_of."),
        ({"design": {"_target_": "one.SampledCoalitions", "budget": 9}}, "This run has the same."),
        ({"design": {"_target_": "one.Better", "budget": 9}}, "This run has design=Better."),
    ],
)
def test_the_table_says_with_which_settings_published_values_were_made_and_which_this_run_has(changes, said):
    notes = pointing_game_table([result(), result(**changes)], "paper").notes
    assert [note for note in notes if note.startswith("Published values were made with heads=one") and said in note]


@pytest.mark.parametrize(("scale", "said"), [("tiny", True), ("paper", False)])
def test_the_tiny_table_says_that_the_published_values_are_of_other_models(scale, said):
    notes = pointing_game_table([result()], scale).notes
    assert any(note.startswith("Published values are of the real models") for note in notes) is said


def test_failed_and_missing_samples_are_named_with_their_model():
    results = [result(failed=[7]), result(scores=[0.1], model=METACLIP, missing=2)]
    notes = pointing_game_table(results, "tiny").notes
    assert "GRAD_ECLIP of CLIP: sample a-b-c-d/7 failed: no memory" in notes
    assert "GRAD_ECLIP of MetaCLIP-2: 2 of 3 samples not computed yet." in notes


def test_labels_are_told_apart_within_a_model_and_not_between_models():
    results = [result(heads="one"), result(heads="native"), result(model=METACLIP, heads="one")]
    labels = [each.label for each in tell_apart(results)]
    assert labels == ["GRAD_ECLIP (method.heads=one)", "GRAD_ECLIP (method.heads=native)", "GRAD_ECLIP"]


def twice(result):
    """Each image once more, under another number: two equal images decide what one alone does not."""
    again = [replace(record, sample=f"a-b-c-d/{100 + k}") for k, record in enumerate(result.records)]
    return replace(result, records=[*result.records, *again])


def claims(results):
    """What the claims are answered with, by name."""
    names, results = {text: name for name, text in CLAIMS.items()}, list(map(twice, results))
    return {names[claim["claim"]]: claim["holds"] for claim in pointing_game_table(results, "tiny").claims}


def pair(first, meta, model=CLIP, **settings):
    """Grad-ECLIP and its metagame."""
    return [result("grad_eclip", [first], model, **settings), result("meta_grad_eclip", [meta], model, **settings)]


GAP = [0.3, 0.3, 0.3, None]
NO_SCORE = [0.9, 0.9, 0.9, None]
FIRST_ORDER = {
    "larger": (True, pair(0.3, 0.5)),
    "smaller": (False, pair(0.5, 0.3)),
    "equal": (None, pair(0.5, 0.5)),
    "smaller in one column": (False, pair([0.3, 0.3, 0.3, 0.3], [0.9, 0.9, 0.2, 0.9])),
    "a column unknown": (None, pair(GAP, 0.5)),
    "a column unknown, another smaller": (False, pair(GAP, [0.5, 0.2, 0.5, 0.5])),
    "nothing finished": (None, [result(scores=[], failed=[0]), result("meta_grad_eclip")]),
    "two models": (True, [*pair(0.3, 0.5), *pair(0.3, 0.5, METACLIP)]),
    "smaller on one model": (False, [*pair(0.3, 0.5), *pair(0.3, 0.1, METACLIP)]),
    "another method or model": (
        None, [result("grad_eclip", [0.9]), result("meta_mask_clip", [0.1]), result("mask_clip", [0.9], METACLIP)],
    ),
    "two seeds": (True, [*pair(0.3, 0.5), *pair(0.3, 0.5, seed=1)]),
    "smaller with one seed": (False, [*pair(0.3, 0.5), *pair(0.5, 0.3, seed=1)]),
    "smaller with the first seed": (False, [*pair(0.5, 0.3, seed=1), *pair(0.3, 0.5)]),
    "two options": (True, [*pair(0.3, 0.5), *pair(0.3, 0.5, heads="native")]),
    "smaller with one option": (False, [*pair(0.3, 0.5), *pair(0.5, 0.3, heads="native")]),
    "smaller with the first option": (False, [*pair(0.5, 0.3, heads="native"), *pair(0.3, 0.5)]),
    "another seed": (None, [result("meta_grad_eclip", [0.1]), result(scores=[0.9], seed=1)]),
    "another option": (None, [result("meta_grad_eclip", [0.1]), result(scores=[0.9], heads="native")]),
}  # fmt: skip


@pytest.mark.parametrize("case", FIRST_ORDER)
def test_a_metagame_has_to_beat_its_method_in_every_column_on_every_model_with_every_seed_and_option(case):
    holds, results = FIRST_ORDER[case]
    assert claims(results)["meta_beats_first_order"] is holds


def fixlip(*scores, model=CLIP, **settings):
    return result("fixlip", scores, model, **settings)


def meta_eclip(*scores, model=CLIP):
    return result("meta_grad_eclip", scores, model)


def meta_mask(*scores):
    return result("meta_mask_clip", scores)


FEWER = {"n_games": 3, "n_images": 10, "played": ["a-b-c-d"]}
ON_METACLIP = [meta_eclip(0.6), fixlip(0.5), fixlip(0.5, model=METACLIP)]
FIXLIP = {
    "the first metagame is best": (True, [meta_eclip(0.6), meta_mask(0.1), fixlip(0.5), result("grad_eclip", [0.9])]),
    "the second metagame is best": (True, [meta_eclip(0.1), meta_mask(0.6), fixlip(0.5)]),
    "none is better": (False, [meta_eclip(0.4), meta_mask(0.1), fixlip(0.5), result("grad_eclip", [0.9])]),
    "equal": (None, [meta_eclip(0.5), meta_mask(0.1), fixlip(0.5)]),
    "two jobs of it": (True, [meta_eclip(0.6), fixlip(0.5, budget=1), fixlip(0.4, budget=2)]),
    "one of two jobs is better": (False, [meta_eclip(0.6), fixlip(0.7, budget=1), fixlip(0.4, budget=2)]),
    "it plays fewer games": (True, [meta_eclip(0.6), fixlip(0.5, played=FEWER)]),
    "better on its image": (True, [meta_eclip(0.9, 0.1, 0.1, 0.1), fixlip(0.5)]),
    "worse on its image": (False, [meta_eclip(0.1, 0.9, 0.9, 0.9), fixlip(0.5)]),
    "better on its two images": (True, [meta_eclip(0.9, 0.8, 0, 0), fixlip(0.5, 0.5)]),
    "better on one of its two images": (None, [meta_eclip(0.9, 0.2), fixlip(0.5, 0.5)]),
    "better by the mean over columns": (True, [meta_eclip([0.1, 0.9, 0.9, 0.9]), fixlip(0.5)]),
    "on two models": (True, [*ON_METACLIP, meta_eclip(0.6, model=METACLIP)]),
    "worse on one model": (False, [*ON_METACLIP, meta_eclip(0.4, model=METACLIP)]),
    "not on one model": (None, [*ON_METACLIP[:2], meta_eclip(0.5, model=METACLIP)]),
    "without it": (None, [meta_eclip(0.5)]),
    "without a metagame": (None, [fixlip(0.5), result()]),
    "a column of it is empty": (None, [meta_eclip(0.5), fixlip(NO_SCORE)]),
}


@pytest.mark.parametrize("case", FIXLIP)
def test_the_best_metagame_has_to_beat_each_job_of_fixlip_on_its_images_and_on_every_model(case):
    holds, results = FIXLIP[case]
    assert claims(results)["meta_beats_fixlip"] is holds


def on_both(large, small):
    rivals = [result("meta_generic_attention", [0.5], model) for model in (LARGE, SMALL)]
    return [*rivals, result("meta_mask_siglip", [large], LARGE), result("meta_mask_siglip", [small], SMALL)]


def against(rival, *scores, mask=(0.6,)):
    return [result("meta_mask_siglip", mask, LARGE), result(rival, scores, LARGE)]


SIGLIP = {
    "best on both models": (True, on_both(0.6, 0.6)),
    "not on the small model": (False, on_both(0.6, 0.4)),
    "not on the large model": (False, on_both(0.4, 0.6)),
    "not the only best": (None, on_both(0.5, 0.6)),
    "its method is worse": (True, against("mask_siglip", 0.5)),
    "its method is better": (False, against("mask_siglip", 0.7)),
    "another method is better": (False, against("generic_attention", 0.7)),
    "another metagame is better": (False, against("meta_grad_esiglip", 0.7)),
    "FIxLIP is better": (False, against("fixlip", 0.7)),
    "better on the image of FIxLIP": (True, against("fixlip", 0.5, mask=[0.9, 0.1, 0.1, 0.1])),
    "worse on the image of FIxLIP": (False, against("fixlip", 0.5, mask=[0.1, 0.9, 0.9, 0.9])),
    "alone": (None, [result("meta_mask_siglip", model=LARGE)]),
    "its method alone": (None, [result("mask_siglip", model=LARGE)]),
    "a column of a rival is empty": (None, against("fixlip", NO_SCORE)),
}


@pytest.mark.parametrize("case", SIGLIP)
def test_meta_mask_siglip_has_to_beat_every_other_row_of_both_models(case):
    holds, results = SIGLIP[case]
    assert claims(results)["mask_siglip_is_best"] is holds


def on_metaclip(attention, eclip):
    return [result("meta_generic_attention", [attention], METACLIP), meta_eclip(eclip, model=METACLIP)]


ATTENTION = {
    "better": (True, on_metaclip(0.6, 0.5)),
    "worse": (False, on_metaclip(0.4, 0.5)),
    "a column is empty": (None, on_metaclip(NO_SCORE, 0.5)),
    "a column of the rival is empty": (None, on_metaclip(0.5, NO_SCORE)),
    "without the metagame of Grad-ECLIP": (None, [*on_metaclip(0.5, 0.5)[:1], result(model=METACLIP)]),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_compared_with_grad_eclip_on_metaclip(case):
    holds, results = ATTENTION[case]
    assert claims(results)["attention_beats_grad_eclip"] is holds


def test_a_claim_says_what_stands_most_against_it():
    results = list(map(twice, pair([0.3, 0.3, 0.3, 0.3], [0.9, 0.9, 0.2, 0.9])))
    (claim, *_) = pointing_game_table(results, "tiny").claims
    assert claim["difference"] == "Meta-GRAD_ECLIP - GRAD_ECLIP, CLIP, 3 objects: -0.100 ± 0.000"
    assert "no: the meta variant" in markdown(pointing_game_table(results, "tiny"))


def test_errors_are_clustered_by_image_within_games():
    """Image k in two games, against the same by a loop; equal in both games, it counts as one."""
    rng = np.random.default_rng(0)
    by_image, noise = rng.normal(size=20), 0.1 * rng.normal(size=(2, 20))
    values = {(f"g{g}", str(k)): by_image[k] + g + noise[g, k] for g in range(2) for k in range(20)}
    cell = clustered_cell(values)
    means = [(values["g0", str(k)] + values["g1", str(k)]) / 2 for k in range(20)]
    assert cell["two_se"] == pytest.approx(2 * np.std(means, ddof=1) / np.sqrt(20), abs=1e-6)
    assert (cell["n"], cell["mean"]) == (40, pytest.approx(np.mean(means), abs=1e-6))
    assert clustered_cell({("g0", "1"): 1.0, ("g1", "1"): 2.0})["two_se"] is None
    assert clustered_cell({}) is None


def test_claims_about_certain_models_are_not_made_of_others():
    clip = [result("meta_generic_attention"), result("meta_grad_eclip")]
    assert "attention_beats_grad_eclip" not in claims(clip)
    assert "mask_siglip_is_best" not in claims([*clip, result(model=METACLIP)])


def test_a_combination_is_left_out_where_an_entry_names_all_its_parts_and_that_is_said(tmp_path, caplog):
    both, others = {"model": "plain", "attribution": "share"}, {"scale": "tiny", "model": ["another", "third"]}
    for entry in (both, {"benchmark": "numbers"}, {"scale": "tiny", "model": ["another", "plain"]}):
        assert is_left_out(job_config(tmp_path, leave_out=[others, entry]))
    for entries in ([], [others], [{"model": "plain", "attribution": "other"}, {"model": "another"}]):
        assert not is_left_out(job_config(tmp_path, leave_out=entries))
    with caplog.at_level("INFO"):
        assert run_one(job_config(tmp_path, leave_out=[both])) is None
    assert caplog.messages == ["plain x share is left out of numbers on purpose."]
    assert list(tmp_path.iterdir()) == []


def test_table_2_leaves_mask_clip_on_metaclip_out():
    content = OmegaConf.load(ROOT / "configs/experiment/table2.yaml")
    jobs = [
        job_config("x", model={"name": model}, attribution={"name": method}, leave_out=content.leave_out)
        for model, method in product(*(values.split(",") for values in content.hydra.sweeper.params.values()))
    ]
    left_out = [(cfg.model.name, cfg.attribution.name) for cfg in jobs if is_left_out(cfg)]
    assert [each for each in left_out if each[0] != "clip_vitb32"] == [
        (METACLIP, "mask_clip"),
        (METACLIP, "meta_mask_clip"),
    ]
    assert len(jobs) - len(left_out) == 12


def drawn(maps, pieces, scale=None):
    axes = Figure().subplots()
    picture = Image.new("RGB", (64, 64), (40, 90, 160))
    draw_edges(axes, picture, pieces, maps.reshape(8, 8, -1), scale or edge_scale([maps]))
    return axes


def ends(axes):
    """Of each line the place of the patch it ends at: (row, column) in an 8 x 8 grid."""
    return [tuple(int((line.get_data()[axis][1] + 0.5) // 8) for axis in (1, 0)) for line in axes.lines]


def test_each_word_has_lines_of_its_colour_to_its_ten_patches_of_largest_size():
    maps = np.random.default_rng(1).normal(size=(64, 3))
    axes = drawn(maps, ["a", "b", "c"])
    colors = word_colors(["a", "b", "c"])
    for word, color in enumerate(colors):
        found = {end for end, line in zip(ends(axes), axes.lines, strict=True) if line.get_color() == color}
        expected = np.argsort(-np.abs(maps[:, word]))[:TOP]
        assert found == {divmod(int(index), 8) for index in expected}
    assert TOP == 10
    assert len(set(colors)) == 3


def test_lines_of_negative_values_are_dashed_and_those_of_zeros_are_not_there():
    maps = np.zeros((64, 2))
    maps[[3, 20], 0] = 1.0, -0.5
    axes = drawn(maps, ["a", "b"])
    dashed = {end: line.is_dashed() for end, line in zip(ends(axes), axes.lines, strict=True)}
    assert dashed == {(0, 3): False, (2, 4): True}
    assert ends(drawn(np.zeros((64, 2)), ["a", "b"])) == []


def test_the_width_of_a_line_is_its_value_on_the_scale():
    maps = np.random.default_rng(2).normal(size=(64, 2))
    scale = edge_scale([maps, 3 * maps])
    assert scale.largest == np.abs(3 * maps).max()
    axes = drawn(maps, ["a", "b"], scale)
    values = np.concatenate([np.sort(np.abs(maps[:, word]))[::-1][:TOP] for word in range(2)])
    assert close(sorted(line.get_linewidth() for line in axes.lines), sorted(scale.width(value) for value in values))
    assert edge_scale([np.zeros((4, 2))]).width(0.0) < edge_scale([]).width(1.0)


def test_a_line_starts_at_its_word_and_words_stand_in_their_order():
    axes = drawn(np.random.default_rng(3).normal(size=(64, 4)), ["a", "b", "c", "d"])
    places = {text.get_text(): text.get_position() for text in axes.texts}
    starts = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
    assert list(places) == ["a", "b", "c", "d"]
    assert starts == [place for place in places.values() for _ in range(TOP)]
    assert sorted(x for x, _ in places.values()) == [x for x, _ in places.values()]


def test_as_many_pieces_as_an_exact_metagame_plays_have_colours_of_their_own_and_more_are_drawn_too():
    assert len(set(word_colors("abcdefghijkl"))) == MAX_PLAYERS
    assert [text.get_text() for text in drawn(np.ones((64, 13)), ["one"] * 13).texts] == ["one"] * 13


def test_heat_maps_share_a_scale_with_zero_in_its_middle():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, 64)) * [[1.0], [5.0]]
    shared = heat_scale([first, second]).norm
    assert shared.vmin == -shared.vmax
    assert np.abs(first).max() < shared.vmax <= np.abs(second).max()
    assert heat_scale([-first]).norm.vmax == heat_scale([first]).norm.vmax
    for nothing in ([], [np.zeros(4)]):
        assert heat_scale(nothing).norm.vmin == -heat_scale(nothing).norm.vmax < 0


def tinted(values, scale):
    """The colours of a drawn map at the middle of each patch, ``(P, 3)``."""
    axes = Figure().subplots()
    draw_map(axes, Image.new("RGB", (64, 64), (128, 128, 128)), values.reshape(8, 8), scale)
    return np.asarray(axes.images[-1].get_array())[4::8, 4::8, :3].reshape(64, 3)


def test_a_map_tints_positive_and_negative_patches_as_its_scale_says_and_leaves_the_others_grey():
    values = np.zeros(64)
    values[[9, 50]] = 1.0, -1.0
    scale = heat_scale([values])
    colors = tinted(values, scale)
    assert np.array_equal(tinted(np.full(64, -1.0), scale)[0], colors[50])
    others = np.delete(colors, [9, 50], axis=0)
    assert np.ptp(others, axis=0).max() == 0
    assert np.ptp(others[0]) < 0.05
    assert np.abs(colors[9] - colors[50]).max() > 0.2
    assert np.abs(colors[9] - others[0]).max() > 0.2


def scenes_result(folder, maps):
    """A job on digits with the maps of each image and scenario, ``maps[k][m] (64, m)``, in its folder."""
    job = result("meta_grad_eclip", [0.5] * len(maps), folder=folder)
    target = "metagame.benchmarks"
    job.config.benchmark = {
        "name": "pointing_game", "_target_": f"{target}.pointing_game.PointingGame", "classes": CLASSES, "games": GAMES,
        "scenes": {"_target_": f"{target}.pointing_game.ComposedScenes", "side": 32,
                   "images": {"_target_": f"{target}.digits.Digits"}},
        "n_games": None, "n_images": len(maps),
    }  # fmt: skip
    store, records = RecordStore(folder), []
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


def check_shares_one_scale(part, shown):
    """The lines of a figure's panels are as wide as the maps say, and its titles are their recognition."""
    scale = edge_scale([values for by_m in shown for values in by_m.values()])
    for axes, (by_m, m) in zip(panels(part), product(shown, range(1, 5)), strict=True):
        assert axes.get_title() == f"recognition {recognition(by_m[m]):.2f}"
        assert close(max(line.get_linewidth() for line in axes.lines), scale.width(np.abs(by_m[m]).max()))


def test_the_figure_of_scenes_has_a_row_for_each_image_that_was_computed_and_a_column_for_each_number_of_words(
    tmp_path,
):
    maps = scene_maps(3)
    figure = scenes_figure([scenes_result(tmp_path, maps)], images=[0, 2, 7])
    words = GAMES[0].split("-")
    assert [[text.get_text() for text in axes.texts] for axes in panels(figure)] == 2 * [words[:m] for m in range(1, 5)]
    assert [len(axes.lines) for axes in panels(figure)] == 2 * [TOP * m for m in range(1, 5)]
    check_shares_one_scale(figure, [maps[0], maps[2]])
    (legend,) = figure.legends
    assert legend.get_title().get_text().startswith("Meta-GRAD_ECLIP, CLIP")
    assert scenes_figure([scenes_result(tmp_path, maps)], images=[7]) is None


def test_each_job_has_a_part_of_the_figure_with_its_own_maps_and_scale(tmp_path):
    maps = [scene_maps(1), scene_maps(1, seed=1)]
    jobs = [scenes_result(tmp_path / str(place), each) for place, each in enumerate(maps)]
    config = OmegaConf.merge(jobs[1].config, {"model": {"label": "Other"}})
    figure = scenes_figure([jobs[0], replace(jobs[1], config=config)], images=[0])
    figure.savefig(io.BytesIO(), dpi=20, format="png")
    names = [part.legends[0].get_title().get_text().split(":")[0] for part in figure.subfigs]
    assert names == ["Meta-GRAD_ECLIP, CLIP", "Meta-GRAD_ECLIP, Other"]
    for part, shown in zip(figure.subfigs, maps, strict=True):
        check_shares_one_scale(part, shown)


def test_a_scene_whose_maps_are_zero_has_no_recognition_over_it(tmp_path):
    maps = [{m: np.zeros((64, m)) for m in range(1, 5)}]
    figure = scenes_figure([scenes_result(tmp_path, maps)], images=[0])
    figure.savefig(io.BytesIO(), dpi=20, format="png")
    assert [axes.get_title() for axes in panels(figure)] == [""] * 4


def play(output_dir, *overrides):
    """Run a job of the shipped game on the embedded CLIP and write its table; its config and outcome."""
    parts = ["model=clip_vitb16", "attribution=meta_grad_eclip", "benchmark=pointing_game", f"output_dir={output_dir}"]
    with shipped_configs():
        cfg = compose("config", overrides=[*parts, "limit=3", *overrides])
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
def test_a_job_of_the_game_asks_about_each_number_of_words_of_every_image_and_scores_it(played):
    cfg, outcome = played
    assert (outcome.n_samples, outcome.n_done, outcome.errors) == (3, 3, ())
    assert list(records(cfg)) == SAMPLES
    for record in records(cfg).values():
        assert list(record.scores) == list(OBJECTS)
        found = explanations(cfg, record)
        assert list(found) == ["4", "3", "2", "1"]
        for m in range(1, 5):
            words = record.sample.split("/")[0].split("-")[:m]
            first, meta = found[str(m)].attribution, found[str(m)].meta
            assert (found[str(m)].players, found[str(m)].grid) == (tuple(words), (8, 8))
            assert (meta.values.shape, first.shape, meta.empty.shape) == ((64, m), (64,), (64,))
            assert np.abs(meta.values.sum(1) - (first - meta.empty)).max() < 1e-5 * np.abs(first).max()
            assert close(meta.empty, found["1"].meta.empty, 1e-5 * np.abs(meta.empty).max())
            assert close(record.scores[f"objects_{m}"], twin.recognition(meta.values, 8))


@pytest.mark.slow
def test_a_job_that_was_stopped_and_goes_on_ends_as_if_it_had_not_been(played, tmp_path, monkeypatch):
    score, calls = PointingGame.score, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 2:
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
def test_a_grid_that_cannot_be_decoded_fails_alone_and_the_table_names_it(played, tmp_path):
    game_name = SAMPLES[0].split("/")[0]
    folder = tmp_path / "grids" / "lossless" / game_name
    folder.mkdir(parents=True)
    for k in (0, 2):
        ComposedScenes(Digits(), 32).image(game_name, (0, 1, 3, 6), k).save(folder / f"{k:02d}.png")
    (folder / "01.png").write_bytes((folder / "00.png").read_bytes()[:200])
    scenes = [f"benchmark.scenes.root={tmp_path / 'grids'}", "benchmark.scenes.encoding=lossless"]
    cfg, outcome = play(tmp_path, "benchmark/scenes=paper", *scenes)
    error = f"image {folder / '01.png'} cannot be decoded: replace the file."
    assert (outcome.n_done, outcome.errors) == (2, (error,))
    assert statuses(cfg) == dict(zip(SAMPLES, ("done", "failed", "done"), strict=True))
    whole = records(played[0])
    for sample in (SAMPLES[0], SAMPLES[2]):
        ours, theirs = records(cfg)[sample].scores, whole[sample].scores
        assert all(close(ours[key], theirs[key], 1e-5) for key in OBJECTS)
    table = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert f"Meta-Grad-ECLIP: sample {SAMPLES[1]} failed: {error}" in table["notes"]
    assert "Only the first 3 samples (limit=3)." in table["notes"]
    assert [claim["holds"] for claim in table["claims"]] == [None, None]


class Together(Plain):
    """A model that prepares samples in batches and writes down each batch.

    Ids in ``broken`` cannot be prepared, batches with one in ``stop`` not at all.
    """

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


def stub_config(tmp_path, values=5, fail_fast=False, **model):
    model = {"name": "together", "_target_": f"{__name__}.Together", "log": str(tmp_path / "log")} | model
    return job_config(tmp_path, model=model, benchmark__values=list(range(1, values + 1)), fail_fast=fail_fast)


def batches(tmp_path):
    return (tmp_path / "log").read_text(encoding="utf-8").splitlines()


def statuses(cfg):
    return {sample: record.status for sample, record in records(cfg).items()}


@pytest.mark.parametrize(
    ("model", "errors"),
    [
        ({}, {}),
        ({"broken": ["2", "3"]}, {"2": "no 2.", "3": "no 3."}),
        ({"broken": ["1", "2"]}, {"1": "no 1.", "2": "no 2."}),
        ({"stop": ["3"]}, dict.fromkeys("34", "RuntimeError: too many at once")),
    ],
    ids=["all", "one of two batches each", "one batch", "one batch as a whole"],
)
def test_a_model_prepares_samples_in_batches_and_what_cannot_be_is_recorded_while_the_others_go_on(
    tmp_path, model, errors
):
    cfg = stub_config(tmp_path, **model)
    outcome = run_job(cfg)
    assert batches(tmp_path) == ["1 2", "3 4", "5"]
    assert outcome.errors == tuple(dict.fromkeys(errors.values()))
    store, found = RecordStore(job_folder(cfg)), records(cfg)
    assert {sample: record.error for sample, record in found.items() if record.status == "failed"} == errors
    for sample in set("12345") - set(errors):
        assert found[sample].scores == {"value": float(sample)}
        assert store.load_arrays(found[sample])["attribution"].tolist() == [float(sample)] * 2


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
