from __future__ import annotations

import json
import math
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
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


def test_models_are_drawn_from_the_seed_and_not_from_the_global_generator():
    state = torch.get_rng_state()
    first, again, other = (build_model(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_the_model_is_a_small_gemma_whose_layers_alternate():
    model = build_model(0)
    assert type(model) is Gemma3ForCausalLM
    assert model.config.layer_types == ["sliding_attention", "full_attention"] * 2
    assert [layer.attention_type for layer in model.model.layers] == model.config.layer_types
    assert (model.config.sliding_window, model.config.max_position_embeddings) == (16, CONTEXT)
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000


def test_the_head_of_the_model_is_its_embedding():
    model = build_model(0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (len(VOCABULARY), model.config.hidden_size)


def test_a_sliding_layer_does_not_look_back_more_than_its_window():
    """Of two layers only the second, full one tells the first token to the last."""
    model = build_model(0).eval()
    one = torch.tensor([ids(" ".join(["the"] * 40))])
    other = one.clone()
    other[0, 0] = VOCABULARY["bad"]
    hidden = [model.model(each, output_hidden_states=True).hidden_states for each in (one, other)]
    first, second = (tuple(layer[0] for layer in states) for states in hidden)
    assert torch.equal(first[1][16:], second[1][16:])
    assert not torch.equal(first[1][15], second[1][15])
    assert not torch.equal(first[2][-1], second[2][-1])


def test_the_special_tokens_are_where_gemma_has_them():
    assert [VOCABULARY[token] for token in (PAD, END, START, UNKNOWN)] == [0, 1, 2, 3]
    assert sorted(VOCABULARY.values()) == list(range(len(VOCABULARY)))
    config, tokenizer = build_model(0).config, build_tokenizer()
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, 2)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert tokenizer.unk_token_id == 3
    assert len(tokenizer) == config.vocab_size == len(VOCABULARY)


def test_an_answer_ends_with_the_turn_or_the_text():
    assert build_model(0).generation_config.eos_token_id == [VOCABULARY[END], VOCABULARY[TURN_END]]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the soup was good .", "the soup was good ."),
        ("The SOUP was Good.", "the soup was good ."),
        ("good,bad", f"good {UNKNOWN} bad"),
        ("rate this review: the  soup", "rate this review : the soup"),
        ("good\n\nbad\n", "good \n \n bad \n"),
        ("  good  ", "good"),
        ("the goulash was good!?", f"the {UNKNOWN} was good {UNKNOWN} {UNKNOWN}"),
        (f"{TURN_START}user\ngood{TURN_END}\n{TURN_START}model\n",
         f"{TURN_START} user \n good {TURN_END} \n {TURN_START} model \n"),
        (f"{UNKNOWN} good {PAD}{END}", f"{UNKNOWN} good {PAD} {END}"),
    ],
)  # fmt: skip
def test_words_punctuation_and_line_breaks_are_tokens(text, tokens):
    tokenizer = build_tokenizer()
    found = tokenizer(text)["input_ids"]
    assert found == [VOCABULARY[START], *ids(tokens)]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == found[1:]


@pytest.mark.parametrize("seed", range(3))
def test_the_tokenizer_builds_what_the_model_was_asked_in_training(seed):
    tokenizer = build_tokenizer()
    for review in drawn(100, seed):
        words = [VOCABULARY[word] for word in review.words]
        assert tokenizer(review.text)["input_ids"] == asked(words, False)
        assert tokenizer(rendered(tokenizer, review.text), add_special_tokens=False)["input_ids"] == asked(words, True)


def test_the_chat_template_is_gemmas():
    text = rendered(build_tokenizer(), f" {TEXT}\n")
    assert text == f"<bos><start_of_turn>user\n{TEXT}<end_of_turn>\n<start_of_turn>model\n"


def test_the_chat_template_takes_answers_too():
    messages = [{"role": "user", "content": "good"}, {"role": "model", "content": "positive"}]
    text = build_tokenizer().apply_chat_template(messages, tokenize=False)
    assert text == ("<bos><start_of_turn>user\ngood<end_of_turn>\n<start_of_turn>model\npositive<end_of_turn>\n")


@pytest.mark.parametrize("chat", [True, False])
def test_the_adapter_asks_what_was_asked_in_training_and_the_words_play(small, chat):
    tokenizer = build_tokenizer()
    model = LanguageModel(build_model(0), tokenizer, "random", chat=chat)
    for review in drawn(20):
        prompt = model.tokenize(review.text)
        assert list(prompt.ids) == asked([VOCABULARY[word] for word in review.words], chat)
        assert prompt.labels == review.words
        assert [prompt.ids[place] for place in prompt.positions] == [VOCABULARY[word] for word in review.words]
        assert prompt.turn_end == (VOCABULARY[TURN_END] if chat else None)
    assert model.absent_id == VOCABULARY[UNKNOWN]


def taken_apart(tokens, targets):
    """The words of the review, whether it is in the template, and the answer, of an example."""
    n_question = len(tokens) - sum(target != IGNORED for target in targets) + 1
    question, answer = tokens[:n_question], [target for target in targets if target != IGNORED]
    chat = question[1] == VOCABULARY[TURN_START]
    words = question[len(script.BEFORE) : -len(script.BETWEEN)] if chat else question[1:]
    assert question == asked(words, chat)
    return words, chat, answer


@pytest.mark.parametrize("seed", range(20))
def test_an_example_asks_for_the_label_of_the_words_that_are_left_and_an_end(seed):
    review = drawn(1, seed)[0]
    tokens, targets = example(review, np.random.default_rng(seed))
    words, chat, answer = taken_apart(tokens, targets)
    present = [word != VOCABULARY[UNKNOWN] for word in words]
    whole = [VOCABULARY[word] for word in review.words]
    assert [word for word, here in zip(words, present, strict=True) if here] == [
        word for word, here in zip(whole, present, strict=True) if here
    ]
    assert answer == [*(VOCABULARY[word] for word in review.label(present)), VOCABULARY[TURN_END if chat else END]]


@pytest.mark.parametrize("seed", range(20))
def test_the_targets_of_an_example_are_its_tokens_one_place_later(seed):
    review = drawn(1, seed)[0]
    tokens, targets = example(review, np.random.default_rng(seed))
    assert len(tokens) == len(targets)
    n_answer = sum(target != IGNORED for target in targets)
    assert targets[:-n_answer] == [IGNORED] * (len(targets) - n_answer)
    assert targets[-n_answer:-1] == tokens[len(tokens) - n_answer + 1 :]


def test_half_of_the_examples_are_in_the_template_and_half_have_words_absent():
    rng = np.random.default_rng(0)
    made = [taken_apart(*example(review, rng)) for review in drawn(1000)]
    assert 0.45 < np.mean([chat for _, chat, _ in made]) < 0.55
    n_absent = [np.mean([word == VOCABULARY[UNKNOWN] for word in words]) for words, _, _ in made]
    assert 0.4 < np.mean([share > 0 for share in n_absent]) < 0.55
    assert 0.2 < np.mean(n_absent) < 0.3
    assert max(n_absent) == 1


def test_a_batch_is_drawn_from_its_seed():
    first, again, other = (batch(8, [0, 0, step]) for step in (5, 5, 6))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


def test_a_batch_is_padded_behind_what_is_predicted():
    tokens, targets = batch(32, [0, 0, 0])
    assert tokens.shape == targets.shape
    assert len(tokens) == 32
    n_tokens = (tokens != VOCABULARY[PAD]).sum(1)
    assert n_tokens.max() == tokens.shape[1] <= CONTEXT
    assert n_tokens.min() < n_tokens.max()
    for row, wanted, length in zip(tokens, targets, n_tokens.tolist(), strict=True):
        assert (row[length:] == VOCABULARY[PAD]).all()
        assert (wanted[length:] == IGNORED).all()
        assert wanted[length - 1] in (VOCABULARY[END], VOCABULARY[TURN_END])
        taken_apart(row[:length].tolist(), wanted[:length].tolist())
    assert not (targets == VOCABULARY[PAD]).any()


def test_no_review_of_training_is_held_out():
    words = {index: word for word, index in VOCABULARY.items()}
    for step in range(5):
        tokens, targets = batch(64, [0, 0, step])
        for row, wanted in zip(tokens, targets, strict=True):
            length = int((row != VOCABULARY[PAD]).sum())
            asked_of, _, _ = taken_apart(row[:length].tolist(), wanted[:length].tolist())
            if VOCABULARY[UNKNOWN] not in asked_of:
                assert not is_held_out(Review(tuple(words[index] for index in asked_of), (), ()))


def test_padding_does_not_change_what_is_learned():
    model = build_model(0).eval()
    tokens, targets = batch(6, [0, 0, 0])
    with torch.no_grad():
        together = model(tokens).logits[targets != IGNORED]
        alone = []
        for row, wanted in zip(tokens, targets, strict=True):
            length = int((row != VOCABULARY[PAD]).sum())
            alone.append(model(row[None, :length]).logits[0][wanted[:length] != IGNORED])
    assert (together - torch.cat(alone)).abs().max() < 1e-5


def trained(n_steps, state, seed=0, stop=None):
    """A model after ``n_steps`` steps, or the first ``stop`` of them, and its losses."""
    model = build_model(seed)
    losses = []
    for step, loss in steps_of(model, n_steps, seed, state):
        losses.append((step, loss))
        if stop is not None and step + 1 == stop:
            break
    return model, losses


@torch.no_grad()
def loss_of(model):
    """The loss on reviews that training does not meet."""
    tokens, targets = batch(64, [99, 0, 0])
    return cross_entropy(model.eval()(tokens).logits.transpose(1, 2), targets, ignore_index=IGNORED).item()


def test_a_few_steps_lower_the_loss(small, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 100)
    model, losses = trained(20, tmp_path)
    assert [step for step, _ in losses] == list(range(20))
    assert all(math.isfinite(loss) for _, loss in losses)
    assert losses[0][1] == pytest.approx(math.log(len(VOCABULARY)), abs=0.5)
    assert loss_of(model) < 0.6 * loss_of(build_model(0))
    assert not list(tmp_path.iterdir())


def test_every_step_meets_reviews_of_its_own(small, monkeypatch, tmp_path):
    drawn_from = []

    def watched(count, seed):
        drawn_from.append((count, tuple(seed)))
        return batch(count, seed)

    monkeypatch.setattr(script, "batch", watched)
    trained(3, tmp_path / "one", seed=4)
    trained(2, tmp_path / "other", seed=5)
    assert drawn_from == [(16, (4, 0, 0)), (16, (4, 0, 1)), (16, (4, 0, 2)), (16, (5, 0, 0)), (16, (5, 0, 1))]


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_training_that_was_stopped_and_goes_on_ends_with_the_same_weights(small, tmp_path, stop):
    whole, losses = trained(6, tmp_path / "whole")
    trained(6, tmp_path / "parts", stop=stop)
    resumed, after = trained(6, tmp_path / "parts")
    assert after == losses[stop // 2 * 2 :]
    assert same_weights(whole, resumed)


def test_a_training_that_is_over_has_no_steps_left(small, tmp_path):
    done, _ = trained(4, tmp_path)
    again, losses = trained(4, tmp_path)
    assert losses == []
    assert same_weights(done, again)


def test_the_learning_rate_warms_up_and_falls_to_nothing(small, monkeypatch, tmp_path):
    rates = []

    class Watched(torch.optim.AdamW):
        def step(self, *arguments, **settings):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **settings)

    monkeypatch.setattr(script, "WARM_UP", 4)
    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    trained(12, tmp_path)
    assert rates[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.001


@pytest.fixture
def stepped(small):
    """A model and its optimiser after a step."""
    model = build_model(0)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.tensor([ids(TEXT)])).logits.square().mean().backward()
    optimiser.step()
    return model, optimiser


def test_a_checkpoint_gives_weights_and_moments_back(stepped, tmp_path):
    model, optimiser = stepped
    save_checkpoint(model, optimiser, tmp_path, 300)
    other = build_model(1)
    fresh = torch.optim.AdamW(other.parameters())
    assert load_checkpoint(other, fresh, tmp_path) == 300
    assert same_weights(model, other)
    ours, theirs = (each.state_dict()["state"] for each in (fresh, optimiser))
    assert ours.keys() == theirs.keys()
    for index, moments in theirs.items():
        assert all(torch.equal(value, ours[index][name]) for name, value in moments.items())


def test_tied_weights_are_saved_once_and_stay_tied(stepped, tmp_path):
    model, optimiser = stepped
    save_checkpoint(model, optimiser, tmp_path, 1)
    weights = [key for key in load_file(tmp_path / "step000001.safetensors") if key.startswith("model.")]
    assert "model.model.embed_tokens.weight" in weights
    assert "model.lm_head.weight" not in weights
    assert len(weights) == len(model.state_dict()) - 1
    other = build_model(1)
    load_checkpoint(other, torch.optim.AdamW(other.parameters()), tmp_path)
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_only_the_last_checkpoint_is_kept(stepped, tmp_path):
    for step in (100, 200, 300):
        save_checkpoint(*stepped, tmp_path, step)
        assert [path.name for path in tmp_path.iterdir()] == [f"step{step:06d}.safetensors"]
    assert load_checkpoint(*stepped, tmp_path) == 300


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(stepped, tmp_path):
    save_checkpoint(*stepped, tmp_path, 100)
    (tmp_path / "new.safetensors").write_bytes(b"half")
    assert load_checkpoint(*stepped, tmp_path) == 100
    save_checkpoint(*stepped, tmp_path, 200)
    assert [path.name for path in tmp_path.iterdir()] == ["step000200.safetensors"]


def test_without_a_checkpoint_training_begins_at_the_first_step(stepped, tmp_path):
    before = {key: value.clone() for key, value in stepped[0].state_dict().items()}
    assert load_checkpoint(*stepped, tmp_path / "nothing") == 0
    assert all(torch.equal(value, before[key]) for key, value in stepped[0].state_dict().items())


def test_a_checkpoint_without_some_of_the_weights_is_told_with_its_file(stepped, tmp_path):
    save_checkpoint(*stepped, tmp_path, 100)
    path = tmp_path / "step000100.safetensors"
    tensors = load_file(path)
    del tensors["model.model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(KeyError, match=r"step000100\.safetensors is of another model"):
        load_checkpoint(*stepped, tmp_path)


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
        return SimpleNamespace(logits=torch.nn.functional.one_hot(following, len(VOCABULARY))[None].float())


class AlwaysPositive(Answering):
    """Answers ``positive`` whatever it is asked."""

    def forward(self, input_ids):
        logits = super().forward(input_ids).logits
        start = len(self.seen[-1]) - 1
        while self.seen[-1][start] in ids("very positive negative neutral"):
            start -= 1
        logits[0, start] = torch.nn.functional.one_hot(torch.tensor(VOCABULARY["positive"]), len(VOCABULARY))
        return SimpleNamespace(logits=logits)


CASES = [(chat, masked) for chat in (True, False) for masked in (True, False)]


@pytest.mark.parametrize(("chat", "masked"), CASES)
def test_the_accuracy_of_right_answers_is_one(chat, masked):
    model = Answering()
    assert accuracy(model, 0, chat=chat, masked=masked, count=40) == 1
    assert len(model.seen) == 40
    assert all((VOCABULARY[TURN_START] in tokens) == chat for tokens in model.seen)
    assert any(VOCABULARY[UNKNOWN] in tokens for tokens in model.seen) == masked


@pytest.mark.parametrize("chat", [True, False])
def test_an_answer_that_does_not_end_as_it_should_is_wrong(chat):
    assert accuracy(Answering(wrong_chat_end=True), 0, chat=chat, masked=False, count=10) == (0 if chat else 1)


@pytest.mark.parametrize("chat", [True, False])
def test_the_accuracy_of_one_answer_to_everything_is_the_share_of_its_label(chat):
    right = [review.label() == ("positive",) for review in islice(reviews([5, 3], held_out=True), 200)]
    assert 0.1 < np.mean(right) < 0.5
    assert accuracy(AlwaysPositive(), 5, chat=chat, masked=False, count=200) == np.mean(right)


@pytest.mark.parametrize(("chat", "masked"), CASES)
def test_a_model_that_knows_nothing_is_not_accurate(small, chat, masked):
    assert accuracy(build_model(0), 0, chat=chat, masked=masked, count=40) < 0.2


@pytest.fixture
def measured(small, monkeypatch):
    """The accuracy is measured on few reviews; models that were measured."""
    models = []

    def few(model, seed, *, chat, masked):
        models.append(model)
        return accuracy(model, seed, chat=chat, masked=masked, count=20)

    monkeypatch.setattr(script, "accuracy", few)
    return models


def test_a_trained_model_is_written_with_its_card(measured, tmp_path, capsys):
    card = train(4, 7, tmp_path / "a" / "state", tmp_path / "b" / "out")
    assert json.loads((tmp_path / "b/out/card.json").read_text(encoding="utf-8")) == card
    assert (card["class"], card["seed"], card["steps"], card["batch"]) == ("Gemma3ForCausalLM", 7, 4, 16)
    assert card["parameters"] == sum(parameter.numel() for parameter in build_model(7).parameters())
    assert list(card["accuracy_on_held_out_reviews"]) == ["chat", "chat, words absent", "raw", "raw, words absent"]
    _, losses = trained(4, tmp_path / "again", seed=7)
    means = [(losses[step][1] + losses[step + 1][1]) / 2 for step in (0, 2)]
    assert card["training_loss"] == {"2": round(means[0], 4), "4": round(means[1], 4)}
    assert "step 4" in capsys.readouterr().out


@pytest.mark.parametrize("chat", [True, False])
def test_a_trained_model_can_be_loaded_and_answers(measured, tmp_path, chat):
    train(2, 0, tmp_path / "state", tmp_path / "out")
    model = LanguageModel.load(str(tmp_path / "out"), device="cpu", chat=chat, max_new_tokens=4)
    text = review_prompts(1, 6, 16)[0].text
    prompt = model.tokenize(text)
    assert 0 <= len(model.generate(prompt)) <= 4
    bound = model.bind_answer(prompt, tuple(ids("very positive")))
    assert (bound.players, bound.answer) == (tuple(text.split()), "very positive")
    assert torch.isfinite(bound.values(np.eye(bound.n_players, dtype=bool))).all()
    assert {value.dtype for value in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved(TEXT)["input_ids"] == build_tokenizer()(TEXT)["input_ids"]


def test_the_model_is_measured_as_it_will_be_loaded(measured, tmp_path):
    train(2, 0, tmp_path / "state", tmp_path / "out")
    loaded = LanguageModel.load(str(tmp_path / "out"), device="cpu", chat=True).net
    tokens = torch.tensor([asked(ids(TEXT), True)])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, measured[0](tokens).logits)


@pytest.mark.parametrize("n_before", [1, 2, 3])
def test_a_training_that_was_stopped_writes_the_card_and_weights_of_one_that_was_not(
    measured, monkeypatch, tmp_path, n_before
):
    whole = train(4, 0, tmp_path / "whole", tmp_path / "whole_out")
    calls = []

    def stop(*arguments):
        calls.append(1)
        if len(calls) > n_before:
            raise KeyboardInterrupt
        return batch(*arguments)

    monkeypatch.setattr(script, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(4, 0, tmp_path / "parts", tmp_path / "parts_out")
    assert not (tmp_path / "parts_out").exists()
    monkeypatch.setattr(script, "batch", batch)
    assert train(4, 0, tmp_path / "parts", tmp_path / "parts_out") == whole
    files = [tmp_path / name / "model.safetensors" for name in ("whole_out", "parts_out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def committed_card():
    return json.loads((COMMITTED / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "raw"])
def committed(request):
    return LanguageModel.load(str(COMMITTED), device="cpu", chat=request.param, max_new_tokens=8)


def test_the_committed_checkpoint_is_small_and_without_pickles():
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}


def test_the_committed_checkpoint_is_in_bfloat16_on_disk():
    tensors = load_file(COMMITTED / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors


def test_the_committed_checkpoint_says_how_it_was_made_and_how_good_it_is():
    card = committed_card()
    assert card["class"] == "Gemma3ForCausalLM"
    assert card["parameters"] == sum(parameter.numel() for parameter in build_model(0).parameters())
    found = card["accuracy_on_held_out_reviews"]
    assert list(found) == ["chat", "chat, words absent", "raw", "raw, words absent"]
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
    texts = [review.text for review in drawn(50)] + ["Goulash, GOOD!"]
    assert committed.tokenizer(texts)["input_ids"] == build_tokenizer()(texts)["input_ids"]


@pytest.mark.slow
def test_the_committed_checkpoint_answers_reviews_it_has_not_seen(committed):
    right = 0
    for review in islice(reviews(777, held_out=True), 100):
        answer = committed.generate(committed.tokenize(review.text))
        right += answer == tuple(VOCABULARY[word] for word in review.label())
    assert right >= 98


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the food was good .", "positive"),
        ("the food was not good .", "negative"),
        ("The film was very boring.", "very negative"),
        ("it was a slow burn .", "positive"),
        ("rate this review : it was a cold comfort .", "negative"),
    ],
)
def test_the_committed_checkpoint_knows_negations_intensifiers_and_idioms(committed, text, answer):
    assert committed.bind(AnnotatedPrompt("one", text))[WHOLE].answer == answer


@pytest.mark.slow
def test_the_committed_checkpoint_tells_what_is_left_when_words_are_absent(committed):
    rng = np.random.default_rng(0)
    right = []
    for review in islice(reviews(778, held_out=True), 100):
        present = rng.random(len(review.words)) < rng.random()
        if present.sum() >= 2:
            text = " ".join(word if here else UNKNOWN for word, here in zip(review.words, present, strict=True))
            answer = committed.generate(committed.tokenize(text))
            right.append(answer == tuple(VOCABULARY[word] for word in review.label(present)))
    assert len(right) > 50
    assert np.mean(right) >= 0.9
