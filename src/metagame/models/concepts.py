"""What is asked about concepts in an image, and the logits that answer it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from huggingface_hub import snapshot_download
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5TokenizerFast

from metagame.contracts import Annotation, Sample
from metagame.errors import UserError
from metagame.images import grid_side
from metagame.models.pretrained import load_pretrained, without_conversion_note


@dataclass(frozen=True)
class ConceptQuestion:
    """Which concepts compete for the patches of an image, and how the model is to see them.

    Attributes:
        players: concepts that form coalitions.
        background: concepts that are always present.
        n_layers: how many of the model's last double-stream blocks are asked.
        prompt: of the image.
        cross_attention: whether concepts attend to each other.
    """

    players: tuple[str, ...]
    background: tuple[str, ...]
    n_layers: int
    prompt: str = ""
    cross_attention: bool = True


@runtime_checkable
class ConceptSample(Sample, Protocol):
    """An image, and questions about it by name; a :class:`PaintedImage` has none before the model paints it."""

    def questions(self) -> Mapping[str, ConceptQuestion]:
        """The questions by name."""
        ...


@dataclass(frozen=True)
class PaintedImage(ConceptSample):
    """An image that the model paints while the concepts watch.

    Attributes:
        id: of the sample.
        prompt: that the model paints.
        seed: of the noise that it begins with.
        asked: questions by name; their prompts are not used.
    """

    id: str
    prompt: str
    seed: int
    asked: Mapping[str, ConceptQuestion]

    def description(self) -> str:
        return self.prompt

    def annotation(self) -> Annotation:
        """The players that the prompt names."""
        players = dict.fromkeys(name for question in self.asked.values() for name in question.players)
        return Annotation(tuple(name for name in players if re.search(rf"\b{re.escape(name)}\b", self.prompt)))

    def questions(self) -> Mapping[str, ConceptQuestion]:
        return self.asked


@dataclass(frozen=True)
class ConceptLogits:
    """Logits of concepts at the patches of an image, in several layers: what concept methods explain.

    Of an image that the model painted, layers of several steps of it lie behind each other.

    The targets are all concepts at all patches. It is a :class:`metagame.contracts.BoundInput`.

    Attributes:
        players: names of the players.
        background: names of the concepts that are always present.
        player_logits: in float32.
        background_logits: likewise.
        picture: the image, where the model painted it.
    """

    players: tuple[str, ...]
    background: tuple[str, ...]
    player_logits: Float[Tensor, "L n P"]
    background_logits: Float[Tensor, "L m P"]
    picture: UInt8[np.ndarray, "H W 3"] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return self.players + self.background

    @property
    def grid(self) -> tuple[int, int]:
        side = grid_side(self.player_logits.shape[-1])
        return side, side


def load_t5_tokenizer(checkpoint: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that a FLUX pipeline reads concepts with.

    Raises:
        UserError: the checkpoint is absent or is no such pipeline.
    """
    folder = checkpoint
    if not Path(checkpoint).is_dir():
        folder = load_pretrained(snapshot_download, checkpoint, revision, allow_patterns="tokenizer_2/*")
    if not (Path(folder) / "tokenizer_2").is_dir():
        raise UserError(f"checkpoint {checkpoint!r} has no folder tokenizer_2: give the folder of a FLUX pipeline.")
    with without_conversion_note():
        return load_pretrained(T5TokenizerFast.from_pretrained, str(Path(folder) / "tokenizer_2"), None)


def concept_pieces(tokenizer: PreTrainedTokenizerBase, name: str) -> list[str]:
    """The tokens of a concept's name, without special ones."""
    return tokenizer.convert_ids_to_tokens(tokenizer(name, add_special_tokens=False)["input_ids"])


def concept_token(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The one token of a concept's name.

    Raises:
        UserError: it has several, or none that the tokenizer knows.
    """
    pieces = concept_pieces(tokenizer, name)
    if not pieces or tokenizer.unk_token in pieces:
        raise UserError(f"concept {name!r} is unknown to the T5 tokenizer: use another word.")
    if len(pieces) > 1:
        raise UserError(
            f"concept {name!r} is {len(pieces)} T5 tokens ({', '.join(pieces)}): use a word that is one token."
        )
    return pieces[0]


def refuse_one_token_twice(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> None:
    """Refuse concepts that are one to the model, such as ``six`` and ``Six`` of a tokenizer without capitals.

    Raises:
        UserError: two names are the same token, or a name is not one token.
    """
    first: dict[str, str] = {}
    for name in names:
        token = concept_token(tokenizer, name)
        if first.setdefault(token, name) != name:
            raise UserError(
                f"concepts {first[token]!r} and {name!r} are the same T5 token ({token}), and so the same"
                " concept: leave one of them out."
            )
