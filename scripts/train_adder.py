"""Train the adder from scratch and write data/tiny/adder (seconds on a CPU).

python scripts/train_adder.py [--seed 0] [--epochs 300] [--out data/tiny/adder]
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from metagame.models.adder import LARGEST, OPERATORS, UNKNOWN, AdderNet, Sum, encode

NUMBERS = range(-LARGEST, LARGEST + 1)
HELD_OUT_PER_A = 2
VALIDATION_SHARE = 0.1
EMPTY_SHARE = 0.05
BATCH = 128
LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class Split:
    """Token ids ``(k, 4)`` and targets ``(k,)``."""

    tokens: Tensor
    targets: Tensor

    @classmethod
    def of(cls, pairs: list[tuple[list[str], float]]) -> Split:
        return cls(torch.stack([encode(tokens) for tokens, _ in pairs]), torch.tensor([y for _, y in pairs]))


def build_splits(seed: int) -> tuple[Split, Split, Split]:
    """Training, validation and test set: all sums and masked sums; two b per a are held out, under both operators."""
    generator = torch.Generator().manual_seed(seed)
    held_out = {
        (a, NUMBERS[b]) for a in NUMBERS for b in torch.randperm(len(NUMBERS), generator=generator)[:HELD_OUT_PER_A]
    }
    train, test = [], []
    for a, op, b in itertools.product(NUMBERS, OPERATORS, NUMBERS):
        pair = ([str(a), op, str(b)], float(Sum("", a, op, b).value))
        (test if (a, b) in held_out else train).append(pair)
    train += masked_sums()
    n_empty = round(EMPTY_SHARE * len(train) / (1 - EMPTY_SHARE))
    train += [([UNKNOWN] * 3, 0.0)] * n_empty
    order = torch.randperm(len(train), generator=generator).tolist()
    n_validation = round(VALIDATION_SHARE * len(train))
    validation = [train[index] for index in order[:n_validation]]
    return Split.of([train[index] for index in order[n_validation:]]), Split.of(validation), Split.of(test)


def masked_sums() -> list[tuple[list[str], float]]:
    """Every sum with one or two tokens masked; the target is the mean over what is masked."""
    numbers = [str(number) for number in NUMBERS]
    return [
        *([[UNKNOWN, op, str(b)], float(b if op == "+" else -b)] for op in OPERATORS for b in NUMBERS),
        *([[str(a), op, UNKNOWN], float(a)] for op in OPERATORS for a in NUMBERS),
        *([[a, UNKNOWN, b], float(a)] for a in numbers for b in numbers),
        *([[a, UNKNOWN, UNKNOWN], float(a)] for a in numbers),
        *([[UNKNOWN, UNKNOWN, b], 0.0] for b in numbers),
        *([[UNKNOWN, op, UNKNOWN], 0.0] for op in OPERATORS),
    ]


def train(seed: int, epochs: int) -> tuple[AdderNet, dict]:
    """A trained adder and its card: settings, errors and the loss curve."""
    train_split, validation, test = build_splits(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = AdderNet()
        nn.init.normal_(net.embedding.weight, std=0.02)
        nn.init.normal_(net.position, std=0.02)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs, eta_min=LEARNING_RATE / 10)
    curve = []
    for _ in track(range(epochs), description="adder", transient=True):
        losses = []
        for rows in torch.randperm(len(train_split.targets), generator=generator).split(BATCH):
            loss = nn.functional.mse_loss(net(train_split.tokens[rows]), train_split.targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        schedule.step()
        curve.append(round(sum(losses) / len(losses), 5))
    net.eval()
    with torch.no_grad():
        card = {
            "seed": seed,
            "epochs": epochs,
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
            "validation_mse": round(nn.functional.mse_loss(net(validation.tokens), validation.targets).item(), 5),
            "test_mse": round(nn.functional.mse_loss(net(test.tokens), test.targets).item(), 5),
            "output_when_all_is_masked": round(net(encode([UNKNOWN] * 3)[None]).item(), 5),
            "training_loss": curve,
        }
    return net, card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("data/tiny/adder"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to share out
    net, card = train(arguments.seed, arguments.epochs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), arguments.out / "model.safetensors")
    (arguments.out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print({key: value for key, value in card.items() if key != "training_loss"})


if __name__ == "__main__":
    main()
