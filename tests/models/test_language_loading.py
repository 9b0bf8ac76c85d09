import re
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GenerationConfig,
)

from metagame.games import all_coalitions
from metagame.models.language_model import LanguageModel
from scripts.train_language import END, TURN_END, VOCABULARY, build_tokenizer
from tests.tiny.jobs import ROOT
from tests.tiny.language import (
    ANSWER,
    EVERYTHING,
    FAMILIES,
    FAMILIES_AND_METHODS,
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
    masked_ids,
    near,
    own_mean_logit,
    randomise,
    save,
)
from tests.tiny.vision_language import refused

each_family = pytest.mark.parametrize("family", FAMILIES)
each_family_with_its_methods = pytest.mark.parametrize(
    ("family", "method"), FAMILIES_AND_METHODS, ids=lambda part: part if isinstance(part, str) else type(part).__name__
)


@cache
def checkpoint(folder, family="gemma3", seed=0):
    return str(save(build_net(family, seed=seed), folder / f"{family}{seed}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@each_family
def test_checkpoint_of_a_folder_is_the_model_that_was_saved(family, folder):
    model = LanguageModel.load(checkpoint(folder, family), device="cpu", chat=True, max_new_tokens=4)
    assert type(model.net) is type(build_net(family))
    assert (model.device, model.net.dtype) == ("cpu", torch.float32)
    assert near(bound_of(model).values(EVERYTHING), bound_of(build(family)).values(EVERYTHING), 1e-6)


def test_revision_is_a_hash_of_the_weights(folder):
    one, same, other = (
        LanguageModel.load(checkpoint(folder, seed=seed), device="cpu", chat=False).revision for seed in (0, 0, 1)
    )
    assert re.fullmatch("[0-9a-f]{16}", one)
    assert one == same != other


def test_attention_implementation_can_be_chosen(folder):
    model = LanguageModel.load(checkpoint(folder), device="cpu", attention="eager", chat=False)
    assert model.net.config._attn_implementation == "eager"


@each_family_with_its_methods
def test_half_precision_is_of_the_weights_alone(method, family, folder):
    path = checkpoint(folder, family)
    half, full = (LanguageModel.load(path, device="cpu", dtype=d, chat=True) for d in ("bfloat16", "float32"))
    assert half.net.dtype == torch.bfloat16
    bound, expected = bound_of(half), bound_of(full)
    coalitions = all_coalitions(5)[::7]
    assert bound.x.dtype == bound.baseline.dtype == torch.float32
    assert bound.values(coalitions).dtype == torch.float32
    assert bound.gradients(bound.x[None]).dtype == torch.float32
    assert near(bound.values(coalitions), expected.values(coalitions), 0.1)
    assert near(method.explain(bound).attribution, method.explain(expected).attribution, 0.2)


def test_logits_are_computed_in_float32_from_the_hidden_states_of_a_model_in_half_precision():
    model = build(dtype=torch.bfloat16)
    bound = bound_of(model)
    ids = masked_ids(model, TEXT, ANSWER, [True] * 5)
    hidden = model.net.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -len(ANSWER) :].double()
    expected = (hidden * model.net.lm_head.weight[list(ANSWER)].double()).sum(1).mean()
    assert near(bound.values(EVERYTHING), [expected], FLOAT32_TOLERANCE)


def conditional_net(tied):
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


def rename(path, names):
    """Rewrite the weights of a checkpoint under other names, by what these start with; the new ones."""
    file = path / "model.safetensors"
    renamed = {}
    for key, value in load_file(file).items():
        start = next((start for start in names if key.startswith(start)), "")
        renamed[names.get(start, "") + key.removeprefix(start)] = value
    save_file(renamed, file, metadata={"format": "pt"})
    return set(renamed)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("names", "first"),
    [({}, "language_model.model."), (MODULE_NAMES, "model.language_model.")],
    ids=["as on the hub", "as in the module"],
)
def test_of_a_gemma_with_a_vision_tower_the_text_part_is_explained(names, first, tied, tmp_path):
    net = conditional_net(tied)
    save(net, tmp_path)
    names = rename(tmp_path, names)
    assert f"{first}embed_tokens.weight" in names
    assert any("vision_tower." in name for name in names)
    model = LanguageModel.load(str(tmp_path), device="cpu", chat=True, max_new_tokens=4)
    assert type(model.net) is Gemma3ForCausalLM
    assert not [name for name, _ in model.net.named_modules() if "vision" in name or "multi_modal" in name]
    assert {tensor.device.type for tensor in (*model.net.parameters(), *model.net.buffers())} == {"cpu"}
    for coalition in all_coalitions(5)[::7]:
        expected = own_mean_logit(net, model, present=coalition)
        assert near(bound_of(model).values(coalition[None]), [expected], FLOAT32_TOLERANCE)
    prompt = model.tokenize(TEXT)
    assert model.generate(prompt) == greedy(net, prompt.ids, 4, ends={VOCABULARY[END], VOCABULARY[TURN_END]})


def test_gemma_with_a_vision_tower_keeps_the_ends_of_its_answers(tmp_path):
    net = conditional_net(tied=False)
    whole = greedy(net, build().tokenize(TEXT).ids, 8)
    end = next(token for token in whole if token != whole[0])
    net.generation_config = GenerationConfig(eos_token_id=[VOCABULARY[END], end])
    save(net, tmp_path)
    model = LanguageModel.load(str(tmp_path), device="cpu", chat=True, max_new_tokens=8)
    assert model.generate(model.tokenize(TEXT)) == whole[: whole.index(end)]


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda method: type(method).__name__)
def test_relevance_of_a_gemma_with_a_vision_tower_is_that_of_its_text_part(method, tmp_path):
    net = conditional_net(tied=False)
    text = Gemma3ForCausalLM(net.config.text_config)
    text.model.load_state_dict(net.model.language_model.state_dict())
    text.lm_head.load_state_dict(net.lm_head.state_dict())
    expected = method.explain(bound_of(adapter(text))).attribution
    save(net, tmp_path)
    model = LanguageModel.load(str(tmp_path), device="cpu", chat=True)
    assert near(method.explain(bound_of(model)).attribution, expected, FLOAT32_TOLERANCE)


def test_checkpoint_of_another_architecture_is_refused():
    with refused("is of architecture 'clip': this adapter is for 'gemma3_text' or 'gemma3' or 'llama'"):
        LanguageModel.load(str(ROOT / "data/tiny/clip"), chat=False)


@pytest.mark.parametrize("name", ["nobody/nothing", "/nowhere/to/be/found", "./no_such_folder"])
def test_absent_checkpoint_is_refused(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)
    with refused(f"model\\.checkpoint='{name}' is no folder here"):
        LanguageModel.load(name, chat=False)


def test_folder_without_a_model_is_refused(tmp_path):
    with refused("cannot be loaded from that folder"):
        LanguageModel.load(str(tmp_path), chat=False)


@pytest.mark.parametrize("dtype", ["nonsense", "nn", "float16", None])
def test_dtype_that_is_none_is_refused(dtype, folder):
    with refused(f"model\\.dtype={dtype!r}: give one of float32, bfloat16, float64"):
        LanguageModel.load(checkpoint(folder), dtype=dtype, chat=False)


def test_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    save(build_net(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with refused(r"lacks 1 of its weights, such as model\.norm\.weight"):
        LanguageModel.load(str(tmp_path), chat=False)


def test_settings_are_checked_before_the_weights_are_read(folder, monkeypatch):
    monkeypatch.setattr(Gemma3ForCausalLM, "from_pretrained", None)
    for settings, reason in (
        ({"chat": True, "max_new_tokens": 0}, r"max_new_tokens=0"),
        ({"chat": True, "tokens_per_batch": -1}, r"tokens_per_batch=-1"),
        ({"chat": True, "absent_token": "nothing"}, r"absent_token='nothing'"),
        ({"chat": "maybe"}, r"chat='maybe'"),
        ({"chat": True, "template_settings": [1]}, r"template_settings=\[1\]"),
    ):
        with refused(reason):
            LanguageModel.load(checkpoint(folder), device="cpu", **settings)


def test_a_template_is_asked_for_before_the_weights_are_read(tmp_path, monkeypatch):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    save(build_net(), tmp_path, tokenizer)
    monkeypatch.setattr(Gemma3ForCausalLM, "from_pretrained", None)
    with refused(r"set model\.chat=false"):
        LanguageModel.load(str(tmp_path), device="cpu", chat=True)


def test_weights_that_do_not_fit_the_device_are_refused(folder, monkeypatch):
    def move(net, device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Gemma3ForCausalLM, "to", move)
    with refused("does not fit the memory of cpu: choose a smaller model"):
        LanguageModel.load(checkpoint(folder), device="cpu", chat=True)
