"""One file from a server onto the disk: resumed where it was cut, checked, and put in place as a whole."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import requests
from huggingface_hub.utils import tqdm
from urllib3.exceptions import HTTPError

from metagame.errors import UserError

Plan = tuple[str, int, Callable[[], None]]
"""What is told of something before it is fetched, the bytes that it still takes on the disk, what fetches it."""
WAITS = (1, 2, 4, 8, 16)  # seconds before each further attempt
NETWORK = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, HTTPError)


def persist(attempt: Callable[[], None]) -> None:
    """Call ``attempt`` until nothing cuts it; at last raise what does, a ConnectionError or one of :data:`NETWORK`."""
    for wait in WAITS:
        try:
            return attempt()
        except (ConnectionError, *NETWORK) as error:
            logging.getLogger(__name__).info(
                "The connection was cut (%s); the next attempt is in %g s.", type(error).__name__, wait
            )
            time.sleep(wait)
    return attempt()


def transfer(url: str, path: Path, size: int | None, checksum: str | None) -> None:
    """Put a file at ``path``, going on with ``NAME.part``; a UserError says what is wrong with it, or the answer."""
    part, version = path.with_name(f"{path.name}.part"), path.with_name(f".{path.name}.version")
    persist(lambda: _attempt(url, part, version, size))
    if not has_checksum(part, checksum):
        part.unlink()
        raise UserError(f"{url} has a wrong checksum and was discarded: fetch it again, or get it elsewhere.")
    part.replace(path)
    version.unlink(missing_ok=True)


def has_checksum(path: Path, checksum: str | None) -> bool:
    """Whether a file has this checksum, such as ``md5:...``; so has every file where none is known."""
    algorithm, _, digits = (checksum or "sha256:").partition(":")
    with path.open("rb") as file:
        return digits in ("", hashlib.file_digest(file, algorithm).hexdigest())


def _attempt(url: str, part: Path, version: Path, size: int | None) -> None:
    """Append to the part what it lacks; begin it anew where the server has another version of the file."""
    known = version.read_text() if version.exists() else ""
    start = part.stat().st_size if part.exists() and known else 0
    rest = {"Range": f"bytes={start}-", "If-Range": known} if start else {}
    headers = {"Accept-Encoding": "identity"} | rest  # the file's own bytes: ranges and checksums are of these
    with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as response:
        status, announced = response.status_code, response.raw.length_remaining
        if status == 416:  # the part has all
            return
        if status in (408, 429) or status >= 500:
            raise ConnectionError(f"status {status}")
        if not response.ok or "text/html" in response.headers.get("Content-Type", ""):  # a network asks for a login
            raise UserError(
                f"{url} did not return the file (status {status}): download it in another way, and put it at"
                f" {part.with_suffix('')}."
            )
        start = start if status == 206 else 0
        total = size if announced is None else start + announced
        if total is None or size not in (None, total):
            raise UserError(f"{url} announces {total or 'no'} bytes instead of {size or 'some'}: get it elsewhere.")
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None)
        with bar, part.open("ab" if start else "wb") as file:
            version.write_text(response.headers.get("ETag") or response.headers.get("Last-Modified", ""))
            for chunk in response.raw.stream(1 << 16, decode_content=False):  # as sent, though it be called gzipped
                bar.update(file.write(chunk))
            if file.tell() != total:
                raise ConnectionError(f"{file.tell()} of {total} bytes came")
