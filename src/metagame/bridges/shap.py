"""Maskers in the style of shap, with a function of what they return."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from metagame.bridges.black_box import BlackBox, black_box
from metagame.errors import UserError
from metagame.games import as_float64


def of_masker(model: Callable[..., Any], masker: Any, x: Any, names: Collection[str] | None = None) -> BlackBox:
    """A masked model in which f_S is the mean output of ``model`` for x masked by ``masker`` with only S present.

    Args:
        model: maps what the masker returns to one number for each of its rows, ``(m,)``. If the model has several
            outputs, select one.
        masker: a function of a mask, bool ``(n,)`` (True = present), and x that returns rows, or a tuple of arguments
            that have rows. Examples are ``shap.maskers.Independent(background)`` and ``shap.maskers.Text(tokenizer)``.
        x: the input, as the masker takes it.
        names: names of the n players. If None, x1, x2, ..., whose number is taken from the masker's ``shape``.

    Raises:
        UserError: there are no names and the masker has no ``shape``, or the number of names is wrong. Later, if the
            model returns another shape.
    """
    known = _names(masker, x) if names is None else _as_many(tuple(names), masker, x)

    def values(coalitions: Bool[np.ndarray, "k n"]) -> Float[np.ndarray, " k"]:
        return np.array([_mean_output(model, masker(present, x)) for present in coalitions])

    return black_box(values, known)


def _mean_output(model: Callable[..., Any], masked: Any) -> float:
    found = as_float64(model(*masked) if isinstance(masked, tuple) else model(masked), "the model's output")
    if found.ndim != 1 or not found.size:
        raise UserError(
            f"the model returned shape {found.shape}: return one number for each row, such as output[:, 0]."
        )
    return float(found.mean())


def _as_many(names: tuple[str, ...], masker: Any, x: Any) -> tuple[str, ...]:
    """The names, as many as the masker's players where it says how many there are."""
    try:
        expected = len(_names(masker, x))
    except UserError:
        return names
    if len(names) != expected:
        raise UserError(f"names has {len(names)} names for {expected} players of the masker: give one for each.")
    return names


def _names(masker: Any, x: Any) -> tuple[str, ...]:
    try:
        shape = masker.shape(x) if callable(masker.shape) else masker.shape
        return tuple(f"x{number}" for number in range(1, int(shape[1]) + 1))
    except (AttributeError, TypeError, IndexError) as error:
        raise UserError("this masker does not say how many players there are: give names=.") from error
