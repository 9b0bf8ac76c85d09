"""ImageNet-1k validation images by class, in the three layouts in which people have them."""

from __future__ import annotations

import csv
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from PIL import Image

from metagame.errors import UserError
from metagame.images import read_image

log = logging.getLogger(__name__)
N_CLASSES = 1000
PER_CLASS = 50
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SOLUTION = "LOC_val_solution.csv"
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png"}

Item = TypeVar("Item")


class ImageNet:
    """Validation images of ImageNet-1k: the k-th of a class in file order; labels are 0 to 999 in the usual order.

    Args:
        root: a folder with 1,000 class folders (their sorted names, WordNet ids, are labels 0 to 999); or with the
            50,000 files ``ILSVRC2012_val_*`` and their ground truth, also as Kaggle has them; or with parquet or arrow
            files of columns ``image`` and ``label``.

    Raises:
        UserError: the folder has none of these layouts.
    """

    def __init__(self, root: str) -> None:
        folder = Path(root)
        layouts = (ClassFolders, FlatFolder, Tables)
        found = next((layout for layout in layouts if layout.fits(folder)), None)
        if found is None:
            raise UserError(
                f"folder {root!r} contains no ImageNet-1k validation set: put its {N_CLASSES:,} class folders"
                f" there, or the ILSVRC2012_val files with {TRUTH}, or its parquet or arrow files."
            )
        self._layout = found(folder)

    def image(self, label: int, k: int) -> Image.Image:
        """Image ``k``, from 0, of class ``label``, in RGB.

        Raises:
            UserError: there is no such image, or it cannot be decoded.
        """
        if label not in range(N_CLASSES):
            raise UserError(f"class {label} is not in ImageNet-1k: give labels 0 to {N_CLASSES - 1}.")
        return self._layout.image(label, k)

    def files(self, label: int, k: int) -> Sequence[Path]:
        """The file that has image ``k`` of class ``label``; none where :meth:`image` finds none."""
        if label not in range(N_CLASSES):
            return ()
        try:
            return (self._layout.file(label, k),)
        except UserError:
            return ()


def nth(items: Sequence[Item], k: int, label: int, root: Path) -> Item:
    """Item k of a class.

    Raises:
        UserError: there are too few.
    """
    if not 0 <= k < len(items):
        raise UserError(f"class {label} has {len(items)} images under {root}: image {k} is missing; complete the set.")
    return items[k]


class Layout(ABC):
    """A way to store the images; ``fits`` looks whether a folder is stored so."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    @abstractmethod
    def fits(cls, root: Path) -> bool: ...

    @abstractmethod
    def file(self, label: int, k: int) -> Path:
        """The file that has the image.

        Raises:
            UserError: the class does not have so many images.
        """

    def image(self, label: int, k: int) -> Image.Image:
        """The image.

        Raises:
            UserError: the class does not have so many images, or the file cannot be decoded.
        """
        path = self.file(label, k)
        return read_image(path, str(path))


class ClassFolders(Layout):
    """A folder for each class, named by its WordNet id."""

    @classmethod
    def fits(cls, root: Path) -> bool:
        return root.is_dir() and any(re.fullmatch(r"n\d{8}", path.name) for path in root.iterdir())

    @cached_property
    def _folders(self) -> list[Path]:
        folders = sorted(path for path in self.root.iterdir() if re.fullmatch(r"n\d{8}", path.name))
        if len(folders) != N_CLASSES:
            raise UserError(
                f"{self.root} has {len(folders)} class folders, but all {N_CLASSES:,} are needed, because their"
                " order gives the labels: complete the set."
            )
        return folders

    def file(self, label: int, k: int) -> Path:
        folder = self._folders[label]
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if len(files) > PER_CLASS:
            raise UserError(
                f"{folder} has {len(files)} images, but the validation set has {PER_CLASS} of each class: it"
                " looks like the training set, so give the folder of the validation set."
            )
        return nth(files, k, label, folder)


class FlatFolder(Layout):
    """All images in one folder, and a text file of their labels, unless their names end in WordNet ids.

    Kaggle's file of labels, ``LOC_val_solution.csv``, names WordNet ids by image; its images lie in
    ``ILSVRC/Data/CLS-LOC/val``. The ground-truth file has a line for each image, in order of their names. Its numbers
    are ILSVRC2012 ids from 1 to 1000 in the order of the development kit, which ``meta.mat`` or ``ILSVRC2012_ids.txt``
    (a WordNet id a line) beside it explains; numbers from 0 to 999 are taken as labels.
    """

    @classmethod
    def fits(cls, root: Path) -> bool:
        return root.is_dir() and next(cls._folder(root).glob("ILSVRC2012_val_*"), None) is not None

    @staticmethod
    def _folder(root: Path) -> Path:
        """The folder of the images: of Kaggle's archive one deep inside."""
        kaggles = (root / inside for inside in ("ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val"))
        return next((place for place in kaggles if place.is_dir()), root)

    @cached_property
    def _files(self) -> dict[int, list[Path]]:
        found = self._folder(self.root).glob("ILSVRC2012_val_*")
        files = sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)
        labels = self._labels_by_wordnet_id(files) or self._labels()
        if len(labels) != len(files):
            raise UserError(
                f"{TRUTH} has {len(labels)} lines for {len(files)} images under {self.root}: complete the set."
            )
        by_label: dict[int, list[Path]] = {}
        for path, label in zip(files, labels, strict=True):
            by_label.setdefault(label, []).append(path)
        return by_label

    def _labels_by_wordnet_id(self, files: Sequence[Path]) -> list[int] | None:
        """From the ends of the files' names, or Kaggle's file; None where there is neither."""
        named = [re.search(r"_(n\d{8})$", path.stem) for path in files]
        ids = [match[1] for match in named if match is not None]
        solution = self._beside(SOLUTION)
        if len(ids) < len(files) and solution is not None:
            by_image = _read_solution(solution)
            ids = [by_image[path.stem] for path in files if path.stem in by_image]
        if not ids:
            return None
        order = sorted(set(ids))
        if len(order) != N_CLASSES or len(ids) != len(files):
            raise UserError(
                f"of {len(files)} images under {self.root}, {len(ids)} have a WordNet id, of {len(order)}"
                f" classes, but all {N_CLASSES:,} are needed, because their order gives the labels: complete the"
                " set."
            )
        rank = {wordnet: label for label, wordnet in enumerate(order)}
        return [rank[each] for each in ids]

    def _labels(self) -> list[int]:
        path = self._beside(TRUTH)
        if path is None:
            raise UserError(
                f"{self.root} has no {TRUTH} in it or above it, nor Kaggle's {SOLUTION}: take the former from the"
                " development kit."
            )
        try:
            ids = [int(line) for line in path.read_text(encoding="utf-8").split()]
        except ValueError as error:
            raise UserError(
                f"{path} does not have a number per line: get it from the development kit again."
            ) from error
        if not ids or min(ids) < 0 or max(ids) > N_CLASSES:
            raise UserError(
                f"{path} does not have numbers from 1 to {N_CLASSES}: take it from the development kit again."
            )
        if min(ids) == 0:
            return ids
        order = self._wordnet_ids()
        if max(ids) > len(order):
            raise UserError(
                f"{path} contains class {max(ids)}, but only {len(order)} classes are explained: complete its meta.mat."
            )
        rank = {wordnet: label for label, wordnet in enumerate(sorted(order))}
        return [rank[order[number - 1]] for number in ids]

    def _wordnet_ids(self) -> list[str]:
        """WordNet ids of ILSVRC2012 ids 1 to 1000."""
        names, meta = self._beside("ILSVRC2012_ids.txt"), self._beside("meta.mat")
        if names is not None:
            ids = names.read_text(encoding="utf-8").split()
        elif meta is not None:
            ids = _kit_order(meta)
        else:
            raise UserError(f"{TRUTH} numbers classes as the development kit does: put the kit's meta.mat beside it.")
        return ids[:N_CLASSES]

    def _beside(self, name: str) -> Path | None:
        """The file in the folder, above it, or in the development kit's place."""
        places = (self.root, self.root.parent, self.root / "ILSVRC2012_devkit_t12" / "data")
        places += (self.root.parent / "ILSVRC2012_devkit_t12" / "data", *list(self.root.parents)[1:4])
        return next((place / name for place in places if (place / name).is_file()), None)

    def file(self, label: int, k: int) -> Path:
        return nth(self._files.get(label, []), k, label, self.root)


def _read_solution(path: Path) -> dict[str, str]:
    """WordNet ids by the image's name, from Kaggle's file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} does not have ImageId and PredictionString in each line: take it from Kaggle again."
        ) from error


def _kit_order(meta: Path) -> list[str]:
    """WordNet ids in the order of the development kit's ``meta.mat``."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return [str(synset["WNID"]) for synset in sorted(synsets, key=lambda each: int(each["ILSVRC2012_ID"]))]
    except Exception as error:  # scipy's reader raises many kinds on a broken file
        raise UserError(f"{meta} cannot be read: take it from the development kit again.") from error


class Tables(Layout):
    """Parquet or arrow files with columns ``image`` (a struct with ``bytes``) and ``label``, as the hub stores them."""

    @classmethod
    def fits(cls, root: Path) -> bool:
        return bool(cls._all_paths(root))

    @staticmethod
    def _all_paths(root: Path) -> list[Path]:
        return sorted([*root.glob("**/*.parquet"), *root.glob("**/*.arrow")]) if root.is_dir() else []

    @cached_property
    def _paths(self) -> list[Path]:
        """The files of the validation split, as they, their folders or the library that wrote them say.

        Raises:
            UserError: there are those of other splits only.
        """
        by_split: dict[str, list[Path]] = {}
        for path in self._all_paths(self.root):
            by_split.setdefault(_split(path, self.root), []).append(path)
        if "validation" in by_split:
            return by_split["validation"]
        if set(by_split) != {""}:
            raise UserError(
                f"{self.root} has images of {' and '.join(filter(None, by_split))} only: fetch those of the"
                " validation split, which the benchmark uses."
            )
        log.warning(
            "The files under %s do not say which split they belong to: they are taken as the validation split.",
            self.root,
        )
        return by_split[""]

    @cached_property
    def _rows(self) -> dict[int, list[tuple[Path, int]]]:
        """For each label, (file, row) of its images in file order; only the label column is read."""
        by_label: dict[int, list[tuple[Path, int]]] = {}
        for path in self._paths:
            for row, label in enumerate(_read(path, "label")):
                by_label.setdefault(label, []).append((path, row))
        return by_label

    def _place(self, label: int, k: int) -> tuple[Path, int]:
        return nth(self._rows.get(label, []), k, label, self.root)

    def file(self, label: int, k: int) -> Path:
        return self._place(label, k)[0]

    def image(self, label: int, k: int) -> Image.Image:
        path, row = self._place(label, k)
        return read_image(_read_image_bytes(path, row), f"{path}, row {row}")


SPLITS = {"val": "validation", "valid": "validation", "validation": "validation", "train": "training", "test": "test"}
"""By the words that names of files and folders have for them."""


def _split(path: Path, root: Path) -> str:
    """The split that a file is of, by its name, a folder's below the root, or ``state.json``; empty if none says."""
    state = path.with_name("state.json")  # of the datasets library's save_to_disk
    words = [json.loads(state.read_text(encoding="utf-8")).get("_split") or ""] if state.is_file() else []
    words += [path.stem, *(parent.name for parent in path.parents if parent != root and root in parent.parents)]
    for word in words:
        for part in re.split(r"[^a-z]+", word.lower()):
            if part in SPLITS:
                return SPLITS[part]
    return SPLITS.get(root.name.lower(), "")


def _read(path: Path, column: str) -> list:
    """A column of a parquet or arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            return pq.read_table(path, columns=[column])[column].to_pylist()
        return _arrow_table(path)[column].to_pylist()
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{path} has no readable column {column!r}: fetch the file again.") from error


def _arrow_table(path: Path):
    """An arrow file, streamed (as the datasets library caches it) or random-access; memory-mapped."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()


def _read_image_bytes(path: Path, row: int) -> bytes:
    """The encoded image in a row; empty if the row has no image. Of a parquet file, only the row group is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".arrow":
            return _arrow_table(path)["image"][row].as_py()["bytes"] or b""
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if row < n_rows:
                return file.read_row_group(group, columns=["image"])["image"][row].as_py()["bytes"] or b""
            row -= n_rows
    except (pa.ArrowInvalid, KeyError, OSError, TypeError) as error:
        raise UserError(f"{path} has no readable images: fetch the file again.") from error
    raise UserError(f"{path} has no row {row}: fetch the file again.")
