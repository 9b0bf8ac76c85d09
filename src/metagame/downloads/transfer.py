"""One file from a server onto the disk: resumed where it was cut, checked, and put in place as a whole."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from metagame.downloads.attempts import WAITS, RemoteFile, discard, fill
from metagame.downloads.bar import Report
from metagame.downloads.checksums import file_checksum, matches, note_path, read_note, write_note
from metagame.games import GameError
from metagame.records import writing

log = logging.getLogger(__name__)


def fetch(remote: RemoteFile, path: Path, report: Report | None = None, waits: Sequence[float] = WAITS) -> None:
    """Put the file at ``path``; nothing is transferred where it is there with its checksum.

    ``NAME.part`` beside it grows meanwhile, and a later call goes on with it. Of a file without a published checksum
    the sha256 is noted in ``NAME.sha256`` at the first download and compared from then on. Safe for several processes.

    Args:
        remote: the file.
        path: where it is put.
        report: told of the bytes that are there.
        waits: seconds before each further attempt.

    Raises:
        GameError: the server lacks or refuses the file, cannot be reached, or sends another size or content.
        RecordError: the disk is full, or the folder read-only.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusively(path):
            if not path.exists() or not _is_finished(remote, path):
                _complete(remote, path, report or (lambda done, total: None), waits)


def partial_size(path: Path) -> int:
    """Bytes of the file that an earlier call has left for the next one."""
    part = _part(path)
    return part.stat().st_size if part.exists() else 0


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Hold ``path`` against other processes; the lock dies with its process."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s is in work by another process: waiting for it.", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _is_finished(remote: RemoteFile, path: Path) -> bool:
    """Whether the file is whole; where neither size nor checksum says otherwise, it is trusted and noted."""
    expected = remote.checksum or read_note(path)
    if expected is None and remote.size in (None, path.stat().st_size):
        _trust(path, path)
        return True
    if expected is not None and matches(path, expected):
        return True
    log.warning("%s is not the file that it should be: it is fetched again.", path)
    return False


def _complete(remote: RemoteFile, path: Path, report: Report, waits: Sequence[float]) -> None:
    part = _part(path)
    expected = remote.checksum or read_note(path)
    resumed = partial_size(path) > 0
    fill(remote, part, report, waits)
    if resumed and expected is not None and not matches(part, expected):
        log.warning("%s: the part that was there does not fit the rest, all of it is fetched again.", path)
        discard(part)
        fill(remote, part, report, waits)
    if expected is None:
        _trust(part, path)
    elif not matches(part, expected):
        discard(part)
        raise GameError(
            f"{remote.url} has not the checksum {expected}, what came was removed: {_advice(remote, path)}."
        )
    part.replace(path)
    _sync_folder(path.parent)
    discard(part)


def _advice(remote: RemoteFile, path: Path) -> str:
    if remote.checksum is not None:
        return "run the same command again, or tell the file's owner"
    return f"that is of the first download; remove {note_path(path)} if you trust the new file"


def _trust(content: Path, path: Path) -> None:
    checksum = file_checksum(content)
    write_note(path, checksum)
    log.info("%s: no checksum is published; %s is noted beside it and compared from now on.", path, checksum)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
