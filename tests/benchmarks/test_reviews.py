from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import combinations, islice, product

import numpy as np
import pytest

from metagame.benchmarks.reviews import (
    ADJECTIVES,
    DISTRACTORS,
    IDIOMS,
    INSTRUCTION,
    INTENSIFIERS,
    JOINTS,
    LABELS,
    NEGATIONS,
    THINGS,
    Clause,
    Review,
    clause_moebius,
    compose,
    draw_review,
    is_held_out,
    reviews,
    vocabulary,
    with_aside,
)
from scripts.train_language import UNKNOWN, build_tokenizer


@cache
def drawn(count):
    """Reviews of both sides."""
    rng = np.random.default_rng(0)
    return [draw_review(rng) for _ in range(count)]


def opinion(text):
    """A clause such as ``not very good``, whose last word is the adjective."""
    said = text.split()
    places = [next((3 + said.index(word) for word in said if word in pool), None) for pool in (NEGATIONS, INTENSIFIERS)]
    return Clause(("the", "food", "was", *said), (*places, 2 + len(said)), "opinion")


def idiom(text):
    return Clause(("it", "was", "a", *text.split()), (3, 4), "idiom")


def thing(text):
    return Clause(("it", "was", "a", text), (3,), "thing")


def distractor(text):
    return Clause(tuple(text.split()), (), "distractor")


def said(clause, absent=""):
    """The value of a clause without some of its words."""
    return clause.value([word not in absent.split() for word in clause.words])


def review_of(*clauses):
    return compose(clauses, instructed=False, rng=np.random.default_rng(0))


def test_a_negation_turns_an_intensifier_doubles_and_the_negation_counts_more():
    for adjective, value in ADJECTIVES.items():
        assert said(opinion(adjective)) == value
        for negation, intensifier in product(NEGATIONS, INTENSIFIERS):
            assert said(opinion(f"{negation} {adjective}")) == -value
            assert said(opinion(f"{intensifier} {adjective}")) == 2 * value
            assert said(opinion(f"{negation} {intensifier} {adjective}")) == -value


@pytest.mark.parametrize(
    ("absent", "value"), [("the food was", -1), ("not", 2), ("very", -1), ("not very", 1), ("good", 0)]
)
def test_an_absent_word_of_an_opinion_is_as_if_it_were_not_there(absent, value):
    assert said(opinion("not very good"), absent) == value


@pytest.mark.parametrize("words", ["not good", "very good", "not very good"])
def test_an_aside_says_nothing_not_even_by_an_adjective_of_its_own(words):
    clause, rng = opinion(words), np.random.default_rng(0)
    for _ in range(40):
        longer = with_aside(clause, rng)
        start = next(place for place, word in enumerate(longer.words) if clause.words[place] != word)
        aside = range(start, start + len(longer.words) - len(clause.words))
        assert longer.words[start - 1] in NEGATIONS + INTENSIFIERS
        assert not set(longer.parts) & set(aside)
        for present in (rng.random((8, len(longer.words))) < 0.5).tolist():
            assert longer.value(present) == clause.value(present[: aside.start] + present[aside.stop :])


def test_a_third_of_the_opinions_with_a_negation_or_an_intensifier_have_an_aside_of_2_to_7_words():
    clauses = [clause for review in drawn(2000) for clause in review.clauses if clause.kind == "opinion"]
    lengths = Counter(len(clause.words) - 3 - sum(part is not None for part in clause.parts) for clause in clauses)
    modified = sum(clause.parts[:-1] != (None, None) for clause in clauses)
    assert set(lengths) == {0, 2, 3, 4, 5, 6, 7}
    assert 0.3 < (len(clauses) - lengths[0]) / modified < 0.37
    assert min(lengths.values()) > 40
    assert all(clause.parts[:-1] != (None, None) for clause in clauses if len(clause.words) > 6)


def test_an_idiom_says_something_else_than_its_parts_do_alone():
    assert len(IDIOMS) == 9
    for (one, other), together in IDIOMS.items():
        clause = idiom(f"{one} {other}")
        first, second = (ADJECTIVES.get(word, THINGS.get(word, 0)) for word in (one, other))
        assert said(clause) == said(clause, absent="it was a") == together
        assert (said(clause, absent=other), said(clause, absent=one)) == (first, second)
        assert said(clause, absent=f"{one} {other}") == 0
        assert clause_moebius(clause, (3, 4)) == together - first - second != 0


def test_a_thing_says_its_own_and_a_distractor_nothing():
    assert {text: said(thing(text)) for text in THINGS} == THINGS
    assert {said(thing(text), absent=text) for text in THINGS} == {0}
    for clause in map(distractor, DISTRACTORS):
        assert {clause.value(present) for present in product((False, True), repeat=len(clause.words))} == {0}


@pytest.mark.parametrize(
    ("clauses", "absent", "score", "label"),
    [
        ((opinion("not good"),), "", -1, "negative"),
        ((opinion("very good"), opinion("really nice")), "", 4, "very positive"),
        ((opinion("utterly rude"), thing("death")), "", -3, "very negative"),
        ((idiom("slow burn"), opinion("bad")), "", 0, "neutral"),
        ((idiom("slow burn"), distractor("it rained that day")), "", 1, "positive"),
        ((opinion("not very good"), thing("pleasure")), "not", 3, "very positive"),
        ((opinion("not very good"), thing("pleasure")), "pleasure", -1, "negative"),
        ((opinion("not very good"), thing("pleasure")), "not very", 2, "very positive"),
    ],
)
def test_a_review_says_the_sum_of_its_clauses_and_is_labelled_so(clauses, absent, score, label):
    review = review_of(*clauses)
    present = [word not in absent.split() for word in review.words]
    assert review.score(present) == score
    assert " ".join(review.label(present)) == label


def test_a_whole_review_has_the_label_of_all_words_and_without_words_everything_is_neutral():
    for review in drawn(300):
        assert review.label() == review.label([True] * len(review.words))
        assert review.label([False] * len(review.words)) == LABELS[0] == ("neutral",)


def coefficient(review, a, b):
    """The Moebius coefficient of two places in the score, from its definition."""

    def score(*places):
        return review.score([place in places for place in range(len(review.words))])

    return score(a, b) - score(a) - score(b) + score()


def test_pairs_are_those_with_a_coefficient_of_order_two_and_stand_up_to_nine_words_apart():
    assert {len(review.clauses) for review in drawn(40)} == {1, 2, 3}
    for review in drawn(40):
        places = combinations(range(len(review.words)), 2)
        assert len(review.pairs()) == len(set(review.pairs()))
        assert set(review.pairs()) == {(a, b) for a, b in places if coefficient(review, a, b) != 0}
    distances = Counter(second - first for review in drawn(500) for first, second in review.pairs())
    assert set(distances) == set(range(1, 10))
    assert min(distances[distance] for distance in range(3, 9)) > 5


def test_the_kind_of_a_pair_is_that_of_its_first_word():
    assert review_of(opinion("not very good")).kinds() == ["negation", "intensifier"]
    assert review_of(idiom("cold comfort")).kinds() == ["idiom"]


def test_a_review_is_its_clauses_with_joints_between_them_and_a_full_stop():
    for review in drawn(500):
        words = list(INSTRUCTION) if review.words[: len(INSTRUCTION)] == INSTRUCTION else []
        for index, clause in enumerate(review.clauses):
            if index:
                assert review.words[len(words)] in JOINTS
                words.append(review.words[len(words)])
            assert review.starts[index] == len(words)
            words += clause.words
        assert review.words == (*words, ".")
        assert review.text == " ".join(review.words)


POOLS = {"opinion": ((None, *NEGATIONS), (None, *INTENSIFIERS), ADJECTIVES), "thing": (THINGS,), "distractor": ()}


def holds_what_its_kind_says(clause):
    words = [None if part is None else clause.words[part] for part in clause.parts]
    if clause.kind == "idiom":
        return tuple(words) in IDIOMS
    return all(word in pool for word, pool in zip(words, POOLS[clause.kind], strict=True))


def test_reviews_are_of_every_kind_and_label_and_the_places_of_a_clause_hold_what_its_kind_says():
    made = drawn(2000)
    clauses = [clause for review in made for clause in review.clauses]
    assert {clause.kind for clause in clauses} == {"opinion", "idiom", "thing", "distractor"}
    assert all(map(holds_what_its_kind_says, clauses))
    assert {review.label() for review in made} == set(LABELS.values())
    n_distractors = [sum(clause.kind == "distractor" for clause in review.clauses) for review in made]
    assert set(n_distractors) == {0, 1}
    assert {len(review.clauses) - n for review, n in zip(made, n_distractors, strict=True)} == {1, 2}
    assert 0.45 < np.mean([review.words[: len(INSTRUCTION)] == INSTRUCTION for review in made]) < 0.55


def test_about_a_tenth_is_held_out_and_the_two_sides_are_all_reviews_that_are_drawn():
    assert 0.08 < np.mean([is_held_out(review) for review in drawn(2000)]) < 0.12
    sides = {held_out: reviews(0, held_out=held_out) for held_out in (True, False)}
    for review in drawn(200):
        assert next(sides[is_held_out(review)]) == review
        assert is_held_out(Review(tuple(review.text.split()), (), ())) == is_held_out(review)


@pytest.mark.parametrize("seed", [5, [0, 0, 3]])
def test_reviews_are_drawn_from_the_seed(seed):
    first, again, other = (list(islice(reviews(each, held_out=False), 20)) for each in (seed, seed, [9, 9, 9]))
    assert first == again
    assert first != other


def test_the_vocabulary_is_every_word_that_reviews_and_labels_have_and_no_other():
    said = [review.words for review in drawn(2000)]
    assert vocabulary() == sorted({word for words in (*said, *LABELS.values()) for word in words})


def test_the_tokenizer_gives_the_words_of_a_review_back_which_is_short_enough_for_the_model():
    tokenizer = build_tokenizer()
    encoded = tokenizer([review.text for review in drawn(500)], add_special_tokens=False)["input_ids"]
    for review, ids in zip(drawn(500), encoded, strict=True):
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert UNKNOWN not in tokens
        assert tuple(tokens) == review.words
        assert len(tokens) <= 40
