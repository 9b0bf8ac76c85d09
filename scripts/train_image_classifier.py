"""Train the small ViT from scratch to read scikit-learn's handwritten digits.

    python -m scripts.train_image_classifier [--steps 3000] [--seed 0] [--out data/tiny/vit]

The model is a ViTForImageClassification of images of 8 x 8 pixels in 4 x 4 patches. Digits are moved by up to a pixel;
half of them lack some patches, whose embedding is 0. The last 50 digits of each class are kept from training. About
three minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from metagame.benchmarks.digits import Digits
from scripts.training import fit, train_from_arguments, write_card

SIDE, PATCH = 8, 2
BATCH, LEARNING_RATE, WARM_UP = 128, 2e-3, 150


def build_model(seed: int) -> ViTForImageClassification:
    """A model with random weights, drawn from ``seed``."""
    names = dict(enumerate(map(str, range(10))))
    config = ViTConfig(
        image_size=SIDE, patch_size=PATCH, hidden_size=48, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, id2label=names,
        label2id={name: label for label, name in names.items()},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def build_processor() -> ViTImageProcessor:
    """Pixels from -1 to 1, as those of google/vit-base-patch16-224."""
    return ViTImageProcessor(size={"height": SIDE, "width": SIDE})


def images(*, held_out: bool) -> tuple[Tensor, Tensor]:
    """Pixels ``(k, 3, 8, 8)`` from 0 to 1, and labels."""
    digits, processor = Digits(held_out), build_processor()
    known = [(label, digits.image(label, k)) for label in range(10) for k in range(digits.count(label))]
    pixels = processor(images=[image for _, image in known], return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor([label for label, _ in known])


def moved(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image moved by up to a pixel in each direction; what comes in is black."""
    black = nn.functional.pad(pixels, (1, 1, 1, 1), value=-1.0)
    corners = rng.integers(0, 3, (len(pixels), 2))
    return torch.stack([each[:, y : y + SIDE, x : x + SIDE] for each, (y, x) in zip(black, corners, strict=True)])


def masked_logits(model: ViTForImageClassification, pixels: Tensor, present: Tensor) -> Tensor:
    """Logits where the embeddings of absent patches are 0; ``present`` is ``(k, 16)``."""
    embed = model.vit.embeddings.patch_embeddings
    handle = embed.register_forward_hook(lambda module, given, output: output * present[..., None])
    try:
        return model(pixels).logits
    finally:
        handle.remove()


@torch.no_grad()
def accuracy(model: ViTForImageClassification, share: float) -> float:
    """Share of held-out digits that are read right when each patch is absent with this probability."""
    pixels, labels = images(held_out=True)
    present = torch.from_numpy(np.random.default_rng(0).random((len(pixels), (SIDE // PATCH) ** 2)) >= share)
    return float((masked_logits(model.eval(), pixels, present).argmax(1) == labels).double().mean())


def train(n_steps: int, seed: int, out: Path) -> dict:
    """Train the model and write it to ``out``; its card."""
    model = build_model(seed).train()
    pixels, labels = images(held_out=False)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        drawn = torch.from_numpy(rng.integers(0, len(pixels), BATCH))
        shares = rng.random(BATCH) * (rng.random(BATCH) < 0.5)
        present = torch.from_numpy(rng.random((BATCH, (SIDE // PATCH) ** 2)) >= shares[:, None])
        return nn.functional.cross_entropy(masked_logits(model, moved(pixels[drawn], rng), present), labels[drawn])

    curve = fit(model, loss_of, n_steps, LEARNING_RATE, WARM_UP, decay=0.05)
    model.eval().save_pretrained(out)
    build_processor().save_pretrained(out)
    found = {f"{100 * share:.0f} % of patches absent": accuracy(model, share) for share in (0.0, 0.25, 0.5)}
    return write_card(
        model, out, seed=seed, steps=n_steps, batch=BATCH,
        accuracy_on_held_out_digits={name: round(share, 4) for name, share in found.items()}, training_loss=curve,
    )  # fmt: skip


if __name__ == "__main__":
    train_from_arguments(train, __doc__, 3000, "data/tiny/vit")
