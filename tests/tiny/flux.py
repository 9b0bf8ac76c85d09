"""Very small FLUX pipelines with random weights, and samples about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

from metagame.models.concepts import ConceptQuestion, ConceptSample
from metagame.models.flux import Denoising, Flux
from scripts.train_diffusion import build_tokenizers
from tests.tiny.vision_language import picture, randomise

WORDS = (
    "plane", "bike", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog", "horse",
    "motorcycle", "person", "pot", "sheep", "sofa", "train", "monitor", "background", "floor", "grass", "tree", "sky",
    "kite", "clock", "oven", "spoon", "street", "a", "on",
)  # fmt: skip
"""Each one token; the first 25 are the paper's concepts on VOC."""
CONCEPTS = WORDS[:25]
PLAYERS, BACKGROUND = ("car", "cat", "dog"), ("sky", "grass")
SIDE, PATCHES, TEXT_LENGTH = 16, 16, 6
N_LAYERS, N_HEADS, HEAD_WIDTH, TEXT_WIDTH, POOLED_WIDTH, LATENT_CHANNELS = 3, 2, 16, 24, 16, 4
AXES = (4, 6, 6)
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")


def build_t5_tokenizer(words: Sequence[str] = WORDS, length: int = TEXT_LENGTH) -> T5TokenizerFast:
    """A tokenizer of words, some of which come in pieces, that puts an end token behind a text."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in words), "boat", "s"]
    core = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    core.pre_tokenizer = Metaspace()
    core.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=core, model_max_length=length, extra_ids=0)


def build_transformer(guidance: bool = False, seed: int = 0, **config: Any) -> FluxTransformer2DModel:
    """A transformer whose attention is sharp enough for concepts to differ."""
    settings = {
        "in_channels": 4 * LATENT_CHANNELS, "num_layers": N_LAYERS, "num_single_layers": 1,
        "attention_head_dim": HEAD_WIDTH, "num_attention_heads": N_HEADS, "joint_attention_dim": TEXT_WIDTH,
        "pooled_projection_dim": POOLED_WIDTH, "guidance_embeds": guidance, "axes_dims_rope": AXES,
    }  # fmt: skip
    net = randomise(FluxTransformer2DModel(**settings | config).eval(), seed)
    for block in net.transformer_blocks:
        for norm in (block.attn.norm_q, block.attn.norm_added_q):
            norm.weight.data *= 3
    return net


def build_pipeline(guidance: bool = False, seed: int = 0) -> FluxPipeline:
    """All parts with random weights, also of biases and norms."""
    with TemporaryDirectory() as files:
        tokenizer, tokenizer_2 = build_tokenizers(Path(files))["tokenizer"], build_t5_tokenizer()
    vae = AutoencoderKL(
        latent_channels=LATENT_CHANNELS, block_out_channels=(4, 8), norm_num_groups=2, sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.7,
        shift_factor=0.1,
    )  # fmt: skip
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=POOLED_WIDTH, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2), d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    t5 = randomise(t5.eval(), seed + 3)
    t5.shared.weight.data *= 5  # for encodings that differ
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=randomise(vae.eval(), seed + 1),
        text_encoder=randomise(clip.eval(), seed + 2),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=build_transformer(guidance, seed),
    )


@cache
def shared_pipeline(guidance: bool) -> FluxPipeline:
    """A random pipeline for tests that leave it as it is."""
    pipeline = build_pipeline(guidance)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build(side: int = SIDE, guidance: float | None = None, **denoising: Any) -> Flux:
    """The adapter of a random pipeline, which takes a guidance where one is given."""
    when = Denoising(side, guidance=guidance, **denoising)
    return Flux(shared_pipeline(guidance is not None), "random", "cpu", when, TEXT_LENGTH)


def save(folder: Path) -> Path:
    build_pipeline().save_pretrained(folder)
    return folder


def load(folder: Path | str, revision: str | None = None, noise: str = "cpu", **settings: Any) -> Flux:
    settings = {"device": "cpu"} | settings
    return Flux.load(str(folder), revision, Denoising(SIDE, noise=noise), TEXT_LENGTH, **settings)


def encodings(count: int, seed: int = 0) -> Tensor:
    """Random encodings of concepts."""
    return torch.randn(count, TEXT_WIDTH, generator=torch.Generator().manual_seed(100 + seed))


def transformer_inputs(guidance: bool = False, seed: int = 0, height: int = 3, width: int = 4) -> dict[str, Tensor]:
    """Random arguments of a transformer's forward pass, of an image that is no square."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "hidden_states": (1, height * width, 4 * LATENT_CHANNELS),
        "encoder_hidden_states": (1, TEXT_LENGTH, TEXT_WIDTH),
        "pooled_projections": (1, POOLED_WIDTH),
    }
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    inputs["timestep"] = torch.tensor([0.5])
    inputs["img_ids"] = FluxPipeline._prepare_latent_image_ids(1, height, width, "cpu", torch.float32)
    inputs["txt_ids"] = torch.zeros(TEXT_LENGTH, 3)
    if guidance:
        inputs["guidance"] = torch.tensor([3.5])
    return inputs


def ask(players=PLAYERS, background=BACKGROUND, n_layers: int = 2, **settings: Any) -> ConceptQuestion:
    return ConceptQuestion(tuple(players), tuple(background), n_layers, **settings)


@dataclass(frozen=True)
class Photo(ConceptSample):
    """An image and questions about it by name."""

    asked: Mapping[str, ConceptQuestion] = field(default_factory=lambda: {"all": ask()})
    shown: Image.Image = field(default_factory=lambda: picture(0, 40))
    id: str = "photo"

    def image(self) -> Image.Image:
        return self.shown

    def questions(self) -> Mapping[str, ConceptQuestion]:
        return self.asked


def count_hooks(net: nn.Module | FluxPipeline) -> int:
    """How many hooks all modules of a model or pipeline hold, of whatever kind."""
    nets = [getattr(net, part) for part in PARTS] if isinstance(net, FluxPipeline) else [net]
    held = [item for each in nets for module in each.modules() for item in vars(module).items()]
    return sum(len(value) for name, value in held if name.endswith("_hooks") or "_hooks_" in name)


@contextmanager
def counted(modules: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Within: the modules that are called, in order; also those whose forward pass does not come to its end."""
    calls: list[nn.Module] = []
    handles = [module.register_forward_pre_hook(lambda module, _: calls.append(module)) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(transformer: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Within: the arguments of each forward pass of the transformer."""
    passes: list[dict[str, Any]] = []
    handle = transformer.register_forward_pre_hook(lambda _, args, given: passes.append(given), with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
