"""Time the closed forms of attention games on the matrix of a long text, which its forward and backward pass precede.

    python -m scripts.bench_attention_games

Writes outputs/bench/attention_games.json.
"""

from __future__ import annotations

import argparse

import torch

from metagame.attributions.attention_games import GAMES
from scripts.measure import report, timed

TOKENS, REPEATS = 512, 3


def bench() -> dict:
    """All measurements of one run."""
    m = torch.rand(TOKENS + 1, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    everyone = torch.ones(1, TOKENS, dtype=torch.bool)
    seconds, slowest, residual = {}, 0.0, 0.0
    for name, game in GAMES.items():
        first = [timed(lambda game=game: game.shapley(m[None], everyone)) for _ in range(REPEATS)]
        meta = [timed(lambda game=game: game.meta(m)) for _ in range(REPEATS)]
        seconds |= {f"{name}, Shapley values": min(first)[0], f"{name}, metagame of the proxy": min(meta)[0]}
        slowest = max(slowest, min(first)[0] + min(meta)[0])
        residual = max(residual, float((meta[0][1].sum(1) - first[0][1][0]).abs().max()))
    return {
        "what": f"attention games of {TOKENS} tokens in closed form, fastest of {REPEATS}",
        "slowest": slowest,
        "residual": residual,
        "seconds": seconds,
        "units": {
            "slowest": "s, Shapley values and metagame of the slowest game",
            "residual": "largest difference of a row's sum to the Shapley value",
        },
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    report(bench(), "attention_games")


if __name__ == "__main__":
    main()
