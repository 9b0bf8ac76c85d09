"""Texts of all that a format, a parser or a page could take for something else."""

from __future__ import annotations

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metagame.cli import explain_parse_errors, quoted

PIECES = (
    *"$_^%#{}\\|,='\"<>&~*`\t\n\r ", "</script>", "<!--", "-->", "&amp;", "{{ 7 * 7 }}", "${z", "\\n",
    "\u2028", "😀", "👩\u200d🔬", "漢字", "é", "e\u0301", "עברית", "عربي", "\u202e", "x" * 200, "phi_1", "null", "word",
)  # fmt: skip


def texts(count: int, seed: int = 0) -> list[str]:
    """Up to eight pieces each, between two letters."""
    rng = np.random.default_rng(seed)
    return ["a" + "".join(rng.choice(PIECES, rng.integers(0, 9))) + "z" for _ in range(count)]


def read_whole(count, seed):
    """Each text, quoted as advised, is read as it is, or refused where Hydra would see the name of a value in it."""
    parser = OverridesParser.create()
    for text in texts(count, seed):
        override = f"benchmark.caption={quoted(text)}"
        value = parser.parse_override(override).value()
        assert getattr(value, "text", value) == text
        told = refusal(override)
        assert told is None or "which starts a reference to another value" in told
        assert told is None or "${" in text
        if "${" not in text:
            assert OmegaConf.create([text])[0] == text


def refusal(override):
    """Why an override is refused; None where it is not."""
    try:
        explain_parse_errors([override])
    except SystemExit as error:
        return str(error)
    return None
