"""Each shipped experiment runs once at tiny scale, with its first four samples, up to its table and figure."""

from __future__ import annotations

import gc
import json
from collections import Counter
from pathlib import Path

from hydra import compose

from metagame.experiments import finish
from metagame.jobs.grid import sweep_configs
from metagame.jobs.run import run_job
from tests.tiny.jobs import ROOT

CONFIGS = ROOT / "configs"
PLAYED_BY_AUTO = ("distant_pairs", "figure3", "figure10", "figure11", "figure12", "pair_deletion")
OF_MANY_PASSES = (*PLAYED_BY_AUTO, "faithfulness", "figure13", "table2", "table4")
N_SAMPLES = {"figure7": 8, "both_ways": 1} | dict.fromkeys(OF_MANY_PASSES, 2)
"""Of experiments whose figure shows none of the first four, or whose samples take seconds each."""
PLAYED_WITH_LESS = ("estimator.budget_per_player=16",)
FEWER = dict.fromkeys(PLAYED_BY_AUTO, PLAYED_WITH_LESS) | {
    "distant_pairs": (*PLAYED_WITH_LESS, "benchmark.prompts.count=4"),
    "faithfulness": ("benchmark.labelled.count=4",),
    "ttcav": ("attribution.method.repeats=5",),
}
"""Of experiments that do the same many times over, a few times; FIxLIP passes a quarter of its images everywhere."""


def experiments(prefix: str) -> list[str]:
    """The shipped experiments whose names begin so."""
    return sorted(path.stem for path in (CONFIGS / "experiment").glob(f"{prefix}*.yaml"))


def job_configs(experiment: str, *overrides: str):
    """The configs of an experiment's jobs, while the shipped configs can be composed."""
    asked = [f"experiment={experiment}", *overrides]
    params = compose("config", overrides=asked, return_hydra_config=True).hydra.sweeper.params or {}
    return sweep_configs([f"{key}={value}" for key, value in params.items()], asked)


def run_experiment(experiment: str, folder: Path, *overrides: str) -> dict:
    """Run its jobs, which lie beside those of other experiments in the folder; the table as it is written."""
    n_samples = N_SAMPLES.get(experiment, 4)
    output_dir, jobs_dir = folder / experiment, folder / "jobs"
    configs = job_configs(
        experiment, "scale=tiny", f"limit={n_samples}", f"output_dir={output_dir}", f"jobs_dir={jobs_dir}",
        *FEWER.get(experiment, ()), *overrides,
    )  # fmt: skip
    for cfg in configs:
        if "design" in (cfg.attribution.get("method") or {}):
            cfg.attribution.method.design.budget //= 4
    gc.freeze()  # see tests/conftest.py: composing has imported more
    outcomes = [run_job(cfg) for cfg in configs]
    assert Counter(outcome.errors for outcome in outcomes) == {(): len(configs)}
    assert all(0 < outcome.n_done == outcome.n_samples <= n_samples for outcome in outcomes)
    assert finish(configs)
    has_figure = configs[0].report.figure is not None
    assert any(output_dir.glob("figure*.pdf")) == (output_dir / "caption.txt").exists() == has_figure
    return json.loads((output_dir / "table.json").read_text(encoding="utf-8"))
