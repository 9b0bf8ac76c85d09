import json
import logging
import warnings
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from metagame.attributions.gradients import GradientInput, IntegratedHessians
from metagame.attributions.leave_one_out import LeaveOneOut
from metagame.contracts import WHOLE
from metagame.estimators.configured import ConfiguredEstimator
from metagame.games import all_coalitions
from metagame.models.language_model import LanguageModel
from scripts.train_language import END, TURN_END, UNKNOWN, VOCABULARY, build_tokenizer
from tests.tiny.language import (
    ANSWER,
    CONTEXT,
    EVERYTHING,
    FAMILIES,
    FAMILIES_AND_METHODS,
    FLOAT32_TOLERANCE,
    METHODS,
    TEXT,
    WINDOW,
    Asked,
    adapter,
    bound_of,
    build,
    build_net,
    float64_throughout,
    greedy,
    masked_ids,
    near,
    own_mean_logit,
    save,
)
from tests.tiny.methods import state_of
from tests.tiny.vision_language import prepare_one, refused

each_family = pytest.mark.parametrize("family", FAMILIES)
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
each_family_with_its_methods = pytest.mark.parametrize(
    ("family", "method"), FAMILIES_AND_METHODS, ids=lambda part: part if isinstance(part, str) else type(part).__name__
)
PRESENT = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, torch.float32) for family in FAMILIES), ("gemma3", torch.float64)], ids=str
)
def test_output_is_the_mean_logit_of_the_answer_with_the_absent_token_in_the_place_of_absent_ones(family, dtype):
    model = build(family, dtype)
    bound = bound_of(model)
    expected = [own_mean_logit(model.net, model, present=row) for row in PRESENT]
    assert near(bound.values(PRESENT), expected, FLOAT32_TOLERANCE)
    assert bound.f(bound.x[None]).item() == pytest.approx(expected[0], abs=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_answers_of_any_length_are_averaged(length):
    model, answer = build(), tuple(range(20, 20 + length))
    found = bound_of(model, answer=answer).values(EVERYTHING)
    assert near(found, [own_mean_logit(model.net, model, answer)], FLOAT32_TOLERANCE)


def test_prompt_and_answer_are_longer_than_the_window_of_the_sliding_layer():
    model = build()
    assert len(masked_ids(model, TEXT, ANSWER, [True] * 5)) > 2 * WINDOW
    wider = adapter(build_net(sliding_window=CONTEXT))
    assert not near(bound_of(wider).values(EVERYTHING), bound_of(model).values(EVERYTHING), 1e-3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(attention):
    model, other = build(attn_implementation=attention), build()
    assert model.net.config._attn_implementation == attention
    assert near(bound_of(model).values(EVERYTHING), bound_of(other).values(EVERYTHING), FLOAT32_TOLERANCE)


def test_bias_of_the_head_is_counted():
    net = build_net()
    head, net.lm_head = net.lm_head, nn.Linear(net.config.hidden_size, net.config.vocab_size)
    net.lm_head.weight = head.weight
    model = adapter(net)
    assert net.lm_head.bias.abs().max() > 0
    assert near(bound_of(model).values(EVERYTHING), [own_mean_logit(net, model)], FLOAT32_TOLERANCE)


def test_absent_token_can_be_chosen():
    net = build_net()
    model = adapter(net, absent_token="food")
    assert model.absent_id == VOCABULARY["food"]
    expected = own_mean_logit(net, model, present=[False] * 5)
    assert near(bound_of(model).values(~EVERYTHING), [expected], FLOAT32_TOLERANCE)
    assert not near(bound_of(adapter(net)).values(~EVERYTHING), [expected], 1e-3)


def test_input_is_of_the_players_embeddings():
    model = build()
    bound, embeddings = bound_of(model), model.net.get_input_embeddings()
    assert torch.equal(bound.x, embeddings(torch.tensor([VOCABULARY[word] for word in TEXT.split()])))
    assert torch.equal(bound.baseline, embeddings(torch.tensor([VOCABULARY[UNKNOWN]] * 5)))
    assert bound.players == bound.targets == tuple(TEXT.split())
    assert (bound.grid, bound.answer) == (None, "bad soup good")
    assert bound.module is model.net


@each_family
def test_prepared_prompt_has_the_greedy_answer_of_the_model(family):
    model = build(family, seed=1 if family == "gpt2" else 0)  # GPT-2's first answer is one word, four times
    prompt = model.tokenize(TEXT)
    answer = greedy(model.net, prompt.ids, 4)
    assert len(set(answer)) > 1
    assert model.generate(prompt) == answer
    bound = prepare_one(model, Asked())[WHOLE]
    assert bound.answer == model.tokenizer.decode(answer)
    assert near(bound.values(EVERYTHING), [own_mean_logit(model.net, model, answer)], FLOAT32_TOLERANCE)


def test_raw_prompts_stand_alone_behind_the_start_token():
    net = build_net()
    model = adapter(net, chat=False)
    assert model.tokenize(TEXT).ids == tuple(VOCABULARY[word] for word in ["<bos>", *TEXT.split()])
    assert near(bound_of(model).values(EVERYTHING), [own_mean_logit(net, model)], FLOAT32_TOLERANCE)


def test_template_settings_are_those_of_the_model():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% if polite %}<start_of_turn>{% endif %}" + tokenizer.chat_template
    plain, polite = (adapter(build_net(), tokenizer, template_settings=given) for given in (None, {"polite": True}))
    assert polite.tokenize(TEXT).ids[1:] == plain.tokenize(TEXT).ids


@each_method
def test_model_stays_frozen_in_evaluation_mode_and_otherwise_as_it_was(method):
    model = build()
    before = state_of(model.net)
    method.explain(bound_of(model))
    method.metagame(ConfiguredEstimator("permutation", budget=10)).explain(bound_of(model))
    assert state_of(model.net) == before
    assert not any(parameter.requires_grad for parameter in model.net.parameters())
    assert not any(module.training for module in model.net.modules())


def test_a_net_in_training_mode_is_put_into_evaluation_mode():
    model = adapter(build_net(attention_dropout=0.5).train())
    assert near(bound_of(model).values(EVERYTHING), bound_of(build()).values(EVERYTHING), FLOAT32_TOLERANCE)


def stepwise(method, model, answer, present):
    """The mean over generation steps of the relevance of each step's logit, by a pass for each."""
    total = 0
    for step, token in enumerate(answer):
        # behind the prompt: the tokens that were generated before this step
        ids = masked_ids(model, TEXT, answer[: step + 1], present)
        embeddings = model.net.get_input_embeddings()(torch.tensor([ids])).requires_grad_()
        with nullcontext() if isinstance(method, GradientInput) else method.backward_rules(model.net):
            logit = model.net(inputs_embeds=embeddings, use_cache=False).logits[0, -1, token]
            (gradient,) = torch.autograd.grad(logit, embeddings)
        total = total + (embeddings * gradient).sum(-1)[0][list(model.tokenize(TEXT).positions)].detach()
    return total / len(answer)


@each_family_with_its_methods
def test_one_pass_attributes_as_the_mean_of_a_pass_for_each_step(method, family):
    model = build(family)
    for row, present in zip(method.game(bound_of(model))(PRESENT), PRESENT, strict=True):
        assert near(row, stepwise(method, model, ANSWER, present), FLOAT32_TOLERANCE)


@each_method
@pytest.mark.parametrize("length", [1, 6])
def test_one_pass_attributes_as_the_mean_of_a_pass_for_each_step_in_float64(method, length):
    answer = tuple(range(30, 30 + length))
    with float64_throughout():
        model = build(dtype=torch.float64)
        found = method.explain(bound_of(model, answer=answer)).attribution
        assert near(found, stepwise(method, model, answer, [True] * 5), 1e-12)


@each_method
def test_coalitions_of_a_batch_take_one_forward_pass(method):
    model, passes = build(), []
    bound = bound_of(model)
    model.net.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    method.game(bound)(all_coalitions(5))
    assert len(passes) == 1


def test_what_precedes_the_players_is_passed_once():
    model, tokens = build(), []
    prompt = model.tokenize(TEXT)
    model.net.get_decoder().layers[0].register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[:2]))
    bound = model.bind_answer(prompt, ANSWER)
    bound.gradients(bound.masked(all_coalitions(5)))
    first, played = prompt.positions[0], len(prompt.ids) + len(ANSWER) - 1 - prompt.positions[0]
    assert tokens == [(1, first), (32, played)]
    assert first


def test_answer_of_a_model_that_declares_no_end_has_the_most_tokens():
    net, tokenizer = build_net(), build_tokenizer()
    tokenizer.eos_token = None
    model = adapter(net, tokenizer, chat=False)
    prompt = model.tokenize(TEXT)
    assert model.generate(prompt) == greedy(net, prompt.ids, 4)


def test_sampling_that_the_checkpoint_recommends_changes_nothing(tmp_path, monkeypatch, caplog):
    net = build_net()
    net.generation_config = GenerationConfig(
        do_sample=True, top_k=50, top_p=0.9, temperature=9.0, repetition_penalty=5.0, max_length=3,
        eos_token_id=VOCABULARY[END], pad_token_id=VOCABULARY[END],
    )  # fmt: skip
    expected = greedy(net, build().tokenize(TEXT).ids, 12)
    save(net, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["do_sample"]
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings(), caplog.at_level("WARNING"):
        warnings.simplefilter("error")
        model = LanguageModel.load(str(tmp_path), device="cpu", chat=True, max_new_tokens=12)
        answers = {model.generate(model.tokenize(TEXT)) for _ in range(2)}
    assert answers == {expected}
    assert caplog.records == []


def declared_in_generation_config(net, tokenizer, end):
    net.generation_config = GenerationConfig(eos_token_id=end)


def declared_with_others(net, tokenizer, end):
    net.generation_config = GenerationConfig(eos_token_id=[VOCABULARY[END], end, VOCABULARY["food"]])


def declared_by_the_tokenizer(net, tokenizer, end):
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def declared_by_the_config(net, tokenizer, end):
    net.config.eos_token_id = end
    net.generation_config = GenerationConfig.from_model_config(net.config)


def said_as_the_turn_ends(net, tokenizer, end):
    """The net says ``end`` where it would say that the turn ends, and the other way round."""
    swapped = [end, VOCABULARY[TURN_END]]
    net.lm_head.weight.data[swapped] = net.lm_head.weight.data[swapped[::-1]]


@pytest.mark.parametrize(
    "declare",
    [
        declared_in_generation_config,
        declared_with_others,
        declared_by_the_tokenizer,
        declared_by_the_config,
        said_as_the_turn_ends,
    ],
)
def test_answer_stops_at_a_token_that_ends_it_which_is_a_step_only_if_it_is_asked_for(declare):
    net, tokenizer = build_net(), build_tokenizer()
    whole = greedy(net, adapter(net).tokenize(TEXT).ids, 8)
    place = next(place for place, token in enumerate(whole) if token != whole[0])
    declare(net, tokenizer, whole[place])
    for most in (8, place + 1):  # place + 1: its end is the last token that it may have
        without = adapter(net, tokenizer, max_new_tokens=most, end_token=False)
        assert without.generate(without.tokenize(TEXT)) == whole[:place]
        model = adapter(net, tokenizer, max_new_tokens=most)
        answer = model.generate(model.tokenize(TEXT))
        assert answer[:-1] == whole[:place]
        bound = model.bind(Asked())[WHOLE]
        assert near(bound.values(EVERYTHING), [own_mean_logit(net, model, answer)], FLOAT32_TOLERANCE)
    net, tokenizer = build_net(), build_tokenizer()
    declare(net, tokenizer, whole[0])
    with refused(f"the model's answer to '{TEXT}' is empty, so there is nothing to explain.*set model.end_token=true"):
        adapter(net, tokenizer, end_token=False).bind(Asked())
    model = adapter(net, tokenizer)
    answer = model.generate(model.tokenize(TEXT))
    assert len(answer) == 1
    found = model.bind(Asked())[WHOLE].values(EVERYTHING)
    assert near(found, [own_mean_logit(net, model, answer)], FLOAT32_TOLERANCE)


def test_raw_answer_does_not_stop_where_a_turn_would_end():
    net = build_net()
    model = adapter(net, chat=False, max_new_tokens=3)
    prompt = model.tokenize(TEXT)
    said_as_the_turn_ends(net, None, greedy(net, prompt.ids, 1)[0])
    assert model.generate(prompt)[0] == VOCABULARY[TURN_END]
    assert len(model.generate(prompt)) == 3


def test_prompt_that_leaves_no_room_for_the_answer_is_refused():
    length = len(build().tokenize(TEXT).ids)
    fitting, longer = (adapter(build_net(), max_new_tokens=CONTEXT - length + more) for more in (0, 1))
    assert len(fitting.generate(fitting.tokenize(TEXT))) == CONTEXT - length
    with refused(f"{length} tokens and an answer of {CONTEXT - length + 1} .* context of {CONTEXT}: shorten the promp"):
        longer.generate(longer.tokenize(TEXT))


@pytest.mark.parametrize("count", [0, -1, 2.5, "4", None])
def test_answer_without_tokens_is_refused(count):
    with refused(f"model\\.max_new_tokens={count!r} must be a positive integer"):
        adapter(build_net(), max_new_tokens=count)


def test_a_model_that_caps_its_logits_is_refused():
    with refused("final_logit_softcapping"):
        adapter(build_net(final_logit_softcapping=30.0))


def test_a_tokenizer_without_a_token_for_absent_ones_is_refused():
    tokenizer = build_tokenizer()
    tokenizer.unk_token = tokenizer.pad_token = None
    with refused(r"choose one with model\.absent_token"):
        adapter(build_net(), tokenizer)
    assert adapter(build_net(), tokenizer, absent_token=UNKNOWN).absent_id == VOCABULARY[UNKNOWN]


def test_a_prompt_that_cannot_be_asked_does_not_spoil_the_others():
    first, bad, second = build().prepare([Asked(), Asked("food"), Asked("the soup")])
    with refused("has fewer than two tokens that can be players"):
        raise bad.error
    assert (first[WHOLE].players, second[WHOLE].players) == (tuple(TEXT.split()), ("the", "soup"))


def test_an_answer_that_does_not_fit_the_device_is_refused(monkeypatch):
    model = build()
    recommended = model.net.generation_config

    def generate(*arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model.net, "generate", generate)
    with refused(r"an answer of 4 tokens does not fit the device's memory: lower model\.max_new_tokens"):
        model.bind(Asked())
    assert model.net.generation_config is recommended


def test_integrated_hessians_are_refused():
    with refused("needs second derivatives"):
        IntegratedHessians(2).explain(bound_of(build()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", [*METHODS, LeaveOneOut()], ids=lambda method: type(method).__name__)
def test_cuda_agrees_with_cpu(method):
    on_cpu, on_cuda = build(), adapter(build_net().cuda())
    prompt = on_cpu.tokenize(TEXT)
    assert on_cuda.generate(prompt) == on_cpu.generate(prompt)
    coalitions = all_coalitions(5)
    found = method.game(bound_of(on_cuda))(coalitions)
    assert near(found, method.game(bound_of(on_cpu))(coalitions), 1e-3)


def test_an_answer_is_generated_once_for_all_jobs_with_the_same_settings(tmp_path):
    def answer(**settings):
        model = adapter(build_net(), **settings)
        model.keep_in(tmp_path)
        with mock.patch.object(model, "generate", wraps=model.generate) as generate:
            (inputs,) = model.prepare([Asked()])
        return inputs[WHOLE].answer, generate.call_count

    first = answer()
    assert first[1] == 1
    assert answer() == answer(tokens_per_batch=99) == (first[0], 0)
    assert [answer(**other)[1] for other in ({"max_new_tokens": 3}, {"end_token": False}, {"chat": False})] == [1, 1, 1]
    assert {path.suffix for path in (tmp_path / "answers").iterdir()} == {".json"}
