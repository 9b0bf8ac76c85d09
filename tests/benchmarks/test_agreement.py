"""Sentences with subject and verb, and the scores of their evidence."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metagame.attributions.alti_logit import ALTILogit
from metagame.attributions.attnlrp import AttnLRP
from metagame.attributions.leave_one_out import LeaveOneOut
from metagame.attributions.token_baselines import RandomTokens, Recency
from metagame.benchmarks.agreement import (
    NOUNS,
    NUMBERS,
    VERBS,
    Agreement,
    AgreementSentence,
    agreement_sentences,
    evidence_scores,
)
from metagame.contracts import WHOLE, Failure
from tests.tiny.language import TEXT, adapter, bound_of, build, build_net, near
from tests.tiny.vision_language import refused

SENTENCE = AgreementSentence("one", TEXT, "service", ("soup",), "singular", " good", " bad")


def test_half_a_thousand_sentences_of_every_kind_have_attractors_of_the_other_number_and_a_verb_of_the_subjects():
    sentences = agreement_sentences(64)
    assert len({each.id for each in sentences}) == len({(each.text, each.verb) for each in sentences}) == 512
    numbers = {noun: number for pair in NOUNS for number, noun in zip(NUMBERS, pair, strict=True)}
    for each in sentences:
        words = each.text.split()
        assert [word for word in words if word in numbers] == [each.subject, *each.attractors]
        assert words[-1] == (each.attractors or (each.subject,))[-1]
        assert numbers[each.subject] == each.number
        assert {numbers[noun] for noun in each.attractors} <= {*NUMBERS} - {each.number}
        number = NUMBERS.index(each.number)
        assert (each.verb, each.foil) in [(forms[number], forms[1 - number]) for forms in VERBS]
    kinds = [(len(each.attractors), each.number) for each in sentences]
    assert {kind: kinds.count(kind) for kind in kinds} == {(n, number): 64 for n in range(4) for number in NUMBERS}
    assert len({each.text.split().index(each.subject) for each in sentences}) > 1
    assert agreement_sentences(2) == sentences[:16]
    with refused("per_kind=0 must be from 1 to 72"):
        agreement_sentences(0)


@given(st.lists(st.integers(-2, 3), min_size=2, max_size=6), st.data())
def test_scores_are_those_of_the_sorted_relevances(relevance, data):
    place = data.draw(st.integers(0, len(relevance) - 1))
    found = evidence_scores(np.array(relevance, float), place)
    ranks = [rank for rank, value in enumerate(sorted(relevance, reverse=True), 1) if value == relevance[place]]
    rank = sum(ranks) / len(ranks)
    assert found["reciprocal_rank"] == pytest.approx(1 / rank)
    assert (found["top_1"], found["top_2"]) == (rank <= 1, rank <= 2)
    positive = sum(value for value in relevance if value > 0)
    assert found["mass"] == (pytest.approx(max(relevance[place], 0) / positive) if positive else None)


def contrasted(**settings):
    """The sentence, bound to a small model."""
    model = adapter(build_net(attn_implementation="eager"), chat=False, **settings)
    (inputs,) = model.prepare([SENTENCE])
    return model, inputs


def test_the_contrast_is_the_verbs_logit_less_the_foils_for_every_method():
    model, inputs = contrasted()
    prompt, vocabulary = model.tokenize(TEXT), model.tokenizer.get_vocab()
    good, bad = (model.bind_answer(prompt, (vocabulary[word],)) for word in ("good", "bad"))
    everything = np.ones((1, 5), bool)
    assert near(inputs[WHOLE].values(everything), good.values(everything) - bad.values(everything), 1e-5)
    for method in (AttnLRP(), ALTILogit(), LeaveOneOut()):
        found, one, other = (method.explain(each).attribution for each in (inputs[WHOLE], good, bad))
        assert near(found, one - other, 1e-4)


def test_contrasts_that_a_model_cannot_make_are_told():
    (failure,) = build().prepare([SENTENCE])
    assert isinstance(failure, Failure)
    assert "set model.chat=false" in str(failure.error)
    model, _ = contrasted()
    (failure,) = model.prepare([replace(SENTENCE, foil=" very bad")])
    assert "' very bad' is not one token after" in str(failure.error)


def test_a_metagame_has_the_influence_of_attractors_on_a_subject_of_one_token_and_of_the_subject_on_them():
    _, inputs = contrasted()
    benchmark = Agreement([SENTENCE])
    explanation = AttnLRP().metagame().explain(inputs[WHOLE])
    scores = benchmark.score(SENTENCE, inputs, {WHOLE: explanation})
    subject, attractor = 1, 4  # the service and the soup
    assert scores["on_subject"] == pytest.approx(explanation.meta.values[subject, attractor])
    assert scores["by_subject"] == pytest.approx(explanation.meta.values[attractor, subject])
    first = benchmark.score(SENTENCE, inputs, {WHOLE: AttnLRP().explain(inputs[WHOLE])})
    assert first["reciprocal_rank"] == scores["reciprocal_rank"]  # rows sum to it
    assert "on_subject" not in first
    assert first["margin"] == pytest.approx(float(inputs[WHOLE].values(np.ones((1, 5), bool))[0]))
    alone = replace(SENTENCE, attractors=())
    assert benchmark.score(alone, inputs, {WHOLE: explanation})["on_subject"] is None
    split = replace(SENTENCE, attractors=("soup", "and the soup"))
    found = benchmark.score(split, inputs, {WHOLE: explanation})
    assert (found["on_subject"], found["split_attractors"]) == (None, ["and the soup"])
    skipped = benchmark.score(replace(SENTENCE, subject="service and"), inputs, {WHOLE: explanation})
    assert skipped["skipped"] == "service and"
    assert "mass" not in skipped


def test_baselines_are_the_place_in_the_text_and_numbers_of_the_input():
    bound = bound_of(build())
    assert Recency().explain(bound).attribution.tolist() == [1 / 5, 1 / 4, 1 / 3, 1 / 2, 1]
    one, same, other = (RandomTokens(seed).explain(bound).attribution for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
