"""The README and the documentation say what is true; their commands and notebooks run in tests/system."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
import types
from dataclasses import fields

import pytest
import yaml
from hydra import compose
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from metagame.contracts import WHOLE
from metagame.jobs.build import build_part
from metagame.jobs.records import ARRAYS, OF_META, PICTURE, SHARED, Record
from metagame.models.adder import Adder, Sum
from metagame.models.masked import MaskedModel
from metagame.report.table import Column, Table
from tests.conftest import close
from tests.tiny.documents import PAGES, README, TEXT, blocks, lines_starting, run_commands
from tests.tiny.jobs import ROOT, shipped_configs
from tests.tiny.runs import run


def executed(page):
    """What the Python code of a page leaves behind."""
    namespace = {}
    for block in blocks("python", page):
        exec(block, namespace)
    return namespace


@pytest.fixture
def at_root(monkeypatch):
    """The folder of the repository, where figures are drawn out of sight."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("matplotlib.pyplot.subplots", lambda **settings: (None, Figure().subplots()))


def test_commands_for_a_cluster_compose():
    _, cluster = run_commands()
    assert cluster
    for arguments in cluster:
        overrides = [each for each in arguments if each != "-m"]
        with shipped_configs():
            launcher = compose("config", overrides=overrides, return_hydra_config=True).hydra.launcher
        assert launcher["_target_"].endswith("SlurmLauncher")


def test_make_targets_exist():
    targets = [line.split()[1] for line in lines_starting("make")] + re.findall(r"`make (\w+)", TEXT)
    assert targets
    for target in set(targets) - {"NAME"}:
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert plan.returncode == 0, plan.stderr


def test_every_experiment_is_listed_and_has_a_target():
    names = {path.stem for path in (ROOT / "configs/experiment").glob("*.yaml")}
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGES["experiments.md"], re.MULTILINE))
    lists = re.findall(r"^(?:TABLES|FIGURES|EXPERIMENTS) := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {name for name in " ".join(lists).split() if not name.startswith("$")}
    assert names == listed == targets


def test_every_field_of_the_results_is_described():
    names = {each.name for kind in (Record, Table, Column) for each in fields(kind)}
    names |= {*OF_META, SHARED, *ARRAYS, PICTURE}
    assert not [name for name in names if f"`{name}`" not in PAGES["reading_results.md"]]


PUBLISHED = ROOT / "docs/results/small"


@pytest.mark.parametrize("made", sorted(PUBLISHED.glob("*/*/made.json")), ids=lambda made: f"{made.parent.name}")
def test_results_of_real_weights_are_the_files_that_their_run_wrote(made):
    files = json.loads(made.read_text(encoding="utf-8"))["files"]
    assert files == {name: hashlib.sha256((made.parent / name).read_bytes()).hexdigest() for name in files}


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


# Code


def test_code_of_the_readme_and_the_tour_gives_what_its_comments_say(capsys, at_root):
    phi = executed(README)["phi"]
    assert (phi.values.tolist(), phi.first_order.tolist()) == ([[1, 1], [2, 0]], [2, 2])
    assert len(phi.to_shapiq()) == 2
    assert re.search(r"print\(phi\)  # (.*)", README)[1] in capsys.readouterr().out
    executed(PAGES["tour.md"])
    assert capsys.readouterr().out == "[[1. 1.]\n [2. 0.]]\n[2. 2.]\n"


@pytest.mark.slow
def test_recipes_run_one_after_the_other():
    namespace = executed(PAGES["recipes.md"])
    assert namespace["phi"].values.shape == (16, 3)
    assert namespace["maps"].shape == (40, 256)


@pytest.mark.slow
def test_one_s_own_model_is_explained_as_the_page_says(capsys, at_root):
    namespace = executed(PAGES["explain.md"])
    assert "strongest: never → rude +0.598; rude → never +0.597" in capsys.readouterr().out
    assert [phi.grid for phi in namespace["results"]] == [(4, 4)] * 2
    assert namespace["phi"].players == ("a", "b", "c", "d")


@pytest.mark.slow
def test_results_are_read_in_ten_lines_of_pandas(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").symlink_to(ROOT / "data")
    (command,) = blocks("bash", PAGES["reading_results.md"])
    status, errors = run(*shlex.split(command)[2:], cwd=tmp_path)
    assert status == 0, errors
    monkeypatch.chdir(tmp_path)
    namespace = executed(PAGES["reading_results.md"])
    by_method = namespace["scores"]["objects_4"].groupby("method", sort=False).mean()
    assert namespace["means"]["objects_4.mean"].tolist() == pytest.approx(by_method.tolist(), abs=1e-6)
    assert namespace["phi"].shape == (16, 4)
    assert "two_se" in capsys.readouterr().out


def test_added_method_keeps_one_feature_and_has_a_metagame(monkeypatch):
    """It is importable by the name in its YAML."""
    page = PAGES["add_your_own.md"]
    source, config = blocks("python", page)[0], yaml.safe_load(blocks("yaml", page)[0])
    module = types.ModuleType(config["method"]["_target_"].rsplit(".", 1)[0])
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys.modules["metagame.attributions"], "keep_one", module, raising=False)
    method = build_part(OmegaConf.create(config).method)
    f = MaskedModel.of_function(lambda x: x[:, 0] + x[:, 0] * x[:, 1] ** 2, x=[1.0, 1.0])
    assert close(method.explain(f).attribution, [1, 0])
    (questions,) = Adder(ROOT / "data/tiny/adder").prepare([Sum.parse("3 - (-5)")])
    explanation = method.metagame().explain(questions[WHOLE])
    assert close(explanation.meta.values.sum(1), explanation.attribution, 1e-6)
