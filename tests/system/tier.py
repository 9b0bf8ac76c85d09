"""The system tier: what takes minutes, and runs again only where a file that it covers has changed.

    python -m tests.system.tier          runs the parts that are due
    python -m tests.system.tier --all    runs all of them

``passed.json`` beside this file holds, for each part, the hash of the files that it covers with which it last passed
here. It is committed, so that a clone knows it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PASSED = Path(__file__).with_name("passed.json")
PYTEST = (sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "--override-ini=addopts=-q -rs")
FOR_ALL = (
    "requirements.lock",
    "pyproject.toml",
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/system/conftest.py",
    "tests/tiny",
    "data/tiny",
)
RUNS = ("run.py", "src/metagame/cli.py", "src/metagame/experiments.py", "src/metagame/jobs", "configs/config.yaml")


@dataclass(frozen=True)
class Part:
    """Test files of this folder, or a command of its own, and the files and folders whose change makes it due."""

    tests: tuple[str, ...]
    covers: tuple[str, ...]
    command: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"tests/system/test_{name}.py" for name in self.tests)


PARTS = {
    "slurm": Part(("slurm",), (*RUNS, "configs/hydra")),
    "commands": Part(("commands",), (*RUNS, "src/metagame/report", "src/metagame/models", "configs")),
    "configs": Part(
        ("shipped_configs",),
        (
            "configs", "tests/jobs/test_configs.py", "tests/jobs/test_scales.py",
            *(f"src/metagame/{each}" for each in ("jobs", "models", "attributions", "benchmarks")),
        ),
    ),
    "faults": Part(
        ("faults",),
        (*RUNS, "src/metagame/kept_values.py", "src/metagame/report/table.py", "src/metagame/report/experiment.py"),
    ),
    "tracking": Part(("tracking",), (*RUNS, "src/metagame/tracking", "configs/tracker")),
    "downloads": Part(("fetch",), ("src/metagame/fetch", "configs")),
    "browser": Part(
        ("viewer", "serve"), ("src/metagame/viewer", "src/metagame/report/results.py", "src/metagame/explainer.py")
    ),
    "wheel": Part(
        ("wheel", "setup"),
        ("README.md", "docs", "setup.py", "MANIFEST.in", "scripts/setup_environment.py", "src", "configs"),
    ),
    "fuzz": Part(
        ("config_fuzz", "text_fuzz"),
        ("src/metagame/jobs", "configs", "src/metagame/cli.py", "src/metagame/viewer", "src/metagame/report/table.py"),
    ),
    "training": Part(
        (
            "train_language", "train_classifiers", "train_vision_language", "train_diffusion", "read_digits",
            "make_digit_scenes",
        ),
        ("scripts", "src/metagame/benchmarks", "src/metagame/models", "tests/models/test_adder.py"),
    ),
    "paper_encoders": Part(
        ("paper_encoders",),
        (*RUNS, "src/metagame/models", "src/metagame/attributions", "src/metagame/benchmarks", "configs"),
    ),
    "preparation": Part(("name_wordnet_labels", "bench"), ("scripts", "src/metagame/benchmarks")),
    "paper_generative": Part(
        ("paper_generative",),
        (
            *RUNS, "src/metagame/models", "src/metagame/attributions", "src/metagame/benchmarks",
            "src/metagame/report", "configs",
        ),
    ),
    "docs": Part(
        ("documented_commands",),
        ("docs", "README.md", "notebooks", "CONTRIBUTING.md", "CHANGELOG.md", "run.py", "src/metagame", "configs"),
    ),
    "demo": Part((), ("Makefile", "run.py", "src/metagame", "configs"), ("make", "demo", "report")),
}  # fmt: skip


def content_hash(part: Part) -> str:
    """Of the names and contents of the files that the part covers, those that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    listed = subprocess.run(
        [*command, *part.files, *part.covers, *FOR_ALL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    total = hashlib.sha256()
    for name in sorted(set(filter(None, listed.stdout.split("\0")))):
        if (ROOT / name).is_file():  # and not removed since
            total.update(f"{name} {hashlib.sha256((ROOT / name).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def due_parts() -> Iterator[str]:
    """The parts that have not passed with the files as they are."""
    passed = json.loads(PASSED.read_text(encoding="utf-8")) if PASSED.exists() else {}
    return (name for name, part in PARTS.items() if passed.get(name) != content_hash(part))


def say(text: str) -> None:
    """At once, between what the parts say."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run_part(name: str) -> bool:
    """Run a part, and note that it has passed if it has."""
    part = PARTS[name]
    before, start = content_hash(part), time.monotonic()
    command = part.command or (*PYTEST, *part.files)
    passed = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    say(f"{name}: {'passed' if passed else 'FAILED'} in {time.monotonic() - start:.0f} s")
    known = json.loads(PASSED.read_text(encoding="utf-8")) if PASSED.exists() else {}
    known.pop(name, None)
    if passed:
        known[name] = before
    PASSED.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
    return passed


def main() -> None:
    """Run what is due, or all."""
    names = list(PARTS) if sys.argv[1:] == ["--all"] else list(due_parts())
    say(f"system tier: {len(names)} of {len(PARTS)} parts to run: {', '.join(names) or 'none'}")
    passed = [run_part(name) for name in names]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
