"""Token-pair insertion and deletion: what the answer loses without the strongest pairs, and gains with them alone.

Beyond the paper, which names it as the test of faithfulness that it lacks (Sec. 6, Limitations).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from metagame.contracts import Score
from metagame.models.masked import MaskedModel


def deletion_and_insertion(bound: MaskedModel, matrix: Float[np.ndarray, "n n"]) -> dict[str, Score]:
    """``deletion`` and ``insertion``, the means of f_S along the two curves, and their difference, ``area``.

    The curves themselves are ``deletion_curve`` and ``insertion_curve``, at the shares ``curve_shares`` of the tokens.

    Pairs are ranked by the larger |M| of their two directions. Deletion removes the tokens of one pair after the other
    from the prompt; insertion adds them to an empty prompt. Tokens that an earlier pair removed or added are skipped. A
    curve is f_S over the share of tokens removed or added, piecewise linear, and its mean is the area below it. For a
    faithful ranking, the deletion curve falls fast and the insertion curve rises fast, so the area between the curves,
    insertion - deletion, is large. In units of f, logits.
    """
    taken = pair_path(matrix)
    values = bound.values(np.concatenate([~taken, taken])).cpu().double().numpy()
    share = taken.mean(1)
    curves = np.split(values, 2)
    deletion, insertion = (float(np.trapezoid(curve, share)) for curve in curves)
    areas = {"deletion": deletion, "insertion": insertion, "area": insertion - deletion}
    names = ("curve_shares", "deletion_curve", "insertion_curve")
    return areas | {name: each.round(6).tolist() for name, each in zip(names, (share, *curves), strict=True)}


def pair_path(matrix: Float[np.ndarray, "n n"]) -> Bool[np.ndarray, "k n"]:
    """The tokens of the strongest 0, 1, 2, ... pairs, from none to all; pairs that add none are left out."""
    n = len(matrix)
    first, second = np.triu_indices(n, 1)
    size = np.maximum(np.abs(matrix), np.abs(matrix.T))[first, second]
    taken = np.zeros(n, bool)
    path = [taken.copy()]
    for pair in np.argsort(-size, kind="stable"):
        ends = [first[pair], second[pair]]
        if not taken[ends].all():
            taken[ends] = True
            path.append(taken.copy())
    return np.array(path)
