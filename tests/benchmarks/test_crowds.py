"""COCO's crowds: one segment of many things, counted as one or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from metagame.benchmarks.coco import COCOInstances, COCOPanoptic
from metagame.benchmarks.masks import UNLABELLED

CATEGORIES = [{"id": 1, "name": "person", "isthing": 1}, {"id": 2, "name": "dog", "isthing": 1}]


@pytest.fixture
def root(tmp_path):
    """An image whose left half is a crowd of people, and whose right half is a dog."""
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations/panoptic_val2017").mkdir(parents=True)
    Image.new("RGB", (4, 2)).save(tmp_path / "val2017/a.jpg")
    mask = np.zeros((2, 4, 3), np.uint8)
    mask[:, :2, 0], mask[:, 2:, 0] = 5, 6
    Image.fromarray(mask).save(tmp_path / "annotations/panoptic_val2017/a.png")
    images = [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 4}]
    segments = [{"id": 5, "category_id": 1, "iscrowd": 1}, {"id": 6, "category_id": 2, "iscrowd": 0}]
    panoptic = {"images": images, "categories": CATEGORIES}
    panoptic["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]
    crowd = {"counts": [0, 4, 4], "size": [2, 4]}
    dog = [[2, 0, 4, 0, 4, 2, 2, 2]]
    instances = {"images": images, "categories": CATEGORIES}
    instances["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 1, "segmentation": crowd, "area": 4},
        {"id": 2, "image_id": 1, "category_id": 2, "iscrowd": 0, "segmentation": dog, "area": 4},
    ]
    (tmp_path / "annotations/panoptic_val2017.json").write_text(json.dumps(panoptic))
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(instances))
    return tmp_path


@pytest.mark.parametrize("dataset", [COCOPanoptic, COCOInstances])
@pytest.mark.parametrize(("crowds", "left"), [(True, 0), (False, UNLABELLED)])
def test_pixels_of_a_crowd_are_of_its_class_or_not_counted(root, dataset, crowds, left):
    (image,) = dataset(str(root), crowds=crowds).images()
    mask = image.mask(["person", "dog"])
    assert (mask[:, 0] == left).all()
    assert (mask[:, 3] == 1).all()
    assert image.classes == ({"person", "dog"} if crowds else {"dog"})
