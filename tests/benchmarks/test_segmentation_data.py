from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from metagame.benchmarks.coco import COCOInstances, COCOPanoptic, concept_name
from metagame.benchmarks.imagenet_seg import ImageNetSeg, wordnet_id
from metagame.benchmarks.masks import OTHER, UNLABELLED, class_indices, read_annotations, read_labels
from metagame.benchmarks.segmentation import Segmentation
from metagame.benchmarks.voc import VOC
from metagame.errors import UserError
from metagame.jobs.fingerprint import files_digest
from metagame.jobs.records import RecordStore
from metagame.jobs.run import run_job
from metagame.jobs.spec import job_folder
from tests.tiny.segmentation import (
    BACKGROUND,
    CAR,
    CAT,
    COW,
    DOG,
    NAMES,
    SCENES,
    SINGLE_SCENES,
    STRANGE,
    STUFF,
    THINGS,
    WORDNET,
    coco_id,
    coco_images,
    compressed,
    imagenet_seg_id,
    instance,
    pixels,
    refused,
    save_jpeg,
    segmentation_config,
    uncompressed,
    voc_id,
    words_tokenizer,
    write_imagenet_seg,
    write_instances,
    write_json,
    write_matlab,
    write_panoptic,
    write_segments,
    write_voc,
    write_voc_mask,
)


@dataclass(frozen=True)
class Kind:
    """A dataset on disk: how the tests write it, how it is read, and what of a scene is in it."""

    write: Callable[..., Path]
    target: type
    ids: tuple[str, ...]
    scenes: tuple[np.ndarray, ...] = SCENES
    arguments: tuple[tuple[str, object], ...] = ()
    has_unlabelled: bool = True

    def read(self, root):
        return self.target(str(root), **dict(self.arguments))

    def truth(self, labels):
        return labels if self.has_unlabelled else np.where(labels == UNLABELLED, OTHER, labels)

    def config(self, root):
        target = f"{self.target.__module__}.{self.target.__name__}"
        return {"_target_": target, "root": str(root)} | {name: list(value) for name, value in self.arguments}


PLACES = range(len(SCENES))
COCO_IDS = tuple(map(coco_id, PLACES))
SINGLE_IDS = tuple(imagenet_seg_id(number, NAMES[labels.max()]) for number, labels in enumerate(SINGLE_SCENES))
KINDS = {
    "voc": Kind(write_voc, VOC, tuple(map(voc_id, PLACES)), arguments=(("names", NAMES),)),
    "panoptic": Kind(write_panoptic, COCOPanoptic, COCO_IDS),
    "instances": Kind(write_instances, COCOInstances, COCO_IDS, has_unlabelled=False),
    "imagenet_seg": Kind(write_imagenet_seg, ImageNetSeg, SINGLE_IDS, SINGLE_SCENES, has_unlabelled=False),
}
VOC_MASK, VOC_IMAGE, VOC_LIST = (
    f"SegmentationClass/{voc_id(1)}.png", f"JPEGImages/{voc_id(1)}.jpg", "ImageSets/Segmentation/val.txt",
)  # fmt: skip
PANOPTIC_MASK, COCO_IMAGE = f"annotations/panoptic_val2017/{coco_id(1)}.png", f"val2017/{coco_id(1)}.jpg"
PANOPTIC, INSTANCES = "annotations/panoptic_val2017.json", "annotations/instances_val2017.json"
MATLAB, WORDNET_NAMES = "gtsegs_ijcv.mat", "names.json"


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def read_all(kind, root):
    """The images of the scenes, written and read."""
    return kind.read(kind.write(root)).images()


def test_every_dataset_gives_its_images_in_order_with_ids_of_their_own(kind, tmp_path):
    assert tuple(labelled.id for labelled in read_all(kind, tmp_path)) == kind.ids
    assert len(set(kind.ids)) == len(kind.scenes)


def test_every_dataset_gives_the_pictures_the_right_way_round(kind, tmp_path):
    for labelled, labels in zip(read_all(kind, tmp_path), kind.scenes, strict=True):
        found, expected = labelled.image(), pixels(*labels.shape)
        assert (found.mode, found.size) == ("RGB", labels.shape[::-1])
        assert np.abs(np.asarray(found).astype(int) - expected).max() <= (0 if kind.target is ImageNetSeg else 4)


def test_every_dataset_gives_the_class_of_each_pixel(kind, tmp_path):
    for labelled, labels in zip(read_all(kind, tmp_path), kind.scenes, strict=True):
        found = labelled.mask(NAMES)
        assert np.issubdtype(found.dtype, np.integer)
        assert np.array_equal(found, kind.truth(labels))


def test_every_dataset_gives_the_classes_of_each_image(kind, tmp_path):
    for labelled, labels in zip(read_all(kind, tmp_path), kind.scenes, strict=True):
        assert labelled.classes == {NAMES[each] for each in np.unique(labels) if each >= 0}


def test_a_mask_counts_classes_as_the_vocabulary_does(kind, tmp_path):
    labelled, labels = read_all(kind, tmp_path)[0], kind.truth(kind.scenes[0])
    backwards = NAMES[::-1]
    expected = np.where(labels >= 0, backwards.index(NAMES[labels.max()]), labels)
    assert np.array_equal(labelled.mask(backwards), expected)


@pytest.mark.parametrize("vocabulary", [("dog", "cow"), ()])
def test_a_class_outside_the_vocabulary_is_no_class(kind, tmp_path, vocabulary):
    """As the protocol of labelled images has it."""
    labelled, labels = read_all(kind, tmp_path)[0], kind.truth(kind.scenes[0])
    assert labels.max() == CAR
    assert np.array_equal(labelled.mask(vocabulary), np.where(labels >= 0, OTHER, labels))


def test_every_dataset_names_its_classes(kind, tmp_path):
    names = tuple(kind.read(kind.write(tmp_path)).names)
    assert names == (NAMES if kind.target is VOC else (*NAMES, *STRANGE))


def test_reading_says_nothing(kind, tmp_path, capsys):
    read_all(kind, tmp_path)
    assert capsys.readouterr() == ("", "")


def test_the_benchmark_finds_all_images_of_every_dataset(kind, tmp_path):
    samples = segmentation(kind, kind.write(tmp_path)).samples()
    assert tuple(sample.id for sample in samples) == kind.ids
    for sample, labels in zip(samples, kind.scenes, strict=True):
        assert sample.image().size == labels.shape[::-1]
        assert np.array_equal(sample.truth(), kind.truth(labels))


FILES = {
    "voc": ({VOC_IMAGE, VOC_MASK}, set()),
    "panoptic": ({COCO_IMAGE, PANOPTIC_MASK, PANOPTIC}, {PANOPTIC}),
    "instances": ({COCO_IMAGE, INSTANCES}, {INSTANCES}),
    "imagenet_seg": ({MATLAB}, {WORDNET_NAMES}),
}
"""Of the second image, and of all."""


@pytest.mark.parametrize("name", FILES)
def test_files_are_those_that_an_image_and_its_mask_are_read_from(tmp_path, name):
    kind = KINDS[name]
    root = kind.write(tmp_path)
    found = segmentation(kind, root)
    of_second, of_all = FILES[name]
    assert {path.relative_to(root).as_posix() for path in found.samples()[1].files()} == of_second
    assert {path.relative_to(root).as_posix() for path in found.files()} == of_all
    assert all(path.is_file() for sample in found.samples() for path in (*sample.files(), *found.files()))


def file_digests(kind, root):
    """What results depend on, by image."""
    found = segmentation(kind, root)
    return {each.id: files_digest([*found.files(), *each.files()]) for each in found.samples()}


@pytest.mark.parametrize(
    ("name", "file"), [("voc", VOC_MASK), ("voc", VOC_IMAGE), ("panoptic", PANOPTIC_MASK), ("instances", COCO_IMAGE)]
)
def test_a_replaced_mask_or_picture_is_told_apart_by_the_files_of_its_image_alone(tmp_path, name, file):
    kind = KINDS[name]
    root = kind.write(tmp_path)
    before = file_digests(kind, root)
    with Image.open(root / file) as image:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(root / file)
    after = file_digests(kind, root)
    assert [before[each] != after[each] for each in kind.ids] == [place == 1 for place in PLACES]


@pytest.mark.parametrize(
    ("name", "file"),
    [("panoptic", PANOPTIC), ("instances", INSTANCES), ("imagenet_seg", MATLAB), ("imagenet_seg", WORDNET_NAMES)],
)
def test_other_annotations_are_told_apart_by_the_files_of_every_image(tmp_path, name, file):
    kind = KINDS[name]
    root = kind.write(tmp_path)
    before = file_digests(kind, root)
    with (root / file).open("ab") as stored:
        stored.write(b" " * 600)
    after = file_digests(kind, root)
    assert all(before[each] != after[each] for each in kind.ids)


def test_files_of_an_image_that_is_not_there_are_told_of_where_it_is_read(tmp_path):
    root = write_voc(tmp_path)
    (root / VOC_MASK).unlink()
    sample = segmentation(KINDS["voc"], root).samples()[1]
    assert root / VOC_MASK in sample.files()
    with refused(f"{VOC_MASK} does not exist"):
        sample.questions()


def segmentation(kind, root):
    return Segmentation(kind.read(root), words_tokenizer(), BACKGROUND, players=["n0"], side=8)


def test_only_the_images_of_the_list_are_read(tmp_path):
    root = write_voc(tmp_path)
    (root / "ImageSets" / "Segmentation" / "trainval.txt").write_text(f"{voc_id(3)}\n{voc_id(1)}", encoding="utf-8")
    assert [each.id for each in VOC(str(root), NAMES, "trainval").images()] == [voc_id(3), voc_id(1)]


def test_a_mask_in_grey_has_the_same_labels_as_one_with_a_palette(tmp_path):
    root = write_voc(tmp_path)
    stored = np.where(SCENES[1] == UNLABELLED, 255, SCENES[1] + 1).astype(np.uint8)
    Image.fromarray(stored).save(root / VOC_MASK)
    assert np.array_equal(VOC(str(root), NAMES).images()[1].mask(NAMES), SCENES[1])


def test_a_palette_of_few_bits_has_the_same_labels(tmp_path):
    stored = np.array([[0, 1, 2], [3, 2, 0]])
    write_voc_mask(tmp_path / "x.png", stored)
    with Image.open(tmp_path / "x.png") as image:
        image.save(tmp_path / "few.png", bits=2)
    assert np.array_equal(read_labels(tmp_path / "few.png", "P"), stored)


@pytest.mark.parametrize(
    ("category", "name"),
    [
        ("car", "car"),
        ("grass-merged", "grass"),
        ("sky-other-merged", "sky"),
        ("water-other", "water"),
        ("floor-other-merged", "floor"),
        ("floor-wood", "floor-wood"),
        ("furniture-stuff", "furniture"),
        ("mother-others", "mother-others"),
        ("hair drier", "hair drier"),
    ],
)
def test_suffixes_of_panoptic_categories_are_cut_off(category, name):
    assert concept_name(category) == name


def panoptic(root, segments, kinds, shape=(11, 17), **changes):
    """A dataset of one image whose segment ids and their categories are given."""
    info = [
        {"id": key, "category_id": category, "iscrowd": int(crowd), "area": 1, "bbox": [0, 0, 1, 1]}
        for key, category, crowd in kinds
    ]
    content = {
        "images": coco_images([np.zeros(shape)]),
        "annotations": [{"segments_info": info, "file_name": f"{coco_id(0)}.png", "image_id": 139}],
        "categories": [{"id": key, "name": name, "isthing": 1} for name, key in THINGS.items()]
        + [{"id": key, "name": name, "isthing": 0} for name, key in STUFF.items()],
    } | changes
    write_json(root / PANOPTIC, content)
    write_segments(root / "annotations" / "panoptic_val2017" / f"{coco_id(0)}.png", segments)
    save_jpeg(root / "val2017" / f"{coco_id(0)}.jpg", shape)
    return COCOPanoptic(str(root))


@pytest.mark.parametrize("key", [1, 255, 256, 257, 65_535, 65_536, 65_537, 3_226_956, 2**24 - 1])
def test_segment_ids_of_any_size_are_read(tmp_path, key):
    segments = np.zeros((11, 17), int)
    segments[2:5, 3:9] = key
    segments[7:, 12:] = other = 2**23
    (labelled,) = panoptic(tmp_path, segments, [(key, THINGS["cat"], 0), (other, STUFF["banner"], 0)]).images()
    expected = np.full((11, 17), UNLABELLED)
    expected[2:5, 3:9], expected[7:, 12:] = CAT, OTHER
    assert np.array_equal(labelled.mask(NAMES), expected)
    assert labelled.classes == {"cat"}


def test_segments_of_one_class_are_one_class_crowds_too(tmp_path):
    segments = np.arange(11 * 17).reshape(11, 17) % 5
    kinds = [(1, THINGS["dog"], 0), (2, THINGS["dog"], 1), (3, THINGS["zebra"], 0), (4, STUFF["grass-merged"], 0)]
    (labelled,) = panoptic(tmp_path, segments, kinds).images()
    assert np.array_equal(labelled.mask(NAMES), np.array([UNLABELLED, DOG, DOG, OTHER, OTHER])[segments])
    assert labelled.classes == {"dog", "zebra"}


def test_stuff_is_no_class_even_with_the_name_of_one(tmp_path):
    categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "dog-merged", "isthing": 0}]
    segments = np.full((11, 17), 4)
    data = panoptic(tmp_path, segments, [(4, 2, 0)], categories=categories)
    (labelled,) = data.images()
    assert (data.names, labelled.classes) == (("cat",), frozenset())
    assert (labelled.mask(("cat", "dog")) == OTHER).all()


def test_the_suffix_of_a_thing_is_no_part_of_its_name(tmp_path):
    categories = [{"id": 1, "name": "cat-other", "isthing": 1}]
    data = panoptic(tmp_path, np.full((11, 17), 4), [(4, 1, 0)], categories=categories)
    assert data.names == ("cat",)
    assert data.images()[0].classes == {"cat"}


def test_another_split_has_folders_of_its_own(tmp_path):
    write_panoptic(tmp_path, SCENES[:2], split="train2017")
    write_instances(tmp_path, SCENES[:2], split="train2017")
    for reader in (COCOPanoptic, COCOInstances):
        images = reader(str(tmp_path), split="train2017").images()
        assert [labelled.image().size for labelled in images] == [labels.shape[::-1] for labels in SCENES[:2]]


SHAPE = (19, 30)


def rectangle(top, left, bottom, right):
    """As COCO has it: x and y of the corners, in pixels from the upper left one's outer corner."""
    return [float(each) for each in (left, top, right, top, right, bottom, left, bottom)]


def block(top, left, bottom, right):
    part = np.zeros(SHAPE, bool)
    part[top:bottom, left:right] = True
    return part


def instances(root, *annotations):
    """The only image, 19 x 30 pixels."""
    write_instances(root, [np.zeros(SHAPE)], annotations)
    (labelled,) = COCOInstances(str(root)).images()
    return labelled


RING = block(4, 5, 15, 25) & ~block(6, 9, 11, 20)


@pytest.mark.parametrize(
    ("segmentation", "part"),
    [
        ([rectangle(3, 7, 12, 21)], block(3, 7, 12, 21)),
        ([rectangle(0, 0, 19, 4), rectangle(5, 20, 9, 30)], block(0, 0, 19, 4) | block(5, 20, 9, 30)),
        (uncompressed(RING), RING),
        (compressed(RING), RING),
        (uncompressed(block(0, 0, 2, 30)), block(0, 0, 2, 30)),
        (compressed(block(0, 0, 19, 30)), block(0, 0, 19, 30)),
    ],
)
@pytest.mark.parametrize("crowd", [0, 1])
def test_instances_come_as_polygons_or_as_runs(tmp_path, segmentation, part, crowd):
    labelled = instances(tmp_path, instance(0, "cow", segmentation, part.sum(), iscrowd=crowd))
    assert np.array_equal(labelled.mask(NAMES), np.where(part, COW, OTHER))
    assert labelled.classes == {"cow"}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_smaller_of_overlapping_instances_is_in_front(tmp_path, order):
    parts = block(1, 1, 18, 29), block(4, 8, 12, 20), block(6, 15, 9, 25)
    names = ("car", "dog", "zebra")
    annotations = [instance(0, names[each], uncompressed(parts[each]), parts[each].sum(), key=each) for each in order]
    expected = np.full(SHAPE, OTHER)
    for place, part in zip((CAR, DOG, OTHER), parts, strict=True):
        expected[part] = place
    labelled = instances(tmp_path, *annotations)
    assert np.array_equal(labelled.mask(NAMES), expected)
    assert labelled.classes == set(names)


def test_an_image_without_instances_is_there_but_no_sample(tmp_path):
    labelled = instances(tmp_path)
    assert labelled.classes == frozenset()
    assert (labelled.mask(NAMES) == OTHER).all()
    assert segmentation(KINDS["instances"], tmp_path).samples() == []


def test_a_grey_picture_of_the_matlab_file_is_the_right_way_round(tmp_path):
    root, labels = write_imagenet_seg(tmp_path), SINGLE_SCENES[0]
    grey = pixels(*labels.shape)[..., 0]
    write_matlab(root / MATLAB, {"img": [grey], "gt": [[labels >= 0]], "id": [SINGLE_IDS[0]]})
    (labelled,) = ImageNetSeg(str(root)).images()
    found = np.asarray(labelled.image())
    assert found.shape == (*labels.shape, 3)
    assert all(np.array_equal(found[..., band], grey) for band in range(3))


@pytest.mark.parametrize("kind_of_number", [bool, np.uint8, np.float64, np.uint16])
def test_the_mask_of_the_matlab_file_may_be_of_any_kind_of_number(tmp_path, kind_of_number):
    root, labels = write_imagenet_seg(tmp_path), SINGLE_SCENES[0]
    gt = (labels >= 0).astype(kind_of_number)
    write_matlab(root / MATLAB, {"img": [pixels(*labels.shape)], "gt": [[gt]], "id": [SINGLE_IDS[0]]})
    (labelled,) = ImageNetSeg(str(root)).images()
    assert np.array_equal(labelled.mask(NAMES), KINDS["imagenet_seg"].truth(labels))


def test_images_whose_wordnet_id_has_no_name_are_left_out(tmp_path):
    root = write_imagenet_seg(tmp_path)
    write_json(root / WORDNET_NAMES, {SINGLE_IDS[1][:9]: "cat"})
    data = ImageNetSeg(str(root))
    assert data.names == ("cat",)
    (labelled,) = data.images()
    assert (labelled.id, labelled.classes) == (SINGLE_IDS[1], {"cat"})
    assert labelled.image().size == SINGLE_SCENES[1].shape[::-1]
    assert np.array_equal(labelled.mask(["cat"]) == 0, SINGLE_SCENES[1] >= 0)


def test_several_wordnet_ids_may_share_a_name(tmp_path):
    root = write_imagenet_seg(tmp_path)
    write_json(root / WORDNET_NAMES, dict.fromkeys(WORDNET, "cat"))
    data = ImageNetSeg(str(root))
    assert data.names == ("cat",)
    assert [labelled.classes for labelled in data.images()] == [{"cat"}] * 3


@pytest.mark.parametrize(
    ("image_id", "key"),
    [
        ("n02084071_1005", "n02084071"),
        ("n02084071", "n02084071"),
        ("images/n02084071_1005.JPEG", "n02084071"),
        ("02084071_1005", ""),
        ("", ""),
    ],
)
def test_the_wordnet_id_of_an_image_is_in_its_id(image_id, key):
    assert wordnet_id(image_id) == key


def test_labels_that_are_nothing_known_are_refused():
    with refused("mask x has label 9, which its dataset does not name: get it again"):
        class_indices(np.array([[0, 9]]), {1: "car"}, NAMES, others=[0], what="mask x")


def unlink(path):
    path.unlink()


def cut(share):
    """Keep that share of the file."""

    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return damage


def fill(content):
    return lambda path: path.write_bytes(content)


def as_rgb(path):
    with Image.open(path) as image:
        converted = image.convert("RGB")
    converted.save(path)


def as_grey(path):
    with Image.open(path) as image:
        converted = image.convert("L")
    converted.save(path)


def turned(path):
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path)


def with_label(label):
    def damage(path):
        write_voc_mask(path, np.full(SCENES[1].shape, label))

    return damage


def with_segment(path):
    write_segments(path, np.full(SCENES[1].shape, 1234))


def edited(change):
    """Change the content of a JSON file."""

    def damage(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, change(content) or content)

    return damage


def unknown_category(content):
    content["annotations"][1]["segments_info"][0]["category_id"] = 4321


def unknown_instance(content):
    next(each for each in content["annotations"] if each["image_id"] == 140)["category_id"] = 4321


def smaller_image(content):
    content["images"][1] |= {"height": 26, "width": 33}
    content["annotations"] = [
        each | {"segmentation": [rectangle(0, 0, 9, 9)]} if each["image_id"] == 140 else each
        for each in content["annotations"]
    ]


def runs_of_another_size(content):
    for each in content["annotations"]:
        if each["image_id"] == 140:
            each["segmentation"] = compressed(np.ones((5, 6), bool))


def no_segmentation(content):
    for each in content["annotations"]:
        if each["image_id"] == 140:
            each["segmentation"] = "a polygon"


def replaced(**fields):
    """Change cells of the MATLAB file in the second row."""

    def damage(path):
        columns = {
            "img": [pixels(*labels.shape) for labels in SINGLE_SCENES],
            "gt": [[labels >= 0] for labels in SINGLE_SCENES],
            "id": list(SINGLE_IDS),
        }
        for name, content in fields.items():
            columns[name][1] = content
        write_matlab(path, columns)

    return damage


JUNK = bytes(np.random.default_rng(0).integers(0, 256, 700, dtype=np.uint8))
SIZES = "has 33 x 26 pixels, its image 26 x 33|has 26 x 33 pixels, its image 33 x 26"
DAMAGED_IMAGES = {
    "VOC, no picture": ("voc", VOC_IMAGE, unlink, f"{VOC_IMAGE} does not exist"),
    "VOC, half a picture": ("voc", VOC_IMAGE, cut(0.5), f"{VOC_IMAGE} cannot be decoded"),
    "VOC, junk for a picture": ("voc", VOC_IMAGE, fill(JUNK), f"{VOC_IMAGE} cannot be decoded"),
    "VOC, empty picture": ("voc", VOC_IMAGE, fill(b""), f"{VOC_IMAGE} cannot be decoded"),
    "VOC, no mask": ("voc", VOC_MASK, unlink, f"{VOC_MASK} does not exist"),
    "VOC, half a mask": ("voc", VOC_MASK, cut(0.6), f"{VOC_MASK} cannot be decoded"),
    "VOC, junk for a mask": ("voc", VOC_MASK, fill(JUNK), f"{VOC_MASK} cannot be decoded"),
    "VOC, mask of colours": ("voc", VOC_MASK, as_rgb, f"{VOC_MASK} has mode RGB"),
    "VOC, mask of another size": ("voc", VOC_MASK, turned, SIZES),
    "VOC, label 37": ("voc", VOC_MASK, with_label(37), f"{VOC_MASK} has label 37"),
    "VOC, label 13": ("voc", VOC_MASK, with_label(13), f"{VOC_MASK} has label 13"),
    "panoptic, no picture": ("panoptic", COCO_IMAGE, unlink, f"{COCO_IMAGE} does not exist"),
    "panoptic, half a picture": ("panoptic", COCO_IMAGE, cut(0.5), f"{COCO_IMAGE} cannot be decoded"),
    "panoptic, no mask": ("panoptic", PANOPTIC_MASK, unlink, f"{PANOPTIC_MASK} does not exist"),
    "panoptic, half a mask": ("panoptic", PANOPTIC_MASK, cut(0.6), f"{PANOPTIC_MASK} cannot be decoded"),
    "panoptic, grey mask": ("panoptic", PANOPTIC_MASK, as_grey, f"{PANOPTIC_MASK} has mode L"),
    "panoptic, mask of another size": ("panoptic", PANOPTIC_MASK, turned, SIZES),
    "panoptic, unknown segment": ("panoptic", PANOPTIC_MASK, with_segment, f"{PANOPTIC_MASK} has label 1234"),
    "panoptic, unknown category": ("panoptic", PANOPTIC, edited(unknown_category), f"{PANOPTIC_MASK} has label"),
    "instances, no picture": ("instances", COCO_IMAGE, unlink, f"{COCO_IMAGE} does not exist"),
    "instances, half a picture": ("instances", COCO_IMAGE, cut(0.5), f"{COCO_IMAGE} cannot be decoded"),
    "instances, unknown category": ("instances", INSTANCES, edited(unknown_instance), f"{coco_id(1)} has category"),
    "instances, another size": ("instances", INSTANCES, edited(smaller_image), SIZES),
    "instances, runs of another size": ("instances", INSTANCES, edited(runs_of_another_size), coco_id(1)),
    "instances, no segmentation": ("instances", INSTANCES, edited(no_segmentation), coco_id(1)),
    "ImageNet-Seg, mask of another size": (
        "imagenet_seg", MATLAB, replaced(gt=[SINGLE_SCENES[1].T >= 0]), "has 17 x 48 pixels, its image 48 x 17",
    ),
    "ImageNet-Seg, label 2": (
        "imagenet_seg", MATLAB, replaced(gt=[np.where(SINGLE_SCENES[1] >= 0, 2, 0)]),
        f"{SINGLE_IDS[1]} has label 2, 0 and 1 are expected: get .*{MATLAB} again",
    ),
    "ImageNet-Seg, empty mask": ("imagenet_seg", MATLAB, replaced(gt=[np.zeros((0, 0))]), MATLAB),
    "ImageNet-Seg, mask in no cell": ("imagenet_seg", MATLAB, replaced(gt=SINGLE_SCENES[1] >= 0), MATLAB),
    "ImageNet-Seg, picture in a cell": ("imagenet_seg", MATLAB, replaced(img=[pixels(17, 48)]), MATLAB),
    "ImageNet-Seg, picture of five bands": ("imagenet_seg", MATLAB, replaced(img=np.zeros((17, 48, 5))), MATLAB),
    "ImageNet-Seg, picture of text": ("imagenet_seg", MATLAB, replaced(img="no picture"), "pixels"),
}  # fmt: skip


def everything(labelled):
    labelled.classes  # noqa: B018 (may raise)
    labelled.image()
    labelled.mask(NAMES)


@pytest.mark.parametrize("damaged", DAMAGED_IMAGES)
def test_an_image_that_cannot_be_read_says_which_file_is_off_and_the_others_can_be_read(tmp_path, damaged):
    name, file, damage, message = DAMAGED_IMAGES[damaged]
    root = KINDS[name].write(tmp_path)
    damage(root / file)
    samples = segmentation(KINDS[name], root).samples()
    assert tuple(sample.id for sample in samples) == KINDS[name].ids
    for place, sample in enumerate(samples):
        if place == 1:
            with refused(message):
                sample.questions()
                sample.image()
        else:
            everything(sample.labelled)


NUMBERS = b'{"images": 1, "annotations": 2, "categories": 3}'
EMPTY_ENTRIES = b'{"images": [{}], "annotations": [{}], "categories": [{}]}'


def matlab(**fields):
    """Write another MATLAB file."""
    return lambda path: write_matlab(path, fields)


def numbers_for_cells(path):
    with h5py.File(path, "w") as file:
        for name in ("img", "gt", "id"):
            file[f"value/{name}"] = np.ones((3, 1))


BROKEN = {
    "VOC, no root": ("voc", "", "", f"has no {VOC_LIST}: unpack Pascal VOC 2012"),
    "VOC, no list": ("voc", VOC_LIST, unlink, f"has no {VOC_LIST}: unpack Pascal VOC 2012"),
    "VOC, junk for a list": ("voc", VOC_LIST, fill(JUNK), VOC_LIST),
    "panoptic, no root": ("panoptic", "", "", f"{PANOPTIC} does not exist: give benchmark.data.root"),
    "panoptic, no annotations": ("panoptic", PANOPTIC, unlink, f"{PANOPTIC} does not exist: give benchmark.data.root"),
    "panoptic, half of it": ("panoptic", PANOPTIC, cut(0.5), f"{PANOPTIC} is no JSON, or cut off: get it again"),
    "panoptic, empty": ("panoptic", PANOPTIC, fill(b""), f"{PANOPTIC} is no JSON, or cut off"),
    "panoptic, junk": ("panoptic", PANOPTIC, fill(JUNK), f"{PANOPTIC} is no JSON, or cut off"),
    "panoptic, a list": ("panoptic", PANOPTIC, fill(b"[1, 2]"), f"{PANOPTIC} has no 'images'"),
    "panoptic, null": ("panoptic", PANOPTIC, fill(b"null"), f"{PANOPTIC} has no 'images'"),
    "panoptic, captions": ("panoptic", PANOPTIC, fill(b'{"images": [], "annotations": []}'), "has no 'categories'"),
    "panoptic, the instances": ("panoptic", PANOPTIC, "instances", PANOPTIC),
    "panoptic, numbers": ("panoptic", PANOPTIC, fill(NUMBERS), PANOPTIC),
    "panoptic, empty entries": (
        "panoptic", PANOPTIC, fill(EMPTY_ENTRIES), PANOPTIC,
    ),
    "panoptic, no image of a mask": (
        "panoptic", PANOPTIC, edited(lambda content: {**content, "images": content["images"][1:]}),
        f"{PANOPTIC} has masks of image 139, but not the image",
    ),
    "instances, no root": ("instances", "", "", f"{INSTANCES} does not exist: give benchmark.data.root"),
    "instances, no annotations": ("instances", INSTANCES, unlink, f"{INSTANCES} does not exist"),
    "instances, half of it": ("instances", INSTANCES, cut(0.5), f"{INSTANCES} is no JSON, or cut off"),
    "instances, a text": ("instances", INSTANCES, fill(b'"images"'), f"{INSTANCES} has no 'images'"),
    "instances, the panoptic": ("instances", INSTANCES, "panoptic", INSTANCES),
    "instances, numbers": ("instances", INSTANCES, fill(NUMBERS), INSTANCES),
    "instances, empty entries": (
        "instances", INSTANCES, fill(EMPTY_ENTRIES), INSTANCES,
    ),
    "ImageNet-Seg, no root": ("imagenet_seg", "", "", f"{WORDNET_NAMES} does not exist"),
    "ImageNet-Seg, no file": ("imagenet_seg", MATLAB, unlink, f"{MATLAB} does not exist: get gtsegs_ijcv.mat"),
    "ImageNet-Seg, no names": ("imagenet_seg", WORDNET_NAMES, unlink, f"{WORDNET_NAMES} does not exist"),
    "ImageNet-Seg, half of the names": ("imagenet_seg", WORDNET_NAMES, cut(0.5), f"{WORDNET_NAMES} is no JSON"),
    "ImageNet-Seg, a list of names": ("imagenet_seg", WORDNET_NAMES, fill(b'["dog"]'), WORDNET_NAMES),
    "ImageNet-Seg, null for names": ("imagenet_seg", WORDNET_NAMES, fill(b"null"), WORDNET_NAMES),
    "ImageNet-Seg, numbers for names": ("imagenet_seg", WORDNET_NAMES, fill(b'{"n02084071": 3}'), WORDNET_NAMES),
    "ImageNet-Seg, lists for names": ("imagenet_seg", WORDNET_NAMES, fill(b'{"n02084071": ["a"]}'), WORDNET_NAMES),
    "ImageNet-Seg, half of it": ("imagenet_seg", MATLAB, cut(0.5), f"{MATLAB} is cut off"),
    "ImageNet-Seg, empty": ("imagenet_seg", MATLAB, fill(b""), f"{MATLAB} is cut off"),
    "ImageNet-Seg, junk": ("imagenet_seg", MATLAB, fill(JUNK), f"{MATLAB} is cut off"),
    "ImageNet-Seg, another struct": (
        "imagenet_seg", MATLAB, matlab(synsets=["n02084071"]), f"{MATLAB} has no field value/img",
    ),
    "ImageNet-Seg, no ids": ("imagenet_seg", MATLAB, matlab(img=[], gt=[]), f"{MATLAB} has no field value/id"),
    "ImageNet-Seg, numbers for ids": ("imagenet_seg", MATLAB, numbers_for_cells, MATLAB),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_dataset_that_cannot_be_read_says_which_file_is_off(tmp_path, case):
    name, file, damage, message = BROKEN[case]
    root = KINDS[name].write(tmp_path)
    if damage in KINDS:
        (root / file).write_bytes(next(KINDS[damage].write(tmp_path / "other").glob("annotations/*.json")).read_bytes())
    elif damage:
        damage(root / file)
    else:
        root = tmp_path / "absent"
    with refused(message):
        segmentation(KINDS[name], root).samples()


@pytest.mark.parametrize("field", ["img", "gt"])
def test_a_matlab_file_with_too_few_pictures_says_so(tmp_path, field):
    root = write_imagenet_seg(tmp_path)
    columns = {"img": [pixels(9, 5)] * 3, "gt": [[np.ones((9, 5), bool)]] * 3, "id": list(SINGLE_IDS)}
    write_matlab(root / MATLAB, columns | {field: columns[field][:1]})
    with refused(MATLAB):
        for labelled in ImageNetSeg(str(root)).images():
            everything(labelled)


LENGTHS = (0, 1, 8, 60, 0.1, 0.35, 0.5, 0.8, 0.97, -1)
"""Bytes that are left, or a share of them."""
NEARLY_ALL = (0.97, -1)
"""So much of a PNG or JPEG may hold all pixels."""


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("voc", VOC_LIST), ("voc", VOC_MASK), ("voc", VOC_IMAGE),
        ("panoptic", PANOPTIC), ("panoptic", PANOPTIC_MASK), ("panoptic", COCO_IMAGE),
        ("instances", INSTANCES), ("instances", COCO_IMAGE),
        ("imagenet_seg", MATLAB), ("imagenet_seg", WORDNET_NAMES),
    ],
)  # fmt: skip
def test_nothing_but_one_sentence_comes_of_a_file_that_is_cut_off(tmp_path, name, file):
    kind = KINDS[name]
    root = kind.write(tmp_path)
    content = (root / file).read_bytes()
    assert complaints(kind, root) == []
    for length in LENGTHS:
        (root / file).write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
        found = complaints(kind, root)
        assert all(message.endswith(".") and "\n" not in message for message in found)
        assert found or file == VOC_LIST or length in NEARLY_ALL


def complaints(kind, root):
    """What is said when everything is read; other errors come out."""
    try:
        samples = segmentation(kind, root).samples()
    except UserError as error:
        return [str(error)]
    found = []
    for sample in samples:
        for read in (sample.questions, sample.image, sample.truth):
            try:
                read()
            except UserError as error:
                found.append(str(error))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "file"), [("voc", VOC_MASK), ("panoptic", PANOPTIC_MASK), ("voc", VOC_IMAGE)])
def test_nothing_but_one_sentence_comes_of_a_picture_with_junk_in_it(tmp_path, name, file, seed):
    kind, rng = KINDS[name], np.random.default_rng(seed)
    root = kind.write(tmp_path)
    content = bytearray((root / file).read_bytes())
    for place in rng.integers(0, len(content), 5):
        content[place] = rng.integers(0, 256)
    (root / file).write_bytes(content)
    for message in complaints(kind, root):
        assert message.endswith(".")


JOBS = {
    "voc": {
        f"JPEGImages/{voc_id(0)}.jpg": unlink, f"JPEGImages/{voc_id(2)}.jpg": cut(0.5),
        f"SegmentationClass/{voc_id(3)}.png": as_rgb, f"SegmentationClass/{voc_id(4)}.png": cut(0.6),
    },
    "panoptic": {f"val2017/{coco_id(0)}.jpg": cut(0.5), PANOPTIC_MASK: with_segment},
    "instances": {f"val2017/{coco_id(0)}.jpg": unlink, INSTANCES: edited(unknown_instance)},
    "imagenet_seg": {MATLAB: replaced(gt=[SINGLE_SCENES[1].T >= 0])},
}  # fmt: skip
FAILED = {
    "voc": {voc_id(0): "does not exist", voc_id(2): "be decoded", voc_id(3): "has mode RGB", voc_id(4): "be decoded"},
    "panoptic": {coco_id(0): "cannot be decoded", coco_id(1): "has label 1234"},
    "instances": {coco_id(0): "does not exist", coco_id(1): "has category 4321"},
    "imagenet_seg": {SINGLE_IDS[1]: "has 17 x 48 pixels, its image 48 x 17"},
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_goes_on_with_the_images_that_can_be_read(tmp_path, name):
    kind = KINDS[name]
    root = kind.write(tmp_path / "data")
    for file, damage in JOBS[name].items():
        damage(root / file)
    cfg = segmentation_config(tmp_path / "out", kind.config(root))
    cfg.attribution.variants = {"mean_first": cfg.attribution.variants.mean_first}
    outcome = run_job(cfg)
    records = {record.sample: record for record in RecordStore(job_folder(cfg)).read().values()}
    assert set(records) == set(kind.ids)
    assert {sample for sample, record in records.items() if record.status == "failed"} == set(FAILED[name])
    assert outcome.n_done == len(kind.ids) - len(FAILED[name])
    for sample, message in FAILED[name].items():
        assert re.search(message, records[sample].error)
        assert records[sample].error.endswith(".")


def test_the_annotations_of_another_dataset_are_refused_by_the_first_key_that_lacks(tmp_path):
    write_json(tmp_path / "x.json", {"images": [], "data": []})
    with refused(r"x\.json has no 'annotations': give the annotations file of the dataset"):
        read_annotations(tmp_path / "x.json", ("images", "annotations", "categories"))
