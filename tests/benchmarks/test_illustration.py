from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metagame.benchmarks.illustration import CAPTION, Illustration
from metagame.digests import file_digest
from metagame.errors import UserError
from metagame.images import square
from metagame.jobs.fingerprint import files_digest
from metagame.models.vision_language import RetokenizedPlayers, Sample, TokenPlayers
from tests.conftest import unchecked
from tests.tiny.segmentation import pixels
from tests.tiny.vision_language import build, prepare_one


def illustration(image, caption, parts=(), side=448, more=(), absent="dropped"):
    """The benchmark of one example, and ``more``."""
    return Illustration([{"image": image, "caption": caption, "parts": parts}, *more], side=side, absent=absent)


def id_of(image, caption):
    """What the sample of an image file with this caption is called."""
    return f"{Path(image).name} ({file_digest(Path(image))[:8]}): {caption}"


class Words:
    """A tokenizer of words; ``ing`` is a token of its own."""

    context = 20
    pad_id = 0

    def __init__(self):
        self.names = []

    def split(self, text):
        pieces = text.lower().replace("ing", " ing").split()
        self.names += [piece for piece in pieces if piece not in self.names]
        return [(self.names.index(piece), False) for piece in pieces]

    def encode(self, text):
        return tuple(number for number, _ in self.split(text))

    def decode(self, ids):
        return " ".join(self.names[number] for number in ids)


def saved(path, height, width):
    Image.fromarray(pixels(height, width)).save(path)
    return str(path)


@pytest.fixture
def picture(tmp_path):
    return saved(tmp_path / "picture.png", 64, 64)


@pytest.fixture
def wide_picture(tmp_path):
    return saved(tmp_path / "wide.png", 40, 90)


def only(illustration):
    (sample,) = illustration.samples()
    return sample


def labels(sample):
    return {name: each.labels for name, each in sample.texts(Words()).items()}


NO_TEXTS = ("", " \n", None, 7, ["a", "dog"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *(({"caption": text}, "benchmark.caption=.* must be a text") for text in NO_TEXTS),
        *(({"more": [{"caption": text}]}, "benchmark.caption=.* must be a text") for text in NO_TEXTS),
        *(({"parts": parts}, "benchmark.parts=.* must be a list of texts") for parts in ("dog", [7])),
        ({"more": [{"caption": "a dog", "parts": ["dog"]}]}, "two of benchmark.examples have the same image and"),
        ({"side": 1}, "benchmark.side=1 must be"),
        ({"absent": "masked"}, "benchmark.absent='masked' must be 'retokenized' or 'dropped'"),
    ],
)
def test_an_example_that_cannot_be_is_refused(picture, changes, reason):
    more = [{"image": picture, **each} for each in changes.get("more", ())]
    with unchecked(), pytest.raises(UserError, match=reason):
        illustration(picture, **{"caption": "a dog"} | changes | {"more": more})


def test_an_absent_image_is_among_the_files_and_refused_when_it_is_opened_and_a_folder_is_no_image(tmp_path):
    sample = only(illustration(str(tmp_path / "absent.png"), "a dog"))
    assert list(sample.files()) == [tmp_path / "absent.png"]
    with pytest.raises(UserError, match=r"absent\.png does not exist: give the path of an image file\."):
        sample.image()
    with pytest.raises(UserError, match="cannot be decoded"):
        only(illustration(str(tmp_path), "a dog")).image()


def test_an_own_image_and_caption_stand_in_place_of_all_examples(picture, wide_picture):
    examples = [{"image": picture, "caption": "a dog", "parts": ["dog"]}, {"image": picture, "caption": "a cat"}]
    sample = only(Illustration(examples, image=wide_picture, caption="a hot dog"))
    assert sample.id == id_of(wide_picture, "a hot dog")
    assert list(labels(sample)) == [CAPTION, "part: dog"]
    assert only(Illustration(examples, caption="a bird")).id == id_of(picture, "a bird")
    assert list(labels(only(Illustration(examples, parts=["a"])))) == [CAPTION, "part: a"]


def test_another_picture_in_the_same_place_is_another_sample_with_other_files(picture, wide_picture):
    before = only(illustration(picture, "a dog"))
    assert list(before.files()) == [Path(picture)]
    assert list(illustration(picture, "a dog").files()) == []
    digest = files_digest(before.files())
    Path(picture).write_bytes(Path(wide_picture).read_bytes())
    assert only(illustration(picture, "a dog")).id != before.id
    assert files_digest(before.files()) != digest


def test_a_photograph_is_shown_as_its_camera_was_held_and_cut_to_a_square(wide_picture, tmp_path):
    path, exif = str(tmp_path / "turned.png"), Image.Exif()
    exif[0x0112] = 6
    with Image.open(wide_picture) as image:
        image.save(path, exif=exif)
        upright = image.rotate(-90, expand=True)
    found = only(illustration(path, "a dog", side=40)).image()
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(square(upright, 40)))


def test_a_sample_is_an_image_with_its_caption_and_nothing_to_score(picture):
    benchmark = illustration(picture, "a dog", ["dog"], side=64)
    sample = only(benchmark)
    assert isinstance(sample, Sample)
    assert (sample.id, sample.caption, sample.description()) == (id_of(picture, "a dog"), "a dog", "a dog")
    with Image.open(picture) as stored:
        assert np.array_equal(np.asarray(sample.image()), np.asarray(stored))
    assert benchmark.score(sample, {}, {}) == {}


@pytest.mark.parametrize(("absent", "kind"), [("dropped", TokenPlayers), ("retokenized", RetokenizedPlayers)])
def test_players_are_the_tokens_of_the_caption_and_of_its_parts_which_are_absent_as_asked(picture, absent, kind):
    sample = only(illustration(picture, "a dog eating a hot dog", ["hot dog", "eating"], absent=absent))
    assert labels(sample) == {
        CAPTION: ("a", "dog", "eat", "ing", "a", "hot", "dog"),
        "part: hot dog": ("hot", "dog"),
        "part: eating": ("eat", "ing"),
    }
    assert {type(each) for each in sample.texts(Words()).values()} == {kind}


def test_an_image_that_is_not_cut_first_goes_to_the_processor_whole_and_is_kept_as_the_model_sees_it(
    wide_picture, picture
):
    sample = only(illustration(wide_picture, "one two", side=None))
    assert sample.image().size == (90, 40)
    model = build("clip", torch.float32).model
    bound = prepare_one(model, sample)[CAPTION]
    assert torch.equal(bound.image.pixels, model.process(sample.image()))
    seen = np.asarray(square(sample.image(), 32), float)
    assert bound.picture.shape == (32, 32, 3)
    assert np.abs(bound.picture - seen).max() <= 1
    assert prepare_one(model, only(illustration(picture, "one two", side=None)))[CAPTION].picture is None
    stretching = build("siglip2", torch.float32).model
    stretched = sample.image().resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(prepare_one(stretching, sample)[CAPTION].picture - np.asarray(stretched, float)).max() <= 1


@pytest.mark.parametrize(
    ("caption", "parts", "kept"),
    [
        ("a dog", ["cat", "a cat", "do", "dog,", "dog"], ["dog"]),
        ("A black Dog", ["dog black", "black", "dog black"], ["dog black", "black"]),
        ("a caption", ["", "caption", "  ", "\n"], ["caption"]),
    ],
    ids=["other words", "in any order and case and once", "empty, and the name of the caption"],
)
def test_parts_are_words_of_the_caption_and_others_are_dropped_without_a_word(picture, caplog, caption, parts, kept):
    with caplog.at_level("INFO"):
        names = list(labels(only(illustration(picture, caption, parts))))
    assert names == [CAPTION, *(f"part: {each}" for each in kept)]
    assert caplog.text == ""


def test_further_examples_are_further_samples_that_differ_in_the_picture_or_the_caption(picture, wide_picture):
    more = [{"image": wide_picture, "caption": "a dog", "parts": ["dog"]}, {"image": picture, "caption": "a cat"}]
    samples = illustration(picture, "a dog", side=32, more=more).samples()
    expected = [(picture, "a dog"), (wide_picture, "a dog"), (picture, "a cat")]
    assert [sample.id for sample in samples] == [id_of(*each) for each in expected]
    assert samples[1].image().size == (32, 32)
    assert list(labels(samples[1])) == [CAPTION, "part: dog"]
