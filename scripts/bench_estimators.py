"""Time and memory of the estimators over players, targets and budget, and the regression against its version before.

    python -m scripts.bench_estimators

Each cell runs in a process of its own, with one thread. The game is a layer of 64 tanh; its own time does not count.
Writes outputs/bench/estimators_growth.json and .png. The version before is taken from the history of the repository.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

from metagame import AttributionGame, meta_attributions
from metagame.estimators.coalition_sample import draw_coalition_sample
from metagame.estimators.regression import fit
from metagame.report.maps import COLORS
from scripts.measure import module_at, peak_memory, report, timed

BEFORE = "15aba06^"
ESTIMATORS = ("permutation", "regression", "trees", "auto")
BATCH = 256
"""Coalitions at once: what the method is given needs no memory to speak of."""
GROWTH = {
    "players": [(30, 4, 4), (100, 4, 4), (300, 4, 4)],
    "targets": [(30, 1, 16), (30, 10, 16), (30, 100, 16)],
    "coalitions for each player": [(30, 4, 4), (30, 4, 16), (30, 4, 64)],
}
"""Players, targets and coalitions for each player; one of these grows."""
LARGE_PLAYERS = 1000
LARGE = {"permutation": (100, 4), "regression": (10_000, 4), "auto": (1, 4)}
"""Targets and coalitions for each player that so many players are tried with."""


@dataclass(frozen=True)
class Cell:
    """What one estimate took: seconds of the CPU without those of the game, and the peak of memory in GB.

    ``per_player``: coalitions for each player.
    """

    estimator: str
    players: int
    targets: int
    per_player: int
    seconds: float
    memory: float


def measure(estimator: str, n: int, n_targets: int, per_player: int) -> Cell:
    """Play one exogenous game, in a process that has played a small one before."""
    rng = np.random.default_rng(0)
    hidden, out = rng.normal(size=(n, 64)) / np.sqrt(n), rng.normal(size=(64, n_targets))
    spent = 0.0

    def attribute(coalitions: np.ndarray) -> np.ndarray:
        nonlocal spent
        start = time.process_time()
        values = np.tanh((coalitions - 0.5) @ hidden) @ out
        spent += time.process_time() - start
        return values

    meta_attributions(AttributionGame.from_values(rng.normal(size=(64, 1))), estimator, False, 60)
    start = time.process_time()
    game = AttributionGame(attribute, n, batch_size=BATCH)
    spent = 0.0
    meta_attributions(game, estimator, False, per_player * n)
    return Cell(estimator, n, n_targets, per_player, time.process_time() - start - spent, peak_memory())


def alone(*cell: str | int) -> Cell:
    """:func:`measure` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(measure, *cell).result()


def regression_before(n: int = 30, n_targets: int = 1000, per_player: int = 16) -> dict:
    """Least squares and standard errors of the version before, and of ours, each on its own sample."""
    sample_before = module_at(BEFORE, "src/metagame/estimators/coalition_sample.py")
    before = module_at(BEFORE, "src/metagame/estimators/regression.py", require_shapley="require_scope")
    rng = np.random.default_rng(0)
    hidden, out = rng.normal(size=(n, 64)) / np.sqrt(n), rng.normal(size=(64, n_targets))

    def fastest(draw: Callable, estimate: Callable) -> float:
        sample = draw(n, per_player * n, endogenous=False, seed=0)
        values = np.tanh((sample.coalitions - 0.5) @ hidden) @ out
        return min(timed(partial(estimate, sample, values))[0] for _ in range(5))

    seconds = {
        "regression before": fastest(sample_before.draw_coalition_sample, before.fit_exogenous),
        "regression": fastest(draw_coalition_sample, fit),
    }
    return {"ratio_before": seconds["regression before"] / seconds["regression"], "seconds": seconds}


def bench() -> dict:
    """All cells, and the ratio to the version before."""
    growing = list(dict.fromkeys(size for line in GROWTH.values() for size in line))
    asked = [(estimator, *size) for size in growing for estimator in ESTIMATORS]
    asked += [(estimator, LARGE_PLAYERS, *size) for estimator, size in LARGE.items()]
    cells = [alone(*each) for each in track(asked, "cells")]
    before = regression_before()
    names = {
        each: f"{each.estimator}, n = {each.players}, {each.targets} targets, {each.per_player} n" for each in cells
    }
    large = {name: cell for cell, name in names.items() if cell.players == LARGE_PLAYERS}
    return {
        "what": "exogenous games, seconds of one core without those of the game",
        "ratio_before": before["ratio_before"],
        **{f"memory: {name}": cell.memory for name, cell in large.items()},
        "cells": [asdict(cell) for cell in cells],
        "seconds": {name: cell.seconds for cell, name in names.items()} | before["seconds"],
        "units": {"ratio_before": "regression of 1,000 targets and 30 players: time of the version before / ours"}
        | {f"memory: {name}": "GB, peak of the process" for name in large},
    }


def growth_figure(result: dict) -> Figure:
    """Seconds over players, targets and coalitions, a panel each; a line for each estimator."""
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    found = {
        (each["estimator"], each["players"], each["targets"], each["per_player"]): each for each in result["cells"]
    }
    for number, (axes, (what, line)) in enumerate(zip(figure.subplots(1, 3, sharey=True), GROWTH.items(), strict=True)):
        over = [size[("players", "targets", "coalitions for each player").index(what)] for size in line]
        for estimator, color, marker in zip(ESTIMATORS, COLORS, "osD^", strict=False):
            seconds = [found[estimator, n, t, per_player]["seconds"] for n, t, per_player in line]
            axes.plot(over, seconds, color=color, marker=marker, label=estimator)
        fixed = [f"{line[0][0]} players", f"{line[0][1]} targets", f"{line[0][2]} coalitions for each player"]
        axes.set_title(", ".join(each for place, each in enumerate(fixed) if place != number), fontsize=9)
        axes.set(xscale="log", yscale="log", xlabel=what)
        axes.set_xticks(over, [f"{each:,}" for each in over])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds of a core")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that it starts
    result = bench()
    report(result, "estimators_growth")
    growth_figure(result).savefig(Path("outputs/bench/estimators_growth.png"), dpi=200)


if __name__ == "__main__":
    main()
