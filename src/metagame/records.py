"""The append-only, resumable store of one job: what was computed for each sample, or why it could not be."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout

VERSION = 1


class RecordError(RuntimeError):
    """A file of results that cannot be read or written; the message names the file and the mend."""


@dataclass(frozen=True)
class Record:
    """One line of ``records.jsonl``.

    Attributes:
        key: :func:`sample_key` of the sample.
        sample: id of the sample in its benchmark.
        status: ``done``, or ``failed`` with ``error``.
        scores: what the benchmark made of the explanation: numbers and texts by name.
        arrays: names of the arrays in ``arrays/<key>.npz``.
        commit: git commit of the code that computed it.
        version: of this format.
    """

    key: str
    sample: str
    status: Literal["done", "failed"]
    scores: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    arrays: list[str] = field(default_factory=list)
    commit: str | None = None
    version: int = VERSION


def sample_key(identity: dict, model_revision: str, sample_id: str) -> str:
    """Hash of the job config that matters, the model revision and the sample id."""
    return digest([identity, model_revision, sample_id])


def digest(content: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of ``content`` as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class RecordStore:
    """Records of one job in a folder. Safe for several processes, and for a kill at any moment.

    A sample in work is held by a lock that dies with its process; a line that a killed process left unfinished is cut
    off before the next one is written.

    Raises:
        RecordError: the folder cannot be made, or later a file in it not be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "records.jsonl"
        self._records: dict[str, Record] = {}
        self._bytes_read = 0
        self._lines_read = 0
        with writing(folder):
            (folder / "locks").mkdir(parents=True, exist_ok=True)
            (folder / "arrays").mkdir(exist_ok=True)

    def read(self) -> dict[str, Record]:
        """The last record of every key, except that a finished sample stays finished. Reads what is new in the file.

        Raises:
            RecordError: a complete line is no record of this version.
        """
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._bytes_read)
                new = file.read()
            complete = new[: new.rfind(b"\n") + 1]
            for line in complete.splitlines():
                record = self._parse(line)
                if record.key not in self._records or self._records[record.key].status == "failed":
                    self._records[record.key] = record
            self._bytes_read += len(complete)
        return dict(self._records)

    def _parse(self, line: bytes) -> Record:
        self._lines_read += 1
        where = f"{self.path}, line {self._lines_read}"
        try:
            fields = json.loads(line)
            version = fields["version"]
            record = Record(**fields) if version == VERSION else None
        except (ValueError, TypeError, KeyError) as error:
            raise RecordError(f"{where} is no record ({error}): remove that line.") from error
        if record is None:
            raise RecordError(f"{where} has version {version}, this is version {VERSION}: move the file away.")
        return record

    def append(self, record: Record, arrays: dict[str, np.ndarray]) -> None:
        """Write the arrays, then the record, each as a whole or not at all."""
        if arrays:
            self._save_arrays(record.key, arrays)
        line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
        with writing(self.path):
            with FileLock(self.folder / "locks" / "records.lock"), self.path.open("a+b") as file:
                _cut_unfinished_line(file)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            if record.status == "done":
                self._lock_path(record.key).unlink(missing_ok=True)  # who still waits for it finds the sample done

    def load_arrays(self, record: Record) -> dict[str, np.ndarray]:
        """The arrays of a record, by name.

        Raises:
            RecordError: the file is missing or broken.
        """
        if not record.arrays:
            return {}
        path = self._array_path(record.key)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in record.arrays}
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise RecordError(f"{path} cannot be read: remove the line of {record.key} from {self.path}.") from error

    @contextmanager
    def claim(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Hold a sample while working on it; yields False where another process holds it and ``wait`` is False."""
        lock = FileLock(self._lock_path(key), timeout=-1 if wait else 0)
        try:
            with writing(self._lock_path(key)):
                lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _lock_path(self, key: str) -> Path:
        return self.folder / "locks" / f"{key}.lock"

    def _array_path(self, key: str) -> Path:
        return self.folder / "arrays" / f"{key}.npz"

    def _save_arrays(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        path = self._array_path(key)
        with replace_atomically(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, moved over it at the end; on an error ``path`` stays as it was.

    Raises:
        RecordError: the disk is full, or the folder read-only.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # also of its own among several machines
    with writing(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within: a disk that is full and a folder that is read-only are told in one sentence.

    Raises:
        RecordError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _MENDS:
            raise
        raise RecordError(f"{path} cannot be written ({error.strerror}): {_MENDS[error.errno]}.") from error


_FREE = "free some space and run the same command again, it goes on where it stopped"
_CHOOSE = "choose a folder that can be written, for results with output_dir=FOLDER"
_MENDS = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EROFS: _CHOOSE,
    errno.EACCES: _CHOOSE,
    errno.EPERM: _CHOOSE,
    errno.ENOTDIR: _CHOOSE,
    errno.EEXIST: _CHOOSE,
}


def _cut_unfinished_line(file) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
