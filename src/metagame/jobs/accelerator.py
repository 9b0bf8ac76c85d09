"""The GPU and its memory, where a job's parts use torch, and the CPU's threads; jobs without torch run without it."""

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
    """How many CPU threads torch and the linear algebra below NumPy and SciPy use; None: their own choice.

    Without a limit the latter keeps all cores busy while it waits, and slows down jobs that run side by side.
    """
    if count is None:
        return
    from threadpoolctl import threadpool_limits  # here, since jobs in the shipped scale "paper" set none

    threadpool_limits(count)
    torch = _loaded_torch()
    if torch is not None:
        torch.set_num_threads(count)


def use_full_precision() -> None:
    """Let convolutions of float32 on a GPU be of float32.

    By default cuDNN rounds their factors to 11 bits (TF32), in ways that depend on the size of the batch: a CLIP's maps
    then differ by a thousandth of their largest value with the images beside them, else by 4e-6.
    """
    torch = _loaded_torch()
    if torch is not None:
        torch.backends.cudnn.allow_tf32 = False


def free_memory() -> None:
    """Give back what an earlier job of this process left on the device, before another model is loaded."""
    gc.collect()
    torch = _loaded_torch()
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _loaded_torch() -> ModuleType | None:
    return sys.modules.get("torch")
