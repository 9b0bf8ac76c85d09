"""Comprehensiveness and sufficiency: what a classifier's probability loses without the players that rank highest.

DeYoung et al., ERASER (2020); the published evaluation of attention games has other bins (arXiv 2508.08966).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from jaxtyping import Bool, Float

from metagame.benchmarks.labelled import LabelledDigit, LabelledText
from metagame.contracts import WHOLE, Benchmark, Explanation, Score
from metagame.errors import UserError
from metagame.models.classified import Classified

ERASER = (1, 5, 10, 20, 50)
PUBLISHED = (0, 10, 20, 50)
"""Bins of arXiv 2508.08966, whose divisor is 5: an empty one adds 0 to comprehensiveness, p(x) - p(nothing) to
sufficiency."""
KEPT = 20
"""Per cent of the players from which the label is predicted again."""


class Faithfulness(Benchmark[LabelledText | LabelledDigit, Classified]):
    """How well the ranking of a method's attributions reflects the behaviour of the classifier.

    Of the n players, the top k % are those that rank highest, rounded up; p is the softmax probability of the label
    that is explained. Comprehensiveness is the sum over bins k of p(x) - p(x without the top k %), divided by the
    number of bins + 1; sufficiency is the same for p(x) - p(the top k % alone). High comprehensiveness and low
    sufficiency are good; both lie between -1 and 1. The model defines how players are made absent.

    A metagame is ranked by the sums of its rows, which are phi_i(N) by efficiency. Equal attributions are ranked at
    random.

    Args:
        labelled: the samples.
        bins: per cent of players; if not given, those of ERASER.
        divisor: the divisor of the sums; if None, the number of bins + 1.

    Raises:
        UserError: a bin is not a number from 0 to 100, or the divisor is not positive.
    """

    def __init__(
        self,
        labelled: Sequence[LabelledText | LabelledDigit],
        bins: Sequence[float] = ERASER,
        divisor: float | None = None,
    ) -> None:
        if not bins or any(isinstance(each, bool) or not 0 <= each <= 100 for each in bins):
            raise UserError(f"benchmark.bins={list(bins)} must be percentages, numbers from 0 to 100.")
        if len({*bins}) < len(bins):
            raise UserError(f"benchmark.bins={list(bins)} has a percentage twice: give each once.")
        if divisor is not None and divisor <= 0:
            raise UserError(
                f"benchmark.divisor={divisor} must be a positive number, or null for the number of bins + 1."
            )
        self._samples = list(labelled)
        self.bins = tuple(bins)
        self.divisor = divisor

    def samples(self) -> list[LabelledText | LabelledDigit]:
        return self._samples

    @property
    def played_bins(self) -> list[float]:
        """All bins that tables need, in ascending order."""
        return sorted({*self.bins, *PUBLISHED, KEPT})

    def score(
        self,
        sample: LabelledText | LabelledDigit,
        inputs: Mapping[str, Classified],
        explanations: Mapping[str, Explanation],
    ) -> dict[str, Score]:
        """``comprehensiveness`` and ``sufficiency``, both also for ``published_`` bins, and other table values."""
        bound = inputs[WHOLE]
        order = ranking(player_values(explanations[WHOLE]), bound.players)
        bins = self.played_bins
        top = np.array([top_players(order, share) for share in bins])
        coalitions = np.concatenate([np.ones((1, len(order)), bool), ~top, top])
        p = bound.probabilities(coalitions).cpu().numpy()
        without, alone = np.split(p[0, bound.label] - p[1:, bound.label], 2)
        lost, missed = dict(zip(bins, without, strict=True)), dict(zip(bins, alone, strict=True))
        divisor = len(self.bins) + 1 if self.divisor is None else self.divisor
        return {
            "comprehensiveness": float(sum(lost[share] for share in self.bins) / divisor),
            "sufficiency": float(sum(missed[share] for share in self.bins) / divisor),
            "published_comprehensiveness": float(sum(lost[share] for share in PUBLISHED) / (len(PUBLISHED) + 1)),
            "published_sufficiency": float(sum(missed[share] for share in PUBLISHED) / (len(PUBLISHED) + 1)),
            "probability": float(p[0, bound.label]),
            "label": sample.label,
            "predicted": int(p[0].argmax()),
            "kept": int(p[1 + len(bins) + bins.index(KEPT)].argmax()),
            "n_players": len(order),
            "n_cut": bound.n_cut,
        }

    def sample_scores(self, scores: Mapping[str, Score]) -> dict[str, float]:
        """The numbers, by what they are."""
        return {CALLED.get(name, name): value for name, value in super().sample_scores(scores).items()}


CALLED = {
    "published_comprehensiveness": "comprehensiveness, bins of 0 to 50 %",
    "published_sufficiency": "sufficiency, bins of 0 to 50 %",
    "probability": "probability of the label",
    "predicted": "predicted class",
    "kept": f"class predicted from the top {KEPT} %",
    "n_players": "players",
    "n_cut": "tokens cut off",
}
"""Scores by what they are."""


def player_values(explanation: Explanation) -> Float[np.ndarray, " n"]:
    """What ranks the players: their attributions, or the sums of a metagame's rows.

    Raises:
        UserError: the method attributes something else than the players, or unordered pairs.
    """
    meta = explanation.meta
    if meta is not None and not meta.directed:
        raise UserError(
            "benchmark=faithfulness ranks players, which values of unordered pairs do not: choose another method."
        )
    values = explanation.attribution if meta is None else meta.matrix().sum(1)
    if values is None or len(values) != len(explanation.players):
        raise UserError("benchmark=faithfulness ranks players: choose a method whose targets are the players.")
    return values


def ranking(values: Float[np.ndarray, " n"], players: Sequence[str]) -> np.ndarray:
    """Players from the highest value to the lowest; equal ones in an order that is random, and the same each time."""
    rng = np.random.default_rng(zlib.crc32("\0".join(players).encode()))
    return np.lexsort((rng.permutation(len(values)), -values))


def top_players(order: np.ndarray, share: float) -> Bool[np.ndarray, " n"]:
    """The first ``share`` per cent of the order, rounded up."""
    top = np.zeros(len(order), bool)
    top[order[: ceil(round(share * len(order) / 100, 9))]] = True
    return top
