"""What the training scripts share: the learning rate, short runs, and checkpoints of a run that can be stopped."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metagame.jobs.records import replace_atomically


def set_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, n_steps: int, warm_up: int) -> None:
    """Rise to the ``peak`` in ``warm_up`` steps, then fall to 0 along a cosine."""
    rest = max(0.0, (step - warm_up) / max(1, n_steps - warm_up))
    for group in optimiser.param_groups:
        group["lr"] = peak * min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * rest))


def descend(loss: Tensor, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """A step of the optimiser down the loss, whose gradient has a norm of 1 at most."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def fit(
    model: nn.Module, loss_of: Callable[[int], Tensor], n_steps: int, peak: float, warm_up: int, decay: float
) -> dict[str, float]:
    """Steps of AdamW down the loss of each step, without checkpoints; the mean loss of each hundred steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=decay)
    curve, window = {}, []
    for step in track(range(n_steps), type(model).__name__):
        set_rate(optimiser, peak, step, n_steps, warm_up)
        loss = loss_of(step)
        descend(loss, model, optimiser)
        window.append(loss.item())
        if (step + 1) % 100 == 0:
            curve[str(step + 1)] = round(sum(window) / len(window), 4)
            window = []
            print(f"step {step + 1}: loss {curve[str(step + 1)]}", flush=True)
    return curve


def write_card(model: nn.Module, out: Path, **about: object) -> dict:
    """Write ``card.json``: what the model is, how it was trained, and how good it is."""
    size = sum(parameter.numel() for parameter in model.parameters())
    card = {"class": type(model).__name__, "parameters": size, **about}
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def train_from_arguments(train: Callable[[int, int, Path], dict], about: str | None, n_steps: int, out: str) -> None:
    """Read --steps, --seed and --out from the command line, train on one thread, and print the card."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=n_steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(out))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    card = train(arguments.steps, arguments.seed, arguments.out)
    print({key: value for key, value in card.items() if key != "training_loss"})


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
