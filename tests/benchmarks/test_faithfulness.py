from __future__ import annotations

import numpy as np
import pytest

from metagame.attributions.gradients import GradientInput
from metagame.attributions.random_pairs import RandomPairs
from metagame.attributions.shapley import ShapleyInteractions
from metagame.benchmarks.faithfulness import ERASER, PUBLISHED, Faithfulness, player_values, ranking, top_players
from metagame.benchmarks.labelled import (
    LabelledText,
    ag_news,
    imdb,
    labelled_digits,
    labelled_reviews,
    short_texts,
    sst2,
)
from metagame.contracts import WHOLE, Explanation
from scripts.train_text_classifier import MASK, VOCABULARY, build_tokenizer
from tests.conftest import close
from tests.reference import faithfulness as twin
from tests.tiny.classifiers import TEXT, text_classifier
from tests.tiny.vision_language import refused

SAMPLE = LabelledText("one", "it was a slow burn and the food was good .", 1)


@pytest.mark.parametrize(
    ("settings", "bins", "divisor"),
    [({}, ERASER, 6), ({"bins": PUBLISHED}, PUBLISHED, 5), ({"bins": (30, 100), "divisor": 2}, (30, 100), 2)],
)
def test_scores_are_those_of_the_twin(settings, bins, divisor):
    model = text_classifier()
    inputs = model.bind(SAMPLE)
    bound, benchmark = inputs[WHOLE], Faithfulness([SAMPLE], **settings)
    for method in (GradientInput(), GradientInput().metagame(), RandomPairs()):
        explanation = method.explain(bound)
        found = benchmark.score(SAMPLE, inputs, {WHOLE: explanation})
        asked = (model.net, model.tokenizer(SAMPLE.text)["input_ids"], VOCABULARY[MASK], bound.label)
        values = player_values(explanation)
        names = "comprehensiveness", "sufficiency"
        assert close([found[name] for name in names], twin.scores(*asked, values, bins, divisor))
        assert close([found[f"published_{name}"] for name in names], twin.scores(*asked, values, PUBLISHED, 5))
        assert (found["label"], found["n_players"], found["n_cut"]) == (1, 11, 0)


def test_players_are_rounded_up_and_equal_ones_are_in_an_order_of_their_own():
    order = np.arange(10)
    assert [top_players(order, share).sum() for share in (0, 1, 10, 11, 20, 50, 100)] == [0, 1, 1, 2, 2, 5, 10]
    assert top_players(np.arange(100), 7).sum() == 7  # and not 8, by the rounding of .07 * 100
    equal = ranking(np.zeros(9), tuple("abcdefghi"))
    assert sorted(equal) == list(range(9))
    assert list(equal) != list(range(9))
    assert list(ranking(np.array([1.0, 3.0, 2.0]), ("a", "b", "c"))) == [1, 2, 0]


def test_values_that_rank_no_players_are_refused():
    bound = text_classifier().bind(LabelledText("one", TEXT, 0))[WHOLE]
    with refused("which values of unordered pairs do not"):
        player_values(ShapleyInteractions().explain(bound))
    with refused("choose a method whose targets are the players"):
        player_values(Explanation(("a",), ("b", "c"), attribution=np.zeros(2)))
    with refused(r"benchmark.bins=\[101\] must be percentages"):
        Faithfulness([], bins=[101])
    with refused(r"benchmark.bins=\[10, 10\] has a percentage twice"):
        Faithfulness([], bins=[10, 10])
    with refused("benchmark.divisor=0 must be a positive number"):
        Faithfulness([], divisor=0)


def test_reviews_have_the_label_of_their_sum_and_none_is_neutral():
    found = labelled_reviews(30, 6, 12, seed=1)
    assert len({text.text for text in found}) == 30
    assert all(6 <= len(text.text.split()) <= 12 for text in found)
    assert {text.label for text in found} == {0, 1}
    with refused("only .* of benchmark.labelled.count=5 reviews of 90 to 99 words were found"):
        labelled_reviews(5, 90, 99)
    with refused("benchmark.labelled.count=0 must be a positive integer"):
        labelled_reviews(0, 6, 12)


def test_digits_have_their_label_and_an_image():
    digits = labelled_digits(2)
    assert [digit.label for digit in digits[:4]] == [0, 0, 1, 1]
    assert digits[0].image().size == (8, 8)
    with refused("benchmark.labelled.per_class=0 must be a positive integer"):
        labelled_digits(0)


def written(path, content):
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_sst2_is_read_as_glue_writes_it(tmp_path):
    path = tmp_path / "dev.tsv"
    rows = 'it \'s a "charming" film . \t1\nunflinchingly bleak \t0\n'
    first, second = sst2(written(path, f"sentence\tlabel\n{rows}"))
    assert (first.text, first.label, second.label) == ('it \'s a "charming" film .', 1, 0)
    assert list(first.files()) == [path]
    with refused("does not begin with the columns sentence and label"):
        sst2(written(path, "index\tsentence\n0\tgood\n"))
    with refused("has label '7' in row 0"):
        sst2(written(path, "sentence\tlabel\ngood\t7\n"))


def test_imdb_is_read_from_its_folders_in_turn(tmp_path):
    (tmp_path / "neg").mkdir()
    (tmp_path / "pos").mkdir()
    with refused("has 0 texts in neg and 0 in pos"):
        imdb(str(tmp_path))
    texts = {"neg/0_1": "bad", "neg/1_2": "worse", "pos/0_1": "good<br /><br />really", "pos/1_2": "better"}
    for name, text in texts.items():
        written(tmp_path / f"{name}.txt", text)
    found = imdb(str(tmp_path))
    assert [(text.id, text.label) for text in found] == [("neg_0_1", 0), ("pos_0_1", 1), ("neg_1_2", 0), ("pos_1_2", 1)]
    assert found[1].text == "good  really"
    (tmp_path / "pos" / "1_2.txt").unlink()
    with refused("has 2 texts in neg and 1 in pos"):
        imdb(str(tmp_path))


def test_ag_news_joins_title_and_description(tmp_path):
    row = '"3","Fears for T N pension","Unions say they are ""disappointed""\\after talks"\n'
    (news,) = ag_news(written(tmp_path / "test.csv", row))
    assert news.text == 'Fears for T N pension Unions say they are "disappointed" after talks'
    assert news.label == 2


def test_short_texts_are_those_of_few_tokens(tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    texts = [LabelledText("a", "good food", 1), LabelledText("b", "the food was not good", 0)]
    assert short_texts(texts, str(tmp_path), 2) == texts[:1]
    with refused("no text has 1 tokens or fewer"):
        short_texts(texts, str(tmp_path), 1)


@pytest.mark.parametrize(
    ("load", "named"), [(sst2, "SST-2.zip"), (imdb, "aclImdb_v1.tar.gz"), (ag_news, "test.csv of AG News")]
)
def test_data_that_are_not_there_are_named_with_the_command_that_fetches_them(load, named, tmp_path):
    with refused(f"nowhere does not exist: run 'make data EXPERIMENT=faithfulness', or put .*{named}"):
        load(str(tmp_path / "nowhere"))
