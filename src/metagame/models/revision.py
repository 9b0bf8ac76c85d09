"""What identifies the weights that a model was loaded from."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_revision(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a weights file."""
    with path.open("rb") as file:  # a part at a time: weights may exceed the memory
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
