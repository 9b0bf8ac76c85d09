"""What stands for samples whose data are not here, so that the passes through a model can be counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from PIL import Image

from metagame.benchmarks.pointing_game import Scenes
from metagame.contracts import Sample
from metagame.errors import UserError
from metagame.jobs.build import build_part
from metagame.jobs.spec import plain
from metagame.models.concepts import ConceptQuestion, ConceptSample


class NoScenes(Scenes):
    """Grids without images."""

    def image(self, game: str, labels: Sequence[int], k: int) -> Image.Image:
        raise UserError("this grid is a placeholder for one that is missing: fetch the data.")

    def files(self, game: str, labels: Sequence[int], k: int) -> Sequence[Path]:
        return ()


@dataclass(frozen=True)
class ExpectedImage(ConceptSample):
    """An image of a dataset that is not here.

    Attributes:
        id: its number.
        prompts: of the image, one for each pass through the model.
    """

    id: str
    prompts: tuple[str, ...]

    def questions(self) -> Mapping[str, ConceptQuestion]:
        return {prompt: ConceptQuestion((), (), 1, prompt) for prompt in self.prompts}


def stand_ins(node: DictConfig) -> Sequence[Sample]:
    """As many samples as the benchmark that cannot be built has.

    Raises:
        UserError: their number is not known without the data.
    """
    if "scenes" in node:
        scenes = {"_target_": f"{NoScenes.__module__}.{NoScenes.__name__}"}
        return build_part(OmegaConf.create(plain(node) | {"scenes": scenes})).samples()
    expected = (node.get("expected") or {}).get("images")
    if expected is None:
        raise UserError(f"the samples of benchmark {node.name} cannot be counted without its data.")
    prompts = tuple(dict.fromkeys("prompt" if ablation == "prompt" else "" for ablation in node.ablations))
    return [ExpectedImage(str(number), prompts) for number in range(expected)]
