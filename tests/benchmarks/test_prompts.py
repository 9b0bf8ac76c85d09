from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metagame.attributions.random_pairs import RandomPairs
from metagame.benchmarks.prompts import (
    ANNOTATED,
    SHARES,
    AnnotatedPrompt,
    Prompts,
    annotated_prompts,
    most_pairs,
    pair_matrix,
    pair_ranks,
    review_prompts,
    string_places,
)
from metagame.benchmarks.reviews import is_held_out, reviews
from metagame.contracts import WHOLE
from metagame.models.language_model import AnsweredPrompt, Prompt
from tests.reference import prompts as twin
from tests.tiny.benchmarks import explained
from tests.tiny.functions import smooth_model
from tests.tiny.vision_language import refused

TOKENS = st.lists(st.text("aAbB ", min_size=1, max_size=3), min_size=2, max_size=6)
STRINGS = st.text("aAb ", min_size=1, max_size=4).filter(str.strip)
PAIRS = st.lists(st.tuples(STRINGS, STRINGS), max_size=4)


def score(pairs, tokens, answer="fine", kinds=(), **numbers):
    sample = AnnotatedPrompt("one", "the text", tuple(pairs), kinds=kinds)
    features = torch.zeros(2, len(tokens), 1)
    bound = AnsweredPrompt(lambda inputs: inputs.sum((1, 2)), *features, names=tuple(tokens), answer=answer)
    return Prompts([sample]).score(sample, {WHOLE: bound}, {WHOLE: explained(**numbers)})


def recalls(scores):
    return [scores[f"recall_{share}"] for share in range(16)]


@st.composite
def cases(draw, order):
    """Tokens, pairs, and a vector or matrix with many entries of equal size."""
    tokens, pairs = draw(TOKENS), draw(PAIRS)
    numbers = st.integers(-4, 4).map(float)
    return tokens, pairs, draw(arrays(np.float64, (len(tokens),) * order, elements=numbers, fill=st.nothing()))


def check_against_the_twin(scores, tokens, pairs, entries):
    ranks, unmatched = twin.ranks(pairs, tokens, entries)
    assert scores["match_ranks"] == ranks
    assert scores["ranks"] == [min(each) for each in ranks]
    assert scores["unmatched"] == [" + ".join(pair) for pair in unmatched]
    assert recalls(scores) == [twin.recall(ranks, share, len(tokens)) for share in range(16)]


@given(TOKENS, STRINGS)
def test_a_string_is_where_its_definition_says(tokens, string):
    assert string_places(string, tokens) == twin.places(string, tokens)


@given(cases(order=2))
def test_second_order_entries_rank_as_their_definition_says_without_sign_direction_diagonal_or_first_order(case):
    tokens, pairs, matrix = case
    before = matrix.copy()
    scores = score(pairs, tokens, values=matrix)
    check_against_the_twin(scores, tokens, pairs, twin.second_order_entries(matrix))
    other = -matrix.T + 100 * np.eye(len(matrix))
    assert score(pairs, tokens, values=other, attribution=np.arange(len(tokens))) == scores
    assert np.array_equal(matrix, before)


@given(cases(order=1))
def test_ranks_and_recalls_of_first_order_sums_are_what_their_definition_says(case):
    tokens, pairs, first = case
    check_against_the_twin(score(pairs, tokens, attribution=first), tokens, pairs, twin.first_order_entries(first))


@pytest.mark.parametrize(
    ("string", "tokens", "places"),
    [
        ("summar", ["Summarize", "it"], [0]),
        ("not", ["nothing", "knot", "no"], [0, 1]),
        ("Circular Quay", ["the", " Circular", " Quay"], [1]),
        ("acting", ["the", "act", "##ing"], [1]),
        ("#", ["a", "##", "b"], [1]),
        ("café", ["the", "cafe"], [1]),
        ("café", ["cafe", "café"], [1]),
    ],
)
def test_strings_by_hand(string, tokens, places):
    assert string_places(string, tokens) == places


WORDS = ("food", "not", "bad", "really")


@pytest.mark.parametrize(
    ("pairs", "tokens", "unmatched"),
    [
        ([("not", "good"), ("not", "bad"), ("nice", "soup")], ("is", "not", "bad"), ["not + good", "nice + soup"]),
        ([("class", "ify"), ("this", "text")], ("Classify", "this", "text"), ["class + ify"]),
        ([("not", "not"), ("not", "bad")], ("not", "bad", "really"), ["not + not"]),
    ],
    ids=["absent", "both in one token", "a string with itself in one place"],
)
def test_pairs_that_are_not_in_the_prompt_are_listed_and_left_out_of_recall_and_kinds(pairs, tokens, unmatched):
    kinds = tuple(" + ".join(pair) for pair in pairs)
    scores = score(pairs, tokens, kinds=kinds, values=np.ones((3, 3)))
    assert scores["unmatched"] == unmatched
    assert scores["kinds"] == [each for each in kinds if each not in unmatched]
    assert scores["ranks"] == [1]
    assert recalls(scores) == [0.0] + [1.0] * 15


def test_scores_hold_what_a_figure_shows_and_can_be_written():
    scores = score([("not", "bad"), ("nice", "soup")], WORDS, values=np.ones((4, 4)), answer="very positive")
    shown = {key: scores[key] for key in ("text", "tokens", "answer", "n_players")}
    assert shown == {"text": "the text", "tokens": list(WORDS), "answer": "very positive", "n_players": 4}
    assert json.loads(json.dumps(scores)) == scores


def test_a_pair_with_two_places_equally_close_is_told_and_the_first_is_compared():
    tokens = ["good", "not", "good", "or", "bad"]
    scores = score([("not", "good"), ("or", "bad"), ("no", "where")], tokens, values=np.ones((5, 5)))
    assert scores["ambiguous"] == ["not + good"]
    assert scores["distances"] == [1, 1]


def test_numbers_of_pairs_are_the_rounded_shares_of_none_to_fifteen_percent():
    assert list(SHARES) == list(range(16))
    by_hand = {(0, 50): 0, (1, 2): 1, (12, 4): 1, (13, 4): 2, (8, 6): 2, (9, 6): 3, (15, 20): 57, (10, 41): 164}
    assert {case: most_pairs(*case) for case in by_hand} == by_hand
    for n in range(2, 121):
        assert [most_pairs(share, n) for share in SHARES] == [twin.most_pairs(share, n) for share in SHARES]


def test_the_prompts_of_the_paper_are_21_with_two_to_four_pairs_each_whose_strings_are_in_them():
    prompts = annotated_prompts()
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == len(prompts) == 21
    for prompt in prompts:
        assert isinstance(prompt, Prompt)
        assert list(prompt.files()) == []
        assert 2 <= len(prompt.pairs) <= 4
        assert all(twin.plain(string) in twin.plain(prompt.text) for pair in prompt.pairs for string in pair)
        assert all(len({twin.plain(string) for string in pair}) == 2 for pair in prompt.pairs)
        words = prompt.text.split()
        _, unmatched = pair_ranks(prompt.pairs, words, np.ones((len(words), len(words))))
        for pair in unmatched:  # only those within a word need tokens smaller than words
            assert any(all(string.lower() in word.lower() for string in pair) for word in words)


REVIEWS = review_prompts(30, 6, 16)


def test_the_file_of_the_prompts_of_the_paper_decides_all_samples_from_it_and_others_are_of_no_file():
    for of_the_paper in (Prompts(annotated_prompts()), Prompts(annotated_prompts(), ids=["silent_failure"])):
        assert list(of_the_paper.files()) == [ANNOTATED]
    for other in (Prompts(REVIEWS[:3]), Prompts(annotated_prompts(), prompt="is it bad")):
        assert list(other.files()) == []


@pytest.mark.parametrize(
    ("count", "least", "most", "distance"), [(24, 6, 16, 1), (12, 6, 16, 3), (8, 6, 16, 5), (3, 10, 10, 1)]
)
def test_reviews_are_as_many_and_as_long_and_their_pairs_as_far_apart_as_asked(count, least, most, distance):
    prompts = review_prompts(count, least, most, seed=1, distance=distance)
    assert len({prompt.text for prompt in prompts}) == len({prompt.id for prompt in prompts}) == len(prompts) == count
    apart = []
    for prompt in prompts:
        words = prompt.text.split()
        assert least <= len(words) <= most
        assert prompt.pairs
        apart += [words.index(second) - words.index(first) for first, second in prompt.pairs]
    assert min(apart) == distance


def test_reviews_were_kept_from_training_and_their_pairs_are_those_that_interact_in_one_place_each():
    known = {review.text: review for review in islice(reviews(0, held_out=True), 100)}
    for prompt in REVIEWS:
        words, review = prompt.text.split(), known[prompt.text]
        assert is_held_out(review)
        assert prompt.pairs == tuple((words[a], words[b]) for a, b in review.pairs())
        for string in {string for pair in prompt.pairs for string in pair}:
            assert string_places(string, words) == [words.index(string)]
            assert words.count(string) == 1


def test_reviews_are_drawn_from_the_seed_and_the_first_do_not_depend_on_how_many_are_asked_for():
    assert review_prompts(10, 6, 16, seed=3) == review_prompts(10, 6, 16, seed=3)
    assert review_prompts(10, 6, 16, seed=3) != review_prompts(10, 6, 16, seed=4)
    assert REVIEWS[:5] == review_prompts(5, 6, 16)


THREE = [AnnotatedPrompt(name, f"text {name}", (("text", name),)) for name in "abc"]


def test_all_prompts_are_samples_unless_some_are_chosen_or_ones_own_takes_the_place_of_all():
    assert Prompts(THREE).samples() == THREE
    assert Prompts(THREE, ids=["c", "a"]).samples() == [THREE[2], THREE[0]]
    assert Prompts(THREE, ids="b").samples() == [THREE[1]]
    assert THREE[0].description() == "text a"
    (own,) = Prompts(THREE, prompt="is it bad", pairs=[["is", "bad"], ["it", "bad"]]).samples()
    assert (own.text, own.pairs) == ("is it bad", (("is", "bad"), ("it", "bad")))
    (alone,) = Prompts(THREE, ids=["a"], prompt="is it bad").samples()
    assert (alone.text, alone.pairs) == ("is it bad", ())


NO_PAIRS = ([["a", "b", "c"]], [[]], ["not", "bad"], [["a", "b"], ["c"]], [1, 2], 5, [["is", None]], [["is", " "]])
NO_TEXTS = ("", " \n", 5, True, ["is", "it"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"ids": ["a", "d", "e"]}, "benchmark.ids contains unknown names .d, e.: choose some of a, b, c"),
        ({"ids": 3}, "benchmark.ids contains unknown names .3."),
        ({"ids": []}, "benchmark.ids is empty"),
        ({"pairs": [["text", "a"]]}, "benchmark.pairs needs a prompt"),
        ({"prompt": "not bad", "pairs": [["not", "bad"], ["Bad", "not"]]}, "'Bad' and 'not' twice"),
        ({"prompt": "not bad", "pairs": [["not", "bda"]]}, "'bda', which is not in the prompt 'not bad'"),
        ({"match": "best"}, "benchmark.match='best' is unknown"),
        *(({"prompt": "it is", "pairs": pairs}, "benchmark.pairs=.* must be a list of pairs") for pairs in NO_PAIRS),
        *(({"prompt": text}, "benchmark.prompt=.* must be a text") for text in NO_TEXTS),
    ],
)
def test_unknown_prompts_and_what_is_no_text_or_pair_of_it_are_refused(arguments, reason):
    with refused(reason):
        Prompts(THREE, **arguments)


def test_values_of_another_order_and_no_reviews_are_refused():
    with refused("values of order 2 are not a matrix"):
        pair_matrix(explained([1, 4, 8], values=np.zeros((3, 3, 3)), order=2))
    with refused("benchmark.prompts.count=0 must be a positive integer"):
        review_prompts(0, 6, 16)


def random_pairs(n, seed=0, model=0):
    return RandomPairs(seed).explain(smooth_model(n, model)).meta.values


def test_random_pairs_are_normal_numbers_of_seed_and_input():
    matrix = random_pairs(40)
    assert matrix.shape == (40, 40)
    assert abs(matrix.mean()) < 0.1
    assert abs(matrix.std() - 1) < 0.1
    assert not np.allclose(matrix, matrix.T)
    assert np.array_equal(random_pairs(5, seed=1), random_pairs(5, seed=1))
    assert not np.array_equal(random_pairs(5, seed=1), random_pairs(5, seed=2))
    assert not np.array_equal(random_pairs(5, seed=1), random_pairs(5, seed=1, model=1))
