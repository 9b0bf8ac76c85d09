"""Ratios of counts that are summed over images, with standard errors by the jackknife."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class JackknifeRatio:
    """A ratio of counts over several images.

    Attributes:
        value: of all images.
        without: of all but each one (the jackknife).
    """

    value: float
    without: Float[np.ndarray, " n"]

    @classmethod
    def of_ratios(cls, parts: ArrayLike, wholes: ArrayLike) -> Self:
        """The mean over classes of sum(parts) / sum(wholes), both ``(n, c)``; classes without a whole do not count."""
        parts, wholes = (np.asarray(each, float) for each in (parts, wholes))
        left = _mean_ratio(parts.sum(0) - parts, wholes.sum(0) - wholes)
        return cls(float(_mean_ratio(parts.sum(0), wholes.sum(0))), left)

    def __sub__(self, other: JackknifeRatio) -> JackknifeRatio:
        """The difference, image by image: both are of the same images."""
        return JackknifeRatio(self.value - other.value, self.without - other.without)

    def cell(self) -> dict[str, Any] | None:
        """A cell of type ``mean``: value, two standard errors (None where an image is the only one) and n.

        None where the value is not known.
        """
        if not np.isfinite(self.value):
            return None
        n = len(self.without)
        known = n > 1 and np.isfinite(self.without).all()
        spread = float(np.sqrt((n - 1) * np.var(self.without))) if known else None
        return {"mean": round(self.value, 6), "two_se": None if spread is None else round(2 * spread, 6), "n": n}


def _mean_ratio(parts: Float[np.ndarray, "*n c"], wholes: Float[np.ndarray, "*n c"]) -> Float[np.ndarray, "*n"]:
    """The mean over the classes whose whole is positive; NaN if no class has one."""
    here = wholes > 0
    ratios = np.divide(parts, wholes, out=np.zeros_like(parts), where=here)
    count = here.sum(-1)
    return np.divide(ratios.sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)
