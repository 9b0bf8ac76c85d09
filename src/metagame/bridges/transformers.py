"""Pipelines of transformers that classify texts or images, whatever their architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageOps
from transformers import ImageClassificationPipeline, TextClassificationPipeline

from metagame.bridges.black_box import BlackBox, black_box
from metagame.errors import UserError
from metagame.games import as_grid
from metagame.images import read_image, to_rgb


def of_pipeline(
    pipeline: TextClassificationPipeline | ImageClassificationPipeline,
    content: str | Path | Image.Image,
    label: str | None = None,
    *,
    grid: tuple[int, int] = (4, 4),
    batch_size: int = 8,
) -> BlackBox:
    """f_S is the logit of a label for a text whose absent words are masked, or an image whose absent patches are blank.

    An absent word is replaced by the tokenizer's mask token, or left out if there is no such token. An absent patch has
    the image's mean color. For tokens as players and for gradients, use :func:`metagame.explain` with
    ``pipeline.model`` and ``processor=pipeline.tokenizer``.

    Args:
        pipeline: a pipeline for the task ``text-classification`` or ``image-classification``.
        content: the text, or the image or its path.
        label: the label whose logit is explained; if None, the predicted one.
        grid: number of rows and columns of patches of an image.
        batch_size: number of inputs passed to the model at once.

    Raises:
        UserError: the pipeline is for another task, the content does not fit the pipeline, the label is unknown, or
            several labels have the same name.
    """
    if isinstance(pipeline, TextClassificationPipeline):
        if not isinstance(content, str) or not content.strip():
            raise UserError(
                f"content={content!r} must be a text that is not blank, since the pipeline classifies texts."
            )
        return _of_text(pipeline, content, label, batch_size)
    if isinstance(pipeline, ImageClassificationPipeline):
        if isinstance(content, str | Path):
            content = ImageOps.exif_transpose(read_image(Path(content), str(content)))
        if not isinstance(content, Image.Image):
            raise UserError(
                f"content is of type {type(content).__name__}: give a path or a PIL image to a pipeline that classifies"
                " images."
            )
        return _of_image(pipeline, to_rgb(content, "content"), label, grid, batch_size)
    raise UserError(
        f"{type(pipeline).__name__} is not supported: give a pipeline for text-classification or image-classification."
    )


def _of_text(pipeline: Any, text: str, label: str | None, batch_size: int) -> BlackBox:
    words = text.split()
    mask = pipeline.tokenizer.mask_token or ""

    def written(present: Bool[np.ndarray, " n"]) -> str:
        kept = [word if here else mask for word, here in zip(words, present, strict=True)]
        return " ".join(filter(None, kept))

    chosen = _label(pipeline, text, label)

    def values(coalitions: Bool[np.ndarray, "k n"]) -> Float[np.ndarray, " k"]:
        return _logits(pipeline, [written(present) for present in coalitions], chosen, batch_size)

    return black_box(values, words, answer=chosen)


def _of_image(pipeline: Any, image: Image.Image, label: str | None, grid: tuple[int, int], batch_size: int) -> BlackBox:
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    rows, columns = as_grid(grid)
    if rows > height or columns > width:
        raise UserError(f"grid={grid} does not fit {height} x {width} pixels: give fewer rows or columns.")
    patch = np.arange(height)[:, None] * rows // height * columns + np.arange(width) * columns // width
    blank = pixels.mean((0, 1)).round().astype(np.uint8)
    chosen = _label(pipeline, image, label)

    def values(coalitions: Bool[np.ndarray, "k n"]) -> Float[np.ndarray, " k"]:
        masked = [Image.fromarray(np.where(present[patch][..., None], pixels, blank)) for present in coalitions]
        return _logits(pipeline, masked, chosen, batch_size)

    names = [f"row {row}, column {column}" for row in range(rows) for column in range(columns)]
    return black_box(values, names, batch_size, answer=chosen, rows=rows, columns=columns, pixels=pixels)


def _label(pipeline: Any, content: str | Image.Image, label: str | None) -> str:
    known = [str(name) for name in pipeline.model.config.id2label.values()]
    if len(set(known)) < len(known):
        raise UserError("several labels of this pipeline have the same name: rename them in model.config.id2label.")
    if label is not None:
        if label not in known:
            raise UserError(f"label={label!r} is unknown to this pipeline: choose one of {', '.join(known[:10])}.")
        return label
    (scores,) = _scores(pipeline, [content], 1)
    return max(scores, key=scores.__getitem__)


def _logits(pipeline: Any, contents: list, label: str, batch_size: int) -> Float[np.ndarray, " k"]:
    return np.array([scores[label] for scores in _scores(pipeline, contents, batch_size)])


def _scores(pipeline: Any, contents: list, batch_size: int) -> list[dict[str, float]]:
    """Of each input the logits of all labels."""
    n_labels = pipeline.model.config.num_labels
    found = pipeline(contents, top_k=n_labels, function_to_apply="none", batch_size=batch_size)
    return [{each["label"]: each["score"] for each in scores} for scores in found]
