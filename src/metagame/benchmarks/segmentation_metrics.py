"""How well maps of concepts segment an image: per-image counts, pooled over images by the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import average_precision_score

from metagame.benchmarks.masks import OTHER, UNLABELLED


def resize_nearest(values: Float[np.ndarray, "*c h w"] | Int[np.ndarray, "h w"], side: int) -> np.ndarray:
    """To ``(..., side, side)``, each pixel being the one that Pillow's nearest resize takes."""
    rows, columns = (_nearest(length, side) for length in values.shape[-2:])
    return values[..., rows[:, None], columns]


def _nearest(length: int, side: int) -> Int[np.ndarray, " {side}"]:
    """Places in ``length`` pixels of ``side`` centres; steps are added up as Pillow does, rounding included."""
    step = length / side
    return np.cumsum([step / 2, *[step] * (side - 1)]).astype(int)


def single_scores(
    heat: Float[np.ndarray, "s s"], own: Bool[np.ndarray, "s s"], labelled: Bool[np.ndarray, "s s"]
) -> dict[str, float | int | list[int]]:
    """The map of an image's only class against the class's pixels (SPEC's *single* track).

    The map is scaled to [0, 1] and split at its mean, over all pixels: foreground lies above. A flat map has none. Of
    unlabelled pixels nothing is counted.

    Returns:
        ``correct`` and ``pixels``; ``intersection`` and ``union`` of background and foreground; ``ap``, the average
        precision of the stack (1 - map, map).
    """
    spread = heat.max() - heat.min()
    scaled = (heat - heat.min()) / spread if spread > 0 else np.zeros_like(heat)
    predicted = (scaled > scaled.mean())[labelled]
    scaled, own = scaled[labelled], own[labelled]
    sides = [(~predicted, ~own), (predicted, own)]
    truth = np.concatenate([~own, own])
    return {
        "correct": int((predicted == own).sum()),
        "pixels": own.size,
        "intersection": [int((ours & theirs).sum()) for ours, theirs in sides],
        "union": [int((ours | theirs).sum()) for ours, theirs in sides],
        "ap": float(average_precision_score(truth, np.concatenate([1 - scaled, scaled]))) if own.size else 0.0,
    }


def multi_scores(
    maps: Mapping[int, Float[np.ndarray, "s s"]],
    background: Sequence[Float[np.ndarray, "s s"]],
    truth: Int[np.ndarray, "s s"],
    full_classes: bool = False,
) -> dict[str, int | dict[str, list[int] | float]]:
    """The largest of all maps at each pixel against the pixel's class (SPEC's *multi* track).

    Args:
        maps: of classes, by index in the vocabulary; an earlier one wins a tie.
        background: of the concepts that stand for no class; a class wins a tie.
        truth: class indices, :data:`OTHER` and :data:`UNLABELLED`.
        full_classes: whether a class that fills all labelled pixels has an average precision, which is 1.

    Returns:
        ``correct`` of the ``pixels`` whose truth is a class; by class ``intersection`` and ``union`` over the labelled
        pixels, where the latter is not empty; ``ap``, the average precision of each class with a pixel.
    """
    labelled = truth != UNLABELLED
    heat = np.stack([*maps.values(), *background])[:, labelled]
    classes = np.array([*maps, *[OTHER] * len(background)])
    predicted, truth = classes[heat.argmax(0)], truth[labelled]
    known = truth != OTHER
    union = {str(each): int(((predicted == each) | (truth == each)).sum()) for each in _classes(maps, truth)}
    found = {str(each): int(((predicted == each) & (truth == each)).sum()) for each in _classes(maps, truth)}
    return {
        "correct": int((predicted == truth)[known].sum()),
        "pixels": int(known.sum()),
        "intersection": {name: found[name] for name in union if union[name]},
        "union": {name: count for name, count in union.items() if count},
        "ap": {
            str(each): float(average_precision_score(truth == each, values))
            for each, values in zip(maps, heat[: len(maps)], strict=True)
            if (truth == each).any() and (full_classes or not (truth == each).all())
        },
    }


def image_scores(counts: Mapping[str, Any]) -> dict[str, float]:
    """Of one image, from what :func:`single_scores` or :func:`multi_scores` counted: ``accuracy``, ``IoU`` and ``AP``.

    The last two are means over classes. What was not counted is left out. All are from 0 to 1.
    """
    intersection, union, ap = counts["intersection"], counts["union"], counts["ap"]
    if isinstance(union, Mapping):
        intersection, union = [intersection[name] for name in union], list(union.values())
    ious = [ours / whole for ours, whole in zip(intersection, union, strict=True) if whole]
    aps = list(ap.values()) if isinstance(ap, Mapping) else [ap]
    scores = {"accuracy": counts["correct"] / counts["pixels"]} if counts["pixels"] else {}
    return scores | {name: float(np.mean(values)) for name, values in (("IoU", ious), ("AP", aps)) if values}


def _classes(maps: Mapping[int, np.ndarray], truth: Int[np.ndarray, " p"]) -> list[int]:
    """Classes that have a map or a pixel, in order."""
    return sorted({*maps, *np.unique(truth[truth >= 0]).tolist()})
