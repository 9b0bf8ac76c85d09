"""``run.py`` on the command line: one cell of a table, how text is quoted, and what is refused in a sentence."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metagame import cli
from metagame.cli import explain_parse_errors, main
from metagame.errors import UserError
from metagame.experiments import _check_swept
from tests.tiny.jobs import ROOT
from tests.tiny.runs import contents, n_by_an_earlier_run, records, run, table
from tests.tiny.texts import read_whole

CELLS = ("meta_sv", "moebius", "moebius")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """One cell of Table 1 for a function of three features, a second one, and that again: what was said and written."""
    folder = tmp_path_factory.mktemp("cells")
    function, found = "benchmark.function='(x1+x2)**2*x3'", []
    for cell in CELLS:
        status, errors = run("experiment=table1", function, f"attribution=symbolic/{cell}", output_dir=folder)
        assert status == 0, errors
        found.append((errors, table(folder), (contents(folder), records(folder))))
    return folder, found


@pytest.mark.slow
def test_one_cell_has_the_columns_of_its_quoted_function_and_leaves_the_other_cells_to_a_note(cells):
    _, ((_, first, _), (_, second, _), _) = cells
    assert " ".join(column["key"] for column in second["columns"][2:]) == (
        "phi_11 phi_22 phi_33 phi_21 phi_12 phi_31 phi_13 phi_32 phi_23 pair_12 pair_13 pair_23 phi_1 phi_2 phi_3 sum"
    )
    left = "Shapley, SOP, Meta-GI, Meta-IG, Meta-LOO, Meta-AttnLRP, left, Meta-AttnLRP, right."
    assert [row["method"] for row in first["rows"]] == ["Meta-SV"]
    assert first["notes"][-1] == f"Not run yet: SV, IH, Moebius, {left}"
    assert [row["method"] for row in second["rows"]] == ["Moebius", "Meta-SV"]
    assert second["notes"][-1] == f"Not run yet: SV, IH, {left}"


@pytest.mark.slow
def test_the_same_command_again_computes_nothing_and_writes_the_same_bytes(cells):
    folder, (_, (_, _, before), (errors, _, after)) = cells
    assert n_by_an_earlier_run(errors) == 1
    assert f"wrote {folder / 'table.md'}" in errors
    assert before == after


@pytest.mark.slow
def test_each_command_is_kept_beside_its_table_with_its_seconds_and_says_plain_lines(cells):
    folder, found = cells
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert all(each["command"].startswith("python run.py -m ") and each["seconds"] > 0 for each in runs)
    assert [shlex.split(each["command"])[-2] for each in runs] == [f"attribution=symbolic/{cell}" for cell in CELLS]
    assert not any(re.search("[\x1b\r━]|Traceback", errors) for errors, _, _ in found)


# What is refused

META_SV = "model=adder benchmark=addition attribution=meta_sv limit=1"
AT_ONCE = {
    "experiment=table1 benchmark.function=(x1+x2)**2*x3": "\"benchmark.function='(x1+x2)**2*x3'\".",
    "experiment=table1 benchmark.function=x1,x1*x2": "would be split at its commas",
    "benchmark.function='sin(x1)'": "benchmark.function='sin(x1)' is not a polynomial ('sin(x1)' is not",
    "leave_out=[{model:_flux}]": "leave_out has model=_flux, which is unknown",
    "-m shards=2,4": "shards=2,4 would sweep over shards",
    "-m limit=0": "limit=0 must be a positive integer, or null for all samples.",
    "atribution=sv": "'atribution' is unknown: did you mean attribution?",
    "experiment=table1 leave_out=[{attribution:meta_svv}]": "leave_out has attribution=meta_svv, which is unknown: did",
    "scale.name=paper": "scale.name=paper has no effect on the values of the scale: choose scale=NAME",
}
"""In one line, before anything is written."""
LATER = {
    f"{META_SV} estimator.budget=7": "budget=7 is too small for estimator='exact': it needs at least 8 coalitions.",
    "attribution=svv": "Could not find 'attribution/svv'",
    "-m attribution=symbolic/sop,symbolic/sopp": "Could not find 'attribution/symbolic/sopp'",
    "benchmark.f=x1": "Could not override 'benchmark.f'",
}


@pytest.mark.slow
@pytest.mark.parametrize("asked", AT_ONCE | LATER)
def test_what_cannot_be_computed_is_refused_in_a_sentence_and_leaves_the_table(tmp_path, asked):
    (tmp_path / "table.md").write_text("as it was")
    status, errors = run(*asked.split(), output_dir=tmp_path)
    assert status == 1
    assert (AT_ONCE | LATER)[asked] in errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.glob("table.*" if asked in LATER else "*")] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "as it was"
    assert asked in LATER or len(errors.splitlines()) == 1
    if asked == "attribution=svv":
        assert "meta_sv" in errors.split("Available options in 'attribution':")[1].split()


def test_limits_may_be_swept_where_each_has_a_table_of_its_own():
    _check_swept(["limit=3,1", "name=mine-${limit}"])
    with pytest.raises(UserError, match="limit=3,1 would write one table over the other: give one positive"):
        _check_swept(["limit=3,1"])


def test_an_unknown_command_or_key_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["nonsense"])
    assert "the command 'nonsense' is unknown" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="the setting 'modle' is unknown: did you mean model"):
        main(["plan", "modle=adder"])


def test_a_broken_pipe_that_is_not_the_output_is_no_quiet_end(monkeypatch):
    def fail(arguments):
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr(cli, "_main", fail)
    with pytest.raises(BrokenPipeError, match="of a worker"):
        main(["diff"])


@pytest.mark.slow
def test_options_of_hydra_can_follow_the_overrides():
    assert run("model=adder", "benchmark=addition", "--resolve", "--cfg", "job") == (0, "")


# Free text


def test_any_text_that_is_quoted_as_advised_arrives_whole():
    read_whole(500, seed=0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("key='two ${z six'", r"starts a reference to another value, as in \$\{name\}"),
        ("key='two \\${z} six'", "starts a reference"),
        ("key='a ${} b'", "starts a reference"),
        ("name=\udcff", r"^the argument 'name=\\udcff' is not valid UTF-8"),
    ],
)
def test_half_a_name_of_another_value_and_what_is_no_utf8_are_refused_in_one_sentence(override, said):
    with pytest.raises(SystemExit, match=said):
        explain_parse_errors([override])


def test_names_of_other_values_are_read_as_before():
    explain_parse_errors(["output_dir=${oc.env:HOME}/x", "name=${scale.name}", "benchmark.caption='5 $ {a}'"])


@pytest.mark.parametrize("value", ["a {b\\", "the jury's verdict, fine", 'a "b', "x)"])
def test_advice_how_to_quote_is_an_override_that_hydra_reads(value):
    with pytest.raises(SystemExit) as refusal:
        explain_parse_errors([f"key={value}"])
    advised = str(refusal.value).rsplit('quotes, "', 1)[1].removesuffix('".')
    read = OverridesParser.create().parse_override(advised).value()
    assert getattr(read, "text", read) == value


def test_python_without_assertions_is_refused():
    command = [sys.executable, "-O", "run.py", "experiment=table1"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("python -O removes assertions")
