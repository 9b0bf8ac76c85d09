"""Slow twin of comprehensiveness and sufficiency: a bin at a time, masks in place of tokens, a text at a time."""

from __future__ import annotations

import math

import torch


def scores(net, ids, mask_id: int, label: int, values, bins, divisor) -> tuple[float, float]:
    """Both scores of a text whose first and last tokens are special; no two values are equal."""

    def p(present) -> float:
        kept = [token if here else mask_id for token, here in zip(ids[1:-1], present, strict=True)]
        return float(net(torch.tensor([[ids[0], *kept, ids[-1]]])).logits.softmax(-1)[0, label])

    n = len(values)
    whole, lost, missed = p([True] * n), 0.0, 0.0
    for share in bins:
        best = sorted(range(n), key=lambda player: -values[player])[: math.ceil(share * n / 100)]
        lost += whole - p([player not in best for player in range(n)])
        missed += whole - p([player in best for player in range(n)])
    return lost / divisor, missed / divisor
