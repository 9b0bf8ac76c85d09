"""What is asked about concepts in an image, and the logits that answer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from huggingface_hub import snapshot_download
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5TokenizerFast

from metagame.games import GameError
from metagame.models.pretrained import load_pretrained


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
class ConceptImage(Protocol):
    """An image that is there, and questions about it by name."""

    id: str

    def image(self) -> Image.Image: ...

    def questions(self) -> Mapping[str, ConceptQuestion]: ...


@dataclass(frozen=True)
class PaintedImage:
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

    def questions(self) -> Mapping[str, ConceptQuestion]:
        return self.asked


@dataclass(frozen=True)
class ConceptLogits:
    """Logits of concepts at the patches of an image, in several layers: what concept methods explain.

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


def load_t5_tokenizer(checkpoint: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that a FLUX pipeline reads concepts with.

    Raises:
        GameError: the checkpoint is absent or is no such pipeline.
    """
    folder = checkpoint
    if not Path(checkpoint).is_dir():
        folder = load_pretrained(snapshot_download, checkpoint, revision, allow_patterns="tokenizer_2/*")
    if not (Path(folder) / "tokenizer_2").is_dir():
        raise GameError(f"checkpoint {checkpoint!r} has no folder tokenizer_2: give that of a FLUX pipeline.")
    return load_pretrained(T5TokenizerFast.from_pretrained, str(Path(folder) / "tokenizer_2"), None)


def concept_pieces(tokenizer: PreTrainedTokenizerBase, name: str) -> list[str]:
    """The tokens of a concept's name, without special ones."""
    return tokenizer.convert_ids_to_tokens(tokenizer(name, add_special_tokens=False)["input_ids"])


def concept_token(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The one token of a concept's name.

    Raises:
        GameError: it has several, or none that the tokenizer knows.
    """
    pieces = concept_pieces(tokenizer, name)
    if not pieces or tokenizer.unk_token in pieces:
        raise GameError(f"concept {name!r} is unknown to the T5 tokenizer: name it by another word.")
    if len(pieces) > 1:
        raise GameError(
            f"concept {name!r} is {len(pieces)} T5 tokens ({', '.join(pieces)}): name it by a word of one token."
        )
    return pieces[0]
