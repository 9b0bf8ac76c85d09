"""One input of a model, explained by a shipped method in one call."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any, cast

import numpy as np
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image, ImageOps

from metagame.attributions.attention_games import ProxyAttentionGame
from metagame.attributions.concept_attention import ConceptAttention, MetaConceptAttention
from metagame.attributions.gradients import IntegratedGradients
from metagame.attributions.method import FirstOrder
from metagame.bridges.black_box import BlackBox
from metagame.contracts import WHOLE, BoundInput, Failure, Method, Model, Sample
from metagame.errors import UserError
from metagame.estimators import Estimator
from metagame.estimators.configured import ConfiguredEstimator
from metagame.games import Progress
from metagame.images import read_image, to_rgb
from metagame.jobs.build import build_part
from metagame.jobs.spec import configs_folder, locate, register
from metagame.meta import MetaAttributions
from metagame.models.auto import load_model
from metagame.models.classified import Classified
from metagame.models.concepts import ConceptLogits, ConceptQuestion, ConceptSample, PaintedImage
from metagame.models.encoder_views import ProbeView
from metagame.models.language_model import AnsweredPrompt, Prompt
from metagame.models.masked import MaskedModel
from metagame.models.vision_language import ImageText, Tokenizer, TokenPlayers
from metagame.models.vision_language import Sample as ImageSample

log = logging.getLogger(__name__)

ESTIMATOR = "permutation"
INCOMPLETE = 0.05
"""Share of f(x) - f(baseline) from which on attributions by IG that miss it are told of."""
LAYERS = 10
"""Of FLUX's last double-stream blocks, as in the paper."""
ONE_AT_A_TIME = RLock()
"""Held by the thread that explains: rules of a backward pass hold for all models of a family."""
Picture = Image.Image | np.ndarray | str | Path


def explain(
    model: Any,
    text: str | None = None,
    image: Picture | None = None,
    method: str | Method | None = None,
    *,
    concepts: Sequence[str] = (),
    background: Sequence[str] = (),
    estimator: str | Estimator | None = None,
    budget: int | None = None,
    order: int = 1,
    index: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> MetaAttributions:
    """The meta-attributions of one input of a model.

    Threads explain one after the other, since the rules of AttnLRP and CP-LRP hold for all models of a process while
    they are in use. For several models side by side, use several processes.

    Args:
        model: whatever :func:`metagame.load_model` accepts: a folder, a hub id, or a transformers model. A model that
            ``load_model`` has returned is not loaded again for each input. A bound input, such as a
            :class:`metagame.models.masked.MaskedModel` or a result of :mod:`metagame.bridges`, is given alone.
        text: for language models and classifiers, the text whose tokens are the players. For CLIP and SigLIP, the
            caption of ``image``, whose tokens are the players. For FLUX, the prompt, from which the model paints an
            image if none is given.
        image: a path, a Pillow image, or a uint8 array ``(H, W, 3)``. Its patches are the targets; for a classifier,
            they are also the players.
        method: the name of a file in ``configs/attribution``, such as ``attnlrp``, ``ig``, ``grad_eclip`` or
            ``fixlip``, whose settings are used; or an instance of a method with your own settings. Default:
            ``attnlrp`` for language models, ``gradient_input`` for classifiers, ``grad_eclip`` for CLIP,
            ``grad_esiglip`` for SigLIP, ``meta_concept_attention`` for FLUX, and ``leave_one_out`` otherwise.
        concepts: for FLUX, concepts of one token each; they are the players, and their maps are the targets.
        background: for FLUX, concepts that are always present.
        estimator: see :func:`metagame.meta_attributions`. Default: ``permutation``, which is exact for up to 9 players
            and otherwise reports standard errors.
        budget: see :func:`metagame.meta_attributions`. Default: 64 coalitions per player.
        order: see :func:`metagame.meta_attributions`.
        index: see :func:`metagame.meta_attributions`.
        seed: random seed for the sampling.
        progress: called with (coalitions evaluated, planned), for example :func:`metagame.progress_bar`.
        settings: passed to :func:`metagame.load_model`, for example ``device``, ``max_new_tokens`` or, for a
            classifier, ``explained_label``.

    Raises:
        UserError: the model cannot be loaded; the input does not fit the model; the method is unknown or cannot explain
            this kind of model; or an argument would have no effect.
    """
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise UserError(
            f"text={text!r} must be one text that is not blank; for several texts, use load_model() once and"
            " explain() for each."
        )
    for name, value in {"concepts": concepts, "background": background}.items():
        if isinstance(value, str):
            raise UserError(f"{name}={value!r} is one text: give a list, such as [{value!r}].")
    for name, texts in {"text": (text,), "concepts": concepts, "background": background}.items():
        _check_characters(name, texts)
    question = Question(text, None if image is None else _opened(image), tuple(concepts), tuple(background))
    with ONE_AT_A_TIME:
        bound = _bound(model, question, settings)
        chosen, label = _method(method, bound)
        played = _played(chosen, label, estimator, budget, order, index, seed)
        if isinstance(chosen, FirstOrder) and order > 1:
            _check_order(order, chosen.game(bound).n_players - chosen.endogenous)
        explanation = played.explain(bound, progress)
        if explanation.meta is None:
            raise UserError(f"{type(chosen).__name__} has no metagame and no values for pairs: choose another method.")
        if isinstance(chosen, IntegratedGradients):
            _tell_of_incompleteness(chosen, cast("MaskedModel", bound), explanation.meta)
    picture = bound.picture
    if picture is None and question.image is not None and explanation.meta.grid is not None:
        picture = np.asarray(question.image)
    answer = bound.answer if isinstance(bound, AnsweredPrompt | Classified | BlackBox) else ""
    return replace(explanation.meta, method=label, picture=picture, output=answer)


def _tell_of_incompleteness(method: IntegratedGradients, bound: MaskedModel, phi: MetaAttributions) -> None:
    """Warn where too few steps leave the attributions far from f(x) - f(baseline), to which they should sum."""
    whole, absent = bound.values(np.array([[True], [False]]).repeat(bound.n_players, 1)).tolist()
    found = 0.0 if phi.first_order is None else phi.first_order.sum()
    if abs(found - (whole - absent)) > INCOMPLETE * abs(whole - absent):
        log.warning(
            "IG with %d steps sums to %.3g, but f(x) - f(baseline) is %.3g: for more steps, give"
            " method=IntegratedGradients(steps).",
            method.steps, found, whole - absent,
        )  # fmt: skip


def _played(
    method: Method,
    label: str,
    estimator: str | Estimator | None,
    budget: int | None,
    order: int,
    index: str | None,
    seed: int,
) -> Method[Any]:
    """The method's metagame; the method itself where it has values of pairs without one.

    Raises:
        UserError: the settings of a metagame would change nothing.
    """
    if isinstance(method, FirstOrder) and not isinstance(method, ProxyAttentionGame):
        settings = ConfiguredEstimator(ESTIMATOR if estimator is None else estimator, budget, seed)
        return method.metagame(settings, order, index)
    if (estimator, budget, order, index, seed) != (None, None, 1, None, 0):
        raise UserError(
            f"method {label} has values of pairs without playing a metagame: leave out estimator, budget, order, index"
            " and seed."
        )
    if isinstance(method, ProxyAttentionGame):
        return method.metagame()
    return MetaConceptAttention(method.mean_first, directional=True) if isinstance(method, ConceptAttention) else method


def _check_characters(name: str, texts: Sequence[str | None]) -> None:
    for text in texts:
        if not isinstance(text, str | None):
            raise UserError(f"{name} has {text!r}, which is no text: give texts only.")
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{name}={text!r} contains a lone surrogate at position {error.start}, which is not a character: remove"
                " it."
            ) from error


def _check_order(order: int, n_playing: int) -> None:
    if order > max(n_playing, 1):
        raise UserError(
            f"order={order} exceeds the number of players on a target of this input, {n_playing}: choose a lower order."
        )


@dataclass(frozen=True)
class Question:
    """What is asked of a model, as :func:`explain` is given it."""

    text: str | None
    image: Image.Image | None
    concepts: tuple[str, ...]
    background: tuple[str, ...]

    def given(self) -> list[str]:
        """Names of the arguments that were given."""
        return [name for name, value in vars(self).items() if value is not None and value != ()]

    def require(self, what: str, needed: Sequence[str], possible: Sequence[str] = ()) -> None:
        """Refuse a question that lacks what is needed, or has more than is possible.

        Raises:
            UserError: it does.
        """
        given = self.given()
        lacking = [f"{name}=" for name in needed if name not in given]
        strange = [f"{name}=" for name in given if name not in (*needed, *possible)]
        advice = [f"give {' and '.join(lacking)}"] if lacking else []
        advice += [f"leave out {' and '.join(strange)}"] if strange else []
        if advice:
            takes = " and ".join(f"{name}=" for name in needed) or "nothing else"
            raise UserError(f"{what} is explained with {takes}: {', and '.join(advice)}.")


@dataclass(frozen=True)
class _Text(Prompt):
    id: str
    text: str


@dataclass(frozen=True)
class _Image(Sample):
    id: str
    picture: Image.Image

    def image(self) -> Image.Image:
        return self.picture


@dataclass(frozen=True)
class _Captioned(_Image, ImageSample):
    caption: str

    def texts(self, tokenizer: Tokenizer) -> Mapping[str, TokenPlayers]:
        return {WHOLE: TokenPlayers(tokenizer, self.caption)}


@dataclass(frozen=True)
class _WithConcepts(_Image, ConceptSample):
    asked: Mapping[str, ConceptQuestion]

    def questions(self) -> Mapping[str, ConceptQuestion]:
        return self.asked


def _bound(model: Any, question: Question, settings: dict[str, Any]) -> BoundInput:
    """The question bound to the model.

    Raises:
        UserError: it does not fit the model, or the model refuses it.
    """
    if isinstance(model, BoundInput):
        question.require("an input that is bound to its model", ())
        if settings:
            raise UserError(f"{', '.join(settings)} would change nothing, as the input is already bound: leave it out.")
        return model
    if not question.given():
        raise UserError(
            "there is nothing to explain: give text= to a language model, text= or image= to a classifier, text= and"
            " image= to CLIP or SigLIP, or concepts= to FLUX."
        )
    adapter = load_model(model, **settings)
    (prepared,) = adapter.prepare([_sample(adapter, question)])
    if isinstance(prepared, Failure):
        raise prepared.error
    return prepared[WHOLE]


def _sample(adapter: Model, question: Question) -> Any:
    if adapter.sample_type is Prompt:
        question.require("a model of texts", ["text"])
        return _Text("text", str(question.text))
    if adapter.sample_type is Sample:
        question.require("a classifier of images", ["image"])
        return _Image("image", cast("Image.Image", question.image))
    if adapter.sample_type is ImageSample:
        question.require("a vision-language encoder", ["text", "image"])
        return _Captioned("image", cast("Image.Image", question.image), str(question.text))
    if adapter.sample_type is ConceptSample:
        needed = ["concepts", "image" if question.text is None else "text"]
        question.require("FLUX", needed, ["text", "image", "background"])
        return _concept_sample(adapter, question)
    raise UserError(
        f"{type(adapter).__name__} takes its own kind of samples: bind one, and pass the bound input to explain()."
    )


def _concept_sample(adapter: Any, question: Question) -> ConceptSample:
    n_layers = min(LAYERS, len(adapter.pipeline.transformer.transformer_blocks))
    prompt = question.text or ""
    asked = {WHOLE: ConceptQuestion(question.concepts, question.background, n_layers, prompt)}
    if question.image is None:
        return PaintedImage("painted", prompt, adapter.denoising.seed, asked)
    return _WithConcepts("image", question.image, asked)


def _opened(image: Picture) -> Image.Image:
    """The image in RGB, turned as its camera says.

    Raises:
        UserError: it cannot be read, or an array is no image.
    """
    if isinstance(image, str | Path):
        return ImageOps.exif_transpose(read_image(Path(image), str(image)))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"image is an array of {image.dtype} with shape {image.shape}: give uint8 with shape (H, W, 3)."
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"image is of type {type(image).__name__}: give a path, a Pillow image or an array.")
    return to_rgb(ImageOps.exif_transpose(image), "image")


def _method(method: str | Method | None, bound: BoundInput) -> tuple[Method, str]:
    """The method that is asked for, which explains such inputs, and what it is called.

    Raises:
        UserError: it is unknown, or does not.
    """
    if isinstance(method, type):
        raise UserError(f"method is the class {method.__name__}: give an instance of it.")
    if isinstance(method, Method):
        if not isinstance(bound, method.input_type):
            raise UserError(f"{type(method).__name__} does not explain {_kind(bound)}: {_choose(bound)}.")
        return method, type(method).__name__
    name = _default(bound) if method is None else method
    classes = {each: _class_of(each) for each in _shipped()}
    if not isinstance(name, str) or name not in classes:
        raise UserError(f"method={method!r} is unknown: {_choose(bound)}.")
    if not isinstance(bound, classes[name].input_type):
        raise UserError(f"method={method!r} does not explain {_kind(bound)}: {_choose(bound)}.")
    return _built(name)


def _kind(bound: BoundInput) -> str:
    names = (
        (AnsweredPrompt, "a language model"), (Classified, "a classifier"), (ConceptLogits, "concepts in an image"),
        (ImageText, "an image and its text"),
    )  # fmt: skip
    return next((name for kind, name in names if isinstance(bound, kind)), f"a {type(bound).__name__}")


def _choose(bound: BoundInput) -> str:
    fitting = [each for each in _shipped() if isinstance(bound, _class_of(each).input_type)]
    return f"choose one of {', '.join(fitting)}" if fitting else "give a method whose input_type fits"


def _default(bound: BoundInput) -> str:
    if isinstance(bound, AnsweredPrompt):
        return "attnlrp"
    if isinstance(bound, Classified):
        return "gradient_input"
    if isinstance(bound, ConceptLogits):
        return "meta_concept_attention"
    if isinstance(bound, ImageText):
        return "grad_esiglip" if isinstance(bound.model.encoder_view, ProbeView) else "grad_eclip"
    return "leave_one_out"


def _shipped() -> list[str]:
    """Names of the methods that configs describe, in order; not of what only asks for another one's metagame."""
    paths = sorted((configs_folder() / "attribution").glob("[!_]*.yaml"))
    return [path.stem for path in paths if "method" in _content(path.stem)]


def _content(name: str) -> dict[str, Any]:
    return yaml.safe_load((configs_folder() / "attribution" / f"{name}.yaml").read_text(encoding="utf-8"))


def _target(name: str) -> str | None:
    """The class that a config names, or the first of its bases that does."""
    content = _content(name)
    bases = [each for each in content.get("defaults", []) if isinstance(each, str) and each != "_self_"]
    found = (content.get("method") or {}).get("_target_")
    return found or next(filter(None, map(_target, bases)), None)


def _class_of(name: str) -> Any:
    return locate(str(_target(name)))


def _built(name: str) -> tuple[Method, str]:
    """The method with the settings of its config, those of the paper, and its label."""
    register()
    hydra = GlobalHydra.instance()
    around, hydra.hydra = hydra.hydra, None  # that of a program of which this may be a part
    try:
        with initialize_config_dir(str(configs_folder()), version_base="1.3"):
            cfg = compose("config", [f"attribution={name}", "scale=paper"])
            return build_part(cfg.attribution.method), cfg.attribution.label
    finally:
        GlobalHydra.instance().hydra = around
