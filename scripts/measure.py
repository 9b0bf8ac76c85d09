"""Time, memory and a file of results, for the scripts that compare speed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

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
