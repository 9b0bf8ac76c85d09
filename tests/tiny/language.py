"""Small language models with random weights of every family, their tokenizer, and prompts for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from metagame.attributions.attnlrp import CPLRP, AttnLRP
from metagame.attributions.gradients import GradientInput
from metagame.models.language_model import AnsweredPrompt, LanguageModel, Prompt
from scripts.train_language import END, PAD, START, TURN_END, TURN_START, UNKNOWN, VOCABULARY, build_tokenizer

CONTEXT, WINDOW = 64, 5
SPECIAL = [VOCABULARY[token] for token in (PAD, END, START, UNKNOWN, TURN_START, TURN_END)]
SHAPE = {
    "vocab_size": len(VOCABULARY), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT,
    "pad_token_id": None, "bos_token_id": VOCABULARY[START], "eos_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS = {
    "gemma3": {"query_pre_attn_scalar": 8, **SLIDING},
    "llama": {},
    "qwen2": {"use_sliding_window": True, **SLIDING},
    "qwen3": {},
    "gpt2": {"n_inner": 24},
    "mistral": {"sliding_window": 2 * WINDOW},
}
FAMILIES = tuple(CONFIGS)
TEXT = "the service and the soup"
ANSWER = tuple(VOCABULARY[word] for word in ("bad", "soup", "good"))
FLOAT32_TOLERANCE = 1e-5
EVERYTHING = np.ones((1, 5), bool)
METHODS = [GradientInput(), AttnLRP(), CPLRP()]


def build_net(family: str = "gemma3", dtype: torch.dtype = torch.float32, seed: int = 0, **config) -> PreTrainedModel:
    """A model of ``family`` whose answers hold no special token, since their logits are 0 and others are not."""
    model_type = {"gemma3": "gemma3_text"}.get(family, family)
    config = AutoConfig.for_model(model_type, **SHAPE | CONFIGS[family] | config)
    net = randomise(AutoModelForCausalLM.from_config(config), seed)
    if not net.config.tie_word_embeddings:
        with torch.no_grad():
            net.lm_head.weight[SPECIAL] = 0
    return net.eval().to(dtype)


def randomise(net: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Every weight drawn anew: matrices for a gain of about 1, norms around 1, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                of_norm = name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
                # Gemma's norms multiply by 1 + weight
                parameter.copy_((of_norm and net.config.model_type != "gemma3_text") + 0.2 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
    return net


def build(family: str = "gemma3", dtype: torch.dtype = torch.float32, seed: int = 0, **config) -> LanguageModel:
    """A small model that takes prompts in the chat template."""
    return adapter(build_net(family, dtype, seed, **config))


def adapter(net: PreTrainedModel, tokenizer=None, **settings) -> LanguageModel:
    settings = {"chat": True, "max_new_tokens": 4} | settings
    return LanguageModel(net, tokenizer or build_tokenizer(), "random", **settings)


@dataclass(frozen=True)
class Asked(Prompt):
    """A prompt."""

    text: str = TEXT
    id: str = "one"


def bound_of(model: LanguageModel, text: str = TEXT, answer: tuple[int, ...] = ANSWER) -> AnsweredPrompt:
    """The prompt with an answer that need not be the model's own."""
    return model.bind_answer(model.tokenize(text), answer)


def save(net: PreTrainedModel, folder: Path, tokenizer=None) -> Path:
    """A model and its tokenizer as a checkpoint in ``folder``."""
    net.save_pretrained(folder)
    (tokenizer or build_tokenizer()).save_pretrained(folder)
    return folder


def masked_ids(model: LanguageModel, text: str, answer: tuple[int, ...], present) -> list[int]:
    """Ids of prompt and answer, all but the answer's last, with the absent token in place of absent ones."""
    prompt = model.tokenize(text)
    absent = {place for place, here in zip(prompt.positions, present, strict=True) if not here}
    kept = [model.absent_id if place in absent else token for place, token in enumerate(prompt.ids)]
    return [*kept, *answer[:-1]]


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Within: what transformers and the adapter calculate in float32 whatever the weights are is float64."""
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def near(found, expected, tolerance: float) -> bool:
    """Equal shapes, and equal values up to ``tolerance`` times the largest."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    most = tolerance * np.abs(expected).max(initial=0)
    return found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=most)


def own_mean_logit(net, model, answer=ANSWER, present=(True,) * 5):
    """The mean logit of the answer's tokens as the net itself gives them for token ids."""
    ids = masked_ids(model, TEXT, answer, present)
    first = len(ids) - len(answer)
    with torch.no_grad():
        logits = net(input_ids=torch.tensor([ids])).logits[0]
    return float(np.mean([logits[first + step, token].item() for step, token in enumerate(answer)]))


def greedy(net, ids, count, ends=()):
    """Answers one token after the other, from the whole sequence each time."""
    answer = []
    while len(answer) < count:
        with torch.no_grad():
            logits = net(input_ids=torch.tensor([[*ids, *answer]]), use_cache=False).logits[0, -1]
        if int(logits.argmax()) in ends:
            break
        answer.append(int(logits.argmax()))
    return tuple(answer)
