"""Loading of checkpoints: from a folder or from the Hugging Face hub, with one sentence where that fails."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from metagame.digests import folder_digest
from metagame.errors import UserError
from metagame.extras import needed_by

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float64")


def load_pretrained(load: Callable[..., Any], checkpoint: str, revision: str | None, **settings: Any) -> Any:
    """``load(checkpoint, revision=..., **settings)``; a folder that exists is never asked of the hub.

    Honours ``HF_HOME``, ``HF_HUB_OFFLINE`` and a login, as Hugging Face's libraries do.

    Raises:
        UserError: the checkpoint is absent, cannot be reached, is gated or is broken.
    """
    try:
        if Path(checkpoint).is_dir():
            return load(checkpoint, local_files_only=True, **settings)
        with without_retry_warnings():
            return load(checkpoint, revision=revision, **settings)
    except Exception as error:
        raise UserError(_why(checkpoint, revision, error)) from error


@contextmanager
def without_retry_warnings() -> Generator[None]:
    """Within: the hub's clients do not tell of each attempt to connect; the last one's failure is an exception."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("huggingface_hub", "diffusers"))}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, before in loggers.items():
            logger.setLevel(before)


T5_TOKENIZER = "transformers.models.t5.tokenization_t5_fast"


@contextmanager
def without_note(name: str, text: str) -> Generator[None]:
    """Within: the logger of this name does not tell what contains this text."""

    def is_another(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logger = logging.getLogger(name)
    logger.addFilter(is_another)
    try:
        yield
    finally:
        logger.removeFilter(is_another)


def without_conversion_note() -> AbstractContextManager[None]:
    """Within: nothing is said of how transformers makes a fast T5 tokenizer of FLUX's files, which is all the same."""
    return without_note(T5_TOKENIZER, "add_prefix_space")


VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files that tokenizers are made of; a folder has one of them."""
MISTRAL = "mistral"


def load_tokenizer(
    checkpoint: str, revision: str | None, *, architecture: str | None = None, gguf: str | None = None
) -> Any:
    """The checkpoint's tokenizer, or that of its GGUF file.

    What transformers says of any folder, that its regular expression is wrong, is true of Mistral alone.

    Raises:
        UserError: as :func:`load_pretrained`, or the folder has no tokenizer.
    """
    folder = Path(checkpoint)
    if gguf is None and folder.is_dir() and not any((folder / name).exists() for name in VOCABULARIES):
        raise UserError(
            f"model.checkpoint={checkpoint!r} is a folder without a tokenizer: save or copy the model's tokenizer"
            " there, for example tokenizer.json and tokenizer_config.json."
        )
    settings = {} if gguf is None else {"gguf_file": gguf}
    quiet = without_note("transformers.tokenization_utils_base", "incorrect regex pattern")
    with nullcontext() if architecture == MISTRAL else quiet:
        return load_pretrained(AutoTokenizer.from_pretrained, checkpoint, revision, **settings)


def gguf_folder(checkpoint: str, revision: str | None, gguf: str) -> Path:
    """The folder with a GGUF file of this name: the checkpoint, or where the hub's cache has it.

    Raises:
        UserError: there is no such file, it cannot be had, or the package gguf is not installed.
    """
    with needed_by("model.gguf"):
        import_module("gguf")
    if not Path(checkpoint).is_dir():
        return Path(load_pretrained(partial(hf_hub_download, filename=gguf), checkpoint, revision)).parent
    if not Path(checkpoint, gguf).is_file():
        raise UserError(
            f"model.gguf={gguf!r} is not a file in model.checkpoint={checkpoint!r}: set model.checkpoint to the"
            " folder, and model.gguf to the name of a file in it."
        )
    return Path(checkpoint)


def explain_gate(checkpoint: str, error: Exception) -> str | None:
    """How to get at a checkpoint that the hub refused for its licence; None where the error has another cause."""
    from huggingface_hub.errors import GatedRepoError

    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if not any(isinstance(cause, GatedRepoError) for cause in causes):
        return None
    page = f"https://huggingface.co/{checkpoint}"
    return f"model.checkpoint={checkpoint!r} is gated: accept its licence at {page}, then log in with 'hf auth login'."


def _why(checkpoint: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub.errors import HFValidationError

    name = f"model.checkpoint={checkpoint!r}"
    gate = explain_gate(checkpoint, error)
    if gate is not None:
        return gate
    if re.search(r"have sentencepiece installed|requires the protobuf library|incompatible Protobuf", str(error)):
        return (
            f"{name} has a tokenizer that needs sentencepiece and a compatible protobuf: install them with 'pip"
            " install -U sentencepiece protobuf'."
        )
    if Path(checkpoint).is_dir():
        if "GGUF" in str(error):
            return f"{name} has a GGUF file that transformers cannot load ({_first_line(error)}): choose another."
        return f"{name} cannot be loaded from that folder ({_first_line(error)}): save the model there again."
    if isinstance(error, HFValidationError) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", checkpoint):
        return (
            f"{name} is neither a local folder nor a Hub name: give a folder, relative to the one that you run in or"
            " absolute, or a name such as 'owner/model'."
        )
    if isinstance(error, OSError):
        offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else "no network"
        command = f"hf download {checkpoint}" + (f" --revision {revision}" if revision not in (None, "main") else "")
        return (
            f"{name} is not a local folder, and was not found in the Hugging Face cache or on the Hub (a wrong name,"
            f" or {offline}): fetch it with '{command}' where there is a network."
        )
    return f"{name} cannot be loaded ({type(error).__name__}: {_first_line(error)})."


def _first_line(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return shorten(line.strip().rstrip("."), 200, placeholder=" ...")


def load_model(
    classes: dict[str, type[PreTrainedModel]],
    checkpoint: str,
    revision: str | None,
    device: str | None,
    attention: str | None = None,
    dtype: str = "float32",
    gguf: str | None = None,
) -> PreTrainedModel:
    """The model on ``device``; ``classes`` maps the architectures that are possible to model classes.

    Raises:
        UserError: as :func:`load_pretrained`, the checkpoint is of another architecture, ``dtype`` is none of
            :data:`DTYPES`, or out of memory on the device.
    """
    check_dtype(dtype)
    model_class = classes[find_architecture(classes, checkpoint, revision, gguf)]
    settings = {"dtype": getattr(torch, dtype), "attn_implementation": attention, "output_loading_info": True}
    settings |= {} if gguf is None else {"gguf_file": gguf}
    net, found = load_pretrained(model_class.from_pretrained, checkpoint, revision, **settings)
    lacking = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lacking:
        raise UserError(
            f"model.checkpoint={checkpoint!r} lacks {len(lacking)} of its weights, such as {lacking[0]}: fetch or"
            " save it again."
        )
    return moved(net, settle_device(device), checkpoint)


def check_dtype(dtype: str, name: str = "dtype") -> None:
    """Refuse a type of weights that is none of :data:`DTYPES`; ``name`` is its argument's.

    Raises:
        UserError: it is none of them.
    """
    if dtype not in DTYPES:
        raise UserError(f"model.{name}={dtype!r} is unknown: choose one of {', '.join(DTYPES)}.")


def moved(net: Any, device: str, checkpoint: str, advice: str = "choose a smaller model or a larger device") -> Any:
    """The model or pipeline on ``device``.

    Raises:
        UserError: out of memory on the device; says the ``advice``.
    """
    try:
        return net.to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(f"model.checkpoint={checkpoint!r} does not fit the memory of {device}: {advice}.") from error


def find_architecture(classes: Collection[str], checkpoint: str, revision: str | None, gguf: str | None = None) -> str:
    """The architecture of a checkpoint, or of its GGUF file, from its config alone.

    Raises:
        UserError: as :func:`load_pretrained`, or the checkpoint is of another architecture.
    """
    settings = {} if gguf is None else {"gguf_file": gguf}
    config: PretrainedConfig = load_pretrained(AutoConfig.from_pretrained, checkpoint, revision, **settings)
    if config.model_type not in classes:
        raise UserError(
            f"{_named(checkpoint, gguf)} has the architecture {config.model_type!r}, but this adapter supports"
            f" {_listed(classes)}: choose the model whose adapter fits."
        )
    return config.model_type


def _named(checkpoint: str, gguf: str | None) -> str:
    return f"model.checkpoint={checkpoint!r}" if gguf is None else f"model.gguf={gguf!r}"


def _listed(names: Collection[str]) -> str:
    return " or ".join(repr(name) for name in names)


def processed(processor: Any, image: Image.Image) -> Float[Tensor, "3 H W"]:
    """What an image processor of transformers makes of an RGB image."""
    # which of an image's axes has the channels it would have to guess, and mistakes the rows of one 3 pixels high
    return processor(images=np.array(image), input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]


def check_evaluating(net: torch.nn.Module) -> None:
    """Refuse a model in training mode, whose dropout gives other results each time.

    Raises:
        UserError: it is.
    """
    if net.training:
        raise UserError(f"{type(net).__name__} is in training mode, where dropout is random: call its method eval().")


def settle_device(device: str | None) -> str:
    """``device``; if it is None, the GPU if there is one, else the CPU.

    Raises:
        UserError: PyTorch does not know the device, or the machine does not have it.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # an assertion if PyTorch was built without CUDA
        reason = shorten(_first_line(error), 80, placeholder=" ...")
        raise UserError(
            f"model.device={chosen!r} is not available here ({reason}): choose another, for example cpu."
        ) from error
    return chosen


def settle_dtype(dtype: str, device: str) -> str:
    """``dtype``, or float32 in place of bfloat16 on a CPU that emulates it, 12 times as slow; a log line says so."""
    on_cpu = torch.device(device).type == "cpu"
    if dtype != "bfloat16" or not on_cpu or torch.cpu._is_avx512_bf16_supported():
        return dtype
    log.warning("this CPU does not support bfloat16: the model is loaded in float32, and records say so.")
    return "float32"


def model_revision(net: PreTrainedModel, checkpoint: str) -> str:
    """The hub's commit; of a folder a hash of all its files.

    Raises:
        UserError: a file of the folder cannot be read, or the hub's commit is not known.
    """
    if Path(checkpoint).is_dir():
        return folder_digest(Path(checkpoint))
    commit = net.config._commit_hash
    if commit is None:
        raise UserError(f"the commit of model.checkpoint={checkpoint!r} on the hub is not known: give a folder.")
    return commit


class PretrainedTokenizer:
    """A tokenizer of transformers, see :class:`metagame.models.vision_language.Tokenizer`.

    Args:
        tokenizer: of transformers.
        context: the most tokens that the encoder takes, special ones included.
        clean: what is done to a text before, such as lower case.
    """

    def __init__(self, tokenizer: Any, context: int, clean: Callable[[str], str] = str) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.clean = clean
        self.encode = cache(self._encode)

    @classmethod
    def load(
        cls, checkpoint: str, revision: str | None, context: int, clean: Callable[[str], str] = str
    ) -> PretrainedTokenizer:
        return cls(load_tokenizer(checkpoint, revision), context, clean)

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(self.clean(text), verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def split(self, text: str) -> list[tuple[int, bool]]:
        # of the tokenizer's template, so that a word that is unknown to it is no special token
        encoded = self.tokenizer(self.clean(text), return_special_tokens_mask=True, verbose=False)
        return list(zip(encoded["input_ids"], map(bool, encoded["special_tokens_mask"]), strict=True))
