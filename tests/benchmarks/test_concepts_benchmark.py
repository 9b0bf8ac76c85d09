from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from metagame.benchmarks.concepts import ALL, Concepts, OwnImage
from metagame.contracts import Annotation
from metagame.jobs.fingerprint import files_digest
from metagame.models.concepts import ConceptQuestion, ConceptSample, PaintedImage
from tests.tiny.segmentation import pixels
from tests.tiny.vision_language import refused

PLAYERS = ("car", "bike", "dog", "cat")
SETS = (("car", "dog"), ("car", "dog", "bike"))


def concepts(**changes):
    arguments = {
        "prompt": "a bike on a street", "sets": SETS, "players": PLAYERS, "background": ["sky", "grass"], "n_layers": 3,
    }  # fmt: skip
    return Concepts(**arguments | changes)


def only(benchmark):
    (sample,) = benchmark.samples()
    return sample


def saved(path, image=None, **options):
    (image or Image.fromarray(pixels(8, 14))).save(path, **options)
    return str(path)


def test_every_set_is_a_question_all_players_are_the_last_and_white_space_is_no_part_of_a_name():
    questions = only(concepts()).questions()
    assert list(questions) == ["car, dog", "car, dog, bike", ALL]
    assert [question.players for question in questions.values()] == [*SETS, PLAYERS]
    assert {(each.background, each.n_layers, each.cross_attention) for each in questions.values()} == {
        (("sky", "grass"), 3, True)
    }
    around = concepts(sets=[[" car", "dog "], SETS[1]], players=["car ", *PLAYERS[1:]], background=["sky", " grass"])
    assert only(around).questions() == only(concepts()).questions()


def test_the_model_paints_the_prompt_from_the_seed_which_is_the_papers_by_default_and_nothing_is_scored():
    benchmark = concepts(seed=7)
    sample = only(benchmark)
    assert isinstance(sample, PaintedImage)
    assert (sample.prompt, sample.seed, sample.id) == ("a bike on a street", 7, "a bike on a street (seed 7)")
    assert sample.description() == "a bike on a street"
    assert {question.prompt for question in sample.questions().values()} == {""}
    assert list(sample.files()) == list(benchmark.files()) == []
    assert only(concepts()).seed == 31
    assert sample.annotation() == Annotation(present=("bike",))
    assert benchmark.score(sample, {}, {}) == {}


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        ([["car"], ["train", "dog"]], "has 'train', which is not in benchmark.players: add it there"),
        ([["Car"]], "has 'Car', which is not in benchmark.players: add it there"),
        ([], r"is empty, or contains an empty set: give the concepts to show, such as \[\[car, bike\]\]"),
        ([["car"], []], "is empty, or contains an empty set"),
        ([["car"], ["dog"], ["car"]], "repeats a set: give each once"),
    ],
)
def test_sets_without_concepts_with_one_that_is_no_player_or_repeated_are_refused(sets, reason):
    with refused(f"benchmark.sets.* {reason}"):
        concepts(sets=sets)


def test_an_own_image_is_seen_with_the_prompt_and_its_id_tells_its_content_as_its_files_do(tmp_path):
    path = tmp_path / "street.png"
    first = only(concepts(image=saved(path), prompt="a street"))
    assert isinstance(first, OwnImage)
    assert isinstance(first, ConceptSample)
    assert np.array_equal(np.asarray(first.image()), pixels(8, 14))
    assert {question.prompt for question in first.questions().values()} == {"a street"}
    assert first.questions()[ALL] == ConceptQuestion(PLAYERS, ("sky", "grass"), 3, "a street")
    assert only(concepts(image=str(path), prompt="")).questions()[ALL].prompt == ""
    digest = files_digest(first.files())
    assert list(first.files()) == [path]
    assert first.id.startswith("street.png (")
    assert only(concepts(image=str(path))).id == first.id
    saved(path, Image.fromarray(pixels(9, 14)))
    assert only(concepts(image=str(path))).id != first.id
    assert files_digest(first.files()) != digest


def test_an_own_image_is_turned_as_its_camera_says(tmp_path):
    image, exif = Image.fromarray(pixels(8, 14)), Image.Exif()
    exif[0x0112] = 6
    found = only(concepts(image=saved(tmp_path / "turned.png", image, exif=exif))).image()
    assert np.array_equal(np.asarray(found), np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


def test_an_image_that_is_missing_or_cannot_be_decoded_is_told_when_it_is_needed(tmp_path):
    absent = tmp_path / "absent.jpg"
    sample = only(concepts(image=str(absent)))
    assert sample.id == "absent.jpg (missing)"
    assert list(sample.questions())[-1] == ALL
    with refused(f"image {absent} does not exist: give the path of an image file"):
        sample.image()
    broken = tmp_path / "street.jpg"
    saved(broken, Image.fromarray(pixels(80, 140)))
    broken.write_bytes(broken.read_bytes()[:-300])
    for image in (broken, tmp_path):
        with refused(f"image {image} cannot be decoded: replace the file"):
            only(concepts(image=str(image))).image()
