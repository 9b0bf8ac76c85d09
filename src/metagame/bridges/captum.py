"""Attribution methods of captum as games: captum attributes inputs whose absent players are masked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metagame.errors import GameError
from metagame.games import AttributionGame, as_grid

Tensors = Tensor | tuple[Tensor, ...]


def of_captum(
    attribution: Any,
    inputs: Tensors,
    baselines: float | Tensors = 0.0,
    *,
    feature_mask: Tensors | None = None,
    players: Iterable[str] | None = None,
    targets: Iterable[str] | None = None,
    grid: tuple[int, int] | None = None,
    reduce: Callable[[Any], Tensor] | None = None,
    batch_size: int = 32,
    **arguments: Any,
) -> AttributionGame:
    """The game of a captum attribution object: phi_i(S) is what it attributes to i when only S is present.

    In each input, the elements of absent players are replaced by the baseline. If the captum method itself takes
    baselines or a feature mask, it gets the same ones, unless ``arguments`` override them.

    Args:
        attribution: for example ``captum.attr.IntegratedGradients(model)``; it must treat the rows of a batch
            independently.
        inputs: a tensor ``(1, ...)``, or a tuple of them, as the model takes them.
        baselines: the values of absent elements: a number, or for each input a tensor that broadcasts to it.
        feature_mask: for each input, a tensor that broadcasts to it and holds the number of the player that each
            element belongs to, counted from 0. If None, each element is a player.
        players: names of the players.
        targets: names of the targets; if None, those of the players.
        grid: number of rows and columns of patches, see :class:`metagame.AttributionGame`.
        reduce: maps what the method returns for k rows to the attributions of targets, ``(k, t)``. If None, the targets
            are the players, and the attribution of a player is the sum over its elements. Methods with a feature mask
            give all elements of a player the same value; for them the attribution is this value.
        batch_size: the maximum number of coalitions that are attributed at once.
        arguments: passed to the ``attribute`` method, for example ``target``.

    Raises:
        GameError: the inputs are not a batch of one, or the mask does not number the players. Later, if the method
            returns attributions of another shape and there is no ``reduce``.
    """
    rows = inputs if isinstance(inputs, tuple) else (inputs,)
    for row in rows:
        if not isinstance(row, Tensor):
            raise GameError(f"inputs has a {type(row).__name__}: give a tensor (1, ...), or a tuple of such tensors.")
        if row.shape[:1] != (1,):
            raise GameError(f"inputs has shape {tuple(row.shape)}: give a batch of one, (1, ...).")
    rows = tuple(row.detach().clone() for row in rows)  # which the caller may write to later
    masks = _masks(rows, feature_mask)
    absent = _absent(baselines, rows)
    numbers = torch.cat([mask.flatten() for mask in masks])
    counts = torch.bincount(numbers)
    own = _own_arguments(attribution, inputs, absent, masks) | arguments
    grouped = "feature_mask" in own

    def attribute(coalitions: Bool[Tensor, "k n"]) -> Float[Tensor, "k t"]:
        masked = tuple(
            _masked(coalitions[:, mask[0]], row, other) for row, mask, other in zip(rows, masks, absent, strict=True)
        )
        found = attribution.attribute(masked if isinstance(inputs, tuple) else masked[0], **own)
        if reduce is not None:
            return reduce(found)
        parts = found if isinstance(found, tuple) else (found,)
        if [part.shape for part in parts] != [each.shape for each in masked]:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise GameError(
                f"{type(attribution).__name__} returned shapes {shapes}, not those of the inputs: give reduce=, a"
                " function that turns them into shape (k, t)."
            )
        flat = torch.cat([part.flatten(1) for part in parts], 1)
        total = flat.new_zeros(len(flat), len(counts)).index_add(1, numbers.to(flat.device), flat)
        return total / counts.to(flat) if grouped else total

    settings = {"batch_size": batch_size, "players": players, "targets": targets, "grid": grid}
    return AttributionGame.of_torch(attribute, len(counts), device=rows[0].device, **settings)


def patch_mask(inputs: Tensor, grid: tuple[int, int]) -> Int[Tensor, "1 1 H W"]:
    """The feature mask of an image ``(1, c, H, W)`` whose players are the patches of a ``grid`` of rows and columns.

    Raises:
        GameError: the grid has more rows or columns than the image has pixels.
    """
    height, width = inputs.shape[-2:]
    rows, columns = as_grid(grid)
    if rows > height or columns > width:
        raise GameError(f"grid={grid} does not fit {height} x {width} pixels: give fewer rows or columns.")
    row, column = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    return (row[:, None] * columns + column)[None, None].to(inputs.device)


def _absent(baselines: float | Tensors, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The baseline of each input, in its type."""
    given = _of_each(baselines, rows, "baselines")
    absent = tuple(each.to(row) for each, row in zip(given, rows, strict=True))
    for each, row, found in zip(given, rows, absent, strict=True):
        if not row.is_floating_point() and (found != each).any():
            raise GameError(
                f"baselines has fractions, but the inputs are of type {row.dtype}: give inputs of a floating-point"
                " type, or whole numbers as baselines."
            )
    return absent


def _masked(present: Tensor, row: Tensor, absent: Tensor) -> Tensor:
    """Elements of the row where they are present; captum sets the need of gradients, and warns, where it is not set."""
    masked = torch.where(present, row.detach(), absent)
    return masked.requires_grad_(masked.is_floating_point())


def _masks(rows: tuple[Tensor, ...], feature_mask: Tensors | None) -> tuple[Int[Tensor, "1 ..."], ...]:
    """The player of each element."""
    if feature_mask is None:
        ends = torch.tensor([row.numel() for row in rows]).cumsum(0)
        return tuple(
            torch.arange(int(end) - row.numel(), int(end), device=row.device).reshape(row.shape)
            for row, end in zip(rows, ends, strict=True)
        )
    masks = _of_each(feature_mask, rows, "feature_mask")
    found = torch.cat([mask.flatten() for mask in masks]).unique()
    if found.cpu().tolist() != list(range(len(found))):
        raise GameError(f"feature_mask has the numbers {found.tolist()[:10]}: number the players from 0, without gaps.")
    return tuple(mask.long() for mask in masks)


def _of_each(values: float | Tensors, rows: tuple[Tensor, ...], name: str) -> tuple[Tensor, ...]:
    """A tensor of the shape of each input."""
    several = values if isinstance(values, tuple) else (values,) * len(rows)
    try:
        return tuple(
            torch.as_tensor(each, device=row.device).broadcast_to(row.shape)
            for row, each in zip(rows, several, strict=True)
        )
    except (ValueError, RuntimeError) as error:
        raise GameError(f"{name} does not fit the inputs: give one that broadcasts to each of them.") from error


def _parameters(attribution: Any) -> set[str]:
    """What the method takes, and what one that it wraps does, as by captum's NoiseTunnel."""
    own = inspect.signature(attribution.attribute).parameters
    if all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in own.values()):
        return set(own)
    try:
        return set(own) | _parameters(attribution.attribution_method)
    except AttributeError:
        return set(own)


def _own_arguments(
    attribution: Any, inputs: Tensors, baselines: tuple[Tensor, ...], masks: tuple[Tensor, ...]
) -> dict[str, Any]:
    """Of the baselines and the mask those that the method takes itself."""
    taken = _parameters(attribution)
    own = {"baselines": baselines, "feature_mask": masks}
    several = isinstance(inputs, tuple)
    return {name: value if several else value[0] for name, value in own.items() if name in taken}
