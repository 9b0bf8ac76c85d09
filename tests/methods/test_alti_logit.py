"""ALTI-Logit of language models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagame.attributions.alti_logit import ALTILogit, logit_parts
from metagame.attributions.leave_one_out import LeaveOneOut
from metagame.models.decoder_views import VIEWS
from metagame.models.language_model import CLASSES
from tests.reference.alti_logit import alti_logit
from tests.tiny.functions import smooth_model
from tests.tiny.language import ANSWER, FAMILIES, TEXT, bound_of, build, float64_throughout, masked_ids, near
from tests.tiny.vision_language import refused

PRESENT = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
each_family = pytest.mark.parametrize("family", FAMILIES)


def eager(family="gemma3", dtype=torch.float64, **config):
    return build(family, dtype, attn_implementation="eager", **config)


@each_family
def test_attribution_is_that_of_the_equations_token_by_token(family):
    with float64_throughout():
        model = eager(family)
        positions = list(model.tokenize(TEXT).positions)
        found = ALTILogit().game(bound_of(model))(PRESENT)
        for row, present in zip(found, PRESENT, strict=True):
            phi, _ = alti_logit(model.net, masked_ids(model, TEXT, ANSWER, present), ANSWER)
            assert near(row, phi[positions], 1e-6)  # the eager softmax of some families is in float32


@pytest.mark.parametrize(
    "config",
    [
        {"num_key_value_heads": 1},
        {"num_hidden_layers": 1, "layer_types": ["full_attention"]},
        {"num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ],
    ids=lambda config: " ".join(config),
)
def test_attribution_of_other_shapes_is_that_of_the_equations(config):
    with float64_throughout():
        model = eager(**config)
        phi, added = alti_logit(model.net, masked_ids(model, TEXT, ANSWER, [True] * 5), ANSWER)
        bound = bound_of(model)
        assert near(ALTILogit().explain(bound).attribution, phi[list(model.tokenize(TEXT).positions)], 1e-6)
        assert near(logit_parts(bound, bound.x[None]).attention[0], added, 1e-6)


@each_family
@settings(max_examples=3)
@given(seed=st.integers(0, 9), present=st.lists(st.booleans(), min_size=5, max_size=5))
def test_embedding_attention_feed_forward_and_biases_are_the_logit(family, seed, present):
    with float64_throughout():
        bound = bound_of(eager(family, seed=seed))
        inputs = bound.masked(np.array([present]))
        parts = logit_parts(bound, inputs)
        total = parts.embedding + parts.attention.sum(1) + parts.feedforward.sum(1) + parts.constant
        f = bound.outputs(inputs).detach()
        size = max(float(each.abs().max()) for each in (f, parts.embedding, parts.attention, parts.feedforward))
        assert float((total - f).abs().max()) < 1e-5 * size
        assert bool(parts.constant.any()) == (family == "gpt2")


def test_relevance_of_all_tokens_is_what_attention_adds_where_none_is_cached():
    model = eager()
    bound = model.bind_answer(replace(model.tokenize(TEXT), positions=tuple(range(5))), ANSWER)
    parts = logit_parts(bound, bound.x[None])
    assert near(parts.relevance.sum(1), parts.attention.sum(1), 1e-5)


def test_the_models_that_are_loaded_are_those_that_can_be_taken_apart():
    text = set(CLASSES.values()) - {CLASSES["gemma3"]}  # of which the text part is kept
    assert set(VIEWS) == text


def test_the_model_is_as_before_and_coalitions_do_not_depend_on_each_other():
    model = eager(dtype=torch.float32)
    bound, before = bound_of(model), LeaveOneOut().explain(bound_of(model)).attribution
    together = ALTILogit().game(bound)(PRESENT)
    alone = np.concatenate([ALTILogit().game(bound)(row[None]) for row in PRESENT])
    assert near(together, alone, 1e-5)
    assert np.array_equal(LeaveOneOut().explain(bound).attribution, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.net.modules())


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "qwen2"])
def test_a_model_in_bfloat16_has_nearly_the_same_attribution(family):
    rounded, exact = (ALTILogit().explain(bound_of(eager(family, dtype))) for dtype in (torch.bfloat16, torch.float32))
    assert near(rounded.attribution, exact.attribution, 0.05)


def test_what_it_cannot_take_is_refused():
    with refused("ALTI-Logit supports language models of .*, but this model is a plain function"):
        ALTILogit().game(smooth_model(3))
    with refused("by 'sdpa', .*: set model.attention=eager"):
        ALTILogit().explain(bound_of(build(attn_implementation="sdpa")))
