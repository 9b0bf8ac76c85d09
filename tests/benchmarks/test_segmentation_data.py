from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from metagame.benchmarks.coco import COCOInstances, COCOPanoptic, concept_name
from metagame.benchmarks.imagenet_seg import ImageNetSeg, wordnet_id
from metagame.benchmarks.masks import OTHER, UNLABELLED, read_labels
from metagame.benchmarks.segmentation import Segmentation
from metagame.benchmarks.voc import VOC
from metagame.errors import UserError
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
    read: Callable[[str], object]
    ids: tuple[str, ...]
    scenes: tuple[np.ndarray, ...] = SCENES
    names: tuple[str, ...] = (*NAMES, *STRANGE)
    has_unlabelled: bool = False
    original_ids: tuple[str, ...] = ()

    def truth(self, labels):
        return labels if self.has_unlabelled else np.where(labels == UNLABELLED, OTHER, labels)

    def samples(self, root):
        data = self.read(str(root))
        return Segmentation(data, words_tokenizer(), BACKGROUND, players=["n0"], side=8).samples()


PLACES = range(len(SCENES))
COCO_IDS, COCO_NUMBERS = tuple(map(coco_id, PLACES)), tuple(str(139 + place) for place in PLACES)
SINGLE_IDS = tuple(imagenet_seg_id(number, NAMES[labels.max()]) for number, labels in enumerate(SINGLE_SCENES))
KINDS = {
    "voc": Kind(
        write_voc, lambda root: VOC(root, NAMES), tuple(map(voc_id, PLACES)), names=NAMES, has_unlabelled=True
    ),
    "panoptic": Kind(write_panoptic, COCOPanoptic, COCO_IDS, has_unlabelled=True, original_ids=COCO_NUMBERS),
    "instances": Kind(write_instances, COCOInstances, COCO_IDS, original_ids=COCO_NUMBERS),
    "imagenet_seg": Kind(write_imagenet_seg, ImageNetSeg, SINGLE_IDS, SINGLE_SCENES),
}  # fmt: skip
VOC_MASK, VOC_IMAGE, VOC_LIST = (
    f"SegmentationClass/{voc_id(1)}.png", f"JPEGImages/{voc_id(1)}.jpg", "ImageSets/Segmentation/val.txt",
)  # fmt: skip
PANOPTIC_MASK, COCO_IMAGE = f"annotations/panoptic_val2017/{coco_id(1)}.png", f"val2017/{coco_id(1)}.jpg"
PANOPTIC, INSTANCES = "annotations/panoptic_val2017.json", "annotations/instances_val2017.json"
MATLAB, WORDNET_NAMES = "gtsegs_ijcv.mat", "names.json"
FILES = {
    "voc": ({VOC_IMAGE, VOC_MASK}, set()),
    "panoptic": ({COCO_IMAGE, PANOPTIC_MASK, PANOPTIC}, {PANOPTIC}),
    "instances": ({COCO_IMAGE, INSTANCES}, {INSTANCES}),
    "imagenet_seg": ({MATLAB}, {WORDNET_NAMES}),
}
"""Of the second image, and of all."""


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    """A dataset's name, its kind, and its folder."""
    kind = KINDS[request.param]
    return request.param, kind, kind.write(tmp_path_factory.mktemp("data"))


def test_every_dataset_gives_its_images_in_order_and_the_right_way_round(written):
    name, kind, root = written
    images = kind.read(str(root)).images()
    assert tuple(labelled.id for labelled in images) == kind.ids
    assert tuple(labelled.original_id for labelled in images) == (kind.original_ids or kind.ids)
    assert len(set(kind.ids)) == len(kind.scenes)
    for labelled, labels in zip(images, kind.scenes, strict=True):
        found, expected = labelled.image(), pixels(*labels.shape)
        assert (found.mode, found.size) == ("RGB", labels.shape[::-1])
        assert np.abs(np.asarray(found).astype(int) - expected).max() <= (0 if name == "imagenet_seg" else 4)


def test_every_dataset_gives_the_class_of_each_pixel_and_the_classes_of_each_image(written):
    _, kind, root = written
    for labelled, labels in zip(kind.read(str(root)).images(), kind.scenes, strict=True):
        found = labelled.mask(NAMES)
        assert np.issubdtype(found.dtype, np.integer)
        assert np.array_equal(found, kind.truth(labels))
        assert labelled.classes == {NAMES[each] for each in np.unique(labels) if each >= 0}


def test_a_mask_counts_classes_as_the_vocabulary_does_and_one_outside_it_is_no_class(written):
    _, kind, root = written
    labelled, labels = kind.read(str(root)).images()[0], kind.truth(kind.scenes[0])
    assert labels.max() == CAR
    for vocabulary, car in ((NAMES[::-1], NAMES[::-1].index("car")), (("dog", "cow"), OTHER), ((), OTHER)):
        assert np.array_equal(labelled.mask(vocabulary), np.where(labels >= 0, car, labels))


def test_every_dataset_names_its_classes_and_is_read_without_a_word(written, capsys):
    _, kind, root = written
    assert tuple(kind.read(str(root)).names) == kind.names
    assert capsys.readouterr() == ("", "")


def test_files_are_those_that_an_image_and_its_mask_are_read_from(written):
    name, kind, root = written
    samples = kind.samples(root)
    of_all = samples[0].benchmark.files()
    assert [{path.relative_to(root).as_posix() for path in files} for files in (samples[1].files(), of_all)] == [
        *FILES[name]
    ]
    assert all(path.is_file() for sample in samples for path in (*sample.files(), *of_all))


def test_only_the_images_of_the_list_are_read(tmp_path):
    root = write_voc(tmp_path)
    (root / "ImageSets" / "Segmentation" / "trainval.txt").write_text(f"{voc_id(3)}\n{voc_id(1)}", encoding="utf-8")
    assert [each.id for each in VOC(str(root), NAMES, "trainval").images()] == [voc_id(3), voc_id(1)]


def test_a_mask_in_grey_or_with_a_palette_of_few_bits_has_the_same_labels(tmp_path):
    stored = np.array([[0, 1, 2], [3, 2, 0]], np.uint8)
    write_voc_mask(tmp_path / "palette.png", stored)
    with Image.open(tmp_path / "palette.png") as image:
        image.save(tmp_path / "few.png", bits=2)
    Image.fromarray(stored).save(tmp_path / "grey.png")
    for name in ("palette", "few", "grey"):
        assert np.array_equal(read_labels(tmp_path / f"{name}.png", "P"), stored)


def test_suffixes_of_panoptic_categories_are_cut_off():
    names = {
        "car": "car", "sky-other-merged": "sky", "water-other": "water", "floor-wood": "floor-wood",
        "furniture-stuff": "furniture", "mother-others": "mother-others", "hair drier": "hair drier",
    }  # fmt: skip
    assert {category: concept_name(category) for category in names} == names


def panoptic(root, segments, kinds, **changes):
    """A dataset of one image whose segment ids and their categories are given."""
    info = [{"id": key, "category_id": kind, "iscrowd": crowd, "area": 1} for key, kind, crowd in kinds]
    content = {
        "images": coco_images([segments]),
        "annotations": [{"segments_info": info, "file_name": f"{coco_id(0)}.png", "image_id": 139}],
        "categories": [{"id": key, "name": name, "isthing": 1} for name, key in THINGS.items()]
        + [{"id": key, "name": name, "isthing": 0} for name, key in STUFF.items()],
    } | changes
    write_json(root / PANOPTIC, content)
    write_segments(root / "annotations" / "panoptic_val2017" / f"{coco_id(0)}.png", segments)
    save_jpeg(root / "val2017" / f"{coco_id(0)}.jpg", segments.shape)
    return COCOPanoptic(str(root))


@pytest.mark.parametrize("key", [1, 256, 65_537, 2**24 - 1])
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


@pytest.mark.parametrize(("write", "data"), [(write_panoptic, COCOPanoptic), (write_instances, COCOInstances)])
def test_distractors_of_coco_are_drawn_by_the_integer_id_in_the_order_of_categories(tmp_path, write, data):
    benchmark = Segmentation(data(str(write(tmp_path))), words_tokenizer(), BACKGROUND, players=["d4"], side=8)
    assert benchmark.samples()[0].questions()["d4"].players == ("car", "table", "bus", "cow", "dog")


def test_stuff_is_no_class_even_with_the_name_of_one_and_the_suffix_of_a_thing_is_no_part_of_its_name(tmp_path):
    categories = [{"id": 1, "name": "cat-other", "isthing": 1}, {"id": 2, "name": "dog-merged", "isthing": 0}]
    segments = np.full((11, 17), 4)
    segments[:3] = 5
    data = panoptic(tmp_path, segments, [(4, 2, 0), (5, 1, 0)], categories=categories)
    (labelled,) = data.images()
    assert (data.names, labelled.classes) == (("cat",), frozenset({"cat"}))
    assert np.array_equal(labelled.mask(("cat", "dog")), np.where(segments == 5, 0, OTHER))


def test_another_split_has_folders_of_its_own(tmp_path):
    for write, reader in ((write_panoptic, COCOPanoptic), (write_instances, COCOInstances)):
        write(tmp_path, SCENES[:2], split="train2017")
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
TWO_BLOCKS = block(0, 0, 19, 4) | block(5, 20, 9, 30)


@pytest.mark.parametrize(
    ("segmentation", "part", "crowd"),
    [
        ([rectangle(3, 7, 12, 21)], block(3, 7, 12, 21), 0),
        ([rectangle(0, 0, 19, 4), rectangle(5, 20, 9, 30)], TWO_BLOCKS, 1),
        (uncompressed(RING), RING, 0),
        (uncompressed(block(0, 0, 2, 30)), block(0, 0, 2, 30), 1),
        (compressed(RING), RING, 1),
        (compressed(block(0, 0, 19, 30)), block(0, 0, 19, 30), 0),
    ],
)
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
    assert KINDS["instances"].samples(tmp_path) == []


@pytest.mark.parametrize("kind_of_number", [bool, np.float64, np.uint16])
def test_a_picture_of_the_matlab_file_may_be_grey_and_its_mask_of_any_kind_of_number(tmp_path, kind_of_number):
    root, labels = write_imagenet_seg(tmp_path), SINGLE_SCENES[0]
    grey, gt = pixels(*labels.shape)[..., 0], (labels >= 0).astype(kind_of_number)
    write_matlab(root / MATLAB, {"img": [grey], "gt": [[gt]], "id": [SINGLE_IDS[0]]})
    (labelled,) = ImageNetSeg(str(root)).images()
    assert np.array_equal(np.asarray(labelled.image()), np.repeat(grey[..., None], 3, axis=-1))
    assert np.array_equal(labelled.mask(NAMES), KINDS["imagenet_seg"].truth(labels))


def test_images_whose_wordnet_id_has_no_name_are_left_out_and_several_may_share_one(tmp_path):
    root = write_imagenet_seg(tmp_path)
    write_json(root / WORDNET_NAMES, {SINGLE_IDS[1][:9]: "cat"})
    data = ImageNetSeg(str(root))
    assert data.names == ("cat",)
    (labelled,) = data.images()
    assert (labelled.id, labelled.classes) == (SINGLE_IDS[1], {"cat"})
    assert labelled.image().size == SINGLE_SCENES[1].shape[::-1]
    assert np.array_equal(labelled.mask(["cat"]) == 0, SINGLE_SCENES[1] >= 0)
    write_json(root / WORDNET_NAMES, dict.fromkeys(WORDNET, "cat"))
    data = ImageNetSeg(str(root))
    assert data.names == ("cat",)
    assert [labelled.classes for labelled in data.images()] == [{"cat"}] * 3


def test_the_wordnet_id_of_an_image_is_in_its_id():
    ids = {"n02084071_1005": "n02084071", "images/n02084071.JPEG": "n02084071", "02084071_1005": "", "": ""}
    assert {image_id: wordnet_id(image_id) for image_id in ids} == ids


def unlink(path):
    path.unlink()


def fill(content):
    return lambda path: path.write_bytes(content)


def redrawn(change):
    """Change the picture in a file."""

    def damage(path):
        with Image.open(path) as image:
            other = change(image)
        other.save(path)

    return damage


turned = redrawn(lambda image: image.transpose(Image.Transpose.ROTATE_90))


def in_mode(mode):
    return redrawn(lambda image: image.convert(mode))


def with_label(path):
    write_voc_mask(path, np.full(SCENES[1].shape, 13))


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


def with_instances(**changes):
    """Change the instances of the second image."""

    def change(content):
        for each in content["annotations"]:
            each |= changes if each["image_id"] == 140 else {}

    return edited(change)


def smaller_image(content):
    content["images"][1] |= {"height": 26, "width": 33}
    for each in content["annotations"]:
        each |= {"segmentation": [rectangle(0, 0, 9, 9)]} if each["image_id"] == 140 else {}


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
SIZES = "has 33 x 26 pixels, but its image has 26 x 33|has 26 x 33 pixels, but its image has 33 x 26"
OWN = SINGLE_SCENES[1] >= 0
DAMAGED_IMAGES = {
    "VOC, no picture": ("voc", VOC_IMAGE, unlink, f"{VOC_IMAGE} does not exist"),
    "VOC, junk for a picture": ("voc", VOC_IMAGE, fill(JUNK), f"{VOC_IMAGE} cannot be decoded"),
    "VOC, no mask": ("voc", VOC_MASK, unlink, f"{VOC_MASK} does not exist"),
    "VOC, junk for a mask": ("voc", VOC_MASK, fill(JUNK), f"{VOC_MASK} cannot be decoded"),
    "VOC, mask of colours": ("voc", VOC_MASK, in_mode("RGB"), f"{VOC_MASK} has mode RGB"),
    "VOC, mask of another size": ("voc", VOC_MASK, turned, SIZES),
    "VOC, label 13": ("voc", VOC_MASK, with_label, f"{VOC_MASK} has label 13"),
    "panoptic, no picture": ("panoptic", COCO_IMAGE, unlink, f"{COCO_IMAGE} does not exist"),
    "panoptic, no mask": ("panoptic", PANOPTIC_MASK, unlink, f"{PANOPTIC_MASK} does not exist"),
    "panoptic, grey mask": ("panoptic", PANOPTIC_MASK, in_mode("L"), f"{PANOPTIC_MASK} has mode L"),
    "panoptic, mask of another size": ("panoptic", PANOPTIC_MASK, turned, SIZES),
    "panoptic, unknown segment": ("panoptic", PANOPTIC_MASK, with_segment, f"{PANOPTIC_MASK} has label 1234"),
    "panoptic, unknown category": ("panoptic", PANOPTIC, edited(unknown_category), f"{PANOPTIC_MASK} has label"),
    "instances, no picture": ("instances", COCO_IMAGE, unlink, f"{COCO_IMAGE} does not exist"),
    "instances, unknown category": (
        "instances", INSTANCES, with_instances(category_id=4321), f"{coco_id(1)} has category 4321",
    ),
    "instances, another size": ("instances", INSTANCES, edited(smaller_image), SIZES),
    "instances, runs of another size": (
        "instances", INSTANCES, with_instances(segmentation=compressed(np.ones((5, 6), bool))), coco_id(1),
    ),
    "instances, no segmentation": ("instances", INSTANCES, with_instances(segmentation="a polygon"), coco_id(1)),
    "ImageNet-Seg, mask of another size": (
        "imagenet_seg", MATLAB, replaced(gt=[OWN.T]), "has 17 x 48 pixels, but its image has 48 x 17",
    ),
    "ImageNet-Seg, label 2": (
        "imagenet_seg", MATLAB, replaced(gt=[2 * OWN]), f"{SINGLE_IDS[1]} has label 2.*get .*{MATLAB} again",
    ),
    "ImageNet-Seg, empty mask": ("imagenet_seg", MATLAB, replaced(gt=[np.zeros((0, 0))]), MATLAB),
    "ImageNet-Seg, mask in no cell": ("imagenet_seg", MATLAB, replaced(gt=OWN), MATLAB),
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
    samples = KINDS[name].samples(root)
    assert tuple(sample.id for sample in samples) == KINDS[name].ids
    for place, sample in enumerate(samples):
        if place == 1:
            assert root / file in sample.files()
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


def nameless_image(content):
    return {**content, "images": content["images"][1:]}


BROKEN = {
    "VOC, no list": ("voc", VOC_LIST, unlink, f"has no {VOC_LIST}: unpack Pascal VOC 2012"),
    "VOC, junk for a list": ("voc", VOC_LIST, fill(JUNK), VOC_LIST),
    "panoptic, no file": ("panoptic", PANOPTIC, unlink, f"{PANOPTIC} does not exist: set benchmark.data.root"),
    "panoptic, junk": ("panoptic", PANOPTIC, fill(JUNK), f"{PANOPTIC} is not valid JSON, or is truncated"),
    "panoptic, a list": ("panoptic", PANOPTIC, fill(b"[1, 2]"), f"{PANOPTIC} has no 'images'"),
    "panoptic, null": ("panoptic", PANOPTIC, fill(b"null"), f"{PANOPTIC} has no 'images'"),
    "panoptic, other data": (
        "panoptic", PANOPTIC, fill(b'{"images": [], "data": []}'), f"{PANOPTIC} has no 'annotations': give the annota",
    ),
    "panoptic, the instances": ("panoptic", PANOPTIC, "instances", PANOPTIC),
    "panoptic, numbers": ("panoptic", PANOPTIC, fill(NUMBERS), PANOPTIC),
    "panoptic, empty entries": ("panoptic", PANOPTIC, fill(EMPTY_ENTRIES), PANOPTIC),
    "panoptic, no image of a mask": (
        "panoptic", PANOPTIC, edited(nameless_image), f"{PANOPTIC} has masks of image 139, but not the image",
    ),
    "instances, no file": ("instances", INSTANCES, unlink, f"{INSTANCES} does not exist: set benchmark.data.root"),
    "instances, a text": ("instances", INSTANCES, fill(b'"images"'), f"{INSTANCES} has no 'images'"),
    "instances, the panoptic": ("instances", INSTANCES, "panoptic", INSTANCES),
    "instances, numbers": ("instances", INSTANCES, fill(NUMBERS), INSTANCES),
    "instances, empty entries": ("instances", INSTANCES, fill(EMPTY_ENTRIES), INSTANCES),
    "ImageNet-Seg, no file": ("imagenet_seg", MATLAB, unlink, f"{MATLAB} does not exist: get gtsegs_ijcv.mat"),
    "ImageNet-Seg, no names": ("imagenet_seg", WORDNET_NAMES, unlink, f"{WORDNET_NAMES} does not exist"),
    "ImageNet-Seg, a list of names": ("imagenet_seg", WORDNET_NAMES, fill(b'["dog"]'), WORDNET_NAMES),
    "ImageNet-Seg, null for names": ("imagenet_seg", WORDNET_NAMES, fill(b"null"), WORDNET_NAMES),
    "ImageNet-Seg, numbers for names": ("imagenet_seg", WORDNET_NAMES, fill(b'{"n02084071": 3}'), WORDNET_NAMES),
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
    else:
        damage(root / file)
    with refused(message):
        KINDS[name].samples(root)


@pytest.mark.parametrize("field", ["img", "gt"])
def test_a_matlab_file_with_too_few_pictures_says_so(tmp_path, field):
    root = write_imagenet_seg(tmp_path)
    columns = {"img": [pixels(9, 5)] * 3, "gt": [[np.ones((9, 5), bool)]] * 3, "id": list(SINGLE_IDS)}
    write_matlab(root / MATLAB, columns | {field: columns[field][:1]})
    with refused(MATLAB):
        for labelled in ImageNetSeg(str(root)).images():
            everything(labelled)


def complaints(kind, root):
    """What is said when everything is read; other errors come out."""
    try:
        samples = kind.samples(root)
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


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("voc", VOC_LIST), ("voc", VOC_MASK), ("voc", VOC_IMAGE), ("panoptic", PANOPTIC), ("panoptic", PANOPTIC_MASK),
        ("instances", INSTANCES), ("instances", COCO_IMAGE), ("imagenet_seg", MATLAB), ("imagenet_seg", WORDNET_NAMES),
    ],
)  # fmt: skip
def test_nothing_but_one_sentence_comes_of_a_file_that_is_cut_off(tmp_path, name, file):
    kind = KINDS[name]
    root = kind.write(tmp_path)
    content = (root / file).read_bytes()
    assert complaints(kind, root) == []
    for length in (0, 8, len(content) // 2, len(content) - 1):
        (root / file).write_bytes(content[:length])
        found = complaints(kind, root)
        assert all(message.endswith(".") and "\n" not in message for message in found)
        if file != VOC_LIST:  # a name that is cut off is that of another file
            assert all(file in message for message in found)
            # without its last byte a picture may be whole
            assert found or length == len(content) - 1


@pytest.mark.parametrize("file", [VOC_MASK, VOC_IMAGE])
def test_nothing_but_one_sentence_comes_of_a_picture_with_junk_in_it(tmp_path, file):
    root, rng = write_voc(tmp_path), np.random.default_rng(0)
    whole = (root / file).read_bytes()
    for _ in range(4):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 5):
            content[place] = rng.integers(0, 256)
        (root / file).write_bytes(content)
        assert all(message.endswith(".") for message in complaints(KINDS["voc"], root))
