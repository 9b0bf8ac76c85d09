"""Results as tables with names: pandas and xarray."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from metagame import indices
from metagame.extras import needed_by
from metagame.handles.pairs import map_names, player_names

if TYPE_CHECKING:
    import pandas
    import xarray

    from metagame.meta import MetaAttributions


def to_dataframe(phi: MetaAttributions) -> pandas.DataFrame:
    """See :meth:`metagame.meta.MetaAttributions.to_dataframe`."""
    with needed_by("to_dataframe()"):
        import pandas

    entries = np.array(indices.sets_of_entries(phi.values.shape[1], phi.order))
    players = np.array(player_names(phi), dtype=object)
    n_targets = len(phi.values)
    columns = {name: np.repeat(of_target, len(entries)) for name, of_target in _of_targets(phi).items()}
    for number, of_set in enumerate(entries.T, start=1):
        columns["player" if phi.order == 1 else f"player_{number}"] = np.tile(players[of_set], n_targets)
    columns["value"] = phi.values[:, *entries.T].ravel()
    if phi.standard_error is not None:
        columns["standard_error"] = phi.standard_error[:, *entries.T].ravel()
    return pandas.DataFrame(columns)


def _of_targets(phi: MetaAttributions) -> dict[str, np.ndarray]:
    """What names each row of the values."""
    names = np.array(map_names(phi), dtype=object)
    if phi.grid is None:
        return {"target": names}
    rows, columns = np.indices(phi.grid).reshape(2, -1)
    places = {"row": np.tile(rows, len(names)), "column": np.tile(columns, len(names))}
    return {"target": np.repeat(names, len(rows)), **places}


def to_xarray(phi: MetaAttributions) -> xarray.Dataset:
    """See :meth:`metagame.meta.MetaAttributions.to_xarray`."""
    with needed_by("to_xarray()"):
        import xarray

    by_target = ("target",) if phi.grid is None else ("target", "row", "column")
    by_player = ("player",) if phi.order == 1 else tuple(f"player_{number}" for number in range(1, phi.order + 1))
    shape = (len(map_names(phi)), *(phi.grid or ()))
    arrays = {
        "values": (phi.values, by_player), "standard_error": (phi.standard_error, by_player),
        "first_order": (phi.first_order, ()), "empty": (phi.empty, ()),
    }  # fmt: skip
    variables = {
        name: ((*by_target, *own), array.reshape(*shape, *array.shape[1:]))
        for name, (array, own) in arrays.items()
        if array is not None
    }
    names = {"target": map_names(phi)} | dict.fromkeys(by_player, player_names(phi))
    settings = {"method": phi.method, "order": phi.order, "index": phi.index or "", "endogenous": int(phi.endogenous)}
    return xarray.Dataset(variables, names, settings | {"n_evaluations": phi.n_evaluations})
