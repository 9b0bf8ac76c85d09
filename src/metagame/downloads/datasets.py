"""The data that benchmarks need at paper scale: what is fetched from where, and what is put where."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from rich.filesize import decimal

from metagame.downloads.archives import BrokenArchiveError, unpack
from metagame.downloads.attempts import WAITS, RemoteFile, remote_size
from metagame.downloads.bar import download_bar
from metagame.downloads.checksums import check_form, note_path
from metagame.downloads.disk import Need
from metagame.downloads.transfer import exclusively, fetch, partial_size
from metagame.games import GameError
from metagame.records import writing

log = logging.getLogger(__name__)

ARCHIVES = "downloads"
"""Folder of the archives, below that of the data."""


@dataclass(frozen=True)
class Source:
    """A file on a server, and what becomes of it; all paths are below the folder of the data.

    Attributes:
        remote: the file.
        file: where it is put, if it is no archive.
        pieces: members of the archive, and where they are put.
        nested: archives in the archive, and pieces of each.
        unpacked: bytes of all pieces.
    """

    remote: RemoteFile
    file: str | None = None
    pieces: Mapping[str, str] = field(default_factory=dict)
    nested: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unpacked: int = 0

    @property
    def name(self) -> str:
        return PurePosixPath(self.remote.url).name

    @property
    def places(self) -> list[str]:
        """All that is there when the source is finished."""
        inner = [place for pieces in self.nested.values() for place in pieces.values()]
        return [*([self.file] if self.file is not None else []), *self.pieces.values(), *inner]

    def download_path(self, data: Path) -> Path:
        return data / (self.file or f"{ARCHIVES}/{self.name}")

    def is_there(self, data: Path) -> bool:
        """Whether everything is in its place; what is, is whole, since it was moved there at the end."""
        return all((data / place).exists() for place in self.places)


@dataclass(frozen=True)
class Dataset:
    """What one benchmark needs.

    Attributes:
        sources: that are fetched.
        yours: what only the user can do.
        unless_there: paths that exist once the user has done it.
    """

    sources: tuple[Source, ...] = ()
    yours: str | None = None
    unless_there: tuple[str, ...] = ()

    def left_to_you(self, data: Path) -> str | None:
        """What the user has to do yet, or None."""
        done = bool(self.unless_there) and all((data / place).exists() for place in self.unless_there)
        return None if self.yours is None or done else self.yours.replace("{data}", str(data))


def read_manifest() -> dict[str, Dataset]:
    """The datasets that are known, by benchmark."""
    content = yaml.safe_load((files("metagame.downloads") / "datasets.yaml").read_text(encoding="utf-8"))
    return {name: parse_dataset(entry) for name, entry in content.items()}


def parse_dataset(entry: Mapping[str, Any]) -> Dataset:
    """A dataset from its entry in the manifest.

    Raises:
        GameError: a checksum is not of the form ``algorithm:hex``.
    """
    sources = tuple(_source(dict(each)) for each in entry.get("sources", ()))
    return Dataset(sources, entry.get("yours"), tuple(entry.get("unless_there", ())))


def _source(entry: dict[str, Any]) -> Source:
    checksum = entry.pop("checksum")
    remote = RemoteFile(entry.pop("url"), entry.pop("size"), checksum and check_form(checksum))
    return Source(remote, **entry)


@dataclass(frozen=True)
class Step:
    """One source on its way to the disk.

    Attributes:
        benchmark: that needs it.
        source: what is fetched.
        size: bytes of the file, None where the server does not say.
        waiting: bytes that are still to be fetched.
        is_there: whether everything is in its place.
    """

    benchmark: str
    source: Source
    size: int | None
    waiting: int
    is_there: bool

    def need(self, *, keep_archives: bool) -> Need:
        """Room that the step takes."""
        unpacked = 0 if self.is_there else self.source.unpacked
        keeps = keep_archives or self.source.file is not None
        return Need(self.waiting, unpacked + (self.waiting if keeps else 0), unpacked)

    def line(self) -> str:
        """The step in one line."""
        if self.is_there:
            return f"{self.benchmark}: {', '.join(self.source.places)} is there."
        size = "of unknown size" if self.size is None else decimal(self.size)
        part = "" if self.size is None or self.waiting == self.size else f", {decimal(self.waiting)} of them to go"
        unpacked = f", {decimal(self.source.unpacked)} unpacked" if self.source.unpacked else ""
        return f"{self.benchmark}: {self.source.remote.url}, {size}{part}{unpacked}."


def plan(datasets: Mapping[str, Dataset], data: Path) -> list[Step]:
    """What is there and what is to be fetched; asks servers for the sizes that are not known."""
    return [_step(name, source, data) for name, dataset in datasets.items() for source in dataset.sources]


def _step(benchmark: str, source: Source, data: Path) -> Step:
    path = source.download_path(data)
    if source.is_there(data):
        return Step(benchmark, source, source.remote.size, 0, is_there=True)
    size = source.remote.size or remote_size(source.remote.url)
    waiting = 0 if path.exists() else max(0, (size or 0) - partial_size(path))
    return Step(benchmark, source, size, waiting, is_there=False)


def get(source: Source, data: Path, *, keep_archive: bool = False, waits: Sequence[float] = WAITS) -> None:
    """Fetch a source and put its pieces in their places; those that are there stay as they are.

    Args:
        source: what is fetched.
        data: folder of the data.
        keep_archive: do not remove the archive at the end.
        waits: as of :func:`metagame.downloads.attempts.fill`.

    Raises:
        GameError: the file cannot be had, or the archive is broken or not to be trusted.
        RecordError: the disk is full, or the folder read-only.
    """
    path = source.download_path(data)
    if source.file is not None:
        _fetch(source, path, waits)
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusively(path.with_name(f"{path.name}.unpacking")):
            if source.is_there(data):
                return
            _fetch(source, path, waits)
            log.info("unpacking %s", path)
            try:
                _unpack(source, path, data)
            except BrokenArchiveError as error:
                path.unlink()
                note_path(path).unlink(missing_ok=True)
                raise GameError(f"{error} It was removed.") from error
            if not keep_archive:
                path.unlink()


def _fetch(source: Source, path: Path, waits: Sequence[float]) -> None:
    with download_bar(source.name) as report:
        fetch(source.remote, path, report, waits)


def _unpack(source: Source, archive: Path, data: Path) -> None:
    unpack(archive, _missing(source.pieces, data))
    for member, pieces in source.nested.items():
        missing = _missing(pieces, data)
        if not missing:
            continue
        inner = archive.with_name(PurePosixPath(member).name)
        inner.unlink(missing_ok=True)
        try:
            unpack(archive, {member: inner})
            unpack(inner, missing)
        finally:
            inner.unlink(missing_ok=True)


def _missing(pieces: Mapping[str, str], data: Path) -> dict[str, Path]:
    return {member: data / place for member, place in pieces.items() if not (data / place).exists()}
