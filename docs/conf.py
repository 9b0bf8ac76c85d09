"""The documentation's site, as `make docs` builds it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "metagame"
html_title = "metagame"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
exclude_patterns = ["results/small/*/**"]  # parts of results/small.md
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
html_math_renderer = "mathml"
suppress_warnings = ["ref.python"]  # several classes have an attribute of the same name

SMALL = "<!-- results of the small scale -->"


def setup(app: Sphinx) -> None:
    """Formulas become MathML, which browsers draw without a script; results of the small scale their page."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("source-read", insert_results)
    app.connect("autodoc-process-docstring", escape_bars)


def escape_bars(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """The size of a set, ``|S|``, is no substitution, which reST would take it for."""
    lines[:] = [re.sub(r"(``.*?``)|[|]", lambda match: match[1] or r"\|", line) for line in lines]


def inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    """Within a sentence."""
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def block_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    """On a line of its own."""
    formula = latex2mathml.converter.convert(node.astext(), display="block")
    translator.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def insert_results(app: Sphinx, name: str, source: list[str]) -> None:
    """What ``docs/results/small/MODEL/EXPERIMENT/`` holds, in place of the marker on its page."""
    if SMALL in source[0]:
        folder = Path(app.srcdir, "results", "small")
        found = [result(path.parent, folder.parent) for path in sorted(folder.glob("*/*/table.md"))]
        source[0] = source[0].replace(SMALL, "\n\n".join(found) or "No results are in the repository yet.")


def result(folder: Path, page: Path) -> str:
    """A heading, how it was made, the figures and the table."""
    title, *table = (folder / "table.md").read_text(encoding="utf-8").strip().splitlines()
    lines = [f"## {folder.parent.name}: {title.lstrip('# ')}", ""]
    if (folder / "made.json").exists():
        lines += [*how(json.loads((folder / "made.json").read_text(encoding="utf-8"))), ""]
    for figure in sorted(folder.glob("*.png")):
        lines += [f"![{folder.name}]({figure.relative_to(page).as_posix()})", ""]
    return "\n".join([*lines, *table])


def how(made: dict[str, Any]) -> list[str]:
    """The commands and their minutes, and with what they ran."""
    lines = [f"- `{each['command']}`: {each['seconds'] / 60:.0f} minutes" for each in made["runs"]]
    for each in made["environments"]:
        libraries = ", ".join(f"{name} {version}" for name, version in each["libraries"].items() if version)
        lines.append(f"- on {each['accelerator'] or each['device']}, weights {each['model_revision']}, {libraries}")
    return lines
