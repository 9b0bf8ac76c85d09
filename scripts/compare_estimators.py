"""Compare the estimators of Meta-AttnLRP with the exact metagame, and with the paper's procedure, by what they cost.

    python -m scripts.compare_estimators [--prompts 8] [--seeds 3]

Prompts are reviews of 12 words, short enough to play all 2^n coalitions with the small Gemma 3, for each step of the
answer; budgets are multiples of B = 32(n-1) coalitions, of which 2 B are a sixth of all here. Writes
outputs/bench/estimators.json and .png.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track

from metagame.attributions.attnlrp import AttnLRP
from metagame.benchmarks.prompts import review_prompts
from metagame.estimators import ESTIMATORS
from metagame.estimators.exact import endogenous_index
from metagame.games import AttributionGame, all_coalitions
from metagame.meta import meta_attributions
from metagame.models.language_model import LanguageModel
from metagame.report.maps import COLORS
from scripts.measure import report, timed
from tests.reference import generation

PLAYERS = 12
BUDGETS = (0.5, 1, 2, 4)
DEFAULT, DEFAULT_BUDGET = "trees", 2


def small_gemma() -> LanguageModel:
    """The small Gemma 3, asked in its chat template."""
    return LanguageModel.load("data/tiny/gemma3", device="cpu", chat=True, max_new_tokens=8, end_token=False)


def step_tables(model: LanguageModel, text: str) -> np.ndarray:
    """Relevance for each step of the answer on all coalitions, ``(T, 2**n, n)``."""
    prompt = model.tokenize(text)
    answer = model.generate(prompt)
    coalitions = all_coalitions(len(prompt.positions))
    return np.stack(
        [
            np.concatenate(
                [
                    generation.step_relevance(model, AttnLRP(), prompt, answer, step, part)
                    for part in np.array_split(coalitions, max(1, len(coalitions) // 128))
                ]
            )
            for step in range(len(answer))
        ]
    )


def relative_error(estimate: np.ndarray, exact: np.ndarray) -> float:
    """Frobenius norm of the difference off the diagonal, which all know exactly, over that of the exact matrix."""
    off = ~np.eye(len(exact), dtype=bool)
    return float(np.linalg.norm((estimate - exact)[off]) / np.linalg.norm(exact[off]))


def errors_of_prompt(tables: np.ndarray, seeds: range) -> dict[str, list[float]]:
    """Errors of each estimator and budget, and of the paper's procedure, one for each seed."""
    values = tables.mean(0)
    n, exact = values.shape[1], endogenous_index(values)
    bits = 1 << np.arange(n)
    found: dict[str, list[float]] = {}
    for seed, budget, name in product(seeds, BUDGETS, [each for each in ESTIMATORS if each != "exact"]):
        coalitions = min(round(budget * generation.n_coalitions(n)), 1 << n)
        phi = meta_attributions(AttributionGame.from_values(values), name, True, coalitions, seed)
        found.setdefault(f"{name}, {budget:g} B", []).append(relative_error(phi.values, exact))
    for seed in seeds:
        matrix = generation.meta_attributions(lambda step, rows: tables[step][rows @ bits], n, len(tables), seed)
        found.setdefault("paper", []).append(relative_error(matrix, exact))
    return found


def compare(n_prompts: int, n_seeds: int) -> dict:
    """All measurements."""
    model = small_gemma()
    errors: dict[str, list[float]] = {}
    passes = []
    for prompt in track(review_prompts(n_prompts, PLAYERS, PLAYERS, seed=2), "estimators"):
        tables = step_tables(model, prompt.text)
        n, steps = tables.shape[2], len(tables)
        passes.append(generation.n_passes(n, steps) / (DEFAULT_BUDGET * generation.n_coalitions(n)))
        for name, values in errors_of_prompt(tables, range(n_seeds)).items():
            errors.setdefault(name, []).append(float(np.mean(values)))
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    default = means[f"{DEFAULT}, {DEFAULT_BUDGET:g} B"]
    return {
        "what": f"{n_prompts} prompts with {PLAYERS} players, {n_seeds} seeds, small Gemma 3",
        "error": default,
        "error_of_the_paper": means["paper"],
        "ratio": float(np.mean(passes)),
        "errors": means,
        "standard_errors": {name: _standard_error(each) for name, each in errors.items()},
        "seconds": {},
        "units": {
            "error": f"of estimator={DEFAULT} with {DEFAULT_BUDGET} B coalitions in all, relative to the exact matrix",
            "error_of_the_paper": "of B coalitions and trees for each step and target",
            "ratio": "passes of the paper's procedure / ours",
        },
    }


def _standard_error(values: list[float]) -> float:
    """Of the mean over prompts; 0 of a single one."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def curve_figure(result: dict) -> Figure:
    """Error over budget of each estimator; the paper's procedure is a line at its error."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    estimators = [name for name in ESTIMATORS if name != "exact"]
    for name, color, marker in zip(estimators, COLORS, "osD^", strict=False):
        keys = [f"{name}, {budget:g} B" for budget in BUDGETS]
        means = [result["errors"][key] for key in keys]
        spread = [2 * result["standard_errors"][key] for key in keys]
        axes.errorbar(BUDGETS, means, spread, color=color, marker=marker, capsize=3, label=name)
    paper = result["errors"]["paper"]
    axes.axhline(paper, color="0.3", linestyle="--", label="paper: B for each step and target")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(BUDGETS, [f"{budget:g}" for budget in BUDGETS])
    axes.set_xlabel("coalitions in all, in multiples of B = 32(n − 1)")
    axes.set_ylabel("relative error ± 2 SE")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds, result = timed(lambda: compare(arguments.prompts, arguments.seeds))
    result["seconds"]["all"] = seconds
    report(result, "estimators")
    curve_figure(result).savefig(Path("outputs/bench/estimators.png"), dpi=200)


if __name__ == "__main__":
    main()
