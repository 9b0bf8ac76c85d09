"""How many passes through a model a job needs: coalitions are counted by the estimators and designs that play them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial, singledispatch
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Bool
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoTokenizer

from metagame.attributions.alti_logit import ALTILogit
from metagame.attributions.attention_games import AttentionGame, ProxyAttentionMetagame
from metagame.attributions.attention_rollout import AttentionRollout
from metagame.attributions.attnlrp import RelevancePropagation
from metagame.attributions.concept_attention import ConceptAttention, MetaConceptAttention
from metagame.attributions.exclip import ExCLIP
from metagame.attributions.fixlip import FIxLIP
from metagame.attributions.generic_attention import GenericAttention
from metagame.attributions.grad_eclip import GradECLIP
from metagame.attributions.gradients import GradientInput, IntegratedGradients
from metagame.attributions.leave_one_out import LeaveOneOut
from metagame.attributions.mask_clip import MaskCLIP
from metagame.attributions.method import FirstOrder, Metagame
from metagame.attributions.patch_ig import PatchIG
from metagame.attributions.proximity import Proximity
from metagame.attributions.random_pairs import RandomPairs
from metagame.attributions.text_side import TextSide
from metagame.attributions.token_baselines import RandomTokens, Recency
from metagame.attributions.ttcav import TTCAV
from metagame.contracts import Method, Sample
from metagame.errors import UserError
from metagame.estimators.configured import ConfiguredEstimator
from metagame.estimators.estimate import Estimate, Estimator, Rules
from metagame.games import AttributionGame
from metagame.meta import meta_attributions
from metagame.models.concepts import ConceptSample, PaintedImage
from metagame.models.language_model import Prompt
from metagame.models.prompt_tokens import PromptTokens, tokenize_prompt
from metagame.models.token_states import LEAST, VisualConcept
from metagame.models.vision_language import Sample as ImageAndTexts
from metagame.models.vision_language import Text, Tokenizer

Passes = Counter[str]
"""How often something goes through a part of a model, such as ``{"images": 12}``."""

FORWARD, BACKWARD, ANSWER = "forward", "backward", "answers"
IMAGE, TEXT, TRANSFORMER, PAINTING = "images", "texts", "pictures", "painting steps"
"""What passes are called: whole sequences through a language model, and the answers that it gives; images and texts
through their encoder; pictures through the double-stream blocks of FLUX, or through all of it while it paints."""


@dataclass
class Count:
    """The passes of some samples.

    Attributes:
        passes: how many.
        tokens: of language models, in all passes of a kind together.
        notes: what is an upper bound or an estimate, and why.
    """

    passes: Passes = field(default_factory=Counter)
    tokens: Passes = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)

    def __add__(self, other: Count) -> Count:
        return Count(self.passes + other.passes, self.tokens + other.tokens, self.notes | other.notes)

    def times(self, number: int) -> Count:
        """As often as this, such as once for each variant."""
        passes, tokens = (
            Counter({kind: number * each for kind, each in counts.items()}) for counts in (self.passes, self.tokens)
        )
        return Count(passes, tokens, dict(self.notes))


def count_passes(
    cfg: DictConfig, methods: Sequence[Method], samples: Sequence[Sample], n_patches: int | None = None
) -> Count:
    """The passes of a job; its model is not loaded.

    Args:
        cfg: of the job.
        methods: its variants.
        samples: its samples.
        n_patches: of the model's images; None: as the config of its checkpoint says, where that is here.

    Raises:
        UserError: a method, or what it explains, cannot be counted.
    """
    visual = [sample for sample in samples if isinstance(sample, VisualConcept)]
    if visual:
        return _count_visual_concepts(cfg, methods, visual, n_patches)
    if "explained_label" in cfg.model:
        return _count_classified(cfg, methods, samples, n_patches)
    prompts = [sample for sample in samples if isinstance(sample, Prompt)]
    images = [sample for sample in samples if isinstance(sample, ImageAndTexts)]
    concepts = [sample for sample in samples if isinstance(sample, ConceptSample)]
    if len(prompts) == len(samples):
        return _count_prompts(cfg, methods, prompts)
    if len(images) == len(samples):
        return _count_images(n_patches or _patches(cfg), methods, images)
    if len(concepts) == len(samples):
        return _count_concepts(cfg, methods, concepts)
    raise UserError(
        f"passes through model={cfg.model.name} cannot be counted, because it is not known how to count them."
    )


# which coalitions a method asks for, of an input with n players


@singledispatch
def coalitions_asked(method: Method, n: int) -> Bool[np.ndarray, "k n"]:
    """Every coalition that the method's game is asked for, in turn.

    Raises:
        UserError: nothing is known of this method.
    """
    raise UserError(
        f"the coalitions of {type(method).__name__} cannot be counted: register it with"
        " metagame.plan.passes.coalitions_asked."
    )


@coalitions_asked.register(ProxyAttentionMetagame)
@coalitions_asked.register(FirstOrder)
def _(method: Method, n: int) -> Bool[np.ndarray, "k n"]:
    return np.ones((1, n), bool)


@coalitions_asked.register(ExCLIP)
@coalitions_asked.register(Proximity)
@coalitions_asked.register(RandomPairs)
@coalitions_asked.register(RandomTokens)
@coalitions_asked.register(Recency)
def _(method: Method, n: int) -> Bool[np.ndarray, "k n"]:
    return np.zeros((0, n), bool)


@coalitions_asked.register
def _(method: Metagame, n: int) -> Bool[np.ndarray, "k n"]:
    estimator = method.estimator.estimator
    if isinstance(estimator, partial):  # so that equal ones of several jobs are the same
        estimator = _Settings(estimator.func, tuple(sorted(estimator.keywords.items())))
    own = replace(method.estimator, estimator=estimator)
    return _estimator_asks(own, method.method.endogenous, method.order, method.index, n)


@dataclass(frozen=True)
class _Settings:
    """An estimator with keyword arguments, as a value that can be compared."""

    function: Estimator
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, game: AttributionGame, rules: Rules) -> Estimate:
        return self.function(game, rules, **dict(self.arguments))


@cache
def _estimator_asks(
    settings: ConfiguredEstimator, endogenous: bool, order: int, index: str | None, n: int
) -> Bool[np.ndarray, "k n"]:
    """The coalitions that an estimator asks a game of zeros for."""
    asked: list[np.ndarray] = [np.zeros((0, n), bool)]

    def zeros(coalitions: np.ndarray) -> np.ndarray:
        asked.append(coalitions)
        return np.zeros((len(coalitions), n if endogenous else 1))

    meta_attributions(
        AttributionGame(zeros, n), settings.estimator, endogenous=endogenous, budget=settings.budget_of(n),
        seed=settings.seed, order=order, index=index,
    )  # fmt: skip
    return np.concatenate(asked)


# what a coalition costs


@singledispatch
def coalition_passes(method: Method, n: int) -> Passes:
    """Passes of the whole input, for each coalition of n players.

    Raises:
        UserError: nothing is known of this method.
    """
    raise UserError(
        f"the passes of {type(method).__name__} cannot be counted: register it with"
        " metagame.plan.passes.coalition_passes."
    )


@coalition_passes.register
def _(method: Metagame, n: int) -> Passes:
    return coalition_passes(method.method, n)


@coalition_passes.register(RelevancePropagation)
@coalition_passes.register(GradientInput)
def _(method: Method, n: int) -> Passes:
    return Counter({FORWARD: 1, BACKWARD: 1})


@coalition_passes.register(ALTILogit)
@coalition_passes.register(AttentionRollout)
def _(method: Method, n: int) -> Passes:
    return Counter({FORWARD: 1})


@coalition_passes.register
def _(method: IntegratedGradients, n: int) -> Passes:
    return Counter({FORWARD: method.steps, BACKWARD: method.steps})


@coalition_passes.register
def _(method: LeaveOneOut, n: int) -> Passes:
    return Counter({FORWARD: n + 1})


@coalition_passes.register
def _(method: AttentionGame, n: int) -> Passes:
    return Counter({FORWARD: 1, BACKWARD: 1} if method.gradient else {FORWARD: 1})


@coalition_passes.register(Proximity)
@coalition_passes.register(RandomPairs)
@coalition_passes.register(RandomTokens)
@coalition_passes.register(Recency)
def _(method: Method, n: int) -> Passes:
    return Counter()


# language models


def _count_prompts(cfg: DictConfig, methods: Sequence[Method], prompts: Sequence[Prompt]) -> Count:
    count = Count()
    for prompt, (tokens, length) in zip(prompts, _sequences(cfg, prompts, count), strict=True):
        n = len(tokens.labels)
        passes = sum((_passes_of(method, n) for method in methods), Counter())
        count.passes += passes
        count.tokens += Counter({kind: number * length for kind, number in passes.items()})
        count.tokens[FORWARD] += tokens.positions[0]
        if prompt.contrast() is None:
            count.passes[ANSWER] += 1
            count.tokens[ANSWER] += tokens.positions[0] + length
    _note_shared_coalitions(methods, count)
    return count


def _note_shared_coalitions(methods: Sequence[Method], count: Count) -> None:
    if any(isinstance(method, Metagame) and isinstance(method.method, LeaveOneOut) for method in methods):
        count.notes["leave-one-out inside a metagame shares coalitions: an upper bound"] = None


def count_curves(cfg: DictConfig, prompts: Sequence[Prompt]) -> Count:
    """What the scores of a variant add: the curves of deletion and insertion."""
    count = Count()
    if "explained_label" in cfg.model:
        lengths = _classified(cfg, prompts, count)
    else:
        lengths = ((len(tokens.labels), length) for tokens, length in _sequences(cfg, prompts, count))
    for n, length in lengths:
        count.passes[FORWARD] += 2 * n
        count.tokens[FORWARD] += 2 * n * length
    count.notes["the curves of deletion and insertion have at most one point for each token: an upper bound"] = None
    return count


def count_margins(cfg: DictConfig, sentences: Sequence[Prompt]) -> Count:
    """What the scores of a variant add on sentences: f of each."""
    count = Count()
    for _, length in _sequences(cfg, sentences, count):
        count.passes[FORWARD] += 1
        count.tokens[FORWARD] += length
    return count


def _sequences(cfg: DictConfig, prompts: Sequence[Prompt], count: Count) -> Iterator[tuple[PromptTokens, int]]:
    """The tokens of each prompt, and how many a pass has: from the first player to the answer's last token but one.

    The count is told what is not exact.
    """
    longest, tokenize = _positive(cfg, "model.max_new_tokens"), _prompt_tokenizer(cfg)
    if any(prompt.contrast() is None for prompt in prompts):
        count.notes[f"answers are counted with model.max_new_tokens={longest} tokens, an upper bound"] = None
    if tokenize is None:
        count.notes["tokens are estimated, one for each word and mark: the tokenizer is not here"] = None
    for prompt in prompts:
        tokens = _words(prompt.text) if tokenize is None else tokenize(prompt.text)
        answer = longest if prompt.contrast() is None else 1
        yield tokens, len(tokens.ids) - tokens.positions[0] + answer - 1


def _positive(cfg: DictConfig, key: str) -> int:
    """A setting that counts something; a UserError where it does not."""
    value = OmegaConf.select(cfg, key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{key}={value} must be a positive integer.")
    return value


def _passes_of(method: Method, n: int) -> Passes:
    asked = len(coalitions_asked(method, n))
    return Counter({kind: asked * number for kind, number in coalition_passes(method, n).items()})


def _prompt_tokenizer(cfg: DictConfig) -> Callable[[str], PromptTokens] | None:
    """What the tokenizer of the checkpoint makes of a prompt, where it is here."""
    found = _tokenizer(cfg)
    if found is None:
        return None
    settings, whole = cfg.model.get("template_settings"), cfg.model.get("whole_characters", True)
    return lambda text: tokenize_prompt(found, text, cfg.model.chat, settings, whole_characters=whole)


def _tokenizer(cfg: DictConfig) -> Any:
    """The tokenizer of the checkpoint; None where it is not here."""
    try:
        return AutoTokenizer.from_pretrained(
            cfg.model.checkpoint, revision=cfg.model.get("revision"), local_files_only=True
        )
    except (OSError, ValueError):
        return None


def _words(text: str) -> PromptTokens:
    """A token for each word and mark, with sixteen of a template around them."""
    pieces = tuple(re.findall(r"\w+|[^\w\s]", text))
    places = tuple(range(8, 8 + len(pieces)))
    return PromptTokens(tuple(range(len(pieces) + 16)), places, tuple(range(len(pieces))), pieces)


# classifiers


def _count_classified(
    cfg: DictConfig, methods: Sequence[Method], samples: Sequence[Sample], n_patches: int | None
) -> Count:
    """Each text or image goes through a classifier once for its label, and as the methods ask."""
    count = Count()
    for n, length in _classified(cfg, samples, count, n_patches):
        passes = sum((_passes_of(method, n) for method in methods), Counter({FORWARD: 1}))
        count.passes += passes
        count.tokens += Counter({kind: number * length for kind, number in passes.items()})
    _note_shared_coalitions(methods, count)
    return count


def _count_visual_concepts(
    cfg: DictConfig, methods: Sequence[Method], concepts: Sequence[VisualConcept], n_patches: int | None
) -> Count:
    """Each image of a concept goes through the model once, each of a class once and back; a job keeps what it has.

    Raises:
        UserError: another method than T-TCAV, or the patches of images are not known.
    """
    n = n_patches or _patches(cfg)
    if n is None or not all(isinstance(method, TTCAV) for method in methods):
        raise UserError(f"{cfg.attribution.name} of concepts on model={cfg.model.name} cannot be counted.")
    usable = [concept for concept in concepts if len(concept.examples) >= LEAST]
    shown = {image.id for concept in usable for image in (*concept.examples, *concept.others)}
    of_classes = {image.id for concept in usable for images in concept.classes.values() for image in images}
    passes = Counter({FORWARD: len(shown) + len(of_classes), BACKWARD: len(of_classes)})
    passes = Counter({kind: number * len(methods) for kind, number in passes.items()})
    return Count(passes, Counter({kind: number * (n + 1) for kind, number in passes.items()}))


def count_bins(cfg: DictConfig, samples: Sequence[Sample], n_bins: int) -> Count:
    """What comprehensiveness and sufficiency add for a variant: the whole input, and two passes for each bin."""
    count = Count()
    for _, length in _classified(cfg, samples, count):
        count.passes[FORWARD] += 1 + 2 * n_bins
        count.tokens[FORWARD] += (1 + 2 * n_bins) * length
    return count


def _classified(
    cfg: DictConfig, samples: Sequence[Sample], count: Count, n_patches: int | None = None
) -> Iterator[tuple[int, int]]:
    """The players and the tokens of each sample; the count is told what is not exact.

    Raises:
        UserError: the patches of images are not known.
    """
    texts = [sample.text for sample in samples if isinstance(sample, Prompt)]
    if len(texts) < len(samples):
        n = n_patches or _patches(cfg)
        if n is None:
            raise UserError(
                f"passes through model={cfg.model.name} cannot be counted, because its config was not found."
            )
        yield from ((n, n + 1) for _ in samples)
        return
    tokenizer = _tokenizer(cfg)
    if tokenizer is None:
        count.notes["tokens are estimated, one for each word and mark: the tokenizer is not here"] = None
    for text in texts:
        n = len(_words(text).labels if tokenizer is None else tokenizer(text, add_special_tokens=False)["input_ids"])
        yield n, n + 2


# vision-language encoders


class WordTokenizer(Tokenizer):
    """Stands for the tokenizer of an encoder: a token for each word."""

    context = 1 << 30
    pad_id = -1

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def _id(self, word: str) -> int:
        return self._ids.setdefault(word, len(self._ids))

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(self._id, text.split()))

    def split(self, text: str) -> list[tuple[int, bool]]:
        return [(self._id(word), False) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        words = list(self._ids)
        return " ".join(words[i] for i in ids)


def _count_images(n_patches: int | None, methods: Sequence[Method], samples: Sequence[ImageAndTexts]) -> Count:
    """An image goes through the encoder once, and a text once, for all methods and coalitions."""
    count, tokenizer, texts = Count(), WordTokenizer(), set[Text]()
    encoders = [cache(partial(_encoded, method, n_patches)) for method in methods]
    for sample in samples:
        encoded_images: dict[bytes, int] = {}
        for players, encoded in product(sample.texts(tokenizer).values(), encoders):
            masks, coalitions, is_masked = encoded(len(players.labels))
            encoded_images |= masks
            text = players.masked if is_masked else players.dropped
            texts |= {text(row) for row in coalitions.tolist()}
        count.passes[IMAGE] += sum(encoded_images.values())
    count.passes[TEXT] = len(texts)
    integrated = [method for method in map(_first_order, methods) if isinstance(method, PatchIG | ExCLIP)]
    if integrated and samples:
        count.passes[IMAGE] += len({method.block for method in integrated})  # the blank image
        count.notes["derivatives of an encoder's last blocks are not counted, as those of other methods"] = None
    whole = {players.labels for sample in samples for players in sample.texts(tokenizer).values()}
    factored = {method for method in map(_first_order, methods) if isinstance(method, ExCLIP)}
    count.passes[TEXT] += len(factored) * 4 * len(whole)  # both ends of the path; from a block on, the path and its end
    text_sided = {method for method in map(_first_order, methods) if isinstance(method, TextSide)}
    count.passes[TEXT] += len(text_sided) * len(whole)  # up to the last block
    return count


def _first_order(method: Method) -> Method:
    """What a metagame is of, or the method itself."""
    return method.method if isinstance(method, Metagame) else method


def _patches(cfg: DictConfig) -> int | None:
    """How many patches an image of the model has."""
    try:
        revision = cfg.model.get("revision")
        config = AutoConfig.from_pretrained(cfg.model.checkpoint, revision=revision, local_files_only=True)
        config = config if "explained_label" in cfg.model else config.vision_config
    except (OSError, ValueError, AttributeError):
        return None
    return (config.image_size // config.patch_size) ** 2


def _encoded(method: Method, n_patches: int | None, n: int) -> tuple[dict[bytes, int], np.ndarray, bool]:
    """What is encoded of an image and a text of n players.

    The sets of masks of the image with their sizes, which other texts may share; the coalitions of the text, and
    whether absent players are masked in it.
    """
    first_order = _first_order(method)
    if not isinstance(first_order, FIxLIP | TextSide):
        return {b"whole": 1}, coalitions_asked(method, n), False
    if n_patches is None:
        raise UserError(
            f"the passes of {type(first_order).__name__} cannot be counted: add the model's number of patches to"
            " metagame/plan/models.yaml."
        )
    if isinstance(first_order, TextSide):
        return {mask.tobytes(): 1 for mask in coalitions_asked(method, n_patches)}, np.ones((1, n), bool), True
    solver = first_order.solver(n_patches, n)
    return {solver.image_masks.tobytes(): len(solver.image_masks)}, solver.text_masks, True


@coalition_passes.register(GenericAttention)
@coalition_passes.register(GradECLIP)
@coalition_passes.register(MaskCLIP)
@coalition_passes.register(PatchIG)
@coalition_passes.register(TextSide)
def _(method: Method, n: int) -> Passes:
    return Counter()  # all coalitions share the image's pass, and texts are counted one by one


# concepts in FLUX


def _count_concepts(cfg: DictConfig, methods: Sequence[Method], samples: Sequence[ConceptSample]) -> Count:
    """A forward pass for each prompt of an image, whatever the concepts; a painted image takes all steps."""
    for method in methods:
        if not isinstance(method, ConceptAttention | MetaConceptAttention):
            coalitions_asked(method, 1)
    count = Count()
    for sample in samples:
        if isinstance(sample, PaintedImage):
            count.passes[PAINTING] += _positive(cfg, "model.denoising.n_steps")
        else:
            count.passes[TRANSFORMER] += len({question.prompt for question in sample.questions().values()})
    return count
