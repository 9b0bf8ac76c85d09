"""Errors reported in one sentence: what is wrong, in which argument or file, and what to do about it."""

from __future__ import annotations

import sys


class UserError(ValueError):
    """Raised if an argument, config value or file cannot be used; the message names it and says what to do."""


class GameError(UserError):
    """Raised if a game, or a question about a game, has no answer."""


class RecordError(UserError):
    """A file of results that cannot be read or written; the message names the file and the remedy."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that the memory of the device, or of a CPU, is too small."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    return on_gpu or on_cpu or isinstance(error, MemoryError)
