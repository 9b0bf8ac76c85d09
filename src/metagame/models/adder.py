"""A transformer of 760 parameters that adds and subtracts (Figures 1, 5 and 6)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from metagame.contracts import WHOLE, Failure, Model, Sample, prepare_each
from metagame.digests import folder_digest
from metagame.errors import UserError
from metagame.models.layers import MatMul
from metagame.models.masked import MaskedModel

UNKNOWN = "<unk>"
OPERATORS = ("+", "-")
LARGEST = 9
VOCABULARY = (UNKNOWN, *(str(number) for number in range(-LARGEST, LARGEST + 1)), *OPERATORS, "=")
_TOKEN_IDS = {token: index for index, token in enumerate(VOCABULARY)}
WIDTH, HIDDEN, LENGTH = 8, 16, 4


class Attention(nn.Module):
    """Single-head self-attention without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.score, self.mix = MatMul(), MatMul()
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Float[Tensor, "k 4 8"]) -> Float[Tensor, "k 4 8"]:
        scores = self.score(self.query(x), self.key(x).transpose(-1, -2)) * WIDTH**-0.5
        return self.output(self.mix(self.softmax(scores), self.value(x)))


class AdderNet(nn.Module):
    """One pre-norm block with one head, a final norm and a mean-pooled scalar head: ``a op b =`` -> its value."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), WIDTH)
        self.position = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.norm_attention, self.norm_feedforward, self.norm_output = (nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(3))
        self.attention = Attention()
        self.feedforward = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN, bias=False), nn.GELU(), nn.Linear(HIDDEN, WIDTH, bias=False)
        )
        self.head = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, tokens: Int[Tensor, "k 4"]) -> Float[Tensor, " k"]:
        return self.from_embeddings(self.embedding(tokens))

    def from_embeddings(self, embeddings: Float[Tensor, "k 4 8"]) -> Float[Tensor, " k"]:
        x = embeddings + self.position
        x = x + self.attention(self.norm_attention(x))
        x = x + self.feedforward(self.norm_feedforward(x))
        return self.head(self.norm_output(x).mean(1))[:, 0]


@dataclass(frozen=True)
class Sum(Sample):
    """A sample of the adder, such as ``3 - (-5)``; ``id`` is its text."""

    id: str
    a: int
    operator: str
    b: int

    @classmethod
    def parse(cls, text: str) -> Sum:
        """Read ``a + b`` or ``a - b``; a negative b may stand in brackets."""
        match = re.fullmatch(r"\s*(-?\d+)\s*([+-])\s*\(?\s*(-?\d+)\s*\)?\s*", text)
        if match is None or max(abs(int(match[1])), abs(int(match[3]))) > LARGEST:
            raise UserError(
                f"example {text!r} is not a sum that the adder knows: write 'a + b' or 'a - (-b)' with -9 <= a, b <= 9."
            )
        return cls(text, int(match[1]), match[2], int(match[3]))

    @property
    def tokens(self) -> tuple[str, str, str]:
        return str(self.a), self.operator, str(self.b)

    @property
    def value(self) -> int:
        return self.a + self.b if self.operator == "+" else self.a - self.b


class Adder(Model[Sum, MaskedModel]):
    """Adapter of the adder: players are a, the operator and b; an absent token is replaced by ``<unk>``.

    The token ``=`` and the positions are always present.

    Args:
        checkpoint: folder with ``model.safetensors``, as ``scripts/train_adder.py`` writes it.

    Raises:
        UserError: there is no checkpoint, or it has another architecture.
    """

    sample_type = Sum
    device = "cpu"

    def __init__(self, checkpoint: str | Path) -> None:
        path = Path(checkpoint) / "model.safetensors"
        if not path.is_file():
            raise UserError(
                f"model.checkpoint={str(checkpoint)!r} contains no model.safetensors: run in the repository's"
                " folder, or make one with scripts/train_adder.py."
            )
        self.net = AdderNet().double().eval().requires_grad_(False)
        try:
            self.net.load_state_dict(load_file(path))
        except (RuntimeError, SafetensorError) as error:
            raise UserError(
                f"model.checkpoint={str(checkpoint)!r} is not an adder: {str(error).splitlines()[-1].strip()}"
            ) from error
        self.revision = folder_digest(path.parent)

    def prepare(self, samples: Sequence[Sum]) -> list[Mapping[str, MaskedModel] | Failure]:
        return prepare_each(self.bind, samples)

    def bind(self, sample: Sum) -> dict[str, MaskedModel]:
        """The sum as a masked model over the token embeddings of a, operator and b, ``(3, 8)``."""
        table = self.net.embedding.weight
        x = table[[_TOKEN_IDS[token] for token in sample.tokens]]
        equals = table[_TOKEN_IDS["="]]

        def f(embeddings: Float[Tensor, "k 3 8"]) -> Float[Tensor, " k"]:
            return self.net.from_embeddings(torch.cat([embeddings, equals.expand(len(embeddings), 1, -1)], dim=1))

        absent = table[_TOKEN_IDS[UNKNOWN]].expand_as(x)
        return {WHOLE: MaskedModel(f, x, absent, self.net, names=sample.tokens, context=("=",))}


def encode(tokens: list[str]) -> Int[Tensor, " 4"]:
    """Token ids of ``a op b``, with ``=`` behind."""
    return torch.tensor([_TOKEN_IDS[token] for token in (*tokens, "=")])
