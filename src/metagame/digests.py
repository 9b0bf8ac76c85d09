"""Hashes of what results depend on: values, files, and folders of files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from uuid import uuid4

from metagame.errors import UserError

LARGE = 64 * 2**20
"""Bytes from which on the hash of a file is kept for later processes."""

SETTLED = 2 * 10**9
"""Nanoseconds since its last change after which a file's time tells versions of it apart."""

IGNORED = (".*", "*.md", "license*")
"""Files and folders that no model is loaded from."""

_Version = tuple[str, int, int, int, int]
"""Of a file its path, its size, when its content changed, when anything of it changed, and its inode.

The first time can be set, as ``cp -p`` and ``rsync -t`` do; the second cannot.
"""

_known: dict[_Version, str] = {}


def digest(content: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of ``content`` as JSON."""
    return _shorten(hashlib.sha256(json.dumps(content, sort_keys=True).encode()))


def file_digest(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file.

    A file that has not changed is read once in a process; a large one once for all, its hash is kept in the user's
    cache folder.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        before = _version(path)
        found = _known.get(before) or _recall(before)
        if found is None:
            found = _read(path)
            # a file that changes now may change again without another time or size
            if _version(path) == before and time.time_ns() - before[2] > SETTLED:
                _keep(before, found)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): check that it exists and that you may read it."
        ) from error
    return found


def folder_digest(folder: Path) -> str:
    """A hash of the names and the content of all files in a folder and the folders in it.

    Files and folders that are called like :data:`IGNORED`, in capitals or not, do not count.

    Raises:
        UserError: a file cannot be read.
    """
    return digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in sorted(_files(folder, set()))])


def _files(folder: Path, above: set[Path]) -> Iterator[Path]:
    """The files that count; a link to a folder is followed, but for one to a folder ``above``."""
    above = above | {folder.resolve()}
    for path in folder.iterdir():
        if any(fnmatch(path.name.lower(), pattern) for pattern in IGNORED):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in above:
            yield from _files(path, above)


def _version(path: Path) -> _Version:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _read(path: Path) -> str:
    with path.open("rb") as file:  # a part at a time: weights may exceed the memory
        return _shorten(hashlib.file_digest(file, "sha256"))


def _shorten(found: hashlib._Hash) -> str:
    return found.hexdigest()[:16]


def _recall(version: _Version) -> str | None:
    """What an earlier process found."""
    if version[1] < LARGE:
        return None
    with suppress(OSError, RuntimeError):
        text = _cached(version).read_text(encoding="ascii", errors="replace")
        if re.fullmatch("[0-9a-f]{16}", text):
            _known[version] = text
            return text
    return None


def _keep(version: _Version, found: str) -> None:
    _known[version] = found
    if version[1] < LARGE:
        return
    with suppress(OSError, RuntimeError):  # without a cache, or a home for it, it is computed again
        path = _cached(version)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{uuid4().hex}")
        try:
            temporary.write_text(found, encoding="ascii")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _cached(version: _Version) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "metagame" / "hashes" / digest(version)
