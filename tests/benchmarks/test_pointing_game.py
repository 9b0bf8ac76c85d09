from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hydra import compose
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
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
from metagame.experiments import finish, run_one
from metagame.images import bilinear_square
from metagame.jobs.records import RecordStore
from metagame.jobs.run import run_job
from metagame.jobs.spec import is_left_out, job_folder
from metagame.models.vision_language import Sample
from metagame.report.pointing_game import OBJECTS
from tests.conftest import close, unchecked
from tests.reference import pointing_game as twin
from tests.tiny.benchmarks import explained
from tests.tiny.jobs import ROOT, Plain, job_config, shipped_configs

CLASSES = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
GAMES = ["zero-one-two-three", "four-three-two-one"]
CLIP, METACLIP = "clip_vitb16", "metaclip2_vith14"


@st.composite
def map_sets(draw):
    """Maps ``(P, m)`` of 1 to 4 words on a square grid, and its side."""
    side, m = draw(st.sampled_from([2, 3, 4, 6, 7])), draw(st.integers(1, 4))
    elements = st.one_of(st.just(0.0), st.floats(-10, 10))
    return draw(arrays(np.float64, (side * side, m), elements=elements, fill=st.nothing())), side


@given(map_sets())
def test_recognition_is_what_its_definition_says(case):
    maps, side = case
    ours, theirs = recognition(maps), twin.recognition(maps, side)
    assert ours is None if theirs is None else close(ours, theirs) and 0 <= ours <= 1


def test_recognition_by_hand():
    perfect = np.where(quadrants(16)[:, :3], 2.0, -0.5)
    assert (recognition(perfect), recognition(-perfect)) == (1, 0)
    assert recognition(np.zeros((16, 2))) is None
    maps = np.array([[3.0, -1.0], [1.0, 2.0], [-0.5, 0.0], [0.0, 0.25]])
    assert recognition(maps) == (3 + 0.5 + 1 + 2) / (3 + 1 + 0.5 + 1 + 2 + 0.25)
    assert quadrants(49).sum(0).tolist() == [9] * 4
    for n_patches, reason in ((1, "a single patch has no quadrants"), (8, "8 patches do not form a square grid")):
        with pytest.raises(UserError, match=reason):
            recognition(np.ones((n_patches, 2)))


@dataclass(frozen=True)
class Noise(Images):
    """Pictures of noise, of another size for each class; or a white one, and black ones of the other classes."""

    white: int | None = None

    def image(self, label, k):
        height, width = ((40, 90), (91, 41), (63, 64), (32, 32))[label]
        noise = np.random.default_rng([label, k]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(noise if self.white is None else np.full_like(noise, 255 * (label == self.white)))

    def files(self, label, k):
        return [Path(f"{label}-{k}.png")]


def game(games=GAMES, n_images=2, images=None, **chosen):
    return PointingGame(ComposedScenes(images or Digits(), 32), CLASSES, games, n_images, **chosen)


@pytest.mark.parametrize("encoding", ["jpeg", "lossless"])
@pytest.mark.parametrize("place", range(4))
def test_quadrants_are_those_of_the_picture_in_reading_order(place, encoding):
    grid = np.asarray(ComposedScenes(Noise(place), 8, encoding).image("a-b-c-d", range(4), 0)).mean(-1)
    assert np.array_equal(grid.reshape(4, 4, 4, 4).mean((1, 3)).ravel() > 128, quadrants(16)[:, place])


def test_a_sample_is_image_k_of_each_word_of_a_game_in_reading_order():
    samples = game().samples()
    assert [sample.id for sample in samples] == [f"{name}/{k}" for name in GAMES for k in range(2)]
    assert all(isinstance(sample, Sample) for sample in samples)
    scene = samples[3]
    assert (scene.labels, scene.words) == ((4, 3, 2, 1), ["four", "three", "two", "one"])
    annotation = scene.annotation()
    assert np.array(annotation.present)[annotation.mask].tolist() == [["four", "three"], ["two", "one"]]
    grid = scene.image()
    assert grid.size == (64, 64)
    for label, (x, y) in zip(scene.labels, ((0, 0), (32, 0), (0, 32), (32, 32)), strict=True):
        expected = Digits().image(label, 1).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(grid.crop((x, y, x + 32, y + 32))), np.asarray(expected))
    with unchecked():
        texts = scene.texts(tokenizer=None)
    assert {m: each.labels for m, each in texts.items()} == {str(m): tuple(scene.words[:m]) for m in range(1, 5)}


def test_the_first_games_are_played_or_those_that_are_named():
    assert [sample.id for sample in game(n_games=1).samples()] == [f"{GAMES[0]}/0", f"{GAMES[0]}/1"]
    assert len(game(n_games=7).samples()) == 4
    assert [sample.id for sample in game(played=GAMES[1:]).samples()] == [f"{GAMES[1]}/0", f"{GAMES[1]}/1"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"played": ["a-b-c-d"]}, "benchmark.played has 'a-b-c-d', which is not in benchmark.games"),
        ({"n_images": 0}, "n_images=0 and benchmark.n_games=None must be positive"),
        ({"n_games": -3}, "n_images=2 and benchmark.n_games=-3 must be positive"),
        *(
            ({"games": [GAMES[0], name]}, f"game '{name}' must be four different words of benchmark.classes")
            for name in ("one-two", "one-two-three-four-zero", "one-two-ten-four", "one-two-one-three")
        ),
    ],
)
def test_games_that_cannot_be_played_are_refused(arguments, reason):
    with pytest.raises(UserError, match=reason):
        game(**arguments)


def test_grids_of_jpegs_are_those_that_torchvision_and_files_make(tmp_path):
    found, lossless = (
        np.asarray(ComposedScenes(Noise(), 24, encoding).image("a-b-c-d", range(4), 1), int)
        for encoding in ("jpeg", "lossless")
    )
    assert np.array_equal(found, twin.grid_of_jpegs([Noise().image(label, 1) for label in range(4)], 24, tmp_path))
    assert np.abs(lossless - found).mean() > 10
    with pytest.raises(UserError, match="encoding='png' must be 'jpeg' or 'lossless'"):
        ComposedScenes(Noise(), 24, "png")


@given(st.integers(2, 300), st.integers(2, 300), st.integers(1, 40))
def test_a_bilinear_square_is_torchvisions(width, height, side):
    image = Noise().image(0, 0).resize((width, height))
    expected = transforms.CenterCrop(side)(transforms.Resize(side)(image))
    assert np.array_equal(np.asarray(bilinear_square(image, side)), np.asarray(expected))


def test_the_files_of_a_sample_are_those_of_its_four_images_or_its_prepared_grid(tmp_path):
    composed = game(images=Noise()).samples()[3]
    assert list(composed.files()) == [Path(f"{label}-1.png") for label in (4, 3, 2, 1)]
    assert list(game().samples()[3].files()) == list(game().files()) == []
    (tmp_path / "jpeg").mkdir()
    prepared = PointingGame(PreparedScenes(str(tmp_path), "jpeg"), CLASSES, GAMES, 2).samples()
    found = [list(sample.files()) for sample in prepared]
    assert found == [[tmp_path / "jpeg" / name / f"{k:02d}.png"] for name in GAMES for k in range(2)]


def read(name):
    return OmegaConf.load(ROOT / "configs/benchmark" / name)


def test_the_classes_are_those_of_the_paper_and_digits_each_once_in_each_place_of_ten_games():
    classes = {
        "fish": 0, "koala": 105, "plane": 404, "balloon": 417, "church": 497, "jeep": 609, "laptop": 620, "lemon": 951,
        "pizza": 963, "acorn": 988,
    }  # fmt: skip
    assert read("classes/paper.yaml") == classes
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert list(read("classes/tiny.yaml").items()) == [(word, value) for value, word in enumerate(digits)]
    for file, words in (("pointing_game.yaml", list(classes)), ("by_scale/tiny/pointing_game.yaml", digits)):
        games = read(file).games
        assert len(set(games)) == 10
        for of_a_place in zip(*(each.split("-") for each in games), strict=True):
            assert sorted(of_a_place) == sorted(words)


@pytest.mark.parametrize(
    ("scale", "model", "method", "expected"),
    [
        ("tiny", CLIP, "grad_eclip", (None, None, 50, "lossless")),
        ("tiny", METACLIP, "fixlip", (3, None, 10, "lossless")),
        ("paper", METACLIP, "grad_eclip", (None, None, 50, "jpeg")),
        (
            *("paper", METACLIP, "fixlip"),
            (None, ["plane-balloon-jeep-pizza", "church-jeep-lemon-fish", "lemon-pizza-fish-balloon"], 50, "jpeg"),
        ),
        ("paper", "siglip2_vitl16", "fixlip", (None, None, 50, "jpeg")),
    ],
)
def test_the_shipped_game_has_50_images_of_ten_games_and_fewer_for_fixlip(scale, model, method, expected):
    with shipped_configs():
        parts = [f"model={model}", "benchmark=pointing_game", f"scale={scale}", f"attribution={method}"]
        game = compose("config", overrides=parts).benchmark
    assert (game.n_games, game.played, game.n_images, game.scenes.encoding) == expected
    assert set(game.played or ()) <= set(game.games)


def test_the_maps_of_words_are_the_meta_attributions_or_one_first_order_map_for_all():
    first, matrix, pairs = np.arange(4.0), np.arange(8.0).reshape(4, 2), np.ones((4, 2, 2))
    assert np.array_equal(word_maps(explained(first, matrix, grid=(2, 2)), 2), matrix)
    assert word_maps(explained(first, grid=(2, 2)), 2).tolist() == [[value] * 2 for value in first]
    with pytest.raises(UserError, match=r"values of order 2 .* leave out attribution\.order"):
        word_maps(explained(first, pairs, grid=(2, 2), order=2), 2)


@unchecked()
def test_the_scores_are_the_recognition_of_each_scenario():
    rng = np.random.default_rng(0)
    maps = {str(m): rng.normal(size=(16, m)) for m in (1, 2, 3)} | {"4": np.zeros((16, 4))}
    explanations = {m: explained(values=values, grid=(4, 4)) for m, values in maps.items()}
    scores = game().score(game().samples()[0], dict.fromkeys(explanations), explanations)
    assert list(scores) == list(OBJECTS)
    assert scores["objects_4"] is None
    assert all(close(scores[f"objects_{m}"], twin.recognition(maps[str(m)], 4)) for m in (1, 2, 3))


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


SAMPLES = [f"zero-one-three-six/{k}" for k in range(3)]


def play(output_dir, *overrides):
    """Run a job of the shipped game on the embedded CLIP and write its table; its config and outcome."""
    parts = [f"model={CLIP}", "attribution=meta_grad_eclip", "benchmark=pointing_game", f"output_dir={output_dir}"]
    with shipped_configs():
        cfg = compose("config", overrides=[*parts, "limit=3", *overrides])
        outcome = run_job(cfg)
        finish([cfg])
    return cfg, outcome


def records(cfg):
    return {record.sample: record for record in RecordStore(job_folder(cfg)).read().values()}


@pytest.mark.slow
def test_prepared_grids_score_as_composed_ones_and_one_that_cannot_be_decoded_fails_alone(tmp_path):
    composed, outcome = play(tmp_path / "composed")
    assert (outcome.n_samples, outcome.n_done, outcome.errors) == (3, 3, ())
    game_name = SAMPLES[0].split("/")[0]
    folder = tmp_path / "grids" / "lossless" / game_name
    folder.mkdir(parents=True)
    for k in (0, 2):
        ComposedScenes(Digits(), 32).image(game_name, (0, 1, 3, 6), k).save(folder / f"{k:02d}.png")
    (folder / "01.png").write_bytes((folder / "00.png").read_bytes()[:200])
    scenes = [f"benchmark.scenes.root={tmp_path / 'grids'}", "benchmark.scenes.encoding=lossless"]
    cfg, outcome = play(tmp_path / "prepared", "benchmark/scenes=paper", *scenes)
    error = f"image {folder / '01.png'} cannot be decoded: replace the file."
    assert (outcome.n_done, outcome.errors) == (2, (error,))
    found, whole = records(cfg), records(composed)
    assert list(found) == list(whole) == SAMPLES
    for sample in (SAMPLES[0], SAMPLES[2]):
        assert all(close(found[sample].scores[key], whole[sample].scores[key], 1e-5) for key in OBJECTS)
    notes = json.loads((tmp_path / "prepared" / "table.json").read_text(encoding="utf-8"))["notes"]
    assert f"Meta-Grad-ECLIP: sample {SAMPLES[1]} failed: {error}" in notes


class Together(Plain):
    """A model that prepares samples in batches of two, of which ids in ``broken`` cannot be, and writes down each."""

    batch_size = 2
    broken: ClassVar[set[str]] = set()
    batches: ClassVar[list[list[str]]] = []

    def prepare(self, samples):
        ids = [sample.id for sample in samples]
        self.batches.append(ids)
        return [Failure(UserError(f"no {each.id}.")) if each.id in self.broken else {WHOLE: each} for each in samples]


@pytest.fixture
def together(tmp_path, monkeypatch):
    """The config of a job on five samples of which two cannot be prepared."""
    monkeypatch.setattr(Together, "broken", {"3", "4"})
    monkeypatch.setattr(Together, "batches", [])
    model = {"name": "together", "_target_": f"{__name__}.Together"}
    return job_config(tmp_path, model=model, benchmark__values=list(range(1, 6)))


def test_what_cannot_be_prepared_of_a_batch_is_recorded_and_only_its_batch_is_prepared_again_and_whole(
    together, monkeypatch
):
    assert run_job(together).errors == ("no 3.", "no 4.")
    assert Together.batches == [["1", "2"], ["3", "4"], ["5"]]
    store = RecordStore(job_folder(together))
    assert {key: found.error for key, found in records(together).items()} == dict.fromkeys("125") | {
        "3": "no 3.",
        "4": "no 4.",
    }
    monkeypatch.setattr(Together, "broken", {"3"})
    assert run_job(together).errors == ("no 3.",)
    monkeypatch.setattr(Together, "broken", set())
    assert run_job(together).n_done == 5
    assert Together.batches[3:] == [["3", "4"], ["3", "4"]]
    for sample, found in records(together).items():
        assert found.scores == {"value": float(sample)}
        assert store.load_arrays(found)["attribution"].tolist() == [float(sample)] * 2


def test_a_failed_preparation_stops_a_job_that_fails_fast(together):
    together.fail_fast = True
    with pytest.raises(UserError, match="no 3"):
        run_job(together)
    assert {key: found.status for key, found in records(together).items()} == {"1": "done", "2": "done", "3": "failed"}
