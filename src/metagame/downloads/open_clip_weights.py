"""The weights that open_clip fetches by its own names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from metagame.games import GameError


@dataclass(frozen=True, order=True)
class OpenCLIPWeights:
    """Weights of open_clip.

    Attributes:
        architecture: such as ``ViT-B-16-quickgelu``.
        pretrained: such as ``openai``.
    """

    architecture: str
    pretrained: str

    def line(self) -> str:
        """The weights in one line."""
        return f"{self.architecture}, {self.pretrained}, of open_clip, which does not tell their size."


def open_clip_weights(configs: Iterable[DictConfig]) -> list[OpenCLIPWeights]:
    """The distinct weights that jobs load by open_clip's names; files and folders on this disk are none.

    ``hf-hub:ID`` is left to open_clip at the first run.
    """
    named = {
        (OmegaConf.select(cfg, "model.architecture"), OmegaConf.select(cfg, "model.pretrained")) for cfg in configs
    }
    return sorted(OpenCLIPWeights(*pair) for pair in named if all(pair) and not Path(pair[1]).is_file())


def get_open_clip_weights(weights: OpenCLIPWeights) -> Path:
    """Fetch the weights where they are not in open_clip's cache; the file.

    Raises:
        GameError: open_clip does not know the names, or cannot fetch the file.
    """
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    known = get_pretrained_cfg(weights.architecture, weights.pretrained)
    if not known:
        raise GameError(
            f"model.architecture={weights.architecture!r}, model.pretrained={weights.pretrained!r}: give names that"
            " open_clip.list_pretrained() lists."
        )
    try:
        return Path(download_pretrained(known))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise GameError(
            f"model.architecture={weights.architecture!r}, model.pretrained={weights.pretrained!r} cannot be fetched"
            f" ({reason}): run the same command again where there is a network."
        ) from error
