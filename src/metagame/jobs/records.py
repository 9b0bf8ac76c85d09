"""The append-only, resumable store of one job: what was computed for each sample, or why it could not be."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
from filelock import FileLock, Timeout

from metagame.contracts import Explanation
from metagame.digests import digest
from metagame.errors import RecordError
from metagame.jobs.fingerprint import Provenance
from metagame.meta import MetaAttributions

VERSION = 2


@dataclass(frozen=True)
class Record:
    """One line of ``records.jsonl``: the result of one variant of the job's method for one sample.

    Attributes:
        key: :func:`record_key` of the sample and the variant.
        sample: id of the sample in its benchmark.
        status: ``done``, or ``failed`` with ``error``.
        variant: name of the variant; empty if the job has only one.
        scores: the benchmark's scores of the explanation: numbers and strings by name.
        labels: for each question, the labels of its arrays, see :func:`pack`.
        error: why it failed.
        arrays: names of the arrays in ``arrays/<key>.npz``.
        provenance: ``code``, ``weights`` and ``files``, see :class:`metagame.jobs.fingerprint.Provenance`.
        commit: git commit of the code that computed it.
        environment: digest of the versions and the device that it was computed with, which are in
            ``environment-<digest>.json``.
        version: version of this format.
    """

    key: str
    sample: str
    status: Literal["done", "failed"]
    variant: str = ""
    scores: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None
    arrays: list[str] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    environment: str | None = None
    version: int = VERSION


def sample_key(identity: dict, provenance: Provenance, sample_id: str) -> str:
    """Hash of what the sample's numbers depend on: job, code, weights, files, and the sample itself."""
    return digest([identity, vars(provenance), sample_id])


def record_key(key: str, variant: str) -> str:
    """The key of one variant's record of the sample with this key."""
    return f"{key}-{variant}" if variant else key


ARRAYS = ("attribution", "values", "standard_error", "first_order", "empty")
PICTURE = "picture"


def pack(
    explanations: Mapping[str, Explanation], pictures: Mapping[str, np.ndarray]
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Labels and arrays of a sample's explanations, by question; arrays of a named question are ``question.array``.

    Labels are ``players``, ``targets`` and ``grid`` as of :class:`metagame.contracts.Explanation`, and ``meta``: the
    fields of its :class:`metagame.meta.MetaAttributions` that are no arrays, or None.
    """
    labels: dict[str, dict[str, Any]] = {}
    arrays: dict[str, np.ndarray] = {}
    for question, each in explanations.items():
        labels[question] = {"players": each.players, "targets": each.targets, "grid": each.grid, "meta": None}
        found: dict[str, np.ndarray | None] = {"attribution": each.attribution, PICTURE: pictures.get(question)}
        if each.meta is not None:
            phi = each.meta
            shared = phi.first_order is each.attribution
            labels[question]["meta"] = {name: getattr(phi, name) for name in OF_META} | {SHARED: shared}
            first_order = None if shared else phi.first_order
            found |= {"values": phi.values, "standard_error": phi.standard_error}
            found |= {"first_order": first_order, "empty": None if phi.endogenous else phi.empty}
        kept = {name: value for name, value in found.items() if value is not None and value.dtype != object}
        arrays |= {f"{question}.{name}" if question else name: value for name, value in kept.items()}
    return labels, arrays


OF_META = ("players", "targets", "grid", "endogenous", "order", "index", "directed", "n_evaluations")
SHARED = "first_order_is_attribution"
"""Label of a metagame whose first-order attribution is that of the explanation, and kept once."""


def unpack(record: Record, arrays: Mapping[str, np.ndarray]) -> dict[str, Explanation]:
    """The explanations that :func:`pack` took apart; empty where the record has no arrays."""
    if not arrays:
        return {}
    return {question: _explanation(record, question, labels, arrays) for question, labels in record.labels.items()}


def _explanation(
    record: Record, question: str, labels: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> Explanation:
    own = {name: arrays.get(f"{question}.{name}" if question else name) for name in ARRAYS}
    meta = None
    if labels["meta"] is not None and own["values"] is not None:
        fields = _tuples(labels["meta"])
        first_order = own["attribution"] if fields.pop(SHARED, True) else own["first_order"]
        meta = MetaAttributions(own["values"], first_order, own["empty"], own["standard_error"], **fields)
    about = _tuples({name: labels[name] for name in ("players", "targets", "grid")})
    return Explanation(**about, attribution=own["attribution"], meta=meta, variant=record.variant)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def pictures_of(record: Record, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of each question the picture that the model made, where it made one."""
    names = {question: f"{question}.{PICTURE}" if question else PICTURE for question in record.labels}
    return {question: arrays[name] for question, name in names.items() if name in arrays}


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
            raise RecordError(f"{where} is not a record ({error}): remove that line.") from error
        if record is None:
            raise RecordError(
                f"{where} has version {version}, but this release reads version {VERSION}: move the file away."
            )
        return record

    def append(self, record: Record, arrays: dict[str, np.ndarray]) -> None:
        """Write the arrays, then the record, each as a whole or not at all."""
        if arrays:
            self._save_arrays(record.key, arrays)
        line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
        lock = FileLock(self.folder / "locks" / "records.lock")
        with writing(self.path), lock, self.path.open("a+b") as file:
            _cut_unfinished_line(file)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def has_arrays(self, record: Record) -> bool:
        """Whether the arrays of a record are there: the file is whole up to its directory, and lists them all."""
        if not record.arrays:
            return True
        try:
            with ZipFile(self._array_path(record.key)) as file:
                return {f"{name}.npy" for name in record.arrays} <= set(file.namelist())
        except (OSError, BadZipFile):
            return False

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
        except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
            raise RecordError(f"{path} cannot be read: remove it, and run the same command again.") from error

    @contextmanager
    def claim(self, key: str, *, wait: bool) -> Generator[bool, None, None]:
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

    def forget_claim(self, key: str) -> None:
        """Remove the lock of a finished sample: who still waits for it finds the sample done."""
        with writing(self._lock_path(key)):
            self._lock_path(key).unlink(missing_ok=True)

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
def replace_atomically(path: Path) -> Generator[Path, None, None]:
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
def writing(path: Path) -> Generator[None, None, None]:
    """Within: a disk that is full and a folder that is read-only are told in one sentence.

    Raises:
        RecordError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise RecordError(f"{path} cannot be written ({error.strerror}): {_REMEDIES[error.errno]}.") from error


_FREE = "free some space and rerun the same command to resume"
_CHOOSE = "choose a folder that can be written, with output_dir=FOLDER if it is the folder of results"
_REMEDIES = {
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
