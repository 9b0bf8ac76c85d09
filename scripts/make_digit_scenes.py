"""Write the tiny segmentation benchmarks: digit scenes as a VOC devkit, as COCO panoptic and as ImageNet-Seg.

    python -m scripts.make_digit_scenes [--images 80] [--out data/tiny]

The digits are held out: no model here was trained on them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_dilation

from metagame.benchmarks.coco import VOID
from metagame.benchmarks.digit_scenes import BACKGROUNDS, WORDS, DigitScene, draw_scene
from metagame.benchmarks.digits import Digits
from metagame.benchmarks.voc import BORDER, NOTHING

STUFF = ("night-stuff", "sea-other", "forest-merged", "earth-stuff")
"""The backgrounds as COCO would call them, in the order of BACKGROUNDS."""
STUFF_IDS = dict(zip(BACKGROUNDS, range(92, 92 + len(BACKGROUNDS)), strict=True))
PALETTE = np.random.default_rng(0).integers(0, 256, 3 * 256).tolist()


def draw(count: int, seed: int, n_digits: int | None = None) -> list[DigitScene]:
    """Scenes of held-out digits."""
    digits, rng = Digits(held_out=True), np.random.default_rng(seed)
    return [draw_scene(digits, rng, n_digits) for _ in range(count)]


def picture(scene: DigitScene) -> Image.Image:
    return Image.fromarray(np.round(scene.pixels * 255).astype(np.uint8))


def save_jpeg(scene: DigitScene, path: Path) -> None:
    picture(scene).save(path, quality=95, subsampling=0)


def write_voc(scenes: list[DigitScene], root: Path) -> None:
    """Labels 1 to 10 are zero to nine; the rim of a digit is not labelled, as in VOC."""
    folders = [root / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    ids = [f"2026_{number:06d}" for number in range(len(scenes))]
    for name, scene in zip(ids, scenes, strict=True):
        labels = np.full(scene.pixels.shape[:2], NOTHING, np.uint8)
        labels[binary_dilation(scene.masks.any(0)) & ~scene.masks.any(0)] = BORDER
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            labels[mask] = label + 1
        image = Image.fromarray(labels, "P")
        image.putpalette(PALETTE)
        image.save(folders[1] / f"{name}.png")
        save_jpeg(scene, folders[0] / f"{name}.jpg")
    (folders[2] / "val.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")


def write_coco(scenes: list[DigitScene], root: Path, split: str = "val2017") -> None:
    """Digits are things, backgrounds stuff; panoptic PNGs, and the same digits as instances."""
    annotations = root / "annotations"
    for folder in (root / split, annotations / f"panoptic_{split}"):
        folder.mkdir(parents=True, exist_ok=True)
    images, panoptic, instances = [], [], []
    for number, scene in enumerate(scenes, start=1):
        name = f"{number:012d}"
        height, width = scene.pixels.shape[:2]
        images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        segments = np.full((height, width), 1 + len(scene.labels))
        info = [_segment(1 + len(scene.labels), STUFF_IDS[scene.background], ~scene.masks.any(0))]
        for place, (label, mask) in enumerate(zip(scene.labels, scene.masks, strict=True), start=1):
            segments[mask] = place
            info.append(_segment(place, label + 1, mask))
            code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            code["counts"] = code["counts"].decode("ascii")
            instances.append(info[-1] | {"id": len(instances) + 1, "image_id": number, "segmentation": code})
        panoptic.append({"image_id": number, "file_name": f"{name}.png", "segments_info": info})
        rgb = np.stack([segments % 256, segments // 256 % 256, segments // 256**2], axis=-1)
        Image.fromarray(rgb.astype(np.uint8)).save(annotations / f"panoptic_{split}" / f"{name}.png")
        save_jpeg(scene, root / split / f"{name}.jpg")
    things = [{"id": label, "name": word, "isthing": 1} for label, word in enumerate(WORDS, start=1)]
    things.append({"id": 91, "name": "question mark", "isthing": 1})  # of two tokens, and in no image
    stuff = [{"id": STUFF_IDS[each], "name": name, "isthing": 0} for each, name in zip(BACKGROUNDS, STUFF, strict=True)]
    for kind, found, categories in (("panoptic", panoptic, things + stuff), ("instances", instances, things)):
        content = {"images": images, "annotations": found, "categories": categories}
        (annotations / f"{kind}_{split}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def _segment(key: int, category: int, mask: np.ndarray) -> dict:
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    return {
        "id": VOID + key, "category_id": category, "iscrowd": 0,
        "area": int(mask.sum()), "bbox": [int(length) for length in box],
    }  # fmt: skip


def write_imagenet_seg(scenes: list[DigitScene], root: Path) -> None:
    """A MATLAB file with one digit an image, and names of its made-up WordNet ids."""
    root.mkdir(parents=True, exist_ok=True)
    names = {f"n{label:08d}": word for label, word in enumerate(WORDS, start=1)}
    (root / "names.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    with h5py.File(root / "gtsegs_ijcv.mat", "w") as file:
        cells, values = file.create_group("#refs#"), file.create_group("value")
        columns: dict[str, list[h5py.Dataset]] = {"img": [], "gt": [], "id": []}
        for number, scene in enumerate(scenes):
            (label,), (mask,) = scene.labels, scene.masks
            pixels = np.asarray(picture(scene)).transpose(2, 1, 0)
            columns["img"].append(_cell(cells, f"img{number}", pixels))
            inner = _cell(cells, f"mask{number}", mask.T.astype(np.uint8))
            gt = cells.create_dataset(f"gt{number}", (1, 1), h5py.ref_dtype)
            gt[0, 0] = inner.ref
            columns["gt"].append(gt)
            text = np.array([[ord(character)] for character in f"n{label + 1:08d}_{number}"], np.uint16)
            columns["id"].append(_cell(cells, f"id{number}", text))
        for field, datasets in columns.items():
            references = values.create_dataset(field, (len(datasets), 1), h5py.ref_dtype)
            references[:, 0] = [dataset.ref for dataset in datasets]


def _cell(cells: h5py.Group, name: str, values: np.ndarray) -> h5py.Dataset:
    return cells.create_dataset(name, data=values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=80, help="of each benchmark")
    parser.add_argument("--out", type=Path, default=Path("data/tiny"))
    arguments = parser.parse_args()
    write_voc(draw(arguments.images, seed=1), arguments.out / "voc")
    write_coco(draw(arguments.images, seed=2), arguments.out / "coco")
    write_imagenet_seg(draw(arguments.images, seed=3, n_digits=1), arguments.out / "imagenet_seg")


if __name__ == "__main__":
    main()
