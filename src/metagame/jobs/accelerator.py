"""The GPU and its memory, where a job's parts use torch; jobs that do not use it run without."""

from __future__ import annotations

import gc
import sys
from importlib.util import find_spec
from types import ModuleType


def has_gpu() -> bool:
    """Whether torch is installed and sees a GPU."""
    if find_spec("torch") is None:
        return False
    import torch  # here, since importing it takes seconds

    return torch.cuda.is_available()


def gpu_name() -> str | None:
    """The name of the GPU; None on a machine without one, or before anything has loaded torch."""
    torch = _loaded_torch()
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def use_threads(count: int | None) -> None:
    """How many CPU threads torch uses; None: its own choice."""
    torch = _loaded_torch()
    if torch is not None and count is not None:
        torch.set_num_threads(count)


def free_memory() -> None:
    """Give back what an earlier job of this process left on the device, before another model is loaded."""
    gc.collect()
    torch = _loaded_torch()
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _loaded_torch() -> ModuleType | None:
    return sys.modules.get("torch")
