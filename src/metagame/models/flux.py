"""FLUX pipelines of diffusers: an image or a prompt in, logits of concepts at its patches out."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, ModelMixin
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pixel_unshuffle
from transformers import BitsAndBytesConfig, CLIPTextModel, T5EncoderModel
from transformers.utils import is_bitsandbytes_available
from transformers.utils import logging as transformers_logging

from metagame.contracts import Failure, Model, prepare_each
from metagame.digests import folder_digest
from metagame.errors import UserError
from metagame.models.concept_stream import ConceptSet, concept_logits, watched_concepts
from metagame.models.concepts import (
    ConceptLogits,
    ConceptQuestion,
    ConceptSample,
    PaintedImage,
    refuse_one_token_twice,
)
from metagame.models.pretrained import check_dtype, load_pretrained, moved, settle_device, without_conversion_note

PARTS = {
    "transformer": FluxTransformer2DModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
}  # fmt: skip
TORCH_NEAREST = "torch_nearest"
POSTERIORS, NOISES = ("sample", "mean"), ("device", "cpu")
LONGEST_TEXT = 512
"""Tokens that the pipeline takes."""
TEXT_LENGTH = 256
MEMORY_ADVICE = "set model.offload=true, or model.text_encoder_bits=8"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Denoising:
    """The point of the diffusion at which concepts are scored: x_t = (1 - t) x + t noise, with t = 1 - step / n_steps.

    For a picture that the model paints, x_t is its state after ``step`` steps, or after each step; the schedule of
    FLUX.1-dev is shifted, so its t differs. The defaults are those of the paper's code; its text does not mention
    ``resample``, ``posterior`` and ``noise``.

    Differs from the paper's text: if the model paints, the pooled text vector is zero for the concepts only; image and
    text have the prompt's vector, without which the model would paint something else.

    Attributes:
        side: side of the square that images are stretched to, in pixels.
        n_steps: number of steps of the schedule.
        step: number of steps completed.
        seed: random seed for the noise.
        resample: how images are stretched: ``torch_nearest``, which takes pixel i from floor(i scale), or a name of
            :class:`PIL.Image.Resampling`, whose ``nearest`` takes it from floor((i + 1/2) scale).
        posterior: which value of the autoencoder's distribution x is: its ``sample`` or its ``mean``.
        noise: where the sample, and all noise, are drawn: on the ``device`` in the transformer's type, so that the
            numbers and painted pictures depend on the device, or on the ``cpu``, in float32 for given images.
        guidance: for models that take one (FLUX.1-dev).
        all_steps: if True, concepts are scored in all steps of a picture that the model paints, each as a layer of
            its own; if False, only in ``step``, counted from 0.
        pooled_concepts: whether the pooled text vector of such a picture's prompt also modulates the concepts.
    """

    side: int
    n_steps: int = 4
    step: int = 2
    seed: int = 0
    resample: str = TORCH_NEAREST
    posterior: str = POSTERIORS[0]
    noise: str = NOISES[0]
    guidance: float | None = None
    all_steps: bool = True
    pooled_concepts: bool = False

    def __post_init__(self) -> None:
        if self.side < 1 or self.n_steps < 1:
            raise UserError(f"model.denoising.side={self.side} and n_steps={self.n_steps} must be positive integers.")
        if not 0 <= self.step < self.n_steps:
            raise UserError(f"model.denoising.step={self.step} must be from 0 to {self.n_steps - 1}.")
        resamples = (TORCH_NEAREST, *map(str.lower, Image.Resampling.__members__))
        for name, value, choices in (
            ("resample", self.resample.lower(), resamples),
            ("posterior", self.posterior, POSTERIORS),
            ("noise", self.noise, NOISES),
        ):
            if value not in choices:
                raise UserError(f"model.denoising.{name}={value!r} is unknown: choose one of {', '.join(choices)}.")

    @property
    def noise_share(self) -> float:
        return 1 - self.step / self.n_steps

    def pixels(self, image: Image.Image) -> Float[Tensor, "1 3 {self.side} {self.side}"]:
        """The stretched image, with values from -1 to 1."""
        image, square = image.convert("RGB"), (self.side, self.side)
        if self.resample.lower() == TORCH_NEAREST:
            return interpolate(_values(image), square, mode="nearest")
        return _values(image.resize(square, Image.Resampling[self.resample.upper()]))


def _values(image: Image.Image) -> Float[Tensor, "1 3 h w"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


class Flux(Model[ConceptSample, ConceptLogits]):
    """A pipeline of transformer, autoencoder and text encoders.

    Only the double-stream blocks are computed, once for each prompt.

    Args:
        pipeline: a pipeline of diffusers.
        revision: identifies its weights, and the kind of device that the noise is drawn on where it depends on that.
        device: where it computes.
        denoising: the point of the diffusion at which concepts are scored.
        text_length: number of tokens to which prompts and concepts are padded, from 2 to 512.

    Raises:
        UserError: ``text_length``, or the side or guidance of ``denoising``, does not suit the pipeline.
    """

    sample_type = ConceptSample
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"device", "offload"})

    def __init__(
        self, pipeline: FluxPipeline, revision: str, device: str, denoising: Denoising, text_length: int
    ) -> None:
        multiple = 2 * pipeline.vae_scale_factor
        if denoising.side % multiple:
            raise UserError(f"model.denoising.side={denoising.side} must be a multiple of {multiple} pixels.")
        if pipeline.transformer.config.guidance_embeds and denoising.guidance is None:
            raise UserError("this model needs a guidance scale: set model.denoising.guidance, for example to 3.5.")
        _check_text_length(text_length)
        self.pipeline = pipeline
        self.revision = revision
        self.device = device
        self.denoising = denoising
        self.text_length = text_length
        self.concept = cache(self._concept)
        self.prompt = lru_cache(maxsize=4)(self._encode)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        revision: str | None,
        denoising: Denoising | None = None,
        text_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        vae_dtype: str = "float32",
        offload: bool = False,
        text_encoder_bits: int | None = None,
    ) -> Self:
        """Load a pipeline from a folder or the hub.

        Args:
            checkpoint: folder or id of the pipeline.
            revision: commit, tag or branch of the checkpoint on the hub.
            denoising: as for the class; if None, pictures have the side that the autoencoder is made for, and noise is
                drawn on the CPU.
            text_length: as for the class; if None, the length that the tokenizer is made for, at most 256, which is
                FLUX.1-schnell's.
            device: where it computes; if None, the GPU if there is one.
            dtype: type of weights and activations; logits are float32.
            vae_dtype: type of the autoencoder's weights and activations.
            offload: whether each part of the pipeline is on the device only while it computes.
            text_encoder_bits: 8 or 4, to quantize the T5 encoder with bitsandbytes.

        Raises:
            UserError: the pipeline is missing, gated or broken, or does not fit the device.
        """
        check_dtype(dtype)
        check_dtype(vae_dtype, "vae_dtype")
        if text_length is not None:
            _check_text_length(text_length)  # before the weights are loaded, which takes minutes
        device = settle_device(device)
        if offload and torch.device(device).type == "cpu":
            raise UserError("model.offload=true needs a GPU: leave it out on the CPU.")
        folder = checkpoint
        if not Path(checkpoint).is_dir():
            folder = str(load_pretrained(FluxPipeline.download, checkpoint, revision))
        settings: dict[str, Any] = {"torch_dtype": getattr(torch, dtype)}
        with _without_progress_bars(), without_conversion_note():
            for name, part in PARTS.items():
                bits = text_encoder_bits if name == "text_encoder_2" else None
                own = getattr(torch, vae_dtype if name == "vae" else dtype)
                settings[name] = _load_part(part, folder, name, own, bits)
            pipeline = load_pretrained(FluxPipeline.from_pretrained, folder, None, **settings)
        pipeline.set_progress_bar_config(disable=True)
        if offload:
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline = moved(pipeline, device, checkpoint, MEMORY_ADVICE)
        if denoising is None:
            denoising = Denoising(pipeline.vae.config.sample_size, noise="cpu")
        if text_length is None:
            text_length = min(pipeline.tokenizer_2.model_max_length, TEXT_LENGTH)
        if denoising.noise == "device" and torch.device(device).type != "cuda":
            log.warning(
                "Noise is drawn on %s, but the published numbers used noise drawn on a GPU (model.denoising.noise).",
                device,
            )
        found = _revision(Path(folder))
        if denoising.noise == "device":
            found += f" with noise of {torch.device(device).type}"
        return cls(pipeline, found, device, denoising, text_length)

    def prepare(self, samples: Sequence[ConceptSample]) -> list[Mapping[str, ConceptLogits] | Failure]:
        return prepare_each(self.bind, samples)

    @torch.no_grad()
    def bind(self, sample: ConceptSample) -> dict[str, ConceptLogits]:
        """Logits for each question about the sample: one forward pass for each prompt, whatever the concepts.

        Raises:
            UserError: a concept is not one token, or is given both as player and as background; the sample has no image
                and is not to be painted; or the device runs out of memory.
        """
        questions = dict(sample.questions())
        for question in questions.values():
            _check(question, len(self.pipeline.transformer.transformer_blocks))
            refuse_one_token_twice(self.pipeline.tokenizer_2, _names(question))
            self._check_length(question.prompt)
        if not questions:
            return {}
        try:
            if isinstance(sample, PaintedImage):
                if self.pipeline.transformer.dtype == torch.float64:  # CLIP's causal mask cannot hold its least number
                    raise UserError("an image cannot be generated in float64: set model.dtype=float32.")
                self._check_length(sample.prompt)
                self._tell_pooled_part(sample.prompt)
                return self._paint(sample, questions)
            image = sample.image()
            if image is None:
                raise UserError(f"sample {sample.id} has no image: give one, or a prompt to generate it from.")
            return self._ask(image, questions)
        except torch.OutOfMemoryError as error:
            raise UserError(f"the model does not fit the memory of {self.device}: {MEMORY_ADVICE}.") from error

    def _ask(self, image: Image.Image, questions: Mapping[str, ConceptQuestion]) -> dict[str, ConceptLogits]:
        groups = [dict(group) for _, group in groupby(sorted(questions.items(), key=_prompt), key=_prompt)]
        plans = [ConceptPlan.of(group) for group in groups]
        # all texts first: an offloaded text encoder would come beside the transformer
        sets = [plan.sets(self.concept) for plan in plans]
        prompts = [self.prompt(next(iter(group.values())).prompt) for group in groups]
        latents = self.noisy_latents(image)
        answers = {}
        for group, plan, concepts, prompt in zip(groups, plans, sets, prompts, strict=True):
            logits = concept_logits(self.pipeline.transformer, self.inputs(latents, prompt), concepts, plan.n_layers)
            answers |= plan.answers(group, [logits])
        return {name: answers[name] for name in questions}

    def _paint(self, sample: PaintedImage, questions: Mapping[str, ConceptQuestion]) -> dict[str, ConceptLogits]:
        when, plan = self.denoising, ConceptPlan.of(questions)
        watched = self.pipeline.transformer, plan.sets(self.concept), plan.n_layers, when.pooled_concepts
        with _decoding_in_own_type(self.pipeline.vae), watched_concepts(*watched) as passes:
            image = self.pipeline(
                prompt=sample.prompt,
                height=when.side,
                width=when.side,
                num_inference_steps=when.n_steps,
                guidance_scale=when.guidance or 0.0,
                max_sequence_length=self.text_length,
                generator=self._generator(sample.seed),
            ).images[0]
        seen = passes if when.all_steps else passes[when.step : when.step + 1]
        return plan.answers(questions, seen, np.asarray(image))

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device if self.denoising.noise == "device" else "cpu").manual_seed(seed)

    def noisy_latents(self, image: Image.Image) -> Float[Tensor, "1 c h w"]:
        """x_t of the image; the first numbers drawn with the seed are its noise, the next those of the sample x."""
        vae, when = self.pipeline.vae, self.denoising
        posterior = vae.encode(when.pixels(image).to(self.device, vae.dtype)).latent_dist
        generator = self._generator(when.seed)
        dtype = self.pipeline.transformer.dtype if when.noise == "device" else torch.float32
        noise = torch.randn(posterior.mean.shape, generator=generator, device=generator.device, dtype=dtype)
        latents = posterior.sample(generator) if when.posterior == "sample" else posterior.mean
        latents = (latents.float() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        return (1 - when.noise_share) * latents + when.noise_share * noise.to(self.device, torch.float32)

    def inputs(self, latents: Float[Tensor, "1 c h w"], prompt: Float[Tensor, "1 T e"]) -> dict[str, Any]:
        """Arguments of the transformer's forward pass; ``prompt`` is encoded, and the pooled text vector is zero."""
        transformer, when = self.pipeline.transformer, self.denoising
        dtype = transformer.dtype
        height, width = (length // 2 for length in latents.shape[2:])
        tokens = pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)  # a token is two by two latents
        inputs = {
            "hidden_states": tokens.to(dtype),
            "encoder_hidden_states": prompt,
            "pooled_projections": torch.zeros(1, transformer.config.pooled_projection_dim, dtype=dtype),
            "timestep": torch.tensor([when.noise_share], dtype=dtype),
            "img_ids": torch.cartesian_prod(*(torch.arange(length) for length in (1, height, width))).to(dtype),
            "txt_ids": torch.zeros(self.text_length, 3, dtype=dtype),
        }
        if transformer.config.guidance_embeds:
            inputs["guidance"] = torch.tensor([when.guidance])
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _concept(self, name: str) -> Float[Tensor, "1 e"]:
        """The encoding of a concept's token."""
        return self._encode(name)[:, 0]

    def _check_length(self, prompt: str) -> None:
        """Refuse a prompt of which the model would read a part only."""
        ids = self.pipeline.tokenizer_2(prompt, verbose=False)["input_ids"]
        if len(ids) > self.text_length:
            cut = self.pipeline.tokenizer_2.decode(ids[self.text_length - 1 : -1])
            raise UserError(
                f"the prompt has {len(ids)} tokens, but model.text_length={self.text_length}, so {cut!r} would be"
                " cut off: shorten it, or raise model.text_length, at most to the length that the model was"
                " trained with."
            )

    def _tell_pooled_part(self, prompt: str) -> None:
        """Say it where CLIP, whose one vector modulates all blocks, reads a part of the prompt only."""
        tokenizer = self.pipeline.tokenizer
        ids = tokenizer(prompt, verbose=False)["input_ids"]
        if len(ids) > tokenizer.model_max_length:
            cut = tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])
            log.warning(
                "CLIP's pooled text leaves out %r, which T5 reads, because CLIP takes only %d tokens.",
                cut,
                tokenizer.model_max_length - 2,
            )

    @torch.no_grad()
    def _encode(self, text: str) -> Float[Tensor, "1 T e"]:
        ids = self.pipeline.tokenizer_2(
            text, padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
        )["input_ids"]
        return self.pipeline.text_encoder_2(ids.to(self.device))[0].to(self.pipeline.transformer.dtype)


@dataclass(frozen=True)
class ConceptPlan:
    """Which sets of concepts answer some questions about one image and prompt.

    Concepts that do not attend to each other share a set, whatever question they are of.

    Attributes:
        joint: names of each set whose concepts attend to each other.
        decoupled: names of all other concepts.
        n_layers: the most that a question asks.
    """

    joint: tuple[tuple[str, ...], ...]
    decoupled: tuple[str, ...]
    n_layers: int

    @classmethod
    def of(cls, questions: Mapping[str, ConceptQuestion]) -> Self:
        asked = questions.values()
        return cls(
            tuple(dict.fromkeys(_names(each) for each in asked if each.cross_attention)),
            tuple(dict.fromkeys(name for each in asked if not each.cross_attention for name in _names(each))),
            max(each.n_layers for each in asked),
        )

    def sets(self, encode: Callable[[str], Float[Tensor, "1 e"]]) -> list[ConceptSet]:
        """The sets, joint ones first."""
        sets = [ConceptSet(torch.cat([encode(name) for name in names])) for names in self.joint]
        if self.decoupled:
            sets.append(ConceptSet(torch.cat([encode(name) for name in self.decoupled]), cross_attention=False))
        return sets

    def answers(
        self,
        questions: Mapping[str, ConceptQuestion],
        passes: Sequence[Sequence[Float[Tensor, "L _ P"]]],
        picture: np.ndarray | None = None,
    ) -> dict[str, ConceptLogits]:
        """What passes such as that of :func:`concept_logits` found for the sets, as each question asks it."""
        found = {}
        for name, question in questions.items():
            concepts = _names(question) if question.cross_attention else self.decoupled
            place = self.joint.index(concepts) if question.cross_attention else -1
            asked = torch.cat([logits[place][-question.n_layers :] for logits in passes])
            players, background = (
                asked[:, [concepts.index(each) for each in names]] for names in (question.players, question.background)
            )
            found[name] = ConceptLogits(question.players, question.background, players, background, picture)
        return found


def _names(question: ConceptQuestion) -> tuple[str, ...]:
    return (*question.players, *question.background)


def _prompt(item: tuple[str, ConceptQuestion]) -> str:
    return item[1].prompt


def _check(question: ConceptQuestion, n_blocks: int) -> None:
    if not 1 <= question.n_layers <= n_blocks:
        raise UserError(
            f"benchmark.n_layers={question.n_layers} must be from 1 to {n_blocks}, the number of the model's"
            " double-stream blocks."
        )
    names = _names(question)
    if not question.players:
        raise UserError("a question has no players: give at least one concept.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"concept {twice[0]!r} is given twice: list it once, as a player or as background.")


def _load_part(part: type[Any], folder: str, name: str, dtype: torch.dtype, bits: int | None) -> Any:
    """A part of the pipeline, all of whose weights are in its file; in 8 or 4 ``bits`` where they are given.

    Raises:
        UserError: the part is absent, broken or lacks a weight; ``bits`` is neither, or bitsandbytes is not installed.
    """
    dtype_name = "torch_dtype" if issubclass(part, ModelMixin) else "dtype"
    settings: dict[str, Any] = {"subfolder": name, dtype_name: dtype, "output_loading_info": True}
    if bits is not None:
        settings["quantization_config"] = _quantization(bits, dtype)
    net, found = load_pretrained(part.from_pretrained, folder, None, **settings)
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise UserError(
            f"{name} of model.checkpoint={folder!r} lacks {len(lacking)} of its weights, such as {lacking[0]}: fetch or"
            " save it again."
        )
    return net


def _quantization(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    if bits not in (4, 8):
        raise UserError(f"model.text_encoder_bits={bits} must be 8, 4 or null.")
    if not is_bitsandbytes_available():
        raise UserError(
            f"model.text_encoder_bits={bits} needs bitsandbytes: install it with 'pip install bitsandbytes'."
        )
    return BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=dtype)


@contextmanager
def _decoding_in_own_type(vae: AutoencoderKL) -> Generator[None]:
    """Within: the decoder takes latents of any type, since a pipeline gives it those of the transformer's."""
    handle = vae.decoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(vae.dtype), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _without_progress_bars() -> Generator[None]:
    """Within: diffusers and transformers show none of their own."""
    loggings = (diffusers_logging, transformers_logging)
    shown = [each for each in loggings if each.is_progress_bar_enabled()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


def _check_text_length(length: int) -> None:
    if not 2 <= length <= LONGEST_TEXT:  # one token is taken by the end of the text
        raise UserError(f"model.text_length={length} must be from 2 to {LONGEST_TEXT}.")


def _revision(folder: Path) -> str:
    """The commit that a folder of the hub's cache is named by; of another folder a hash of its files."""
    if re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return folder.name
    return folder_digest(folder)
