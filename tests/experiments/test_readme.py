"""The README and the documentation say what is true; their commands and notebooks run in tests/system."""

import re
import subprocess
import sys
import types

import yaml
from hydra import compose
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from metagame.contracts import WHOLE
from metagame.jobs.build import build_part
from metagame.models.adder import Adder, Sum
from metagame.models.masked import MaskedModel
from tests.conftest import close
from tests.tiny.documents import PAGES, README, TEXT, blocks, lines_starting, run_commands
from tests.tiny.jobs import ROOT, shipped_configs


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


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
