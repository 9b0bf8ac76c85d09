"""What the training scripts share: the learning rate, and checkpoints of a run that can be stopped at any moment."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metagame.jobs.records import replace_atomically


def set_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, n_steps: int, warm_up: int) -> None:
    """Rise to the ``peak`` in ``warm_up`` steps, then fall to 0 along a cosine."""
    rest = max(0.0, (step - warm_up) / max(1, n_steps - warm_up))
    for group in optimiser.param_groups:
        group["lr"] = peak * min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * rest))


def save_checkpoint(model: nn.Module, optimiser: torch.optim.Optimizer, state: Path, step: int) -> None:
    """Weights, shared ones once, and Adam's moments, moved into place as a whole."""
    tensors = {f"model.{name}": value for name, value in model.named_parameters()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    state.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, state / "new.safetensors",
              metadata={"step": str(step)})  # fmt: skip
    (state / "new.safetensors").replace(state / f"step{step:06d}.safetensors")
    for older in sorted(state.glob("step*.safetensors"))[:-1]:
        older.unlink()


@torch.no_grad()
def load_checkpoint(model: nn.Module, optimiser: torch.optim.Optimizer, state: Path) -> int:
    """Load the last checkpoint, if there is one, and return the step to continue from; 0 without one.

    Raises:
        KeyError: it is of another model.
    """
    found = sorted(state.glob("step*.safetensors"))
    if not found:
        return 0
    tensors = load_file(found[-1])
    weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    parameters = dict(model.named_parameters())
    if weights.keys() != parameters.keys():
        raise KeyError(f"{found[-1]} is of another model: remove it to begin again.")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
    return int(found[-1].stem.removeprefix("step"))


def read_curve(state: Path) -> dict[str, float]:
    """The losses kept so far, by step."""
    path = state / "losses.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save_curve(curve: dict[str, float], state: Path) -> None:
    """Keep the losses, as a whole or not at all."""
    state.mkdir(parents=True, exist_ok=True)
    with replace_atomically(state / "losses.json") as path:
        path.write_text(json.dumps(curve), encoding="utf-8")
