"""The cost of jobs, and what they miss, by their configs alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from metagame.benchmarks.agreement import Agreement
from metagame.benchmarks.faithfulness import Faithfulness
from metagame.benchmarks.prompts import Prompts
from metagame.contracts import Sample
from metagame.errors import UserError
from metagame.fetch.weights import GATE, Repository
from metagame.jobs.accelerator import has_gpu
from metagame.jobs.build import build_method, build_part
from metagame.jobs.grid import asked_configs, check_left_out
from metagame.jobs.labels import job_label
from metagame.jobs.spec import configs_folder, register, variants
from metagame.plan.passes import (
    ANSWER,
    BACKWARD,
    FORWARD,
    IMAGE,
    PAINTING,
    TEXT,
    TRANSFORMER,
    Count,
    count_bins,
    count_curves,
    count_margins,
    count_passes,
)
from metagame.plan.stand_ins import stand_ins

TFLOPS = 100.0
"""The matrix rate that hours are for unless another is given, 10^12 FLOPs a second: about a tenth of an H100's in
bfloat16, and what small models reach."""
TASK_MINUTES = 240
"""The length of a SLURM task that shards are chosen for."""
SPARE = 1.5
"""A task gets so much more time than it is expected to take."""


@dataclass(frozen=True)
class JobPlan:
    """The cost of a job.

    Attributes:
        label: of the job.
        checkpoint: of its model; None where it has none.
        n_samples: how many samples it has.
        count: of its passes; None where it cannot be counted.
        flops: of all passes; None where the model's size is not known.
        missing: what it cannot start without, in sentences with what to do.
        notes: what is not exact, and why something is not counted.
    """

    label: str
    checkpoint: str | None
    n_samples: int
    count: Count | None
    flops: float | None
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def read_rate(given: Sequence[str]) -> float:
    """The last of the rates that are given, in 10^12 FLOPs a second; :data:`TFLOPS` where none is.

    Raises:
        UserError: it is not positive.
    """
    try:
        rate = float(given[-1]) if given else TFLOPS
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UserError(f"plan.tflops={given[-1]} must be a positive number of 10^12 FLOPs per second.")
    return rate


def planned_configs(overrides: Sequence[str]) -> list[DictConfig]:
    """The configs of the jobs that these overrides start.

    Raises:
        UserError: the overrides make no jobs, or leave out what is unknown.
    """
    register()
    with initialize_config_dir(str(configs_folder()), version_base="1.3"):
        chosen = [line for line in overrides if line.startswith(("experiment=", "scale="))]
        swept = compose("config", chosen, return_hydra_config=True).hydra.sweeper.params or {}
        grid = [f"{key}={value}" for key, value in swept.items() if key != "shard"]
        configs = asked_configs(grid, overrides)
        for cfg in configs[:1]:
            check_left_out(cfg.leave_out, grid, overrides)
    if not configs:
        raise UserError(f"{' '.join(overrides)} starts no job: give experiment=NAME.")
    return configs


def plan_job(cfg: DictConfig, beside: Sequence[DictConfig]) -> JobPlan:
    """What a job costs, and what it misses; nothing heavy is loaded."""
    facts = model_facts().get(cfg.model.get("checkpoint"), {})
    missing, notes = list(_missing_for_model(cfg, facts)), []
    count: Count | None = None
    samples: Sequence[Sample] = []
    try:
        try:
            benchmark = build_part(cfg.benchmark, "benchmark")
            samples = benchmark.samples()
        except UserError as error:
            missing.append(str(error))
            benchmark, samples = None, stand_ins(cfg.benchmark)
        samples = list(samples[: cfg.limit])
        methods = [build_method(variant, cfg) for variant in variants(cfg)]
        count = count_passes(cfg, methods, samples, facts.get("patches"))
        if isinstance(benchmark, Prompts):
            count += count_curves(cfg, benchmark.samples()[: cfg.limit]).times(len(methods))
        if isinstance(benchmark, Faithfulness):
            count += count_bins(cfg, samples, len(benchmark.played_bins)).times(len(methods))
        if isinstance(benchmark, Agreement):
            count += count_margins(cfg, benchmark.samples()[: cfg.limit]).times(len(methods))
        notes += count.notes
    except UserError as error:
        notes.append(str(error))
    flops = None if count is None else count_flops(count, facts)
    if count is not None and flops is None:
        notes.append(f"the size of {cfg.model.name} is not known: add its checkpoint to metagame/plan/models.yaml.")
    label = job_label(cfg, beside)
    return JobPlan(label, cfg.model.get("checkpoint"), len(samples), count, flops, tuple(missing), tuple(notes))


@cache
def model_facts() -> dict[str, dict[str, Any]]:
    """What a pass through a model costs, by its checkpoint; see models.yaml."""
    return yaml.safe_load(files("metagame.plan").joinpath("models.yaml").read_text(encoding="utf-8"))


def count_flops(count: Count, facts: Mapping[str, Any]) -> float | None:
    """Floating-point operations of all passes; None where the model is not known.

    A forward pass of T tokens has 2 T parameters + 4 T^2 layers width; a backward pass that has no gradient of weights
    costs as much again. What a method does beside the model's passes is left out.
    """
    parts = {IMAGE: "image", TEXT: "text", TRANSFORMER: "transformer", PAINTING: "painting"}
    total = 0.0
    for kind, number in count.passes.items():
        if kind in (FORWARD, BACKWARD, ANSWER):
            if "language" not in facts:
                return None
            length = count.tokens[kind] / number
            total += number * forward_flops(facts["language"], length)
        elif kind in parts:
            if parts[kind] not in facts:
                return None
            total += number * forward_flops(facts[parts[kind]], facts[parts[kind]]["tokens"])
            if kind == TRANSFORMER:  # a given image
                total += number * facts.get("autoencoder", 0.0)
    return total


def forward_flops(part: Mapping[str, float], tokens: float) -> float:
    """Of a transformer's forward pass."""
    return 2 * tokens * part["parameters"] + 4 * tokens**2 * part["layers"] * part["width"]


def _missing_for_model(cfg: DictConfig, facts: Mapping[str, Any]) -> Iterator[str]:
    """What the model cannot be loaded without."""
    if cfg.scale.get("needs_gpu", False) and cfg.model.get("device", "") is None and not has_gpu():
        memory = f" of {facts['memory_gb']} GB" if "memory_gb" in facts else ""
        yield f"a GPU{memory}: run on a GPU node, or add model.device=cpu, which may be very slow."
    checkpoint = cfg.model.get("checkpoint")
    if not checkpoint or Path(checkpoint).exists() or "/" not in checkpoint:
        return
    try:
        validate_repo_id(checkpoint)
    except HFValidationError:
        yield f"the folder {checkpoint} of model.checkpoint, which does not exist: correct it."
        return
    if not Repository(checkpoint, cfg.model.get("revision") or "main", cfg.model.get("gguf") or "").is_here():
        size = f" ({facts['gigabytes']} GB)" if "gigabytes" in facts else ""
        gate = f", after you {GATE.format(checkpoint)}" if facts.get("gated") else ""
        yield f"the weights of {checkpoint}{size}: {_fetching(cfg)}{gate}."


def _fetching(cfg: DictConfig) -> str:
    """The command that fetches the weights of this model, which need not be those that the experiment names itself."""
    scale = [] if cfg.scale.name == "paper" else [f"scale={cfg.scale.name}"]
    given = [(key, cfg.model.get(key)) for key in ("checkpoint", "revision", "gguf")]
    chosen = [f"model={cfg.model.name}", *(f"model.{key}={value}" for key, value in given if value)]
    return shlex.join(["metagame", "fetch", "weights", *scale, *chosen])


def show(plans: Sequence[JobPlan], tflops: float) -> None:
    """Print the plan: a line for each job, then what follows for the whole."""
    console = Console(soft_wrap=True, highlight=False)
    table = Table("job", "samples", "passes", "PFLOP", "hours", box=None)
    for plan in plans:
        passes = "not counted" if plan.count is None else _passes_text(plan.count)
        cells = ("?", "?") if plan.flops is None else (f"{plan.flops / 1e15:.3g}", hours_text(plan.flops, tflops))
        table.add_row(plan.label, str(plan.n_samples) if plan.n_samples else "?", passes, *cells)
    console.print(table)
    console.print(*summary(plans, tflops), sep="\n")


def _passes_text(count: Count) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in count.passes.items()) or "none"


def hours_text(flops: float, tflops: float) -> str:
    """Hours at a rate of so many 10^12 FLOPs a second."""
    return f"{flops / tflops / 3.6e15:.2g}"


def summary(plans: Sequence[JobPlan], tflops: float) -> list[str]:
    """Sentences about all jobs together."""
    known = [plan for plan in plans if plan.flops is not None]
    total = sum(plan.flops or 0.0 for plan in known) / tflops / 3.6e15
    lines = [
        (
            f"{len(known)} of {len(plans)} jobs: {total:.2g} hours at {tflops:g} TFLOPs a second (plan.tflops), for"
            " the matrix products of the models alone."
        )
    ]
    longest = max(known, key=lambda plan: plan.flops or 0.0, default=None)
    if longest is not None and longest.flops:
        needed = longest.flops / tflops / 6e13 * SPARE
        n = max(1, longest.n_samples)
        shards = min(n, max(1, math.ceil(needed / TASK_MINUTES)))
        minutes = max(10, math.ceil(needed * math.ceil(n / shards) / n))
        lines.append(f"On SLURM: shards={shards} hydra.launcher.timeout_min={minutes}, by the longest job.")
    facts = {plan.checkpoint: model_facts()[plan.checkpoint] for plan in plans if plan.checkpoint in model_facts()}
    if facts:
        memory = max(each["memory_gb"] for each in facts.values())
        disk = sum(each["gigabytes"] for each in facts.values())
        lines.append(f"Memory, of a GPU where there is one: {memory} GB; disk: {disk:.1f} GB of weights.")
    notes: dict[str, list[str]] = {}
    for plan in plans:
        for note in plan.notes:
            notes.setdefault(note, []).append(plan.label)
    lines += [f"{_of(labels, plans)}: {note}" for note, labels in notes.items()]
    missing = dict.fromkeys(each for plan in plans for each in plan.missing)
    lines += [f"Missing: {each}" for each in missing]
    return lines


def _of(labels: Sequence[str], plans: Sequence[JobPlan]) -> str:
    return "All jobs" if len(labels) == len(plans) else ", ".join(labels)
