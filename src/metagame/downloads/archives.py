"""Tar and zip archives: checked before anything is written, unpacked aside, and put in place as a whole."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from rich.filesize import decimal

from metagame.downloads.disk import free_bytes
from metagame.games import GameError
from metagame.records import writing

OUTSIDE = "would be written outside of its folder"
FAULTS = {
    tarfile.AbsolutePathError: OUTSIDE,
    tarfile.OutsideDestinationError: OUTSIDE,
    tarfile.AbsoluteLinkError: "is a link out of its folder",
    tarfile.LinkOutsideDestinationError: "is a link out of its folder",
    tarfile.SpecialFileError: "is a device or a pipe",
}
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError,
)  # fmt: skip


class BrokenArchiveError(GameError):
    """An archive that is cut off, damaged or none at all."""


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive.

    Attributes:
        name: in the archive, without a slash at the end.
        size: of its content, in bytes.
        is_link: whether it is a link to another one, within the archive.
        fault: why the archive is not to be trusted, or None.
    """

    name: str
    size: int
    is_link: bool
    fault: str | None


class Archive(Protocol):
    """An open archive."""

    def members(self) -> list[Member]: ...

    def extract(self, names: Collection[str], folder: Path) -> None: ...


class TarArchive:
    """A tar archive, compressed or not."""

    def __init__(self, file: tarfile.TarFile) -> None:
        self._file = file

    def members(self) -> list[Member]:
        return [
            Member(_plain(each.name), each.size, each.issym() or each.islnk(), self._fault(each))
            for each in self._file.getmembers()
        ]

    def extract(self, names: Collection[str], folder: Path) -> None:
        chosen = [each for each in self._file.getmembers() if _plain(each.name) in names]
        self._file.extractall(folder, members=chosen, filter="data")

    def _fault(self, member: tarfile.TarInfo) -> str | None:
        try:
            tarfile.data_filter(member, "/folder")
        except tarfile.FilterError as error:
            return FAULTS.get(type(error), str(error))
        return _name_fault(member.name)  # the filter takes an absolute path for a relative one


class ZipArchive:
    """A zip archive."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file

    def members(self) -> list[Member]:
        return [
            Member(_plain(each.filename), each.file_size, False, self._fault(each)) for each in self._file.infolist()
        ]

    def extract(self, names: Collection[str], folder: Path) -> None:
        for member in self._file.infolist():  # reads each to its end, where its CRC is compared
            if _plain(member.filename) in names:
                self._file.extract(member, folder)

    def _fault(self, member: zipfile.ZipInfo) -> str | None:
        if stat.S_ISLNK(member.external_attr >> 16):
            return "is a link"  # whose target only its content tells
        if member.flag_bits & 1:
            return "is encrypted"
        return _name_fault(member.orig_filename)


def unpack(archive: Path, pieces: Mapping[str, Path]) -> None:
    """Put pieces of an archive in their places, each as a whole or not at all.

    All members of the archive are checked before anything is written, also those that are not asked for.

    Args:
        archive: a tar or zip file.
        pieces: names of members, files or folders with all that they hold, and where each is put. Nothing may be there.

    Raises:
        BrokenArchiveError: the archive is cut off, damaged or none.
        GameError: a member would leave its place, a piece is not in the archive, or the disk is too small.
        RecordError: the disk is full, or the folder read-only.
    """
    with _opened(archive) as opened:
        members = opened.members()
        _refuse_faults(archive, members)
        below = {piece: [each for each in members if _is_in(each.name, piece)] for piece in pieces}
        for piece, place in pieces.items():
            _check(archive, piece, below[piece], place)
            names = {each.name for each in below[piece]}
            aside = place.with_name(f".{place.name}.unpacking")
            with writing(place):
                shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
                aside.mkdir(parents=True)
                try:
                    opened.extract(names, aside)
                    (aside / piece).replace(place)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _opened(archive: Path) -> Iterator[Archive]:
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                yield TarArchive(file)
        else:
            with zipfile.ZipFile(archive) as file:
                yield ZipArchive(file)
    except BROKEN as error:
        raise BrokenArchiveError(f"{archive} is broken or no archive ({error}): fetch it again.") from error


def _plain(name: str) -> str:
    """The name without ``./`` before it and ``/`` behind it."""
    return str(PurePosixPath(name))


def _name_fault(name: str) -> str | None:
    path = PurePosixPath(name)
    return OUTSIDE if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name else None


def _refuse_faults(archive: Path, members: list[Member]) -> None:
    for member in members:
        if member.fault is not None:
            raise GameError(
                f"{archive} is not to be trusted, nothing was unpacked: its member {member.name!r} {member.fault}."
            )


def _is_in(name: str, piece: str) -> bool:
    return name == piece or name.startswith(f"{piece}/")


def _check(archive: Path, piece: str, members: list[Member], place: Path) -> None:
    if not members:
        raise GameError(f"{archive} has no member {piece!r}: it is another archive, remove it and get the right one.")
    linked = next((each.name for each in members if each.is_link), None)
    if linked is not None:
        raise GameError(f"{archive} cannot be unpacked: its member {linked!r} is a link, where a file is expected.")
    needed, free = sum(each.size for each in members), free_bytes(place)
    if needed > free:
        raise GameError(
            f"{archive} needs {decimal(needed)} for {piece!r}, {decimal(free)} are free in {place.parent}: free some"
            " space and run the same command again."
        )
