"""Free text on the command line: how it is to be quoted, and what cannot be read at all."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metagame.cli import explain_parse_errors, quoted
from tests.tiny.jobs import ROOT
from tests.tiny.texts import read_whole


def test_any_text_that_is_quoted_as_advised_arrives_whole():
    read_whole(500, seed=0)


@pytest.mark.parametrize("text", ["two ${z six", "two \\${z} six", "${", "a ${} b"])
def test_half_a_name_of_another_value_is_refused_in_one_sentence(text):
    with pytest.raises(SystemExit, match=r"starts a reference to another value, as in \$\{name\}"):
        explain_parse_errors([f"benchmark.caption={quoted(text)}"])


def test_names_of_other_values_are_read_as_before():
    explain_parse_errors(["output_dir=${oc.env:HOME}/x", "name=${scale.name}", "benchmark.caption='5 $ {a}'"])


@pytest.mark.parametrize("value", ["a {b\\", "the jury's verdict, fine", 'a "b', "x)"])
def test_advice_how_to_quote_is_an_override_that_hydra_reads(value):
    with pytest.raises(SystemExit) as refusal:
        explain_parse_errors([f"key={value}"])
    advised = str(refusal.value).rsplit('quotes, "', 1)[1].removesuffix('".')
    explain_parse_errors([advised])
    read = OverridesParser.create().parse_override(advised).value()
    assert getattr(read, "text", read) == value


def test_an_argument_that_is_no_utf8_is_said_to_be_none():
    with pytest.raises(SystemExit, match=r"^the argument 'name=\\udcff' is not valid UTF-8"):
        explain_parse_errors(["name=\udcff"])


def test_python_without_assertions_is_refused():
    process = subprocess.run(
        [sys.executable, "-O", "run.py", "experiment=table1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert process.stderr.startswith("python -O removes assertions")
