"""Train the four small vision-language models from scratch on scenes of handwritten digits.

python -m scripts.train_vision_language --model clip [--steps 2500] [--seed 0] [--out data/tiny/clip]

A scene is a 64x64 image of one to four digits, each in a quadrant of its own; its captions are words of digits that
are there. A model is of the class that the real checkpoints have, with a tokenizer of words and an image processor, and
is saved as these are, in half precision. Scenes are drawn from (seed, step), so a run that was stopped goes on from its
last checkpoint (in outputs/training) as if it had not been. On one core about ten minutes for a CLIP, and half an hour
for a SigLIP.

A CLIP learns with its own softmax loss, in which an image belongs to its own caption only: a word in a caption raises
the logit where its digit is there and lowers it where it is not, and a caption without words, which is among those of
training, lies between. (Where each caption that fits an image is a right answer, one word more or less is worth
nothing.) Scenes have one digit at first, and more as the training goes on; patches are hidden at random (Li et al.,
2023), so that each has to tell its digit.

Most captions of a CLIP name all digits of the scene, so that a fourth word also says that the scene is full: it raises
the maps of MetaCLIP-2 on the patches of the other three. With captions that have each word or not at even odds (tried
with one seed and 2500 steps) its Meta-Attention and Meta-Grad-ECLIP rise from .57 and .55 to .72 and .66 with four
words, but fall from .76 and .74 to .68 and .63 with two, and on average Meta-Grad-ECLIP loses. With 5000 steps they are
.60 and .58 with four words and .59 and .59 with two, on 100 other scenes. The committed models are therefore not of
that training.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from metagame.benchmarks.digits import Digits
from metagame.models.clip import CLIP
from scripts.training import descend, load_checkpoint, read_curve, save_checkpoint, save_curve, set_rate

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
START, END, PAD, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<pad>", "<unk>"
VOCABULARY = {token: index for index, token in enumerate((PAD, UNKNOWN, *WORDS, START, END))}
SIDE, CELL, CONTEXT = 64, 32, 8
LEARNING_RATE, WARM_UP = 1.5e-3, 150
CHECKPOINT_EVERY = 100
FULL_CAPTIONS = 0.5
STAGE = 0.12
"""Share of a CLIP's training with scenes of one digit, then of up to two, and of up to three."""
HIDDEN_PATCHES, HIDDEN_UNTIL = 0.25, 0.8
"""Share of the patches that a CLIP does not see of a scene of several digits, in training up to its last fifth."""


@dataclass(frozen=True)
class Recipe:
    """What sets one of the models apart from the others."""

    model: type[PreTrainedModel]
    config: type
    width: int
    patch: int
    n_layers: int = 3
    batch: int = 128
    n_steps: int = 3000
    siglip: bool = False


RECIPES = {
    "clip": Recipe(CLIPModel, CLIPConfig, width=96, patch=16, n_layers=4, batch=64, n_steps=2500),
    "metaclip2": Recipe(MetaClip2Model, MetaClip2Config, width=112, patch=16, n_layers=4, batch=64, n_steps=2500),
    "siglip2_p8": Recipe(SiglipModel, SiglipConfig, width=96, patch=8, siglip=True),
    "siglip2_p16": Recipe(SiglipModel, SiglipConfig, width=96, patch=16, siglip=True),
}


def build_model(recipe: Recipe, seed: int) -> PreTrainedModel:
    """A model with random weights, drawn from ``seed``."""
    text = {
        "vocab_size": len(VOCABULARY), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": CONTEXT, "bos_token_id": VOCABULARY[START],
        "eos_token_id": VOCABULARY[END], "pad_token_id": VOCABULARY[PAD], "projection_size": recipe.width,
    }  # fmt: skip
    vision = {
        "hidden_size": recipe.width, "intermediate_size": recipe.width * 8 // 3, "num_hidden_layers": recipe.n_layers,
        "num_attention_heads": 4, "image_size": SIDE, "patch_size": recipe.patch,
    }  # fmt: skip
    extra = {}
    if not recipe.siglip:
        del text["projection_size"]
        vision["initializer_range"] = 0.06
        # the factor is of the projections only; the scale is where CLIP's training ends
        extra = {"projection_dim": 64, "initializer_factor": 0.1, "logit_scale_init_value": math.log(100)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = recipe.model(recipe.config(text_config=text, vision_config=vision, **extra))
        if recipe.siglip:  # where the sigmoid loss starts (Zhai et al., 2023)
            nn.init.constant_(model.logit_scale, math.log(10))
            nn.init.constant_(model.logit_bias, -5.0)
        else:
            start_clip(model)
    return model


@torch.no_grad()
def start_clip(model: CLIPModel | MetaClip2Model) -> None:
    """What a large encoder has by its depth and data, and one of four blocks does not find by itself.

    Patches know their place (two-dimensional sines) and attend to near ones, since queries and keys begin alike; all
    images and texts share a direction, so that cosines are positive, and all keys of the last block an offset, which
    its softmax does not see.
    """
    vision, text = model.vision_model, model.text_model
    positions = vision.embeddings.position_embedding.weight
    side, n_waves = math.isqrt(len(positions) - 1), positions.shape[1] // 4
    waves = 1.5 * 8 ** (-torch.arange(n_waves) / n_waves)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.reshape(-1, 1) * waves for axis in (row, column)]
    positions[1:] = 0.7 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    *inner, last = (layer.self_attn for layer in vision.encoder.layers)
    for attention in inner:
        attention.q_proj.weight *= 2
        attention.k_proj.weight.copy_(attention.q_proj.weight)
    nn.init.normal_(last.k_proj.bias)
    shared = torch.randn(model.config.projection_dim)
    for norm, projection in (
        (vision.post_layernorm, model.visual_projection),
        (text.final_layer_norm, model.text_projection),
    ):
        norm.bias.copy_(normalize(shared @ projection.weight, dim=0) * norm.bias.numel() ** 0.5)


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """One token a word; CLIP puts a token before and one behind the text, SigLIP one behind."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), WhitespaceSplit()
    template = f"$A {END}" if recipe.siglip else f"{START} $A {END}"
    specials = [(token, VOCABULARY[token]) for token in (START, END)]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONTEXT, pad_token=PAD, unk_token=UNKNOWN, eos_token=END,
        bos_token=START, model_input_names=["input_ids"] if recipe.siglip else ["input_ids", "attention_mask"],
    )  # fmt: skip


def build_image_processor(recipe: Recipe) -> CLIPImageProcessor | SiglipImageProcessor:
    """Pixels scaled to [-1, 1] at the model's resolution."""
    half = [0.5] * 3
    if recipe.siglip:
        return SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half)
    size = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size, image_mean=half, image_std=half)


@dataclass(frozen=True)
class Scenes:
    """A batch: images ``(k, 3, 64, 64)`` in [-1, 1]; ``present`` and ``captioned``, bool ``(k, 10)``; captions."""

    images: Tensor
    present: Tensor
    captioned: Tensor
    captions: list[str]


def draw_scenes(
    digits: Digits, count: int, rng: np.random.Generator, augment: bool = True, most: int = 4, fewest_words: int = 1
) -> Scenes:
    """Scenes of one to ``most`` different digits, each with a caption of some or all of its words in random order."""
    images = np.zeros((count, SIDE, SIDE), np.float32)
    present, captioned, captions = np.zeros((count, 10), bool), np.zeros((count, 10), bool), []
    for row in range(count):
        labels = rng.choice(10, size=rng.integers(1, most + 1), replace=False)
        for label, cell in zip(labels, rng.permutation(4), strict=False):
            image = digits.image(int(label), int(rng.integers(digits.count(int(label)))))
            side = int(rng.integers(22, CELL + 1)) if augment else CELL
            x, y = rng.integers(0, CELL - side + 1, size=2)
            top, left = cell // 2 * CELL + y, cell % 2 * CELL + x
            pixels = np.asarray(image.convert("L").resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
            images[row, top : top + side, left : left + side] = pixels * (rng.uniform(0.7, 1) if augment else 1)
        kept = len(labels) if rng.random() < FULL_CAPTIONS else int(rng.integers(fewest_words, len(labels) + 1))
        present[row, labels], captioned[row, labels[:kept]] = True, True
        captions.append(" ".join(WORDS[label] for label in labels[:kept]))
    if augment:
        images += rng.normal(0, 0.05, images.shape).astype(np.float32)
    pixels = torch.from_numpy(images.clip(0, 1) * 2 - 1)[:, None].expand(-1, 3, -1, -1)
    return Scenes(pixels, torch.from_numpy(present), torch.from_numpy(captioned), captions)


def matching_loss(model: PreTrainedModel, tokens: dict[str, Tensor], scenes: Scenes) -> Tensor:
    """The sigmoid loss of a SigLIP, where a caption fits every scene that holds all of its words."""
    logits = model(pixel_values=scenes.images, **tokens).logits_per_image
    fits = ~(scenes.captioned[None] & ~scenes.present[:, None]).any(-1)
    return -logsigmoid(torch.where(fits, logits, -logits)).sum(1).mean()


def contrastive_loss(
    model: CLIPModel | MetaClip2Model, tokens: dict[str, Tensor], scenes: Scenes, seen: Tensor
) -> Tensor:
    """The softmax loss of a CLIP: caption r is that of image r, of which the patches ``seen`` ``(k, p)`` are seen."""
    vision, view = model.vision_model, CLIP.encoder_view_of(model)
    x = vision.embeddings(scenes.images)
    tokens_seen = nn.functional.pad(seen + 1, (1, 0))  # [CLS] and patches
    x = vision.pre_layrnorm(x.gather(1, tokens_seen[..., None].expand(-1, -1, x.shape[2])))
    for block in view.blocks[:-1]:
        x = block.forward(x)[1]
    images = normalize(view.project(view.blocks[-1].forward(x, slice(0, 1))[1][:, 0]), dim=-1)
    texts = normalize(model.get_text_features(**tokens), dim=-1)
    logits = model.logit_scale.exp() * images @ texts.T
    own = torch.arange(len(logits))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def loss_at(
    progress: float,
    model: PreTrainedModel,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    digits: Digits,
    rng: np.random.Generator,
) -> Tensor:
    """The loss of a batch; a CLIP meets scenes of more digits as its training goes on, from 0 to 1."""
    if recipe.siglip:
        scenes = draw_scenes(digits, recipe.batch, rng)
        return matching_loss(model, tokenize(tokenizer, scenes.captions), scenes)
    most = min(1 + int(progress / STAGE), 4)
    scenes = draw_scenes(digits, recipe.batch, rng, most=most, fewest_words=0)
    n_patches = (SIDE // recipe.patch) ** 2
    n_seen = round(n_patches * (1 - HIDDEN_PATCHES)) if STAGE <= progress < HIDDEN_UNTIL else n_patches
    seen = rng.permuted(np.tile(np.arange(n_patches), (recipe.batch, 1)), axis=1)[:, :n_seen]
    return contrastive_loss(model, tokenize(tokenizer, scenes.captions), scenes, torch.from_numpy(seen))


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, Tensor]:
    """Token ids (and mask) padded to the context."""
    return dict(tokenizer(texts, padding="max_length", return_tensors="pt"))


@torch.no_grad()
def word_recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int, count: int = 1000) -> float:
    """Share of a held-out scene's k words among the k words that fit its image best, mean over scenes."""
    scenes = draw_scenes(Digits(), count, np.random.default_rng([seed, 1]), augment=False)
    logits = model.eval()(pixel_values=scenes.images, **tokenize(tokenizer, list(WORDS))).logits_per_image
    ranks = logits.argsort(1, descending=True).argsort(1)
    k = scenes.present.sum(1, keepdim=True)
    return float(((ranks < k) & scenes.present).sum(1).div(k[:, 0]).mean())


def steps_of(
    model: PreTrainedModel, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, n_steps: int, seed: int, state: Path
) -> Iterator[tuple[int, float]]:
    """Train from the last checkpoint in ``state`` on; yields (step, loss) and keeps a checkpoint."""
    digits = Digits(held_out=False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    first = load_checkpoint(model, optimiser, state)
    model.train()
    for step in range(first, n_steps):
        set_rate(optimiser, LEARNING_RATE, step, n_steps, WARM_UP)
        loss = loss_at(step / n_steps, model, recipe, tokenizer, digits, np.random.default_rng([seed, 0, step]))
        descend(loss, model, optimiser)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            save_checkpoint(model, optimiser, state, step + 1)
        yield step, loss.item()


def train(name: str, n_steps: int, seed: int, state: Path, out: Path) -> dict:
    """Train model ``name`` and write it to ``out``; its card."""
    recipe = RECIPES[name]
    model, tokenizer = build_model(recipe, seed), build_tokenizer(recipe)
    curve = read_curve(state)
    window = []
    for step, loss in track(steps_of(model, recipe, tokenizer, n_steps, seed, state), name, total=n_steps):
        window.append(loss)
        if (step + 1) % (CHECKPOINT_EVERY // 2) == 0:
            curve[str(step + 1)] = round(sum(window) / len(window), 4)
            window = []
        if (step + 1) % CHECKPOINT_EVERY == 0:
            save_curve(curve, state)
            print(f"{name} step {step + 1}: loss {curve[str(step + 1)]}", flush=True)
    model.half()  # on disk; it is loaded in float32, and measured as it will be loaded
    for part in (model.eval(), tokenizer, build_image_processor(recipe)):
        part.save_pretrained(out)
    recall = word_recall(model.float(), tokenizer, seed)
    card = {
        "model": name, "class": type(model).__name__, "seed": seed, "steps": n_steps, "batch": recipe.batch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_digits": "scikit-learn's, without the last 50 of each class",
        "word_recall_on_held_out_scenes": round(recall, 4), "training_loss": curve,
    }  # fmt: skip
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=RECIPES, required=True)
    parser.add_argument("--steps", type=int, help="default: those of the committed files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # two models train side by side on two cores
    out = arguments.out or Path("data/tiny") / arguments.model
    n_steps = arguments.steps or RECIPES[arguments.model].n_steps
    state = Path("outputs/training") / f"{arguments.model}-seed{arguments.seed}-steps{n_steps}"
    card = train(arguments.model, n_steps, arguments.seed, state, out)
    print({key: value for key, value in card.items() if key != "training_loss"})


if __name__ == "__main__":
    main()
