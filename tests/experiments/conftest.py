"""The folder in which the experiments of a file run, while the shipped configs can be composed."""

from __future__ import annotations

import pytest

from metagame.report import experiment
from tests.tiny.jobs import shipped_configs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with shipped_configs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "DPI", 50)  # a sixteenth of the pixels
        yield tmp_path_factory.mktemp("outputs")
