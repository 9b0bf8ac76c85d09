"""A tokenizer names the packages that it needs and that an environment lacks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.experiments.test_tiny_flux import ADVICE
from tests.tiny.jobs import ROOT, terminal_free_environment

pytestmark = pytest.mark.slow

LACKS = {
    "no sentencepiece": "import sys; sys.modules['sentencepiece'] = None",
    "no protobuf": "import sys; sys.modules['google.protobuf'] = None",
    "an older protobuf": "import google.protobuf.runtime_version as version; version.MAJOR = 6",
}
LOAD = """
from metagame.models.concepts import load_t5_tokenizer
try:
    load_t5_tokenizer("data/tiny/flux", None)
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize("lack", LACKS.values(), ids=LACKS)
def test_a_tokenizer_whose_packages_are_not_installed_names_them(lack):
    process = subprocess.run(
        [sys.executable, "-c", lack + LOAD], cwd=ROOT, env=terminal_free_environment(), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert process.stdout == f"model.checkpoint='data/tiny/flux/tokenizer_2' {ADVICE}\n", process.stderr
