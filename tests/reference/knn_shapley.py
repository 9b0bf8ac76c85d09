"""Shapley values of training points for the vote of their nearest neighbours, from the recursion."""

import numpy as np


def knn_shapley(x, y, x_test, y_test, k):
    """Of one test point, for v(S) = (right classes among the min(k, |S|) nearest points of S) / k.

    Jia et al., "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms" (2019), Theorem 1, for k <= n:
    from the farthest point, s_n = [y_n = y] / n, to the nearest,
    s_i = s_(i+1) + ([y_i = y] - [y_(i+1) = y]) min(k, i) / (i k).
    """
    order = np.argsort(np.linalg.norm(x - x_test, axis=1))
    right = (y[order] == y_test).astype(float)
    n = len(x)
    values = np.empty(n)
    values[n - 1] = right[n - 1] / n
    for place in range(n - 2, -1, -1):
        rank = place + 1
        values[place] = values[place + 1] + (right[place] - right[place + 1]) / k * min(k, rank) / rank
    found = np.empty(n)
    found[order] = values
    return found
