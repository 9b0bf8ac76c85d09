"""Weights of background rows given the present features, row by row from the equation."""

import numpy as np


def conditional_weights(x, background, present, bandwidth):
    """Aas, Jullum and Loland, "Explaining individual predictions when features are dependent" (2021), section 3.3."""
    if len(present) == 0:
        return np.full(len(background), 1 / len(background))
    covariance = np.cov(background[:, present].T).reshape(len(present), len(present))
    weights = []
    for row in background:
        difference = x[present] - row[present]
        distance = np.sqrt(difference @ np.linalg.solve(covariance, difference) / len(present))
        weights.append(np.exp(-(distance**2) / (2 * bandwidth**2)))
    return np.array(weights) / sum(weights)
