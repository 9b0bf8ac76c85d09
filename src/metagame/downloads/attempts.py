"""Attempts at a file on a server: each goes on where the last one was cut, if the file is still the same."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import requests
import urllib3

from metagame.downloads.bar import Report
from metagame.games import GameError
from metagame.records import replace_atomically

log = logging.getLogger(__name__)

CHUNK = 1 << 16
"""Bytes that are read together; the last ones before a cut are lost."""

TIMEOUT = (10, 60)
"""Seconds to connect, and between two packets."""

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt; they begin anew whenever an attempt got further than all before."""

IDENTITY = {"Accept-Encoding": "identity"}  # the file's own bytes: ranges and checksums are of these
PASSING = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        url: of the file.
        size: in bytes; None where it is not known.
        checksum: ``algorithm:hex``; None where none is published.
    """

    url: str
    size: int | None = None
    checksum: str | None = None


class _Cut(Exception):  # noqa: N818 - an event, after which another attempt is made
    """An attempt ended before the file did."""


def remote_size(url: str) -> int | None:
    """Bytes of the file, as its server says; None where it does not say."""
    try:
        with requests.head(url, headers=IDENTITY, timeout=TIMEOUT, allow_redirects=True) as response:
            return _number(response.headers.get("Content-Length")) if response.ok else None
    except requests.RequestException:
        return None


@dataclass(frozen=True)
class _State:
    """What the server said when the part was begun.

    Attributes:
        validator: a strong ETag or a date, by which the server knows whether the file is still the same.
        total: bytes of the file.
    """

    validator: str | None = None
    total: int | None = None

    @staticmethod
    def path(part: Path) -> Path:
        return part.with_name(f"{part.name}.json")

    @classmethod
    def read(cls, part: Path) -> _State:
        try:
            return cls(**json.loads(cls.path(part).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, part: Path) -> None:
        with replace_atomically(self.path(part)) as temporary:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")


def discard(part: Path) -> None:
    """Remove the part and what the server said."""
    part.unlink(missing_ok=True)
    _State.path(part).unlink(missing_ok=True)


def fill(remote: RemoteFile, part: Path, report: Report, waits: Sequence[float]) -> None:
    """Make attempts until the part is all of the file.

    Args:
        remote: the file.
        part: where its bytes are gathered; what the server said stands in ``PART.json`` beside it.
        report: told of the bytes that are there.
        waits: seconds before each further attempt; they begin anew whenever one got further than all before.

    Raises:
        GameError: the server lacks or refuses the file, cannot be reached, or announces another size.
    """
    furthest = _resumable(remote, part)
    left = iter(waits)
    while True:
        try:
            return _attempt(remote, part, report)
        except _Cut as cut:
            there = _resumable(remote, part)
            if there > furthest:
                furthest, left = there, iter(waits)
            wait = next(left, None)
            if wait is None:
                raise GameError(
                    f"{remote.url} cannot be fetched ({cut}): run the same command again where there is a network, it"
                    " goes on where it stopped."
                ) from cut
            log.info("%s: %s; next attempt in %g s.", remote.url, cut, wait)
            time.sleep(wait)


def _resumable(remote: RemoteFile, part: Path) -> int:
    """Bytes of the part to go on from; 0 where it may be of another file."""
    size = part.stat().st_size if part.exists() else 0
    state = _State.read(part)
    known = state.validator is not None or remote.checksum is not None
    total = remote.size or state.total
    return size if known and (total is None or size <= total) else 0


def _attempt(remote: RemoteFile, part: Path, report: Report) -> None:
    start = _resumable(remote, part)
    state = _State.read(part)
    if start and start == (remote.size or state.total):
        return
    resume = {"Range": f"bytes={start}-"} if start else {}
    if start and state.validator is not None:
        resume["If-Range"] = state.validator
    try:
        with requests.get(remote.url, headers=IDENTITY | resume, stream=True, timeout=TIMEOUT) as response:
            _check_answer(remote, response, part)
            if not start or not _continues(response, start, state):
                if response.status_code != 200:
                    discard(part)
                    raise _Cut("the server has no such part of the file")
                start = 0
            total = _total(remote, response, start)
            if start == 0:
                part.write_bytes(b"")
                _State(_validator(response), total).write(part)
            _append(remote, response, part, total, report)
    except requests.ConnectionError as error:
        raise _Cut("no connection") from error
    except requests.Timeout as error:
        raise _Cut("no answer") from error
    except urllib3.exceptions.HTTPError as error:
        raise _Cut(f"the connection was cut after {part.stat().st_size} bytes") from error
    except requests.RequestException as error:
        raise GameError(f"{remote.url} cannot be fetched ({error}).") from error


def _check_answer(remote: RemoteFile, response: requests.Response, part: Path) -> None:
    status = response.status_code
    elsewhere = f"get the file elsewhere and put it at {part.with_suffix('')}"
    if status in PASSING:
        raise _Cut(f"status {status}")
    if status == 404:
        raise GameError(f"{remote.url} does not exist (status 404): {elsewhere}.")
    if status not in (200, 206, 416):
        raise GameError(f"{remote.url} is refused (status {status}): {elsewhere}.")
    if response.headers.get("Content-Type", "").startswith("text/html") and status != 416:
        raise GameError(f"{remote.url} answers with a web page in place of the file: log in to the network first.")


def _continues(response: requests.Response, start: int, state: _State) -> bool:
    """Whether the answer is the rest of the same file."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or found is None or int(found[1]) != start:
        return False
    return state.total is None or found[2] in ("*", str(state.total))


def _total(remote: RemoteFile, response: requests.Response, start: int) -> int | None:
    """Bytes of the whole file, announced and expected."""
    announced = _number(response.headers.get("Content-Length"))
    total = remote.size if announced is None else start + announced
    if remote.size is not None and total != remote.size:
        raise GameError(
            f"{remote.url} announces {total} bytes in place of {remote.size}: it is another file, or broken there; get"
            " it elsewhere."
        )
    if total is None and remote.checksum is None:
        raise GameError(f"{remote.url} announces no size, a cut would go unnoticed: get it elsewhere.")
    return total


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _append(remote: RemoteFile, response: requests.Response, part: Path, total: int | None, report: Report) -> None:
    with part.open("ab") as file:
        done = file.tell()
        report(done, total)
        # undecoded: some servers call a .tar.gz a gzipped transfer of a .tar
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            done += len(chunk)
            if total is not None and done > total:
                raise GameError(f"{remote.url} sends more than the {total} bytes expected: get the file elsewhere.")
            file.write(chunk)
            report(done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done != total:
        raise _Cut(f"the connection ended after {done} of {total} bytes")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
