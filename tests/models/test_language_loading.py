import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GenerationConfig,
)

from metagame.games import all_coalitions
from metagame.models.language_model import LanguageModel
from scripts.train_language import END, TURN_END, VOCABULARY
from tests.tiny.checkpoints import edit_weights
from tests.tiny.language import (
    ANSWER,
    EVERYTHING,
    FAMILIES,
    FLOAT32_TOLERANCE,
    METHODS,
    SHAPE,
    SLIDING,
    TEXT,
    adapter,
    bound_of,
    build,
    build_net,
    greedy,
    near,
    own_mean_logit,
    randomise,
    save,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_is_the_model_that_was_saved_and_in_half_precision_its_weights_alone_are(family, tmp_path):
    path, coalitions = str(save(build_net(family), tmp_path)), all_coalitions(5)[::7]
    expected = bound_of(build(family)).values(coalitions)
    model = LanguageModel.load(path, device="cpu", attention="eager", chat=True)
    assert type(model.net) is type(build_net(family))
    assert (model.device, model.net.dtype, model.net.config._attn_implementation) == ("cpu", torch.float32, "eager")
    assert near(bound_of(model).values(coalitions), expected, FLOAT32_TOLERANCE)
    half = LanguageModel.load(path, device="cpu", dtype="bfloat16", chat=True)
    assert half.net.dtype == torch.bfloat16
    bound = bound_of(half)
    for found in (bound.x, bound.baseline, bound.values(coalitions), bound.gradients(bound.x[None])):
        assert found.dtype == torch.float32
    assert near(bound.values(coalitions), expected, 0.1)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
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


def load(folder, **settings):
    return LanguageModel.load(str(folder), device="cpu", chat=True, **{"max_new_tokens": 4} | settings)


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


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("as_module", [False, True], ids=["named as on the hub", "named as in the module"])
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
    prompt = model.tokenize(TEXT)
    assert model.generate(prompt) == greedy(net, prompt.ids, 4, ends={VOCABULARY[END], VOCABULARY[TURN_END]})


def test_gemma_with_a_vision_tower_keeps_the_ends_of_its_answers(tmp_path):
    net = conditional_net()
    whole = greedy(net, build().tokenize(TEXT).ids, 8)
    end = next(token for token in whole if token != whole[0])
    net.generation_config = GenerationConfig(eos_token_id=[VOCABULARY[END], end])
    save(net, tmp_path)
    model = load(tmp_path, max_new_tokens=8)
    assert model.generate(model.tokenize(TEXT)) == whole[: whole.index(end) + 1]


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda method: type(method).__name__)
def test_relevance_of_a_gemma_with_a_vision_tower_is_that_of_its_text_part(method, tmp_path):
    net = conditional_net()
    text = Gemma3ForCausalLM(net.config.text_config)
    text.model.load_state_dict(net.model.language_model.state_dict())
    text.lm_head.load_state_dict(net.lm_head.state_dict())
    expected = method.explain(bound_of(adapter(text))).attribution
    save(net, tmp_path)
    assert near(method.explain(bound_of(load(tmp_path))).attribution, expected, FLOAT32_TOLERANCE)
