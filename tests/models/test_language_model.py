import json
import logging
import warnings
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GenerationConfig,
)

from metagame.attributions.attnlrp import CPLRP, AttnLRP
from metagame.attributions.gradients import GradientInput, IntegratedHessians
from metagame.attributions.leave_one_out import LeaveOneOut
from metagame.contracts import WHOLE
from metagame.estimators.configured import ConfiguredEstimator
from metagame.games import all_coalitions
from metagame.models.language_model import LanguageModel
from scripts.train_language import END, TURN_END, UNKNOWN, VOCABULARY, build_tokenizer
from tests.tiny.checkpoints import edit_weights
from tests.tiny.language import (
    ANSWER,
    CONTEXT,
    EVERYTHING,
    FAMILIES,
    FLOAT32_TOLERANCE,
    METHODS,
    SHAPE,
    SLIDING,
    TEXT,
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
    randomise,
    save,
)
from tests.tiny.methods import state_of
from tests.tiny.vision_language import prepare_one, refused

each_family = pytest.mark.parametrize("family", FAMILIES)
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
PRESENT = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)


def load(folder, **settings):
    return LanguageModel.load(str(folder), device="cpu", chat=True, **{"max_new_tokens": 4} | settings)


def generated(model):
    return model.generate(model.tokenize(TEXT))


@pytest.mark.parametrize(
    ("family", "dtype", "length"),
    [
        *((family, torch.float32, length) for family, length in zip(FAMILIES, (3, 1, 2, 7, 3, 3), strict=True)),
        ("gemma3", torch.float64, 7),
    ],
    ids=str,
)
def test_output_is_the_mean_logit_of_the_answer_with_the_absent_token_in_the_place_of_absent_ones(
    family, dtype, length
):
    model, answer = build(family, dtype), tuple(range(20, 20 + length))
    bound = bound_of(model, answer=answer)
    expected = [own_mean_logit(model.net, model, answer, row) for row in PRESENT]
    assert near(bound.values(PRESENT), expected, FLOAT32_TOLERANCE)
    assert bound.f(bound.x[None]).item() == pytest.approx(expected[0], abs=FLOAT32_TOLERANCE)


def test_bias_of_the_head_is_counted():
    net = build_net()
    head, net.lm_head = net.lm_head, nn.Linear(net.config.hidden_size, net.config.vocab_size)
    net.lm_head.weight = head.weight
    model = adapter(net)
    assert net.lm_head.bias.abs().max() > 0
    assert near(bound_of(model).values(EVERYTHING), [own_mean_logit(net, model)], FLOAT32_TOLERANCE)


def test_absent_token_can_be_chosen():
    net, tokenizer = build_net(), build_tokenizer()
    model = adapter(net, absent_token="food")
    assert model.absent_id == VOCABULARY["food"]
    expected = own_mean_logit(net, model, present=[False] * 5)
    assert near(bound_of(model).values(~EVERYTHING), [expected], FLOAT32_TOLERANCE)
    assert not near(bound_of(adapter(net)).values(~EVERYTHING), [expected], 1e-3)
    tokenizer.unk_token = tokenizer.pad_token = None
    assert adapter(net, tokenizer, absent_token=UNKNOWN).absent_id == VOCABULARY[UNKNOWN]


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
    answer = greedy(model.net, model.tokenize(TEXT).ids, 4)
    assert len(set(answer)) > 1
    assert generated(model) == answer
    bound = prepare_one(model, Asked())[WHOLE]
    assert bound.answer == model.tokenizer.decode(answer)
    assert near(bound.values(EVERYTHING), [own_mean_logit(model.net, model, answer)], FLOAT32_TOLERANCE)


@each_method
def test_model_is_put_into_evaluation_mode_and_otherwise_stays_as_it_was(method):
    model = adapter(build_net(attention_dropout=0.5).train())
    assert near(bound_of(model).values(EVERYTHING), bound_of(build()).values(EVERYTHING), FLOAT32_TOLERANCE)
    before = state_of(model.net)
    method.explain(bound_of(model))
    method.metagame(ConfiguredEstimator("permutation", budget=10)).explain(bound_of(model))
    assert state_of(model.net) == before
    assert not any(parameter.requires_grad for parameter in model.net.parameters())
    assert not any(module.training for module in model.net.modules())


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


@pytest.mark.parametrize(
    ("family", "method", "length"),
    [
        ("llama", AttnLRP(), 3),
        ("qwen2", CPLRP(), 3),
        ("qwen3", AttnLRP(), 6),
        ("gpt2", CPLRP(), 6),
        ("mistral", GradientInput(), 3),
        *(("gemma3", method, length) for method, length in zip(METHODS, (1, 6, 6), strict=True)),
    ],
    ids=lambda value: str(value) if isinstance(value, int | str) else type(value).__name__,
)
def test_one_pass_attributes_as_the_mean_of_a_pass_for_each_step(family, method, length):
    answer = tuple(range(30, 30 + length))
    precise = family == "gemma3"  # norms of others are in float32, whatever the type of the weights
    with float64_throughout() if precise else nullcontext():
        model = build(family, torch.float64 if precise else torch.float32)
        for row, present in zip(method.game(bound_of(model, answer=answer))(PRESENT), PRESENT, strict=True):
            assert near(row, stepwise(method, model, answer, present), 1e-12 if precise else FLOAT32_TOLERANCE)


@each_method
def test_what_precedes_the_players_is_passed_once_and_coalitions_of_a_batch_together(method):
    model, tokens = build(), []
    prompt = model.tokenize(TEXT)
    model.net.get_decoder().layers[0].register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[:2]))
    bound = model.bind_answer(prompt, ANSWER)
    method.game(bound)(all_coalitions(5))
    first, played = prompt.positions[0], len(prompt.ids) + len(ANSWER) - 1 - prompt.positions[0]
    assert tokens == [(1, first), (32, played)]
    assert first


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
        assert generated(load(tmp_path, max_new_tokens=12)) == expected
    assert caplog.records == []


def declared_in_generation_config(net, tokenizer, end):
    net.generation_config = GenerationConfig(eos_token_id=end)


def declared_with_others(net, tokenizer, end):
    net.generation_config = GenerationConfig(eos_token_id=[VOCABULARY[END], end, VOCABULARY["food"]])


def declared_by_the_tokenizer(net, tokenizer, end):
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def said_as_the_turn_ends(net, tokenizer, end):
    """The net says ``end`` where it would say that the turn ends, and the other way round."""
    swapped = [end, VOCABULARY[TURN_END]]
    net.lm_head.weight.data[swapped] = net.lm_head.weight.data[swapped[::-1]]


@pytest.mark.parametrize(
    "declare", [declared_in_generation_config, declared_with_others, declared_by_the_tokenizer, said_as_the_turn_ends]
)
def test_answer_stops_at_a_token_that_ends_it_which_is_a_step_only_if_it_is_asked_for(declare):
    net, tokenizer = build_net(), build_tokenizer()
    whole = greedy(net, adapter(net).tokenize(TEXT).ids, 8)
    place = next(place for place, token in enumerate(whole) if token != whole[0])
    declare(net, tokenizer, whole[place])
    for most in (8, place + 1):  # place + 1: its end is the last token that it may have
        assert generated(adapter(net, tokenizer, max_new_tokens=most, end_token=False)) == whole[:place]
        answer = generated(adapter(net, tokenizer, max_new_tokens=most))
        assert (answer[:-1], len(answer)) == (whole[:place], place + 1)
    found = adapter(net, tokenizer, max_new_tokens=8).bind(Asked())[WHOLE].values(EVERYTHING)
    assert near(found, [own_mean_logit(net, adapter(net), answer)], FLOAT32_TOLERANCE)


def test_answer_that_ends_at_once_is_a_step_or_refused():
    net, tokenizer = build_net(), build_tokenizer()
    (first,) = greedy(net, adapter(net).tokenize(TEXT).ids, 1)
    declared_by_the_tokenizer(net, tokenizer, first)
    with refused(f"the model's answer to '{TEXT}' is empty, so there is nothing to explain.*set model.end_token=true"):
        adapter(net, tokenizer, end_token=False).bind(Asked())
    assert generated(adapter(net, tokenizer)) == (first,)


def test_raw_answer_of_a_model_that_declares_no_end_has_the_most_tokens_also_where_a_turn_would_end():
    net, tokenizer = build_net(), build_tokenizer()
    tokenizer.eos_token = None
    model = adapter(net, tokenizer, chat=False)
    ids = model.tokenize(TEXT).ids
    said_as_the_turn_ends(net, None, greedy(net, ids, 1)[0])
    expected = greedy(net, ids, 4)
    assert expected[0] == VOCABULARY[TURN_END]
    assert generated(model) == expected


def test_prompt_that_leaves_no_room_for_the_answer_is_refused():
    length = len(build().tokenize(TEXT).ids)
    fitting, longer = (adapter(build_net(), max_new_tokens=CONTEXT - length + more) for more in (0, 1))
    assert len(generated(fitting)) == CONTEXT - length
    with refused(f"{length} tokens and an answer of {CONTEXT - length + 1} .* context of {CONTEXT}: shorten the promp"):
        generated(longer)


def test_models_and_methods_that_are_not_possible_are_refused():
    with refused("final_logit_softcapping"):
        adapter(build_net(final_logit_softcapping=30.0))
    with refused("needs second derivatives"):
        IntegratedHessians(2).explain(bound_of(build()))


def test_a_prompt_that_cannot_be_asked_does_not_spoil_the_others():
    first, bad, second = build().prepare([Asked(), Asked("food"), Asked("the soup")])
    with refused("has fewer than two tokens that can be players"):
        raise bad.error
    assert (first[WHOLE].players, second[WHOLE].players) == (tuple(TEXT.split()), ("the", "soup"))


def test_an_answer_that_does_not_fit_the_device_is_refused(monkeypatch):
    model = build()
    recommended = model.net.generation_config
    monkeypatch.setattr(model.net, "generate", mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.")))
    with refused(r"an answer of 4 tokens does not fit the device's memory: lower model\.max_new_tokens"):
        model.bind(Asked())
    assert model.net.generation_config is recommended


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


@each_family
def test_checkpoint_is_the_model_that_was_saved_and_in_half_precision_its_weights_alone_are(family, tmp_path):
    coalitions = all_coalitions(5)[::7]
    expected = bound_of(build(family)).values(coalitions)
    model = load(save(build_net(family), tmp_path), attention="eager")
    assert type(model.net) is type(build_net(family))
    assert (model.device, model.net.dtype, model.net.config._attn_implementation) == ("cpu", torch.float32, "eager")
    assert near(bound_of(model).values(coalitions), expected, FLOAT32_TOLERANCE)
    half = load(tmp_path, dtype="bfloat16")
    assert half.net.dtype == torch.bfloat16
    bound = bound_of(half)
    for found in (bound.x, bound.baseline, bound.values(coalitions), bound.gradients(bound.x[None])):
        assert found.dtype == torch.float32
    assert near(bound.values(coalitions), expected, 0.1)


@each_method
def test_attributions_of_weights_in_half_precision_are_close(method):
    half, full = (bound_of(build(dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    assert near(method.explain(half).attribution, method.explain(full).attribution, 0.2)


def test_logits_are_computed_in_float32_from_the_hidden_states_of_a_model_in_half_precision():
    model = build(dtype=torch.bfloat16)
    bound, hidden = bound_of(model), []
    model.net.model.register_forward_hook(lambda net, given, output: hidden.append(output.last_hidden_state))
    found = bound.values(EVERYTHING)
    last = hidden[-1][0, -len(ANSWER) :].double()
    expected = (last * model.net.lm_head.weight[list(ANSWER)].double()).sum(1).mean()
    assert near(found, [expected], FLOAT32_TOLERANCE)


def conditional_net(tied=False):
    """A small Gemma 3 with a vision tower."""
    text = Gemma3TextConfig(**SHAPE | SLIDING | {"query_pre_attn_scalar": 8, "tie_word_embeddings": tied})
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, tie_word_embeddings=tied)
    return randomise(Gemma3ForConditionalGeneration(config), seed=2).eval()


MODULE_NAMES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
"""What weights' names start with on the hub, and in the module."""


def rename(weights):
    """The weights as in the module."""
    for key in list(weights):
        start = next(start for start in MODULE_NAMES if key.startswith(start))
        weights[MODULE_NAMES[start] + key.removeprefix(start)] = weights.pop(key)


@pytest.mark.parametrize(("tied", "as_module"), [(True, False), (False, False), (True, True)])
def test_of_a_gemma_with_a_vision_tower_the_text_part_is_explained(as_module, tied, tmp_path):
    net = conditional_net(tied)
    save(net, tmp_path)
    if as_module:
        edit_weights(tmp_path / "model.safetensors", rename)
    model = load(tmp_path)
    assert type(model.net) is Gemma3ForCausalLM
    assert not [name for name, _ in model.net.named_modules() if "vision" in name or "multi_modal" in name]
    assert {tensor.device.type for tensor in (*model.net.parameters(), *model.net.buffers())} == {"cpu"}
    coalitions = all_coalitions(5)[::7]
    expected = [own_mean_logit(net, model, present=coalition) for coalition in coalitions]
    assert near(bound_of(model).values(coalitions), expected, FLOAT32_TOLERANCE)
    ends = {VOCABULARY[END], VOCABULARY[TURN_END]}
    assert generated(model) == greedy(net, model.tokenize(TEXT).ids, 4, ends)


def test_gemma_with_a_vision_tower_keeps_the_ends_of_its_answers(tmp_path):
    net = conditional_net()
    whole = greedy(net, build().tokenize(TEXT).ids, 8)
    end = next(token for token in whole if token != whole[0])
    net.generation_config = GenerationConfig(eos_token_id=[VOCABULARY[END], end])
    save(net, tmp_path)
    assert generated(load(tmp_path, max_new_tokens=8)) == whole[: whole.index(end) + 1]


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda method: type(method).__name__)
def test_relevance_of_a_gemma_with_a_vision_tower_is_that_of_its_text_part(method, tmp_path):
    net = conditional_net()
    text = Gemma3ForCausalLM(net.config.text_config)
    text.model.load_state_dict(net.model.language_model.state_dict())
    text.lm_head.load_state_dict(net.lm_head.state_dict())
    expected = method.explain(bound_of(adapter(text))).attribution
    save(net, tmp_path)
    assert near(method.explain(bound_of(load(tmp_path))).attribution, expected, FLOAT32_TOLERANCE)
