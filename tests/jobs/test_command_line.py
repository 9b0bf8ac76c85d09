from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.tiny import runs
from tests.tiny.jobs import ROOT, terminal_free_environment
from tests.tiny.runs import TABLES, contents, n_by_an_earlier_run, records, table

pytestmark = pytest.mark.slow

META_SV = ("model=adder", "benchmark=addition", "attribution=meta_sv", "limit=1")


class End(NamedTuple):
    """How a run ended."""

    returncode: int
    stderr: str


def run(*arguments, output_dir):
    return End(*runs.run(*arguments, output_dir=output_dir))


def from_scratch(*arguments, output_dir):
    """A run in a process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, "run.py", *arguments, f"output_dir={output_dir}"],
        cwd=ROOT, env=terminal_free_environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def table1(tmp_path_factory):
    """Table 1, twice into the same folder: its processes, and its files after each."""
    folder = tmp_path_factory.mktemp("table1")
    first = from_scratch("experiment=table1", output_dir=folder)
    after_first = contents(folder, TABLES), records(folder)
    second = from_scratch("experiment=table1", output_dir=folder)
    return folder, (first, second), (after_first, (contents(folder, TABLES), records(folder)))


def test_table_1_matches_the_paper_in_all_eight_rows(table1):
    folder, (first, _), _ = table1
    rows = table(folder)["rows"]
    assert first.returncode == 0, first.stderr
    assert [row["method"] for row in rows] == [
        "SV", "IH", "Moebius", "Shapley", "SOP", "Meta-GI", "Meta-IG", "Meta-SV",
    ]  # fmt: skip
    assert all(row["matches"] for row in rows)


def test_the_same_command_again_computes_nothing_and_writes_the_same_bytes(table1):
    _, (_, second), (before, after) = table1
    assert second.returncode == 0, second.stderr
    assert n_by_an_earlier_run(second.stderr) == 8
    assert before == after


def test_a_run_without_a_terminal_writes_plain_lines(table1):
    _, processes, _ = table1
    for process in processes:
        assert process.stdout == ""
        assert not re.search("[\x1b\r━]", process.stderr)
        assert "Traceback" not in process.stderr


def test_a_sweep_says_where_its_table_is(table1):
    folder, (first, _), _ = table1
    assert f"wrote {folder / 'table.md'}" in first.stderr


@pytest.fixture(scope="module")
def two_cells(tmp_path_factory):
    """One cell of Table 1 for a function of three features, then a second one: the tables after each."""
    folder = tmp_path_factory.mktemp("cells")
    function = "benchmark.function='(x1+x2)**2*x3'"
    tables = []
    for cell in ("meta_sv", "moebius"):
        process = run("experiment=table1", function, f"attribution=symbolic/{cell}", output_dir=folder)
        assert process.returncode == 0, process.stderr
        tables.append(table(folder))
    return tables


def test_a_quoted_function_of_three_features_has_columns_for_them(two_cells):
    keys = [column["key"] for column in two_cells[1]["columns"]]
    directed = ["phi_21", "phi_12", "phi_31", "phi_13", "phi_32", "phi_23"]
    pairs = ["pair_12", "pair_13", "pair_23"]
    assert keys[2:] == ["phi_11", "phi_22", "phi_33", *directed, *pairs, "phi_1", "phi_2", "phi_3", "sum"]


def test_a_sweep_of_one_cell_leaves_the_other_cells_to_a_note(two_cells):
    first, second = two_cells
    assert [row["method"] for row in first["rows"]] == ["Meta-SV"]
    assert first["notes"][-1] == "Not run yet: SV, IH, Moebius, Shapley, SOP, Meta-GI, Meta-IG."
    assert [row["method"] for row in second["rows"]] == ["Moebius", "Meta-SV"]
    assert second["notes"][-1] == "Not run yet: SV, IH, Shapley, SOP, Meta-GI, Meta-IG."


# What is asked, and what the last line of the answer says.
REFUSED = {
    "a function without inner quotes": (
        ("experiment=table1", "benchmark.function=(x1+x2)**2*x3"),
        "quote the value inside the quotes, \"benchmark.function='(x1+x2)**2*x3'\".",
    ),
    "a prompt with an apostrophe without inner quotes": (
        ("experiment=figure11", "benchmark.prompt=The jury's verdict, fine"),
        "quote the value inside the quotes, \"benchmark.prompt='The jury\\'s verdict, fine'\".",
    ),
    "a function that is no polynomial": (
        ("benchmark.function='sin(x1)'",),
        "benchmark.function='sin(x1)' is no polynomial ('sin(x1)' is not allowed): use numbers",
    ),
    "a budget below 2^n": (
        (*META_SV, "estimator.budget=7"),
        "budget=7 is too small for estimator='exact': it needs at least 8 coalitions.",
    ),
    "too many players for exact": (
        (*META_SV, "estimator.max_players=2"),
        "n_players=3 is too many for estimator='exact' (2^3 coalitions, max_players=2): use estimator='permutation'",
    ),
}
MISSPELT = {"an unknown value": ("attribution=svv",), "an unknown key": ("benchmark.f=x1",)}
BROKEN_TABLE = {
    "a table that fails": (
        "-m", "attribution=symbolic/moebius", "report.table._target_=tests.tiny.jobs.broken_table",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What is answered to REFUSED, MISSPELT and BROKEN_TABLE: processes with their fresh folders, two at a time."""
    asked = {case: arguments for case, (arguments, _) in REFUSED.items()} | MISSPELT | BROKEN_TABLE
    folders = {case: tmp_path_factory.mktemp("answers") for case in asked}
    with ThreadPoolExecutor(2) as pool:
        processes = pool.map(lambda case: run(*asked[case], output_dir=folders[case]), asked)
        return {case: (process, folders[case]) for case, process in zip(asked, processes, strict=True)}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_is_refused_in_a_sentence_without_a_table(answers, case):
    process, folder = answers[case]
    assert process.returncode == 1
    assert REFUSED[case][1] in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
    assert list(folder.glob("table.*")) == []


@pytest.mark.parametrize("case", list(REFUSED)[:2])
def test_an_argument_that_cannot_be_read_is_answered_in_one_line(answers, case):
    process, _ = answers[case]
    assert len(process.stderr.splitlines()) == 1


def test_an_unknown_value_is_answered_with_the_choices(answers):
    process, _ = answers["an unknown value"]
    assert process.returncode == 1
    assert "Could not find 'attribution/svv'" in process.stderr
    assert "meta_sv" in process.stderr.split("Available options in 'attribution':")[1].split()


@pytest.mark.parametrize("option", [("--cfg", "job"), ("--info", "defaults"), ("--resolve", "--cfg", "job")])
def test_options_of_hydra_can_follow_the_overrides(tmp_path, option):
    process = run("model=adder", "benchmark=addition", *option, output_dir=None)
    assert (process.returncode, process.stderr) == (0, "")


def test_an_unknown_key_is_named(answers):
    process, _ = answers["an unknown key"]
    assert process.returncode == 1
    assert "Could not override 'benchmark.f'" in process.stderr


def test_a_sweep_whose_table_fails_does_not_exit_with_0(answers):
    process, _ = answers["a table that fails"]
    assert process.returncode != 0
    assert "entries" in process.stderr


def test_a_sweep_over_other_values_has_a_table_with_a_row_per_sample_and_method(tmp_path):
    values = ("model=adder", "benchmark=addition", "benchmark.examples=['3 - (-5)','4 + (-4)','-6 + 8']")
    process = run("-m", *values, "attribution=attention,sv,ig,meta_ig", "report.figure=null", output_dir=tmp_path)
    assert process.returncode == 0, process.stderr
    rows = table(tmp_path)["rows"]
    assert Counter(row["method"] for row in rows) == {"attention": 3, "SV": 3, "IG": 3, "Meta-IG": 3}
    assert all(
        row["output"] == pytest.approx({"3": 8, "4": 0, "-6": 2}[row["example"].split()[0]], abs=0.5) for row in rows
    )


def test_a_job_that_cannot_be_built_leaves_the_other_jobs_their_table(tmp_path):
    sweep = (
        "-m",
        "model=adder",
        "benchmark=addition",
        "attribution=sv,attention,ig",
        "attribution.meta=true",
        "limit=1",
    )
    process = run(*sweep, output_dir=tmp_path)
    assert process.returncode == 1
    assert process.stderr.count("has no metagame: it is not a first-order attribution method.") == 1
    assert [row["method"] for row in table(tmp_path)["rows"]] == ["Meta-SV", "Meta-IG"]
    assert any(note.startswith("Meta-attention could not start:") for note in table(tmp_path)["notes"])


def test_a_sweep_over_scales_writes_a_table_for_each(tmp_path):
    process = run("-m", "scale=tiny,paper", output_dir=f"{tmp_path}/${{scale.name}}")
    assert process.returncode == 0, process.stderr
    assert [table(tmp_path / scale)["scale"] for scale in ("tiny", "paper")] == ["tiny", "paper"]
