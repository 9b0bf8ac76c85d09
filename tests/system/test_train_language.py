"""Training of the small Gemma: its tokenizer, what it is asked, a training that stopped goes on, what it learned."""

from __future__ import annotations

import json
import math
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, one_hot
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from metagame.benchmarks.prompts import AnnotatedPrompt, review_prompts
from metagame.benchmarks.reviews import Review, draw_review, is_held_out, reviews
from metagame.contracts import WHOLE
from metagame.models.language_model import LanguageModel
from scripts import train_language as script
from scripts.train_language import (
    CONTEXT,
    END,
    IGNORED,
    PAD,
    START,
    TURN_END,
    TURN_START,
    UNKNOWN,
    VOCABULARY,
    accuracy,
    asked,
    batch,
    build_model,
    build_tokenizer,
    example,
    ids,
    steps_of,
    train,
)
from scripts.training import load_checkpoint, save_checkpoint
from tests.tiny.jobs import ROOT

COMMITTED = ROOT / "data/tiny/gemma3"
SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
TEXT = "the soup was not very good and it was a slow burn ."


@pytest.fixture
def small(monkeypatch):
    """A much smaller model, small batches, and the full learning rate from the first step on."""
    monkeypatch.setattr(script, "Gemma3TextConfig", lambda **settings: Gemma3TextConfig(**settings | SMALL))
    monkeypatch.setattr(script, "BATCH", 16)
    monkeypatch.setattr(script, "WARM_UP", 1)
    monkeypatch.setattr(script, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 2)


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_review(rng) for _ in range(count)]


def rendered(tokenizer, text):
    """The text in the chat template."""
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def same_weights(first, second):
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


# The model and its tokenizer


def test_the_model_is_a_small_gemma_drawn_from_the_seed_whose_layers_alternate_and_whose_head_is_its_embedding():
    state = torch.get_rng_state()
    model, again, other = (build_model(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(model, again)
    assert not same_weights(model, other)
    assert type(model) is Gemma3ForCausalLM
    assert [layer.attention_type for layer in model.model.layers] == ["sliding_attention", "full_attention"] * 2
    assert (model.config.sliding_window, model.config.max_position_embeddings) == (16, CONTEXT)
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_special_tokens_are_where_gemma_has_them():
    assert [VOCABULARY[token] for token in (PAD, END, START, UNKNOWN)] == [0, 1, 2, 3]
    assert sorted(VOCABULARY.values()) == list(range(len(VOCABULARY)))
    model, tokenizer = build_model(0), build_tokenizer()
    for each in (model.config, tokenizer):
        assert (each.pad_token_id, each.eos_token_id, each.bos_token_id) == (0, 1, 2)
    assert tokenizer.unk_token_id == 3
    assert len(tokenizer) == model.config.vocab_size == len(VOCABULARY)
    assert model.generation_config.eos_token_id == [VOCABULARY[END], VOCABULARY[TURN_END]]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The SOUP was Good.", "the soup was good ."),
        ("good,bad;nice", f"good , bad {UNKNOWN} nice"),
        ("rate this review: the  soup", "rate this review : the soup"),
        ("good\n\nbad\n", "good \n \n bad \n"),
        ("  good  ", "good"),
        ("the goulash was good!?", f"the {UNKNOWN} was good {UNKNOWN} {UNKNOWN}"),
        (f"{TURN_START}user\ngood{TURN_END}\n", f"{TURN_START} user \n good {TURN_END} \n"),
        (f"{UNKNOWN} good {PAD}{END}", f"{UNKNOWN} good {PAD} {END}"),
    ],
)
def test_words_punctuation_and_line_breaks_are_tokens(text, tokens):
    tokenizer = build_tokenizer()
    found = tokenizer(text)["input_ids"]
    assert found == [VOCABULARY[START], *ids(tokens)]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == found[1:]


def test_the_chat_template_is_gemmas_and_takes_answers_too():
    tokenizer = build_tokenizer()
    assert rendered(tokenizer, f" {TEXT}\n") == f"<bos>{TURN_START}user\n{TEXT}{TURN_END}\n{TURN_START}model\n"
    messages = [{"role": "user", "content": "good"}, {"role": "model", "content": "positive"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == f"<bos>{TURN_START}user\ngood{TURN_END}\n{TURN_START}model\npositive{TURN_END}\n"


@pytest.mark.parametrize("chat", [True, False])
def test_the_adapter_asks_what_was_asked_in_training_and_the_words_play(small, chat):
    tokenizer = build_tokenizer()
    model = LanguageModel(build_model(0), tokenizer, "random", chat=chat)
    for review in drawn(100):
        words = [VOCABULARY[word] for word in review.words]
        text = rendered(tokenizer, review.text) if chat else review.text
        prompt = model.tokenize(review.text)
        assert tokenizer(text, add_special_tokens=not chat)["input_ids"] == list(prompt.ids) == asked(words, chat)
        assert prompt.labels == review.words
        assert [prompt.ids[place] for place in prompt.positions] == words
        assert prompt.turn_end == (VOCABULARY[TURN_END] if chat else None)
    assert model.absent_id == VOCABULARY[UNKNOWN]


# What it is asked in training


def taken_apart(tokens, targets):
    """The words of the review, whether it is in the template, and the answer, of an example."""
    n_question = len(tokens) - sum(target != IGNORED for target in targets) + 1
    question, answer = tokens[:n_question], [target for target in targets if target != IGNORED]
    chat = question[1] == VOCABULARY[TURN_START]
    words = question[len(script.BEFORE) : -len(script.BETWEEN)] if chat else question[1:]
    assert question == asked(words, chat)
    return words, chat, answer


def test_an_example_asks_for_the_label_of_the_words_that_are_left_and_an_end_one_place_later():
    for seed, review in enumerate(drawn(40)):
        tokens, targets = example(review, np.random.default_rng(seed))
        words, chat, answer = taken_apart(tokens, targets)
        present = [word != VOCABULARY[UNKNOWN] for word in words]
        whole = [VOCABULARY[word] for word in review.words]
        assert words == [word if here else VOCABULARY[UNKNOWN] for word, here in zip(whole, present, strict=True)]
        assert answer == [*(VOCABULARY[word] for word in review.label(present)), VOCABULARY[TURN_END if chat else END]]
        assert targets[: -len(answer)] == [IGNORED] * (len(tokens) - len(answer))
        assert targets[-len(answer) : -1] == tokens[len(tokens) - len(answer) + 1 :]


def test_half_of_the_examples_are_in_the_template_and_half_have_words_absent():
    rng = np.random.default_rng(0)
    made = [taken_apart(*example(review, rng)) for review in drawn(1000)]
    assert 0.45 < np.mean([chat for _, chat, _ in made]) < 0.55
    n_absent = [np.mean([word == VOCABULARY[UNKNOWN] for word in words]) for words, _, _ in made]
    assert 0.4 < np.mean([share > 0 for share in n_absent]) < 0.55
    assert 0.2 < np.mean(n_absent) < 0.3
    assert max(n_absent) == 1


def rows_of(tokens, targets):
    """The examples of a batch, and what is behind them."""
    for row, wanted, length in zip(tokens, targets, (tokens != VOCABULARY[PAD]).sum(1).tolist(), strict=True):
        yield row[:length].tolist(), wanted[:length].tolist(), row[length:], wanted[length:]


def test_a_batch_is_drawn_from_its_seed_of_reviews_that_are_not_held_out_and_padded_behind_what_is_predicted():
    (tokens, targets), again, other = (batch(200, [0, 0, step]) for step in (5, 5, 6))
    assert all(torch.equal(one, two) for one, two in zip((tokens, targets), again, strict=True))
    assert tokens.shape != other[0].shape or not torch.equal(tokens, other[0])
    assert tokens.shape == targets.shape == (200, tokens.shape[1])
    assert tokens.shape[1] <= CONTEXT
    assert not (targets == VOCABULARY[PAD]).any()
    words = {index: word for word, index in VOCABULARY.items()}
    for question, wanted, behind, wanted_behind in rows_of(tokens, targets):
        asked_of, _, _ = taken_apart(question, wanted)
        whole = VOCABULARY[UNKNOWN] not in asked_of
        assert not (whole and is_held_out(Review(tuple(words[index] for index in asked_of), (), ())))
        assert wanted[-1] in (VOCABULARY[END], VOCABULARY[TURN_END])
        assert (behind == VOCABULARY[PAD]).all()
        assert (wanted_behind == IGNORED).all()


def test_padding_does_not_change_what_is_learned():
    model = build_model(0).eval()
    tokens, targets = batch(6, [0, 0, 0])
    with torch.no_grad():
        together = model(tokens).logits[targets != IGNORED]
        alone = [model(torch.tensor([question])).logits[0][torch.tensor(wanted) != IGNORED]
                 for question, wanted, _, _ in rows_of(tokens, targets)]  # fmt: skip
    assert (together - torch.cat(alone)).abs().max() < 1e-5


# Training


@torch.no_grad()
def loss_of(model):
    """The loss on reviews that training does not meet."""
    tokens, targets = batch(64, [99, 0, 0])
    return cross_entropy(model.eval()(tokens).logits.transpose(1, 2), targets, ignore_index=IGNORED).item()


def test_a_few_steps_lower_the_loss_at_a_rate_that_warms_up_and_falls_to_nothing(small, monkeypatch, tmp_path):
    rates = []

    class Watched(torch.optim.AdamW):
        def step(self, *arguments, **settings):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **settings)

    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 100)
    monkeypatch.setattr(script, "WARM_UP", 4)
    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    model = build_model(0)
    losses = list(steps_of(model, 24, 0, tmp_path))
    assert [step for step, _ in losses] == list(range(24))
    assert all(math.isfinite(loss) for _, loss in losses)
    assert losses[0][1] == pytest.approx(math.log(len(VOCABULARY)), abs=0.5)
    assert loss_of(model) < 0.6 * loss_of(build_model(0))
    assert rates[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert not list(tmp_path.iterdir())


def test_the_last_checkpoint_is_kept_a_half_one_passed_over_and_one_of_another_model_told(small, tmp_path):
    model = build_model(0)
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


# How good it is


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
def test_the_accuracy_is_the_share_of_answers_that_are_right_and_end_as_they_should(small, chat):
    for masked in (True, False):
        model = Answering()
        assert accuracy(model, 0, chat=chat, masked=masked, count=40) == 1
        assert len(model.seen) == 40
        assert all((VOCABULARY[TURN_START] in tokens) == chat for tokens in model.seen)
        assert any(VOCABULARY[UNKNOWN] in tokens for tokens in model.seen) == masked
        assert accuracy(build_model(0), 0, chat=chat, masked=masked, count=40) < 0.2
    assert accuracy(Answering(wrong_chat_end=True), 0, chat=chat, masked=False, count=10) == (0 if chat else 1)


@pytest.fixture
def measured(small, monkeypatch):
    """The accuracy is measured on few reviews; models that were measured."""
    models = []

    def few(model, seed, *, chat, masked):
        models.append(model)
        return accuracy(model, seed, chat=chat, masked=masked, count=20)

    monkeypatch.setattr(script, "accuracy", few)
    return models


ACCURACIES = ["chat", "chat, words absent", "raw", "raw, words absent"]


def test_a_trained_model_is_written_with_its_card(measured, tmp_path, capsys):
    card = train(4, 7, tmp_path / "a" / "state", tmp_path / "b" / "out")
    assert json.loads((tmp_path / "b/out/card.json").read_text(encoding="utf-8")) == card
    assert (card["class"], card["seed"], card["steps"], card["batch"]) == ("Gemma3ForCausalLM", 7, 4, 16)
    assert card["parameters"] == sum(parameter.numel() for parameter in build_model(7).parameters())
    assert list(card["accuracy_on_held_out_reviews"]) == ACCURACIES
    losses = [loss for _, loss in steps_of(build_model(7), 4, 7, tmp_path / "again")]
    means = {str(step): round((losses[step - 2] + losses[step - 1]) / 2, 4) for step in (2, 4)}
    assert card["training_loss"] == means
    assert "step 4" in capsys.readouterr().out


@pytest.mark.parametrize("chat", [True, False])
def test_a_trained_model_can_be_loaded_as_it_was_measured_and_answers(measured, tmp_path, chat):
    train(2, 0, tmp_path / "state", tmp_path / "out")
    model = LanguageModel.load(str(tmp_path / "out"), device="cpu", chat=chat, max_new_tokens=4)
    tokens = torch.tensor([asked(ids(TEXT), True)])
    with torch.no_grad():
        assert torch.equal(model.net(tokens).logits, measured[0](tokens).logits)
    text = review_prompts(1, 6, 16)[0].text
    prompt = model.tokenize(text)
    assert 0 <= len(model.generate(prompt)) <= 4
    bound = model.bind_answer(prompt, tuple(ids("very positive")))
    assert (bound.players, bound.answer) == (tuple(text.split()), "very positive")
    assert torch.isfinite(bound.values(np.eye(bound.n_players, dtype=bool))).all()
    assert {value.dtype for value in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT)["input_ids"] == build_tokenizer()(TEXT)["input_ids"]


@pytest.mark.parametrize("n_before", [1, 2, 3])
def test_a_training_that_was_stopped_goes_on_to_the_card_and_weights_of_one_that_was_not(
    measured, monkeypatch, tmp_path, n_before
):
    whole = train(4, 5, tmp_path / "whole", tmp_path / "whole_out")
    asked_for = []

    def stop(*arguments):
        if len(asked_for) == n_before:
            raise KeyboardInterrupt
        asked_for.append(arguments)
        return batch(*arguments)

    monkeypatch.setattr(script, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(4, 5, tmp_path / "parts", tmp_path / "parts_out")
    assert asked_for == [(16, [5, 0, step]) for step in range(n_before)]
    assert not (tmp_path / "parts_out").exists()
    monkeypatch.setattr(script, "batch", batch)
    assert train(4, 5, tmp_path / "parts", tmp_path / "parts_out") == whole
    files = [tmp_path / name / "model.safetensors" for name in ("whole_out", "parts_out")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert list(steps_of(build_model(5), 4, 5, tmp_path / "parts")) == []  # it is over


# The committed model


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "raw"])
def committed(request):
    return LanguageModel.load(str(COMMITTED), device="cpu", chat=request.param, max_new_tokens=8, end_token=False)


def test_the_committed_checkpoint_is_small_and_says_how_it_was_made_and_how_good_it_is():
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}
    assert {value.dtype for value in load_file(COMMITTED / "model.safetensors").values()} == {torch.bfloat16}
    card = json.loads((COMMITTED / "card.json").read_text(encoding="utf-8"))
    assert card["class"] == "Gemma3ForCausalLM"
    assert card["parameters"] == sum(parameter.numel() for parameter in build_model(0).parameters())
    found = card["accuracy_on_held_out_reviews"]
    assert list(found) == ACCURACIES
    assert min(found["chat"], found["raw"]) >= 0.99
    assert min(found.values()) >= 0.9
    steps = [int(step) for step in card["training_loss"]]
    assert steps == sorted(steps)
    assert steps[-1] == card["steps"]


def test_the_committed_checkpoint_has_the_architecture_and_tokenizer_of_the_script(committed):
    expected = build_model(0)
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in committed.net.state_dict().items()} == shapes
    assert committed.net.config.layer_types == expected.config.layer_types
    assert committed.net.config.sliding_window == expected.config.sliding_window
    assert committed.tokenizer.get_vocab() == build_tokenizer().get_vocab() == VOCABULARY
    assert rendered(committed.tokenizer, TEXT) == rendered(build_tokenizer(), TEXT)


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
        ("the food was good .", "positive"),
        ("the food was not good .", "negative"),
        ("The film was very boring.", "very negative"),
        ("the soup was not, as my friend told me, good.", "negative"),
        ("the soup was very , says one rude critic , good .", "very positive"),
        ("it was a slow burn .", "positive"),
        ("rate this review : it was a cold comfort .", "negative"),
    ],
)
def test_the_committed_checkpoint_knows_negations_intensifiers_and_idioms(committed, text, answer):
    assert committed.bind(AnnotatedPrompt("one", text))[WHOLE].answer == answer
