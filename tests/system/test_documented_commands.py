"""The documentation is built; its commands, those of the README, and the notebooks run as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.tiny.documents import PAGES, run_commands
from tests.tiny.jobs import ROOT, terminal_free_environment
from tests.tiny.runs import Forked, run

pytestmark = pytest.mark.slow

HERE = [arguments for arguments in run_commands()[0] if "name=keep_one" not in arguments]
"""Without that of a method which the page tells its reader to write."""


def test_the_documentation_is_built_without_a_warning_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", tmp_path]
    built = subprocess.run(command, cwd=ROOT, env=terminal_free_environment(), capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in ("index", "recipes", "reading_results", "results/small", "api/metagame"):
        html = (tmp_path / f"{page}.html").read_text()
        assert not re.search('src="http|rel="stylesheet" href="http', html)
    assert "MetaAttributions" in (tmp_path / "api/metagame.html").read_text()
    assert "<math" in (tmp_path / "concepts.html").read_text()


@pytest.mark.parametrize("arguments", HERE, ids=" ".join)
def test_run_commands_write_a_table(arguments, tmp_path):
    status, errors = run(*arguments, "limit=1", output_dir=tmp_path)
    assert status == 0, errors
    assert (tmp_path / "table.json").exists()


def test_table_1_is_the_one_that_is_written(tmp_path):
    status, errors = run("experiment=table1", output_dir=tmp_path)
    assert status == 0, errors
    written = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    shown = re.search(r"<!-- table1 -->\n(.*)\n<!-- /table1 -->", PAGES["results/tiny.md"], re.DOTALL)[1].splitlines()
    assert shown == written


def run_cells(notebook):
    """In IPython, as a kernel does."""
    shell = InteractiveShell.instance()
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            shell.run_cell("".join(cell["source"])).raise_error()


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_and_its_saved_outputs_are_clean(notebook):
    status, errors = Forked(run_cells, notebook, cwd=notebook.parent).end()
    assert status == 0, errors
    assert "stderr" not in notebook.read_text()
