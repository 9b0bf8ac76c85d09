"""How an explanation is shown, decided by what it declares of itself; one function for each kind of view."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float

from metagame.contracts import Annotation, Explanation
from metagame.errors import UserError
from metagame.indices import sets_of_entries
from metagame.meta import MetaAttributions
from metagame.report.labels import told_apart
from metagame.viewer.pack import pack

View = dict[str, Any]
"""As the page's script takes it."""
NOTHING = Annotation()
Grid = tuple[int, int]
"""Rows and columns of patches."""


def view(explanation: Explanation, annotation: Annotation = NOTHING) -> View:
    """The view that suits: tokens that explain tokens, maps of concepts, maps of a picture, or else the bare arrays.

    Args:
        explanation: of a sample.
        annotation: of the sample, whose pairs are marked among the tokens.

    Raises:
        UserError: an array does not have the shape that its players, targets and grid make.
    """
    players, targets, grid, meta = explanation.players, explanation.targets, explanation.grid, explanation.meta
    exogenous = meta is not None and not meta.endogenous
    if grid is None:
        return array_view(explanation) if exogenous else token_view(explanation, annotation)
    if explanation.attribution is not None and not exogenous and targets[: len(players)] == players:
        return concept_view(explanation, explanation.attribution, grid)
    if len(targets) == 1 and (exogenous or meta is None):
        return map_view(explanation, grid)
    if meta is None and explanation.attribution is not None:
        maps = _shaped(explanation.attribution, len(targets) * prod(grid)).reshape(len(targets), -1)
        return _maps(grid, [_layer("map of each target", list(targets), maps, of_players=False)])
    return array_view(explanation)


def token_view(explanation: Explanation, annotation: Annotation) -> View:
    """Tokens that are players and targets, and the places of annotated pairs among them."""
    names, meta, first_order = explanation.targets, explanation.meta, explanation.attribution
    packed = {
        "first_order": None if first_order is None else pack(_shaped(first_order, len(names))),
        "matrix": None if meta is None else pack(_shaped(meta.values, len(names), len(names)), exact=True),
    }
    errors = None if meta is None else _known_errors(meta, len(names), len(names))
    if errors is not None:
        packed["error"] = pack(errors, exact=True)
    directed = meta is None or meta.directed
    annotated = _places(annotation.pairs, names)
    return {"kind": "tokens", "tokens": list(names), "directed": directed, "annotated": annotated, **packed}


def _places(pairs: Sequence[tuple[str, str]], tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Where strings of the pairs begin among the tokens, every occurrence."""
    if not pairs:
        return []
    from metagame.benchmarks.prompts import string_places  # here, since it imports torch

    places = [product(*(string_places(string, tokens) for string in pair)) for pair in pairs]
    return [(first, second) for each in places for first, second in each if first != second]


def map_view(explanation: Explanation, grid: Grid) -> View:
    """Maps of a picture's patches: of each player, of pairs of them, of the whole text and of none."""
    n_patches, meta = prod(grid), explanation.meta
    layers = [] if meta is None else _layers_of_players(meta, told_apart(list(explanation.players)), n_patches)
    whole = {"all words": explanation.attribution, "no word": None if meta is None else meta.empty}
    there = {name: _shaped(values, n_patches) for name, values in whole.items() if values is not None}
    if there:
        layers.append(_layer("map of the text", list(there), np.stack(list(there.values())), of_players=False))
    return _maps(grid, layers)


def _layers_of_players(meta: MetaAttributions, names: list[str], n_patches: int) -> list[dict[str, Any]]:
    n = len(names)
    errors = _known_errors(meta, n_patches, *[n] * meta.order)
    if meta.order == 1:
        values = _shaped(meta.values, n_patches, n).T
        return [_layer("influence of each word", names, values, None if errors is None else errors.T)]
    values = _shaped(meta.values, n_patches, *[n] * meta.order)
    entries = sets_of_entries(n, meta.order)
    maps = np.stack([values[:, *entry] for entry in entries])
    of_maps = None if errors is None else np.stack([errors[:, *entry] for entry in entries])
    titles = [" + ".join(names[place] for place in sorted(set(entry))) for entry in entries]
    layers = [_layer("single words", names, maps[:n], None if of_maps is None else of_maps[:n])]
    if len(entries) > n:
        together = "pairs" if meta.order == 2 else "sets"
        more = None if of_maps is None else of_maps[n:]
        layers.append(_layer(f"interaction of {together} of words", titles[n:], maps[n:], more, of_players=False))
    return layers


def _known_errors(meta: MetaAttributions, *shape: int) -> np.ndarray | None:
    """The standard errors; None where none are known, or all values are exact."""
    if meta.standard_error is None or not meta.standard_error.any():
        return None
    return _shaped(meta.standard_error, *shape)


def concept_view(explanation: Explanation, attribution: Float[np.ndarray, " t"], grid: Grid) -> View:
    """A map for each concept, and how players move each other's; targets beyond the players are always present."""
    players, others = list(explanation.players), list(explanation.targets[len(explanation.players) :])
    n, n_patches = len(players), prod(grid)
    maps = _shaped(attribution, len(explanation.targets) * n_patches).reshape(-1, n_patches)
    layers = [_layer("map of each concept", players, maps[:n])]
    if others:
        layers.append(_layer("concepts that are always present", others, maps[n:], of_players=False))
    influence = None
    if explanation.meta is not None:
        values = _shaped(explanation.meta.values, n * n_patches, n).reshape(n, n_patches, n)
        influence = {"names": players, "values": pack(values.transpose(0, 2, 1))}
        errors = _known_errors(explanation.meta, n * n_patches, n)
        if errors is not None:
            influence["error"] = pack(errors.reshape(n, n_patches, n).transpose(0, 2, 1))
    return _maps(grid, layers, influence)


def array_view(explanation: Explanation) -> View:
    """A heat map of each array, all axes but the last as rows."""
    meta = explanation.meta
    named = {"first-order attribution": explanation.attribution}
    if meta is not None:
        named |= {
            "influence of players on targets": meta.values,
            "standard error of the influence": meta.standard_error,
            "attribution without players": meta.empty,
        }
    shown = [
        {
            "name": name,
            "shape": list(values.shape),
            "values": pack(values.reshape(-1, values.shape[-1] if values.ndim else 1)),
        }
        for name, values in named.items()
        if values is not None
    ]
    return {"kind": "arrays", "arrays": shown}


def _maps(grid: Grid, layers: list[dict[str, Any]], influence: dict[str, Any] | None = None) -> View:
    return {"kind": "maps", "grid": grid, "layers": layers, "influence": influence}


def _layer(
    title: str,
    names: list[str],
    values: Float[np.ndarray, "k P"],
    errors: Float[np.ndarray, "k P"] | None = None,
    *,
    of_players: bool = True,
) -> dict[str, Any]:
    """Maps with their names, of single players or of something else, and standard errors where these are known."""
    known = {} if errors is None else {"error": pack(errors)}
    return {"title": title, "names": names, "values": pack(values), "players": of_players, **known}


def _shaped(values: np.ndarray, *shape: int) -> np.ndarray:
    """The values, of the shape that the names around them make."""
    if values.shape != shape:
        raise UserError(
            f"an array of the sample has shape {values.shape}, but its players, targets and grid make {shape}:"
            " remove its record and run it again."
        )
    return values
