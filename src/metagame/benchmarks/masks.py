"""Masks: which class each pixel of an image has."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from metagame.errors import UserError

OTHER, UNLABELLED = -1, -2
"""In a mask of class indices: a pixel of no class of the vocabulary, and one that is not counted."""


def read_labels(path: Path, mode: str) -> Int[np.ndarray, "h w *c"]:
    """The numbers in a PNG of labels, as they are stored.

    Args:
        path: of the file.
        mode: Pillow's mode that it must have: ``P`` (a palette), ``L`` or ``RGB``; a palette may also be grey.

    Raises:
        UserError: it is missing, cannot be decoded, or has another mode.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError as error:
        raise UserError(f"mask {path} does not exist: get the dataset's masks.") from error
    except Exception as error:  # a broken file raises whatever Pillow's decoder of that format meets
        raise UserError(f"mask {path} cannot be decoded: get the file again.") from error
    if image.mode != mode and {image.mode, mode} != {"L", "P"}:
        raise UserError(f"mask {path} has mode {image.mode}, so its labels are lost: get the file with mode {mode}.")
    return np.asarray(image).astype(np.int64)


def class_indices(
    labels: Int[np.ndarray, "h w"],
    names: Mapping[int, str],
    vocabulary: Sequence[str],
    *,
    others: Iterable[int] = (),
    unlabelled: Iterable[int] = (),
    what: str,
) -> Int[np.ndarray, "h w"]:
    """Labels as indices in the vocabulary, int16; :data:`OTHER` for names that are not in it.

    Args:
        labels: as the dataset numbers them.
        names: of labels that are classes.
        vocabulary: class names.
        others: labels that are no class.
        unlabelled: labels of pixels that are not counted.
        what: the mask's name, for errors.

    Raises:
        UserError: a label is none of these.
    """
    meaning = {label: vocabulary.index(name) if name in vocabulary else OTHER for label, name in names.items()}
    meaning |= dict.fromkeys(others, OTHER) | dict.fromkeys(unlabelled, UNLABELLED)
    found, places = np.unique(labels, return_inverse=True)
    unknown = [label for label in found.tolist() if label not in meaning]
    if unknown:
        raise UserError(f"{what} has label {unknown[0]}, which its dataset does not define: get it again.")
    return np.array([meaning[label] for label in found.tolist()], np.int16)[places].reshape(labels.shape)


@contextmanager
def of_format(path: Path, what: str) -> Generator[None]:
    """Within: content that is not as expected is an error that names the file.

    Raises:
        UserError: for what indexing content of another kind raises.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not in the format of {what} ({type(error).__name__}: {error}): get it again."
        ) from error


def read_annotations(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON file of annotations that has these keys.

    Raises:
        UserError: it is missing, cut off, or of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist: set benchmark.data.root to the folder of the dataset, or run 'make data'."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON, or is truncated: get it again.") from error
    lacking = [key for key in keys if not isinstance(content, dict) or key not in content]
    if lacking:
        raise UserError(f"{path} has no {lacking[0]!r}: give the annotations file of the dataset.")
    return content
