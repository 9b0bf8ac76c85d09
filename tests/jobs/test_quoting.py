"""Free text on the command line: how it is to be quoted, and what cannot be read at all."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metagame.cli import explain_parse_errors, quoted
from tests.tiny.jobs import ROOT

PIECES = [*"$_^%#{}\\|,='\"<>&\t ", "😀", "漢字", "é", "e\u0301", "عربي", "word"]


def test_any_text_that_is_quoted_as_advised_arrives_whole():
    parser, rng = OverridesParser.create(), np.random.default_rng(0)
    for _ in range(2000):
        text = "".join(rng.choice(PIECES, rng.integers(0, 12)))
        value = parser.parse_override(f"key={quoted(text)}").value()
        assert getattr(value, "text", value) == text


@pytest.mark.parametrize("value", ["a {b\\", "the jury's verdict, fine", 'a "b', "x)"])
def test_advice_how_to_quote_is_an_override_that_hydra_reads(value):
    with pytest.raises(SystemExit) as refusal:
        explain_parse_errors([f"key={value}"])
    advised = str(refusal.value).rsplit('quotes, "', 1)[1].removesuffix('".')
    explain_parse_errors([advised])
    read = OverridesParser.create().parse_override(advised).value()
    assert getattr(read, "text", read) == value


def test_an_argument_that_is_no_utf8_is_said_to_be_none():
    with pytest.raises(SystemExit, match=r"^the argument 'name=\\udcff' is no UTF-8 text"):
        explain_parse_errors(["name=\udcff"])


def test_python_without_assertions_is_refused():
    process = subprocess.run(
        [sys.executable, "-O", "run.py", "experiment=table1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert process.stderr.startswith("python -O leaves out what Hydra's parser needs")
