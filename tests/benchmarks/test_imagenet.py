from __future__ import annotations

import io
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat

from metagame.benchmarks import imagenet
from metagame.benchmarks.imagenet import TRUTH, ImageNet
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
K_OF_EACH = [(label, k) for label in range(5) for k in range(LABELS.count(label))]


def picture(number):
    """A picture of one colour, which tells its number, of an odd size."""
    return Image.new("RGB", (12, 9), (number % 256, 40, 200))


def jpeg(number):
    buffer = io.BytesIO()
    picture(number).save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def name(number):
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def number_of(label, k):
    """The number of the k-th image of a class in file order."""
    return [number for number, each in zip(NUMBERS, LABELS, strict=True) if each == label][k]


def same_image(image, number):
    return image.mode == "RGB" and np.abs(np.asarray(image).astype(int) - np.asarray(picture(number))).max() <= 2


def class_folders(root):
    for label, wordnet in enumerate(WORDNET):
        (root / wordnet).mkdir(parents=True)
        for number in reversed([n for n, each in zip(NUMBERS, LABELS, strict=True) if each == label]):
            (root / wordnet / name(number)).write_bytes(jpeg(number))
    return root


def write_truth(folder, numbers):
    (folder / TRUTH).write_text("".join(f"{number}\n" for number in numbers), encoding="utf-8")


def write_meta(folder):
    """The kit's ``meta.mat``: a struct array of all synsets, those with images first in the kit's order."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    leaves = [(number + 1, wordnet, 0) for number, wordnet in enumerate(KIT)]
    internal = [(1001, "n00001740", 2), (1002, "n04524313", 3), (1003, "n09999999", 1)]
    synsets = np.zeros((len(leaves) + len(internal), 1), dtype=kinds)
    # inner nodes stand among the others, so that a row's place is not its id
    for row, (number, wordnet, n_children) in enumerate([internal[0], *leaves[::-1], *internal[1:]]):
        children = np.arange(n_children, dtype=np.uint16)
        synsets[row, 0] = np.array([[float(number)]]), wordnet, f"words, of {wordnet}", float(n_children), children
    savemat(folder / "meta.mat", {"synsets": synsets})


def write_ids(folder):
    (folder / "ILSVRC2012_ids.txt").write_text("\n".join(KIT) + "\n", encoding="utf-8")


KIT_NUMBERS = [KIT.index(WORDNET[label]) + 1 for label in LABELS]


def flat(root, numbers=KIT_NUMBERS, explain=write_meta, kit=None):
    """All images in one folder; their ground truth and what explains it in a folder of the kit, or there too."""
    for folder in {root, kit or root}:
        folder.mkdir(parents=True)
    for number in reversed(NUMBERS):
        (root / name(number)).write_bytes(jpeg(number))
    write_truth(kit or root, numbers)
    explain(kit or root)
    return root


def columns(part):
    """Images and labels of the files and rows ``part``, as the hub stores them."""
    return pa.table(
        {
            "image": [{"bytes": jpeg(NUMBERS[row]), "path": name(NUMBERS[row])} for row in part],
            "label": pa.array([LABELS[row] for row in part], pa.int64()),
        }
    )


PARTS = (range(7), range(7, len(LABELS)))


def parquet(root):
    (root / "data").mkdir(parents=True)
    for number, part in enumerate(PARTS):
        path = root / "data" / f"validation-{number:05d}-of-{len(PARTS):05d}.parquet"
        pq.write_table(columns(part), path, row_group_size=3)
    return root


def arrow(root, streamed):
    root.mkdir(parents=True)
    for number, part in enumerate(PARTS):
        path = root / f"imagenet-1k-validation-{number:05d}-of-{len(PARTS):05d}.arrow"
        table = columns(part)
        writer = (pa.ipc.new_stream if streamed else pa.ipc.new_file)(path, table.schema)
        with writer:
            writer.write_table(table, max_chunksize=2)
    return root


LAYOUTS = {
    "class folders": class_folders,
    "flat, meta.mat": flat,
    "flat, kit beside": lambda root: flat(root / "val", kit=root / "ILSVRC2012_devkit_t12" / "data"),
    "flat, ids": lambda root: flat(root, explain=write_ids),
    "flat, labels from 0": lambda root: flat(root, LABELS, explain=lambda _: None),
    "parquet": parquet,
    "streamed arrow": lambda root: arrow(root, streamed=True),
    "random-access arrow": lambda root: arrow(root, streamed=False),
}


@pytest.fixture(autouse=True)
def five_classes(monkeypatch):
    monkeypatch.setattr(imagenet, "N_CLASSES", len(WORDNET))


@pytest.fixture(scope="module", params=LAYOUTS)
def stored(request, tmp_path_factory):
    return ImageNet(str(LAYOUTS[request.param](tmp_path_factory.mktemp("data") / "imagenet")))


def test_every_layout_gives_the_same_image_for_the_same_label_and_place_in_any_order(stored):
    for label, k in [*K_OF_EACH, *reversed(K_OF_EACH)]:
        assert same_image(stored.image(label, k), number_of(label, k))


def test_every_layout_names_the_file_of_an_image(stored):
    for label, k in K_OF_EACH:
        (path,) = stored.files(label, k)
        assert path.is_file()
        number = number_of(label, k)
        (part,) = [place for place, rows in enumerate(PARTS) if number - NUMBERS[0] in rows]
        assert path.name == name(number) if path.suffix == ".JPEG" else f"-{part:05d}-of-" in path.name


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


def refused(root, label=0, k=0):
    """Why an image is refused, in one line."""
    with pytest.raises(UserError) as error:
        ImageNet(str(root)).image(label, k)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_other_folders_and_files_beside_the_class_folders_and_in_them_do_not_count(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "n1").mkdir()
    for place in (tmp_path, tmp_path / WORDNET[4]):
        (place / "a.txt").write_text("", encoding="utf-8")
    assert same_image(ImageNet(str(tmp_path)).image(4, 0), number_of(4, 0))


def test_only_the_validation_files_of_a_folder_with_training_files_count(tmp_path):
    parquet(tmp_path)
    other = pa.table({"image": [{"bytes": jpeg(1), "path": "n_1.JPEG"}], "label": [3]})
    pq.write_table(other, tmp_path / "data" / "train-00000-of-00294.parquet")
    assert same_image(ImageNet(str(tmp_path)).image(3, 0), number_of(3, 0))


@pytest.mark.parametrize("place", [".", "absent"])
def test_a_folder_without_images_is_refused_with_what_to_put_there(tmp_path, place):
    with pytest.raises(UserError, match="contains no ImageNet-1k validation set: put its 5 class folders"):
        ImageNet(str(tmp_path / place))


def test_too_few_class_folders_are_refused_and_have_no_files(tmp_path):
    (class_folders(tmp_path) / WORDNET[2]).rename(tmp_path / "elsewhere")
    assert "has 4 class folders, but all 5 are needed" in refused(tmp_path)
    assert list(ImageNet(str(tmp_path)).files(0, 0)) == []


BROKEN_FLAT = {
    "no ground truth": (lambda val: (val / TRUTH).unlink(), f"has no {TRUTH} in it or above it"),
    "too few lines": (lambda val: write_truth(val, [1] * 11), f"{TRUTH} has 11 lines for 12 images"),
    "too many lines": (lambda val: write_truth(val, [1] * 13), f"{TRUTH} has 13 lines for 12 images"),
    "no lines": (lambda val: write_truth(val, []), TRUTH),
    "no numbers": (lambda val: write_truth(val, WORDNET), "does not have a number per line"),
    "a number that the kit has not": (lambda val: write_truth(val, [*KIT_NUMBERS[:-1], 6]), TRUTH),
    "no kit": (lambda val: (val / "meta.mat").unlink(), "put the kit's meta.mat beside it"),
    "a broken kit": (lambda val: (val / "meta.mat").write_bytes(b"no MATLAB file" * 20), "meta.mat"),
}


@pytest.mark.parametrize("case", BROKEN_FLAT)
def test_a_flat_folder_whose_ground_truth_cannot_be_read_is_refused(tmp_path, case):
    damage, reason = BROKEN_FLAT[case]
    damage(flat(tmp_path / "val"))
    assert reason in refused(tmp_path / "val")


def broken_class_folders(root):
    (class_folders(root) / WORDNET[0] / name(number_of(0, 0))).write_bytes(jpeg(1)[:80])
    return root


def broken_flat_folder(root):
    (flat(root) / name(number_of(0, 0))).write_bytes(jpeg(1)[:80])
    return root


def broken_parquet(root):
    root.mkdir()
    table = columns(range(len(LABELS))).to_pydict()
    table["image"][1]["bytes"] = jpeg(1)[:80]
    pq.write_table(pa.table(table), root / "validation-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("layout", [broken_class_folders, broken_flat_folder, broken_parquet])
def test_a_broken_image_is_refused_and_the_others_are_not(tmp_path, layout):
    root = layout(tmp_path / "imagenet")
    assert "cannot be decoded: replace the file" in refused(root, 0, 0)
    assert same_image(ImageNet(str(root)).image(0, 1), number_of(0, 1))


@pytest.mark.parametrize(
    ("suffix", "content"), [("parquet", b""), ("parquet", b"PAR1 but nothing else PAR1"), ("arrow", b"x" * 500)]
)
def test_a_broken_table_is_refused_by_name(tmp_path, suffix, content):
    path = parquet(tmp_path) / "data" / f"validation-00001-of-00002.{suffix}"
    path.write_bytes(content)
    assert f"{path} has no readable column 'label': fetch the file again" in refused(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        {"image": [{"bytes": jpeg(1)}]},
        {"picture": [1], "label": [0]},
        {"image": [None], "label": [0]},
        {"image": [7], "label": [0]},
        {"image": [{"bytes": None, "path": "x.JPEG"}], "label": [0]},
        {"image": [{"path": "x.JPEG"}], "label": [0]},
    ],
)
def test_a_table_without_labels_or_images_in_it_is_refused(tmp_path, table):
    pq.write_table(pa.table(table), tmp_path / "validation-00000-of-00001.parquet")
    assert "validation-00000-of-00001.parquet" in refused(tmp_path)


GAMES = ("a-b-c-d", "b-c-d-e")


@pytest.fixture
def protocol(monkeypatch, tmp_path):
    """The script's protocol on the five classes of these tests."""
    (tmp_path / "classes").mkdir()
    OmegaConf.save(dict(zip("abcde", (3, 0, 1, 2, 4), strict=True)), tmp_path / "classes/paper.yaml")
    OmegaConf.save({"games": list(GAMES)}, tmp_path / "pointing_game.yaml")
    monkeypatch.setattr(prepare_pointing_game, "CONFIGS", tmp_path)


def corners(grid):
    """The red of the middle of each quadrant, which tells the number of its image."""
    return [grid.getpixel((x, y))[0] for y in (112, 336) for x in (112, 336)]


def grids(out):
    return sorted(str(path.relative_to(out)) for path in out.glob("**/*") if path.is_file())


def test_the_script_writes_the_grids_of_all_games_in_reading_order_as_scenes_of_the_game(tmp_path, protocol):
    out = tmp_path / "out"
    assert prepare(str(class_folders(tmp_path / "imagenet")), out, 2) == []
    assert grids(out) == [f"jpeg/{game}/0{k}.png" for game in GAMES for k in range(2)]
    for (game, labels), k in product(zip(GAMES, ((3, 0, 1, 2), (0, 1, 2, 4)), strict=True), range(2)):
        with Image.open(out / "jpeg" / game / f"{k:02d}.png") as grid:
            assert (grid.format, grid.mode, grid.size) == ("PNG", "RGB", (448, 448))
            assert corners(grid) == pytest.approx([number_of(label, k) % 256 for label in labels], abs=4)
            scene = PreparedScenes(str(out), "jpeg").image(game, labels, k)
            assert np.array_equal(np.asarray(scene), np.asarray(grid))


def test_the_script_keeps_the_grids_that_there_are(tmp_path, protocol):
    out, root = tmp_path / "out", str(class_folders(tmp_path / "imagenet"))
    prepare(root, out, 1)
    kept = out / "jpeg" / GAMES[0] / "00.png"
    kept.write_bytes(b"mine")
    (out / "jpeg" / GAMES[1] / "00.png").unlink()
    assert prepare(root, out, 1) == []
    assert kept.read_bytes() == b"mine"
    assert grids(out) == [f"jpeg/{game}/00.png" for game in GAMES]


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["prepare", *map(str, arguments)])
    prepare_pointing_game.main()


def test_the_script_ends_with_what_it_could_not_make_and_makes_the_others(tmp_path, protocol, monkeypatch):
    root, out = class_folders(tmp_path / "imagenet"), tmp_path / "out"
    broken = root / WORDNET[3] / name(number_of(3, 0))
    broken.write_bytes(b"no image")
    with pytest.raises(SystemExit, match=f"^a-b-c-d/0: image {broken} cannot be decoded.*[.]$"):
        command(monkeypatch, "--imagenet", root, "--out", out, "--images", 2)
    assert grids(out) == [f"jpeg/{grid}.png" for grid in ("a-b-c-d/01", "b-c-d-e/00", "b-c-d-e/01")]
    broken.write_bytes(jpeg(number_of(3, 0)))
    command(monkeypatch, "--imagenet", root, "--out", out, "--images", 2)
    command(monkeypatch, "--imagenet", root, "--out", out, "--images", 1, "--encoding", "lossless")
    assert len(grids(out)) == 4 + 2


def test_the_script_names_each_grid_for_which_a_class_has_too_few_images(tmp_path, protocol):
    errors = prepare(str(parquet(tmp_path / "imagenet")), tmp_path / "out", 3)
    assert [error.split(":")[0] for error in errors] == ["a-b-c-d/2", "b-c-d-e/2"]


def test_the_script_says_in_a_sentence_that_the_folder_is_not_imagenet(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="contains no ImageNet-1k validation set"):
        command(monkeypatch, "--imagenet", tmp_path, "--out", tmp_path / "out")


def test_a_scene_or_folder_of_scenes_that_was_not_made_is_refused_with_the_command_that_makes_it(tmp_path):
    script = r"make .* with .python -m scripts\.prepare_pointing_game"
    (tmp_path / "jpeg").mkdir()
    with pytest.raises(UserError, match=rf"a-b-c-d/07\.png is missing: {script}"):
        PreparedScenes(str(tmp_path), "jpeg").image("a-b-c-d", (0, 1, 2, 3), 7)
    root = str(tmp_path / "absent")
    with pytest.raises(UserError, match=f"does not exist: {script} --imagenet FOLDER --out {root} --encoding lossless"):
        PreparedScenes(root, "lossless")
