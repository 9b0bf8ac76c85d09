"""Do the pictures that the small FLUX paints show the digits that their prompt names?

    python -m scripts.read_digits [--checkpoint data/tiny/flux] [--prompts 200]

A convolutional reader is trained on the painter's own training scenes to tell which digits a scene shows: one reader in
colour, and one in grey, which has shapes only to go by. Both are tried on held-out scenes first. Prints the share of
named digits that are read, and of pictures in which just the named digits are read.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FluxPipeline
from jaxtyping import Bool, Float
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from metagame.benchmarks.digit_scenes import SIDE, WORDS, draw_scene, full_prompt
from metagame.benchmarks.digits import Digits

STEPS, BATCH, RATE = 1000, 64, 2e-3
GUIDANCE = 3.0
"""Of the painting, away from the empty prompt (classifier-free)."""
PAINTED_AT_ONCE = 50


@dataclass(frozen=True)
class Pictures:
    """Pictures and which digits they show."""

    pixels: Float[Tensor, "k 3 48 48"]
    digits: Bool[Tensor, "k 10"]

    def grey(self) -> Pictures:
        return Pictures(self.pixels.mean(1, keepdim=True).expand_as(self.pixels), self.digits)


def scenes(count: int, seed: list[int], *, held_out: bool) -> tuple[Pictures, list[str]]:
    """Drawn scenes and their full prompts."""
    digits, rng = Digits(held_out), np.random.default_rng(seed)
    drawn = [draw_scene(digits, rng) for _ in range(count)]
    pixels = np.stack([scene.pixels for scene in drawn]).astype(np.float32)
    shown = np.array([[label in scene.labels for label in range(len(WORDS))] for scene in drawn])
    pictures = Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(shown))
    return pictures, [full_prompt(scene, rng) for scene in drawn]


def train_reader(*, grey: bool) -> nn.Module:
    """A network from pictures to a logit for each digit."""
    torch.manual_seed(0)
    reader = nn.Sequential(
        nn.Conv2d(3, 32, 5, 2, 2), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.GELU(), nn.Conv2d(64, 128, 3, padding=1),
        nn.GELU(), nn.Conv2d(128, 128, 3, padding=1), nn.GELU(), nn.Conv2d(128, len(WORDS), 3, padding=1),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(),
    )  # fmt: skip
    optimiser = torch.optim.AdamW(reader.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS)
    for step in track(range(STEPS), f"reader in {'grey' if grey else 'colour'}", console=Console(stderr=True)):
        pictures, _ = scenes(BATCH, [5, step], held_out=False)
        pictures = pictures.grey() if grey else pictures
        loss = nn.functional.binary_cross_entropy_with_logits(reader(pictures.pixels), pictures.digits.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return reader.eval()


@torch.no_grad()
def read(reader: nn.Module, pictures: Pictures) -> dict[str, float]:
    """Share of the shown (or named) digits that are read, and of pictures with just these read."""
    found = reader(pictures.pixels) > 0
    return {
        "named_digits_read": round(float(found[pictures.digits].float().mean()), 4),
        "pictures_with_just_these": round(float((found == pictures.digits).all(1).float().mean()), 4),
    }


def paint(checkpoint: str, prompts: list[str], n_steps: int, guidance: float) -> Float[Tensor, "k 3 48 48"]:
    """The pictures that the pipeline makes of the prompts; ``guidance`` 1 means no guidance."""
    pipeline = FluxPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    painted = []
    for start in track(range(0, len(prompts), PAINTED_AT_ONCE), "painting", console=Console(stderr=True)):
        some = prompts[start : start + PAINTED_AT_ONCE]
        painted += pipeline(
            some, negative_prompt=[""] * len(some), true_cfg_scale=guidance, height=SIDE, width=SIDE,
            num_inference_steps=n_steps, guidance_scale=0.0, output_type="np",
            max_sequence_length=pipeline.tokenizer.model_max_length,
            generator=torch.Generator().manual_seed(start),
        ).images.tolist()  # fmt: skip
    return torch.tensor(painted).permute(0, 3, 1, 2)


def read_paintings(checkpoint: str, n_prompts: int = 200, n_steps: int = 20) -> dict[str, dict[str, dict[str, float]]]:
    """What both readers read in held-out scenes and in the paintings of their prompts, with guidance and without."""
    real, prompts = scenes(n_prompts, [6], held_out=True)
    tried = {"held_out_scenes": real} | {
        f"painted, guidance {guidance:g}": Pictures(paint(checkpoint, prompts, n_steps, guidance), real.digits)
        for guidance in (GUIDANCE, 1.0)
    }
    colour, grey = train_reader(grey=False), train_reader(grey=True)
    return {
        "colour": {name: read(colour, pictures) for name, pictures in tried.items()},
        "grey": {name: read(grey, pictures.grey()) for name, pictures in tried.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="data/tiny/flux")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20, help="of the painting")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(read_paintings(arguments.checkpoint, arguments.prompts, arguments.steps), indent=1))


if __name__ == "__main__":
    main()
