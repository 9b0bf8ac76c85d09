"""Estimators of scikit-learn with a background set, and the influence of their training points."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from numbers import Integral
from typing import Any

import numpy as np
import pandas
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError

from metagame.bridges.black_box import BlackBox, black_box
from metagame.errors import UserError
from metagame.games import AttributionGame, as_float64

ROWS = 65536
"""The most rows that an estimator is given at once."""


def of_estimator(
    estimator: Any,
    x: Any,
    background: Any,
    output: Any = None,
    *,
    names: Collection[str] | None = None,
    predict: Callable[[Any], Any] | None = None,
    weights: Callable[[Bool[np.ndarray, "k n"]], Float[np.ndarray, "k m"]] | None = None,
) -> BlackBox:
    """A masked model in which background rows replace the absent features of x, and f_S is the mean output over them.

    This is marginal imputation, unless ``weights`` are given.

    Args:
        estimator: a fitted classifier, regressor or pipeline of scikit-learn, or one with the same interface.
        x: the features of one input, ``(n,)`` or ``(1, n)``; may be a row of a DataFrame.
        background: rows, ``(m, n)``; a DataFrame if the estimator was fitted to one, with columns of any type.
        output: for a classifier, the class whose probability is explained; if None, the predicted one. For a regressor
            with several outputs, the number of the output.
        names: names of the features. If None, the columns of a DataFrame, else x1, x2, ...
        predict: a function of rows ``(k, n)`` to numbers ``(k,)`` that is explained instead of the estimator's own
            output, such as ``lambda rows: svm.decision_function(rows)``.
        weights: weights of the rows in the mean, ``(k, m)`` for coalitions ``(k, n)``, such as those of
            :func:`metagame.conditional.conditional_weights` for conditional imputation. If None, all rows count alike.

    Raises:
        UserError: shapes, names, columns or types of x and background do not match each other, ``output`` is given
            together with ``predict``, the estimator is not fitted or has no such output, or the weights do not belong
            to the rows.
    """
    row, rows = np.asarray(x, dtype=object).reshape(-1), np.asarray(background, dtype=object)
    if rows.ndim != 2 or not len(rows) or row.shape != rows.shape[1:]:
        raise UserError(
            f"x has {len(row)} features, but background has shape {rows.shape}: give a background of shape (m,"
            f" {len(row)}), with at least one row."
        )
    if names is not None and len(names) != len(row):
        raise UserError(f"names has {len(names)} names for {len(row)} features: give one for each.")
    if predict is not None and output is not None:
        raise UserError(f"output={output!r} would change nothing beside predict=: leave one of them out.")
    frame = background if isinstance(background, pandas.DataFrame) else None
    _check_columns(x, frame)
    own = [f"x{number}" for number in range(1, len(row) + 1)] if frame is None else list(map(str, frame.columns))

    def table(values: np.ndarray) -> Any:
        if frame is None:
            return values.astype(np.asarray(background).dtype)
        return pandas.DataFrame(values, columns=frame.columns).astype(frame.dtypes)

    _check_types(row, lambda: table(row[None]))
    answer, of_rows = _output(estimator, output, table(row[None])) if predict is None else ("", predict)

    def values(coalitions: Bool[np.ndarray, "k n"]) -> Float[np.ndarray, " k"]:
        imputed = np.where(coalitions[:, None], row, rows).reshape(-1, len(row))
        found = as_float64(of_rows(table(imputed)), "the estimator's output")
        if found.shape != imputed.shape[:1]:
            raise UserError(f"the estimator returned shape {found.shape} for {len(imputed)} rows: choose one output=.")
        by_row = found.reshape(len(coalitions), len(rows))
        if weights is None:
            return by_row.mean(1)
        weight = as_float64(weights(coalitions), "weights")
        if weight.shape != by_row.shape or not np.allclose(weight.sum(1), 1):
            raise UserError(
                f"weights has shape {weight.shape}, {by_row.shape} is needed with a sum of 1 in each row: make it with"
                " the background that is given here."
            )
        return (weight * by_row).sum(1)

    return black_box(values, own if names is None else names, max(1, ROWS // len(rows)), answer=answer)


def of_training_set(
    estimator: Any,
    x: Any,
    y: ArrayLike,
    attribute: Callable[[Any], Any],
    untrained: ArrayLike,
    *,
    players: Iterable[str] | None = None,
    targets: Iterable[str] | None = None,
) -> AttributionGame:
    """The game of the points of a training set: phi_i(S) is target i of an estimator that is fitted to those in S.

    If the only target is the score of the estimator, the Shapley values are data values (Ghorbani and Zou, 2019). If
    the targets are its attributions of features, the values say which points an attribution comes from. Each coalition
    requires a fit.

    Args:
        estimator: a scikit-learn estimator, or one with the same interface; a clone is fitted to each coalition.
        x: the training points, ``(n, features)``; a DataFrame or an array.
        y: the labels or numbers to learn, ``(n,)``.
        attribute: maps a fitted estimator to the targets, a number or ``(t,)``, such as ``lambda e: e.coef_`` or
            ``lambda e: e.score(x_test, y_test)``.
        untrained: the targets without any point, a number or ``(t,)``. They are also used if a classifier cannot be
            fitted because all points have one class.
        players: names of the points. If None, the index of a DataFrame, else 0, 1, ...
        targets: names of the targets.

    Raises:
        UserError: x and y differ in length, the estimator cannot be fitted to a coalition, or ``attribute`` returns
            another number of targets than ``untrained`` has.
    """
    if issparse(x):
        raise UserError("x is a sparse matrix: give x.toarray().")
    labels = np.asarray(y)
    if labels.shape != (len(x),):
        raise UserError(f"y has shape {labels.shape} for {len(x)} points: give one number or class for each point.")
    nothing = np.atleast_1d(as_float64(untrained, "untrained"))
    rows = x.iloc if isinstance(x, pandas.DataFrame) else np.asarray(x)

    def values(coalitions: Bool[np.ndarray, "k n"]) -> Float[np.ndarray, "k t"]:
        return np.stack([of_points(np.flatnonzero(row)) for row in coalitions])

    def of_points(places: np.ndarray) -> Float[np.ndarray, " t"]:
        fitted = _fitted(estimator, rows[places], labels[places]) if len(places) else None
        if fitted is None:
            return nothing
        found = np.ravel(as_float64(attribute(fitted), "attribute"))
        if found.shape != nothing.shape:
            raise UserError(
                f"attribute= gives {len(found)} targets, but untrained= has {len(nothing)}: give the same number."
            )
        return found

    own = x.index if isinstance(x, pandas.DataFrame) else range(len(x))
    return AttributionGame(values, len(labels), players=map(str, own) if players is None else players, targets=targets)


def _fitted(estimator: Any, x: Any, y: np.ndarray) -> Any:
    """A clone fitted to points; None of a classifier that cannot be where they have one class alone."""
    try:
        return clone(estimator).fit(x, y)
    except ValueError as error:
        if is_classifier(estimator) and len(np.unique(y)) == 1:
            return None
        name, reason = type(estimator).__name__, " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{name} cannot be fitted to {len(y)} points ({reason}): choose an estimator that can."
        ) from error


def _check_columns(x: Any, frame: pandas.DataFrame | None) -> None:
    """Refuse a row whose names are not those of the background in its order: values go by their place."""
    named = x.columns if isinstance(x, pandas.DataFrame) else x.index if isinstance(x, pandas.Series) else None
    if frame is not None and named is not None and list(named) != list(frame.columns):
        raise UserError(
            f"x has the columns {list(named)[:10]}, but background has {list(frame.columns)[:10]}: give both in"
            " the same order, for example with x[background.columns]."
        )


def _check_types(row: np.ndarray, table: Callable[[], Any]) -> None:
    """Refuse a row that the background's types would change, as integers do a fraction."""
    try:
        held = np.asarray(table(), dtype=object).reshape(-1)
    except (TypeError, ValueError) as error:
        raise UserError(f"x does not have the types of background ({error}): give both the same types.") from error
    for given, kept in zip(row, held, strict=True):
        missing = bool(pandas.isna(kept))
        rounded = isinstance(kept, float | np.floating)  # to the precision of the background
        if missing != bool(pandas.isna(given)) or not (missing or rounded or given == kept):
            raise UserError(
                f"x has {given!r}, which the type of background would turn into {kept!r}: give both the same"
                " type, for example with background.astype(float)."
            )


def _output(estimator: Any, output: Any, x: Any) -> tuple[str, Callable[[Any], Any]]:
    """What is explained, and its values for rows.

    Raises:
        UserError: the estimator is not fitted, there is no such class or output, or the classifier has no
            probabilities.
    """
    name = type(estimator).__name__
    try:
        predicted = np.asarray(estimator.predict(x))
    except NotFittedError as error:
        raise UserError(f"{name} is not fitted: call its fit method first.") from error
    if not is_classifier(estimator):
        if output is None:
            return "", estimator.predict
        n_outputs = predicted.shape[1] if predicted.ndim == 2 else 0
        if not isinstance(output, Integral) or not 0 <= output < n_outputs:
            choice = f"choose one from 0 to {n_outputs - 1}" if n_outputs else "leave it out, since there is only one"
            raise UserError(f"output={output!r} is not an output of {name}: {choice}.")
        return str(output), lambda rows: np.asarray(estimator.predict(rows))[:, output]
    try:
        probabilities = estimator.predict_proba
    except AttributeError as error:
        raise UserError(f"{name} has no predict_proba: give predict=, for example its decision_function.") from error
    if np.ndim(predicted) > 1:
        raise UserError(f"{name} predicts several labels: give predict=, a function that selects one number per row.")
    classes = list(estimator.classes_)
    chosen = classes[int(np.argmax(probabilities(x)[0]))] if output is None else output
    if chosen not in classes:
        raise UserError(f"output={output!r} is not a class of {name}: choose one of {classes[:10]}.")
    return str(chosen), lambda rows: probabilities(rows)[:, classes.index(chosen)]
