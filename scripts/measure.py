"""Time, memory and a file of results, for the scripts that compare speed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds and result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def peak_memory() -> float:
    """GB, the peak of this process; read from the kernel, since getrusage hands down the parent's peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def module_at(commit: str, path: str, **renamed: str) -> ModuleType:
    """A module of the package as it was at a commit of this repository, beside what is there now.

    Args:
        commit: of this repository.
        path: of the module.
        renamed: what the module imports from others, by its name at the commit, with its name now.
    """
    source = subprocess.run(["git", "show", f"{commit}:{path}"], capture_output=True, text=True, check=True).stdout
    for before, now in renamed.items():
        source = re.sub(rf"\b{before}\b", now, source)
    module = ModuleType(f"{Path(path).stem}_at_{commit}")
    sys.modules[module.__name__] = module  # where dataclasses look for it
    exec(compile(source, path, "exec"), vars(module))  # noqa: S102 (our own)
    return module


def bandwidth(n_bytes: int) -> float:
    """GB a second of c = a + b on three float64 arrays of ``n_bytes`` together."""
    import torch  # not all comparisons of speed need it

    a, b, c = torch.zeros(3, n_bytes // 24, dtype=torch.float64)
    repeats = max(3, 2**28 // n_bytes)
    torch.add(a, b, out=c)
    seconds, _ = timed(lambda: [torch.add(a, b, out=c) for _ in range(repeats)])
    return repeats * n_bytes / seconds / 1e9


def operations(function: Callable[[], object]) -> float:
    """Operations in the matrix products, convolutions and attention of a call; two for each product and its sum."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of the product of two square matrices of random numbers, the median of ten products."""
    import torch

    side = 8192 if torch.device(device).type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        if a.is_cuda:
            torch.cuda.synchronize()

    seconds = [timed(product)[0] for _ in range(13)][3:]  # the first ones are slower
    return 2 * side**3 / median(seconds)


def report(result: dict, name: str) -> None:
    """Write ``outputs/bench/NAME.json`` and print its measures with their units."""
    path = Path("outputs/bench") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = Table("measure", "value", "unit", title=f"{name}: {result['what']}")
    for measure, unit in result["units"].items():
        table.add_row(measure, f"{result[measure]:.3g}", unit)
    for measure, seconds in result["seconds"].items():
        table.add_row(measure, f"{seconds:.3g}", "s")
    Console().print(table)
    print(f"wrote {path}")
