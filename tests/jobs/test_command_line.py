"""``run.py`` on the command line: one job, a sweep, and what is refused in a sentence; more in tests/system."""

from __future__ import annotations

import json
import re
import shlex
from typing import NamedTuple

import pytest

from metagame import cli
from metagame.cli import main
from tests.tiny.runs import TABLES, contents, n_by_an_earlier_run, records, run, table

pytestmark = pytest.mark.slow


ROWS_OF_OURS = "Meta-LOO, Meta-AttnLRP, left, Meta-AttnLRP, right"
CELLS = ("meta_sv", "moebius", "moebius")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """One cell of Table 1 for a function of three features, a second one, and that again: what was said and written."""
    folder = tmp_path_factory.mktemp("cells")
    function, found = "benchmark.function='(x1+x2)**2*x3'", []
    for cell in CELLS:
        status, errors = run("experiment=table1", function, f"attribution=symbolic/{cell}", output_dir=folder)
        assert status == 0, errors
        found.append((errors, table(folder), (contents(folder, TABLES), records(folder))))
    return folder, found


def test_a_quoted_function_of_three_features_has_columns_for_them(cells):
    _, (_, (_, written, _), _) = cells
    directed = ["phi_21", "phi_12", "phi_31", "phi_13", "phi_32", "phi_23"]
    pairs = ["pair_12", "pair_13", "pair_23"]
    assert [column["key"] for column in written["columns"]][2:] == [
        "phi_11", "phi_22", "phi_33", *directed, *pairs, "phi_1", "phi_2", "phi_3", "sum",
    ]  # fmt: skip


def test_a_sweep_of_one_cell_leaves_the_other_cells_to_a_note(cells):
    _, ((_, first, _), (_, second, _), _) = cells
    assert [row["method"] for row in first["rows"]] == ["Meta-SV"]
    assert first["notes"][-1] == f"Not run yet: SV, IH, Moebius, Shapley, SOP, Meta-GI, Meta-IG, {ROWS_OF_OURS}."
    assert [row["method"] for row in second["rows"]] == ["Moebius", "Meta-SV"]
    assert second["notes"][-1] == f"Not run yet: SV, IH, Shapley, SOP, Meta-GI, Meta-IG, {ROWS_OF_OURS}."


def test_the_same_command_again_computes_nothing_and_writes_the_same_bytes(cells):
    folder, (_, (_, _, before), (errors, _, after)) = cells
    assert n_by_an_earlier_run(errors) == 1
    assert f"wrote {folder / 'table.md'}" in errors
    assert before == after


def test_each_command_is_kept_beside_its_table_with_its_seconds(cells):
    folder, found = cells
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert len(runs) == len(found)
    assert all(each["command"].startswith("python run.py -m ") and each["seconds"] > 0 for each in runs)
    assert [shlex.split(each["command"])[-2] for each in runs] == [f"attribution=symbolic/{cell}" for cell in CELLS]


def test_a_run_without_a_terminal_writes_plain_lines(cells):
    for errors, _, _ in cells[1]:
        assert not re.search("[\x1b\r━]", errors)
        assert "Traceback" not in errors


class Refused(NamedTuple):
    """A command line, what is said about it, and whether in one line, before anything is written."""

    asked: tuple[str, ...]
    reason: str
    at_once: bool = True


META_SV = ("model=adder", "benchmark=addition", "attribution=meta_sv", "limit=1")
REFUSED = {
    "a function without inner quotes": Refused(
        ("experiment=table1", "benchmark.function=(x1+x2)**2*x3"),
        "quote the value inside the quotes, \"benchmark.function='(x1+x2)**2*x3'\".",
    ),
    "a prompt with an apostrophe without inner quotes": Refused(
        ("experiment=figure11", "benchmark.prompt=The jury's verdict, fine"),
        "quote the value inside the quotes, \"benchmark.prompt='The jury\\'s verdict, fine'\".",
    ),
    "a text with a comma": Refused(("-m", "benchmark.function=x1,x1*x2"), "\"benchmark.function='x1,x1*x2'\""),
    "a text with a comma in an experiment": Refused(
        ("experiment=table1", "benchmark.function=x1,x1*x2"), "would be split at its commas",
    ),
    "a function that is not a polynomial": Refused(
        ("benchmark.function='sin(x1)'",), "benchmark.function='sin(x1)' is not a polynomial ('sin(x1)' is not",
    ),
    "swept shards": Refused(("-m", "shards=2,4"), "shards=2,4 would sweep over shards"),
    "swept limits": Refused(("-m", "limit=3,1"), "limit=3,1 would write one table over the other: give one positive"),
    "a limit of 0": Refused(("-m", "limit=0"), "limit=0 must be a positive integer, or null for all samples."),
    "a key that no job has": Refused(("-m", "+foo=1"), "unknown settings (foo)"),
    "a budget below 2^n": Refused(
        (*META_SV, "estimator.budget=7"),
        "budget=7 is too small for estimator='exact': it needs at least 8 coalitions.", False,
    ),
    "too many players for exact": Refused(
        (*META_SV, "estimator.max_players=2"),
        "n_players=3 is too many for estimator='exact' (2^3 coalitions, max_players=2): use estimator='auto',", False,
    ),
    "an unknown value": Refused(("attribution=svv",), "Could not find 'attribution/svv'", False),
    "an unknown value of a sweep": Refused(
        ("-m", "attribution=symbolic/sop,symbolic/sopp"), "Could not find 'attribution/symbolic/sopp'", False,
    ),
    "an unknown key at the top": Refused(("atribution=sv",), "'atribution' is unknown: did you mean attribution?"),
    "an unknown key": Refused(("benchmark.f=x1",), "Could not override 'benchmark.f'", False),
}  # fmt: skip


def test_an_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["nonsense"])
    assert "the command 'nonsense' is unknown" in capsys.readouterr().err


def test_a_broken_pipe_that_is_not_the_output_is_no_quiet_end(monkeypatch):
    def fail(arguments):
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr(cli, "_main", fail)
    with pytest.raises(BrokenPipeError, match="of a worker"):
        main(["diff"])


def test_an_unknown_key_of_a_plan_is_named():
    with pytest.raises(SystemExit, match="the setting 'modle' is unknown: did you mean model"):
        main(["plan", "modle=adder"])


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_is_refused_in_a_sentence_and_leaves_the_table(tmp_path, case):
    asked, reason, at_once = REFUSED[case]
    (tmp_path / "table.md").write_text("as it was")
    status, errors = run(*asked, output_dir=tmp_path)
    assert status == 1
    assert reason in errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.glob("table.*")] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "as it was"
    if at_once:
        assert len(errors.splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    if case == "an unknown value":
        assert "meta_sv" in errors.split("Available options in 'attribution':")[1].split()


def test_options_of_hydra_can_follow_the_overrides():
    assert run("model=adder", "benchmark=addition", "--resolve", "--cfg", "job") == (0, "")
