"""Scenes of digits: what is drawn, and that every reader of a segmentation benchmark finds it in the files."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv
from PIL import Image

from metagame.benchmarks.coco import COCOInstances, COCOPanoptic
from metagame.benchmarks.digit_scenes import BACKGROUNDS, INK, MOST_SIDE, WORDS, digit_color, draw_scene
from metagame.benchmarks.digits import Digits
from metagame.benchmarks.imagenet_seg import ImageNetSeg
from metagame.benchmarks.masks import OTHER, UNLABELLED
from metagame.benchmarks.voc import VOC
from scripts import make_digit_scenes
from scripts.make_digit_scenes import STUFF, draw, picture

SEEDS = {"voc": 1, "coco": 2, "imagenet_seg": 3}
COUNT = 7


def make(out, count=COUNT):
    """The script, as the command line runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["make_digit_scenes", "--images", str(count), "--out", str(out)])
        make_digit_scenes.main()
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"))


def drawn(folder):
    """The scenes that the script writes there."""
    return draw(COUNT, SEEDS[folder], 1 if folder == "imagenet_seg" else None)


# What is written

READERS = {
    "voc": ("voc", lambda root: VOC(root, WORDS)),
    "panoptic": ("coco", COCOPanoptic),
    "instances": ("coco", COCOInstances),
    "imagenet_seg": ("imagenet_seg", ImageNetSeg),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_finds_the_classes_pictures_and_digits_of_all_scenes(made, name):
    folder, reader = READERS[name]
    images = reader(str(made / folder)).images()
    assert len({labelled.id for labelled in images}) == COUNT
    for labelled, scene in zip(images, drawn(folder), strict=True):
        assert labelled.classes == {WORDS[label] for label in scene.labels}
        error = np.abs(np.asarray(labelled.image()).astype(int) - np.asarray(picture(scene)))
        assert error.max() == 0 if name == "imagenet_seg" else error.mean() < 3
        found = labelled.mask(WORDS)
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            assert np.array_equal(found == label, mask)
        elsewhere = set(np.unique(found[~scene.masks.any(0)]).tolist())
        assert elsewhere == ({OTHER, UNLABELLED} if name == "voc" else {OTHER})


def test_the_rim_of_a_digit_is_not_labelled_in_voc_only_beside_it(made):
    for labelled, scene in zip(VOC(str(made / "voc"), WORDS).images(), drawn("voc"), strict=True):
        inside = np.pad(scene.masks.any(0), 1)
        beside = inside[:-2, 1:-1] | inside[2:, 1:-1] | inside[1:-1, :-2] | inside[1:-1, 2:]
        assert np.array_equal(labelled.mask(WORDS) == UNLABELLED, beside & ~scene.masks.any(0))
    with Image.open(made / "voc" / "SegmentationClass" / "2026_000000.png") as image:
        assert image.mode == "P"


def annotations(made, kind):
    return json.loads((made / "coco" / "annotations" / f"{kind}_val2017.json").read_text(encoding="utf-8"))


def test_backgrounds_are_stuff_with_the_suffixes_of_coco_and_a_class_of_two_words_is_in_no_image(made):
    content = annotations(made, "panoptic")
    names = {each["id"]: each["name"] for each in content["categories"] if not each["isthing"]}
    assert tuple(names.values()) == STUFF
    for annotation, scene in zip(content["annotations"], drawn("coco"), strict=True):
        (background,) = {part["category_id"] for part in annotation["segments_info"]} & names.keys()
        assert names[background].split("-")[0] == scene.background
    data = COCOPanoptic(str(made / "coco"))
    assert data.names == (*WORDS, "question mark")
    assert not any("question mark" in labelled.classes for labelled in data.images())


@pytest.mark.parametrize("kind", ["panoptic", "instances"])
def test_areas_and_boxes_of_the_annotations_are_those_of_the_masks_and_ids_their_own(made, kind):
    found = [part for each in annotations(made, kind)["annotations"] for part in each.get("segments_info", [each])]
    masks = []
    for scene in drawn("coco"):
        masks += [~scene.masks.any(0), *scene.masks] if kind == "panoptic" else [*scene.masks]
    for part, mask in zip(found, masks, strict=True):
        left, top, width, height = part["bbox"]
        assert part["area"] == mask.sum() == mask[top : top + height, left : left + width].sum()
        assert mask[[top, top + height - 1]].any(1).all()
        assert mask[:, [left, left + width - 1]].any(0).all()
    assert kind == "panoptic" or len({part["id"] for part in found}) == len(found) > COUNT


def contents(root):
    """The files by name; of the MATLAB file, which knows when it was written, the numbers by their place."""
    found = {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*") if path.suffix != ".mat"
    }
    with h5py.File(root / "imagenet_seg" / "gtsegs_ijcv.mat") as file:
        nodes = {name: file["#refs#"][name] for name in file["#refs#"]}
        return found | {name: node[()].tolist() for name, node in nodes.items() if node.dtype != h5py.ref_dtype}


def test_the_same_command_writes_the_same_files_also_over_others(made, tmp_path):
    fewer, expected, again = contents(make(tmp_path, 2)), contents(made), contents(make(tmp_path))
    assert {Path(name).suffix for name in expected} == {".jpg", ".png", ".txt", ".json", ""}
    assert expected == again
    # and the first images do not depend on how many there are
    assert all(expected[name] == content for name, content in fewer.items() if name.endswith((".png", ".jpg")))
    assert not np.array_equal(drawn("voc")[0].pixels, drawn("coco")[0].pixels)


# What is drawn


@pytest.fixture(scope="module")
def scenes():
    """Many scenes of any number of digits."""
    return draw(60, seed=9)


def test_scenes_have_one_to_three_different_digits_that_never_lie_on_each_other(scenes):
    assert {len(scene.labels) for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        assert len(set(scene.labels)) == len(scene.labels) == len(scene.masks)
        assert 0 <= scene.pixels.min() <= scene.pixels.max() <= 1
        assert scene.masks.sum(0).max() == 1
        for rows, columns in map(np.nonzero, scene.masks):
            assert len(rows) > 20
            assert max(np.ptp(rows), np.ptp(columns)) < MOST_SIDE
    assert {label for scene in scenes for label in scene.labels} == set(range(10))
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_scenes_are_drawn_from_the_generator_alone_and_digits_that_find_no_place_are_left_out():
    left, right = (draw_scene(Digits(), np.random.default_rng(3), 10) for _ in range(2))
    assert np.array_equal(left.pixels, right.pixels)
    assert 2 <= len(left.labels) == len(left.masks) < 10


def from_tenth(hue, label):
    """How far a hue lies from that of the label, on the circle."""
    return (hue - label / 10 + 0.5) % 1 - 0.5


def test_hues_of_digits_lie_a_tenth_of_the_circle_apart():
    rng = np.random.default_rng(0)
    for label in range(10):
        away = from_tenth(rgb_to_hsv([digit_color(label, rng) for _ in range(200)])[:, 0], label)
        assert abs(away.mean()) < 0.01
        assert np.abs(away).max() < 0.075


def test_the_pixels_of_a_digit_have_its_hue_and_the_others_the_background(scenes):
    for scene in scenes[:20]:
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            brightest = scene.pixels[mask & (scene.pixels.max(-1) > 0.7)].mean(0)
            assert abs(from_tenth(rgb_to_hsv(brightest)[0], label)) < 0.08
        outside = np.median(scene.pixels[~scene.masks.any(0)], axis=0)
        assert np.abs(outside - BACKGROUNDS[scene.background]).max() < 0.1


def test_a_digit_is_where_its_stroke_is_dense(monkeypatch):
    """Its colour is mixed with the background by the stroke's density, up to a little noise."""
    monkeypatch.setattr("metagame.benchmarks.digit_scenes.BACKGROUNDS", {"night": (0.0, 0.0, 0.0)})
    monkeypatch.setattr("metagame.benchmarks.digit_scenes.digit_color", lambda label, rng: np.ones(3))
    for seed in range(10):
        scene = draw_scene(Digits(), np.random.default_rng(seed), 1)
        density = scene.pixels.mean(-1)
        assert density[scene.masks[0]].min() > INK - 0.05
        assert density[~scene.masks[0]].max() < INK + 0.05
