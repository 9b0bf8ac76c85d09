from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from tests.tiny import segmentation as tiny
from tests.tiny.segmentation import BACKGROUND, CAR, CAT, COW, DOG, NAMES, SCENES, SINGLE_SCENES, STRANGE, STUFF, THINGS
from tests.tiny.vision_language import refused

VOC_MASK, VOC_IMAGE = f"SegmentationClass/{tiny.voc_id(1)}.png", f"JPEGImages/{tiny.voc_id(1)}.jpg"
VOC_LIST = "ImageSets/Segmentation/val.txt"
PANOPTIC_MASK, COCO_IMAGE = f"annotations/panoptic_val2017/{tiny.coco_id(1)}.png", f"val2017/{tiny.coco_id(1)}.jpg"
PANOPTIC, INSTANCES = "annotations/panoptic_val2017.json", "annotations/instances_val2017.json"
MATLAB, WORDNET_NAMES = "gtsegs_ijcv.mat", "names.json"


@dataclass(frozen=True)
class Kind:
    """A dataset on disk: how the tests write it, how it is read, and what is in it.

    ``files`` are those of the second image, ``shared`` those of all images.
    """

    write: Callable[..., Path]
    read: Callable[[str], object]
    ids: tuple[str, ...]
    files: set[str]
    shared: set[str]
    scenes: tuple[np.ndarray, ...] = SCENES
    names: tuple[str, ...] = (*NAMES, *STRANGE)
    has_unlabelled: bool = False
    original_ids: tuple[str, ...] = ()

    def truth(self, labels):
        return labels if self.has_unlabelled else np.where(labels == UNLABELLED, OTHER, labels)

    def samples(self, root):
        data = self.read(str(root))
        return Segmentation(data, tiny.words_tokenizer(), BACKGROUND, players=["n0"], side=8).samples()


PLACES = range(len(SCENES))
SINGLE_IDS = tuple(tiny.imagenet_seg_id(number, NAMES[labels.max()]) for number, labels in enumerate(SINGLE_SCENES))
COCO_IDS = {"ids": tuple(map(tiny.coco_id, PLACES)), "original_ids": tuple(str(139 + place) for place in PLACES)}
KINDS = {
    "voc": Kind(
        write=tiny.write_voc, read=lambda root: VOC(root, NAMES), ids=tuple(map(tiny.voc_id, PLACES)), names=NAMES,
        files={VOC_IMAGE, VOC_MASK}, shared=set(), has_unlabelled=True,
    ),
    "panoptic": Kind(
        write=tiny.write_panoptic, read=COCOPanoptic, **COCO_IDS, files={COCO_IMAGE, PANOPTIC_MASK, PANOPTIC},
        shared={PANOPTIC}, has_unlabelled=True,
    ),
    "instances": Kind(
        write=tiny.write_instances, read=COCOInstances, **COCO_IDS, files={COCO_IMAGE, INSTANCES}, shared={INSTANCES},
    ),
    "imagenet_seg": Kind(
        write=tiny.write_imagenet_seg, read=ImageNetSeg, ids=SINGLE_IDS, scenes=SINGLE_SCENES, files={MATLAB},
        shared={WORDNET_NAMES},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    """A dataset and its folder."""
    kind = KINDS[request.param]
    return kind, kind.write(tmp_path_factory.mktemp("data"))


def test_every_dataset_gives_its_names_and_its_images_in_order_and_the_right_way_round(written, capsys):
    kind, root = written
    data = kind.read(str(root))
    images = data.images()
    assert tuple(data.names) == kind.names
    assert tuple(labelled.id for labelled in images) == kind.ids
    assert tuple(labelled.original_id for labelled in images) == (kind.original_ids or kind.ids)
    for labelled, labels in zip(images, kind.scenes, strict=True):
        found, expected = labelled.image(), tiny.pixels(*labels.shape)
        assert (found.mode, found.size) == ("RGB", labels.shape[::-1])
        assert np.abs(np.asarray(found).astype(int) - expected).max() <= (0 if data.__class__ is ImageNetSeg else 4)
    assert capsys.readouterr() == ("", "")


def test_every_dataset_gives_the_class_of_each_pixel_as_the_vocabulary_counts_and_the_classes_of_each_image(written):
    kind, root = written
    images = kind.read(str(root)).images()
    for labelled, labels in zip(images, kind.scenes, strict=True):
        found = labelled.mask(NAMES)
        assert np.issubdtype(found.dtype, np.integer)
        assert np.array_equal(found, kind.truth(labels))
        assert labelled.classes == {NAMES[each] for each in np.unique(labels) if each >= 0}
    labels = kind.truth(kind.scenes[0])
    for vocabulary, car in ((NAMES[::-1], NAMES[::-1].index("car")), (("dog", "cow"), OTHER)):
        assert np.array_equal(images[0].mask(vocabulary), np.where(labels == CAR, car, labels))


def test_files_are_those_that_an_image_and_its_mask_are_read_from(written):
    kind, root = written
    samples = kind.samples(root)
    shared = samples[0].benchmark.files()
    assert {path.relative_to(root).as_posix() for path in samples[1].files()} == kind.files
    assert {path.relative_to(root).as_posix() for path in shared} == kind.shared
    assert all(path.is_file() for sample in samples for path in (*sample.files(), *shared))


def test_only_the_images_of_the_split_are_read(tmp_path):
    tiny.write_voc(tmp_path)
    (tmp_path / VOC_LIST).with_name("trainval.txt").write_text(f"{tiny.voc_id(3)}\n{tiny.voc_id(1)}", encoding="utf-8")
    assert [each.id for each in VOC(str(tmp_path), NAMES, "trainval").images()] == [tiny.voc_id(3), tiny.voc_id(1)]
    for write, read in ((tiny.write_panoptic, COCOPanoptic), (tiny.write_instances, COCOInstances)):
        write(tmp_path, SCENES[:2], split="train2017")
        images = read(str(tmp_path), split="train2017").images()
        assert [labelled.image().size for labelled in images] == [labels.shape[::-1] for labels in SCENES[:2]]


def test_a_mask_in_grey_or_with_a_palette_of_few_bits_has_the_same_labels(tmp_path):
    stored = np.array([[0, 1, 2], [3, 2, 0]], np.uint8)
    tiny.write_voc_mask(tmp_path / "palette.png", stored)
    with Image.open(tmp_path / "palette.png") as image:
        image.save(tmp_path / "few.png", bits=2)
    Image.fromarray(stored).save(tmp_path / "grey.png")
    for name in ("palette", "few", "grey"):
        assert np.array_equal(read_labels(tmp_path / f"{name}.png", "P"), stored)


def test_suffixes_of_panoptic_categories_are_cut_off():
    names = {"sky-other-merged": "sky", "water-other": "water", "furniture-stuff": "furniture"}
    names |= {same: same for same in ("car", "floor-wood", "mother-others")}
    assert {category: concept_name(category) for category in names} == names


def panoptic(root, segments, kinds, crowds=True, **changes):
    """The dataset and its only image, of which the segment ids are given, their categories, and which are crowds."""
    info = [{"id": key, "category_id": kind, "iscrowd": crowd, "area": 1} for key, kind, crowd in kinds]
    content = {
        "images": tiny.coco_images([segments]),
        "annotations": [{"segments_info": info, "file_name": f"{tiny.coco_id(0)}.png", "image_id": 139}],
        "categories": tiny.coco_categories(stuff=True),
    }
    tiny.write_json(root / PANOPTIC, content | changes)
    tiny.write_segments(root / "annotations" / "panoptic_val2017" / f"{tiny.coco_id(0)}.png", segments)
    data = COCOPanoptic(str(root), crowds=crowds)
    (labelled,) = data.images()
    return data, labelled


@pytest.mark.parametrize("key", [1, 256, 65_537, 2**24 - 1])
def test_segment_ids_of_any_size_are_read_and_pixels_of_none_are_not_labelled(tmp_path, key):
    segments = np.zeros((11, 17), int)
    segments[2:5, 3:9], segments[7:, 12:] = key, 2**23
    _, labelled = panoptic(tmp_path, segments, [(key, THINGS["cat"], 0), (2**23, STUFF["banner"], 0)])
    meaning = {0: UNLABELLED, key: CAT, 2**23: OTHER}
    assert np.array_equal(labelled.mask(NAMES), np.vectorize(meaning.get)(segments))
    assert labelled.classes == {"cat"}


def test_stuff_is_no_class_even_with_the_name_of_one_and_the_suffix_of_a_thing_is_no_part_of_its_name(tmp_path):
    categories = [{"id": 1, "name": "cat-other", "isthing": 1}, {"id": 2, "name": "dog-merged", "isthing": 0}]
    segments = np.full((11, 17), 4)
    segments[:3] = 5
    data, labelled = panoptic(tmp_path, segments, [(4, 2, 0), (5, 1, 0)], categories=categories)
    assert (data.names, labelled.classes) == (("cat",), frozenset({"cat"}))
    assert np.array_equal(labelled.mask(("cat", "dog")), np.where(segments == 5, 0, OTHER))


def test_distractors_of_coco_are_drawn_by_the_integer_id_in_the_order_of_categories(tmp_path):
    data = COCOPanoptic(str(tiny.write_panoptic(tmp_path)))
    benchmark = Segmentation(data, tiny.words_tokenizer(), BACKGROUND, players=["d4"], side=8)
    assert benchmark.samples()[0].questions()["d4"].players == ("car", "table", "bus", "cow", "dog")


SHAPE = (19, 30)


def rectangle(top, left, bottom, right):
    """As COCO has it: x and y of the corners, in pixels from the upper left one's outer corner."""
    return [float(each) for each in (left, top, right, top, right, bottom, left, bottom)]


def block(top, left, bottom, right):
    part = np.zeros(SHAPE, bool)
    part[top:bottom, left:right] = True
    return part


def instances(root, *annotations, crowds=True):
    """The only image, 19 x 30 pixels."""
    tiny.write_instances(root, [np.zeros(SHAPE)], annotations)
    (labelled,) = COCOInstances(str(root), crowds=crowds).images()
    return labelled


RING = block(4, 5, 15, 25) & ~block(6, 9, 11, 20)


@pytest.mark.parametrize(
    ("segmentation", "part"),
    [
        ([rectangle(0, 0, 19, 4), rectangle(5, 20, 9, 30)], block(0, 0, 19, 4) | block(5, 20, 9, 30)),
        (tiny.uncompressed(RING), RING),
        (tiny.compressed(RING), RING),
    ],
    ids=["polygons", "runs", "compressed runs"],
)
def test_instances_come_as_polygons_or_as_runs(tmp_path, segmentation, part):
    labelled = instances(tmp_path, tiny.instance(0, "cow", segmentation, part.sum()))
    assert np.array_equal(labelled.mask(NAMES), np.where(part, COW, OTHER))
    assert labelled.classes == {"cow"}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_smaller_of_overlapping_instances_is_in_front(tmp_path, order):
    parts = block(1, 1, 18, 29), block(4, 8, 12, 20), block(6, 15, 9, 25)
    names = ("car", "dog", "zebra")
    annotations = [
        tiny.instance(0, names[each], tiny.uncompressed(parts[each]), parts[each].sum(), key=each) for each in order
    ]
    labelled = instances(tmp_path, *annotations)
    assert np.array_equal(labelled.mask(NAMES), np.select(parts[::-1], (OTHER, DOG, CAR), OTHER))
    assert labelled.classes == set(names)


@pytest.mark.parametrize(("crowds", "of_crowd"), [(True, CAT), (False, UNLABELLED)])
def test_pixels_of_a_crowd_are_of_its_class_or_not_counted(tmp_path, crowds, of_crowd):
    """Beside two segments of one class, and one of a class that the vocabulary does not have."""
    segments = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 6
    names = {1: "dog", 2: "dog", 3: "cat", 4: "zebra"}
    kinds = [(key, THINGS[name], int(name == "cat")) for key, name in names.items()]
    _, of_segments = panoptic(tmp_path, segments, [*kinds, (5, STUFF["grass-merged"], 0)], crowds)
    parts = [
        tiny.instance(0, name, tiny.compressed(segments == key), 1, iscrowd=int(name == "cat"), key=key)
        for key, name in names.items()
    ]
    of_instances = instances(tmp_path, *parts, crowds=crowds)
    for labelled, outside in ((of_segments, UNLABELLED), (of_instances, OTHER)):
        meaning = np.array([outside, DOG, DOG, of_crowd, OTHER, OTHER])
        assert np.array_equal(labelled.mask(NAMES), meaning[segments])
        assert labelled.classes == {"dog", "zebra"} | ({"cat"} if crowds else set())


def test_an_image_without_instances_is_there_but_no_sample(tmp_path):
    labelled = instances(tmp_path)
    assert labelled.classes == frozenset()
    assert (labelled.mask(NAMES) == OTHER).all()
    assert KINDS["instances"].samples(tmp_path) == []


@pytest.mark.parametrize("kind_of_number", [bool, np.float64, np.uint16])
def test_a_picture_of_the_matlab_file_may_be_grey_and_its_mask_of_any_kind_of_number(tmp_path, kind_of_number):
    root, labels = tiny.write_imagenet_seg(tmp_path), SINGLE_SCENES[0]
    grey, gt = tiny.pixels(*labels.shape)[..., 0], (labels >= 0).astype(kind_of_number)
    tiny.write_matlab(root / MATLAB, {"img": [grey], "gt": [[gt]], "id": [SINGLE_IDS[0]]})
    (labelled,) = ImageNetSeg(str(root)).images()
    assert np.array_equal(np.asarray(labelled.image()), np.repeat(grey[..., None], 3, axis=-1))
    assert np.array_equal(labelled.mask(NAMES), KINDS["imagenet_seg"].truth(labels))


def test_images_whose_wordnet_id_has_no_name_are_left_out_and_several_may_share_one(tmp_path):
    root = tiny.write_imagenet_seg(tmp_path)
    tiny.write_json(root / WORDNET_NAMES, {SINGLE_IDS[1][:9]: "cat"})
    (labelled,) = ImageNetSeg(str(root)).images()
    assert (labelled.id, labelled.classes) == (SINGLE_IDS[1], {"cat"})
    assert labelled.image().size == SINGLE_SCENES[1].shape[::-1]
    assert np.array_equal(labelled.mask(["cat"]) == 0, SINGLE_SCENES[1] >= 0)
    tiny.write_json(root / WORDNET_NAMES, dict.fromkeys(tiny.WORDNET, "cat"))
    data = ImageNetSeg(str(root))
    assert data.names == ("cat",)
    assert [labelled.classes for labelled in data.images()] == [{"cat"}] * 3


def test_the_wordnet_id_of_an_image_is_in_its_id():
    ids = {"n02084071_1005": "n02084071", "images/n02084071.JPEG": "n02084071", "02084071_1005": ""}
    assert {image_id: wordnet_id(image_id) for image_id in ids} == ids


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


def filled(write, label):
    return lambda path: write(path, np.full(SCENES[1].shape, label))


def edited(change):
    """Change the content of a JSON file."""

    def damage(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        tiny.write_json(path, content)

    return damage


@edited
def unknown_category(content):
    content["annotations"][1]["segments_info"][0]["category_id"] = 4321


@edited
def nameless_image(content):
    del content["images"][0]


def with_instances(height=33, **changes):
    """Change the second image's height and its instances."""

    @edited
    def damage(content):
        content["images"][1]["height"] = height
        for each in content["annotations"]:
            each |= changes if each["image_id"] == 140 else {}

    return damage


def replaced(**fields):
    """Change cells of the MATLAB file in the second row."""

    def damage(path):
        columns = tiny.imagenet_seg_columns()
        for name, content in fields.items():
            columns[name][1] = content
        tiny.write_matlab(path, columns)

    return damage


OWN = SINGLE_SCENES[1] >= 0
WIDE = "has 33 x 26 pixels, but its image has 26 x 33"
DAMAGED_IMAGES = {
    "VOC, no picture": ("voc", VOC_IMAGE, Path.unlink, f"{VOC_IMAGE} does not exist"),
    "VOC, no mask": ("voc", VOC_MASK, Path.unlink, f"{VOC_MASK} does not exist"),
    "VOC, colours": ("voc", VOC_MASK, redrawn(lambda image: image.convert("RGB")), f"{VOC_MASK} has mode RGB"),
    "VOC, another size": ("voc", VOC_MASK, turned, WIDE),
    "VOC, label 13": ("voc", VOC_MASK, filled(tiny.write_voc_mask, 13), f"{VOC_MASK} has label 13"),
    "panoptic, grey": ("panoptic", PANOPTIC_MASK, redrawn(lambda image: image.convert("L")), "has mode L"),
    "panoptic, unknown segment": ("panoptic", PANOPTIC_MASK, filled(tiny.write_segments, 1234), "has label 1234"),
    "panoptic, unknown category": ("panoptic", PANOPTIC, unknown_category, f"{PANOPTIC_MASK} has label"),
    "instances, unknown category": (
        "instances", INSTANCES, with_instances(category_id=4321), f"{tiny.coco_id(1)} has category 4321",
    ),
    "instances, another size": (
        "instances", INSTANCES, with_instances(height=20, segmentation=[rectangle(0, 0, 9, 9)]), "has 26 x 20 pixels",
    ),
    "instances, no segmentation": ("instances", INSTANCES, with_instances(segmentation="a polygon"), tiny.coco_id(1)),
    "ImageNet-Seg, another size": (
        "imagenet_seg", MATLAB, replaced(gt=[OWN.T]), "has 17 x 48 pixels, but its image has 48 x 17",
    ),
    "ImageNet-Seg, label 2": ("imagenet_seg", MATLAB, replaced(gt=[2 * OWN]), f"has label 2.*get .*{MATLAB} again"),
    "ImageNet-Seg, empty mask": ("imagenet_seg", MATLAB, replaced(gt=[np.zeros((0, 0))]), MATLAB),
    "ImageNet-Seg, mask in no cell": ("imagenet_seg", MATLAB, replaced(gt=OWN), MATLAB),
    "ImageNet-Seg, picture in a cell": ("imagenet_seg", MATLAB, replaced(img=[tiny.pixels(17, 48)]), MATLAB),
    "ImageNet-Seg, five bands": ("imagenet_seg", MATLAB, replaced(img=np.zeros((17, 48, 5))), MATLAB),
}  # fmt: skip


@pytest.mark.parametrize("damaged", DAMAGED_IMAGES)
def test_an_image_that_cannot_be_read_says_which_file_is_off_and_the_others_can_be_read(tmp_path, damaged):
    name, file, damage, message = DAMAGED_IMAGES[damaged]
    root = KINDS[name].write(tmp_path)
    damage(root / file)
    first, second, *others = samples = KINDS[name].samples(root)
    assert tuple(sample.id for sample in samples) == KINDS[name].ids
    assert root / file in second.files()
    with refused(message):
        second.questions()
        second.image()
    for sample in (first, *others):
        sample.questions()
        sample.image()
        sample.truth()


def numbers_for_cells(path):
    with h5py.File(path, "w") as file:
        for name in ("img", "gt", "id"):
            file[f"value/{name}"] = np.ones((3, 1))


def without_cells(**columns):
    return lambda path: tiny.write_matlab(path, {"img": [], "gt": [], **columns})


EMPTY_ENTRIES = fill(b'{"images": [{}], "annotations": [{}], "categories": [{}]}')
BROKEN = {
    "VOC, no list": ("voc", VOC_LIST, Path.unlink, f"has no {VOC_LIST}: unpack Pascal VOC 2012"),
    "panoptic, no file": ("panoptic", PANOPTIC, Path.unlink, f"{PANOPTIC} does not exist: set benchmark.data.root"),
    "panoptic, a list": ("panoptic", PANOPTIC, fill(b"[1, 2]"), f"{PANOPTIC} has no 'images'"),
    "panoptic, other data": (
        "panoptic", PANOPTIC, fill(b'{"images": [], "data": []}'), f"{PANOPTIC} has no 'annotations'",
    ),
    "panoptic, numbers": ("panoptic", PANOPTIC, fill(b'{"images": 1, "annotations": 2, "categories": 3}'), PANOPTIC),
    "panoptic, empty entries": ("panoptic", PANOPTIC, EMPTY_ENTRIES, PANOPTIC),
    "panoptic, no image of a mask": (
        "panoptic", PANOPTIC, nameless_image, f"{PANOPTIC} has masks of image 139, but not the image",
    ),
    "instances, no file": ("instances", INSTANCES, Path.unlink, f"{INSTANCES} does not exist"),
    "instances, empty entries": ("instances", INSTANCES, EMPTY_ENTRIES, INSTANCES),
    "ImageNet-Seg, no file": ("imagenet_seg", MATLAB, Path.unlink, f"{MATLAB} does not exist: get gtsegs_ijcv.mat"),
    "ImageNet-Seg, no names": ("imagenet_seg", WORDNET_NAMES, Path.unlink, f"{WORDNET_NAMES} does not exist"),
    "ImageNet-Seg, a list of names": ("imagenet_seg", WORDNET_NAMES, fill(b'["dog"]'), WORDNET_NAMES),
    "ImageNet-Seg, numbers for names": ("imagenet_seg", WORDNET_NAMES, fill(b'{"n02084071": 3}'), WORDNET_NAMES),
    "ImageNet-Seg, no ids": ("imagenet_seg", MATLAB, without_cells(), "has no field value/id"),
    "ImageNet-Seg, numbers for cells": ("imagenet_seg", MATLAB, numbers_for_cells, MATLAB),
    "ImageNet-Seg, too few cells": ("imagenet_seg", MATLAB, without_cells(id=[SINGLE_IDS[0]]), MATLAB),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_dataset_that_cannot_be_read_says_which_file_is_off(tmp_path, case):
    name, file, damage, message = BROKEN[case]
    root = KINDS[name].write(tmp_path)
    damage(root / file)
    with refused(message):
        for sample in KINDS[name].samples(root):
            sample.image()


def complaints(kind, root):
    """What is said when everything is read; other errors come out."""
    found = []

    def read(part):
        try:
            return part()
        except UserError as error:
            found.append(str(error))

    for sample in read(partial(kind.samples, root)) or ():
        for part in (sample.questions, sample.image, sample.truth):
            read(part)
    return found


@pytest.mark.parametrize(
    ("name", "file"),
    [("voc", VOC_LIST)] + [(name, file) for name, kind in KINDS.items() for file in sorted(kind.files | kind.shared)],
)
def test_nothing_but_one_sentence_comes_of_a_file_that_is_cut_off_or_junk(tmp_path, name, file):
    kind = KINDS[name]
    root = kind.write(tmp_path)
    content = (root / file).read_bytes()
    junk = np.random.default_rng(0).bytes(700)
    assert complaints(kind, root) == []
    for damaged in (b"", content[:8], content[: len(content) // 2], content[:-1], junk):
        (root / file).write_bytes(damaged)
        found = complaints(kind, root)
        assert all(message.endswith(".") and "\n" not in message for message in found)
        if file != VOC_LIST or damaged == junk:  # a name that is cut off is that of another file
            assert all(file in message for message in found)
            # without its last byte a picture may be whole
            assert found or damaged == content[:-1]
