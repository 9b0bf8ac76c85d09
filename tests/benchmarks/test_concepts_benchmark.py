from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from metagame.benchmarks.concepts import ALL, Concepts, OwnImage
from metagame.contracts import Model, prepare_each
from metagame.jobs.build import build_part
from metagame.jobs.fingerprint import files_digest
from metagame.jobs.records import RecordStore, unpack
from metagame.jobs.run import run_job
from metagame.jobs.spec import job_folder
from metagame.models.concepts import ConceptLogits, ConceptQuestion, ConceptSample, PaintedImage
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


def rotated(mode="RGB", orientation=6):
    """A picture 14 wide and 8 high that its camera says to turn, and how it looks turned clockwise."""
    image = Image.fromarray(pixels(8, 14)).convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return image, exif, np.asarray(image.convert("RGB").transpose(Image.Transpose.ROTATE_270)).astype(int)


def test_every_set_is_a_question_and_all_players_are_the_last():
    questions = only(concepts()).questions()
    assert list(questions) == ["car, dog", "car, dog, bike", ALL]
    assert [question.players for question in questions.values()] == [*SETS, PLAYERS]
    assert {(each.background, each.n_layers, each.cross_attention) for each in questions.values()} == {
        (("sky", "grass"), 3, True)
    }


def test_the_model_paints_the_prompt_from_the_seed():
    sample = only(concepts(seed=7))
    assert isinstance(sample, PaintedImage)
    assert (sample.prompt, sample.seed, sample.id) == ("a bike on a street", 7, "a bike on a street (seed 7)")
    assert {question.prompt for question in sample.questions().values()} == {""}


def test_the_seed_of_the_paper_is_the_default():
    assert only(concepts()).seed == 31


@pytest.mark.parametrize(
    ("sets", "named"),
    [([["car", "train"]], "train"), ([["car"], ["train", "dog"]], "train"), ([["Car"]], "Car"), ([["sky"]], "sky")],
)
def test_a_concept_of_a_set_that_is_no_player_is_refused(sets, named):
    with refused(f"benchmark.sets has '{named}', which is not in benchmark.players: add it there"):
        concepts(sets=sets)


def test_no_sets_are_refused():
    with refused(r"benchmark\.sets is empty, or one of them: give the concepts to show, such as \[\[car, bike\]\]"):
        concepts(sets=[])


def test_there_is_nothing_to_score():
    benchmark = concepts()
    questions = only(benchmark).questions()
    inputs = {name: blank(each) for name, each in questions.items()}
    assert benchmark.score(only(benchmark), inputs, {}) == {}


def test_the_files_of_an_own_image_are_the_image(tmp_path):
    path = tmp_path / "street.png"
    sample = only(concepts(image=saved(path)))
    assert list(sample.files()) == [path]
    before = files_digest(sample.files())
    saved(path, Image.fromarray(pixels(9, 14)))
    assert files_digest(sample.files()) != before


def test_a_painting_has_no_files():
    benchmark = concepts()
    assert list(only(benchmark).files()) == list(benchmark.files()) == []


def test_what_a_painting_shows_is_its_prompt():
    assert only(concepts()).description() == "a bike on a street"


def test_an_own_image_is_seen_with_the_prompt(tmp_path):
    sample = only(concepts(image=saved(tmp_path / "street.png"), prompt="a street"))
    assert isinstance(sample, OwnImage)
    assert isinstance(sample, ConceptSample)
    assert np.array_equal(np.asarray(sample.image()), pixels(8, 14))
    assert {question.prompt for question in sample.questions().values()} == {"a street"}
    assert sample.questions()[ALL] == ConceptQuestion(PLAYERS, ("sky", "grass"), 3, "a street")


def test_an_own_image_may_have_no_prompt(tmp_path):
    sample = only(concepts(image=saved(tmp_path / "street.png"), prompt=""))
    assert {question.prompt for question in sample.questions().values()} == {""}


def test_the_id_of_an_own_image_is_its_name_and_tells_its_content(tmp_path):
    path = tmp_path / "street.png"
    first = only(concepts(image=saved(path))).id
    assert first.startswith("street.png (")
    assert only(concepts(image=str(path))).id == first
    saved(path, Image.fromarray(pixels(9, 14)))
    assert only(concepts(image=str(path))).id != first


@pytest.mark.parametrize(("file", "mode"), [("x.jpg", "RGB"), ("x.jpg", "L"), ("x.png", "RGB"), ("x.png", "L")])
def test_an_own_image_is_turned_as_its_camera_says(tmp_path, file, mode):
    image, exif, upright = rotated(mode)
    found = only(concepts(image=saved(tmp_path / file, image, exif=exif, quality=95, subsampling=0))).image()
    assert (found.mode, found.size) == ("RGB", (8, 14))
    assert np.abs(np.asarray(found).astype(int) - upright).max() <= 6


@pytest.mark.parametrize(("file", "mode"), [("x.png", "RGBA"), ("x.webp", "RGBA"), ("x.png", "P"), ("x.tiff", "RGB")])
def test_an_own_image_of_another_kind_is_turned_too(tmp_path, file, mode):
    image, exif, _ = rotated(mode)
    if mode == "RGBA":
        image.putalpha(100)
    assert only(concepts(image=saved(tmp_path / file, image, exif=exif))).image().size == (8, 14)


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


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 and no more"])
def test_an_image_that_cannot_be_decoded_is_told(tmp_path, content):
    path = tmp_path / "street.jpg"
    path.write_bytes(content)
    with refused(f"image {path} cannot be decoded: replace the file"):
        only(concepts(image=str(path))).image()


def test_a_folder_in_place_of_an_image_is_told(tmp_path):
    with refused("cannot be decoded"):
        only(concepts(image=str(tmp_path))).image()


def test_half_a_photograph_is_told(tmp_path):
    path = tmp_path / "street.jpg"
    saved(path, Image.fromarray(pixels(80, 140)))
    path.write_bytes(path.read_bytes()[:-300])
    with refused("street.jpg cannot be decoded"):
        only(concepts(image=str(path))).image()


def test_the_benchmark_is_built_from_a_config():
    node = OmegaConf.create({"name": "concepts", "_target_": "metagame.benchmarks.concepts.Concepts", **arguments()})
    questions = only(build_part(node)).questions()
    assert questions == only(concepts()).questions()


class Looking(Model):
    """A model that looks at the picture and has no opinion."""

    sample_type = ConceptSample
    revision = "first"
    device = "cpu"

    def prepare(self, samples):
        return prepare_each(self.bind, samples)

    def bind(self, sample):
        sample.image()
        return {name: self.nothing(question) for name, question in sample.questions().items()}

    def nothing(self, question):
        logits = [torch.zeros(2, len(names), 4) for names in (question.players, question.background)]
        return ConceptLogits(question.players, question.background, *logits)


def job(tmp_path, **changes):
    benchmark = {"name": "concepts", "_target_": "metagame.benchmarks.concepts.Concepts", **arguments(**changes)}
    cfg = segmentation_config(tmp_path / "out", {})
    cfg.benchmark = benchmark
    cfg.model = {"name": "looking", "_target_": f"{__name__}.Looking"}
    return cfg


def test_a_job_keeps_the_maps_of_every_question(tmp_path):
    cfg = job(tmp_path, image=saved(tmp_path / "street.png"))
    assert run_job(cfg).n_done == 1
    store = RecordStore(job_folder(cfg))
    records = {record.variant: record for record in store.read().values()}
    for variant in ("meta_concept_attention", "concept_attention"):
        found = unpack(records[variant], store.load_arrays(records[variant]))
        assert list(found) == ["car, dog", "car, dog, bike", ALL]
        assert found["car, dog"].players == ("car", "dog")
        assert found["car, dog"].attribution.shape == ((2 + 2) * 4,)
        assert found[ALL].targets == (*PLAYERS, "sky", "grass")


def test_a_job_on_a_missing_image_says_so(tmp_path):
    cfg = job(tmp_path, image=str(tmp_path / "absent.png"))
    outcome = run_job(cfg)
    message = f"image {tmp_path / 'absent.png'} does not exist: give the path of an image file."
    assert (outcome.n_failed, outcome.errors) == (1, (message,))
