"""Sweeps and experiments: where results lie, which jobs they share, and what one job's failure costs the others."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose
from matplotlib.figure import Figure

from metagame import cli, experiments
from metagame.errors import UserError
from metagame.experiments import finish
from metagame.jobs.build import Job
from metagame.jobs.grid import OF_THE_RUN, check_commas, results_name, sweep_configs
from metagame.jobs.run import run_job
from metagame.jobs.spec import configs_folder, job_name, jobs_folder
from metagame.models.adder import Adder
from metagame.report.experiment import FIGURES
from metagame.report.results import read_experiment, read_jobs
from tests.tiny.jobs import ROOT, Plain, job_config, shipped_configs
from tests.tiny.runs import n_by_an_earlier_run, n_recorded, records, run, table

# Where results lie

EXPERIMENT = ["experiment=table1"]
AD_HOC = ["model=adder", "benchmark=addition"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], None),
        (["scale=paper", "limit=3", "tracker=wandb", "shards=2", "shard=1", "reuse=stale", "fail_fast=true"], None),
        ([*AD_HOC, "attribution=ig"], "adhoc-adder-ig-addition"),
        ([*AD_HOC, "attribution=sv,ig"], "adhoc-adder-sv+ig-addition"),
        (["attribution=symbolic/sop"], "adhoc-symbolic_sop"),
        ([*AD_HOC, "attribution=ig", "name=mine"], None),
        ([*AD_HOC, "attribution=ig", "output_dir=/tmp/mine"], None),
        (EXPERIMENT, None),
        ([*EXPERIMENT, "scale=paper", "limit=3", "hydra/launcher=slurm", "hydra.launcher.partition=gpu"], None),
        ([*EXPERIMENT, *(f"{key}=1" for key in OF_THE_RUN if "." in key)], None),
        ([*EXPERIMENT, "attribution=symbolic/sop,symbolic/ih"], None),
        ([*EXPERIMENT, "benchmark.function='x1**2'", "name=mine"], None),
        ([*EXPERIMENT, "benchmark.function='x1**2'", "output_dir=mine"], None),
        (["experiment=null"], None),
    ],
)
def test_results_of_ones_own_have_a_name_that_says_what_they_are_of(overrides, name):
    assert results_name(overrides, ["attribution"]) == name


@pytest.mark.parametrize(
    "change",
    ["benchmark.function='x1**2'", "seed=1", "model=another", "estimator=permutation", "report=scores", "+model.x=1"],
)
def test_an_experiment_that_is_about_something_else_lies_elsewhere(change):
    name = results_name([*EXPERIMENT, change], ["attribution"])
    key = change.split("=")[0].removeprefix("+").split(".")[-1]
    assert re.fullmatch(rf"table1-{key}-[0-9a-f]{{6}}", name)
    assert results_name([*EXPERIMENT, f"{change.split('=')[0]}=other"]) != name
    assert results_name([*EXPERIMENT, "limit=1", change], ["attribution"]) == name


def test_the_order_of_what_is_changed_does_not_matter():
    changes = ["seed=1", "benchmark.function='x1**2'"]
    assert results_name([*EXPERIMENT, *changes]) == results_name([*changes[::-1], *EXPERIMENT])


def test_a_name_of_many_values_is_short_and_can_be_a_folders():
    values = ",".join(f"symbolic/method_{number}" for number in range(40))
    name = results_name([f"attribution={values}", "benchmark.function=choice('x1 / (2)','x2')"])
    assert re.fullmatch(r"[\w.+-]{1,120}", name)


def test_what_an_experiment_of_ones_own_sweeps_is_read_where_it_lies(tmp_path):
    (tmp_path / "experiment").mkdir()
    content = "name: mine\nhydra: {mode: MULTIRUN, sweeper: {params: {attribution: 'sv,ig', +model.x: '1,2'}}}\n"
    (tmp_path / "experiment/mine.yaml").write_text(content)
    for arguments in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)]):
        folders = [configs_folder(), *cli._own_configs([*arguments, "experiment=mine"])]
        assert cli._swept_by_experiment(["experiment=mine"], folders) == ["attribution", "+model.x"]
    assert cli._swept_by_experiment(["experiment=table1"], [configs_folder()]) == ["attribution"]
    assert cli._swept_by_experiment(["limit=1"], [configs_folder()]) == []


def test_several_experiments_at_once_are_refused():
    with pytest.raises(UserError, match=r"^experiment=table1,table2: run one experiment at a time\.$"):
        results_name(["experiment=table1,table2"])


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        ([], "outputs/tiny/jobs"),
        (["name=mine", "scale=paper"], "outputs/paper/jobs"),
        (["output_dir=mine"], "mine/jobs"),
        (["output_dir=outputs/tiny/mine"], "outputs/tiny/mine/jobs"),
        (["jobs_dir=elsewhere", "output_dir=mine"], "elsewhere"),
    ],
)
def test_jobs_are_shared_by_the_experiments_of_a_scale_unless_results_have_a_folder_of_their_own(overrides, folder):
    with shipped_configs():
        assert jobs_folder(compose("config", overrides=overrides)) == Path(folder)


def test_a_table_of_other_jobs_that_is_replaced_is_announced_in_a_line(tmp_path, caplog):
    first = job_config(tmp_path)
    other = job_config(tmp_path, attribution__method__factor=2.0, attribution__label="Twice")
    for cfg in (first, other):
        run_job(cfg)
    with caplog.at_level("WARNING"):
        assert finish([first])
        assert finish([first])
        assert finish([first, other])
        assert "replaced" not in caplog.text
        assert finish([other])
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path / 'table.md'} is replaced: 1 of its jobs (Share) are not part of this one; give name=NAME to keep"
        " both."
    ]


@pytest.fixture
def folder(tmp_path):
    """A folder to work in, where the small models and data are found."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    return tmp_path


def results(folder):
    return {path.parent.name for path in folder.glob("outputs/tiny/*/table.json")}


@pytest.mark.slow
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


@pytest.mark.slow
def test_table_1_of_another_function_lies_beside_table_1(folder):
    cells = ("experiment=table1", "attribution=symbolic/moebius,symbolic/sop")
    for more in ((), ("benchmark.function='x1**2*x2'",)):
        status, errors = run(*cells, *more, cwd=folder)
        assert status == 0, errors
        assert "replaced" not in errors
    plain, other = sorted(results(folder))
    assert (plain, other.startswith("table1-function-")) == ("table1", True)
    assert "x1*x2**2" in (folder / "outputs/tiny/table1/table.md").read_text()
    assert "x1**2*x2" in (folder / "outputs/tiny" / other / "table.md").read_text()


@pytest.mark.slow
def test_figures_3_and_11_share_their_jobs_and_the_second_computes_nothing(folder):
    only = ("attribution=meta_attnlrp,attnlrp", "limit=1", "report.figure=null")
    status, errors = run("experiment=figure11", *only, cwd=folder)
    assert status == 0, errors
    jobs = records(folder / "outputs/tiny")
    before = n_recorded(folder / "outputs/tiny")
    status, errors = run("experiment=figure3", *only, "benchmark.ids=[review_6]", cwd=folder)
    assert status == 0, errors
    assert n_by_an_earlier_run(errors) == 2
    assert n_recorded(folder / "outputs/tiny") == before == 2
    assert records(folder / "outputs/tiny").keys() == jobs.keys()
    assert {re.sub("-ids-.*", "", name) for name in results(folder)} == {"figure11", "figure3"}
    rows = [table(folder / "outputs/tiny" / name)["rows"] for name in sorted(results(folder))]
    assert rows[0] == [row for row in rows[1] if row in rows[0]]


# A job's failure costs itself only


class Loading(Adder):
    """The adder, whose loading raises what it is told to."""

    def __init__(self, checkpoint, trouble=None):
        if trouble == "runtime":
            raise RuntimeError("the weights\nare no weights")
        super().__init__(checkpoint)


def broken_figure(results, **kwargs):
    raise KeyError("shown")


LOADING = ("-m", *AD_HOC, "attribution=sv", "model._target_=tests.jobs.test_sweeps.Loading", "limit=1")


@pytest.mark.slow
def test_any_exception_of_a_job_costs_only_the_job(tmp_path):
    sweep = (*LOADING, "+model.trouble=runtime,null", "report.figure=null")
    status, errors = run(*sweep, output_dir=tmp_path)
    assert status == 1
    assert "Traceback" not in errors
    assert errors.count("RuntimeError: the weights are no weights") == 1
    assert [row["method"] for row in table(tmp_path)["rows"]] == ["SV"]
    assert table(tmp_path)["notes"][-1].endswith("could not start: RuntimeError: the weights are no weights")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_costs_only_its_job(tmp_path):
    sweep = ("-m", "benchmark=pointing_game", "attribution=mask_clip", "model=clip_vitb16", "limit=1")
    status, errors = run(*sweep, "model.device=cuda,cpu", output_dir=tmp_path)
    assert status == 1
    assert "Traceback" not in errors
    assert len(re.findall(r"^\w+Error: .*(?:NVIDIA|CUDA)", errors, re.MULTILINE)) == 1
    assert len(table(tmp_path)["rows"]) == 1
    assert table(tmp_path)["n_samples"] == 1


@pytest.mark.slow
def test_a_single_job_that_raises_says_so_in_a_line(tmp_path):
    status, errors = run(*LOADING[1:], "+model.trouble=runtime", output_dir=tmp_path)
    assert (status, errors) == (1, "RuntimeError: the weights are no weights\n")
    assert not (tmp_path / "table.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [(), ("-m",)])
def test_a_figure_that_fails_leaves_the_table_written_and_exits_with_1(tmp_path, mode):
    figure = "report.figure={_target_: tests.jobs.test_sweeps.broken_figure}"
    status, errors = run(*mode, *AD_HOC, "attribution=sv", "limit=1", figure, output_dir=tmp_path)
    assert status == 1
    assert (
        errors.splitlines()[-1] == "the figure of adhoc could not be drawn (KeyError: 'shown'); its table is written."
    )
    assert "Traceback" not in errors
    assert [row["method"] for row in table(tmp_path)["rows"]] == ["SV"]


def shy_figure(results, shows):
    return Figure() if shows else None


def test_a_figure_that_has_nothing_to_show_does_not_leave_that_of_another_table(tmp_path):
    for shows in (True, False):
        figure = {"_target_": "tests.jobs.test_sweeps.shy_figure", "shows": shows}
        cfg = job_config(tmp_path, report__figure=figure)
        run_job(cfg)
        assert finish([cfg])
        assert [(tmp_path / name).exists() for name in FIGURES] == [shows] * 2


# Texts with commas


COMMAS = {
    "benchmark=illustration": ("benchmark.caption", "two zero, six one"),
    "benchmark=prompts": ("benchmark.prompt", "not bad, really"),
    "benchmark=pair_deletion": ("benchmark.prompt", "not bad, really"),
    "benchmark=concepts": ("benchmark.prompt", "a zero, a six on forest"),
    "benchmark=separation": ("benchmark.function", "x1,x1*x2"),
}


@pytest.mark.parametrize("group", COMMAS)
def test_a_text_that_a_comma_would_split_is_refused_with_how_to_quote_it(group):
    key, text = COMMAS[group]
    with shipped_configs():
        cfg = compose("config", overrides=[group])
        with pytest.raises(UserError) as refusal:
            check_commas(cfg, [group, f"{key}={text}"])
        quoted = f"{key}='{text}'"
        assert str(refusal.value) == (
            f'{key}={text} would be swept at each comma: quote one text inside the quotes, "{quoted}", or write'
            f" {key}=choice(...) for several."
        )
        check_commas(cfg, [group, quoted])
        check_commas(cfg, [group, f"{key}=choice('{text}','another')"])
        check_commas(cfg, [group, "attribution=sv,ig"])
        one, several = (
            [config.benchmark[key.split(".")[1]] for config in sweep_configs([], [group, each])]
            for each in (quoted, f"{key}=choice('{text}','another')")
        )
        assert (one, several) == ([text], [text, "another"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", [("-m",), ("experiment=table1",)])
def test_a_sweep_that_would_split_a_text_stops_before_its_first_job(tmp_path, mode):
    status, errors = run(*mode, "benchmark.function=x1,x1*x2", output_dir=tmp_path)
    assert status == 1
    (line,) = errors.splitlines()
    assert "would be swept at each comma" in line
    assert "\"benchmark.function='x1,x1*x2'\"" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_over_texts_is_shown_whole(tmp_path):
    captions = "benchmark.caption=choice('two six','six, two')"
    parts = ("-m", "model=clip_vitb16", "attribution=mask_clip,meta_mask_clip", "benchmark=illustration")
    image = f"benchmark.image={ROOT}/data/tiny/images/two_six.png"
    status, errors = run(*parts, image, captions, output_dir=tmp_path)
    assert status == 0, errors
    assert len(records(tmp_path)) == 4
    text = (tmp_path / "table.md").read_text()
    assert "two six" in text
    assert "six, two" in text
    assert (tmp_path / "figure.png").exists()


# metagame report


@pytest.fixture
def no_models(monkeypatch):
    """Whoever builds a job fails."""
    monkeypatch.setattr(Job, "build", lambda *_: pytest.fail("a job was built"))
    monkeypatch.setattr("metagame.jobs.build.build_method", lambda *_: pytest.fail("a method was built"))


def render(*arguments):
    with pytest.raises(SystemExit) as end:
        experiments.report(list(map(str, arguments)))
    return end.value.code


FILES = ("table.json", "table.csv", "table.md", "table.tex", "figure.png", "figure.pdf", "experiment.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Some jobs of Figure 1, as a run leaves them: the folder of all results."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data").symlink_to(ROOT / "data")
    status, errors = run("experiment=figure1", "attribution=sv,meta_sv,ig", cwd=folder)
    assert status == 0, errors
    return folder / "outputs"


@pytest.mark.slow
def test_tables_and_figures_are_rendered_again_from_records_alone(finished, tmp_path, no_models, monkeypatch):
    shutil.copytree(finished, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    figure1 = Path("outputs/tiny/figure1")
    before = {name: (figure1 / name).read_bytes() for name in FILES}
    for name in FILES[:-1]:
        (figure1 / name).unlink()
    assert render() == 0
    assert {name: (figure1 / name).read_bytes() for name in FILES} == before
    assert Path("outputs/tiny/report/index.html").exists()


@pytest.mark.slow
def test_results_that_were_moved_are_rendered_where_they_are(finished, tmp_path, no_models, monkeypatch):
    shutil.copytree(finished, tmp_path / "elsewhere")
    monkeypatch.chdir(ROOT)
    figure1 = tmp_path / "elsewhere/tiny/figure1"
    before = {name: (figure1 / name).read_bytes() for name in FILES[:-1]}
    for name in before:
        (figure1 / name).unlink()
    assert render("--outputs", tmp_path / "elsewhere", "figure1") == 0
    assert {name: (figure1 / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_the_page_alone_leaves_tables_as_they_are(finished, tmp_path, no_models):
    shutil.copytree(finished, tmp_path / "outputs")
    (tmp_path / "outputs/tiny/figure1/table.md").write_text("as it was")
    assert render("--outputs", tmp_path / "outputs", "--page-only") == 0
    assert (tmp_path / "outputs/tiny/figure1/table.md").read_text() == "as it was"
    assert (tmp_path / "outputs/tiny/report/index.html").exists()


def test_an_experiment_that_has_not_run_is_refused_by_name(tmp_path, caplog):
    assert render("--outputs", tmp_path, "table1") == 1
    assert "table1 has no experiment.json: run the experiment first" in caplog.text


def test_rendering_again_asks_no_tracker(tmp_path, monkeypatch, caplog):
    cfg = job_config(tmp_path / "tiny/numbers", tracker={"_target_": "tests.jobs.test_sweeps.no_tracker"})
    run_job(cfg)
    assert finish([cfg], tracked=False)
    monkeypatch.setattr(experiments, "write_page", lambda *_: tmp_path / "tiny/numbers/table.md")
    assert render("--outputs", tmp_path) == 0
    assert next(iter(read_jobs(tmp_path / "tiny/numbers").values())).tracker == cfg.tracker


def no_tracker():
    pytest.fail("a tracker was built")


# What an experiment's folder says


def test_an_experiments_jobs_are_read_in_the_order_of_its_table_then_what_else_was_asked(tmp_path):
    configs = [
        job_config(tmp_path, attribution__method__factor=factor, attribution__name=f"share_{name}")
        for factor, name in ((3.0, "z"), (1.0, "a"), (2.0, "m"))
    ]
    for cfg in configs:
        run_job(cfg)
    assert finish(configs[:2])
    assert [result.config.attribution.name for result in read_experiment(tmp_path)] == ["share_z", "share_a", "share_m"]


def test_a_table_is_replaced_also_where_a_class_of_its_jobs_is_gone(tmp_path, caplog):
    gone, cfg = job_config(tmp_path), job_config(tmp_path, seed=1)
    run_job(gone)
    assert finish([gone])
    path = tmp_path / "experiment.json"
    path.write_text(path.read_text().replace("tests.tiny.jobs.Share", "tests.tiny.jobs.Removed"))
    run_job(cfg)
    assert finish([cfg])
    assert "is replaced: 1 of its jobs (Share)" in caplog.text
    assert list(read_jobs(tmp_path)) == [job_name(cfg)]


def test_results_are_rendered_again_although_a_class_of_their_jobs_is_gone_or_declares_something_else(
    tmp_path, monkeypatch
):
    cfg = job_config(tmp_path / "tiny/numbers", model__seconds=0.0)
    run_job(cfg)
    assert finish([cfg])
    monkeypatch.setattr(experiments, "write_page", lambda *_: tmp_path / "tiny/numbers/table.md")
    before = (tmp_path / "tiny/numbers/table.json").read_bytes()
    for name in ("experiment.json", f"samples/{job_name(cfg)}.json"):
        path = tmp_path / "tiny/numbers" / name
        path.write_text(path.read_text().replace("tests.tiny.jobs.Share", "tests.tiny.jobs.Removed"))
    (tmp_path / "tiny/numbers/table.json").unlink()
    assert render("--outputs", tmp_path) == 0
    assert (tmp_path / "tiny/numbers/table.json").read_bytes() == before
    monkeypatch.setattr(Plain, "runtime_arguments", frozenset({"seconds"}), raising=False)
    (tmp_path / "tiny/numbers/table.json").unlink()
    assert render("--outputs", tmp_path) == 0
    assert (tmp_path / "tiny/numbers/table.json").read_bytes() == before


def test_the_cells_of_a_sweep_are_one_job_each_in_each_of_its_folders():
    with shipped_configs():
        parts = ["attribution=symbolic/sop,symbolic/sop", "name=a,b"]
        configs = sweep_configs([], parts)
    assert [cfg.output_dir for cfg in configs] == ["outputs/tiny/a", "outputs/tiny/b"]
