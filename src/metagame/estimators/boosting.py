"""Boosted trees for many targets and folds at once, on features that are 0 or 1."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Forest:
    """E ensembles of trees; all trees of an ensemble are added.

    Attributes:
        predictions: on the rows that were given, held out ones included, ``(k, E)``.
        features: of each tree's inner nodes in breadth-first order, -1 where a node is not split,
            ``(trees, E, 2**depth - 1)``.
        leaves: values of the 2^depth leaves, ``(trees, E, 2**depth)``; bit ``depth - 1 - level`` of a leaf's number is
            1 where the feature on that level is present.
    """

    predictions: Float[np.ndarray, "k E"]
    features: Int[np.ndarray, "trees E nodes"]
    leaves: Float[np.ndarray, "trees E leaves"]


def boost(
    coalitions: Bool[np.ndarray, "k p"],
    values: Float[np.ndarray, "k E"],
    weights: Float[np.ndarray, "k E"],
    *,
    n_trees: int = 100,
    depth: int = 4,
    learning_rate: float = 0.1,
) -> Forest:
    """Gradient boosting for the weighted squared error, as scikit-learn's but where splits tie.

    Every ensemble starts from its weighted mean. A row of weight 0 is predicted, but not fitted. All ensembles grow
    level by level; sums over the rows of all nodes are one sparse product.
    """
    k, n_ensembles = values.shape
    present = np.concatenate([coalitions, np.ones((k, 1), bool)], axis=1)
    bits = np.ascontiguousarray(present.astype(np.float64))
    predictions = np.repeat((weights * values).sum(0, keepdims=True) / weights.sum(0), k, axis=0)
    features = np.full((n_trees, n_ensembles, (1 << depth) - 1), -1)
    leaves = np.zeros((n_trees, n_ensembles, 1 << depth))
    ensemble = np.arange(n_ensembles)
    for tree in range(n_trees):
        pull = weights * (values - predictions)
        node = np.zeros((k, n_ensembles), np.int32)
        for level in range(depth):
            width = 1 << level
            split = _best_splits(bits, node + ensemble * width, n_ensembles * width, weights, pull)
            split = split.reshape(n_ensembles, width)
            features[tree, :, width - 1 : 2 * width - 1] = split
            node = 2 * node + _goes_right(present, split[ensemble, node])
        mass, sums = (_sums(node, each, 1 << depth) for each in (weights, pull))
        leaves[tree] = learning_rate * np.divide(sums, mass, where=mass > 0, out=np.zeros_like(sums))
        predictions += leaves[tree][ensemble, node]
    return Forest(predictions, features, leaves)


def _best_splits(
    bits: Float[np.ndarray, "k p"],
    node: Int[np.ndarray, "k E"],
    n_nodes: int,
    weights: Float[np.ndarray, "k E"],
    pull: Float[np.ndarray, "k E"],
) -> Int[np.ndarray, " nodes"]:
    """The feature that lowers each node's squared error most, -1 where none does; the last column of bits is all 1."""
    mass, sums = (_node_sums(bits, node, each, n_nodes) for each in (weights, pull))
    right, left = mass[:, :-1], mass[:, -1:] - mass[:, :-1]
    total_mass, total = mass[:, -1:], sums[:, -1:]
    tiny = 1e-12 * mass[:, -1].max()
    valid = (right > tiny) & (left > tiny)
    # w_l w_r / (w_l + w_r) (mean_r - mean_l)^2
    difference = sums[:, :-1] * total_mass - total * right
    scale = right * left * total_mass
    gain = np.where(valid, difference**2 / np.where(valid, scale, 1.0), 0.0)
    best = gain.argmax(1)
    return np.where(gain[np.arange(n_nodes), best] > 0, best, -1)


def _node_sums(bits: np.ndarray, node: np.ndarray, each: np.ndarray, n_nodes: int) -> Float[np.ndarray, "nodes p"]:
    """Sums of ``each`` over the rows of every node in which a feature is present."""
    from scipy.sparse import csr_array  # here, since importing it takes as long as all of metagame

    k, n_ensembles = node.shape
    starts = np.arange(0, node.size + 1, n_ensembles)
    return csr_array((each.ravel(), node.ravel(), starts), shape=(k, n_nodes)).T @ bits


def _goes_right(present: Bool[np.ndarray, "k p"], feature: Int[np.ndarray, "k E"]) -> np.ndarray:
    return present[np.arange(len(present))[:, None], feature] & (feature >= 0)


def _sums(node: np.ndarray, each: np.ndarray, n_nodes: int) -> Float[np.ndarray, "E nodes"]:
    n_ensembles = node.shape[1]
    flat = (node + np.arange(n_ensembles) * n_nodes).ravel()
    return np.bincount(flat, each.ravel(), n_ensembles * n_nodes).reshape(n_ensembles, n_nodes)


def shapley_of(forest: Forest, n_players: int) -> Float[np.ndarray, "E p"]:
    """Shapley values of the ensembles' predictions.

    A leaf of value v that needs p players present and a absent is worth v (p-1)! a!/(p+a)! to each of the former and
    -v p! (a-1)!/(p+a)! to each of the latter.
    """
    _, n_ensembles, n_leaves = forest.leaves.shape
    depth = n_leaves.bit_length() - 1
    phi = np.zeros(n_ensembles * (n_players + 1))
    ensemble = np.arange(n_ensembles) * (n_players + 1)
    for leaf in range(n_leaves):
        right = [bool(leaf >> (depth - 1 - level) & 1) for level in range(depth)]
        nodes = [(1 << level) - 1 + (leaf >> (depth - level)) for level in range(depth)]
        path = forest.features[:, :, nodes]
        real = path >= 0
        n_present, n_absent = (real & right).sum(2), (real & ~np.array(right)).sum(2)
        for level in range(depth):
            worth = _worth(depth, right[level])[n_present, n_absent] * forest.leaves[:, :, leaf] * real[:, :, level]
            phi += np.bincount((ensemble + path[:, :, level] % (n_players + 1)).ravel(), worth.ravel(), len(phi))
    return phi.reshape(n_ensembles, n_players + 1)[:, :-1]


def _worth(depth: int, present: bool) -> Float[np.ndarray, "p a"]:
    """What a leaf of value 1 is worth to a player that it needs present, or absent, by how many it needs."""
    worth = np.zeros((depth + 1, depth + 1))
    for p in range(depth + 1):
        for a in range(depth + 1 - p):
            if present and p:
                worth[p, a] = factorial(p - 1) * factorial(a) / factorial(p + a)
            elif not present and a:
                worth[p, a] = -factorial(p) * factorial(a - 1) / factorial(p + a)
    return worth
