"""Compare the estimators with exact values by what they cost: with each other, with shapiq's, and with the paper's.

    python -m scripts.compare_estimators [--prompts 8] [--seeds 3] [--game-seeds 5]

Games are those of :mod:`scripts.estimator_games`. shapiq's KernelSHAP, PermutationSamplingSV, ProxySPEX (which needs
lightgbm) and SPEX play those of one target, with as many evaluations. Prompts are reviews of 12 words, short enough to
play all 2^n coalitions with the small Gemma 3, for each step of the answer; budgets are multiples of B = 32(n-1)
coalitions, of which 2 B are a sixth of all here. Writes outputs/bench/estimators.json, estimators.png (prompts) and
estimators_games.png.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.progress import track

from metagame.attributions.attnlrp import AttnLRP
from metagame.benchmarks.prompts import review_prompts
from metagame.estimators import ESTIMATORS
from metagame.estimators.exact import endogenous_index
from metagame.games import AttributionGame, all_coalitions
from metagame.meta import meta_attributions
from metagame.models.language_model import LanguageModel
from metagame.report.maps import COLORS
from scripts.estimator_games import KnownGame, games
from scripts.measure import report, timed
from tests.reference import generation

PLAYERS = 12
BUDGETS = (0.5, 1, 2, 4)
DEFAULT, DEFAULT_BUDGET = "auto", 2
OURS = [name for name in ESTIMATORS if name != "exact"]
PER_PLAYER = (4, 16, 64)
"""Coalitions for each player that games are played on."""
THEIRS = {"KernelSHAP": PER_PLAYER, "PermutationSamplingSV": PER_PLAYER, "ProxySPEX": (4, 16), "SPEX": (16,)}
"""Those of shapiq, by what they are given: SPEX refuses 4 for each player, and both take many seconds with 64."""


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
    for seed, budget, name in product(seeds, BUDGETS, OURS):
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


def shapiq_values(name: str, n: int, budget: int, seed: int, values: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Shapley values ``(n,)`` of one target by an approximator of shapiq."""
    import shapiq.approximator  # here, since importing it takes seconds

    settings = {
        "KernelSHAP": {"pairing_trick": True},
        "PermutationSamplingSV": {},
        "ProxySPEX": {"index": "SV", "max_order": 1},
        "SPEX": {"index": "SV", "max_order": 1},
    }[name]
    approximator = getattr(shapiq.approximator, name)(n=n, random_state=seed, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = approximator.approximate(budget, lambda rows: values(np.atleast_2d(rows).astype(bool))[:, 0])
    return np.array([found.interactions.get((player,), 0.0) for player in range(n)])


def estimate(game: KnownGame, name: str, per_player: int, seed: int) -> np.ndarray:
    """Meta-attributions ``(t, n)`` by an estimator of ours or of shapiq."""
    n = game.exact.shape[1]
    if name in OURS:
        return meta_attributions(game.play(), name, game.endogenous, per_player * n, seed).values
    return shapiq_values(name, n, per_player * n, seed, game.values)[None]


def errors_of_game(game: KnownGame, seed: int) -> list[dict]:
    """Error and CPU seconds of each estimator and budget."""
    asked = list(product(OURS, PER_PLAYER))
    if not game.endogenous:
        asked += [(name, each) for name in available() for each in THEIRS[name]]
    found = []
    for name, per_player in asked:
        start = time.process_time()
        error = game.error(estimate(game, name, per_player, seed))
        seconds = time.process_time() - start
        found.append({"estimator": name, "per_player": per_player, "error": error, "seconds": seconds})
    return found


def available() -> list[str]:
    """Those of shapiq that what is installed can run."""
    return [name for name in THEIRS if name != "ProxySPEX" or find_spec("lightgbm")]


def compare_games(n_seeds: int) -> list[dict]:
    """Errors on each game: a mean over seeds, the standard error of it, and seconds."""
    measured: dict[tuple, list[dict]] = {}
    for seed in track(range(n_seeds), "games"):
        for kind, game in games(seed):
            for each in errors_of_game(game, seed):
                measured.setdefault((kind, each["estimator"], each["per_player"]), []).append(each)
    return [
        {
            "game": kind,
            "estimator": estimator,
            "per_player": per_player,
            "error": float(np.mean([each["error"] for each in found])),
            "standard_error": _standard_error([each["error"] for each in found]),
            "seconds": float(np.mean([each["seconds"] for each in found])),
        }
        for (kind, estimator, per_player), found in measured.items()
    ]


def ratios(rows: list[dict]) -> dict[str, float]:
    """Error of auto over that of the best other estimator of ours and of shapiq's, a game and budget each."""
    found = {}
    for kind, per_player in dict.fromkeys((row["game"], row["per_player"]) for row in rows):
        of = {row["estimator"]: row["error"] for row in rows if (row["game"], row["per_player"]) == (kind, per_player)}
        auto = of.pop("auto")
        found[f"{kind}, {per_player} for each player"] = auto / min(of.values())
    return found


def games_figure(rows: list[dict]) -> Figure:
    """Error over coalitions for each player, a panel for each game."""
    kinds = list(dict.fromkeys(row["game"] for row in rows))
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(2, -(-len(kinds) // 2), sharex=True).ravel()
    names = [*OURS, *(name for name in THEIRS if any(row["estimator"] == name for row in rows))]
    for panel, kind in zip(axes, kinds, strict=False):
        for name, color, marker in zip(
            names, [*COLORS[: len(OURS)], *["0.55"] * len(THEIRS)], "osD^vPX*", strict=False
        ):
            of = [row for row in rows if (row["game"], row["estimator"]) == (kind, name)]
            line = "-" if name in OURS else ":"
            x, y = [row["per_player"] for row in of], [row["error"] for row in of]
            panel.plot(x, y, color=color, marker=marker, linestyle=line, markersize=4, label=name)
        panel.set(xscale="log", yscale="log")
        panel.set_title(kind, fontsize=9)
        panel.set_xticks(PER_PLAYER, [str(each) for each in PER_PLAYER])
        panel.xaxis.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.grid(alpha=0.3)
    for panel in axes[-(-len(kinds) // 2) :]:
        panel.set_xlabel("coalitions for each player")
    figure.supylabel("relative error", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        [name if name in OURS else f"{name} (shapiq)" for name in labels],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    return figure


def _standard_error(values: list[float]) -> float:
    """Of the mean over prompts; 0 of a single one."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def curve_figure(result: dict) -> Figure:
    """Error over budget of each estimator; the paper's procedure is a line at its error."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, color, marker in zip(OURS, COLORS, "osD^", strict=False):
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
    parser.add_argument("--game-seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in set(THEIRS) - set(available()):
        print(f"{name} is left out: install lightgbm to compare with it.")
    seconds, rows = timed(lambda: compare_games(arguments.game_seeds))
    of_games = ratios(rows)
    seconds_of_prompts, result = timed(lambda: compare(arguments.prompts, arguments.seeds))
    result |= of_games | {"games": rows}
    result["units"] |= dict.fromkeys(of_games, f"error of auto / of the best other, {arguments.game_seeds} seeds")
    result["seconds"] |= {"games": seconds, "prompts": seconds_of_prompts}
    report(result, "estimators")
    curve_figure(result).savefig(Path("outputs/bench/estimators.png"), dpi=200)
    games_figure(rows).savefig(Path("outputs/bench/estimators_games.png"), dpi=200)


if __name__ == "__main__":
    main()
