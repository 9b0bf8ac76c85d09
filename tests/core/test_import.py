"""What an import of the library costs: others build on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import metagame

HEAVY = ("torch", "transformers", "sklearn", "shapiq", "scipy", "hydra", "matplotlib", "pandas")


def test_the_library_imports_none_of_what_its_parts_need():
    code = f"import sys, metagame; print([name for name in {HEAVY} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_all_that_is_public_can_be_imported():
    assert all(getattr(metagame, name) is not None for name in metagame.__all__)
    assert not hasattr(metagame, "concept_metagam")


NO_JOB = ("--help", "model=nonsense", "experiment=table9", "model.nonsense=1", "a b='")


@pytest.mark.parametrize("arguments", [*(["run", each] for each in NO_JOB), ["plan", "--help"]])
def test_what_needs_no_job_is_answered_without_torch(arguments):
    code = f"""
import sys
from metagame.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
sys.exit("torch" in sys.modules or "pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
