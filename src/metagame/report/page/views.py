"""How the arrays of a sample are shown, decided by their names and shapes; one function for each kind of view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from math import isqrt
from typing import Any

import numpy as np

from metagame.report.labels import told_apart
from metagame.report.page.pack import pack
from metagame.report.page.subjects import Subject

Arrays = Mapping[str, np.ndarray]
View = dict[str, Any]
EXPLANATION = {"first_order", "matrix", "standard_error", "empty", "pairs"}
"""Names of the arrays of :class:`metagame.attributions.method.Explanation`."""
CONCEPTS = {"players", "background", "directional"}
"""Those of :class:`metagame.attributions.concept_attention.ConceptMaps`."""
PICTURE = "picture"


def views(arrays: Arrays, subject: Subject) -> list[tuple[str | None, View]]:
    """The views of a sample, each with the variant of the method that it shows; None where the job has one method."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        prefix, _, leaf = name.rpartition(".")
        if leaf != PICTURE:
            groups.setdefault(prefix, {})[leaf] = array
    found = []
    for prefix, group in groups.items():
        of_concepts = set(group) <= CONCEPTS and "players" in group
        question, variant = (prefix.rpartition(".")[0], prefix.rpartition(".")[2]) if of_concepts else (prefix, None)
        shown = next(filter(None, (make(group, question, subject) for make in KINDS)))
        found.append((variant, {"question": question, **shown}))
    return found


def concept_view(arrays: Arrays, question: str, subject: Subject) -> View | None:
    """A map for each concept, and how concepts move each other's; None for arrays of another kind."""
    if not set(arrays) <= CONCEPTS or "players" not in arrays or _side(arrays["players"].shape[-1]) is None:
        return None
    players = subject.players(question, len(arrays["players"]))
    layers = [_layer("map of each concept", players, arrays["players"])]
    if "background" in arrays and len(arrays["background"]):
        names = subject.background(question, len(arrays["background"]))
        layers.append(_layer("concepts that are always present", names, arrays["background"], of_players=False))
    influence = {"names": players, "values": pack(arrays["directional"])} if "directional" in arrays else None
    return {"kind": "maps", "side": _side(arrays["players"].shape[-1]), "layers": layers, "influence": influence}


def token_view(arrays: Arrays, question: str, subject: Subject) -> View | None:
    """Tokens that are players and targets; None where targets are no players, or nothing says that they are."""
    exogenous = subject.picture is not None or "empty" in arrays or "pairs" in arrays
    if not set(arrays) <= EXPLANATION or exogenous:
        return None
    matrix, first_order = arrays.get("matrix"), arrays.get("first_order")
    size = len(first_order if matrix is None else matrix)
    square = matrix is not None and matrix.shape == (size, size)
    if size == 0 or not (square or (matrix is None and subject.knows(question, size))):
        return None
    packed = {name: pack(arrays[name]) if name in arrays else None for name in ("first_order", "matrix")}
    if "standard_error" in arrays and arrays["standard_error"].any():
        packed["error"] = pack(arrays["standard_error"])
    return {"kind": "tokens", "tokens": subject.players(question, size), **packed}


def map_view(arrays: Arrays, question: str, subject: Subject) -> View | None:
    """Maps of patches: of the whole text, of each player, of pairs; None where targets make no square grid."""
    if not set(arrays) <= EXPLANATION:
        return None
    side = _side(len(next(iter(arrays.values()))))
    if side is None:
        return None
    layers = []
    if "matrix" in arrays:
        names = told_apart(subject.players(question, arrays["matrix"].shape[1]))
        layers.append(_layer("influence of each word", names, arrays["matrix"].T))
    if "pairs" in arrays:
        names = told_apart(subject.players(question, arrays["pairs"].shape[1]))
        single = [arrays["pairs"][:, place, place] for place in range(len(names))]
        layers.append(_layer("single words", names, np.stack(single)))
        pairs = list(combinations(range(len(names)), 2))
        if pairs:
            values = np.stack([arrays["pairs"][:, i, j] for i, j in pairs])
            titles = [f"{names[i]} + {names[j]}" for i, j in pairs]
            layers.append(_layer("interaction of pairs of words", titles, values, of_players=False))
    whole = {"first_order": "all words", "empty": "no word"}
    there = [key for key in whole if key in arrays]
    if there:
        values = np.stack([arrays[key] for key in there])
        layers.append(_layer("map of the text", [whole[key] for key in there], values, of_players=False))
    return {"kind": "maps", "side": side, "layers": layers, "influence": None}


def array_view(arrays: Arrays, question: str, subject: Subject) -> View:
    """Any arrays: a heat map of each, all axes but the last as rows."""
    shown = [
        {
            "name": name,
            "shape": list(array.shape),
            "values": pack(array.reshape(-1, array.shape[-1] if array.ndim else 1)),
        }
        for name, array in arrays.items()
    ]
    return {"kind": "arrays", "arrays": shown}


KINDS: tuple[Callable[[Arrays, str, Subject], View | None], ...] = (concept_view, token_view, map_view, array_view)
"""Ways to show a group of arrays; the first that suits is taken."""


def _layer(title: str, names: list[str], values: np.ndarray, *, of_players: bool = True) -> dict[str, Any]:
    """Maps ``(k, P)`` with their names, of single players or of something else."""
    return {"title": title, "names": names, "values": pack(values), "players": of_players}


def _side(count: int) -> int | None:
    """Of the square grid that so many patches make; None where they make none."""
    side = isqrt(count)
    return side if count and side * side == count else None
