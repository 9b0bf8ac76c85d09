"""Whatever keeps a checkpoint from being loaded is said in one sentence, whichever adapter is to load it."""

import logging
import re
import sys
from functools import partial
from types import ModuleType
from unittest import mock

import pytest
import requests
import torch
from huggingface_hub.errors import GatedRepoError
from transformers import BertConfig, CLIPConfig, Gemma3ForCausalLM, Siglip2Config, SiglipConfig

from metagame.models.clip import CLIP
from metagame.models.language_model import LanguageModel
from metagame.models.open_clip import OpenCLIP
from metagame.models.pretrained import load_pretrained, load_tokenizer
from metagame.models.siglip2 import SigLIP2
from scripts.train_language import build_tokenizer
from tests.tiny import language
from tests.tiny.checkpoints import LOADERS, MAKERS, edit_weights, without_network
from tests.tiny.vision_language import refused

load_language_model = partial(LanguageModel.load, device="cpu")
of_the_hub = pytest.mark.parametrize("kind", ["clip", "siglip2", "gemma3", "flux"])


@of_the_hub
def test_checkpoint_that_is_nowhere_is_told_with_how_to_get_it_in_one_sentence_alone(kind, monkeypatch, caplog):
    without_network(monkeypatch)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    with refused("'nobody/nothing' is not a local.* HF_HUB_OFFLINE is set.*'hf download nobody/nothing --revision v1'"):
        LOADERS[kind]("nobody/nothing", "v1")
    with refused(r"model\.checkpoint='/nowhere/to/be/found' is neither a local folder"):
        LOADERS[kind]("/nowhere/to/be/found")
    assert caplog.messages == []


@of_the_hub
def test_gated_checkpoint_names_its_page(kind, monkeypatch):
    def gated(*args, **settings):
        error = GatedRepoError("401 Client Error", response=requests.Response())
        raise OSError("You are trying to access a gated repo.\nMake sure to request access.") from error

    monkeypatch.setattr("metagame.models.pretrained.AutoConfig.from_pretrained", gated)
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.model_info", gated)
    with refused(r"model\.checkpoint='org/gated' is gated: .*https://huggingface\.co/org/gated, then log in"):
        LOADERS[kind]("org/gated")


@pytest.mark.parametrize("kind", ["clip", "siglip2", "gemma3"])
def test_folder_whose_files_are_missing_or_broken_is_named(kind, tmp_path):
    def load(reason=r"cannot be loaded from that folder \(.+\): save the model there"):
        with refused(rf"model\.checkpoint='{tmp_path}' {reason}"):
            LOADERS[kind](str(tmp_path))

    load()
    MAKERS[kind](tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    load()
    (tmp_path / "model.safetensors").write_bytes(weights)
    lost = {"gemma3": "model.norm.weight"}.get(kind, "vision_model.encoder.layers.0.layer_norm1.weight")
    edit_weights(tmp_path / "model.safetensors", lambda weights: weights.pop(lost))
    load(f"lacks 1 of its weights, such as {re.escape(lost)}: fetch or save it again")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    (tmp_path / "model.safetensors").write_bytes(weights)
    load("is a folder without a tokenizer: .* tokenizer.json")


def test_a_gguf_file_that_is_not_there_or_of_another_architecture_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with refused(r"model\.gguf needs gguf, which is not installed"):
        load_language_model(str(tmp_path), gguf="a.gguf", chat=True)
    monkeypatch.setitem(sys.modules, "gguf", ModuleType("gguf"))
    with refused(r"model\.gguf='a\.gguf' is not a file in model\.checkpoint='.*'"):
        load_language_model(str(tmp_path), gguf="a.gguf", chat=True)
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr("metagame.models.pretrained.AutoConfig.from_pretrained", lambda *names, **named: BertConfig())
    with refused(r"model\.gguf='a\.gguf' has the architecture 'bert', but this adapter supports 'gemma3_text' or"):
        load_language_model(str(tmp_path), gguf="a.gguf", chat=True)


def test_a_cpu_that_emulates_bfloat16_takes_float32_and_says_so(tmp_path, monkeypatch, caplog):
    language.save(language.build_net(), tmp_path)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    full = load_language_model(str(tmp_path), chat=True)
    assert not caplog.messages
    half = load_language_model(str(tmp_path), dtype="bfloat16", chat=True)
    assert half.net.dtype == torch.float32
    assert half.revision == f"{full.revision} in float32"
    assert "this CPU does not support bfloat16: the model is loaded in float32" in caplog.text


@pytest.mark.parametrize(("architecture", "said"), [("gemma3_text", False), (None, False), ("mistral", True)])
def test_a_warning_about_mistrals_tokenizers_is_given_for_mistral_alone(architecture, said, monkeypatch, caplog):
    logger = logging.getLogger("transformers.tokenization_utils_base")  # it warns of large vocabularies in any folder

    def warn(checkpoint, **settings):
        logger.warning("The tokenizer you are loading from %r with an incorrect regex pattern: ...", checkpoint)

    caplog.set_level(logging.WARNING, logger.name)
    monkeypatch.setattr("metagame.models.pretrained.AutoTokenizer.from_pretrained", warn)
    with mock.patch.object(logging.getLogger("transformers"), "propagate", True):
        load_tokenizer("a/b", None, architecture=architecture)
    assert ("incorrect regex pattern" in caplog.text) == said


@pytest.mark.parametrize(
    ("load", "make", "name"),
    [
        (CLIP.load, SiglipConfig().save_pretrained, "siglip"),
        (SigLIP2.load, Siglip2Config().save_pretrained, "siglip2"),
        (partial(LanguageModel.load, chat=False), CLIPConfig().save_pretrained, "clip"),
    ],
    ids=["siglip as clip", "naflex", "clip as a language model"],
)
def test_checkpoint_of_another_architecture_is_refused(load, make, name, tmp_path):
    make(tmp_path)
    with refused(rf"model\.checkpoint='.*' has the architecture '{name}', but this adapter supports .*: choose"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize(("said", "told"), [("weights\nmore", ".*"), (99 * "weights ", r".{,220} \.\.\.")])
def test_a_loader_that_breaks_otherwise_is_reported_with_its_reason_of_which_a_long_one_is_cut(said, told):
    with refused(rf"model\.checkpoint='org/name' cannot be loaded \(KeyError: {told}\)"):
        load_pretrained(mock.Mock(side_effect=KeyError(said)), "org/name", None)


def test_revision_is_passed_on_to_the_hub_and_not_to_a_folder(tmp_path):
    load = mock.Mock()
    for checkpoint in ("org/name", str(tmp_path)):
        load_pretrained(load, checkpoint, "main", dtype=1)
    assert load.call_args_list == [
        mock.call("org/name", revision="main", dtype=1),
        mock.call(str(tmp_path), local_files_only=True, dtype=1),
    ]


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return str(language.save(language.build_net(), tmp_path_factory.mktemp("gemma3")))


def test_weights_that_do_not_fit_the_device_are_refused(gemma3, monkeypatch):
    monkeypatch.setattr(Gemma3ForCausalLM, "to", mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.")))
    with refused("does not fit the memory of cpu: choose a smaller model"):
        load_language_model(gemma3, chat=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("tokens_per_batch", -1),
        ("tokens_per_batch", 0),
        ("tokens_per_batch", 2.5),
        ("absent_token", "nothing"),
        ("chat", "maybe"),
        ("end_token", 1),
        ("template_settings", (1,)),
        ("dtype", "float16"),
        ("dtype", None),
    ],
)
def test_settings_of_a_language_model_are_checked_before_its_weights_are_read(name, value, gemma3, monkeypatch):
    monkeypatch.setattr(Gemma3ForCausalLM, "from_pretrained", None)
    with refused(re.escape(f"model.{name}={value!r}")):
        load_language_model(gemma3, **{"chat": True, name: value})


def test_a_template_is_asked_for_before_the_weights_are_read(tmp_path, monkeypatch):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    language.save(language.build_net(), tmp_path, tokenizer)
    monkeypatch.setattr(Gemma3ForCausalLM, "from_pretrained", None)
    with refused(r"set model\.chat=false"):
        load_language_model(str(tmp_path), chat=True)


@pytest.mark.parametrize(
    ("architecture", "pretrained"), [("ViT-B-16", "nobody"), ("local-dir:/nowhere", None), ("hf-hub:nobody/none", None)]
)
def test_open_clip_names_that_are_unknown_are_refused(architecture, pretrained, monkeypatch):
    without_network(monkeypatch)
    with refused(r"model\.architecture=.* cannot be loaded .*open_clip\.list_pretrained\(\)"):
        OpenCLIP.load(architecture, pretrained, device="cpu")
