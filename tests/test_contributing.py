"""CONTRIBUTING.md's worked example runs as it stands there: new files only, in a folder of one's own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from tests.jobs_fixtures import ROOT, terminal_free_environment

BLOCK = re.compile(r"```(\w+)\n# (mine/\S+)\n(.*?)```", re.DOTALL)
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example's files and a small checkpoint, in an empty folder, and what its command answered."""
    folder = tmp_path_factory.mktemp("example")
    for _, name, content in BLOCK.findall(TEXT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=24, patch_size=8,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder / "mine" / "checkpoint")
    line = next(line for line in TEXT.splitlines() if line.startswith("python run.py -m --config-dir"))
    command = [sys.executable, str(ROOT / "run.py"), *shlex.split(line)[2:]]
    process = subprocess.run(
        command, cwd=folder, env=terminal_free_environment(), capture_output=True, text=True, check=False
    )
    return folder, process


def test_the_example_adds_six_files_and_touches_none(example):
    names = [name for _, name, _ in BLOCK.findall(TEXT)]
    assert len(names) == 6
    assert not any((ROOT / name).exists() for name in names)


def test_the_example_runs_with_its_metagame(example):
    folder, process = example
    assert process.returncode == 0, process.stderr
    table = json.loads((folder / "outputs/tiny/vit/table.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["Rollout", "Meta-Rollout"]
    assert all(0 < row["ink"]["mean"] < 1 and row["ink"]["n"] == 3 for row in table["rows"])


def test_rows_of_the_examples_metagame_sum_to_its_attribution(example):
    from metagame.report.results import read_experiment

    folder, _ = example
    _, meta = read_experiment(folder / "outputs/tiny/vit")
    for record in meta.done:
        (explanation,) = meta.explanations(record).values()
        assert explanation.meta.values.shape == (9, 9)
        assert explanation.grid == (3, 3)
        assert abs(explanation.meta.residual).max() < 1e-6
        assert (explanation.attribution >= 0).all()
