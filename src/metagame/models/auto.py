"""The adapter that fits a checkpoint, or a model that is loaded already."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, PreTrainedModel

from metagame.contracts import Model
from metagame.errors import UserError
from metagame.extras import needed_by
from metagame.models import image_classifier, language_model, text_classifier
from metagame.models.clip import CLIP
from metagame.models.image_classifier import ImageClassifier
from metagame.models.language_model import LanguageModel
from metagame.models.pretrained import PretrainedTokenizer, load_pretrained, load_tokenizer
from metagame.models.siglip2 import SigLIP2
from metagame.models.text_classifier import TextClassifier
from metagame.models.transformers_encoder import TransformersEncoder

PIPELINE = "model_index.json"
"""The file that a checkpoint of diffusers has in place of a config."""
PAINTS = "_pipeline"
CONFIG = "config.json"
OPEN_CLIP = "open_clip_config.json"
OBJECT = "an object"
"""The revision of a model that was given as one; nothing is kept by it."""


@dataclass(frozen=True)
class Family:
    """Architectures that an adapter is for.

    Attributes:
        classes: model class of each.
        adapter: with ``load``.
        beside: what the adapter of a model needs beside it, by the model's class, the model and its processor.
    """

    classes: Mapping[str, type[PreTrainedModel]]
    adapter: Any
    beside: Callable[[Any, PreTrainedModel, Any], dict[str, Any]]


def _tokenizer(adapter: Any, net: PreTrainedModel, processor: Any) -> dict[str, Any]:
    return {"tokenizer": processor or load_tokenizer(_source(net), None)}


def _chat_tokenizer(adapter: Any, net: PreTrainedModel, processor: Any) -> dict[str, Any]:
    tokenizer = processor or load_tokenizer(_source(net), None)
    return {"tokenizer": tokenizer, "chat": tokenizer.chat_template is not None}


def _image_processor(adapter: Any, net: PreTrainedModel, processor: Any) -> dict[str, Any]:
    return {"processor": processor or load_pretrained(AutoImageProcessor.from_pretrained, _source(net), None)}


def _both(adapter: type[TransformersEncoder], net: PreTrainedModel, processor: Any) -> dict[str, Any]:
    processor = processor or load_pretrained(AutoProcessor.from_pretrained, _source(net), None)
    context = net.config.text_config.max_position_embeddings
    tokenizer = PretrainedTokenizer(processor.tokenizer, context, adapter.clean)
    return {"processor": processor.image_processor, "tokenizer": tokenizer}


def _source(net: PreTrainedModel) -> str:
    if not net.name_or_path:
        raise UserError(
            f"it is not known where this {type(net).__name__} was loaded from: pass its tokenizer or processor as"
            " processor=."
        )
    return net.name_or_path


FAMILIES = (
    Family(CLIP.classes, CLIP, _both),
    Family(SigLIP2.classes, SigLIP2, _both),
    Family(language_model.CLASSES, LanguageModel, _chat_tokenizer),
    Family(text_classifier.CLASSES, TextClassifier, _tokenizer),
    Family(image_classifier.CLASSES, ImageClassifier, _image_processor),
)


def load_model(model: Any, *, processor: Any = None, **settings: Any) -> Model:
    """Load a language model, a classifier of texts or images, CLIP, MetaCLIP-2, SigLIP(-2) or FLUX into its adapter.

    Args:
        model: a folder, an id on the Hugging Face Hub, or a transformers model, which is put into evaluation mode and
            whose weights get no gradients. An adapter is returned as it is.
        processor: for a transformers model, its tokenizer or image processor, or for a vision-language encoder its
            processor. If None, it is loaded from where the model was loaded.
        settings: arguments of the adapter's ``load``, such as ``device``, ``dtype`` and ``revision``; if a transformers
            model is given, those of the adapter's class.

    Raises:
        UserError: the model cannot be loaded, no adapter fits it, or it does not accept these settings.
    """
    if isinstance(model, Model):
        _refuse_settings(processor, settings)
        return model
    if isinstance(model, PreTrainedModel):
        return _wrapped(model, processor, settings)
    if not isinstance(model, str | Path):
        raise UserError(
            f"model is of type {type(model).__name__}: give a folder, a Hub id, a transformers model or an"
            " adapter of metagame.models; for other models see metagame.bridges."
        )
    if processor is not None:
        raise UserError(
            "processor applies only to a model that is already loaded: leave it out, since a checkpoint comes with"
            " its own."
        )
    return _loaded(str(model), settings)


def _refuse_settings(processor: Any, settings: dict[str, Any]) -> None:
    names = sorted(settings) + ["processor"] * (processor is not None)
    if names:
        raise UserError(f"{', '.join(names)} would change nothing, because the model is already loaded: leave it out.")


def _loaded(checkpoint: str, settings: dict[str, Any]) -> Model:
    kind = _kind(checkpoint, settings.get("revision"))
    if kind == PAINTS:
        with needed_by("a FLUX pipeline"):
            from metagame.models.flux import Flux

        return _called(Flux.load, checkpoint, {"revision": None} | settings)
    family = _family(kind, f"model={checkpoint!r}")
    if family.adapter is LanguageModel and "chat" not in settings:
        tokenizer = load_tokenizer(checkpoint, settings.get("revision"), gguf=settings.get("gguf"))
        settings = settings | {"chat": tokenizer.chat_template is not None}
    return _called(family.adapter.load, checkpoint, settings)


def _kind(checkpoint: str, revision: str | None) -> str:
    """The architecture that a checkpoint's config names, or :data:`PAINTS`.

    Raises:
        UserError: a folder has neither file, or there is no such checkpoint.
    """
    folder = Path(checkpoint)
    if (folder / PIPELINE).is_file():
        return PAINTS
    if folder.is_dir() and not (folder / CONFIG).is_file():
        is_open_clip = (folder / OPEN_CLIP).is_file()
        adapter = f"open_clip.OpenCLIP.load('local-dir:{folder}')" if is_open_clip else f"adder.Adder('{folder}')"
        raise UserError(
            f"model={checkpoint!r} is not a checkpoint of transformers or diffusers, since it has neither {CONFIG} nor"
            f" {PIPELINE}: give the folder of a saved model, or load this one with its own adapter, such as"
            f" metagame.models.{adapter}."
        )
    try:
        return load_pretrained(AutoConfig.from_pretrained, checkpoint, revision).model_type
    except UserError:
        if folder.is_dir() or not _is_pipeline(checkpoint, revision):
            raise
        return PAINTS


def _is_pipeline(checkpoint: str, revision: str | None) -> bool:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(checkpoint, PIPELINE, revision=revision)
    except (OSError, ValueError):  # of the hub, of many kinds
        return False
    return True


def _family(kind: str, name: str) -> Family:
    """The family of an architecture.

    Raises:
        UserError: no adapter is for it.
    """
    known = {architecture: family for family in FAMILIES for architecture in family.classes}
    if kind not in known:
        raise UserError(
            f"{name} has the architecture {kind!r}, which no adapter supports: choose a model of"
            f" {', '.join(sorted(known))} or FLUX, or see metagame.bridges for other models."
        )
    return known[kind]


def _called(load: Callable[..., Model], first: Any, settings: dict[str, Any]) -> Model:
    try:
        inspect.signature(load).bind(first, **settings)
    except TypeError as error:
        known = ", ".join([*inspect.signature(load).parameters][1:])
        raise UserError(f"the settings do not fit this model ({error}): it takes {known}.") from error
    return load(first, **settings)


def _wrapped(net: PreTrainedModel, processor: Any, settings: dict[str, Any]) -> Model:
    kind, name = net.config.model_type, type(net).__name__
    family = _family(kind, f"a {name}")
    if not isinstance(net, family.classes[kind]):
        raise UserError(f"a {name} cannot be explained: give a {family.classes[kind].__name__}.")
    beside = family.beside(family.adapter, net, processor)
    return _called(family.adapter, net, beside | {"revision": OBJECT} | settings)
