"""Pascal VOC's development kit: images with a mask of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from metagame.benchmarks.masks import class_indices, read_labels
from metagame.errors import UserError
from metagame.images import read_image

NOTHING, BORDER = 0, 255
"""Labels of pixels of no class, and of pixels that are not labelled."""


@dataclass(frozen=True)
class VOCImage:
    """An image of the kit.

    Attributes:
        id: name of its files.
        root: folder of the kit.
        names: of the classes, by label.
    """

    id: str
    root: Path
    names: Mapping[int, str]

    @property
    def original_id(self) -> str:
        return self.id

    @cached_property
    def classes(self) -> frozenset[str]:
        names = list(self.names.values())
        return frozenset(names[index] for index in np.unique(self.mask(names)) if index >= 0)

    @property
    def path(self) -> Path:
        return self.root / "JPEGImages" / f"{self.id}.jpg"

    @property
    def mask_path(self) -> Path:
        return self.root / "SegmentationClass" / f"{self.id}.png"

    def files(self) -> Sequence[Path]:
        return self.path, self.mask_path

    def image(self) -> Image.Image:
        return read_image(self.path, str(self.path))

    def mask(self, vocabulary: Sequence[str]) -> Int[np.ndarray, "h w"]:
        return class_indices(
            read_labels(self.mask_path, "P"),
            self.names,
            vocabulary,
            others=[NOTHING],
            unlabelled=[BORDER],
            what=f"mask {self.mask_path}",
        )


class VOC:
    """The images of a split of ``root`` (``VOCdevkit/VOC2012``) that have a mask.

    Args:
        root: holds ``ImageSets/Segmentation``, ``JPEGImages`` and ``SegmentationClass``.
        names: of the classes with labels 1, 2, ...
        split: name of the list.

    Raises:
        UserError: there is no such list.
    """

    def __init__(self, root: str, names: Sequence[str], split: str = "val") -> None:
        self.root = Path(root)
        self.names = tuple(names)
        self.list = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not self.list.is_file():
            raise UserError(
                f"benchmark.data.root={root!r} has no {self.list.relative_to(self.root)}: unpack Pascal VOC 2012"
                " (VOCtrainval_11-May-2012.tar) and give its folder VOCdevkit/VOC2012, or run"
                " 'make data EXPERIMENT=table3'."
            )

    def files(self) -> Sequence[Path]:
        """None beside those of the images."""
        return ()

    def images(self) -> list[VOCImage]:
        by_label = dict(enumerate(self.names, start=1))
        try:
            ids = self.list.read_text(encoding="utf-8").split()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.list} is not a text file: get the list again.") from error
        return [VOCImage(each, self.root, by_label) for each in ids]
