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
from metagame.games import GameError
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

    @cached_property
    def classes(self) -> frozenset[str]:
        names = list(self.names.values())
        return frozenset(names[index] for index in np.unique(self.mask(names)) if index >= 0)

    def image(self) -> Image.Image:
        path = self.root / "JPEGImages" / f"{self.id}.jpg"
        return read_image(path, str(path))

    def mask(self, vocabulary: Sequence[str]) -> Int[np.ndarray, "h w"]:
        path = self.root / "SegmentationClass" / f"{self.id}.png"
        return class_indices(
            read_labels(path, "P"), self.names, vocabulary, others=[NOTHING], unlabelled=[BORDER], what=f"mask {path}"
        )


class VOC:
    """The images of a split of ``root`` (``VOCdevkit/VOC2012``) that have a mask.

    Args:
        root: holds ``ImageSets/Segmentation``, ``JPEGImages`` and ``SegmentationClass``.
        names: of the classes with labels 1, 2, ...
        split: name of the list.

    Raises:
        GameError: there is no such list.
    """

    def __init__(self, root: str, names: Sequence[str], split: str = "val") -> None:
        self.root = Path(root)
        self.names = tuple(names)
        self.list = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not self.list.is_file():
            raise GameError(
                f"benchmark.data.root={root!r} has no {self.list.relative_to(self.root)}: unpack Pascal VOC 2012"
                " (VOCtrainval_11-May-2012.tar) and give its folder VOCdevkit/VOC2012, or run"
                " 'make data EXPERIMENT=table3'."
            )

    def images(self) -> list[VOCImage]:
        by_label = dict(enumerate(self.names, start=1))
        try:
            ids = self.list.read_text(encoding="utf-8").split()
        except UnicodeDecodeError as error:
            raise GameError(f"{self.list} is no text: get the list again.") from error
        return [VOCImage(each, self.root, by_label) for each in ids]
