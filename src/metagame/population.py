"""Mean meta-attributions over many inputs that have the same players and targets, such as rows of a table.

As SAGE does for Shapley values (Covert et al., 2020), the influence in a data set is the mean over its inputs. The
Shapley value is linear in the game, so that the mean of meta-attributions is the metagame of the mean attribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from metagame.errors import UserError
from metagame.meta import MetaAttributions

ALIKE = ("endogenous", "order", "index", "directed", "players", "targets", "grid", "method")
"""What the results of all inputs must have in common."""


def mean_influence(results: Iterable[MetaAttributions]) -> MetaAttributions:
    """The mean of phi_{j -> i} over inputs, in the units of the attribution method: influences of both signs cancel.

    The result is the metagame of the mean attribution: its rows sum to the mean of phi_i(N), minus the mean of
    phi_i(empty) in exogenous games.

    Args:
        results: those of at least two inputs, with the same players and targets.

    Returns:
        ``values``, ``first_order`` and ``empty`` are means. ``standard_error`` is that of a mean over N inputs drawn at
        random, sqrt(s^2 / N + e^2). Here s is the standard deviation over the inputs, and e is the mean of their own
        standard errors, which do not cancel if all were estimated from the same coalitions.

    Raises:
        UserError: there are fewer than two results, they differ in players, targets or settings, or they are formulas.
    """
    return _mean(list(results), lambda values: values)


def mean_size(results: Iterable[MetaAttributions]) -> MetaAttributions:
    """The mean of the absolute phi_{j -> i} over inputs, non-negative: how strong an influence is, whatever its sign.

    Estimated values have larger sizes than exact ones, since errors do not cancel. Row sums have no known meaning.

    Args:
        results: see :func:`mean_influence`.

    Returns:
        ``values`` and ``standard_error`` are as for :func:`mean_influence`; ``first_order`` and ``empty`` are None.

    Raises:
        UserError: see :func:`mean_influence`.
    """
    return replace(_mean(list(results), np.abs), first_order=None, empty=None)


def _mean(results: Sequence[MetaAttributions], of: Callable[[np.ndarray], np.ndarray]) -> MetaAttributions:
    _check(results)
    values = of(np.stack([result.values for result in results]))
    estimated = [result.standard_error for result in results if result.standard_error is not None]
    own = np.mean(estimated, axis=0) if estimated else 0.0
    unknown = next((result.error_note for result in results if result.standard_error is None), None)
    known = unknown is None
    return replace(
        results[0],
        values=values.mean(0),
        first_order=_mean_of([result.first_order for result in results]),
        empty=_mean_of([result.empty for result in results]),
        standard_error=np.sqrt(values.var(0, ddof=1) / len(results) + np.square(own)) if known else None,
        error_note="" if known else f"that of an input is not known{': ' if unknown else ''}{unknown}",
        n_evaluations=sum(result.n_evaluations for result in results),
        output="",
        picture=None,
    )


def _mean_of(given: Sequence[Float[np.ndarray, " t"] | None]) -> Float[np.ndarray, " t"] | None:
    """The mean; None where one is not known."""
    known = [each for each in given if each is not None]
    return np.mean(known, axis=0) if len(known) == len(given) else None


def _check(results: Sequence[MetaAttributions]) -> None:
    if len(results) < 2:
        raise UserError(
            f"results has {len(results)} inputs: give at least two, so that their mean has a standard error."
        )
    first = results[0]
    for number, result in enumerate(results):
        named = f"results[{number}]"
        if result.values.dtype == object:
            raise UserError(f"{named} has formulas: give numbers.")
        if not np.isfinite(result.values).all():
            raise UserError(f"{named} has values that are NaN or infinite: leave it out, or find out why.")
        if result.values.shape != first.values.shape:
            raise UserError(
                f"{named} has shape {result.values.shape}, but results[0] has {first.values.shape}: give results"
                " of the same shape."
            )
        for name in ALIKE:
            if getattr(result, name) != getattr(first, name):
                raise UserError(
                    f"{named} has {name}={getattr(result, name)!r}, but results[0] has {getattr(first, name)!r}:"
                    " give results of the same players, targets and settings."
                )
