"""Train the small BERT from scratch to tell the sentiment of reviews of a small grammar.

    python -m scripts.train_text_classifier [--steps 1500] [--seed 0] [--out data/tiny/bert]

The model is a BertForSequenceClassification with two labels and a tokenizer of words. A review is positive where the
sum of its opinions is above 0 (:mod:`metagame.benchmarks.reviews`). Half of the reviews have some of their words masked
and the sentiment of what is left; where that is neutral, both labels are equally likely. About three minutes on a core.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Sequence, Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from metagame.benchmarks.reviews import Review, reviews, vocabulary
from scripts.training import fit, train_from_arguments, write_card

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
VOCABULARY = {token: index for index, token in enumerate((PAD, UNKNOWN, CLS, SEP, MASK, *vocabulary()))}
LABELS = ("negative", "positive")
CONTEXT = 64
BATCH, LEARNING_RATE, WARM_UP = 128, 2e-3, 150


def build_model(seed: int) -> BertForSequenceClassification:
    """A model with random weights, drawn from ``seed``."""
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=CONTEXT, type_vocab_size=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=VOCABULARY[PAD], id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(config)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or mark, between [CLS] and [SEP]."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Sequence([Split(Regex(r"\s+"), "removed"), Split(Regex(r"[.,:;!?]"), "isolated")])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(CLS, VOCABULARY[CLS]), (SEP, VOCABULARY[SEP])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONTEXT, pad_token=PAD, unk_token=UNKNOWN, cls_token=CLS,
        sep_token=SEP, mask_token=MASK, padding_side="right",
    )  # fmt: skip


def example(review: Review, rng: np.random.Generator, *, masked: bool) -> tuple[list[int], float]:
    """Token ids of a review, words of it masked where asked for, and how likely it is positive: 0, 1/2 or 1."""
    present = rng.random(len(review.words)) >= (rng.random() if masked else 0)
    words = [VOCABULARY[word if here else MASK] for word, here in zip(review.words, present, strict=True)]
    return [VOCABULARY[CLS], *words, VOCABULARY[SEP]], (1 + np.sign(review.score(present.tolist()))) / 2


def batch(count: int, seed: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids ``(k, L)`` padded on the right, which are none of the padding, and the chance of each label."""
    rng = np.random.default_rng([*seed, 1])
    drawn = islice(reviews(seed, held_out=False), count)
    rows = [example(review, rng, masked=bool(rng.random() < 0.5)) for review in drawn]
    length = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([row + [VOCABULARY[PAD]] * (length - len(row)) for row, _ in rows])
    return tokens, (tokens != VOCABULARY[PAD]).long(), torch.tensor([[1 - chance, chance] for _, chance in rows])


@torch.no_grad()
def accuracy(model: BertForSequenceClassification, seed: int, *, masked: bool, count: int = 1000) -> float:
    """Share of held-out reviews with an opinion whose label is predicted."""
    rng = np.random.default_rng([seed, 2])
    rows = [example(review, rng, masked=masked) for review in islice(reviews([seed, 3], held_out=True), count)]
    decided = [(tokens, chance) for tokens, chance in rows if chance != 0.5]
    right = [model.eval()(torch.tensor([tokens])).logits.argmax() == chance for tokens, chance in decided]
    return float(np.mean(right))


def train(n_steps: int, seed: int, out: Path) -> dict:
    """Train the model and write it to ``out``; its card."""
    model = build_model(seed).train()

    def loss_of(step: int) -> Tensor:
        tokens, attended, chances = batch(BATCH, [seed, 0, step])
        return nn.functional.cross_entropy(model(tokens, attention_mask=attended).logits, chances.float())

    curve = fit(model, loss_of, n_steps, LEARNING_RATE, WARM_UP, decay=0.02)
    model.eval().save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    found = {"words masked" if masked else "whole": accuracy(model, seed, masked=masked) for masked in (False, True)}
    return write_card(
        model, out, seed=seed, steps=n_steps, batch=BATCH,
        accuracy_on_held_out_reviews={name: round(share, 4) for name, share in found.items()}, training_loss=curve,
    )  # fmt: skip


if __name__ == "__main__":
    train_from_arguments(train, __doc__, 1500, "data/tiny/bert")
