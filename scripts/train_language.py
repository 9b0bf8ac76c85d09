"""Train the small Gemma 3 from scratch on reviews of a small grammar.

    python -m scripts.train_language [--steps 1500] [--seed 0] [--out data/tiny/gemma3]

The model is a Gemma3ForCausalLM with a tokenizer of words and the chat template of Gemma; it answers a review with a
label. Half of the reviews stand in the template, half alone, as instruction-tuned and pre-trained models are asked;
half have some of their words absent (``<unk>``), with the label of what is left. Reviews are drawn from (seed, step),
so a run that was stopped goes on from its last checkpoint (in outputs/training) as if it had not been. About ten
minutes on one core.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Sequence, Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig, PreTrainedTokenizerFast

from metagame.benchmarks.reviews import Review, reviews, vocabulary
from scripts.training import (
    descend,
    load_checkpoint,
    read_curve,
    save_checkpoint,
    save_curve,
    set_rate,
    train_from_arguments,
)

PAD, END, START, UNKNOWN, TURN_START, TURN_END = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
VOCABULARY = {
    token: index
    for index, token in enumerate(
        (PAD, END, START, UNKNOWN, TURN_START, TURN_END, "\n", "user", "model", *vocabulary())
    )
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CONTEXT = 128
BATCH, LEARNING_RATE, WARM_UP = 128, 2e-3, 200
CHECKPOINT_EVERY = 100
IGNORED = -100


def build_model(seed: int) -> Gemma3ForCausalLM:
    """A model with random weights, drawn from ``seed``; every second layer looks back 16 tokens only."""
    config = Gemma3TextConfig(
        vocab_size=len(VOCABULARY), hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32, max_position_embeddings=CONTEXT,
        sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2, rope_theta=10_000.0,
        pad_token_id=VOCABULARY[PAD], eos_token_id=VOCABULARY[END], bos_token_id=VOCABULARY[START],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Gemma3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=VOCABULARY[START], pad_token_id=VOCABULARY[PAD],
        eos_token_id=[VOCABULARY[END], VOCABULARY[TURN_END]],
    )  # fmt: skip
    return model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or line break, a start token before the text, as Gemma's."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Sequence(
        [Split("\n", "isolated"), Split(Regex(r" +"), "removed"), Split(Regex(r"[.,:;!?]"), "isolated")]
    )
    tokenizer.post_processor = TemplateProcessing(single=f"{START} $A", special_tokens=[(START, VOCABULARY[START])])
    turns = [AddedToken(token, special=True, normalized=False) for token in (TURN_START, TURN_END)]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONTEXT, pad_token=PAD, eos_token=END, bos_token=START,
        unk_token=UNKNOWN, additional_special_tokens=turns, chat_template=CHAT_TEMPLATE, padding_side="right",
    )  # fmt: skip


def ids(tokens: str) -> list[int]:
    """Ids of tokens that are separated by spaces."""
    return [VOCABULARY[token] for token in tokens.split(" ")]


BEFORE, BETWEEN = ids(f"{START} {TURN_START} user \n"), ids(f"{TURN_END} \n {TURN_START} model \n")


def asked(words: list[int], chat: bool) -> list[int]:
    """The tokens that the model is given: the review in the chat template, or alone behind the start token."""
    return [*BEFORE, *words, *BETWEEN] if chat else [VOCABULARY[START], *words]


def example(review: Review, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Token ids of a review with its answer, and the ids to be predicted at each place (IGNORED where none is)."""
    chat = rng.random() < 0.5
    present = rng.random(len(review.words)) >= (rng.random() if rng.random() < 0.5 else 0)
    words = [
        VOCABULARY[word] if here else VOCABULARY[UNKNOWN] for word, here in zip(review.words, present, strict=True)
    ]
    question = asked(words, chat)
    answer = [*(VOCABULARY[word] for word in review.label(present.tolist())), VOCABULARY[TURN_END if chat else END]]
    return question + answer[:-1], [IGNORED] * (len(question) - 1) + answer


def batch(count: int, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Token ids ``(k, L)`` padded on the right, and what is to be predicted, ``(k, L)``."""
    rng = np.random.default_rng([*seed, 1])
    rows = [example(review, rng) for review in islice(reviews(seed, held_out=False), count)]
    length = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([row + [VOCABULARY[PAD]] * (length - len(row)) for row, _ in rows])
    return tokens, torch.tensor([row + [IGNORED] * (length - len(row)) for _, row in rows])


def steps_of(model: Gemma3ForCausalLM, n_steps: int, seed: int, state: Path) -> Iterator[tuple[int, float]]:
    """Train from the last checkpoint in ``state`` on; yields (step, loss) and keeps a checkpoint."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    first = load_checkpoint(model, optimiser, state)
    model.train()
    for step in range(first, n_steps):
        set_rate(optimiser, LEARNING_RATE, step, n_steps, WARM_UP)
        tokens, targets = batch(BATCH, [seed, 0, step])
        # padding is behind everything that is predicted: causal attention needs no mask for it
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        loss = nn.functional.cross_entropy(model.lm_head(hidden[targets != IGNORED]), targets[targets != IGNORED])
        descend(loss, model, optimiser)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            save_checkpoint(model, optimiser, state, step + 1)
        yield step, loss.item()


@torch.no_grad()
def accuracy(model: Gemma3ForCausalLM, seed: int, *, chat: bool, masked: bool, count: int = 1000) -> float:
    """Share of held-out reviews whose greedy answer is their label, word by word."""
    rng = np.random.default_rng([seed, 2])
    right = 0
    for review in islice(reviews([seed, 3], held_out=True), count):
        present = rng.random(len(review.words)) >= (rng.random() if masked else 0)
        words = [VOCABULARY[w] if here else VOCABULARY[UNKNOWN] for w, here in zip(review.words, present, strict=True)]
        question = asked(words, chat)
        answer = [*(VOCABULARY[word] for word in review.label(present.tolist())), VOCABULARY[TURN_END if chat else END]]
        logits = model.eval()(input_ids=torch.tensor([question + answer[:-1]])).logits[0, len(question) - 1 :]
        right += logits.argmax(-1).tolist() == answer
    return right / count


def train(n_steps: int, seed: int, state: Path, out: Path) -> dict:
    """Train the model and write it to ``out``; its card."""
    model, tokenizer = build_model(seed), build_tokenizer()
    curve = read_curve(state)
    window = []
    for step, loss in track(steps_of(model, n_steps, seed, state), "gemma3", total=n_steps):
        window.append(loss)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            curve[str(step + 1)] = round(sum(window) / len(window), 4)
            window = []
            save_curve(curve, state)
            print(f"step {step + 1}: loss {curve[str(step + 1)]}", flush=True)
    model.to(torch.bfloat16).eval().save_pretrained(out)  # on disk, as Gemma's; it is loaded in float32
    tokenizer.save_pretrained(out)
    model = Gemma3ForCausalLM.from_pretrained(out, dtype=torch.float32)
    card = {
        "class": type(model).__name__, "seed": seed, "steps": n_steps, "batch": BATCH,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "accuracy_on_held_out_reviews": {
            f"{'chat' if chat else 'raw'}{', words absent' if masked else ''}":
                round(accuracy(model, seed, chat=chat, masked=masked), 4)
            for chat in (True, False) for masked in (False, True)
        },
        "training_loss": curve,
    }  # fmt: skip
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def train_resumably(n_steps: int, seed: int, out: Path) -> dict:
    """Train with checkpoints in ``outputs/training``, from which the same command goes on."""
    return train(n_steps, seed, Path("outputs/training") / f"gemma3-seed{seed}-steps{n_steps}", out)


if __name__ == "__main__":
    train_from_arguments(train_resumably, __doc__, 1500, "data/tiny/gemma3")
