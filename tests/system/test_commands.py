"""Sweeps and jobs of ``run.py`` in processes of their own: where results lie, what one job's failure costs others."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from metagame.models.adder import Adder
from tests.tiny.jobs import ROOT, terminal_free_environment
from tests.tiny.runs import n_by_an_earlier_run, records, run, table

pytestmark = pytest.mark.slow

SUMS = ("model=adder", "benchmark=addition")


def test_methods_and_functions_of_ones_own_have_tables_of_their_own_and_share_their_jobs(tmp_path):
    (tmp_path / "data").symlink_to(ROOT / "data")
    commands = {
        "adhoc-symbolic_moebius": ("attribution=symbolic/moebius",),
        "adhoc-symbolic_sop": ("attribution=symbolic/sop",),
        "table1-function-": ("experiment=table1", "attribution=symbolic/moebius", "benchmark.function='x1**2*x2'"),
        "table1": ("experiment=table1", "attribution=symbolic/moebius"),
        "mine": ("attribution=symbolic/moebius", "name=mine"),
    }
    told = []
    for name, arguments in commands.items():
        status, errors = run(*arguments, cwd=tmp_path)
        assert status == 0, errors
        assert "replaced" not in errors, name
        told.append(n_by_an_earlier_run(errors))
    found = {path.parent.name: path.read_text() for path in tmp_path.glob("outputs/tiny/*/table.md")}
    assert [re.sub("[0-9a-f]{6}$", "", name) for name in sorted(found)] == sorted(commands)
    assert "x1*x2**2" in found["table1"]
    assert "x1**2*x2" in next(text for name, text in found.items() if name.startswith("table1-function-"))
    assert told == [0, 0, 0, 1, 1]
    assert len(records(tmp_path / "outputs/tiny")) == 3


def test_a_sweep_over_scales_writes_a_table_for_each(tmp_path):
    status, errors = run("-m", "scale=tiny,paper", output_dir=f"{tmp_path}/${{scale.name}}")
    assert status == 0, errors
    assert [table(tmp_path / scale)["scale"] for scale in ("tiny", "paper")] == ["tiny", "paper"]


# A job's failure costs itself only


class Loading(Adder):
    """The adder, whose loading raises what it is told to."""

    def __init__(self, checkpoint, trouble=None):
        if trouble == "runtime":
            raise RuntimeError("the weights\nare no weights")
        super().__init__(checkpoint)


def broken_figure(results, **kwargs):
    raise KeyError("shown")


LOADING = (*SUMS, "attribution=sv", f"model._target_={__name__}.Loading", "limit=1")
NO_META = "has no metagame: it is not a first-order attribution method"
NO_WEIGHTS = "RuntimeError: the weights are no weights"


@pytest.mark.parametrize(
    ("sweep", "reason", "methods", "note"),
    [
        (
            (*SUMS, "attribution=sv,attention,ig", "attribution.meta=true", "limit=1"),
            NO_META, ["Meta-SV", "Meta-IG"], "Meta-attention could not start:",
        ),
        ((*LOADING, "+model.trouble=runtime,null"), NO_WEIGHTS, ["SV"], f"could not start: {NO_WEIGHTS}"),
    ],
    ids=["cannot be built", "raises while it loads"],
)  # fmt: skip
def test_a_job_that_does_not_start_leaves_the_other_jobs_their_table(tmp_path, sweep, reason, methods, note):
    status, errors = run("-m", *sweep, "report.figure=null", output_dir=tmp_path)
    assert status == 1
    assert "Traceback" not in errors
    assert errors.count(reason) == 1
    assert [row["method"] for row in table(tmp_path)["rows"]] == methods
    assert any(note in each for each in table(tmp_path)["notes"])


def test_a_single_job_that_raises_says_so_in_a_line(tmp_path):
    status, errors = run(*LOADING, "+model.trouble=runtime", output_dir=tmp_path)
    assert (status, errors) == (1, f"{NO_WEIGHTS}\n")
    assert not (tmp_path / "table.json").exists()


def test_a_sweep_whose_table_fails_does_not_exit_with_0(tmp_path):
    broken = "report.table._target_=tests.tiny.jobs.broken_table"
    status, errors = run("-m", "attribution=symbolic/moebius", broken, output_dir=tmp_path)
    assert status != 0
    assert "entries" in errors


@pytest.mark.parametrize("mode", [(), ("-m",)], ids=["job", "sweep"])
def test_a_figure_that_fails_leaves_the_table_written_and_exits_with_1(tmp_path, mode):
    figure = f"report.figure={{_target_: {__name__}.broken_figure}}"
    status, errors = run(*mode, *SUMS, "attribution=sv", "limit=1", figure, output_dir=tmp_path)
    assert status == 1
    assert "Traceback" not in errors
    assert re.search(r"figure of adhoc could not be drawn \(KeyError: 'shown'\); its table is written\.\n$", errors)
    assert [row["method"] for row in table(tmp_path)["rows"]] == ["SV"]


def test_a_process_started_from_scratch_writes_plain_lines_to_standard_error_alone(tmp_path):
    command = [sys.executable, "run.py", "attribution=symbolic/sop", f"output_dir={tmp_path}"]
    process = subprocess.run(
        command, cwd=ROOT, env=terminal_free_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert (process.returncode, process.stdout) == (0, "")
    assert f"wrote {tmp_path / 'table.md'}" in process.stderr
    assert not re.search("[\x1b\r━]|Traceback", process.stderr)


OWN_METHOD = """
from metagame.attributions.shapley import ShapleyValue
from metagame.games import AttributionGame


class Own(ShapleyValue):
    def game(self, bound):
        played = super().game(bound)
        return AttributionGame(lambda coalitions: FACTOR * played.fn(coalitions), played.n_players)
"""


def test_a_module_beside_run_py_is_seen_when_it_changes(tmp_path):
    """The README's method, not known to git."""
    job = (*SUMS, "attribution=sv", "attribution.method._target_=own_beside.Own", "limit=1", "report.figure=null")
    attributions, told = [], []
    for factor, n_kept in ((1, 0), (1, 1), (100, 0)):
        (tmp_path / "own_beside.py").write_text(OWN_METHOD.replace("FACTOR", str(factor)))
        status, errors = run(*job, output_dir=tmp_path / "results", path=[tmp_path])
        assert (status, n_by_an_earlier_run(errors)) == (0, n_kept), errors
        attributions.append(table(tmp_path / "results")["rows"][0]["phi_a"])
        told.append("the code (own_beside) has changed: 1 samples are computed again." in errors)
    assert attributions == pytest.approx([attributions[0], attributions[0], 100 * attributions[0]])
    assert told == [False, False, True]
