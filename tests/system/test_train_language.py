"""Training of the small Gemma: its tokenizer, what it is asked, a training that stopped goes on, what it learned."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import one_hot
from transformers import AutoTokenizer, Gemma3TextConfig

from metagame.benchmarks.prompts import AnnotatedPrompt
from metagame.benchmarks.reviews import Review, draw_review, is_held_out, reviews
from metagame.contracts import WHOLE
from metagame.models.language_model import LanguageModel
from scripts import train_language as script
from scripts.train_language import END, IGNORED, PAD, TURN_END, TURN_START, UNKNOWN, VOCABULARY, asked, ids
from scripts.training import load_checkpoint, save_checkpoint, set_rate
from tests.tiny.jobs import ROOT

COMMITTED = ROOT / "data/tiny/gemma3"
SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
TEXT = "the soup was not very good and it was a slow burn ."
ACCURACIES = ["chat", "chat, words absent", "raw", "raw, words absent"]


@pytest.fixture
def small(monkeypatch):
    """A much smaller model, small batches, the full learning rate from the first step on, and few answers checked."""
    monkeypatch.setattr(script, "Gemma3TextConfig", lambda **settings: Gemma3TextConfig(**settings | SMALL))
    settings = {"BATCH": 16, "WARM_UP": 1, "LEARNING_RATE": 1e-2, "CHECKPOINT_EVERY": 2}
    for name, value in settings.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script, "accuracy", partial(script.accuracy, count=20))


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_review(rng) for _ in range(count)]


# What it is asked


@pytest.mark.parametrize("chat", [True, False])
def test_the_adapter_asks_what_was_asked_in_training_and_the_words_play(small, chat):
    model = LanguageModel(script.build_model(0), script.build_tokenizer(), "random", chat=chat)
    for review in drawn(100):
        words = [VOCABULARY[word] for word in review.words]
        prompt = model.tokenize(review.text)
        assert list(prompt.ids) == asked(words, chat)
        assert prompt.labels == review.words
        assert [prompt.ids[place] for place in prompt.positions] == words
        assert prompt.turn_end == (VOCABULARY[TURN_END] if chat else None)
    assert model.absent_id == VOCABULARY[UNKNOWN]


def taken_apart(tokens, targets):
    """The words of the review, whether it is in the template, and the answer, of an example."""
    answer = [target for target in targets if target != IGNORED]
    question = tokens[: len(tokens) - len(answer) + 1]
    chat = question[1] == VOCABULARY[TURN_START]
    words = question[len(script.BEFORE) : -len(script.BETWEEN)] if chat else question[1:]
    assert question == asked(words, chat)
    return words, chat, answer


def test_an_example_asks_for_the_label_of_the_words_that_are_left_and_an_end_one_place_later():
    rng, chats, absent = np.random.default_rng(0), [], []
    for review in drawn(1000):
        tokens, targets = script.example(review, rng)
        words, chat, answer = taken_apart(tokens, targets)
        present = [word != VOCABULARY[UNKNOWN] for word in words]
        whole = [VOCABULARY[word] for word in review.words]
        assert words == [word if here else VOCABULARY[UNKNOWN] for word, here in zip(whole, present, strict=True)]
        assert answer == [*(VOCABULARY[word] for word in review.label(present)), VOCABULARY[TURN_END if chat else END]]
        first = len(tokens) - len(answer)
        assert targets == [IGNORED] * first + tokens[first + 1 :] + answer[-1:]
        chats.append(chat)
        absent.append(1 - np.mean(present))
    assert np.mean(chats) == pytest.approx(0.5, abs=0.05)
    assert np.mean(np.array(absent) > 0) == pytest.approx(0.475, abs=0.075)
    assert (np.mean(absent), max(absent)) == (pytest.approx(0.25, abs=0.05), 1)


def test_a_batch_is_drawn_from_its_seed_of_reviews_that_are_not_held_out_and_padded_behind_what_is_predicted():
    (tokens, targets), again, other = (script.batch(200, [0, 0, step]) for step in (5, 5, 6))
    assert all(torch.equal(one, two) for one, two in zip((tokens, targets), again, strict=True))
    assert tokens.shape != other[0].shape or not torch.equal(tokens, other[0])
    assert tokens.shape[1] <= script.CONTEXT
    words = {index: word for word, index in VOCABULARY.items()}
    for row, wanted, n in zip(tokens, targets, (tokens != VOCABULARY[PAD]).sum(1).tolist(), strict=True):
        asked_of, _, answer = taken_apart(row[:n].tolist(), wanted[:n].tolist())
        whole = VOCABULARY[UNKNOWN] not in asked_of
        assert not (whole and is_held_out(Review(tuple(words[index] for index in asked_of), (), ())))
        assert answer[-1] in (VOCABULARY[END], VOCABULARY[TURN_END])
        assert (row[n:] == VOCABULARY[PAD]).all()
        assert (wanted[n:] == IGNORED).all()


# Training


def test_the_rate_warms_up_and_falls_to_nothing():
    optimiser, rates = torch.optim.SGD([torch.zeros(1)], lr=1.0), []
    for step in range(24):
        set_rate(optimiser, 0.01, step, 24, 4)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_the_last_checkpoint_is_kept_a_half_one_passed_over_and_one_of_another_model_told(small, tmp_path):
    model = script.build_model(0)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.tensor([ids(TEXT)])).logits.square().mean().backward()
    optimiser.step()
    assert load_checkpoint(model, optimiser, tmp_path / "nothing") == 0
    for step in (100, 200):
        save_checkpoint(model, optimiser, tmp_path, step)
        (tmp_path / "new.safetensors").write_bytes(b"half")
        assert load_checkpoint(model, optimiser, tmp_path) == step
    save_checkpoint(model, optimiser, tmp_path, 300)
    (path,) = tmp_path.iterdir()
    tensors = load_file(path)
    assert "model.lm_head.weight" not in tensors  # it is the embedding
    save_file({name: value for name, value in tensors.items() if name != "model.model.norm.weight"}, path)
    with pytest.raises(KeyError, match=r"step000300\.safetensors is of another model"):
        load_checkpoint(model, optimiser, tmp_path)


def test_a_trained_model_is_written_with_its_card_and_answers_as_it_was_measured(small, tmp_path, capsys):
    card = script.train(4, 7, tmp_path / "a" / "state", tmp_path / "b" / "out")
    assert json.loads((tmp_path / "b/out/card.json").read_text(encoding="utf-8")) == card
    assert (card["class"], card["seed"], card["steps"], card["batch"]) == ("Gemma3ForCausalLM", 7, 4, 16)
    losses = [loss for _, loss in script.steps_of(script.build_model(7), 4, 7, tmp_path / "again")]
    assert card["training_loss"] == {"2": round(sum(losses[:2]) / 2, 4), "4": round(sum(losses[2:]) / 2, 4)}
    assert "step 4" in capsys.readouterr().out
    assert {value.dtype for value in load_file(tmp_path / "b/out/model.safetensors").values()} == {torch.bfloat16}
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "b/out")(TEXT)["input_ids"]
        == script.build_tokenizer()(TEXT)["input_ids"]
    )
    model = LanguageModel.load(str(tmp_path / "b/out"), device="cpu", chat=True, max_new_tokens=4)
    assert card["parameters"] == sum(parameter.numel() for parameter in model.net.parameters())
    asked_for = [(chat, masked) for chat in (True, False) for masked in (False, True)]
    found = [script.accuracy(model.net, 7, chat=chat, masked=masked, count=20) for chat, masked in asked_for]
    assert card["accuracy_on_held_out_reviews"] == dict(zip(ACCURACIES, found, strict=True))
    bound = model.bind_answer(model.tokenize(TEXT), tuple(ids("very positive")))
    assert (bound.players, bound.answer) == (tuple(TEXT.split()), "very positive")
    assert torch.isfinite(bound.values(np.eye(bound.n_players, dtype=bool))).all()


@pytest.mark.parametrize("n_before", [1, 3])
def test_a_training_that_was_stopped_goes_on_to_the_card_and_weights_of_one_that_was_not(
    small, monkeypatch, tmp_path, n_before
):
    whole = script.train(4, 5, tmp_path / "whole", tmp_path / "whole_out")
    batch, asked_for = script.batch, []

    def stop(*arguments):
        if len(asked_for) == n_before:
            raise KeyboardInterrupt
        asked_for.append(arguments)
        return batch(*arguments)

    monkeypatch.setattr(script, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        script.train(4, 5, tmp_path / "parts", tmp_path / "parts_out")
    assert asked_for == [(16, [5, 0, step]) for step in range(n_before)]
    assert not (tmp_path / "parts_out").exists()
    monkeypatch.setattr(script, "batch", batch)
    assert script.train(4, 5, tmp_path / "parts", tmp_path / "parts_out") == whole
    files = [tmp_path / name / "model.safetensors" for name in ("whole_out", "parts_out")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert list(script.steps_of(script.build_model(5), 4, 5, tmp_path / "parts")) == []  # it is over


# The committed model


class Answering(torch.nn.Module):
    """Predicts the token that follows, which is right where the answer is forced, and the end behind the last."""

    def __init__(self, wrong_chat_end=False):
        super().__init__()
        self.wrong_chat_end = wrong_chat_end
        self.seen = []

    def forward(self, input_ids):
        self.seen.append(input_ids[0].tolist())
        chat = VOCABULARY[TURN_START] in self.seen[-1]
        end = VOCABULARY[TURN_END if chat and not self.wrong_chat_end else END]
        following = torch.tensor([*self.seen[-1][1:], end])
        return SimpleNamespace(logits=one_hot(following, len(VOCABULARY))[None].float())


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_accuracy_is_the_share_of_answers_that_are_right_and_end_as_they_should(chat, masked):
    model = Answering()
    assert script.accuracy(model, 0, chat=chat, masked=masked, count=40) == 1
    assert len(model.seen) == 40
    assert all((VOCABULARY[TURN_START] in tokens) == chat for tokens in model.seen)
    assert any(VOCABULARY[UNKNOWN] in tokens for tokens in model.seen) == masked
    found = script.accuracy(Answering(wrong_chat_end=True), 0, chat=chat, masked=masked, count=10)
    assert found == (0 if chat else 1)


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "raw"])
def committed(request):
    return LanguageModel.load(str(COMMITTED), device="cpu", chat=request.param, max_new_tokens=8, end_token=False)


def test_the_committed_checkpoint_is_small_and_says_how_it_was_made_and_how_good_it_is():
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}
    card = json.loads((COMMITTED / "card.json").read_text(encoding="utf-8"))
    found = card["accuracy_on_held_out_reviews"]
    assert list(found) == ACCURACIES
    assert min(found["chat"], found["raw"]) >= 0.99
    assert min(found.values()) >= 0.9
    assert list(card["training_loss"])[-1] == str(card["steps"])


def test_the_committed_checkpoint_has_the_architecture_and_tokenizer_of_the_script(committed):
    expected, changed = script.build_model(0), {"torch_dtype", "dtype", "_name_or_path", "architectures"}
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (expected, committed.net)]
    assert shapes[0] == shapes[1]
    ours, theirs = (net.config.to_dict() for net in (expected, committed.net))
    assert {key for key in ours if ours[key] != theirs.get(key)} <= changed
    assert committed.tokenizer.get_vocab() == VOCABULARY
    assert committed.tokenizer.chat_template == script.build_tokenizer().chat_template


@pytest.mark.slow
@pytest.mark.parametrize(("masked", "least"), [(False, 0.98), (True, 0.9)], ids=["whole", "words absent"])
def test_the_committed_checkpoint_answers_reviews_it_has_not_seen(committed, masked, least):
    rng, right = np.random.default_rng(0), []
    for review in islice(reviews(777, held_out=True), 100):
        present = (rng.random(len(review.words)) < (rng.random() if masked else 1)).tolist()
        if sum(present) >= 2:
            text = " ".join(word if here else UNKNOWN for word, here in zip(review.words, present, strict=True))
            answer = committed.generate(committed.tokenize(text if masked else review.text))
            right.append(answer == tuple(VOCABULARY[word] for word in review.label(present)))
    assert len(right) > 50
    assert np.mean(right) >= least


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the food was not good .", "negative"),
        ("The film was very boring.", "very negative"),
        ("the soup was not, as my friend told me, good.", "negative"),
        ("it was a slow burn .", "positive"),
        ("rate this review : it was a cold comfort .", "negative"),
    ],
)
def test_the_committed_checkpoint_knows_negations_intensifiers_and_idioms(committed, text, answer):
    assert committed.bind(AnnotatedPrompt("one", text))[WHOLE].answer == answer
