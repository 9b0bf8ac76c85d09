"""What went wrong, in words that are the same wherever the results lie."""

from __future__ import annotations

from pathlib import Path


def error_text(error: Exception, folder: Path) -> str:
    """The error's message, with paths from ``folder`` on."""
    return str(error).replace(f"{folder}/", "")
