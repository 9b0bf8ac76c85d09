"""Time ALTI-Logit against the forward pass that it needs, and against AttnLRP, on a model with random weights.

    python -m scripts.bench_alti_logit [--shape smollm2_135m] [--players 24] [--steps 8] [--coalitions 8] [--device cpu]

Writes outputs/bench/alti_logit.json. All coalitions go through the model in one batch, in float32, after a first call.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from metagame.attributions.alti_logit import ALTILogit
from metagame.attributions.attnlrp import AttnLRP
from metagame.models.language_model import LanguageModel
from scripts.bench_language import prompt_with
from scripts.measure import report, timed
from scripts.train_language import build_tokenizer

SHAPES = {
    "smollm2_135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49_152,
    },
    "llama_1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256,
    },
}  # fmt: skip
REPEATS = 5


def random_llama(shape: str, device: str, attention: str, tokens_per_batch: int) -> LanguageModel:
    """A Llama with random weights of a real shape, in float32; its tokenizer knows the words of reviews."""
    config = LlamaConfig(**SHAPES[shape], attn_implementation=attention)
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        net = LlamaForCausalLM(config)
    return LanguageModel(net, build_tokenizer(), "random", chat=True, tokens_per_batch=tokens_per_batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2_135m")
    parser.add_argument("--players", type=int, default=24)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--coalitions", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    model = random_llama(arguments.shape, arguments.device, "eager", tokens_per_batch=1 << 20)
    prompt = prompt_with(model, arguments.players)
    bound = model.bind_answer(prompt, tuple(range(10, 10 + arguments.steps)))
    coalitions = np.random.default_rng(0).random((arguments.coalitions, bound.n_players)) < 0.5

    def seconds(function) -> float:
        """The fastest of some calls, each up to numbers on the CPU."""
        function()
        return min(timed(function)[0] for _ in range(REPEATS))

    forward = seconds(lambda: bound.values(coalitions).cpu())
    alti = seconds(lambda: ALTILogit().game(bound)(coalitions))
    lrp = seconds(lambda: AttnLRP().game(bound)(coalitions))
    tokens = len(prompt.ids) - prompt.positions[0] + arguments.steps - 1
    size = f"{arguments.coalitions} sequences of {tokens} tokens"
    report(
        {
            "what": f"ALTI-Logit, random {arguments.shape}, {size}, float32, {arguments.device}",
            "ratio": alti / forward,
            "ratio_attnlrp": lrp / forward,
            "seconds": {"forward": forward, "ALTI-Logit": alti, "AttnLRP": lrp},
            "threads": torch.get_num_threads(),
            "units": {
                "ratio": "time of ALTI-Logit / of a forward pass alone",
                "ratio_attnlrp": "time of AttnLRP, a forward and a backward pass, / of a forward pass alone",
            },
        },
        "alti_logit",
    )


if __name__ == "__main__":
    main()
