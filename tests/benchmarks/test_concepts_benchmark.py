from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from metagame.benchmarks.concepts import ALL, Concepts, OwnImage
from metagame.contracts import Annotation, Model, prepare_each
from metagame.jobs.fingerprint import files_digest
from metagame.jobs.records import RecordStore, unpack
from metagame.jobs.run import run_job
from metagame.jobs.spec import job_folder
from metagame.models.concepts import ConceptQuestion, ConceptSample, PaintedImage
from tests.tiny.segmentation import blank, pixels, refused, segmentation_config

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
        ([["sky"]], "has 'sky', which is not in benchmark.players: add it there"),
        ([], r"is empty, or contains an empty set: give the concepts to show, such as \[\[car, bike\]\]"),
        ([["car"], []], "is empty, or contains an empty set"),
    ],
)
def test_sets_without_concepts_or_with_one_that_is_no_player_are_refused(sets, reason):
    with refused(f"benchmark.sets {reason}"):
        concepts(sets=sets)


def test_repeated_sets_are_refused():
    with refused("repeats a set: give each once"):
        concepts(sets=[["car"], ["dog"], ["car"]])


def test_there_is_nothing_to_score():
    benchmark = concepts()
    inputs = {name: blank(each) for name, each in only(benchmark).questions().items()}
    assert benchmark.score(only(benchmark), inputs, {}) == {}


def test_an_own_image_is_seen_with_the_prompt(tmp_path):
    sample = only(concepts(image=saved(tmp_path / "street.png"), prompt="a street"))
    assert isinstance(sample, OwnImage)
    assert isinstance(sample, ConceptSample)
    assert np.array_equal(np.asarray(sample.image()), pixels(8, 14))
    assert {question.prompt for question in sample.questions().values()} == {"a street"}
    assert only(concepts(image=saved(tmp_path / "street.png"), prompt="")).questions()[ALL].prompt == ""
    assert sample.questions()[ALL] == ConceptQuestion(PLAYERS, ("sky", "grass"), 3, "a street")


def test_the_id_of_an_own_image_is_its_name_and_tells_its_content_as_its_files_do(tmp_path):
    path = tmp_path / "street.png"
    first = only(concepts(image=saved(path)))
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


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_every_orientation_shows_the_same_upright_picture(tmp_path, orientation):
    upright = Image.fromarray(pixels(8, 14))
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    sample = only(concepts(image=saved(tmp_path / "x.png", stored, exif=exif)))
    assert np.array_equal(np.asarray(sample.image()), np.asarray(upright))


def test_a_missing_image_is_told_when_it_is_needed(tmp_path):
    path = tmp_path / "absent.jpg"
    sample = only(concepts(image=str(path)))
    assert sample.id == "absent.jpg (missing)"
    assert list(sample.questions())[-1] == ALL
    with refused(f"image {path} does not exist: give the path of an image file"):
        sample.image()


def test_an_image_that_cannot_be_decoded_is_told(tmp_path):
    path = tmp_path / "street.jpg"
    saved(path, Image.fromarray(pixels(80, 140)))
    path.write_bytes(path.read_bytes()[:-300])
    for image in (path, tmp_path):
        with refused(f"image {image} cannot be decoded: replace the file"):
            only(concepts(image=str(image))).image()


class Looking(Model):
    """A model that looks at the picture and has no opinion."""

    sample_type = ConceptSample
    revision = "first"
    device = "cpu"

    def prepare(self, samples):
        return prepare_each(self.bind, samples)

    def bind(self, sample):
        sample.image()
        return {name: blank(question) for name, question in sample.questions().items()}


def test_a_job_keeps_the_maps_of_every_question(tmp_path):
    cfg = segmentation_config(tmp_path / "out", {})
    image = saved(tmp_path / "street.png")
    cfg.benchmark = {"name": "concepts", "_target_": "metagame.benchmarks.concepts.Concepts", **arguments(image=image)}
    cfg.model = {"name": "looking", "_target_": f"{__name__}.Looking"}
    shown = ("meta_concept_attention", "concept_attention")
    cfg.attribution.variants = {name: cfg.attribution.variants[name] for name in shown}
    assert run_job(cfg).n_done == 1
    store = RecordStore(job_folder(cfg))
    records = {record.variant: record for record in store.read().values()}
    for variant in shown:
        found = unpack(records[variant], store.load_arrays(records[variant]))
        assert list(found) == ["car, dog", "car, dog, bike", ALL]
        assert found["car, dog"].players == ("car", "dog")
        assert found["car, dog"].attribution.shape == (2 + 2,)
        assert found[ALL].targets == (*PLAYERS, "sky", "grass")
