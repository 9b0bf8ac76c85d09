"""How often two standard errors of each estimator cover the exact Shapley value, on four kinds of games.

    python -m scripts.cover_standard_errors [--seeds 200] [--players 16]

Writes outputs/bench/standard_errors.json and standard_errors.png; 0.95 is what a normal error would give.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from metagame import AttributionGame, indices, meta_attributions
from metagame.games import all_coalitions

BUDGETS = (8, 16, 32, 64)
"""Coalitions for each player."""
ESTIMATORS = ("permutation", "regression", "auto")
PROMISED = 0.9


def games(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """All values, ``(2**n, 1)``, by the kind of game."""
    rng = np.random.default_rng(seed)
    present = all_coalitions(n)
    subsets = [rng.choice(n, rng.integers(1, 5), replace=False) for _ in range(40)]
    octets = [rng.choice(n, 8, replace=False) for _ in range(3)]
    hidden = np.maximum(present @ rng.normal(size=(n, 8)) + rng.normal(size=8), 0)
    kinds = {
        "sparse, degree 4 at most": sum(rng.normal() * present[:, subset].all(1) for subset in subsets),
        "three ANDs of 8": sum(present[:, octet].all(1).astype(float) for octet in octets),
        "a layer of ReLU": hidden @ rng.normal(size=8),
        "parity": np.where(present.sum(1) % 2, -1.0, 1.0),
    }
    return {kind: values[:, None] for kind, values in kinds.items()}


def coverage(values: np.ndarray, estimator: str, budget: int, n_seeds: int) -> float:
    """The share of players and seeds whose exact value is within two standard errors."""
    exact = indices.shapley(values, len(values).bit_length() - 1)[:, 0]
    covered = []
    for seed in range(n_seeds):
        phi = meta_attributions(AttributionGame.from_values(values), estimator, False, budget, seed)
        covered.append(np.abs(phi.values[0] - exact) <= 2 * phi.standard_error[0] + 1e-9 * np.abs(values).max())
    return float(np.mean(covered))


def draw(result: dict[str, dict[str, list[float]]]) -> Figure:
    """A panel for each estimator, a line for each kind of game."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    for axes, (estimator, kinds) in zip(figure.subplots(1, len(result), sharey=True), result.items(), strict=True):
        for kind, shares in kinds.items():
            axes.plot(BUDGETS, shares, "o-", label=kind)
        axes.axhline(0.954, color="black", linewidth=0.8)
        axes.axhline(PROMISED, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(BUDGETS, map(str, BUDGETS))
        axes.set(title=estimator, xlabel="coalitions for each player", ylim=(0.8, 1.01))
    figure.axes[0].set_ylabel("exact value within ±2 standard errors")
    figure.axes[-1].legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--players", type=int, default=16, help="all 2^n coalitions are enumerated")
    given = parser.parse_args()
    n_seeds, n = given.seeds, given.players
    result = {
        estimator: {
            kind: [coverage(values, estimator, each * n, n_seeds) for each in BUDGETS]
            for kind, values in games(n).items()
        }
        for estimator in ESTIMATORS
    }
    folder = Path("outputs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "standard_errors.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result).savefig(folder / "standard_errors.png", dpi=150)
    for estimator, kinds in result.items():
        for kind, shares in kinds.items():
            print(
                f"{estimator:12} {kind:26}",
                *(f"{each}n: {share:.3f}" for each, share in zip(BUDGETS, shares, strict=True)),
            )


if __name__ == "__main__":
    main()
