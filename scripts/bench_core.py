"""Time exact interaction indices against one Moebius transform and against their own version before, in one run.

    python -m scripts.bench_core

Writes outputs/bench/core.json. The version before, a matrix of weights for every pair, is taken from the history of the
repository.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np

from metagame import indices
from scripts.measure import module_at, report, timed

BEFORE = "da94fcf"
PLAYERS, TARGETS, REPEATS = 16, (1, 4, 16), 5


def bench() -> dict:
    """All measurements of one run."""
    before = module_at(BEFORE, "src/metagame/indices.py")
    seconds, result, units = {}, {}, {}
    for t in TARGETS:
        values = np.random.default_rng(0).normal(size=(1 << PLAYERS, t))
        ours = {
            "moebius": partial(indices.moebius, values, PLAYERS),
            "pairs": partial(indices.sii, values, PLAYERS),
            "triples": partial(indices.sii, values, PLAYERS, 3),
            "pairs_before": partial(before.sii, values, PLAYERS),
        }
        fastest = {name: min(timed(function)[0] for _ in range(REPEATS)) for name, function in ours.items()}
        seconds |= {f"{name}, t = {t}": each for name, each in fastest.items()}
        result |= {
            f"ratio_moebius_t{t}": fastest["pairs"] / fastest["moebius"],
            f"ratio_before_t{t}": fastest["pairs_before"] / fastest["pairs"],
            f"error_t{t}": float(np.abs(ours["pairs"]() - ours["pairs_before"]()).max()),
        }
        units |= {
            f"ratio_moebius_t{t}": f"time of all pairs / one Moebius transform, {t} targets",
            f"ratio_before_t{t}": "time of the version before / ours",
            f"error_t{t}": "largest absolute difference to the version before",
        }
    what = f"Shapley interaction index of n = {PLAYERS} players, fastest of {REPEATS}"
    return {"what": what, **result, "seconds": seconds, "units": units}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    report(bench(), "core")


if __name__ == "__main__":
    main()
