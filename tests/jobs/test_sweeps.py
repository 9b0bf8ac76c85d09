"""Sweeps and experiments: where results lie, what is swept, and how results are rendered again from records alone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure

from metagame import cli, experiments
from metagame.errors import UserError
from metagame.experiments import finish
from metagame.jobs.build import Job
from metagame.jobs.grid import (
    OF_THE_RUN,
    check_commas,
    check_left_out,
    read_configs_once,
    results_name,
    sweep_configs,
)
from metagame.jobs.labels import model_label
from metagame.jobs.run import run_job
from metagame.jobs.spec import configs_folder, job_name, jobs_folder
from metagame.report.experiment import FIGURES
from metagame.report.results import read_experiment, read_jobs
from tests.tiny.jobs import Plain, job_config, shipped_configs
from tests.tiny.runs import TABLES, contents


@pytest.fixture
def shipped():
    with shipped_configs():
        yield


# Where results lie

AD_HOC = "model=adder benchmark=addition"
NAMES = {
    "": None,
    "experiment=null": None,
    "scale=paper limit=3 tracker=wandb shards=2 shard=1 reuse=stale fail_fast=true": None,
    f"{AD_HOC} attribution=ig": "adhoc-adder-ig-addition",
    f"{AD_HOC} attribution=sv,ig": "adhoc-adder-sv+ig-addition",
    "attribution=symbolic/sop": "adhoc-symbolic_sop",
    f"{AD_HOC} attribution=ig name=mine": None,
    f"{AD_HOC} attribution=ig output_dir=/tmp/mine": None,
    "experiment=table1 scale=paper limit=3 hydra/launcher=slurm hydra.launcher.partition=gpu": None,
    " ".join(["experiment=table1", *(f"{key}=1" for key in OF_THE_RUN if "." in key)]): None,
    "experiment=table1 attribution=symbolic/sop,symbolic/ih": None,
    "experiment=table1 benchmark.function='x1**2' name=mine": None,
}


@pytest.mark.parametrize("overrides", NAMES)
def test_results_of_ones_own_have_a_name_that_says_what_they_are_of(overrides):
    assert results_name(overrides.split(), ["attribution"]) == NAMES[overrides]


@pytest.mark.parametrize(
    "change",
    ["benchmark.function='x1**2'", "seed=1", "model=another", "estimator=permutation", "report=scores", "+model.x=1"],
)
def test_an_experiment_that_is_about_something_else_lies_elsewhere(change):
    experiment, swept = "experiment=table1", ["attribution"]
    name = results_name([experiment, change], swept)
    key = change.split("=")[0].removeprefix("+").split(".")[-1]
    assert re.fullmatch(rf"table1-{key}-[0-9a-f]{{6}}", name)
    assert results_name([experiment, f"{change.split('=')[0]}=other"]) != name
    assert results_name([experiment, "limit=1", change], swept) == name
    several = results_name([experiment, change, "limit=1", "index=2"])
    assert several == results_name(["index=2", change, experiment]) != name


def test_a_name_of_many_values_is_short_and_can_be_a_folders():
    values = ",".join(f"symbolic/method_{number}" for number in range(40))
    name = results_name([f"attribution={values}", "benchmark.function=choice('x1 / (2)','x2')"])
    assert re.fullmatch(r"[\w.+-]{1,120}", name)


def test_several_experiments_at_once_are_refused():
    with pytest.raises(UserError, match=r"^experiment=table1,table2: run one experiment at a time\.$"):
        results_name(["experiment=table1,table2"])


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        ("", "outputs/tiny/jobs"),
        ("name=mine scale=paper", "outputs/paper/jobs"),
        ("output_dir=mine", "mine/jobs"),
        ("output_dir=outputs/tiny/mine", "outputs/tiny/mine/jobs"),
        ("jobs_dir=elsewhere output_dir=mine", "elsewhere"),
    ],
)
def test_jobs_are_shared_by_the_experiments_of_a_scale_unless_results_have_a_folder_of_their_own(
    overrides, folder, shipped
):
    assert jobs_folder(compose("config", overrides=overrides.split())) == Path(folder)


# What models are called

LABELS = {
    "model=polynomial": "polynomial",
    "model=causal_lm": "gemma3",
    "model=causal_lm model.checkpoint=/data/models/My-Model/": "My-Model",
    "model=causal_lm model.checkpoint=any model.gguf=SmolLM2.Q4_1.gguf": "SmolLM2.Q4_1",
    "model=clip_vitb16": "CLIP (tiny/16)",
    "model=clip_vitb16 model.checkpoint=data/tiny/metaclip2": "metaclip2",
    "model=clip_vitb16 scale=paper model.checkpoint=openai/clip-vit-large-patch14": "clip-vit-large-patch14",
    "model=clip_vitb16 model.checkpoint=any model.label=mine": "mine",
    "model=smollm2_135m scale=small model.checkpoint=/data/smollm2-135m-instruct/": "SmolLM2 135M",
    "model=smollm2_135m scale=small model.gguf=SmolLM2.Q4_1.gguf": "SmolLM2.Q4_1",
    "model=gemma3_270m_pt scale=small model.checkpoint=gemma-3-270m": "Gemma 3 270M PT",
    "model=gemma3_270m_pt scale=small model.checkpoint=/data/gemma-3-270m-it": "gemma-3-270m-it",
    "model=open_clip scale=paper model.architecture=ViT-L-14": "ViT-L-14, openai",
    "experiment=ttcav": "ViT (textures)",
    "experiment=ttcav model.checkpoint=data/tiny/vit": "vit",
}


@pytest.mark.parametrize("overrides", LABELS)
def test_a_label_of_a_config_is_that_of_its_own_weights_alone(overrides, shipped):
    assert model_label(compose("config", overrides=overrides.split())) == LABELS[overrides]


# What is swept


def test_what_an_experiment_of_ones_own_sweeps_is_read_where_it_lies(tmp_path):
    (tmp_path / "experiment").mkdir()
    content = "name: mine\nhydra: {mode: MULTIRUN, sweeper: {params: {attribution: 'sv,ig', +model.x: '1,2'}}}\n"
    (tmp_path / "experiment/mine.yaml").write_text(content)
    for arguments in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)]):
        folders = [configs_folder(), *cli._own_configs([*arguments, "experiment=mine"])]
        assert cli._swept_by_experiment(["experiment=mine"], folders) == ["attribution", "+model.x"]


@pytest.mark.parametrize(
    ("overrides", "swept"),
    [
        (["experiment=table1"], ["attribution"]),
        (["limit=1"], []),
        # of one model at the small scale: another one's results are no rows of the same table
        (["experiment=figure10"], ["model", "attribution"]),
        (["experiment=figure10", "scale=small"], ["attribution"]),
    ],
)
def test_keys_of_which_an_experiment_has_several_values_are_swept(overrides, swept):
    assert cli._swept_by_experiment(overrides, [configs_folder()]) == swept


def test_what_an_experiment_names_once_is_a_default_that_the_command_line_replaces(shipped):
    grid = ["model=adder", "attribution=sv,ig"]
    cells = sweep_configs(grid, ["model=polynomial", "benchmark=addition", "attribution=stii"])
    assert [f"{cfg.model.name} {cfg.attribution.name}" for cfg in cells] == [
        "polynomial sv", "polynomial ig", "polynomial stii",
    ]  # fmt: skip
    assert {cfg.model.name for cfg in sweep_configs(grid, ["benchmark=addition"])} == {"adder"}


def test_the_cells_of_a_sweep_are_one_job_each_in_each_of_its_folders(shipped):
    configs = sweep_configs([], ["attribution=symbolic/sop,symbolic/sop", "name=a,b"])
    assert [cfg.output_dir for cfg in configs] == ["outputs/tiny/a", "outputs/tiny/b"]


@pytest.mark.parametrize("asked", [False, True])
def test_a_file_that_is_edited_during_a_sweep_is_no_other_one_for_the_later_jobs(tmp_path, asked):
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("defaults: [model: a]\nseeds: [1]\n")
    (tmp_path / "model/a.yaml").write_text("width: 3\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        if asked:
            read_configs_once()
            read_configs_once()
        first = compose("config")
        first.model.width = 5
        first.seeds.append(2)
        (tmp_path / "model/a.yaml").write_text("width: 4\n")
        assert compose("config") == {"model": {"width": 3 if asked else 4}, "seeds": [1]}


def test_a_text_that_a_comma_would_split_is_refused_with_how_to_quote_it(shipped):
    key, text = "benchmark.function", "x1,x1*x2"
    quoted = f"{key}='{text}'"
    cfg = compose("config", overrides=["benchmark=separation"])
    with pytest.raises(UserError) as refusal:
        check_commas(cfg, ["benchmark=separation", f"{key}={text}"])
    assert str(refusal.value).startswith(f"{key}={text} would be split at its commas")
    assert f'"{quoted}"; for a sweep, write {key}=choice(...)' in str(refusal.value)
    swept = f"{key}=choice('{text}','x1')"
    check_commas(cfg, ["benchmark=separation", quoted, swept, "attribution=sv,ig"])
    assert [each.benchmark.function for each in sweep_configs([], ["benchmark=separation", swept])] == [text, "x1"]


LEFT_OUT = "leave_out=[{model: polynomial, attribution: [sop, meta_grad_eclip]}, {scale: small}, {model: mine}]"


def test_what_is_left_out_has_names_of_choices_or_of_the_sweeps_jobs(shipped):
    entries = compose("config", overrides=[LEFT_OUT]).leave_out
    check_left_out(entries, ["model.name=another,mine"], [])
    for unknown, lines in {"model=mine": [LEFT_OUT], "benchmark=sst2": ["leave_out=[{benchmark: sst2}]"]}.items():
        with pytest.raises(UserError, match=f"^leave_out has {unknown}, which is unknown: "):
            check_left_out(compose("config", overrides=lines).leave_out, [], lines)


def test_a_choice_of_ones_own_is_left_out_by_its_name(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/file.yaml").write_text("name: mine")
    (tmp_path / "config.yaml").write_text("defaults: [{model: file}]\nleave_out: [{model: mine}]")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        check_left_out(compose("config").leave_out, [], [])
        with pytest.raises(UserError, match=r"^leave_out has model=file, which is unknown: .* mine"):
            check_left_out(compose("config", ["leave_out=[{model: file}]"]).leave_out, [], [])


# What an experiment's folder says


def test_an_experiments_jobs_are_read_in_the_order_of_its_table_then_what_else_was_asked(tmp_path):
    configs = [job_config(tmp_path, seed=seed, attribution__label=label) for seed, label in enumerate("zam")]
    for cfg in configs:
        run_job(cfg)
    assert finish(configs[:2])
    assert [result.label for result in read_experiment(tmp_path)] == ["z", "a", "m"]


def remove_class(path):
    path.write_text(path.read_text().replace("tests.tiny.jobs.Share", "tests.tiny.jobs.Removed"))


@pytest.mark.parametrize("class_is_gone", [False, True])
def test_a_table_of_other_jobs_that_is_replaced_is_announced_in_a_line(tmp_path, caplog, class_is_gone):
    first, other = job_config(tmp_path), job_config(tmp_path, seed=1)
    for cfg in (first, other):
        run_job(cfg)
    for kept in ([first], [first], [first, other]):
        assert finish(kept)
    assert "replaced" not in caplog.text
    if class_is_gone:
        remove_class(tmp_path / "experiment.json")
    assert finish([other])
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith(f"{tmp_path / 'table.md'} is replaced, and 1 of its jobs (Share) are not part of this run:")
    assert "give name=NAME to keep both" in said
    assert list(read_jobs(tmp_path)) == [job_name(other)]


def shy_figure(results, shows):
    return Figure() if shows else None


def test_a_figure_that_has_nothing_to_show_does_not_leave_that_of_another_table(tmp_path):
    for shows in (True, False):
        cfg = job_config(tmp_path, report__figure={"_target_": f"{__name__}.shy_figure", "shows": shows})
        run_job(cfg)
        assert finish([cfg])
        assert [(tmp_path / name).exists() for name in FIGURES] == [shows] * 2


# metagame report

FILES = (*TABLES, *FIGURES)


def no_tracker():
    pytest.fail("a tracker was built")


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A job whose table and figure are written, in the folder of all results; whoever builds a job now fails."""
    cfg = job_config(
        tmp_path / "outputs/tiny/numbers", tracker={"_target_": f"{__name__}.no_tracker"}, model__seconds=0.0,
        report__figure={"_target_": f"{__name__}.shy_figure", "shows": True},
    )  # fmt: skip
    run_job(cfg)
    assert finish([cfg], tracked=False)
    monkeypatch.setattr(Job, "build", lambda *_: pytest.fail("a job was built"))
    monkeypatch.setattr("metagame.jobs.build.build_method", lambda *_: pytest.fail("a method was built"))
    return cfg


def report(*arguments):
    with pytest.raises(SystemExit) as end:
        experiments.report(list(map(str, arguments)))
    return end.value.code


def rendered_again(folder, *arguments):
    """Whether the table and figure are as before, once they were removed and rendered."""
    before = contents(folder, FILES)
    for name in FILES:
        (folder / name).unlink()
    assert report(*arguments) == 0
    return contents(folder, FILES) == before


def test_results_are_rendered_again_from_records_alone_without_a_tracker_also_where_they_were_moved_to(
    finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/tiny/numbers")
    assert rendered_again(folder)
    assert Path("outputs/tiny/report/index.html").exists()
    assert read_jobs(folder)[job_name(finished)].tracker == finished.tracker
    shutil.move("outputs", "elsewhere")
    assert rendered_again(Path("elsewhere/tiny/numbers"), "--outputs", "elsewhere", "numbers")
    assert not Path("outputs").exists()


def test_the_page_alone_leaves_tables_as_they_are(finished, tmp_path):
    (tmp_path / "outputs/tiny/numbers/table.md").write_text("as it was")
    assert report("--outputs", tmp_path / "outputs", "--page-only") == 0
    assert (tmp_path / "outputs/tiny/numbers/table.md").read_text() == "as it was"
    assert (tmp_path / "outputs/tiny/report/index.html").exists()


def test_an_experiment_that_has_not_run_is_refused_by_name(tmp_path, caplog):
    assert report("--outputs", tmp_path, "table1") == 1
    assert "table1 has no experiment.json: run the experiment first" in caplog.text


def test_results_are_rendered_again_although_a_class_of_their_jobs_is_gone_or_declares_something_else(
    finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(experiments, "write_page", lambda *_: tmp_path / "outputs/tiny/numbers/table.md")
    folder = tmp_path / "outputs/tiny/numbers"
    for name in ("experiment.json", f"samples/{job_name(finished)}.json"):
        remove_class(folder / name)
    assert rendered_again(folder, "--outputs", tmp_path / "outputs")
    monkeypatch.setattr(Plain, "runtime_arguments", frozenset({"seconds"}), raising=False)
    assert rendered_again(folder, "--outputs", tmp_path / "outputs")
