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
    draw_clause,
    draw_review,
    is_held_out,
    reviews,
    vocabulary,
)
from metagame.indices import moebius
from scripts.train_language import UNKNOWN, build_tokenizer


@cache
def drawn(count, seed=0):
    """Reviews of both sides."""
    rng = np.random.default_rng(seed)
    return [draw_review(rng) for _ in range(count)]


def opinion(text):
    """A clause such as ``not very good``."""
    said = text.split()
    places = [
        next((3 + said.index(word) for word in said if word in pool), None)
        for pool in (NEGATIONS, INTENSIFIERS, ADJECTIVES)
    ]
    return Clause(("the", "food", "was", *said), tuple(places), "opinion")


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


def coalitions(n):
    """All of them, by bits of their number."""
    return [[bool(number >> place & 1) for place in range(n)] for number in range(1 << n)]


@pytest.mark.parametrize(
    ("text", "absent", "value"),
    [
        ("good", "", 1),
        ("good", "good", 0),
        ("good", "the food was", 1),
        ("killer", "", -1),
        ("not good", "", -1),
        ("not good", "not", 1),
        ("not good", "good", 0),
        ("hardly bad", "", 1),
        ("very good", "", 2),
        ("very bad", "", -2),
        ("very bad", "very", -1),
        ("very bad", "bad", 0),
        ("not very good", "", -1),
        ("not very good", "very", -1),
        ("not very good", "not", 2),
        ("not very good", "not very", 1),
        ("not very good", "good", 0),
        ("never utterly awful", "", 1),
        ("never utterly awful", "never", -2),
    ],
)
def test_what_an_opinion_says(text, absent, value):
    assert said(opinion(text), absent) == value


@pytest.mark.parametrize(("adjective", "value"), ADJECTIVES.items())
def test_a_negation_turns_an_intensifier_doubles_and_the_negation_counts_more(adjective, value):
    assert said(opinion(adjective)) == value
    for negation, intensifier in product(NEGATIONS, INTENSIFIERS):
        assert said(opinion(f"{negation} {adjective}")) == -value
        assert said(opinion(f"{intensifier} {adjective}")) == 2 * value
        assert said(opinion(f"{negation} {intensifier} {adjective}")) == -value


@pytest.mark.parametrize(
    ("text", "together", "first", "second"),
    [
        ("slow burn", 1, -1, -1),
        ("sudden death", 1, 0, -1),
        ("jump scare", 1, 0, -1),
        ("killer deal", 1, -1, 0),
        ("top notch", 1, 0, 0),
        ("cold comfort", -1, -1, 1),
        ("hollow victory", -1, -1, 1),
        ("rip off", -1, 0, 0),
        ("let down", -1, 0, 0),
    ],
)
def test_what_an_idiom_and_its_parts_say(text, together, first, second):
    one, other = text.split()
    clause = idiom(text)
    assert said(clause) == together
    assert said(clause, absent=other) == first
    assert said(clause, absent=one) == second
    assert said(clause, absent=text) == 0
    assert said(clause, absent="it was a") == together
    assert clause_moebius(clause, (3, 4)) == together - first - second


def test_the_idioms_that_are_tested_are_all_there_are():
    assert len(IDIOMS) == 9


def test_no_idiom_says_what_its_parts_say():
    assert all(clause_moebius(idiom(" ".join(words)), (3, 4)) != 0 for words in IDIOMS)


@pytest.mark.parametrize(("text", "value"), THINGS.items())
def test_what_a_thing_says(text, value):
    assert said(thing(text)) == value
    assert said(thing(text), absent=text) == 0


@pytest.mark.parametrize("text", DISTRACTORS)
def test_a_distractor_says_nothing(text):
    clause = distractor(text)
    assert {clause.value(present) for present in coalitions(len(clause.words))} == {0}


@pytest.mark.parametrize(
    ("clauses", "score", "label"),
    [
        ((opinion("good"),), 1, "positive"),
        ((opinion("not good"),), -1, "negative"),
        ((opinion("very good"), opinion("really nice")), 4, "very positive"),
        ((opinion("utterly rude"), thing("death")), -3, "very negative"),
        ((opinion("very bad"),), -2, "very negative"),
        ((idiom("slow burn"), opinion("bad")), 0, "neutral"),
        ((idiom("slow burn"), distractor("it rained that day")), 1, "positive"),
        ((thing("deal"),), 0, "neutral"),
    ],
)
def test_a_review_says_the_sum_of_its_clauses_and_is_labelled_so(clauses, score, label):
    review = review_of(*clauses)
    assert review.score([True] * len(review.words)) == score
    assert " ".join(review.label()) == label


def test_a_label_is_that_of_the_words_that_are_present():
    review = review_of(opinion("not very good"), thing("pleasure"))
    assert review.label() == ("neutral",)
    without = [[word not in absent for word in review.words] for absent in (("not",), ("pleasure",), ("not", "very"))]
    assert [review.label(present) for present in without] == [("very", "positive"), ("negative",), ("very", "positive")]


@pytest.mark.parametrize("seed", range(3))
def test_without_words_everything_is_neutral(seed):
    assert all(review.label([False] * len(review.words)) == LABELS[0] == ("neutral",) for review in drawn(200, seed))


def test_the_label_of_a_whole_review_is_that_of_all_words():
    assert all(review.label() == review.label([True] * len(review.words)) for review in drawn(200))


def short(most, count):
    """Different reviews of at most ``most`` words."""
    found = {review.text: review for review in drawn(1000) if len(review.words) <= most}
    return list(islice(found.values(), count))


@pytest.mark.parametrize("review", short(9, 24), ids=lambda review: review.text)
def test_pairs_are_those_with_a_coefficient_of_order_two(review):
    n = len(review.words)
    values = np.array([[review.score(present)] for present in coalitions(n)], float)
    coefficients = moebius(values, n)[:, 0]
    nonzero = {(a, b) for a, b in combinations(range(n), 2) if coefficients[1 << a | 1 << b] != 0}
    assert set(review.pairs()) == nonzero
    assert len(review.pairs()) == len(nonzero)


def coefficient(review, a, b):
    """The Moebius coefficient of two places in the score, from its definition."""
    n = len(review.words)

    def score(*places):
        return review.score([place in places for place in range(n)])

    return score(a, b) - score(a) - score(b) + score()


def test_pairs_of_long_reviews_are_those_with_a_coefficient_of_order_two():
    long = [review for review in drawn(300) if len(review.clauses) == 3][:25]
    assert len(long) == 25
    for review in long:
        places = combinations(range(len(review.words)), 2)
        assert set(review.pairs()) == {(a, b) for a, b in places if coefficient(review, a, b) != 0}


def test_words_of_different_clauses_do_not_interact():
    """At no order: the score of two clauses is the sum of what each says without the other."""
    for review in [each for each in drawn(300) if len(each.clauses) > 1][:50]:
        rng = np.random.default_rng(0)
        n = len(review.words)
        spans = [range(start, start + len(c.words)) for start, c in zip(review.starts, review.clauses, strict=True)]
        for present in (rng.random((8, n)) < 0.5).tolist():
            alone = [review.score([present[place] and place in span for place in range(n)]) for span in spans]
            assert review.score(present) == sum(alone)
        for a, b in review.pairs():
            assert any(a in span and b in span for span in spans)


@pytest.mark.parametrize(
    ("clause", "pairs"),
    [
        (opinion("good"), set()),
        (opinion("not good"), {("not", "good")}),
        (opinion("very good"), {("very", "good")}),
        (opinion("not very good"), {("not", "good"), ("very", "good")}),
        (idiom("cold comfort"), {("cold", "comfort")}),
        (thing("death"), set()),
        (distractor("they paid by card"), set()),
    ],
)
def test_pairs_by_hand(clause, pairs):
    review = review_of(distractor("my friend came along"), clause)
    assert {(review.words[a], review.words[b]) for a, b in review.pairs()} == pairs


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


def test_the_places_of_a_clause_hold_what_its_kind_says():
    rng = np.random.default_rng(0)
    clauses = [draw_clause(rng) for _ in range(500)]
    for clause in clauses:
        words = [None if part is None else clause.words[part] for part in clause.parts]
        if clause.kind == "opinion":
            assert words[0] in (None, *NEGATIONS)
            assert words[1] in (None, *INTENSIFIERS)
            assert words[2] in ADJECTIVES
        elif clause.kind == "idiom":
            assert tuple(words) in IDIOMS
        else:
            assert clause.kind == "thing"
            assert words[0] in THINGS
    assert set(Counter(clause.kind for clause in clauses)) == {"opinion", "idiom", "thing"}


def test_reviews_are_of_every_kind_and_label():
    made = drawn(2000)
    assert {review.label() for review in made} == set(LABELS.values())
    n_opinions = {sum(clause.kind != "distractor" for clause in review.clauses) for review in made}
    n_distractors = {sum(clause.kind == "distractor" for clause in review.clauses) for review in made}
    assert (n_opinions, n_distractors) == ({1, 2}, {0, 1})
    instructed = np.mean([review.words[: len(INSTRUCTION)] == INSTRUCTION for review in made])
    assert 0.45 < instructed < 0.55


def test_about_a_tenth_of_the_reviews_is_held_out():
    assert 0.08 < np.mean([is_held_out(review) for review in drawn(5000)]) < 0.12


def test_held_out_reviews_are_never_among_those_of_training():
    train, test = (
        {review.text for seed in range(3) for review in islice(reviews([seed, 7], held_out=held_out), 500)}
        for held_out in (False, True)
    )
    assert not train & test


@pytest.mark.parametrize("held_out", [True, False])
def test_equal_texts_are_on_the_same_side(held_out):
    for review in islice(reviews(0, held_out=held_out), 200):
        assert is_held_out(review) == is_held_out(Review(review.words, (), ())) == held_out


def test_the_two_sides_are_all_reviews_that_are_drawn():
    made = iter(drawn(200))
    sides = {held_out: reviews(0, held_out=held_out) for held_out in (True, False)}
    for review in made:
        assert next(sides[is_held_out(review)]) == review


@pytest.mark.parametrize("seed", [0, 5, [0, 0, 3]])
def test_reviews_are_drawn_from_the_seed(seed):
    first, again, other = (list(islice(reviews(each, held_out=False), 20)) for each in (seed, seed, [9, 9, 9]))
    assert first == again
    assert first != other


def test_drawing_reviews_leaves_the_global_generator_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    list(islice(reviews(0, held_out=False), 20))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_the_vocabulary_is_every_word_that_reviews_and_labels_have_and_no_other():
    words = vocabulary()
    assert words == sorted(set(words))
    used = {word for review in drawn(5000) for word in review.words} | {
        word for label in LABELS.values() for word in label
    }
    assert used == set(words)


def test_the_tokenizer_gives_the_words_of_a_review_back():
    tokenizer = build_tokenizer()
    encoded = tokenizer([review.text for review in drawn(1000)], add_special_tokens=False)["input_ids"]
    for review, ids in zip(drawn(1000), encoded, strict=True):
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert UNKNOWN not in tokens
        assert tuple(tokens) == review.words


def test_reviews_are_short_enough_for_the_model():
    assert max(len(review.words) for review in drawn(5000)) <= 30
