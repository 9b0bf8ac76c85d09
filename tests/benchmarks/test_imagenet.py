from __future__ import annotations

import io
import json
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat

from metagame.benchmarks import imagenet
from metagame.benchmarks.imagenet import SOLUTION, TRUTH, ImageNet
from metagame.benchmarks.pointing_game import PreparedScenes
from metagame.errors import UserError
from scripts import prepare_pointing_game
from scripts.prepare_pointing_game import prepare

WORDNET = ("n01440764", "n01882714", "n02691156", "n02782093", "n03028079")
"""WordNet ids of labels 0 to 4: a label is the place among the sorted ids."""
KIT = ("n02782093", "n01440764", "n03028079", "n01882714", "n02691156")
"""The same classes in the order of the development kit."""
LABELS = (3, 0, 3, 1, 4, 2, 0, 3, 1, 2, 4, 0)
"""Labels of the images 293, 294, ... in file order."""
NUMBERS = range(293, 293 + len(LABELS))
KIT_NUMBERS = [KIT.index(WORDNET[label]) + 1 for label in LABELS]
K_OF_EACH = [(label, k) for label in range(5) for k in range(LABELS.count(label))]
PARTS = (range(7), range(7, len(LABELS)))
"""Rows of the files of a table."""
KAGGLES = "ILSVRC/Data/CLS-LOC/val"


@pytest.fixture(autouse=True)
def five_classes(monkeypatch):
    monkeypatch.setattr(imagenet, "N_CLASSES", len(WORDNET))


def encoded(number):
    """A picture of one colour, whose red tells its number."""
    file = io.BytesIO()
    Image.new("RGB", (12, 9), (number % 256, 40, 200)).save(file, "PNG")
    return file.getvalue()


def stem(number):
    return f"ILSVRC2012_val_{number:08d}"


def number_of(label, k):
    """The number of the k-th image of a class in file order."""
    return [number for number, each in zip(NUMBERS, LABELS, strict=True) if each == label][k]


def red_of(root, label=0, k=0):
    return ImageNet(str(root)).image(label, k).getpixel((0, 0))[0]


def write_images(root, place="{stem}.JPEG"):
    for number, label in reversed(list(zip(NUMBERS, LABELS, strict=True))):
        path = root / place.format(stem=stem(number), wordnet=WORDNET[label])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return root


def class_folders(root):
    return write_images(root, "{wordnet}/{stem}.JPEG")


def class_folders_among_others(root):
    (class_folders(root) / "n1").mkdir()
    for place in (root, root / WORDNET[4]):
        (place / "a.txt").touch()
    return root


def write_meta(folder):
    """The kit's ``meta.mat``: a struct array of all synsets, those with images first in the kit's order."""
    leaves = [(number + 1, wordnet) for number, wordnet in enumerate(KIT)]
    internal = [(1001, "n00001740"), (1002, "n04524313"), (1003, "n09999999")]
    # inner nodes stand among the others, so that a row's place is not its id
    rows = [internal[0], *leaves[::-1], *internal[1:]]
    synsets = np.zeros((len(rows), 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, (number, wordnet) in enumerate(rows):
        synsets[row, 0] = np.array([[float(number)]]), wordnet, f"words, of {wordnet}"
    savemat(folder / "meta.mat", {"synsets": synsets})


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_ids(folder):
    write_lines(folder / "ILSVRC2012_ids.txt", KIT)


def flat(root, numbers=KIT_NUMBERS, explain=write_meta, kit=None):
    """All images in one folder; their ground truth and what explains it in a folder of the kit, or there too."""
    write_images(root)
    (kit or root).mkdir(parents=True, exist_ok=True)
    write_lines((kit or root) / TRUTH, numbers)
    explain(kit or root)
    return root


def kaggle(root):
    write_images(root, KAGGLES + "/{stem}.JPEG")
    lines = [f"{stem(n)},{WORDNET[label]} 1 2 {WORDNET[0]} 1" for n, label in zip(NUMBERS, LABELS, strict=True)]
    write_lines(root / SOLUTION, ["ImageId,PredictionString", *lines])
    return root


def columns(part):
    """Images and labels of the files and rows ``part``, as the hub stores them."""
    images = [{"bytes": encoded(NUMBERS[row]), "path": f"{stem(NUMBERS[row])}.JPEG"} for row in part]
    return pa.table({"image": images, "label": pa.array([LABELS[row] for row in part], pa.int64())})


def write_table(path, table, streamed=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    else:
        with (pa.ipc.new_stream if streamed else pa.ipc.new_file)(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)


def tables(root, suffix="parquet", streamed=True):
    for number, part in enumerate(PARTS):
        write_table(root / "data" / f"validation-{number:05d}-of-00002.{suffix}", columns(part), streamed)
    return root


LAYOUTS = {
    "class folders": class_folders_among_others,
    "flat, meta.mat": flat,
    "flat, kit beside": lambda root: flat(root / "val", kit=root / "ILSVRC2012_devkit_t12" / "data"),
    "flat, ids": lambda root: flat(root, explain=write_ids),
    "flat, labels from 0": lambda root: flat(root, LABELS, explain=lambda _: None),
    "Kaggle": kaggle,
    "Kaggle, inside": lambda root: kaggle(root) / KAGGLES,
    "ids in names": lambda root: write_images(root, "{stem}_{wordnet}.JPEG"),
    "parquet": tables,
    "streamed arrow": lambda root: tables(root, "arrow"),
    "random-access arrow": lambda root: tables(root, "arrow", streamed=False),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def stored(request, tmp_path_factory):
    return ImageNet(str(LAYOUTS[request.param](tmp_path_factory.mktemp("data") / "imagenet")))


def test_every_layout_gives_the_same_image_for_the_same_label_and_place_in_any_order_and_names_its_file(stored):
    for label, k in [*K_OF_EACH, *reversed(K_OF_EACH)]:
        image, (path,), number = stored.image(label, k), stored.files(label, k), number_of(label, k)
        assert (image.mode, image.size, image.getpixel((0, 0))[0]) == ("RGB", (12, 9), number % 256)
        (part,) = [place for place, rows in enumerate(PARTS) if number - NUMBERS[0] in rows]
        assert path.is_file()
        assert stem(number) in path.name if path.suffix == ".JPEG" else f"-{part:05d}-of-" in path.name


@pytest.mark.parametrize(
    ("label", "k", "reason"),
    [
        (3, 3, "class 3 has 3 images under .*: image 3 is missing"),
        (3, -1, "class 3 has 3 images under .*: image -1 is missing"),
        (-1, 0, "class -1 is not in ImageNet-1k: give labels 0 to 4"),
        (5, 0, "class 5 is not in ImageNet-1k: give labels 0 to 4"),
    ],
)
def test_every_layout_refuses_an_image_that_is_not_there_and_names_no_file_of_it(stored, label, k, reason):
    assert list(stored.files(label, k)) == []
    with pytest.raises(UserError, match=reason):
        stored.image(label, k)


def one(number):
    return pa.table({"image": [{"bytes": encoded(number), "path": "x.JPEG"}], "label": [0]})


@pytest.mark.parametrize(
    ("others", "validation"),
    [
        (["default/train/0000.parquet", "default/test/0000.parquet"], "default/validation/0000.parquet"),
        (["data/train-00000-of-00001.parquet"], "data/val-00000-of-00001.parquet"),
        (["train/data-00000-of-00001.arrow"], "validation/data-00000-of-00001.arrow"),
        (["imagenet-1k-train.arrow"], "imagenet-1k-validation.arrow"),
    ],
)
def test_images_of_the_validation_split_alone_are_taken(tmp_path, others, validation):
    for other in others:
        write_table(tmp_path / other, one(1))
    with pytest.raises(UserError, match=r"has images of .*only: fetch those of the validation split"):
        red_of(tmp_path)
    write_table(tmp_path / validation, one(200))
    assert red_of(tmp_path) == 200


def test_a_split_that_the_library_noted_counts_and_files_that_name_none_are_told(tmp_path, caplog):
    for folder, split, number in (("a", "train", 1), ("b", "validation", 200)):
        write_table(tmp_path / folder / "data-00000-of-00001.arrow", one(number))
        (tmp_path / folder / "state.json").write_text(json.dumps({"_split": split}))
    assert red_of(tmp_path) == 200
    assert caplog.text == ""
    write_table(tmp_path / "c/images.parquet", one(3))
    assert red_of(tmp_path / "c") == 3
    assert "do not say which split they belong to" in caplog.text


def without(layout, file):
    """The layout without a file."""

    def damaged(root):
        (layout(root) / file).unlink()
        return root

    return damaged


def with_content(layout, file, content):
    def damaged(root):
        (layout(root) / file).write_bytes(content)
        return root

    return damaged


def four_class_folders(root):
    (class_folders(root) / WORDNET[2]).rename(root.parent / "elsewhere")
    return root


def training_set(root):
    class_folders(root)
    for number in range(50):
        (root / WORDNET[0] / f"{number}.png").touch()
    return root


def table(**content):
    def written(root):
        write_table(root / "validation-00000-of-00001.parquet", pa.table(content))
        return root

    return written


def truth(*numbers):
    return lambda root: flat(root, numbers)


BROKEN_TABLE, PART = "has no readable column 'label': fetch the file again", "data/validation-00001-of-00002"
IMAGES = "validation-00000-of-00001.parquet"
REFUSED = {
    "nothing": (lambda root: root, "contains no ImageNet-1k validation set: put its 5 class folders"),
    "an empty folder": (lambda root: root.parent, "contains no ImageNet-1k validation set: put its 5 class folders"),
    "too few class folders": (four_class_folders, "has 4 class folders, but all 5 are needed"),
    "the training set": (training_set, "has 53 images, but the validation set has 50 of each class"),
    "no ground truth": (without(flat, TRUTH), f"has no {TRUTH} in it or above it"),
    "too few lines": (truth(*[1] * 11), f"{TRUTH} has 11 lines for 12 images"),
    "too many lines": (truth(*[1] * 13), f"{TRUTH} has 13 lines for 12 images"),
    "no lines": (truth(), TRUTH),
    "no numbers": (truth(*WORDNET), "does not have a number per line"),
    "a number that the kit has not": (truth(*KIT_NUMBERS[:-1], 6), TRUTH),
    "no kit": (without(flat, "meta.mat"), "put the kit's meta.mat beside it"),
    "a broken kit": (with_content(flat, "meta.mat", b"no MATLAB file" * 20), "meta.mat"),
    "Kaggle, one column": (with_content(kaggle, SOLUTION, b"ImageId\nx"), "does not have ImageId and PredictionString"),
    "Kaggle, no label": (
        with_content(kaggle, SOLUTION, f"ImageId,PredictionString\n{stem(293)},".encode()),
        f"{SOLUTION} does not have ImageId and PredictionString",
    ),
    "Kaggle, one image": (
        with_content(kaggle, SOLUTION, f"ImageId,PredictionString\n{stem(293)},{WORDNET[0]} 1".encode()),
        "of 12 images .* 1 have a WordNet id, of 1 classes",
    ),
    "a table without content": (with_content(tables, f"{PART}.parquet", b""), BROKEN_TABLE),
    "a broken table": (with_content(tables, f"{PART}.parquet", b"PAR1 but nothing else PAR1"), BROKEN_TABLE),
    "a broken arrow table": (with_content(tables, f"{PART}.arrow", b"x" * 500), BROKEN_TABLE),
    "no labels": (table(image=[{"bytes": encoded(1)}]), IMAGES),
    "no images": (table(picture=[1], label=[0]), IMAGES),
    "no image": (table(image=[None], label=[0]), IMAGES),
    "numbers for images": (table(image=[7], label=[0]), IMAGES),
    "an image without bytes": (table(image=[{"bytes": None, "path": "x.JPEG"}], label=[0]), IMAGES),
    "a path for an image": (table(image=[{"path": "x.JPEG"}], label=[0]), IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_no_validation_set_is_refused_in_a_sentence_that_says_what_is_off(tmp_path, case):
    write, reason = REFUSED[case]
    with pytest.raises(UserError, match=reason) as caught:
        red_of(write(tmp_path / "imagenet"))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def broken_table(root):
    images = columns(range(len(LABELS))).to_pydict()
    images["image"][1]["bytes"] = encoded(1)[:50]
    return table(**images)(root)


BROKEN_IMAGES = {
    "class folders": with_content(class_folders, f"{WORDNET[0]}/{stem(number_of(0, 0))}.JPEG", encoded(1)[:50]),
    "parquet": broken_table,
}


@pytest.mark.parametrize("layout", BROKEN_IMAGES)
def test_a_broken_image_is_refused_and_the_others_are_not(tmp_path, layout):
    root = BROKEN_IMAGES[layout](tmp_path / "imagenet")
    with pytest.raises(UserError, match="cannot be decoded: replace the file"):
        red_of(root, 0, 0)
    assert red_of(root, 0, 1) == number_of(0, 1) % 256


GAMES = ("a-b-c-d", "b-c-d-e")


@pytest.fixture
def protocol(monkeypatch, tmp_path):
    """The script's protocol on the five classes of these tests."""
    (tmp_path / "classes").mkdir()
    OmegaConf.save(dict(zip("abcde", (3, 0, 1, 2, 4), strict=True)), tmp_path / "classes/paper.yaml")
    OmegaConf.save({"games": list(GAMES)}, tmp_path / "pointing_game.yaml")
    monkeypatch.setattr(prepare_pointing_game, "CONFIGS", tmp_path)


def grids(out):
    return sorted(path.relative_to(out).with_suffix("").as_posix() for path in out.glob("*/*/*"))


def test_the_script_writes_the_grids_of_all_games_in_reading_order_as_scenes_of_the_game(tmp_path, protocol):
    out = tmp_path / "out"
    assert prepare(str(class_folders(tmp_path / "imagenet")), out, 2) == []
    assert grids(out) == [f"jpeg/{game}/0{k}" for game in GAMES for k in range(2)]
    for (game, labels), k in product(zip(GAMES, ((3, 0, 1, 2), (0, 1, 2, 4)), strict=True), range(2)):
        with Image.open(out / "jpeg" / game / f"{k:02d}.png") as grid:
            assert (grid.format, grid.mode, grid.size) == ("PNG", "RGB", (448, 448))
            reds = [grid.getpixel((x, y))[0] for y in (112, 336) for x in (112, 336)]
            assert reds == pytest.approx([number_of(label, k) % 256 for label in labels], abs=4)
            scene = PreparedScenes(str(out), "jpeg").image(game, labels, k)
            assert np.array_equal(np.asarray(scene), np.asarray(grid))


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["prepare", *map(str, arguments)])
    prepare_pointing_game.main()


def test_the_script_ends_with_what_it_could_not_make_makes_the_others_and_keeps_what_there_is(
    tmp_path, protocol, monkeypatch
):
    root, out = class_folders(tmp_path / "imagenet"), tmp_path / "out"
    broken = root / WORDNET[3] / f"{stem(number_of(3, 0))}.JPEG"
    broken.write_bytes(b"no image")
    with pytest.raises(SystemExit, match=f"^a-b-c-d/0: image {broken} cannot be decoded.*[.]$"):
        command(monkeypatch, "--imagenet", root, "--out", out, "--images", 2)
    assert grids(out) == ["jpeg/a-b-c-d/01", "jpeg/b-c-d-e/00", "jpeg/b-c-d-e/01"]
    kept = out / "jpeg/a-b-c-d/01.png"
    kept.write_bytes(b"mine")
    broken.write_bytes(encoded(1))
    command(monkeypatch, "--imagenet", root, "--out", out, "--images", 2)
    command(monkeypatch, "--imagenet", root, "--out", out, "--images", 1, "--encoding", "lossless")
    assert len(grids(out)) == 4 + 2
    assert kept.read_bytes() == b"mine"
    with pytest.raises(SystemExit, match="contains no ImageNet-1k validation set"):
        command(monkeypatch, "--imagenet", tmp_path / "classes", "--out", out)


def test_a_scene_or_folder_of_scenes_that_was_not_made_is_refused_with_the_command_that_makes_it(tmp_path):
    script = r"make .* with .python -m scripts\.prepare_pointing_game"
    (tmp_path / "jpeg").mkdir()
    with pytest.raises(UserError, match=rf"a-b-c-d/07\.png is missing: {script}"):
        PreparedScenes(str(tmp_path), "jpeg").image("a-b-c-d", (0, 1, 2, 3), 7)
    root = str(tmp_path / "absent")
    with pytest.raises(UserError, match=f"does not exist: {script} --imagenet FOLDER --out {root} --encoding lossless"):
        PreparedScenes(root, "lossless")
