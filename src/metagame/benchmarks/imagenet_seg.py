"""ImageNet-Segmentation (Guillaumin et al., 2014): one object and its mask an image, in a MATLAB file."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Int
from PIL import Image

from metagame.benchmarks.masks import OTHER, read_annotations
from metagame.errors import UserError
from metagame.images import to_rgb

FIELDS = ("img", "gt", "id")


@dataclass(frozen=True)
class ImageNetSegImage:
    """An image of the file.

    Attributes:
        id: as the file has it, such as ``n02084071_1005``.
        place: in the file, from 0.
        path: of the file.
        name: of its class.
    """

    id: str
    place: int
    path: Path
    name: str

    @property
    def original_id(self) -> str:
        return self.id

    @property
    def classes(self) -> frozenset[str]:
        return frozenset({self.name})

    def files(self) -> Sequence[Path]:
        return (self.path,)

    def image(self) -> Image.Image:
        with opened(self.path) as file:
            # MATLAB's order of axes is the other way round
            pixels = np.ascontiguousarray(_cell(file, "img", self.place).T.astype(np.uint8))
            return to_rgb(Image.fromarray(pixels), self.id)

    def mask(self, vocabulary: Sequence[str]) -> Int[np.ndarray, "h w"]:
        with opened(self.path) as file:
            labels = np.asarray(file[_cell(file, "gt", self.place)[0, 0]]).T
            if labels.max() > 1:
                raise UserError(
                    f"the mask of {self.id} has label {labels.max()}, but only 0 and 1 are expected: get"
                    f" {self.path} again."
                )
        index = vocabulary.index(self.name) if self.name in vocabulary else OTHER
        return np.where(labels > 0, index, OTHER).astype(np.int16)


class ImageNetSeg:
    """The images of ``gtsegs_ijcv.mat`` whose WordNet id has a name.

    Reads the fields ``img``, ``gt`` and ``id`` of the file's ``value``.

    Args:
        root: holds ``gtsegs_ijcv.mat``, and ``names.json``, which maps WordNet ids such as ``n02084071`` to names;
            several ids may share one. ``python -m scripts.name_wordnet_labels`` makes it, of the names of the paper's
            code where ``imagenet_class_map.json`` is there, too (its text does not say which they are).

    Raises:
        UserError: a file is missing, broken or of another kind.
    """

    def __init__(self, root: str) -> None:
        self.path = Path(root) / "gtsegs_ijcv.mat"
        self.names_path = Path(root) / "names.json"
        self.labels = _read_names(self.names_path)
        self.names = tuple(dict.fromkeys(self.labels.values()))
        self.ids = image_ids(self.path)

        if not any(wordnet_id(each) in self.labels for each in self.ids):
            raise UserError(
                f"no image of {self.path} has a WordNet id that names.json names (the first id is"
                f" {self.ids[:1]}): make names.json with scripts.name_wordnet_labels."
            )

    def files(self) -> Sequence[Path]:
        """The names of the WordNet ids."""
        return (self.names_path,)

    def images(self) -> list[ImageNetSegImage]:
        named = [(place, each, self.labels.get(wordnet_id(each))) for place, each in enumerate(self.ids)]
        # an id that comes again is told apart by its place
        return [
            ImageNetSegImage(each if self.ids.index(each) == place else f"{each} #{place}", place, self.path, name)
            for place, each, name in named
            if name is not None
        ]


@contextmanager
def opened(path: Path) -> Generator[h5py.File]:
    """The HDF5 file, open for reading.

    Raises:
        UserError: it is missing, or it or what is read of it is broken.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist: get gtsegs_ijcv.mat of ImageNet-Segmentation with 'make data EXPERIMENT=figure13'."
        ) from error
    except UserError:
        raise
    except (OSError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:  # as h5py has it
        raise UserError(f"{path} is cut off, or not the file of ImageNet-Segmentation: get it again.") from error


def image_ids(path: Path) -> list[str]:
    """The ids of all images in the file, in order.

    Raises:
        UserError: the file is missing, broken or of another kind.
    """
    with opened(path) as file:
        lacking = [field for field in FIELDS if f"value/{field}" not in file]
        if lacking:
            raise UserError(f"{path} has no field value/{lacking[0]}: give gtsegs_ijcv.mat of ImageNet-Segmentation.")
        return [_text(file[reference]) for reference in file["value/id"][:, 0]]


def wordnet_id(image_id: str) -> str:
    """The WordNet id in an image's id; empty if the id does not contain one."""
    found = re.search(r"n\d{8}", image_id)
    return found[0] if found else ""


def _read_names(path: Path) -> dict[str, str]:
    names = read_annotations(path, ())
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{path} does not map WordNet ids to names: make it with scripts.name_wordnet_labels.")
    return names


def _cell(file: h5py.File, field: str, place: int) -> np.ndarray:
    return np.asarray(file[file[f"value/{field}"][place, 0]])


def _text(characters: h5py.Dataset) -> str:
    return "".join(map(chr, np.asarray(characters).ravel().tolist()))
