"""What identifies the weights that a model was loaded from."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_revision(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a weights file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
