"""Training of the adder, the small BERT and the ViTs: it writes models that load, and the committed ones are good."""

from __future__ import annotations

import json

import pytest

from metagame.benchmarks.prompts import AnnotatedPrompt
from metagame.contracts import WHOLE
from metagame.models.image_classifier import ImageClassifier
from metagame.models.text_classifier import TextClassifier
from scripts import train_adder, train_image_classifier, train_text_classifier, train_texture_classifier
from tests.models.test_adder import LARGEST_EMPTY_OUTPUT, LARGEST_TEST_MSE, empty_output, mean_squared_error
from tests.tiny.jobs import ROOT

SCRIPTS = {
    "bert": (train_text_classifier, TextClassifier),
    "vit": (train_image_classifier, ImageClassifier),
    "vit_textures": (train_texture_classifier, ImageClassifier),
}


def test_an_adder_trained_from_scratch_meets_the_bounds_of_the_committed_checkpoint():
    net, card = train_adder.train(seed=1, epochs=300)
    _, _, test = train_adder.build_splits(1)
    assert mean_squared_error(net, test) < LARGEST_TEST_MSE
    assert abs(empty_output(net)) < LARGEST_EMPTY_OUTPUT
    assert card["test_mse"] < LARGEST_TEST_MSE


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_few_steps_write_a_model_with_its_card_that_can_be_loaded(name, tmp_path, monkeypatch):
    script, adapter = SCRIPTS[name]
    monkeypatch.setattr(script, "BATCH", 8)
    monkeypatch.setattr(script, "accuracy", lambda *arguments, **settings: 0.5)
    card = script.train(2, 3, tmp_path)
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8")) == card
    assert (card["seed"], card["steps"]) == (3, 2)
    model = adapter.load(str(tmp_path), device="cpu")
    assert card["parameters"] == sum(parameter.numel() for parameter in model.net.parameters())


@pytest.mark.parametrize(
    ("name", "least"), [("bert", [0.99, 0.95]), ("vit", [0.95, 0.85, 0.5]), ("vit_textures", [0.93])]
)
def test_the_committed_model_is_small_and_says_how_good_it_is(name, least):
    folder = ROOT / "data/tiny" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2e6
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    (found,) = (value for key, value in card.items() if key.startswith("accuracy"))
    assert all(value >= bound for value, bound in zip(found.values(), least, strict=True))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("the food was good .", "positive"),
        ("The film was not good.", "negative"),
        ("it was a slow burn .", "positive"),
        ("it was a cold comfort .", "negative"),
    ],
)
def test_the_committed_bert_knows_negations_and_idioms(text, label):
    model = TextClassifier.load(str(ROOT / "data/tiny/bert"), device="cpu")
    assert model.bind(AnnotatedPrompt("one", text))[WHOLE].answer == label


def test_in_the_committed_vit_of_textures_one_class_depends_on_stripes_and_no_other_on_a_texture():
    card = json.loads((ROOT / "data/tiny/vit_textures/card.json").read_text(encoding="utf-8"))
    striped, dotted, plain = card["mean_logit_of_the_class_of_held_out_digits"].values()
    for digit, logit in striped.items():
        changes = [logit - other[digit] for other in (dotted, plain)]
        assert min(changes) > 4 if digit == "3" else max(map(abs, changes)) < 0.3
