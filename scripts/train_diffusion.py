"""Train the small FLUX from scratch to paint scenes of handwritten digits from their names.

    python -m scripts.train_diffusion [--steps 6000] [--seed 0] [--out data/tiny/flux]

The pipeline is a FluxPipeline with a FluxTransformer2DModel, an AutoencoderKL, a T5 and a CLIP text encoder and their
tokenizers, all small. The autoencoder is trained first, then the transformer with the text encoders by flow matching.
A prompt names the digits and the background, the names alone, or nothing. Scenes are drawn from (seed, step), so a run
that was stopped goes on from its last checkpoint (in outputs/training) as if it had not been.
"""

from __future__ import annotations

import argparse
import json
import math
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from rich.progress import track
from sentencepiece import SentencePieceNormalizer
from sentencepiece.sentencepiece_model_pb2 import ModelProto, NormalizerSpec, TrainerSpec
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from metagame.benchmarks.digit_scenes import BACKGROUNDS, SIDE, WORDS, DigitScene, draw_scene, full_prompt
from metagame.benchmarks.digits import Digits
from metagame.digests import digest, file_digest
from scripts.read_digits import read_paintings
from scripts.training import descend, load_checkpoint, read_curve, save_checkpoint, save_curve, set_rate

TEXT_WORDS = ("a", "on", ",", *WORDS, *BACKGROUNDS)
T5_SPECIALS = {
    "<pad>": ModelProto.SentencePiece.CONTROL,
    "</s>": ModelProto.SentencePiece.CONTROL,
    "<unk>": ModelProto.SentencePiece.UNKNOWN,
}
T5_VOCABULARY = {token: index for index, token in enumerate((*T5_SPECIALS, *(f"▁{word}" for word in TEXT_WORDS)))}
T5_SPELLING = {
    **{letter: letter.lower() for letter in string.ascii_uppercase},
    **{mark: f" {mark} " for mark in string.punctuation},
    **dict.fromkeys("\t\n\r", " "),
}
"""What T5's tokenizer reads characters as: words in lower case, and a punctuation mark is a word."""


def _spelled(word: str) -> list[str]:
    """The characters of a word, as CLIP's byte-pair encoding begins with them."""
    return [*word[:-1], f"{word[-1]}</w>"]


def _merges(word: str) -> list[tuple[str, str]]:
    """The merges that put a word together from its first character on."""
    symbols = _spelled(word)
    return [("".join(symbols[:place]), symbols[place]) for place in range(1, len(symbols))]


CLIP_MERGES = list(dict.fromkeys(" ".join(pair) for word in TEXT_WORDS for pair in _merges(word)))
CLIP_VOCABULARY = {
    token: index
    for index, token in enumerate(
        dict.fromkeys(
            (
                *(symbol for word in TEXT_WORDS for symbol in _spelled(word)),
                *(merge.replace(" ", "") for merge in CLIP_MERGES),
                "<|startoftext|>",
                "<|endoftext|>",
            )
        )
    )
}
CONTEXT = 16
LATENT_CHANNELS = 8
GRID = SIDE // 4
"""Tokens on a side of the picture: the autoencoder halves it, and two by two latents make a token."""
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
BATCH, LEARNING_RATE, WARM_UP = 32, 1.5e-3, 200
FULL_PROMPTS, BARE_NAMES = 0.6, 0.3
"""Shares of the prompts of training; the rest is empty."""
MEAN_NOISE = 0.7
"""The noise share is the sigmoid of a normal variable of this mean: in much noise only the prompt tells the digits."""
AUTOENCODER_STEPS, AUTOENCODER_RATE = 600, 2e-3
CHECKPOINT_EVERY = 100


def build_parts(seed: int) -> dict[str, nn.Module]:
    """The modules of the pipeline with random weights, drawn from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {
            "transformer": FluxTransformer2DModel(
                in_channels=4 * LATENT_CHANNELS, num_layers=4, num_single_layers=1, attention_head_dim=32,
                num_attention_heads=4, joint_attention_dim=64, pooled_projection_dim=32, axes_dims_rope=(8, 12, 12),
            ),
            "vae": AutoencoderKL(
                in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, block_out_channels=(16, 32),
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                layers_per_block=1, norm_num_groups=8, sample_size=SIDE, mid_block_add_attention=False,
                use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.0, shift_factor=0.0,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(CLIP_VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                    num_attention_heads=2, max_position_embeddings=CONTEXT,
                    bos_token_id=CLIP_VOCABULARY["<|startoftext|>"], eos_token_id=CLIP_VOCABULARY["<|endoftext|>"],
                    pad_token_id=CLIP_VOCABULARY["<|endoftext|>"],
                )
            ),
            "text_encoder_2": T5EncoderModel(
                T5Config(
                    vocab_size=len(T5_VOCABULARY), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
                    feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False, use_cache=False,
                    pad_token_id=0, eos_token_id=1,
                )
            ),
        }  # fmt: skip


def build_t5_model() -> ModelProto:
    """SentencePiece's model of T5's vocabulary: what FLUX has as ``spiece.model``, of words alone."""
    normalizer = SentencePieceNormalizer(norm_map=list(T5_SPELLING.items()))
    return ModelProto(
        pieces=[
            ModelProto.SentencePiece(
                piece=token,
                score=0.0 if token in T5_SPECIALS else -1.0,
                type=T5_SPECIALS.get(token, ModelProto.SentencePiece.NORMAL),
            )
            for token in T5_VOCABULARY
        ],
        trainer_spec=TrainerSpec(
            model_type=TrainerSpec.UNIGRAM, vocab_size=len(T5_VOCABULARY), pad_id=T5_VOCABULARY["<pad>"],
            eos_id=T5_VOCABULARY["</s>"], unk_id=T5_VOCABULARY["<unk>"], bos_id=-1,
        ),
        normalizer_spec=NormalizerSpec.FromString(normalizer.serialized_normalizer_spec()),
    )  # fmt: skip


def build_tokenizers(folder: Path) -> dict[str, CLIPTokenizer | T5TokenizerFast]:
    """Tokenizers of words; T5's puts an end token behind the text, CLIP's a token before and one behind.

    T5's is made of its ``spiece.model`` whenever it is loaded, as FLUX's is: its config has ``add_prefix_space``.

    Args:
        folder: for the files that they are made of; those of T5 must be there still when the tokenizer is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges, spiece = (folder / name for name in ("vocab.json", "merges.txt", "spiece.model"))
    vocabulary.write_text(json.dumps(CLIP_VOCABULARY), encoding="utf-8")
    merges.write_text("\n".join(["#version: 0.2", *CLIP_MERGES, ""]), encoding="utf-8")
    spiece.write_bytes(build_t5_model().SerializeToString(deterministic=True))
    return {
        "tokenizer": CLIPTokenizer(str(vocabulary), str(merges), model_max_length=CONTEXT),
        "tokenizer_2": T5TokenizerFast(
            str(spiece), model_max_length=CONTEXT, extra_ids=0, add_prefix_space=True, legacy=True
        ),
    }


def training_prompt(scene: DigitScene, rng: np.random.Generator) -> str:
    """Mostly the full prompt, else the names of the digits alone, or nothing."""
    prompt = full_prompt(scene, rng)
    kind = rng.random()
    if kind < FULL_PROMPTS:
        return prompt
    if kind < FULL_PROMPTS + BARE_NAMES:
        return " ".join(word for word in prompt.replace(",", "").split() if word in WORDS)
    return ""


@dataclass(frozen=True)
class Batch:
    """Pictures ``(k, 3, 48, 48)`` from -1 to 1, with their prompts."""

    images: Tensor
    prompts: list[str]


def batch(digits: Digits, count: int, seed: list[int]) -> Batch:
    """Scenes and prompts, drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(digits, rng) for _ in range(count)]
    pixels = np.stack([scene.pixels for scene in scenes]).astype(np.float32)
    return Batch(
        torch.from_numpy(pixels).permute(0, 3, 1, 2) * 2 - 1, [training_prompt(scene, rng) for scene in scenes]
    )


def pack(latents: Tensor) -> Tensor:
    """Latents ``(k, c, 2g, 2g)`` as tokens ``(k, g*g, 4c)``."""
    k, c, height, width = latents.shape
    return FluxPipeline._pack_latents(latents, k, c, height, width)


def train_autoencoder(vae: AutoencoderKL, n_steps: int, seed: int) -> float:
    """Reconstruct scenes with a slight pull of the latents to a standard normal; the mean absolute error at the end."""
    digits, error = Digits(held_out=False), 1.0
    optimiser = torch.optim.Adam(vae.parameters(), lr=AUTOENCODER_RATE)
    generator = torch.Generator().manual_seed(seed)
    for step in track(range(n_steps), "autoencoder"):
        for group in optimiser.param_groups:
            group["lr"] = AUTOENCODER_RATE * (0.5 + 0.5 * math.cos(math.pi * step / n_steps))
        images = batch(digits, BATCH, [seed, 1, step]).images
        latent = vae.encode(images).latent_dist
        rebuilt = vae.decode(latent.sample(generator)).sample
        loss = nn.functional.l1_loss(rebuilt, images) + 1e-4 * latent.kl().mean() / latent.mean[0].numel()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        error = 0.95 * error + 0.05 * nn.functional.l1_loss(rebuilt, images).item()
        if (step + 1) % CHECKPOINT_EVERY == 0:
            print(f"autoencoder step {step + 1}: {error:.4f}", flush=True)
    with torch.no_grad():
        latents = vae.encode(batch(digits, 512, [seed, 2]).images).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    return error


@dataclass(frozen=True)
class TextIds:
    """Token ids of prompts, padded to the context."""

    clip: Tensor
    t5: Tensor


def tokenize(tokenizers: dict, prompts: list[str]) -> TextIds:
    """Ids for both text encoders."""
    settings = {"padding": "max_length", "max_length": CONTEXT, "truncation": True, "return_tensors": "pt"}
    ids = [tokenizers[name](prompts, **settings)["input_ids"] for name in ("tokenizer", "tokenizer_2")]
    return TextIds(*ids)


def flow_loss(parts: dict[str, nn.Module], images: Tensor, text: TextIds, generator: torch.Generator) -> Tensor:
    """Flow matching: the transformer predicts noise - latents at (1-t) latents + t noise; half without pooled text."""
    vae, transformer = parts["vae"], parts["transformer"]
    with torch.no_grad():
        latents = (vae.encode(images).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    tokens = pack(latents)
    noise = torch.randn(tokens.shape, generator=generator)
    t = torch.sigmoid(MEAN_NOISE + torch.randn(len(tokens), generator=generator))
    noisy = (1 - t[:, None, None]) * tokens + t[:, None, None] * noise
    pooled = parts["text_encoder"](input_ids=text.clip).pooler_output
    pooled = pooled * (torch.rand(len(pooled), 1, generator=generator) < 0.5)
    found = transformer(
        hidden_states=noisy,
        encoder_hidden_states=parts["text_encoder_2"](input_ids=text.t5)[0],
        pooled_projections=pooled,
        timestep=t,
        img_ids=FluxPipeline._prepare_latent_image_ids(1, GRID, GRID, "cpu", torch.float32),
        txt_ids=torch.zeros(CONTEXT, 3),
    ).sample
    return nn.functional.mse_loss(found.float(), noise - tokens)


def steps_of(
    parts: dict[str, nn.Module], tokenizers: dict, n_steps: int, seed: int, state: Path
) -> Iterator[tuple[int, float]]:
    """Train all but the autoencoder from the last checkpoint in ``state`` on; yields (step, loss)."""
    model = nn.ModuleDict({name: part for name, part in parts.items() if name != "vae"})
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    first = load_checkpoint(model, optimiser, state)
    digits = Digits(held_out=False)
    for step in range(first, n_steps):
        set_rate(optimiser, LEARNING_RATE, step, n_steps, WARM_UP)
        scenes = batch(digits, BATCH, [seed, 0, step])
        generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, 3, step]).integers(1 << 62)))
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow_loss(parts, scenes.images, tokenize(tokenizers, scenes.prompts), generator)
        descend(loss, model, optimiser)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            save_checkpoint(model, optimiser, state, step + 1)
        yield step, loss.item()


def autoencoder(vae: AutoencoderKL, n_steps: int, seed: int, state: Path) -> AutoencoderKL:
    """The trained autoencoder: as an earlier run left it in ``state``, else trained here."""
    folder = state / "vae"
    if not folder.exists():
        train_autoencoder(vae, n_steps, seed)
        vae.save_pretrained(state / "vae.new")
        (state / "vae.new").rename(folder)
    return AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)


def train(n_steps: int, seed: int, state: Path) -> FluxPipeline:
    """The trained pipeline, in float32."""
    parts, tokenizers = build_parts(seed), build_tokenizers(state / "tokenizers")
    parts["vae"] = autoencoder(parts["vae"], AUTOENCODER_STEPS, seed, state)
    curve, window = read_curve(state), []
    for step, loss in track(steps_of(parts, tokenizers, n_steps, seed, state), "transformer", total=n_steps):
        window.append(loss)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            curve[str(step + 1)] = round(sum(window) / len(window), 4)
            window = []
            save_curve(curve, state)
            print(f"step {step + 1}: loss {curve[str(step + 1)]}", flush=True)
    return FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0), **parts, **tokenizers)


def digest_of_weights(folder: Path) -> str:
    """What tells by the card which weights it is of."""
    return digest([file_digest(path) for path in sorted(folder.glob("**/*.safetensors"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("data/tiny/flux"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    state = Path("outputs/training") / f"flux-seed{arguments.seed}-steps{arguments.steps}"
    state.mkdir(parents=True, exist_ok=True)
    pipeline = train(arguments.steps, arguments.seed, state)
    parts = {name: getattr(pipeline, name).to(torch.float16) for name in PARTS}  # on disk; it is loaded in float32
    pipeline.save_pretrained(arguments.out)
    card = {
        "class": type(pipeline).__name__, "seed": arguments.seed, "steps": arguments.steps, "batch": BATCH,
        "parameters": {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()},
        "weights": digest_of_weights(arguments.out),
        "digits_read": read_paintings(str(arguments.out)),
        "training_loss": read_curve(state),
    }  # fmt: skip
    (arguments.out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(card["digits_read"], indent=1))


if __name__ == "__main__":
    main()
