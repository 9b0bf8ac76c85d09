"""Time Meta-AttnLRP against the paper's procedure: a pass for every step, target and coalition, then trees for each.

    python -m scripts.bench_language [--shape gemma3_1b] [--device cpu] [--dtype bfloat16] [--only small]

Writes outputs/bench/language.json. On the small Gemma 3 (12 players, an answer of 20 tokens) both run in full. On a
Gemma 3 of a real shape with random weights (30 players, 100 tokens) passes are counted, and 64 of each are timed.
"""

from __future__ import annotations

import argparse
import os
from itertools import islice

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from metagame.attributions.attnlrp import AttnLRP
from metagame.benchmarks.prompts import review_prompts
from metagame.estimators.configured import ConfiguredEstimator
from metagame.estimators.exact import endogenous_index
from metagame.games import all_coalitions
from metagame.models.language_model import LanguageModel
from metagame.models.prompt_tokens import PromptTokens
from scripts.compare_estimators import relative_error, small_gemma
from scripts.measure import matrix_rate, peak_memory, report, timed
from scripts.train_language import VOCABULARY, build_tokenizer
from tests.reference import generation

SMALL, LARGE = (12, 20), (30, 100)
"""Players and steps."""
TIMED_PASSES = 64
SHAPES = {
    "gemma3_1b": {
        "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512,
    },
    "gemma3_4b": {
        "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 1024,
    },
}  # fmt: skip


def random_gemma(shape: str, device: str, dtype: torch.dtype, tokens_per_batch: int) -> LanguageModel:
    """A Gemma 3 with random weights of a real shape; its tokenizer knows the words of reviews."""
    config = Gemma3TextConfig(**SHAPES[shape], vocab_size=262_144)
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        net = Gemma3ForCausalLM._from_config(config, dtype=dtype)
    return LanguageModel(net, build_tokenizer(), "random", chat=True, tokens_per_batch=tokens_per_batch)


def forced_answer(model: LanguageModel, prompt: PromptTokens, n_steps: int) -> tuple[int, ...]:
    """Greedy, with no end."""
    ids = torch.tensor([prompt.ids], device=model.device)
    found = model.net.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=n_steps, max_new_tokens=n_steps)
    return tuple(found[0, len(prompt.ids) :].tolist())


def prompt_with(model: LanguageModel, n: int) -> PromptTokens:
    """Of a held-out review with n players, or of words of the vocabulary where that is too many."""
    fitting = review_prompts(1, n, n, seed=3) if n <= 20 else []
    text = fitting[0].text if fitting else " ".join(islice((word for word in VOCABULARY if word.isalpha()), 2, n + 2))
    return model.tokenize(text)


def bench_small() -> dict:
    """Both procedures in full on the small Gemma 3."""
    n, n_steps = SMALL
    model = small_gemma()
    prompt = prompt_with(model, n)
    answer = forced_answer(model, prompt, n_steps)
    bound = model.bind_answer(prompt, answer)
    metagame = AttnLRP().metagame(ConfiguredEstimator("auto", budget=2 * generation.n_coalitions(n)))
    metagame.explain(bound)
    seconds, explanation = timed(lambda: metagame.explain(bound))
    ours = explanation.meta
    game_seconds, table = timed(lambda: AttnLRP().game(bound)(all_coalitions(n)))
    exact = endogenous_index(table)

    def relevance(step: int, coalitions: np.ndarray) -> np.ndarray:
        return generation.step_relevance(model, AttnLRP(), prompt, answer, step, coalitions)

    reference_seconds, reference = timed(lambda: generation.meta_attributions(relevance, n, n_steps, seed=0))
    return {
        "ratio": generation.n_passes(n, n_steps) / ours.n_evaluations,
        "ratio_wall_clock": reference_seconds / seconds,
        "error": relative_error(ours.values, exact),
        "error_of_the_paper": relative_error(reference, exact),
        "passes": {"ours": ours.n_evaluations, "paper": generation.n_passes(n, n_steps)},
        "seconds": {
            f"ours, n = {n}, T = {n_steps}": seconds,
            "the paper's procedure": reference_seconds,
            "all 2^n coalitions, our passes": game_seconds,
        },
    }


def bench_large(model: LanguageModel, shape: str) -> dict:
    """Count the passes of both, and time some of each."""
    n, n_steps = LARGE
    prompt = prompt_with(model, n)
    answer = tuple(np.random.default_rng(0).integers(10, len(VOCABULARY), n_steps).tolist())
    bound = model.bind_answer(prompt, answer)
    rng = np.random.default_rng(0)
    coalitions = rng.random((TIMED_PASSES, n)) < 0.5
    game = AttnLRP().game(bound)
    tokens = len(prompt.ids) + n_steps - 1
    rows = min(TIMED_PASSES, max(1, model.batches.budget // tokens))
    steps = np.linspace(0, n_steps - 1, max(8, TIMED_PASSES // rows)).round().astype(int)

    def paper_passes(steps: np.ndarray) -> None:
        """As many coalitions at once as ours."""
        for step in steps:
            generation.step_relevance(model, AttnLRP(), prompt, answer, int(step), coalitions[:rows])

    game(coalitions[:rows])
    paper_passes(steps[-1:])
    on_gpu = model.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, _ = timed(lambda: game(coalitions))
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else peak_memory()
    reference_seconds, _ = timed(lambda: paper_passes(steps))
    reference_seconds *= TIMED_PASSES / (rows * len(steps))
    passes, paper = 2 * generation.n_coalitions(n), generation.n_passes(n, n_steps)
    weights = sum(p.numel() for name, p in model.net.named_parameters() if "embed" not in name and "head" not in name)
    head = model.net.lm_head.weight.numel()
    rate = 4 * (weights * tokens + head * n_steps) * TIMED_PASSES / seconds
    return {
        "ratio_large": paper / passes,
        "ratio_large_wall_clock": (reference_seconds * paper) / (seconds * passes),
        "passes_per_second": TIMED_PASSES / seconds,
        "teraflops": rate / 1e12,
        "share_of_matrix_rate": rate / matrix_rate(model.device, model.net.dtype),
        "memory": memory,
        "passes_large": {"ours": passes, "paper": paper},
        "seconds": {
            f"{TIMED_PASSES} of our passes, {shape}, n = {n}, T = {n_steps}": seconds,
            f"{TIMED_PASSES} of the paper's": reference_seconds,
            "all of ours, extrapolated, without fits": seconds * passes / TIMED_PASSES,
            "all of the paper's, extrapolated, without trees": reference_seconds * paper / TIMED_PASSES,
        },
    }


UNITS = {
    "ratio": "passes of the paper's procedure / ours, small Gemma 3, 12 players, 20 steps",
    "ratio_wall_clock": "the same in time, fits included, both in full",
    "error": "of ours, relative to the exact matrix; one prompt, its answer forced past its end",
    "error_of_the_paper": "of the paper's procedure",
    "ratio_large": "passes of the paper's procedure / ours, 30 players, 100 steps",
    "ratio_large_wall_clock": "the same in time, extrapolated from 64 passes of each, without fits",
    "passes_per_second": "forward and backward passes of a whole prompt and answer, random Gemma 3",
    "teraflops": "10^12 operations a second in matrices (4 for each weight and token, and of the head for each step)",
    "share_of_matrix_rate": "that / the same of a product of large matrices",
    "memory": "GiB, peak of the device in our passes, or of the whole process on a CPU",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gemma3_1b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--tokens-per-batch", type=int, default=1024)
    parser.add_argument("--only", choices=("small", "large"), help="one of the two models")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    found = []
    if arguments.only != "large":
        torch.set_num_threads(1)  # tensors of the small model are small
        found.append(bench_small())
        torch.set_num_threads(threads)
    if arguments.only != "small":
        dtype = getattr(torch, arguments.dtype)
        model = random_gemma(arguments.shape, arguments.device, dtype, arguments.tokens_per_batch)
        found.append(bench_large(model, arguments.shape))
    result = {name: value for each in found for name, value in each.items()}
    result |= {
        "seconds": {name: seconds for each in found for name, seconds in each["seconds"].items()},
        "what": f"Meta-AttnLRP, small Gemma 3 and random {arguments.shape}, {arguments.dtype}, {arguments.device}",
        "units": {name: unit for name, unit in UNITS.items() if name in result},
        "cores": os.cpu_count(),
        "threads": threads,
    }
    suffix = "" if arguments.device == "cpu" else f"_{arguments.shape}_{arguments.device.split(':')[0]}"
    report(result, f"language{suffix}")


if __name__ == "__main__":
    main()
