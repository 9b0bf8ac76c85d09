"""A result in one npz file: its arrays, and its other fields as JSON."""

from __future__ import annotations

import json
import uuid
from dataclasses import fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from metagame.errors import UserError
from metagame.meta import MetaAttributions

VERSION = 1
ABOUT = "about"
DAMAGES = (OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, NotImplementedError, BadZipFile)
"""What reading a damaged file raises."""
ARRAYS = ("values", "first_order", "empty", "standard_error", "picture")


def save(phi: MetaAttributions, path: str | Path) -> None:
    """See :meth:`metagame.meta.MetaAttributions.save`."""
    if phi.values.dtype == object:
        raise UserError("these values are formulas, which cannot be saved as arrays: save str(phi.values) instead.")
    named = vars(phi)
    about = {name: value for name, value in named.items() if name not in ARRAYS}
    arrays = {name: named[name] for name in ARRAYS if named[name] is not None}
    text = json.dumps(about | {"version": VERSION}, ensure_ascii=False, default=int)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{ABOUT: np.array(text)}, **arrays)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another path.") from error


def load(path: str | Path) -> MetaAttributions:
    """See :meth:`metagame.meta.MetaAttributions.load`."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(str(arrays.pop(ABOUT)))
        version = about.pop("version")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: give the path of a file that MetaAttributions.save wrote.") from error
    except DAMAGES as error:
        raise UserError(f"{path} is damaged, or was not written by MetaAttributions.save: save it again.") from error
    if version != VERSION:
        raise UserError(
            f"{path} has version {version}, but this release reads version {VERSION}: load it with the release"
            " that saved it."
        )
    about = {name: tuple(value) if isinstance(value, list) else value for name, value in about.items()}
    if not set(about) | set(arrays) <= {each.name for each in fields(MetaAttributions)} or "values" not in arrays:
        raise UserError(f"{path} is damaged, or was not written by MetaAttributions.save: save it again.")
    return MetaAttributions(**arrays, **about)
