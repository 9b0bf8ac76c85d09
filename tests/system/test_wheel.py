"""The wheel works outside of the clone, in an empty folder, with the packages of its extras and no others."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.experiments.test_tiny_flux import ADVICE
from tests.tiny.jobs import ROOT, terminal_free_environment

pytestmark = pytest.mark.slow

BASE = {"numpy", "scipy", "jaxtyping", "wadler_lindig", "metagame"}
NOT_RESEARCH = {
    "torch", "transformers", "safetensors", "lxt", "open_clip", "pyarrow", "diffusers", "accelerate", "sentencepiece",
    "pycocotools", "h5py", "wandb", "submitit",
}  # fmt: skip
RESEARCH = "which is not installed: pip install 'metagame[research]'."
TORCH = (
    "torch, which is not installed: pip install 'metagame[language]' or 'metagame[vision]' or 'metagame[diffusion]'."
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_FOLDER = (ROOT / "docs/add_your_own.md").read_text(encoding="utf-8")
OWN = re.search(r"^metagame (run -m --config-dir .*)$", OWN_FOLDER, re.MULTILINE)[1]
HIDING = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""
PLAYING = """
import metagame, numpy
game, names = metagame.AttributionGame(lambda coalitions: coalitions * numpy.arange(20.0), n_players=20), {}
for call in (
    lambda: exec(open("readme.py").read(), names),
    lambda: metagame.meta_attributions(game, "permutation", budget=100),
    lambda: metagame.meta_attributions(game, "regression", budget=100),
    lambda: metagame.meta_attributions(game, "trees", budget=100),
    lambda: metagame.meta_attributions(game, "regression", False, 500, order=2),
    lambda: metagame.concept_metagame,
):
    try:
        call()
    except metagame.UserError as error:
        print(error)
assert names["phi"].values.tolist() == [[1, 1], [2, 0]]
"""


def run(*command, cwd, check=True):
    environment = terminal_free_environment()
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=check)


def of_the_clone(*paths):
    """The files there that git does not ignore."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard", *paths)
    return [name for name in run(*command, cwd=ROOT).stdout.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, where no earlier build has left files."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in of_the_clone("pyproject.toml", "setup.py", "README.md", "LICENSE", "src", "configs"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", ".")
    run(sys.executable, "-m", "pip", *build, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel):
    """Of an environment that has the wheel, and the other packages of this one."""
    folder = wheel.parent / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent)
    python = folder / "bin" / "python"
    install = ("install", "--no-deps", "--no-index", "--no-compile", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=wheel.parent)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # the editable install there is not read
    return python


def metagame(python, *arguments, cwd, hidden=NOT_RESEARCH):
    """The exit status and the errors of the command, where some packages are not found."""
    code = HIDING.format(names=hidden) + "from metagame.extras import main; main()"
    process = run(python, "-c", code, *arguments, cwd=cwd, check=False)
    return process.returncode, process.stderr


def test_it_holds_the_package_and_the_configs(wheel):
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {
        re.sub("^configs/", "metagame/configs/", name.removeprefix("src/")) for name in of_the_clone("src", "configs")
    }


def test_what_the_readme_computes_needs_no_extra(python, tmp_path):
    hidden = set(packages_distributions()) - BASE
    *_, own = re.findall(r"```python\n(.*?)```", README, re.DOTALL)  # the one that needs no extra
    (tmp_path / "readme.py").write_text(own)
    process = run(python, "-c", HIDING.format(names=hidden) + PLAYING, cwd=tmp_path)
    assert process.stdout.splitlines() == [
        f"to_shapiq() needs shapiq, {RESEARCH}",
        f"estimator='trees' needs scikit-learn, {RESEARCH}",
        f"order=2 of estimator='regression' or 'trees' needs shapiq, {RESEARCH}",
        f"concept_metagame needs {TORCH}",
    ]
    _, errors = metagame(python, "run", cwd=tmp_path, hidden=hidden)
    assert errors == f"the command metagame needs hydra-core, {RESEARCH}\n"


@pytest.mark.parametrize(("line", "name", "n_rows"), [("run experiment=table1", "table1", 11), (OWN, "occlusion", 2)])
def test_commands_need_no_file_of_the_clone(python, tmp_path, line, name, n_rows):
    for file, content in re.findall(r"```\w+\n# (mine/\S+)\n(.*?)```", OWN_FOLDER, re.DOTALL):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    status, errors = metagame(python, *shlex.split(line), cwd=tmp_path)
    assert status == 0, errors
    assert len(json.loads((tmp_path / f"outputs/tiny/{name}/table.json").read_text())["rows"]) == n_rows


def test_what_is_missing_is_said_in_one_sentence(python, tmp_path):
    sentences = {
        "mine.Nothing": "_target_: mine.Nothing cannot be imported (No module named 'mine'); correct its config.",
        "needy.Model": "needy.Model needs nowhere, which is not installed: install it beside metagame.",
        "metagame.models.adder.Adder": f"metagame.models.adder.Adder needs {TORCH}",
    }
    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "needy.py").write_text("import nowhere")
    for number, target in enumerate(sentences):
        content = {"name": f"own{number}", "_target_": target, "checkpoint": "."}
        (tmp_path / f"configs/model/own{number}.yaml").write_text(json.dumps(content))
    models = ("--config-dir", "configs", "model=own0,own1,own2,clip_vitb16")
    status, errors = metagame(python, "run", "-m", *models, cwd=tmp_path)
    assert status == 1
    assert {*sentences.values()} <= {*errors.splitlines()}
    assert "\nmodel=clip_vitb16 needs data/tiny/clip, which is not in this folder: " in errors


def test_every_package_that_is_imported_is_required(python, tmp_path):
    nodes = [node for path in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_bytes()))]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    names = {module.partition(".")[0] for module in modules} - BASE - sys.stdlib_module_names
    names -= {"joblib", "threadpoolctl", "markupsafe"}  # scikit-learn's two and jinja2's
    found = "from metagame.extras import *; print([x for x in {} if not extras_with(DISTRIBUTIONS.get(x, x))])"
    assert run(python, "-c", found.format(names), cwd=tmp_path).stdout == "[]\n"


LOAD = """
from metagame.models.concepts import load_t5_tokenizer
try:
    load_t5_tokenizer("data/tiny/flux", None)
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize(
    "lack",
    [
        "import sys; sys.modules['sentencepiece'] = None",
        "import sys; sys.modules['google.protobuf'] = None",
        "import google.protobuf.runtime_version as version; version.MAJOR = 6",
    ],
    ids=["no sentencepiece", "no protobuf", "an older protobuf"],
)
def test_a_tokenizer_whose_packages_are_not_installed_names_them(lack):
    process = run(sys.executable, "-c", lack + LOAD, cwd=ROOT)
    assert process.stdout == f"model.checkpoint='data/tiny/flux/tokenizer_2' {ADVICE}\n"
