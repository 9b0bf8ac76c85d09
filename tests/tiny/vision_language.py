"""Small vision-language models with random weights of every family, a tokenizer of words, and samples about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPImageProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

from metagame import UserError
from metagame.attributions.generic_attention import GenericAttention
from metagame.attributions.grad_eclip import GradECLIP, GradESigLIP
from metagame.attributions.mask_clip import MaskCLIP, MaskSigLIP
from metagame.attributions.method import FirstOrder
from metagame.attributions.patch_ig import PatchIG
from metagame.contracts import Failure, InputT, Model, SampleT
from metagame.models.clip import CLIP
from metagame.models.open_clip import OpenCLIP
from metagame.models.pretrained import PretrainedTokenizer
from metagame.models.siglip2 import SigLIP2
from metagame.models.vision_language import ImageText, Players, Sample, Tokenizer, VisionLanguage, WordPlayers
from scripts.convert_to_open_clip import convert, write
from scripts.train_vision_language import END, PAD, RECIPES, START, VOCABULARY, build_tokenizer
from tests.conftest import unchecked
from tests.reference import vision_language as reference

SIDE, WIDTH, TEXT_WIDTH, N_HEADS, N_LAYERS = 32, 32, 24, 4, 3
HALF = [0.5, 0.5, 0.5]
FAMILIES = ("clip", "metaclip2", "siglip2", "open_clip")
CLASS_TOKEN_FAMILIES = ("clip", "metaclip2", "open_clip")
MODEL_TYPES = {"clip": "clip", "metaclip2": "metaclip_2", "siglip2": "siglip"}


@contextmanager
def refused(match):
    """What is off is said in one sentence."""
    with unchecked(), pytest.raises(UserError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@dataclass(frozen=True)
class Method:
    """A first-order method, and its slow twin: model, pixels ``(3, H, W)``, ids -> map ``(P,)``."""

    name: str
    make: Callable[[], FirstOrder]
    twin: Callable[[nn.Module, Tensor, Sequence[int]], np.ndarray]


def variants(name: str, method: type, twin: Callable, *settings: Mapping) -> list[Method]:
    """A method by itself, and with each of these settings, which its twin has by the same names."""
    return [
        Method("-".join(map(str, (name, *given.values()))), partial(method, **given), partial(twin, **given))
        for given in ({}, *settings)
    ]


ATTENTION = ({"start_layer": 0}, {"start_layer": 1}, {"start_layer": 0, "product": "mean_of"})
NATIVE = {"heads": "native"}
PATCH_IG = variants("patch_ig", PatchIG, reference.patch_ig, {"steps": 3, "block": -2})
METHODS_OF_CLASS_TOKENS = (
    *variants("attention", GenericAttention, reference.attention, *ATTENTION),
    *variants("mask_clip", MaskCLIP, reference.mask_clip),
    *variants("grad_eclip", GradECLIP, reference.grad_eclip, NATIVE),
    *PATCH_IG,
)
METHODS_OF_PROBES = (
    *variants("attention", GenericAttention, reference.attention_siglip, *ATTENTION),
    *PATCH_IG,
    *variants("mask_siglip", MaskSigLIP, reference.mask_siglip, NATIVE),
    *variants("grad_esiglip", GradESigLIP, reference.grad_esiglip, NATIVE),
)


def methods_of(family: str) -> tuple[Method, ...]:
    return METHODS_OF_PROBES if family == "siglip2" else METHODS_OF_CLASS_TOKENS


@dataclass(frozen=True)
class Scene(Sample):
    """An image and texts about it, by name, a tuple of words each."""

    id: str
    picture: Image.Image
    words: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"text": ("one", "two", "three")})

    def image(self) -> Image.Image:
        return self.picture

    def texts(self, tokenizer: Tokenizer) -> dict[str, Players]:
        return {name: WordPlayers(tokenizer, words) for name, words in self.words.items()}


SCENARIOS = {"1": ("one",), "2": ("one", "two"), "3": ("one", "two", "three"), "4": ("one", "two", "three", "four")}


def picture(seed: int = 0, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def scene(seed: int = 0, **texts: Sequence[str]) -> Scene:
    return Scene(f"scene {seed}", picture(seed), texts) if texts else Scene(f"scene {seed}", picture(seed))


def prepare_one(model: Model[SampleT, InputT], sample: SampleT) -> Mapping[str, InputT]:
    """The inputs of a sample; what keeps it from being prepared is raised."""
    (prepared,) = model.prepare([sample])
    if isinstance(prepared, Failure):
        raise prepared.error
    return prepared


@dataclass(frozen=True)
class Built:
    """An adapter, and the transformers model with the same weights that the slow twins take."""

    family: str
    model: VisionLanguage
    net: nn.Module
    tokenizer: PreTrainedTokenizerFast

    def ids(self, text: str) -> list[int]:
        """The ids of a text as the model's own processor gives them."""
        if self.family == "siglip2":
            context = self.model.tokenizer.context
            return self.tokenizer(text.lower(), padding="max_length", max_length=context)["input_ids"]
        return self.tokenizer(text)["input_ids"]

    def bound(self, seed: int = 0, words: Sequence[str] = ("one", "two", "three")) -> ImageText:
        return prepare_one(self.model, scene(seed, text=words))["text"]

    def twin_table(self, method: Method, bound: ImageText) -> np.ndarray:
        """The slow twin's map of the text of every coalition, ``(2**m, P)``."""
        words = bound.players
        kept = [[word for j, word in enumerate(words) if number >> j & 1] for number in range(1 << len(words))]
        return np.array([method.twin(self.net, bound.image.pixels, self.ids(" ".join(part))) for part in kept])


def build(family: str, dtype: torch.dtype = torch.float64, patch: int = 8, context: int = 8, seed: int = 3) -> Built:
    """A small random model of ``family``; open_clip's has the weights of a CLIPModel."""
    net = build_net("clip" if family == "open_clip" else family, patch, context, seed).to(dtype)
    tokenizer = build_tokenizer(RECIPES["siglip2_p8" if family == "siglip2" else "clip"])
    words = PretrainedTokenizer(tokenizer, context, clean=str.lower if family == "siglip2" else str)
    if family == "open_clip":
        transform = image_transform_v2(PreprocessCfg(size=SIDE, mean=tuple(HALF), std=tuple(HALF)), is_train=False)
        model = OpenCLIP(convert(net), transform, words, "random")
    else:
        adapter = SigLIP2 if family == "siglip2" else CLIP
        model = adapter(net, build_image_processor(family), words, "random")
    return Built(family, model, net, tokenizer)


def build_net(family: str, patch: int = 8, context: int = 8, seed: int = 3) -> nn.Module:
    """A model of transformers with random weights large enough for maps that are not flat."""
    text = {
        "vocab_size": len(VOCABULARY), "hidden_size": TEXT_WIDTH, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": N_HEADS, "max_position_embeddings": context, "bos_token_id": VOCABULARY[START],
        "eos_token_id": VOCABULARY[END], "pad_token_id": VOCABULARY[PAD],
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS,
        "image_size": SIDE, "patch_size": patch,
    }  # fmt: skip
    extra = {"projection_dim": 20}
    if family == "siglip2":
        text["projection_size"], extra = WIDTH, {}
    config = AutoConfig.for_model(MODEL_TYPES[family], text_config=text, vision_config=vision, **extra)
    return randomise(AutoModel.from_config(config).eval(), seed)


def randomise(net: nn.Module, seed: int) -> nn.Module:
    """Every weight drawn anew: matrices for a gain of about 1, norms around 1, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if name in ("logit_scale", "logit_bias"):
                parameter.copy_(1.5 + noise.abs())
            elif parameter.ndim == 1:
                norm = "norm" in name and name.endswith("weight")
                parameter.copy_(norm + 0.2 * noise)
            elif "embedding" in name and "patch" not in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)
    return net


def build_image_processor(family: str) -> CLIPImageProcessor | SiglipImageProcessor:
    size = {"height": SIDE, "width": SIDE}
    if family == "siglip2":
        return SiglipImageProcessor(size=size, image_mean=HALF, image_std=HALF)
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size, image_mean=HALF, image_std=HALF)


def save(family: str, folder: Path, seed: int = 3) -> Path:
    """A model, its tokenizer and its image processor, as a checkpoint in ``folder``."""
    if family == "open_clip":
        write(str(save("clip", folder / "transformers", seed)), folder)
        return folder
    built = build(family, torch.float32, seed=seed)
    for part in (built.net, built.tokenizer, build_image_processor(family)):
        part.save_pretrained(folder)
    return folder
