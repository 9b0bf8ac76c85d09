"""Sweeps and jobs of ``run.py`` in processes of their own: what one job's failure costs the others, what is shared."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest
import torch

from metagame.models.adder import Adder
from tests.tiny.jobs import ROOT, terminal_free_environment
from tests.tiny.runs import n_by_an_earlier_run, records, run, table

pytestmark = pytest.mark.slow

SUMS = ("model=adder", "benchmark=addition")


@pytest.fixture
def folder(tmp_path):
    """A folder to work in, where the small models and data are found."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    return tmp_path


def results(folder):
    return {path.parent.name for path in folder.glob("outputs/tiny/*/table.json")}


# Where results lie


def test_two_methods_of_ones_own_do_not_share_a_table_but_their_jobs_lie_together(folder):
    for attribution in ("symbolic/moebius", "symbolic/sop"):
        status, errors = run(f"attribution={attribution}", cwd=folder)
        assert status == 0, errors
        assert "replaced" not in errors
    assert results(folder) == {"adhoc-symbolic_moebius", "adhoc-symbolic_sop"}
    assert len(records(folder / "outputs/tiny")) == 2
    status, errors = run("attribution=symbolic/moebius", "name=mine", cwd=folder)
    assert (status, n_by_an_earlier_run(errors)) == (0, 1)
    assert "mine" in results(folder)


def test_table_1_of_another_function_lies_beside_table_1(folder):
    for more in ((), ("benchmark.function='x1**2*x2'",)):
        status, errors = run("experiment=table1", "attribution=symbolic/moebius", *more, cwd=folder)
        assert status == 0, errors
        assert "replaced" not in errors
    plain, other = sorted(results(folder))
    assert (plain, other.startswith("table1-function-")) == ("table1", True)
    assert "x1*x2**2" in (folder / "outputs/tiny/table1/table.md").read_text()
    assert "x1**2*x2" in (folder / "outputs/tiny" / other / "table.md").read_text()


def test_a_sweep_over_scales_writes_a_table_for_each(tmp_path):
    status, errors = run("-m", "scale=tiny,paper", output_dir=f"{tmp_path}/${{scale.name}}")
    assert status == 0, errors
    assert [table(tmp_path / scale)["scale"] for scale in ("tiny", "paper")] == ["tiny", "paper"]


# What a table shows


def test_a_sweep_over_other_values_has_a_table_with_a_row_per_sample_and_method(tmp_path):
    examples = "benchmark.examples=['3 - (-5)','4 + (-4)','-6 + 8']"
    status, errors = run(
        "-m", *SUMS, examples, "attribution=attention,sv,ig,meta_ig", "report.figure=null", output_dir=tmp_path
    )
    assert status == 0, errors
    rows = table(tmp_path)["rows"]
    sums = {"3": 8, "4": 0, "-6": 2}
    assert Counter(row["method"] for row in rows) == {"attention": 3, "SV": 3, "IG": 3, "Meta-IG": 3}
    assert all(row["output"] == pytest.approx(sums[row["example"].split()[0]], abs=0.5) for row in rows)


def test_a_sweep_over_texts_is_shown_whole(tmp_path):
    captions = "benchmark.caption=choice('two six','six, two')"
    parts = ("-m", "model=clip_vitb16", "attribution=mask_clip,meta_mask_clip", "benchmark=illustration")
    image = f"benchmark.image={ROOT}/data/tiny/images/two_six.png"
    status, errors = run(*parts, image, captions, output_dir=tmp_path)
    assert status == 0, errors
    assert len(records(tmp_path)) == 4
    assert all(text in (tmp_path / "table.md").read_text() for text in ("two six", "six, two"))
    assert (tmp_path / "figure.png").exists()


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
FAILING = {
    "cannot be built": (
        (*SUMS, "attribution=sv,attention,ig", "attribution.meta=true", "limit=1"),
        NO_META, ["Meta-SV", "Meta-IG"], "Meta-attention could not start:",
    ),
    "raises while it loads": (
        (*LOADING, "+model.trouble=runtime,null", "report.figure=null"),
        NO_WEIGHTS, ["SV"], f"could not start: {NO_WEIGHTS}",
    ),
    "has no device": (
        ("benchmark=pointing_game", "attribution=mask_clip", "model=clip_vitb16", "limit=1", "model.device=cuda,cpu"),
        "model.device='cuda' is not available here", ["MaskCLIP"], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILING)
def test_a_job_that_does_not_start_leaves_the_other_jobs_their_table(tmp_path, case):
    if case == "has no device" and torch.cuda.is_available():
        pytest.skip("the device is there")
    sweep, reason, methods, note = FAILING[case]
    status, errors = run("-m", *sweep, output_dir=tmp_path)
    assert status == 1
    assert "Traceback" not in errors
    assert len(re.findall(reason, errors)) == 1
    assert [row["method"] for row in table(tmp_path)["rows"]] == methods
    assert note is None or any(note in each for each in table(tmp_path)["notes"])


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


# Processes from scratch, and code of one's own


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
        FACTOR = 1
        played = super().game(bound)
        return AttributionGame(lambda coalitions: FACTOR * played.fn(coalitions), played.n_players)
"""


def test_a_module_beside_run_py_is_seen_when_it_changes(tmp_path):
    """The README's method, not known to git."""
    job = (*SUMS, "attribution=sv", "attribution.method._target_=own_beside.Own", "limit=1", "report.figure=null")
    attributions, told = [], []
    for factor, n_kept in ((1, 0), (1, 1), (100, 0)):
        (tmp_path / "own_beside.py").write_text(OWN_METHOD.replace("FACTOR = 1", f"FACTOR = {factor}"))
        status, errors = run(*job, output_dir=tmp_path / "results", path=[tmp_path])
        assert (status, n_by_an_earlier_run(errors)) == (0, n_kept), errors
        attributions.append(table(tmp_path / "results")["rows"][0]["phi_a"])
        told.append(errors.count("the code (own_beside) has changed: 1 samples are computed again."))
    assert attributions == pytest.approx([attributions[0], attributions[0], 100 * attributions[0]])
    assert told == [0, 0, 1]
