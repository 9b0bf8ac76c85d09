"""Measure what it costs to import the library, and to be told by the command line what it cannot do.

    python -m scripts.bench_import

Writes outputs/bench/import.json. Each command runs once to fill caches, then three times; the least of these counts.
"""

from __future__ import annotations

import os
import subprocess
import sys

from scripts.measure import report

COMMANDS = {
    "import metagame": [sys.executable, "-c", "import metagame"],
    "run.py --help": [sys.executable, "run.py", "--help"],
    "run.py model=nonsense": [sys.executable, "run.py", "model=nonsense"],
}
LIMITS = {"import metagame": (0.6, 80), "run.py --help": (1.5, None), "run.py model=nonsense": (1.5, None)}
"""CPU seconds and MB that each may take."""


def cost(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak MB of a command."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def bench() -> dict:
    """The least cost of each command, and whether it is within its limits."""
    result = {"what": "imports and refusals", "units": {}, "seconds": {}, "within_limits": True}
    for name, command in COMMANDS.items():
        costs = [cost(command) for _ in range(4)][1:]
        seconds, memory = min(each[0] for each in costs), min(each[1] for each in costs)
        most_seconds, most_memory = LIMITS[name]
        result["seconds"][f"{name}, CPU (at most {most_seconds})"] = seconds
        measure = f"{name}, memory" + (f" (at most {most_memory})" if most_memory else "")
        result["units"][measure], result[measure] = "MB", memory
        result["within_limits"] &= seconds <= most_seconds and (most_memory is None or memory <= most_memory)
    return result


if __name__ == "__main__":
    report(bench(), "import")
