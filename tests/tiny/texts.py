"""Texts of all that a format, a parser or a page could take for something else."""

from __future__ import annotations

import numpy as np

PIECES = (
    *"$_^%#{}\\|,='\"<>&~*`\t\n\r ", "</script>", "<!--", "-->", "&amp;", "{{ 7 * 7 }}", "${z", "\\n",
    "\u2028", "😀", "👩\u200d🔬", "漢字", "é", "e\u0301", "עברית", "عربي", "\u202e", "x" * 200, "phi_1", "null", "word",
)  # fmt: skip


def texts(count: int, seed: int = 0) -> list[str]:
    """Up to eight pieces each, between two letters."""
    rng = np.random.default_rng(seed)
    return ["a" + "".join(rng.choice(PIECES, rng.integers(0, 9))) + "z" for _ in range(count)]
