"""What goes wrong with files of results, in words that are the same wherever the results lie."""

from __future__ import annotations

from pathlib import Path

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

UNREADABLE = (OSError, TypeError, ValueError, LookupError, YAMLError, OmegaConfBaseException)
"""What a file of results raises that is cut off, or of another form."""


def error_text(error: Exception, folder: Path) -> str:
    """The error's message, with paths from ``folder`` on."""
    return str(error).replace(f"{folder}/", "")
