"""The data that benchmarks need at paper scale: where it comes from, and what of it is put where."""

from __future__ import annotations

import errno
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import requests
import yaml
from filelock import FileLock
from rich.filesize import decimal

from metagame.errors import UserError
from metagame.fetch.transfer import Plan, has_checksum, transfer

DATA = Path("data")
Put = str | Mapping[str, "Put"]
"""Where below the data a file or folder is put; or, of an archive, where files and folders in it are."""


class Source(NamedTuple):
    """A file on a server, or what only the user can do; bytes of the file, and of all that is in an archive."""

    put: Put
    name: str = ""
    yours: str = ""
    licence: str = ""
    size: int | None = None
    checksum: str | None = None
    unpacked: int = 0

    def plan(self) -> Plan:
        path = DATA / "downloads" / PurePosixPath(self.name).name
        is_there = all(place.exists() for place in places(self.put))
        if is_there or self.yours:
            return f"{places(self.put)[0]}: there." if is_there else f"Left to you: {self.yours}", 0, lambda: None
        head = requests.head(self.name, timeout=10, allow_redirects=True).headers if self.size is None else {}
        size = self.size or int(head.get("Content-Length", 0))
        to_go = max(0, size - sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*")))
        told = f"{decimal(size)}, {decimal(to_go)} of it to be fetched" if size else "of unknown size"
        told = f"{self.name}: {told}, {decimal(self.unpacked)} unpacked; {self.licence}."
        return told, to_go + self.unpacked, lambda: self._fetch(path)

    def _fetch(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):  # another process may do the same
            if not all(place.exists() for place in places(self.put)):
                if path.exists():  # it was put there by hand
                    self._check(path)
                else:
                    transfer(self.name, path, self.size, self.checksum)
                put_in_place(path, self.put)
                path.unlink(missing_ok=True)

    def _check(self, path: Path) -> None:
        """Refuse a file, with a UserError, that is not the one on the server."""
        size = path.stat().st_size
        if self.size not in (None, size) or not has_checksum(path, self.checksum):
            wrong = "checksum" if self.size in (None, size) else f"size ({size} bytes instead of {self.size})"
            raise UserError(f"{path} has a wrong {wrong}: delete it, and run the same command again.")


def sources(benchmarks: Iterable[str]) -> list[Source]:
    """What these benchmarks need, by their names."""
    known = yaml.safe_load((files("metagame.fetch") / "datasets.yaml").read_text(encoding="utf-8"))
    return [Source(**each) for name in benchmarks for each in known.get(name, [])]


def places(put: Put) -> list[Path]:
    """All paths at which something is put."""
    return [DATA / put] if isinstance(put, str) else [path for each in put.values() for path in places(each)]


def _move(path: Path, target: Path) -> None:
    """Rename a file or folder; to another disk it is copied beside the target first, so that it appears as a whole."""
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside = target.with_name(f".{target.name}.copying")
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, aside)
        aside.rename(target)


def put_in_place(path: Path, put: Put) -> None:
    """Move a file or folder, or those in an archive, as a whole, unless it is there; a UserError for a bad archive."""
    target = places(put)[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(put, str):
        _ = target.exists() or _move(path, target)
        return
    aside = target.with_name(f".{path.name}.unpacking")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    try:
        with tarfile.open(path) if tarfile.is_tarfile(path) else zipfile.ZipFile(path) as archive:
            if isinstance(archive, tarfile.TarFile):
                names, archive.extraction_filter = archive.getnames(), tarfile.data_filter
            else:
                names = archive.namelist()
            for name in names:
                if name.startswith("/") or ".." in name.split("/"):
                    raise RuntimeError(f"{name!r} is outside of its folder")
            archive.extractall(aside)  # noqa: S202
        for piece, place in put.items():
            put_in_place(aside / piece, place)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, FileNotFoundError) as error:
        raise UserError(
            f"{path} cannot be unpacked ({error}): remove it, and fetch it again or from elsewhere."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
