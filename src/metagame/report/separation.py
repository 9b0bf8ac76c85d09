"""Table 1, with symbolic equality against the paper."""

from __future__ import annotations

import sympy

from metagame.benchmarks.separation import entry_name
from metagame.errors import UserError
from metagame.models.polynomial import Polynomial, parse_expression
from metagame.report.published import published
from metagame.report.results import JobResult, failure_notes
from metagame.report.table import Column, Table


def separation_table(results: list[JobResult], scale: str) -> Table:
    """Rows are methods, cells expressions; ``matches`` is decided by symbolic equality with the published row.

    Raises:
        UserError: the jobs explain several functions.
    """
    paper = published("table1")
    functions = {Polynomial.parse(result.config.benchmark.function) for result in results}
    if len(functions) > 1:
        raise UserError(
            f"Table 1 shows one function, but these jobs have {len(functions)}: give one benchmark.function."
        )
    (function,) = functions
    is_papers = function == Polynomial.parse(paper["function"])
    abbreviations = paper["abbreviations"] if is_papers else {}
    rows, published_rows = [], []
    for result in results:
        theirs = paper["rows"].get(result.variant.node.name, {}) if is_papers else {}
        if not result.done:
            rows.append({"method": result.label})
            published_rows.append(theirs)
            continue
        entries, kind = result.done[0].scores["entries"], result.done[0].scores["kind"]
        theirs = theirs if theirs.get("type") == kind else {}  # the choice of a row, but not its metagame
        matches = {"matches": _equal(entries, theirs, abbreviations)} if theirs else {}
        cells = {key: _shorten(value, abbreviations) for key, value in entries.items()}
        rows.append({"type": kind, "method": result.label} | cells | matches)
        published_rows.append(theirs)
    legend = ", ".join(f"x{i} = {x}" for i, x in enumerate(function.features, start=1) if str(x) != f"x{i}")
    notes = ["phi_ji: influence of feature j on the attribution of feature i; pair_ij: index of the unordered pair."]
    notes += [f"Features by number: {legend}."] if legend else []
    notes += [f"{short} := {long}." for short, long in abbreviations.items()]
    added = [result.label for result in results if is_papers and result.variant.node.name not in paper["rows"]]
    notes += [f"Not in the paper: {'; '.join(added)}."] if added else []
    return Table(
        title=f"{results[0].config.name}: interaction separation for f = {function.id}",
        scale=scale,
        columns=_columns(len(function.features), rows, is_papers),
        rows=rows,
        published=published_rows,
        n_samples=1,
        notes=notes + failure_notes(results),
    )


def _columns(n: int, rows: list[dict], is_papers: bool) -> list[Column]:
    numbers = range(1, n + 1)
    pairs = [(i, j) for i in numbers for j in numbers if i < j]
    names = [entry_name("phi", i, i, n_features=n) for i in numbers]
    names += [entry_name("phi", *pair, n_features=n) for i, j in pairs for pair in ((j, i), (i, j))]
    names += [entry_name("pair", *pair, n_features=n) for pair in pairs]
    names += [entry_name("phi", i, n_features=n) for i in numbers] + ["sum"]
    known = {key for row in rows for key in row}
    columns = [Column("type", "type", "text"), Column("method", "method", "text")]
    columns += [Column(name, name, "expression") for name in names if name in known]
    return columns + ([Column("matches", "matches", "flag")] if is_papers else [])


def _equal(entries: dict[str, str], theirs: dict[str, str], abbreviations: dict[str, str]) -> bool:
    """Every published entry equals ours symbolically, once its abbreviations are written out."""
    written_out: dict[sympy.Basic | complex, sympy.Expr | complex]
    written_out = {sympy.Symbol(name): parse_expression(value) for name, value in abbreviations.items()}
    return all(
        key in entries and sympy.expand(parse_expression(entries[key]) - parse_expression(value).subs(written_out)) == 0
        for key, value in theirs.items()
        if key not in ("type", "method")
    )


def _shorten(value: str, abbreviations: dict[str, str]) -> str:
    """The expression with each abbreviated monomial written by its name, behind the other terms."""
    rest, short = parse_expression(value), []
    for name, monomial in abbreviations.items():
        coefficient = rest.as_coefficients_dict()[parse_expression(monomial)]
        rest -= coefficient * parse_expression(monomial)
        short.append(coefficient * sympy.Symbol(name))
    return " + ".join(str(part) for part in (rest, *short) if part != 0) or "0"
