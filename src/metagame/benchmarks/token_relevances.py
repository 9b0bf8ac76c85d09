"""Prompts whose tokens' relevances are kept, for tables that compare the methods with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from metagame.benchmarks.prompts import AnnotatedPrompt, sources
from metagame.contracts import WHOLE, Benchmark, Explanation, Score
from metagame.errors import UserError
from metagame.models.language_model import AnsweredPrompt


class TokenRelevances(Benchmark[AnnotatedPrompt, AnsweredPrompt]):
    """Scores no method by itself, and records the text, its tokens and the answer.

    Args:
        prompts: the samples, whose pairs are not used.
    """

    def __init__(self, prompts: Sequence[AnnotatedPrompt]) -> None:
        self.prompts = prompts

    def samples(self) -> Sequence[AnnotatedPrompt]:
        return self.prompts

    def files(self) -> Sequence[Path]:
        return sources(self.prompts)

    def score(
        self,
        sample: AnnotatedPrompt,
        inputs: Mapping[str, AnsweredPrompt],
        explanations: Mapping[str, Explanation],
    ) -> dict[str, Score]:
        bound = inputs[WHOLE]
        if explanations[WHOLE].attribution is None:
            raise UserError(
                "benchmark=token_relevances compares relevances of tokens: choose a method that attributes tokens."
            )
        return {"n_players": len(bound.players), "tokens": list(bound.players), "answer": bound.answer}
