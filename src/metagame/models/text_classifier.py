"""Encoders of transformers that classify texts: tokens are players, absent ones are masked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import (
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaForSequenceClassification,
)

from metagame.contracts import WHOLE, Failure, Model, prepare_each
from metagame.errors import UserError
from metagame.models.characters import token_players
from metagame.models.classified import Classified, bind_classifier, label_names, label_number
from metagame.models.language_model import Prompt
from metagame.models.layers import refuse_half_precision
from metagame.models.pretrained import (
    check_evaluating,
    find_architecture,
    load_model,
    load_tokenizer,
    model_revision,
    settle_device,
)
from metagame.models.prompt_tokens import absent_token_id
from metagame.models.token_batches import TokenBatches

log = logging.getLogger(__name__)

CLASSES: dict[str, type[PreTrainedModel]] = {
    "bert": BertForSequenceClassification,
    "distilbert": DistilBertForSequenceClassification,
    "roberta": RobertaForSequenceClassification,
}
"""Model class of each architecture that the adapter is for."""


class TextClassifier(Model[Prompt, Classified]):
    """A classifier of texts, explained through its word embeddings.

    Players are the tokens of the text; those that the tokenizer puts around it ([CLS], [SEP]) are always present. An
    absent token gets the word embedding of [MASK] and keeps its position. f_S is the logit of one label: the one that
    is predicted for the whole text, unless ``explained_label`` is given.

    Args:
        net: the model, in evaluation mode.
        tokenizer: a tokenizer of transformers.
        revision: identifies the weights.
        explained_label: name or number of the label that is explained; if None, the predicted one.
        truncate: whether a text that is longer than the model's positions is cut on the right, with a warning; if
            False, it is refused.
        tokens_per_batch: number of tokens in a forward and backward pass; it is reduced when memory runs out.
        absent_token: the token that replaces an absent one. If None, the tokenizer's mask, unk or pad token.

    Raises:
        UserError: the model has fewer than two labels or no label of that name, its weights are in half precision, or
            the tokenizer has no token for absent ones.
    """

    sample_type = Prompt
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"device", "tokens_per_batch"})

    def __init__(
        self,
        net: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        revision: str,
        *,
        explained_label: int | str | None = None,
        truncate: bool = False,
        tokens_per_batch: int = 4096,
        absent_token: str | None = None,
    ) -> None:
        refuse_half_precision(net)
        self.net = net.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.revision = revision
        self.device = str(net.device)
        self.labels = label_names(net)
        self.explained_label = label_number(explained_label, self.labels)
        self.truncate = truncate
        self.batches = TokenBatches(
            tokens_per_batch, "shorten the text, set model.truncate=true, or choose another model"
        )
        self.absent_id = absent_token_id(tokenizer, absent_token)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        revision: str | None = None,
        device: str | None = None,
        attention: str | None = "eager",
        *,
        explained_label: int | str | None = None,
        truncate: bool = False,
        tokens_per_batch: int = 4096,
        absent_token: str | None = None,
    ) -> Self:
        """Load a model in float32 from a folder, or by its id on the Hugging Face Hub.

        Args:
            checkpoint: the folder or id.
            revision: commit, tag or branch on the hub.
            device: ``cpu``, ``cuda``, ...; if None, the GPU if there is one.
            attention: the attention implementation that transformers uses; methods that read attention need ``eager``.
            explained_label: as for the class.
            truncate: as for the class.
            tokens_per_batch: as for the class.
            absent_token: as for the class.

        Raises:
            UserError: the checkpoint cannot be loaded or has another architecture, or the class raises it.
        """
        architecture = find_architecture(CLASSES, checkpoint, revision)
        tokenizer = load_tokenizer(checkpoint, revision, architecture=architecture)
        net = load_model(CLASSES, checkpoint, revision, settle_device(device), attention)
        return cls(
            net,
            tokenizer,
            model_revision(net, checkpoint),
            explained_label=explained_label,
            truncate=truncate,
            tokens_per_batch=tokens_per_batch,
            absent_token=absent_token,
        )

    def prepare(self, samples: Sequence[Prompt]) -> list[Mapping[str, Classified] | Failure]:
        return prepare_each(self.bind, samples)

    @property
    def context(self) -> int:
        """The maximum number of tokens that the model has positions for, including special tokens."""
        # RoBERTa's first positions are those of padding
        unused = self.net.config.pad_token_id + 1 if self.net.config.model_type == "roberta" else 0
        return min(self.net.config.max_position_embeddings - unused, self.tokenizer.model_max_length)

    def bind(self, sample: Prompt) -> dict[str, Classified]:
        """The text as a masked model over the word embeddings of its tokens, ``(n, d)``.

        Raises:
            UserError: the text has no token, or more than the model has positions for.
        """
        check_evaluating(self.net)
        ids, special, n_cut = self._tokens(sample.text)
        owners, names = token_players(ids, [not each for each in special], self._decode, whole_characters=False)
        if not names:
            raise UserError(f"the text {sample.text!r} has no token that can be a player: give at least one word.")
        places = [place for place, owner in enumerate(owners) if owner is not None]
        embed = self.net.get_input_embeddings()
        sequence = embed(torch.tensor(ids, device=self.device))
        absent = embed(torch.tensor(self.absent_id, device=self.device))
        positions = torch.tensor(places, device=self.device)

        def run(inputs: Tensor, **asked: bool) -> Any:
            rows = sequence.expand(len(inputs), -1, -1).index_copy(1, positions, inputs)
            return self.net(inputs_embeds=rows, **asked)

        x = sequence[positions]
        bound = bind_classifier(
            Classified, self.net, run, x, absent.expand_as(x), self.explained_label, self.batches, len(ids),
            names=names, places=tuple(places), labels=self.labels, n_cut=n_cut,
        )  # fmt: skip
        return {WHOLE: bound}

    def _tokens(self, text: str) -> tuple[list[int], list[int], int]:
        """Ids of the text's tokens and of those around it, which ones these are, and how many are cut off."""
        encoded = self.tokenizer(text, return_special_tokens_mask=True, verbose=False)
        n_cut = len(encoded["input_ids"]) - self.context
        if n_cut <= 0:
            return encoded["input_ids"], encoded["special_tokens_mask"], 0
        named = (
            f"the text {text[:40]!r}... has {n_cut + self.context} tokens, but the model has only {self.context}"
            " positions"
        )
        if not self.truncate:
            raise UserError(f"{named}: shorten it, or set model.truncate=true.")
        log.warning("%s: the last %d tokens are cut off.", named, n_cut)
        encoded = self.tokenizer(
            text, return_special_tokens_mask=True, truncation=True, max_length=self.context, verbose=False
        )
        return encoded["input_ids"], encoded["special_tokens_mask"], n_cut

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
