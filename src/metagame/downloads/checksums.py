"""Checksums of files: those that are published, and those of a first download, noted beside the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from metagame.games import GameError
from metagame.records import replace_atomically

ALGORITHMS = ("md5", "sha1", "sha256", "sha512")


def check_form(checksum: str) -> str:
    """The checksum, ``algorithm:hex``.

    Raises:
        GameError: it is not of this form.
    """
    algorithm, _, digits = checksum.partition(":")
    if algorithm not in ALGORITHMS or len(digits) != 2 * hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise GameError(f"checksum {checksum!r}: give algorithm:hex, the algorithm one of {', '.join(ALGORITHMS)}.")
    return checksum


def file_checksum(path: Path, algorithm: str = "sha256") -> str:
    """``algorithm:hex`` of a file, read a part at a time."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def matches(path: Path, checksum: str) -> bool:
    """Whether the file has this checksum."""
    return file_checksum(path, checksum.partition(":")[0]) == checksum.lower()


def note_path(path: Path) -> Path:
    """Where the checksum of a first download is noted: ``NAME.sha256``, as ``sha256sum --check`` reads it."""
    return path.with_name(f"{path.name}.sha256")


def read_note(path: Path) -> str | None:
    """The noted checksum of the file, or None where it was never fetched.

    Raises:
        GameError: the note cannot be read as one.
    """
    note = note_path(path)
    if not note.exists():
        return None
    words = note.read_text(encoding="utf-8").split()
    try:
        return check_form(f"sha256:{words[0]}" if words else "")
    except GameError as error:
        raise GameError(f"{note} holds no sha256: remove it.") from error


def write_note(path: Path, checksum: str) -> None:
    """Note the sha256 of the file."""
    with replace_atomically(note_path(path)) as temporary:
        temporary.write_text(f"{checksum.removeprefix('sha256:')}  {path.name}\n", encoding="utf-8")
