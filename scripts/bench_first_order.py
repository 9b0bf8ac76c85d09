"""Time leave-one-out and integrated gradients of a prompt against the passes that they need, on random weights.

    python -m scripts.bench_first_order [--shape smollm2_135m] [--players 18] [--steps 8] [--device cpu]

Writes outputs/bench/first_order.json. A bare pass is the decoder of transformers on prompt and answer, in batches of as
many rows as ours: of leave-one-out n + 1 forward passes, of integrated gradients a forward and a backward pass to the
input embeddings at each point of the path.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from metagame.attributions.gradients import IntegratedGradients
from metagame.attributions.leave_one_out import LeaveOneOut
from metagame.models.language_model import LanguageModel, decoder_of
from metagame.models.prompt_tokens import PromptTokens
from scripts.bench_alti_logit import SHAPES, random_llama
from scripts.bench_language import prompt_with
from scripts.measure import report, timed

REPEATS, TOKENS_PER_BATCH = 3, 512
"""Calls of which the fastest counts; tokens in a batch, as on a CPU."""


def bench(model: LanguageModel, n_players: int, n_steps: int) -> dict:
    """Both methods and their bare passes, in one run."""
    prompt = prompt_with(model, n_players)
    answer = tuple(range(10, 10 + n_steps))
    bound, ig = model.bind_answer(prompt, answer), IntegratedGradients()
    forward, backward = (bare_passes(model, prompt, answer, gradients=each) for each in (False, True))
    seconds = {
        "leave-one-out": fastest(lambda: LeaveOneOut().explain(bound)),
        "its forward passes": fastest(lambda: forward(n_players + 1)),
        "integrated gradients": fastest(lambda: ig.explain(bound)),
        "its forward and backward passes": fastest(lambda: backward(ig.steps)),
    }
    return {
        "ratio_leave_one_out": seconds["leave-one-out"] / seconds["its forward passes"],
        "ratio_ig": seconds["integrated gradients"] / seconds["its forward and backward passes"],
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "units": {
            "ratio_leave_one_out": "time of leave-one-out / of n + 1 bare forward passes",
            "ratio_ig": "time of integrated gradients / of as many bare forward and backward passes",
        },
    }


def bare_passes(
    model: LanguageModel, prompt: PromptTokens, answer: tuple[int, ...], *, gradients: bool
) -> Callable[[int], Tensor]:
    """So many rows through the decoder, and back from the answer's states where gradients are asked for."""
    ids = torch.tensor([*prompt.ids, *answer[:-1]], device=model.device)
    embeddings = model.net.get_input_embeddings()(ids).detach()
    rows_at_once = max(1, TOKENS_PER_BATCH // len(ids))
    decoder = decoder_of(model.net)

    def batch(size: int) -> Tensor:
        with torch.set_grad_enabled(gradients):
            inputs = embeddings.expand(size, -1, -1).clone().requires_grad_(gradients)
            states = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -len(answer) :]
            return torch.autograd.grad(states.sum(), inputs)[0] if gradients else states

    return lambda n_rows: torch.cat([batch(min(rows_at_once, n_rows - at)) for at in range(0, n_rows, rows_at_once)])


def fastest(function: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, after a first one."""
    function()
    return min(timed(function)[0] for _ in range(REPEATS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2_135m")
    parser.add_argument("--players", type=int, default=18)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    model = random_llama(asked.shape, asked.device, "sdpa", TOKENS_PER_BATCH)
    what = f"random {asked.shape}, {asked.players} players, {asked.steps} answer tokens, float32, {asked.device}"
    report({"what": what, **bench(model, asked.players, asked.steps)}, "first_order")


if __name__ == "__main__":
    main()
