from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from metagame.benchmarks.concepts import ALL, Concepts, OwnImage
from metagame.contracts import Annotation
from metagame.jobs.fingerprint import files_digest
from metagame.models.concepts import ConceptQuestion, ConceptSample, PaintedImage
from tests.tiny.segmentation import blank, pixels
from tests.tiny.vision_language import refused

ORIENTATION = 0x0112
PLAYERS = ("car", "bike", "dog", "cat")
SETS = (("car", "dog"), ("car", "dog", "bike"))


def arguments(**changes):
    return {
        "prompt": "a bike on a street", "sets": SETS, "players": PLAYERS, "background": ["sky", "grass"], "n_layers": 3,
    } | changes  # fmt: skip


def concepts(**changes):
    return Concepts(**arguments(**changes))


def only(benchmark):
    (sample,) = benchmark.samples()
    return sample


def saved(path, image=None, **options):
    (image or Image.fromarray(pixels(8, 14))).save(path, **options)
    return str(path)


def test_every_set_is_a_question_and_all_players_are_the_last():
    questions = only(concepts()).questions()
    assert list(questions) == ["car, dog", "car, dog, bike", ALL]
    assert [question.players for question in questions.values()] == [*SETS, PLAYERS]
    assert {(each.background, each.n_layers, each.cross_attention) for each in questions.values()} == {
        (("sky", "grass"), 3, True)
    }


def test_white_space_around_a_concept_is_no_part_of_its_name():
    around = concepts(sets=[[" car", "dog "], SETS[1]], players=["car ", *PLAYERS[1:]], background=["sky", " grass"])
    assert only(around).questions() == only(concepts()).questions()


def test_the_model_paints_the_prompt_from_the_seed_which_is_that_of_the_paper_by_default():
    benchmark = concepts(seed=7)
    sample = only(benchmark)
    assert isinstance(sample, PaintedImage)
    assert (sample.prompt, sample.seed, sample.id) == ("a bike on a street", 7, "a bike on a street (seed 7)")
    assert sample.description() == "a bike on a street"
    assert {question.prompt for question in sample.questions().values()} == {""}
    assert list(sample.files()) == list(benchmark.files()) == []
    assert only(concepts()).seed == 31
    assert sample.annotation() == Annotation(present=("bike",))


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


def test_there_is_nothing_to_score():
    benchmark = concepts()
    inputs = {name: blank(each) for name, each in only(benchmark).questions().items()}
    assert benchmark.score(only(benchmark), inputs, {}) == {}


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


@pytest.mark.parametrize(
    ("file", "mode"), [("x.jpg", "RGB"), ("x.jpg", "L"), ("x.png", "L"), ("x.png", "P"), ("x.webp", "RGBA")]
)
def test_an_own_image_of_any_kind_is_turned_as_its_camera_says(tmp_path, file, mode):
    image, exif = Image.fromarray(pixels(8, 14)).convert(mode), Image.Exif()
    upright = np.asarray(image.convert("RGB").transpose(Image.Transpose.ROTATE_270)).astype(int)
    exif[ORIENTATION] = 6
    options = {"quality": 95, "subsampling": 0} if file == "x.jpg" else {"lossless": True} if mode == "RGBA" else {}
    found = only(concepts(image=saved(tmp_path / file, image, exif=exif, **options))).image()
    assert (found.mode, found.size) == ("RGB", (8, 14))
    assert np.abs(np.asarray(found).astype(int) - upright).max() <= 6


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
