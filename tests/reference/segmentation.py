"""Slow twins of the segmentation metrics: one pixel after the other, from SPEC section 5."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

OTHER, UNLABELLED = -1, -2


def resized(values, side: int) -> np.ndarray:
    """A table of numbers, resized to a square by Pillow's nearest neighbour."""
    values = np.asarray(values)
    kind = np.int32 if np.issubdtype(values.dtype, np.integer) else np.float32
    image = Image.fromarray(values.astype(kind))
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST)).astype(values.dtype)


def average_precision(truth, scores) -> float:
    """Over thresholds from the highest down: the gain in recall, times the precision there."""
    truth, scores = [bool(each) for each in truth], [float(each) for each in scores]
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [is_true for is_true, score in zip(truth, scores, strict=True) if score >= threshold]
        recall = sum(chosen) / sum(truth)
        total += (recall - recall_before) * sum(chosen) / len(chosen)
        recall_before = recall
    return total


def single(heat, own, labelled) -> dict:
    """Counts of the map of an image's only class; ``own`` are the class's pixels."""
    values = [float(value) for row in heat for value in row]
    least, most = min(values), max(values)
    scaled = [[(float(value) - least) / (most - least) if most > least else 0.0 for value in row] for row in heat]
    mean = math.fsum(value for row in scaled for value in row) / len(values)
    correct, pixels, intersection, union = 0, 0, [0, 0], [0, 0]
    background_channel, foreground_channel = [], []
    for i, row in enumerate(scaled):
        for j, value in enumerate(row):
            if not labelled[i][j]:
                continue
            ours, theirs = value > mean, bool(own[i][j])
            pixels += 1
            correct += ours == theirs
            for side in (False, True):
                intersection[side] += ours == side and theirs == side
                union[side] += ours == side or theirs == side
            background_channel.append((not theirs, 1 - value))
            foreground_channel.append((theirs, value))
    both = background_channel + foreground_channel
    ap = average_precision(*zip(*both, strict=True)) if both else 0.0
    return {"correct": correct, "pixels": pixels, "intersection": intersection, "union": union, "ap": ap}


def multi(maps, background, truth, full_classes=False) -> dict:
    """Counts of the largest of all maps; ``maps`` by class index, ``truth`` class indices, OTHER or UNLABELLED.

    A class that fills all labelled pixels has an AP only with ``full_classes``.
    """
    correct, pixels = 0, 0
    classes = sorted({*maps, *(int(label) for row in truth for label in row if label >= 0)})
    intersection, union = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0)
    ranking = {each: ([], []) for each in maps}
    for i, row in enumerate(truth):
        for j, label in enumerate(row):
            if label == UNLABELLED:
                continue
            winner, largest = None, -math.inf
            for each, values in maps.items():
                if values[i][j] > largest:
                    winner, largest = each, values[i][j]
            for values in background:
                if values[i][j] > largest:
                    winner, largest = None, values[i][j]
            if label != OTHER:
                pixels += 1
                correct += winner == label
            for each in classes:
                intersection[each] += winner == each and label == each
                union[each] += winner == each or label == each
            for each, (truths, scores) in ranking.items():
                truths.append(label == each)
                scores.append(maps[each][i][j])
    kept = [each for each in classes if union[each]]
    return {
        "correct": correct,
        "pixels": pixels,
        "intersection": {str(each): intersection[each] for each in kept},
        "union": {str(each): union[each] for each in kept},
        "ap": {
            str(each): average_precision(*both)
            for each, both in ranking.items()
            if any(both[0]) and (full_classes or not all(both[0]))
        },
    }


def pooled_single(counts) -> dict[str, float]:
    """The *single* track of a data set: accuracy, the mean of both sides' IoU, mean average precision."""
    overlap = [sum(each["intersection"][side] for each in counts) for side in (0, 1)]
    extent = [sum(each["union"][side] for each in counts) for side in (0, 1)]
    return {
        "acc": sum(each["correct"] for each in counts) / sum(each["pixels"] for each in counts),
        "miou": (overlap[0] / extent[0] + overlap[1] / extent[1]) / 2,
        "map": sum(each["ap"] for each in counts) / len(counts),
    }


def pooled_multi(counts) -> dict[str, float]:
    """The *multi* track of a data set: by class over images, then the mean over classes."""
    iou, precision = [], []
    for name in {name for each in counts for name in each["union"]}:
        overlap = sum(each["intersection"].get(name, 0) for each in counts)
        iou.append(overlap / sum(each["union"].get(name, 0) for each in counts))
    for name in {name for each in counts for name in each["ap"]}:
        values = [each["ap"][name] for each in counts if name in each["ap"]]
        precision.append(sum(values) / len(values))
    return {
        "acc": sum(each["correct"] for each in counts) / sum(each["pixels"] for each in counts),
        "miou": sum(iou) / len(iou),
        "map": sum(precision) / len(precision),
    }
