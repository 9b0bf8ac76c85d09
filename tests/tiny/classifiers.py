"""Small classifiers with random weights of every family, and samples for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    ViTImageProcessor,
)

from metagame.contracts import WHOLE, Sample
from metagame.models.classified import Classified
from metagame.models.image_classifier import ClassifiedImage, ImageClassifier
from metagame.models.language_model import Prompt
from metagame.models.text_classifier import TextClassifier
from scripts.train_text_classifier import PAD, VOCABULARY, build_tokenizer
from tests.tiny.language import randomise

CONTEXT, SIDE, PATCH = 16, 6, 2
LABELS = {"id2label": {0: "bad", 1: "good", 2: "neither"}, "label2id": {"bad": 0, "good": 1, "neither": 2}}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT_SHAPE = {"vocab_size": len(VOCABULARY), "max_position_embeddings": CONTEXT, "pad_token_id": VOCABULARY[PAD]}
IMAGE_SHAPE = {"image_size": SIDE, "patch_size": PATCH}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
TEXT_NETS = {"bert": SHAPE, "distilbert": DISTILBERT, "roberta": SHAPE}
DEIT = {**SHAPE, "architectures": ["DeiTForImageClassification"]}
IMAGE_NETS = {"vit": SHAPE, "deit": DEIT, "dinov2": {**SHAPE, "mlp_ratio": 2}}
TEXT = "the food was good"


@dataclass(frozen=True)
class Read(Prompt):
    id: str
    text: str


@dataclass(frozen=True)
class Seen(Sample):
    id: str
    shape: tuple[int, ...] = (SIDE, SIDE, 3)

    @property
    def shown(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, 255, self.shape, np.uint8)

    def image(self) -> Image.Image:
        return Image.fromarray(self.shown)


def text_net(family: str = "bert", attention: str = "eager", **config) -> PreTrainedModel:
    settings = TEXT_SHAPE | LABELS | TEXT_NETS[family] | config
    config = AutoConfig.for_model(family, **settings, attn_implementation=attention)
    net = AutoModelForSequenceClassification.from_config(config)
    return randomise(net, 0).eval().double().requires_grad_(False)


def image_net(family: str = "vit", attention: str = "eager") -> PreTrainedModel:
    settings = IMAGE_SHAPE | LABELS | IMAGE_NETS[family]
    config = AutoConfig.for_model(family, **settings, attn_implementation=attention)
    return randomise(AutoModelForImageClassification.from_config(config), 0).eval().double().requires_grad_(False)


def text_classifier(family: str = "bert", net: PreTrainedModel | None = None, **settings) -> TextClassifier:
    return TextClassifier(net or text_net(family), build_tokenizer(), "none", **settings)


def image_classifier(family: str = "vit", net: PreTrainedModel | None = None, **settings) -> ImageClassifier:
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    return ImageClassifier(net or image_net(family), processor, "none", **settings)


def bound_text(text: str = TEXT, **settings) -> Classified:
    return text_classifier(**settings).bind(Read("one", text))[WHOLE]


def bound_image(**settings) -> ClassifiedImage:
    return image_classifier(**settings).bind(Seen("one"))[WHOLE]
