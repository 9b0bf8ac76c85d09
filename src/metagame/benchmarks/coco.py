"""MS COCO: images with panoptic masks, or with the instance annotations as an alternative truth."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image
from pycocotools.coco import COCO

from metagame.benchmarks.masks import OTHER, UNLABELLED, class_indices, of_format, read_annotations, read_labels
from metagame.errors import UserError
from metagame.images import read_image

VOID = 0
"""The panoptic id of pixels that are not labelled."""


def concept_name(category: str) -> str:
    """The name of a category without the suffixes that panoptic categories have."""
    return re.sub(r"-(merged|stuff|other)\b", "", category)


@dataclass(frozen=True)
class PanopticImage:
    """An image with its segments.

    Attributes:
        id: its file's name without extension.
        original_id: the integer that the annotations know it by.
        path: of the image.
        mask_path: of the PNG of segment ids.
        annotations: file that says what the segments are.
        things: class name of each segment that is a thing.
        stuff: ids of the other segments.
        crowds: ids of segments that are not counted.
    """

    id: str
    original_id: str
    path: Path
    mask_path: Path
    annotations: Path
    things: Mapping[int, str]
    stuff: tuple[int, ...]
    crowds: tuple[int, ...] = ()

    @property
    def classes(self) -> frozenset[str]:
        return frozenset(self.things.values())

    def files(self) -> Sequence[Path]:
        return self.path, self.mask_path, self.annotations

    def image(self) -> Image.Image:
        return read_image(self.path, str(self.path))

    def mask(self, vocabulary: Sequence[str]) -> Int[np.ndarray, "h w"]:
        segments = read_labels(self.mask_path, "RGB") @ np.array([1, 256, 256**2])
        return class_indices(
            segments,
            self.things,
            vocabulary,
            others=self.stuff,
            unlabelled=[VOID, *self.crowds],
            what=f"mask {self.mask_path}",
        )


class COCOPanoptic:
    """The images of a split, things being classes; stuff is of no class, void is not labelled.

    Args:
        root: holds ``annotations/panoptic_SPLIT.json``, ``annotations/panoptic_SPLIT/`` with the PNGs, and ``SPLIT/``.
        split: such as ``val2017``.
        crowds: False: pixels of things in crowds, of which one segment holds many, are not counted.

    Raises:
        UserError: the annotations are missing, cut off or of another kind.
    """

    def __init__(self, root: str, split: str = "val2017", crowds: bool = True) -> None:
        self.crowds = crowds
        self.folder = Path(root) / split
        self.masks = Path(root) / "annotations" / f"panoptic_{split}"
        self.annotations = self.masks.with_suffix(".json")
        content = read_annotations(self.annotations, ("images", "annotations", "categories"))
        with of_format(self.annotations, "COCO's panoptic annotations"):
            categories = content["categories"]
            self.things = {each["id"]: concept_name(each["name"]) for each in categories if each["isthing"]}
            self.stuff = {each["id"] for each in categories if not each["isthing"]}
            self.names = tuple(self.things.values())
            files = {each["id"]: each["file_name"] for each in content["images"]}
            nameless = [each["image_id"] for each in content["annotations"] if each["image_id"] not in files]
            if nameless:
                raise UserError(
                    f"{self.annotations} has masks of image {nameless[0]}, but not the image itself: get it again."
                )
            self._images = [self._image(files[each["image_id"]], each) for each in content["annotations"]]

    def files(self) -> Sequence[Path]:
        """The annotations, which name the classes."""
        return (self.annotations,)

    def images(self) -> list[PanopticImage]:
        return list(self._images)

    def _image(self, file_name: str, annotation: dict[str, Any]) -> PanopticImage:
        # a segment of neither kind stays nameless, which the mask tells of
        segments = annotation["segments_info"]
        crowds = () if self.crowds else tuple(each["id"] for each in segments if each["iscrowd"])
        kinds = {each["id"]: each["category_id"] for each in segments if each["id"] not in crowds}
        return PanopticImage(
            Path(file_name).stem,
            str(annotation["image_id"]),
            self.folder / file_name,
            self.masks / annotation["file_name"],
            self.annotations,
            {segment: self.things[kind] for segment, kind in kinds.items() if kind in self.things},
            tuple(segment for segment, kind in kinds.items() if kind in self.stuff),
            crowds,
        )


@dataclass(frozen=True)
class InstanceImage:
    """An image with its instances.

    Attributes:
        id: its file's name without extension.
        original_id: the integer that the annotations know it by.
        path: of the image.
        annotations: file of the instances.
        coco: of pycocotools, which turns instances into masks.
        instances: as the file has them.
        names: of the categories.
        size: height and width that the annotations are for.
        crowds: False: pixels of crowds are not counted.
    """

    id: str
    original_id: str
    path: Path
    annotations: Path
    coco: COCO
    instances: tuple[dict[str, Any], ...]
    names: Mapping[int, str]
    size: tuple[int, int]
    crowds: bool = True

    @property
    def classes(self) -> frozenset[str]:
        return frozenset(self._name(each) for each in self.instances if not self._is_left_out(each))

    def files(self) -> Sequence[Path]:
        return self.path, self.annotations

    def image(self) -> Image.Image:
        return read_image(self.path, str(self.path))

    def mask(self, vocabulary: Sequence[str]) -> Int[np.ndarray, "h w"]:
        """Where instances overlap, the smaller one is in front."""
        indices = np.full(self.size, OTHER, np.int16)
        with of_format(self.path, "COCO's instances, in the annotations of it"):
            for each in sorted(self.instances, key=lambda instance: -instance["area"]):
                name = self._name(each)
                index = vocabulary.index(name) if name in vocabulary else OTHER
                index = UNLABELLED if self._is_left_out(each) else index
                indices[self.coco.annToMask(each).astype(bool)] = index
        return indices

    def _is_left_out(self, instance: dict[str, Any]) -> bool:
        return not self.crowds and bool(instance["iscrowd"])

    def _name(self, instance: dict[str, Any]) -> str:
        if instance["category_id"] not in self.names:
            raise UserError(
                f"an instance of {self.id} has category {instance['category_id']}, which the annotations do not name:"
                " get them again."
            )
        return self.names[instance["category_id"]]


class COCOInstances:
    """The images of a split with the instance annotations; every pixel is labelled, by no class outside instances.

    Args:
        root: holds ``annotations/instances_SPLIT.json`` and ``SPLIT/``.
        split: such as ``val2017``.
        crowds: False: pixels of crowds are not counted.

    Raises:
        UserError: the annotations are missing, cut off or of another kind.
    """

    def __init__(self, root: str, split: str = "val2017", crowds: bool = True) -> None:
        self.crowds = crowds
        self.folder = Path(root) / split
        self.annotations = Path(root) / "annotations" / f"instances_{split}.json"
        self.coco = COCO()
        self.coco.dataset = read_annotations(self.annotations, ("images", "annotations", "categories"))
        with of_format(self.annotations, "COCO's instance annotations"):
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
                self.coco.createIndex()
            things = {key: concept_name(category["name"]) for key, category in self.coco.cats.items()}
            self.names = tuple(things.values())
            self._images = [self._image(key, each, things) for key, each in self.coco.imgs.items()]

    def files(self) -> Sequence[Path]:
        """The annotations, which name the classes."""
        return (self.annotations,)

    def images(self) -> list[InstanceImage]:
        return list(self._images)

    def _image(self, key: int, image: dict[str, Any], things: Mapping[int, str]) -> InstanceImage:
        name = image["file_name"]
        size = (image["height"], image["width"])
        instances = tuple(self.coco.imgToAnns[key])
        path = self.folder / name
        about = self.annotations, self.coco, instances, things, size, self.crowds
        return InstanceImage(path.stem, str(key), path, *about)
