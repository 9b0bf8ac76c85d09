"""What the adapters of classifiers have in common: a label whose logit is explained, and probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from metagame.errors import UserError
from metagame.models.attended import AttendedModel, require_attention_weights
from metagame.models.token_batches import TokenBatches

COALITIONS = 256
"""The most coalitions whose embeddings are kept at once."""


@dataclass(frozen=True, kw_only=True)
class Classified(AttendedModel):
    """An input of a classifier: f_S is the logit of one label, given the players in S.

    Attributes:
        logits: maps inputs ``(k, n, d)`` to the logits of all labels, ``(k, c)``; f is one of its columns.
        label: number of the label that is explained.
        labels: names of all labels.
        n_cut: tokens that were cut off, since the model has no positions for them.
    """

    logits: Callable[[Float[Tensor, "k n d"]], Float[Tensor, "k c"]]
    label: int
    labels: tuple[str, ...]
    n_cut: int = 0

    @property
    def answer(self) -> str:
        """The name of the label that is explained."""
        return self.labels[self.label]

    @torch.no_grad()
    def probabilities(self, coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k c"]:
        """Softmax probabilities of all labels, for each coalition."""
        return self.batched(self.logits, self.masked(coalitions)).double().softmax(-1)


ClassifiedT = TypeVar("ClassifiedT", bound=Classified)


def bind_classifier(
    kind: type[ClassifiedT],
    net: PreTrainedModel,
    run: Callable[..., Any],
    x: Float[Tensor, "n d"],
    absent: Float[Tensor, "n d"],
    label: int | None,
    batches: TokenBatches,
    length: int,
    **settings: Any,
) -> ClassifiedT:
    """An input of a classifier.

    Args:
        kind: of input.
        net: the model.
        run: maps inputs ``(k, n, d)``, and whether attention weights are asked for (``output_attentions``), to what the
            model returns.
        x: the players' embeddings.
        absent: what replaces them.
        label: number of the label that is explained; None: the predicted one.
        batches: of rows.
        length: tokens of a row.
        settings: what else the input has.
    """

    def logits(inputs: Float[Tensor, "k n d"]) -> Float[Tensor, "k c"]:
        return run(inputs, output_attentions=False).logits

    if label is None:
        with torch.no_grad():
            label = int(logits(x[None]).argmax())

    def attend(inputs: Float[Tensor, "k n d"]) -> tuple[Float[Tensor, " k"], tuple[Tensor, ...]]:
        require_attention_weights(net)
        found = run(inputs, output_attentions=True)
        return found.logits[:, label], found.attentions

    return kind(
        lambda inputs: logits(inputs)[:, label],
        x,
        absent,
        net,
        in_batches=partial(batches.map, length=length),
        batch_size=min(COALITIONS, max(1, batches.budget // length)),
        attend=attend,
        logits=logits,
        label=label,
        **settings,
    )


def label_names(net: PreTrainedModel) -> tuple[str, ...]:
    """The names of a classifier's labels, by number.

    Raises:
        UserError: it has fewer than two.
    """
    names = tuple(str(name) for _, name in sorted((net.config.id2label or {}).items()))
    if len(names) < 2:
        raise UserError(
            f"model.checkpoint={net.name_or_path!r} has {len(names)} label, and so no class to explain: choose a"
            " classifier with two or more labels."
        )
    return names


def label_number(label: int | str | None, names: tuple[str, ...]) -> int | None:
    """The number of the label with this name or number; None: the predicted one of each input.

    Raises:
        UserError: there is no such label, or several have this name.
    """
    if label is None:
        return None
    known = {name: number for number, name in enumerate(names)} | {number: number for number in range(len(names))}
    if isinstance(label, bool) or not isinstance(label, Integral | str) or label not in known:
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(
            f"model.explained_label={label!r} is unknown: give a number from 0 to {len(names) - 1}, or one of {shown}."
        )
    if names.count(str(label)) > 1 and isinstance(label, str):
        raise UserError(f"model.explained_label={label!r} names several labels of this model: give the number of one.")
    return known[label]
