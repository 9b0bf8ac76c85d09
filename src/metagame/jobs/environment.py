"""What a result was computed with."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metagame.contracts import Model
from metagame.jobs.accelerator import gpu_name

LIBRARIES = (
    "metagame", "torch", "transformers", "open_clip_torch", "diffusers", "lxt", "shapiq", "numpy", "scipy", "sympy",
    "scikit-learn", "pillow",
)  # fmt: skip


def describe_environment(model: Model, seed: int) -> dict[str, Any]:
    """What a result was computed with: git commit, versions, device, model revision and seed."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "accelerator": gpu_name(),
        "device": model.device,
        "model_revision": model.revision,
        "seed": seed,
    }


def computed_with(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an environment that can change a number, although no key of a record depends on it.

    The version of this package is left out, since keys depend on its code.
    """
    libraries = {name: version for name, version in environment["libraries"].items() if name != "metagame"}
    return {name: environment[name] for name in ("python", "accelerator", "device")} | {"libraries": libraries}


def environment_path(folder: Path, environment: str) -> Path:
    """The file in a job's folder that has the part with this digest."""
    return folder / f"environment-{environment}.json"


def _git_commit() -> str | None:
    """The commit of the working tree, with ``-dirty`` where tracked files differ; None outside git.

    A package that is installed below somebody else's repository is of no commit of theirs.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
