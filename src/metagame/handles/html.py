"""A result as a table in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from metagame.handles.pairs import player_names, target_names, top_pairs

if TYPE_CHECKING:
    from metagame.meta import MetaAttributions

MOST = 24
"""Players, and targets, of a matrix that is shown as a whole."""
POSITIVE, NEGATIVE = "179, 88, 6", "84, 39, 136"


def as_html(phi: MetaAttributions) -> str:
    """The matrix of a result of order 1, else its strongest pairs, below a line that says what was played."""
    output = f"<div>Output: {escape(phi.output)}</div>" if phi.output else ""
    title = f"<div><b>Meta-attributions</b>: {escape(phi.summary)}</div>{output}"
    if phi.values.dtype == object or not np.isfinite(phi.values).all():
        return title + f"<pre>{escape(str(phi.values))}</pre>"
    small = phi.order == 1 and phi.grid is None and max(phi.values.shape) <= MOST
    return title + (_matrix(phi) if small else _pairs(phi))


def _matrix(phi: MetaAttributions) -> str:
    largest = float(np.abs(phi.values).max()) or 1.0
    head = "".join(f"<th>{escape(name)}</th>" for name in ["target \\ player", *player_names(phi)])
    rows = [
        f"<tr><th>{escape(name)}</th>{''.join(_cell(value, largest) for value in values)}</tr>"
        for name, values in zip(target_names(phi), phi.values, strict=True)
    ]
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _pairs(phi: MetaAttributions) -> str:
    pairs = top_pairs(phi, 10)
    largest = max((abs(pair.value) for pair in pairs), default=1.0)
    arrow = "→" if phi.directed else "↔"
    rows = [
        f"<tr><td>{escape(', '.join(pair.players))}</td><td>{arrow} {escape(pair.target)}</td>"
        f"{_cell(pair.value, largest)}</tr>"
        for pair in pairs
    ]
    return f"<table><tr><th>player</th><th>target</th><th>influence</th></tr>{''.join(rows)}</table>"


def _cell(value: float, largest: float) -> str:
    color = POSITIVE if value > 0 else NEGATIVE
    shade = f"rgba({color}, {0.6 * abs(value) / largest:.2f})"
    return f'<td style="background: {shade}; text-align: right">{value:.3g}</td>'.replace(">-", ">−")
