"""CONTRIBUTING.md's worked examples run as they stand there: new files only, in a folder of one's own."""

from __future__ import annotations

import importlib
import re
import shlex

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from metagame import AttributionGame, GameError, meta_attributions
from metagame.report.results import read_experiment
from tests.conftest import close
from tests.tiny.jobs import ROOT
from tests.tiny.runs import run, table

BLOCK = re.compile(r"```(\w+)\n# (mine/\S+)\n(.*?)```", re.DOTALL)
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with the examples' files and a small checkpoint, in which their commands have run."""
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
    for line in TEXT.splitlines():
        if line.startswith("python run.py -m --config-dir"):
            status, errors = run(*shlex.split(line)[2:], cwd=folder)
            assert status == 0, errors
    return folder


def test_the_examples_add_files_and_touch_none():
    names = [name for _, name, _ in BLOCK.findall(TEXT)]
    assert len(names) == 6 + 4
    assert not any((ROOT / name).exists() for name in names)


def test_the_examples_metagame_runs_and_its_rows_sum_to_its_attribution(example):
    folder = example / "outputs/tiny/vit"
    assert [row["method"] for row in table(folder)["rows"]] == ["Rollout", "Meta-Rollout"]
    assert all(0 < row["ink"]["mean"] < 1 and row["ink"]["n"] == 3 for row in table(folder)["rows"])
    _, meta = read_experiment(folder)
    for record in meta.done:
        (explanation,) = meta.explanations(record).values()
        assert (explanation.meta.values.shape, explanation.grid) == ((9, 9), (3, 3))
        assert abs(explanation.meta.residual).max() < 1e-6
        assert (explanation.attribution >= 0).all()


def test_the_example_of_a_figure_and_an_estimator_runs(example):
    folder = example / "outputs/tiny/ends"
    assert [row["ink"]["n"] for row in table(folder)["rows"]] == [3, 3]
    assert (folder / "figure.png").exists()


@pytest.mark.parametrize("endogenous", [True, False])
def test_the_examples_estimator_is_exact_where_no_three_players_interact(example, monkeypatch, endogenous):
    monkeypatch.syspath_prepend(example)
    ends = importlib.import_module("mine.ends").ends
    rng = np.random.default_rng(0)
    linear, pairs = rng.normal(size=(4, 4)), rng.normal(size=(4, 4, 4))

    def attribute(coalitions):
        present = coalitions.astype(float)
        return present @ linear + np.einsum("ki,kj,ijt->kt", present, present, pairs)

    game = AttributionGame(attribute, 4)
    found = meta_attributions(game, ends, endogenous)
    assert close(found.values, meta_attributions(game, "exact", endogenous).values)
    with pytest.raises(GameError, match="order 1 only"):
        meta_attributions(game, ends, False, order=2)
    with pytest.raises(GameError, match="needs at least"):
        meta_attributions(game, ends, endogenous, budget=3)
