"""The README, the documentation and the notebooks say what is true."""

import json
import re
import shlex
import subprocess
import sys
import types

import pytest
import yaml
from hydra import compose
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from metagame.contracts import WHOLE
from metagame.jobs.build import build_part
from metagame.models.adder import Adder, Sum
from metagame.models.masked import MaskedModel
from tests.conftest import close
from tests.tiny.jobs import ROOT, shipped_configs
from tests.tiny.runs import Forked, run

README = (ROOT / "README.md").read_text()
PAGES = {page.relative_to(ROOT / "docs").as_posix(): page.read_text() for page in (ROOT / "docs").rglob("*.md")}
TEXT = "\n".join([README, *PAGES.values()])


def blocks(language, text=TEXT):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def lines_starting(start):
    found = [line for block in blocks("bash") for line in block.splitlines() if line.startswith(start)]
    return list(dict.fromkeys(found))


RUN = [shlex.split(line, comments=True)[2:] for line in lines_starting("python run.py")]
CLUSTER = [arguments for arguments in RUN if any(each.startswith("hydra/launcher") for each in arguments)]
HERE = [arguments for arguments in RUN if arguments not in CLUSTER and "name=keep_one" not in arguments]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", HERE, ids=" ".join)
def test_run_commands_write_a_table(arguments, tmp_path):
    status, errors = run(*arguments, "limit=1", output_dir=tmp_path)
    assert status == 0, errors
    assert (tmp_path / "table.json").exists()


def test_commands_for_a_cluster_compose():
    assert CLUSTER
    for arguments in CLUSTER:
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


@pytest.mark.slow
def test_table_1_is_the_one_that_is_written(tmp_path):
    status, errors = run("experiment=table1", output_dir=tmp_path)
    assert status == 0, errors
    written = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    shown = re.search(r"<!-- table1 -->\n(.*)\n<!-- /table1 -->", PAGES["results/tiny.md"], re.DOTALL)[1].splitlines()
    assert shown == written


def test_code_gives_what_its_comments_say(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("matplotlib.pyplot.subplots", lambda **settings: (None, Figure().subplots()))
    explained, own = blocks("python", README)
    exec(explained, {})
    assert re.search(r"print\(phi\)  # (.*)", explained)[1] in capsys.readouterr().out
    namespace = {}
    exec(own, namespace)
    phi = namespace["phi"]
    assert (phi.values.tolist(), phi.first_order.tolist()) == ([[1, 1], [2, 0]], [2, 2])
    assert len(phi.to_shapiq()) == 2


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


def run_cells(notebook):
    """In IPython, as a kernel does."""
    shell = InteractiveShell.instance()
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            shell.run_cell("".join(cell["source"])).raise_error()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_and_its_saved_outputs_are_clean(notebook):
    status, errors = Forked(run_cells, notebook, cwd=notebook.parent).end()
    assert status == 0, errors
    assert "stderr" not in notebook.read_text()


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
