"""Names of WordNet ids, from a file of WordNet's format and a tokenizer of few words."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from metagame.benchmarks.imagenet_seg import ImageNetSeg
from metagame.errors import UserError
from metagame.models.concepts import load_t5_tokenizer
from scripts import name_wordnet_labels as script
from scripts.name_wordnet_labels import Synset, find_name, read_synsets
from scripts.train_diffusion import build_tokenizers
from tests.conftest import unchecked
from tests.tiny.segmentation import write_matlab

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by\n  29 @ | 00000000 n\n"
DATA = (
    # twelve words, c in hexadecimal, and pointers of several kinds
    "02084071 05 n 0c dog 0 domestic_dog 0 Canis_familiaris 0 pooch 0 hound 1 cur 0 mutt 0 mongrel 0 tyke 0 bow-wow 0"
    " doggie 0 Sea 0 005 @ 02083346 n 0000 @ 01317541 n 0000 #m 02083863 n 0000 ~ 01322604 n 0000 %p 02158846 n 0000"
    ' | a member of the genus Canis (probably 2 @ 3); "the dog barked | all night"',
    "02083346 05 n 02 canine 0 canid 0 001 @ 02075296 n 0000 | any of various fissiped mammals",
    "02075296 05 n 01 carnivore 0 001 @ 01886756 n 0000 | a terrestrial or aquatic flesh-eating mammal",
    "01886756 05 n 01 Forest 0 000 | eutherian",
    "01317541 05 n 02 domestic_animal 0 three 0 001 @ 00015388 n 0000 | any of various animals",
    "00015388 03 n 02 animal 0 one 0 000 | a living organism",
    "09411430 15 n 02 North_Sea 0 four 0 001 @i 09376198 n 0000 | an arm of the Atlantic",
    "09376198 17 n 01 five 0 001 + 01317541 n 0101 | a large body of water",
    "00021939 03 n 02 nine_two 0 eight 0 003 ~ 09376198 n 0000 ;c 06000000 n 0000 -c 07000000 n 0000 | not above",
    "00033319 03 n 01 object 0 002 ~ 09376198 n 0000 ~i 00015388 n 0000 | only below",
)
DOG, CANINE, CARNIVORE, TOP, DOMESTIC, ANIMAL, NORTH_SEA, WATER, TWO_WORDS, OBJECT = (
    f"n{line.split()[0]}" for line in DATA
)


@pytest.fixture
def wordnet(tmp_path):
    path = tmp_path / "data.noun"
    path.write_text(LICENCE + "".join(f"{line}  \n" for line in DATA), encoding="utf-8")
    return path


@pytest.fixture
def synsets(wordnet):
    return read_synsets(wordnet)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a pipeline that has a tokenizer only: of digits, night, sea, forest, earth and few more."""
    folder = tmp_path_factory.mktemp("pipeline")
    build_tokenizers(folder / "files")["tokenizer_2"].save_pretrained(folder / "tokenizer_2")
    return folder


@pytest.fixture(scope="module")
def tokenizer(pipeline):
    return load_t5_tokenizer(str(pipeline), None)


def test_a_line_has_its_words_and_what_is_above_it(synsets):
    assert list(synsets) == [DOG, CANINE, CARNIVORE, TOP, DOMESTIC, ANIMAL, NORTH_SEA, WATER, TWO_WORDS, OBJECT]
    words = "dog,domestic dog,Canis familiaris,pooch,hound,cur,mutt,mongrel,tyke,bow-wow,doggie,Sea"
    assert synsets[DOG] == Synset(tuple(words.split(",")), (CANINE, DOMESTIC))
    assert synsets[CANINE] == Synset(("canine", "canid"), (CARNIVORE,))
    assert synsets[TOP] == Synset(("Forest",), ())
    assert synsets[NORTH_SEA] == Synset(("North Sea", "four"), (WATER,))  # of its kind, as an instance
    assert [synsets[key].hypernyms for key in (WATER, TWO_WORDS, OBJECT)] == [()] * 3  # pointers of other kinds


@pytest.mark.parametrize(
    ("key", "levels", "name"),
    [
        (DOG, 0, "Sea"),  # any of its own words comes before those above
        (NORTH_SEA, 0, "four"),
        (CANINE, 1, None),
        (CANINE, 2, "Forest"),
        (TWO_WORDS, 0, "eight"),  # nine two is two tokens
        (OBJECT, 9, None),
        ("n99999999", 9, None),
    ],
)
def test_the_first_word_of_one_token_is_the_name(synsets, tokenizer, key, levels, name):
    assert find_name(key, synsets, tokenizer, levels) == name


def test_of_those_above_the_nearest_names_then_the_first_and_what_is_absent_or_a_circle_is_passed_over(tokenizer):
    synsets = {
        "a": Synset(("x",), ("b", "c")), "b": Synset(("y",), ("d",)), "c": Synset(("z", "two", "one"), ()),
        "d": Synset(("three",), ()),
    }  # fmt: skip
    assert find_name("a", synsets, tokenizer, 2) == "two"
    assert find_name("a", synsets | {"b": Synset(("y", "four"), ())}, tokenizer, 2) == "four"
    assert find_name("a", synsets | {"a": Synset(("x",), ("absent", "c"))}, tokenizer, 1) == "two"
    assert find_name("a", {"a": Synset(("x",), ("a",))}, tokenizer, 50) is None


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00\x01", b"some words of another file\n", DATA[1].replace(" 02 ", " zz ").encode(),
        DATA[1].replace("001 @", "003 @").encode(), DATA[1].split(" 02075296")[0].encode(),
    ],
    ids=["binary", "words", "number of words", "fewer pointers", "cut off"],
)  # fmt: skip
def test_a_file_of_another_format_is_told(tmp_path, content):
    path = tmp_path / "data.noun"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.noun is not in the format of WordNet's data\.noun"):
        read_synsets(path)


IDS = [f"{DOG}_1005", f"{CANINE}_7", f"{DOG}_2", "n99999999_1", f"{NORTH_SEA}_3", f"{OBJECT}_5", "no id"]


@pytest.fixture
def root(tmp_path):
    """A folder with images of these ids."""
    pictures, masks = [np.zeros((4, 5, 3), np.uint8)] * len(IDS), [[np.ones((4, 5), bool)]] * len(IDS)
    write_matlab(tmp_path / "imagenet_seg" / "gtsegs_ijcv.mat", {"img": pictures, "gt": masks, "id": IDS})
    return tmp_path / "imagenet_seg"


def name_labels(monkeypatch, wordnet, root, pipeline, *more):
    """What the command line does."""
    arguments = ["--wordnet", wordnet, "--root", root, "--tokenizer", pipeline, *more]
    monkeypatch.setattr("sys.argv", ["name_wordnet_labels", *map(str, arguments)])
    script.main()


NAMES = {DOG: "Sea", NORTH_SEA: "four"}


@pytest.mark.parametrize(
    ("more", "names", "told"),
    [
        ([], NAMES | {CANINE: "Forest"}, "4 of 7 images have one of 3 names."),
        (["--levels", 1], NAMES, "3 of 7 images have one of 2 names."),
    ],
)
def test_the_command_line_writes_the_names_that_the_benchmark_reads(
    wordnet, root, pipeline, monkeypatch, capsys, more, names, told
):
    name_labels(monkeypatch, wordnet, root, pipeline, *more)
    assert json.loads((root / "names.json").read_text(encoding="utf-8")) == names
    origin, counted = capsys.readouterr().out.splitlines()
    assert "names are from WordNet, other than those of the published numbers" in origin
    assert counted.endswith(told)
    expected = [(image_id, names[image_id[:9]]) for image_id in IDS if image_id[:9] in names]
    assert [(image.id, image.name) for image in ImageNetSeg(str(root)).images()] == expected


CLASS_MAP = {"dog": "pet", "canine": "pet", "North Sea": "sea animal", "object": "thing", "five": "number"}


@pytest.mark.parametrize("content", [{"categories": CLASS_MAP}, CLASS_MAP], ids=["categories", "alone"])
def test_names_of_a_class_map_come_before_those_of_wordnet(wordnet, root, monkeypatch, capsys, content, tmp_path):
    drop_image_of_no_synset(root)
    (root / "imagenet_class_map.json").write_text(json.dumps(content))
    name_labels(monkeypatch, wordnet, root, tmp_path)  # and without a tokenizer
    names = {DOG: "pet", CANINE: "pet", NORTH_SEA: "sea animal", OBJECT: "thing"}
    assert json.loads((root / "names.json").read_text()) == names
    origin, told = capsys.readouterr().out.splitlines()
    assert origin == f"Names are those of {root / 'imagenet_class_map.json'}, as in the published numbers."
    assert told == f"{root / 'names.json'}: 6 of 7 images have one of 3 names."
    assert ImageNetSeg(str(root)).names == ("thing", "pet", "sea animal")


def drop_image_of_no_synset(root):
    """Let the one with an id that WordNet does not have be another dog."""
    with h5py.File(root / "gtsegs_ijcv.mat", "r+") as file:
        file["value/id"][3, 0] = file["value/id"][0, 0]


def class_map_of(content, every_synset_known=True):
    """What puts a class map beside the images."""

    def write(wordnet, root):
        if every_synset_known:
            drop_image_of_no_synset(root)
        (root / "imagenet_class_map.json").write_text(content if isinstance(content, str) else json.dumps(content))

    return write


def no_wordnet(wordnet, root):
    wordnet.unlink()


def cut_images(wordnet, root):
    (root / "gtsegs_ijcv.mat").write_bytes((root / "gtsegs_ijcv.mat").read_bytes()[:200])


def other_images(wordnet, root):
    with h5py.File(root / "gtsegs_ijcv.mat", "w") as file:
        file["other"] = [1]


SPOILT = [
    (
        class_map_of({"categories": {"object": "thing", "dog": "pet"}}),
        "imagenet_class_map.json has no 'canine', the class n02083346 of gtsegs_ijcv.mat",
    ),
    (class_map_of(CLASS_MAP, every_synset_known=False), "n99999999 of gtsegs_ijcv.mat is not a noun in this data.noun"),
    (class_map_of({"categories": {"dog": 3}}), "does not map lemmas of WordNet to names"),
    (class_map_of(["dog"]), "does not map lemmas of WordNet to names"),
    (class_map_of('{"categories": {"dog"'), "imagenet_class_map.json is not valid JSON, or is truncated"),
    (no_wordnet, "data.noun cannot be read: give data.noun of WordNet 3.0."),
    (cut_images, "of ImageNet-Segmentation: get it again."),
    (other_images, "has no field value/img: give gtsegs_ijcv.mat of ImageNet-Segmentation."),
    (lambda *untouched: None, "has no folder tokenizer_2"),
]


@pytest.mark.parametrize(("spoil", "sentence"), SPOILT)
def test_errors_end_with_one_sentence_and_write_nothing(wordnet, root, monkeypatch, tmp_path, spoil, sentence):
    spoil(wordnet, root)
    with unchecked(), pytest.raises(SystemExit) as error:
        name_labels(monkeypatch, wordnet, root, tmp_path)  # a pipeline without a tokenizer
    assert sentence in error.value.code
    assert "\n" not in error.value.code
    assert not (root / "names.json").exists()
