"""How much a disk has room for, and how much a sequence of downloads needs at most at any moment."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from metagame.games import GameError


@dataclass(frozen=True)
class Need:
    """What one download takes.

    Attributes:
        download: bytes that are still to be fetched.
        stays: bytes more on the disk when it is finished.
        extra: bytes that are there for a while only, beside both.
    """

    download: int
    stays: int
    extra: int = 0


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that ``path`` is, or would be, on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_room(needs: Iterable[Need], folder: Path, advice: str) -> str:
    """What the downloads need, one after the other, and what is free, in one sentence.

    Args:
        needs: of the downloads.
        folder: on the disk.
        advice: how to choose another one.

    Raises:
        GameError: there is not enough.
    """
    used = peak = 0
    for need in needs:
        peak = max(peak, used + need.download + need.extra, used + need.stays)
        used += need.stays
    free = free_bytes(folder)
    if peak > free:
        raise GameError(
            f"{folder} has {decimal(free)} free, {decimal(peak)} are needed, nothing was fetched: free some space, or"
            f" {advice}."
        )
    return f"{decimal(peak)} needed, {decimal(free)} free in {folder}."
