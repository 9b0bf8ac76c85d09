from __future__ import annotations

import json

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
    pairs_of,
    review_prompts,
    select_prompts,
    string_places,
)
from metagame.benchmarks.reviews import Review, is_held_out, reviews
from metagame.contracts import WHOLE
from metagame.models.language_model import AnsweredPrompt, Prompt
from tests.conftest import smooth_model
from tests.reference import prompts as twin
from tests.tiny.benchmarks import explained
from tests.tiny.vision_language import refused

TOKENS = st.lists(st.text("aAbB ", min_size=1, max_size=3), min_size=2, max_size=6)
STRINGS = st.text("aAb ", min_size=1, max_size=4).filter(str.strip)
PAIRS = st.lists(st.tuples(STRINGS, STRINGS), max_size=4)


def score(pairs, tokens, answer="fine", **numbers):
    sample = AnnotatedPrompt("one", "the text", tuple(pairs))
    bound = AnsweredPrompt(torch.sum, *torch.zeros(2, len(tokens), 1), names=tuple(tokens), answer=answer)
    return Prompts([sample]).score(sample, {WHOLE: bound}, {WHOLE: explained(**numbers)})


def recalls(scores):
    return [scores[f"recall_{share}"] for share in range(16)]


@st.composite
def second_order(draw):
    """Tokens, pairs, and a matrix with many entries of equal size."""
    tokens, pairs = draw(TOKENS), draw(PAIRS)
    numbers = st.integers(-4, 4).map(float)
    return tokens, pairs, draw(arrays(np.float64, (len(tokens), len(tokens)), elements=numbers, fill=st.nothing()))


@st.composite
def first_order(draw):
    tokens, pairs = draw(TOKENS), draw(PAIRS)
    numbers = st.integers(-4, 4).map(float)
    return tokens, pairs, draw(arrays(np.float64, len(tokens), elements=numbers, fill=st.nothing()))


def check_against_the_twin(scores, tokens, pairs, entries):
    ranks, unmatched = twin.ranks(pairs, tokens, entries)
    assert scores["ranks"] == ranks
    assert scores["unmatched"] == [" + ".join(pair) for pair in unmatched]
    assert recalls(scores) == [twin.recall(ranks, share, len(tokens)) for share in range(16)]


@given(TOKENS, STRINGS)
def test_a_string_is_where_its_definition_says(tokens, string):
    assert string_places(string, tokens) == twin.places(string, tokens)


@given(second_order())
def test_ranks_and_recalls_of_second_order_entries_are_what_their_definition_says(case):
    tokens, pairs, matrix = case
    check_against_the_twin(score(pairs, tokens, values=matrix), tokens, pairs, twin.second_order_entries(matrix))


@given(first_order())
def test_ranks_and_recalls_of_first_order_sums_are_what_their_definition_says(case):
    tokens, pairs, first = case
    check_against_the_twin(score(pairs, tokens, attribution=first), tokens, pairs, twin.first_order_entries(first))


@given(second_order())
def test_a_second_order_method_is_not_judged_by_its_first_order(case):
    tokens, pairs, matrix = case
    both = score(pairs, tokens, values=matrix, attribution=np.arange(len(tokens)))
    assert both == score(pairs, tokens, values=matrix)


@given(second_order())
def test_neither_signs_nor_directions_nor_the_diagonal_count(case):
    tokens, pairs, matrix = case
    other = -matrix.T + 100 * np.eye(len(matrix))
    assert score(pairs, tokens, values=other) == score(pairs, tokens, values=matrix)


@given(second_order())
def test_recall_never_falls_with_the_share(case):
    tokens, pairs, matrix = case
    found = recalls(score(pairs, tokens, values=matrix))
    assert found == [None] * 16 or found == sorted(found)


@pytest.mark.parametrize(
    ("string", "tokens", "places"),
    [
        ("not", ["is", "not", "bad"], [1]),
        ("NOT", ["is", " Not", "bad"], [1]),
        ("not", ["not", "bad", "not"], [0, 2]),
        ("classify", ["class", "ify", "it"], [0]),
        ("ify", ["class", "ify!"], [1]),
        ("summar", ["Summarize", "it"], [0]),
        ("not", ["nothing", "no", "t"], [1]),
        ("not", ["nothing", "knot", "no"], [0, 1]),
        ("rot", ["carr", "ot", "s"], [0]),
        ("Circular Quay", ["the", " Circular", " Quay"], [1]),
        ("good", ["is", "not", "bad"], []),
        ("not", ["no", "is", "t"], []),
    ],
)
def test_strings_by_hand(string, tokens, places):
    assert string_places(string, tokens) == places


# the sizes, from the largest: 9 (2 -> 1), 8 (1 -> 2), 7 (1 -> 0 and 0 -> 3), 5, 4, 3, 3, 3, 2, 1, 0
MATRIX = [
    [100.0, -7, 2, 1],
    [3, 100, 9, -3],
    [0, -8, 100, 4],
    [7, 5, 3, 100],
]
WORDS = ("food", "not", "bad", "really")


@pytest.mark.parametrize(
    ("pair", "rank"),
    [
        (("not", "bad"), 1),
        (("bad", "not"), 1),
        (("food", "not"), 3),
        (("food", "really"), 3),
        (("not", "really"), 5),
        (("bad", "really"), 6),
        (("food", "bad"), 10),
    ],
)
def test_ranks_by_hand(pair, rank):
    assert score([pair], WORDS, values=MATRIX)["ranks"] == [rank]


def test_recalls_by_hand():
    """Of 12 directed pairs one is within 12 percent, two from 13 percent on."""
    second = [[0.0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    found = recalls(score([("food", "not"), ("not", "bad")], WORDS, values=second))
    assert found == [0.5] * 13 + [1.0] * 3


def test_entries_of_equal_size_share_the_better_rank():
    scores = score([("not", "bad"), ("food", "really")], WORDS, values=np.ones((4, 4)))
    assert scores["ranks"] == [1, 1]
    assert recalls(scores) == [1.0] * 16


def test_the_two_directions_of_a_first_order_pair_share_a_rank():
    scores = score([("not", "bad"), ("food", "bad")], WORDS, attribution=[1, 4, 8, 0])
    assert scores["ranks"] == [1, 3]


def test_first_order_values_are_added_before_their_size_is_taken():
    """Attributions of opposite sign cancel: that pair is behind all others."""
    scores = score([("not", "bad"), ("food", "bad")], WORDS, attribution=[2, 5, -5, 1])
    assert scores["ranks"] == [11, 7]
    assert recalls(scores) == [0.0] * 16


def test_the_best_match_of_a_string_counts():
    matrix = np.zeros((4, 4))
    matrix[0, 1], matrix[3, 1], matrix[0, 2] = 1, 2, 5
    assert score([("not", "bad")], ("not", "bad", "is", "not"), values=matrix)["ranks"] == [2]


def test_a_string_of_several_tokens_is_represented_by_the_first():
    matrix = np.zeros((4, 4))
    matrix[0, 2], matrix[1, 2] = 1, 2
    assert score([("classify", "this")], ("Class", "ify", "this", "text"), values=matrix)["ranks"] == [2]


def test_two_strings_in_one_token_are_no_pair_but_in_two_tokens_they_are():
    whole = score([("class", "ify"), ("this", "text")], ("Classify", "this", "text"), values=np.ones((3, 3)))
    assert (whole["unmatched"], whole["ranks"]) == (["class + ify"], [1])
    split = score([("class", "ify"), ("this", "text")], ("Class", "ify", "text"), values=np.ones((3, 3)))
    assert (split["unmatched"], split["ranks"]) == (["this + text"], [1])


def test_a_string_paired_with_itself_needs_two_places():
    assert score([("not", "not")], ("not", "bad"), values=np.ones((2, 2)))["unmatched"] == ["not + not"]
    assert score([("not", "not")], ("not", "bad", "not"), values=np.ones((3, 3)))["ranks"] == [1]


def test_pairs_that_are_not_in_the_prompt_are_listed_and_left_out_of_the_recall():
    scores = score([("not", "good"), ("not", "bad"), ("nice", "soup")], WORDS, values=MATRIX)
    assert scores["unmatched"] == ["not + good", "nice + soup"]
    assert recalls(scores) == [1.0] * 16


@pytest.mark.parametrize("pairs", [(), (("nice", "soup"),)])
def test_without_pairs_there_is_no_recall(pairs):
    scores = score(pairs, WORDS, values=MATRIX)
    assert recalls(scores) == [None] * 16
    assert scores["ranks"] == []


def test_scores_hold_what_a_figure_shows_and_can_be_written():
    scores = score([("not", "bad"), ("nice", "soup")], WORDS, values=MATRIX, answer="very positive")
    shown = {key: scores[key] for key in ("text", "tokens", "answer", "n_players")}
    assert shown == {"text": "the text", "tokens": list(WORDS), "answer": "very positive", "n_players": 4}
    assert json.loads(json.dumps(scores)) == scores


def test_values_of_pairs_are_no_order_of_single_entries():
    """A metagame of order 2 has none: its first-order attributions are ranked."""
    numbers = {"attribution": [1, 4, 8], "values": np.zeros((3, 3, 3)), "order": 2}
    assert np.array_equal(pair_matrix(explained(**numbers)), pair_matrix(explained([1, 4, 8])))


def test_a_method_without_values_of_tokens_or_single_pairs_is_refused():
    with refused("choose a method that attributes tokens or pairs"):
        pair_matrix(explained(values=np.zeros((3, 3, 3)), order=2))


def test_scores_leave_the_explanation_alone():
    matrix = np.array(MATRIX)
    score([("not", "bad")], WORDS, values=matrix)
    assert np.array_equal(matrix, MATRIX)


@pytest.mark.parametrize(
    ("share", "n", "k"),
    [(0, 2, 1), (15, 2, 1), (0, 50, 1), (12, 4, 1), (13, 4, 2), (8, 6, 2), (9, 6, 3), (15, 20, 57), (10, 41, 164)],
)
def test_numbers_of_pairs_by_hand(share, n, k):
    assert most_pairs(share, n) == k


@pytest.mark.parametrize("n", range(2, 121))
def test_numbers_of_pairs_are_the_rounded_shares(n):
    assert [most_pairs(share, n) for share in range(16)] == [twin.most_pairs(share, n) for share in range(16)]


def test_the_shares_are_none_to_fifteen_percent():
    assert list(SHARES) == list(range(16))


def test_the_prompts_of_the_paper_are_21_with_two_to_four_pairs_each():
    prompts = annotated_prompts()
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == len(prompts) == 21
    assert all(2 <= len(prompt.pairs) <= 4 for prompt in prompts)
    assert all(isinstance(prompt, Prompt) for prompt in prompts)


def test_the_file_of_the_prompts_of_the_paper_decides_all_samples_from_it():
    assert list(Prompts(annotated_prompts()).files()) == [ANNOTATED]
    assert list(Prompts(annotated_prompts(), ids=["silent_failure"]).files()) == [ANNOTATED]
    assert ANNOTATED.is_file()


def test_prompts_that_are_made_here_or_ones_own_are_of_no_file():
    assert list(Prompts(review_prompts(3, 6, 16)).files()) == []
    assert list(Prompts(annotated_prompts(), prompt="is it bad").files()) == []
    assert [list(prompt.files()) for prompt in annotated_prompts()] == [[]] * 21


def test_what_a_prompt_asks_is_its_text():
    assert [prompt.description() for prompt in THREE] == ["text a", "text b", "text c"]


@pytest.mark.parametrize("prompt", annotated_prompts(), ids=lambda prompt: prompt.id)
def test_the_strings_of_a_prompt_of_the_paper_are_in_it(prompt):
    assert all(twin.plain(string) in twin.plain(prompt.text) for pair in prompt.pairs for string in pair)
    assert all(len({twin.plain(string) for string in pair}) == 2 for pair in prompt.pairs)


@pytest.mark.parametrize("prompt", annotated_prompts(), ids=lambda prompt: prompt.id)
def test_only_pairs_within_a_word_of_the_paper_need_tokens_smaller_than_words(prompt):
    words = prompt.text.split()
    _, unmatched = pair_ranks(prompt.pairs, words, np.ones((len(words), len(words))))
    for pair in unmatched:
        assert any(all(string.lower() in word.lower() for string in pair) for word in words)


@pytest.mark.parametrize(("count", "least", "most"), [(24, 6, 16), (40, 6, 12), (3, 10, 10), (0, 6, 12)])
def test_reviews_are_as_many_and_as_long_as_asked_and_none_twice(count, least, most):
    prompts = review_prompts(count, least, most, seed=1)
    assert len({prompt.text for prompt in prompts}) == len({prompt.id for prompt in prompts}) == len(prompts) == count
    assert all(least <= len(prompt.text.split()) <= most for prompt in prompts)


@pytest.mark.parametrize("seed", [0, 1])
def test_reviews_were_kept_from_training(seed):
    prompts = review_prompts(30, 6, 16, seed)
    assert all(is_held_out(Review(tuple(prompt.text.split()), (), ())) for prompt in prompts)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_pairs_of_a_review_are_those_that_interact(seed):
    known = {review.text: review for review, _ in zip(reviews(seed, held_out=True), range(500), strict=False)}
    for prompt in review_prompts(30, 6, 16, seed):
        words = prompt.text.split()
        interacting = known[prompt.text].pairs()
        assert prompt.pairs == tuple((words[a], words[b]) for a, b in interacting)
        assert len(prompt.pairs) >= 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_word_of_a_pair_of_a_review_stands_in_one_place(seed):
    for prompt in review_prompts(30, 6, 16, seed):
        words = prompt.text.split()
        for string in {string for pair in prompt.pairs for string in pair}:
            assert string_places(string, words) == [words.index(string)]
            assert words.count(string) == 1


def test_reviews_are_drawn_from_the_seed():
    assert review_prompts(10, 6, 16, seed=3) == review_prompts(10, 6, 16, seed=3)
    assert review_prompts(10, 6, 16, seed=3) != review_prompts(10, 6, 16, seed=4)


def test_the_first_reviews_do_not_depend_on_how_many_are_asked_for():
    assert review_prompts(20, 6, 16)[:5] == review_prompts(5, 6, 16)


THREE = [AnnotatedPrompt(name, f"text {name}", (("text", name),)) for name in "abc"]


def test_all_prompts_are_samples_unless_some_are_chosen():
    assert Prompts(THREE).samples() == THREE
    assert Prompts(THREE, ids=["c", "a"]).samples() == [THREE[2], THREE[0]]


def test_ones_own_prompt_takes_the_place_of_all_others():
    (own,) = Prompts(THREE, prompt="is it bad", pairs=[["is", "bad"], ["it", "bad"]]).samples()
    assert (own.text, own.pairs) == ("is it bad", (("is", "bad"), ("it", "bad")))
    (alone,) = Prompts(THREE, ids=["a"], prompt="is it bad").samples()
    assert (alone.text, alone.pairs) == ("is it bad", ())


def test_unknown_prompts_are_named_with_those_there_are():
    with refused("benchmark.ids: d, e unknown; choose among a, b, c"):
        select_prompts(THREE, ["a", "d", "e"], None, None)


def test_pairs_of_no_prompt_are_refused():
    with refused("benchmark.pairs needs benchmark.prompt"):
        Prompts(THREE, pairs=[["text", "a"]])


@pytest.mark.parametrize("pairs", [[["a"]], [["a", "b", "c"]], [[]], ["not", "bad"], [["a", "b"], ["c"]]])
def test_pairs_that_are_none_are_refused(pairs):
    with refused(r"benchmark.pairs=.*: give a list of two strings each, such as \[\[not, bad\]\]"):
        Prompts(THREE, prompt="is it bad", pairs=pairs)


@pytest.mark.parametrize("pairs", [[1, 2], 5, ["is", "it"], [["is", None]], [["is", " "]]])
def test_pairs_that_only_look_like_pairs_are_refused(pairs):
    with refused("benchmark.pairs=.*: give"):
        Prompts(THREE, prompt="is it bad", pairs=pairs)


@pytest.mark.parametrize("text", ["", " \n", None, 5, ["is", "it"]])
def test_a_prompt_that_is_no_text_is_refused(text):
    with refused("benchmark.prompt=.*: give a text"):
        AnnotatedPrompt("one", text)


@pytest.mark.parametrize("prompt", ["", " ", 5, 0.5, True])
def test_ones_own_prompt_that_is_no_text_is_refused(prompt):
    with refused("benchmark.prompt=.*: give a text"):
        Prompts(THREE, prompt=prompt)


@pytest.mark.parametrize("pairs", [(("a",),), (("a", 1),), (("a", "b", "c"),)])
def test_pairs_of_another_number_or_kind_are_refused(pairs):
    with refused("benchmark.pairs=.*: give a list of two strings each"):
        pairs_of(pairs)


def random_pairs(n, seed=0):
    return RandomPairs(seed).explain(smooth_model(n)).meta.values


def test_random_pairs_are_finite_numbers_for_each_directed_pair():
    matrix = random_pairs(40)
    assert matrix.shape == (40, 40)
    assert np.isfinite(matrix).all()
    assert abs(matrix.mean()) < 0.1
    assert abs(matrix.std() - 1) < 0.1
    assert not np.allclose(matrix, matrix.T)


def test_random_pairs_are_drawn_from_the_seed():
    assert np.array_equal(random_pairs(5, seed=1), random_pairs(5, seed=1))
    assert not np.array_equal(random_pairs(5, seed=1), random_pairs(5, seed=2))


def test_random_pairs_leave_the_global_generator_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    random_pairs(5)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_random_pairs_find_as_many_pairs_as_chance_has_it():
    """Both directions are behind the first k of N entries with probability (N - k)(N - k - 1) / (N(N - 1))."""
    n, tokens = 10, tuple("abcdefghij")
    found = [score([("a", "b")], tokens, values=random_pairs(n, seed))["recall_10"] for seed in range(400)]
    k, total = 9, n * (n - 1)
    chance = 1 - (total - k) * (total - k - 1) / (total * (total - 1))
    assert abs(np.mean(found) - chance) < 4 * np.sqrt(chance * (1 - chance) / len(found))


def test_random_pairs_are_others_for_another_input():
    first, second = (RandomPairs(0).explain(smooth_model(5, seed)).meta.values for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_one_id_needs_no_list():
    assert [sample.id for sample in Prompts(annotated_prompts(), ids="silent_failure").samples()] == ["silent_failure"]
    with refused("benchmark.ids: 3 unknown"):
        Prompts(annotated_prompts(), ids=3)
    with refused("benchmark.ids is empty"):
        Prompts(annotated_prompts(), ids=[])


def test_pairs_that_are_not_in_ones_own_prompt_are_refused():
    with refused(r"'bda' is not in the prompt 'not bad': spell it as it is there"):
        Prompts([], prompt="not bad", pairs=[["not", "bda"]])
