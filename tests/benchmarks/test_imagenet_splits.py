"""Which of ImageNet's files are taken, and what their labels are, in the layouts in which people have them."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from metagame.benchmarks.imagenet import N_CLASSES, SOLUTION, ImageNet
from metagame.errors import UserError

WORDNET = [f"n{number:08}" for number in range(100, 100 + N_CLASSES)]


def encoded(red):
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_table(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [{"bytes": encoded(red)}], "label": [7]})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)


def red_of(root):
    return ImageNet(str(root)).image(7, 0).getpixel((0, 0))[0]


@pytest.mark.parametrize(
    ("others", "validation"),
    [
        (["default/train/0000.parquet", "default/test/0000.parquet"], "default/validation/0000.parquet"),
        (["data/train-00000-of-00001.parquet"], "data/val-00000-of-00001.parquet"),
        (["train/data-00000-of-00001.arrow"], "validation/data-00000-of-00001.arrow"),
        (["imagenet-1k-train.arrow"], "imagenet-1k-validation.arrow"),
    ],
)
def test_images_of_the_validation_split_are_taken(tmp_path, others, validation):
    for other in others:
        write_table(tmp_path / other, 1)
    write_table(tmp_path / validation, 200)
    assert red_of(tmp_path) == 200


@pytest.mark.parametrize("names", [["train/0000.parquet", "test/0000.parquet"], ["data/train-0.parquet"]])
def test_images_of_other_splits_are_refused(tmp_path, names):
    for name in names:
        write_table(tmp_path / name, 1)
    with pytest.raises(UserError, match=r"has images of .*only: fetch those of the validation split"):
        red_of(tmp_path)


def test_a_split_that_the_library_noted_counts(tmp_path):
    write_table(tmp_path / "a/data-00000-of-00001.arrow", 1)
    (tmp_path / "a/state.json").write_text(json.dumps({"_split": "train"}))
    write_table(tmp_path / "b/data-00000-of-00001.arrow", 200)
    (tmp_path / "b/state.json").write_text(json.dumps({"_split": "validation"}))
    assert red_of(tmp_path) == 200


def test_files_that_name_no_split_are_told(tmp_path, caplog):
    write_table(tmp_path / "images.parquet", 3)
    assert red_of(tmp_path) == 3
    assert "do not say which split they belong to" in caplog.text


@pytest.fixture
def kaggle(tmp_path):
    """Kaggle's archive with an image of each class, in an order that is not that of the classes."""
    folder = tmp_path / "ILSVRC/Data/CLS-LOC/val"
    folder.mkdir(parents=True)
    lines = ["ImageId,PredictionString"]
    for number in range(N_CLASSES):
        name, label = f"ILSVRC2012_val_{number + 1:08}", (number * 7) % N_CLASSES
        (folder / f"{name}.JPEG").write_bytes(encoded(label % 256))
        lines.append(f"{name},{WORDNET[label]} 1 2 3 4 {WORDNET[0]} 1 2 3 4")
    (tmp_path / SOLUTION).write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("inside", ["", "ILSVRC/Data/CLS-LOC/val"])
def test_kaggles_archive_has_its_labels(kaggle, inside):
    images = ImageNet(str(kaggle / inside))
    assert [images.image(label, 0).getpixel((0, 0))[0] for label in (0, 5, 999)] == [0, 5, 999 % 256]


def test_file_names_may_carry_the_label(kaggle):
    lines = (kaggle / SOLUTION).read_text().splitlines()[1:]
    folder = kaggle / "ILSVRC/Data/CLS-LOC/val"
    for line in lines:
        name, label = line.split(",")[0], line.split(",")[1].split()[0]
        (folder / f"{name}.JPEG").rename(folder / f"{name}_{label}.JPEG")
    (kaggle / SOLUTION).unlink()
    assert ImageNet(str(folder)).image(5, 0).getpixel((0, 0))[0] == 5


@pytest.mark.parametrize("content", ["ImageId\nx", "ImageId,PredictionString\nILSVRC2012_val_00000001,"])
def test_a_broken_file_of_labels_is_named(kaggle, content):
    (kaggle / SOLUTION).write_text(content)
    with pytest.raises(UserError, match=rf"{SOLUTION} does not have ImageId and PredictionString"):
        ImageNet(str(kaggle)).image(0, 0)


def test_a_set_that_lacks_classes_is_refused(kaggle):
    lines = (kaggle / SOLUTION).read_text().splitlines()
    (kaggle / SOLUTION).write_text("\n".join(lines[:500]))
    with pytest.raises(UserError, match=r"of 1000 images .* 499 have a WordNet id, of 499 classes"):
        ImageNet(str(kaggle)).image(0, 0)


def test_class_folders_of_the_training_set_are_refused(tmp_path):
    for wordnet in WORDNET:
        (tmp_path / wordnet).mkdir()
    for number in range(51):
        (tmp_path / WORDNET[7] / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match="has 51 images, but the validation set has 50 of each class"):
        ImageNet(str(tmp_path)).image(7, 0)
