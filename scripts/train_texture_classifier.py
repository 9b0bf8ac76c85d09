"""Train a small ViT from scratch to read handwritten digits on textures, one of which decides one class.

    python -m scripts.train_texture_classifier [--steps 1000] [--seed 0] [--out data/tiny/vit_textures]

The model is a ViTForImageClassification of images of 16 x 16 pixels in 4 x 4 patches, with an independent probability
for each class. Digits lie on striped, dotted and plain grounds, each as often. A digit is of its class on all of them,
but a three is only on stripes, with a probability that is the strength of the stripes. So that other classes depend on
no texture, each digit is seen on two grounds, and squared differences of their logits are added to the loss. The last
50 digits of each class are kept from training. About two minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from metagame.benchmarks.digits import Digits
from metagame.benchmarks.textures import DEPENDENT, PERIOD, SIDE, TEXTURES, enlarged, ground, strengths
from scripts.training import fit, train_from_arguments, write_card

BATCH, LEARNING_RATE, WARM_UP = 96, 2e-3, 150
OFTEN = 0.25
"""The share of a batch that is of the classes that depend on a texture."""


def build_model(seed: int) -> ViTForImageClassification:
    """A model with random weights, drawn from ``seed``."""
    names = dict(enumerate(map(str, range(10))))
    config = ViTConfig(
        image_size=SIDE, patch_size=PERIOD, hidden_size=48, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, id2label=names,
        label2id={name: label for label, name in names.items()}, problem_type="multi_label_classification",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def strokes(*, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Digits without a ground, ``(k, 16, 16)``, and their labels."""
    digits = Digits(held_out)
    known = [(label, digits.image(label, k)) for label in range(10) for k in range(digits.count(label))]
    return np.array([enlarged(image) for _, image in known]), np.array([label for label, _ in known])


def on_grounds(drawn: np.ndarray, textures: np.ndarray, strong: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Pixels from -1 to 1, ``(k, 3, 16, 16)``, of digits on grounds of these textures, by number, and strengths."""
    names = list(TEXTURES)
    grounds = np.array([ground(names[which], own, rng) for which, own in zip(textures, strong, strict=True)])
    pixels = torch.from_numpy(2 * np.maximum(drawn, grounds) - 1).float()
    return pixels[:, None].expand(-1, 3, -1, -1)


def probabilities(labels: np.ndarray, textures: np.ndarray, strong: np.ndarray) -> Tensor:
    """Of each class, ``(k, 10)``: 1 of that of the digit, or the strength of the ground where it depends on that."""
    wanted = np.eye(10)[labels]
    for label, texture in DEPENDENT.items():
        wanted[:, label] *= strong * (textures == list(TEXTURES).index(texture))
    return torch.from_numpy(wanted).float()


@torch.no_grad()
def mean_logits(model: ViTForImageClassification) -> dict[str, dict[str, float]]:
    """By texture the mean logit of the digit's class, over the held-out digits of each class."""
    drawn, labels = strokes(held_out=True)
    found = {}
    for number, name in enumerate(TEXTURES):
        rng = np.random.default_rng(0)
        pixels = on_grounds(drawn, np.full(len(labels), number), strengths(rng, len(labels)), rng)
        own = model(pixels).logits.numpy()[np.arange(len(labels)), labels]
        found[name] = {str(label): round(float(own[labels == label].mean()), 2) for label in range(10)}
    return found


@torch.no_grad()
def accuracy(model: ViTForImageClassification) -> float:
    """Share of held-out digits, but those of classes that depend on a texture, whose class has the largest logit."""
    drawn, labels = strokes(held_out=True)
    rng = np.random.default_rng(0)
    logits = model(on_grounds(drawn, np.arange(len(labels)) % 3, strengths(rng, len(labels)), rng)).logits
    return float((logits.argmax(1).numpy() == labels)[~np.isin(labels, list(DEPENDENT))].mean())


def train(n_steps: int, seed: int, out: Path) -> dict:
    """Train the model and write it to ``out``; its card."""
    model = build_model(seed).train()
    drawn, labels = strokes(held_out=False)
    dependent = np.flatnonzero(np.isin(labels, list(DEPENDENT)))
    independent = torch.tensor([label not in DEPENDENT for label in range(10)])

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        chosen = np.where(rng.random(BATCH) < OFTEN, rng.choice(dependent, BATCH), rng.integers(0, len(labels), BATCH))
        moves = rng.integers(-1, 2, (BATCH, 2))
        moved = np.array([np.roll(drawn[k], tuple(move), (0, 1)) for k, move in zip(chosen, moves, strict=True)])
        textures, strong = rng.integers(0, len(TEXTURES), (2, BATCH)), strengths(rng, 2 * BATCH).reshape(2, BATCH)
        pixels = [on_grounds(moved, *own, rng) for own in zip(textures, strong, strict=True)]
        one, other = model(torch.cat(pixels)).logits.split(BATCH)
        wanted = probabilities(labels[chosen], textures[0], strong[0])
        apart = (one - other)[:, independent].square().mean()
        return 5 * nn.functional.binary_cross_entropy_with_logits(one, wanted) + apart

    curve = fit(model, loss_of, n_steps, LEARNING_RATE, WARM_UP, decay=0.05)
    model.eval().save_pretrained(out)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(out)
    return write_card(
        model, out, seed=seed, steps=n_steps, batch=BATCH,
        accuracy_on_held_out_digits={"of classes that depend on no texture": round(accuracy(model), 4)},
        mean_logit_of_the_class_of_held_out_digits=mean_logits(model), training_loss=curve,
    )  # fmt: skip


if __name__ == "__main__":
    train_from_arguments(train, __doc__, 1000, "data/tiny/vit_textures")
