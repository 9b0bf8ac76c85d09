"""What a result was computed with."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from metagame.contracts import Model

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
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "device": model.device,
        "model_revision": model.revision,
        "seed": seed,
    }


def _git_commit() -> str | None:
    """The commit of the working tree, with ``-dirty`` where tracked files differ; None outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
