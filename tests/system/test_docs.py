"""The documentation is built without a warning."""

import subprocess
import sys

import pytest

from tests.tiny.jobs import ROOT, terminal_free_environment

pytestmark = pytest.mark.slow

PAGES = ("index", "recipes", "reading_results", "results/small", "api/metagame")


def test_it_is_built_without_a_warning_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", tmp_path]
    run = subprocess.run(command, cwd=ROOT, env=terminal_free_environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for page in PAGES:
        html = (tmp_path / f"{page}.html").read_text()
        assert "MetaAttributions" in html or page != "api/metagame"
        assert not [line for line in html.splitlines() if 'src="http' in line or 'rel="stylesheet" href="http' in line]
    assert "<math" in (tmp_path / "concepts.html").read_text()
