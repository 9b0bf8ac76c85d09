"""The tables that experiments write, what is common to all of them, and Figures 1, 5 and 6."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from metagame.contracts import WHOLE
from metagame.jobs.environment import LIBRARIES
from metagame.jobs.grid import sweep_configs
from metagame.jobs.records import Record
from metagame.jobs.run import run_job
from metagame.jobs.spec import merged
from metagame.report import addition, experiment
from metagame.report.addition import PLAYERS, addition_table
from metagame.report.drawing import Drawing, caption_of
from metagame.report.experiment import free_text, save_drawing, save_figure, write_report
from metagame.report.mixture import mixture_notes
from metagame.report.published import published
from metagame.report.results import MOST_FAILURES, failure_notes, tell_apart
from metagame.report.scores import scores_table
from metagame.report.separation import separation_table
from metagame.report.table import Column, Table, markdown, read_table, write_table
from metagame.viewer.tables import read_section
from tests.conftest import close
from tests.tiny.jobs import Plain, job_config, shipped_configs
from tests.tiny.pages import page_of_texts
from tests.tiny.reports import (
    TABLE,
    Made,
    column_keys,
    figure_of,
    made_up,
    only,
    panels,
    stub_config,
    tokens_explained,
    with_records,
)
from tests.tiny.texts import texts
from tests.tiny.vision_language import refused

addition_figure, teaser_figure = figure_of(addition.addition_figure), figure_of(addition.teaser_figure)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    first, second = ({path.suffix: path.read_bytes() for path in write_table(TABLE, folder)} for folder in folders)
    assert first == second  # wherever they are written
    return {suffix: content.decode() for suffix, content in first.items()}


def one_column(kind, *cells, label="c"):
    """A table of one column, for what its cells become."""
    rows = [{"c": cell} for cell in cells]
    return replace(TABLE, columns=[Column("c", label, kind)], rows=rows, published=[{}] * len(cells))


def test_the_json_of_a_table_is_its_fields_and_nothing_else(written):
    assert json.loads(written[".json"]) == asdict(TABLE)
    assert list(json.loads(written[".json"])) == [field.name for field in fields(Table)]


def test_the_csv_has_every_number_in_full_with_the_published_one_beside_it(written):
    frame = pd.read_csv(io.StringIO(written[".csv"]))
    first = {
        "method": "SV", "phi_1": "x1*x2**2/2", "phi_1_published": "I/2", "effect": 0.25, "effect_published": 0.2,
        "accuracy_mean": 0.5, "accuracy_two_se": 0.125, "accuracy_n": 16, "accuracy_published": 0.4, "matches": True,
    }  # fmt: skip
    assert list(frame.columns) == list(first)
    assert frame.iloc[0].to_dict() == first
    assert frame.iloc[2, 1:].isna().all()


def test_the_markdown_shows_ours_the_published_value_the_error_and_what_is_not_known(written):
    lines = [line.strip("|").split("|") for line in written[".md"].splitlines() if "|" in line]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    ours = dict(zip(header, rows[0], strict=True))
    assert (ours["a→b"], ours["accuracy"]) == ("0.250 (0.200)", "0.500 ± 0.125 (0.400)")
    assert (ours["method"], ours["matches"]) == ("SV", "yes")
    assert rows[1:] == [["IG", "–", "–", "–", "no"], ["GI", "–", "–", "–", "–"]]
    assert "# A table" in written[".md"]
    assert "Scale: tiny; samples: 16; published values in brackets." in written[".md"]
    claims = "- yes: claim True\n- no: claim False\n- not decided: claim None\n"
    assert written[".md"].endswith(f"{claims}- a→b: influence of a on b.\n")
    assert "published" not in markdown(replace(TABLE, published=[{}, {}, {}]))
    for kind, cell, text in (("number", 8.0, "8.000"), ("text", "007", "007")):
        assert text in markdown(one_column(kind, cell))


def test_expressions_and_symbols_are_typeset_in_latex(written):
    assert r"$\frac{x_{1} x_{2}^{2}}{2}$ ($\frac{I}{2}$)" in written[".tex"]
    assert r"$\phi_{1}$ & a$\to$b" in written[".tex"]
    assert r"0.500 $\pm$ 0.125 (0.400)" in written[".tex"]
    assert "GI & -- & -- & -- & -- " in written[".tex"]


@pytest.mark.parametrize(
    ("text", "tex"),
    [("pair_12", r"pair\_12"), ("50%", r"50\%"), ("a & b", r"a \& b"), ("#1", r"\#1"), ("f(∅)", r"f($\emptyset$)")],
)
def test_characters_that_latex_would_read_are_escaped_and_notes_are_comments_of_one_line(tmp_path, text, tex):
    table = one_column("text", text, label=text)
    write_table(replace(table, notes=["SV: sample 1 failed: first line\nsecond line"]), tmp_path)
    before, body = (tmp_path / "table.tex").read_text().split(r"\begin{tabular}")
    assert body.splitlines().count(f"{tex} \\\\") == 2  # heading and cell
    assert all(line.startswith("%") for line in before.splitlines())


def symbolic(*records, missing=(), model=None, function=None, **attribution):
    """A job of Table 1."""
    about = {"name": "meta_sv", "label": "SV", "meta": True} | attribution
    benchmark = {"name": "separation", "function": function or published("table1")["function"]}
    cfg = stub_config("unused", model=model or {"name": "polynomial"}, attribution=about, benchmark=benchmark)
    return only(with_records(cfg, records, missing))


FAILED = Record("k1", "s1", "failed", error="no memory")


def test_failed_and_missing_samples_are_named_in_the_notes():
    done = Record("k2", "s2", "done")
    assert failure_notes([symbolic(FAILED, done, missing=["s3"])]) == [
        "Meta-SV: sample s1 failed: no memory",
        "Meta-SV: 1 of 3 samples not computed yet.",
    ]
    assert failure_notes([symbolic(done)]) == []
    many = [Record(f"k{place}", f"s{place}", "failed", error="torn") for place in range(MOST_FAILURES + 2)]
    *named, more = failure_notes([symbolic(*many)])
    assert named == [f"Meta-SV: sample s{place} failed: torn" for place in range(MOST_FAILURES)]
    assert more == f"Meta-SV: 2 more samples failed, {len(many)} in all; see its records.jsonl."


META_SV = {
    "phi_11": "x1", "phi_22": "0", "phi_21": "x1*x2**2/2", "phi_12": "x1*x2**2/2",
    "phi_1": "x1*x2**2/2 + x1", "phi_2": "x1*x2**2/2", "sum": "x1*x2**2 + x1",
}  # fmt: skip


def derived(entries, kind="Directional"):
    """The record of a row of Table 1."""
    return Record("k", "s1", "done", scores={"entries": entries, "kind": kind})


@pytest.mark.parametrize(
    ("change", "matches"),
    [
        ({}, True),
        ({"phi_21": "x2*x1*x2/2"}, True),
        ({"phi_21": "x1*x2**2/3"}, False),
        ({"phi_22": "x2"}, False),
        ({"sum": None}, False),
    ],
)
def test_a_row_matches_where_every_published_entry_is_equal(change, matches):
    entries = {key: value for key, value in (META_SV | change).items() if value is not None}
    (row,) = separation_table([symbolic(derived(entries))], "tiny").rows
    assert row["matches"] is matches
    assert (row["type"], row["method"]) == ("Directional", "Meta-SV")


def test_the_first_order_attributions_of_a_row_are_not_measured_by_its_metagame():
    first_order = {key: META_SV[key] for key in ("phi_1", "phi_2", "sum")}
    table = separation_table([symbolic(derived(first_order, "First-Order"), meta=False)], "tiny")
    assert table.published == [{}]
    assert table.rows == [{"type": "First-Order", "method": "SV", "phi_1": "x1 + I/2", "phi_2": "I/2", "sum": "x1 + I"}]


def test_rows_of_table_1_that_failed_are_empty_and_those_that_the_paper_does_not_have_are_named():
    failed = symbolic(FAILED, name="ih", label="IH", meta=False)
    added = symbolic(derived(META_SV), name="meta_leave_one_out", label="LOO")
    table = separation_table([symbolic(derived(META_SV)), failed, added], "tiny")
    assert table.rows[1] == {"method": "IH"}
    assert "IH: sample s1 failed: no memory" in table.notes
    assert table.published[2] == {}
    assert "matches" not in table.rows[2]
    assert "Not in the paper: Meta-LOO." in table.notes
    rows = published("table1")["rows"]
    assert list(rows) == ["serial_sv", "ih", "moebius", "shapley", "sop", "meta_gi", "meta_ig", "meta_sv"]


def test_another_function_has_no_published_counterpart_and_no_place_beside_the_papers():
    result = symbolic(derived({"phi_11": "x1", "phi_1": "x1", "sum": "x1"}), function="x1")
    table = separation_table([result], "tiny")
    assert table.published == [{}]
    assert "matches" not in column_keys(table)
    with refused(r"one function, but these jobs have 2: give one benchmark\.function"):
        separation_table([result, symbolic(derived(META_SV))], "tiny")


EXAMPLES = ("3 - (-5)", "4 + (-4)")
FAMILIES = {
    "attention": "attention", "sv": "shapley", "meta_sv": "shapley", "stii": "shapley", "ig": "gradient",
    "meta_ig": "gradient",
}  # fmt: skip


def adder_job(folder, explained, name="ig", output=0.0, examples=EXAMPLES[:1], **changes):
    """A method's explanations of sums, which all have this output."""
    base = name.removeprefix("meta_")
    cfg = stub_config(
        folder, model={"name": "adder", "label": "Adder"}, benchmark={"name": "addition", "examples": list(examples)},
        attribution={"name": name, "base": base, "label": base.upper(), "meta": name != base,
                     "family": FAMILIES[name], "method": {"steps": 8}},
        **changes,
    )  # fmt: skip
    made = [Made({"output": output, "empty_output": -output}, {WHOLE: each}) for each in explained]
    return only(made_up(cfg, dict(zip(examples, made, strict=True))))


def constant_job(folder, value, name="ig", examples=EXAMPLES[:1], **changes):
    """A method that has ``value`` everywhere."""
    explained = tokens_explained("abc", [value] * 3, [[value] * 3] * 3 if name.startswith("meta_") else None)
    return adder_job(folder, [explained] * len(examples), name, value, examples, **changes)


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """A job of each method on two sums: attention has a weight for the token =, too, and no attribution."""
    folder, rng, jobs = tmp_path_factory.mktemp("sums"), np.random.default_rng(0), []
    for name in FAMILIES:
        tokens = "ab=c" if name == "attention" else "abc"
        shape = (len(EXAMPLES), len(tokens))
        phi = rng.normal(size=shape) if name not in ("attention", "stii") else [None] * 2
        values = rng.random((*shape, len(tokens))) if name not in ("sv", "ig") else [None] * 2
        explained = [tokens_explained(tokens, *each) for each in zip(phi, values, strict=True)]
        jobs.append(adder_job(folder, explained, name, examples=EXAMPLES))
    return jobs


@pytest.fixture
def without_first_order(sums):
    """SV and Meta-SV, where SV failed on every sample."""
    failed = [Record(record.key, record.sample, "failed", error="no memory") for record in sums[1].records]
    return [replace(sums[1], records=failed), sums[2]]


def test_the_addition_table_has_the_arrays_of_each_example_and_method(sums):
    rows = addition_table(sums, "tiny").rows
    for row, (place, result) in zip(rows, product(range(2), sums), strict=True):
        assert (row["example"], row["method"]) == (EXAMPLES[place], result.label)
        explained = result.explanations(result.done[place])[WHOLE]
        if explained.attribution is not None:
            assert close([row[f"phi_{player}"] for player in PLAYERS], explained.attribution, 5.1e-7)
        if explained.meta is not None:
            ours = [[row[f"{j}_to_{i}"] for j in PLAYERS] for i in PLAYERS]
            assert close(ours, explained.meta.values[:3, :3], 5.1e-7)


def test_the_addition_table_counts_the_sums_that_are_done_and_keeps_the_rows_of_the_others(sums, without_first_order):
    table = addition_table(without_first_order, "tiny")
    assert table.rows[0] == {"example": EXAMPLES[0], "method": "SV"}
    assert f"SV: sample {EXAMPLES[0]} failed: no memory" in table.notes
    half = replace(sums[1], records=sums[1].records[:1])
    counted = [addition_table(results, "tiny").n_samples for results in (sums, without_first_order[:1], [half])]
    assert counted == [2, 0, 1]


STEPS, STII, KEY = "Meta-IG takes fewer path steps than the IG row.", "The diagonal of STII", "Attention: weight of key"


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ({"attention": None, "ig": 32, "meta_ig": 16, "stii": None}, {STEPS, STII, KEY}),
        ({"ig": 7, "meta_ig": 16}, set()),
        ({"ig": 32}, set()),
        ({"meta_ig": 16, "stii": None}, {STII}),
    ],
)
def test_the_addition_table_explains_only_what_it_shows(tmp_path, jobs, said):
    changes = {name: {} if steps is None else {"attribution__method__steps": steps} for name, steps in jobs.items()}
    results = [constant_job(tmp_path, 1.0, name, **changes[name]) for name in jobs]
    notes = " ".join(addition_table(tell_apart(results), "tiny").notes)
    assert {text for text in (STEPS, STII, KEY) if text in notes} == said
    assert ("fewer steps" in addition.addition_figure(tell_apart(results)).caption) == (STEPS in said)


@pytest.mark.parametrize(
    ("change", "column", "names"),
    [
        ({"seed": 1}, "method", ["IG (seed=0)", "IG (seed=1)"]),
        ({"attribution__method__steps": 32}, "method", ["IG (method.steps=8)", "IG (method.steps=32)"]),
        ({"model__name": "other", "model__label": "Other"}, "model", ["Adder", "Other"]),
        ({"model__name": "other"}, "method", ["IG (model=adder)", "IG (model=other)"]),
        ({"examples": EXAMPLES[1:]}, "example", list(EXAMPLES)),
    ],
    ids=["seed", "argument", "model", "model of the same label", "examples"],
)
def test_jobs_of_a_sweep_have_rows_and_panels_with_their_own_numbers_and_names(tmp_path, change, column, names):
    results = tell_apart([constant_job(tmp_path, 1.0), constant_job(tmp_path, 2.0, **change)])
    rows = addition_table(results, "tiny").rows
    assert [(row["output"], row["phi_op"], row[column]) for row in rows] == [(1, 1, names[0]), (2, 2, names[1])]
    assert column != "model" or {row["method"] for row in rows} == {"IG"}  # labels are told apart within a model
    n_parts = 0 if "attribution__method__steps" in change else 2  # methods of one setting share a part
    for figure in (addition_figure(results), teaser_figure(results)):
        assert [axes.images[0].get_array().max() for axes in panels(figure)] == [1, 2]
        assert len({part.get_suptitle() for part in figure.subfigs}) == n_parts
        for part, value in zip(figure.subfigs, (1, 2), strict=False):
            headings = " ".join([part.get_suptitle(), *(axes.get_title() for axes in part.axes)])
            assert f"f(x) = {value}.00" in headings
            assert f"f(x) = {3 - value}.00" not in headings


def limits(axes):
    return axes.images[0].norm.vmin, axes.images[0].norm.vmax


def test_the_addition_figure_has_a_panel_per_method_and_example_in_the_colours_of_its_unit(sums):
    drawn = panels(addition_figure(sums))
    shapes = {"attention": (4, 4), "sv": (1, 3), "ig": (1, 3)}
    assert [axes.images[0].get_array().shape for axes in drawn] == [
        shapes.get(method, (3, 3)) for method in FAMILIES for _ in EXAMPLES
    ]
    assert {limits(axes) for axes in drawn[:2]} == {(0, 1)}  # attention weights
    largest = max(np.abs(axes.images[0].get_array()).max() for axes in drawn[2:])
    assert {limits(axes) for axes in drawn[2:]} == {(-largest, largest)}


def test_the_teaser_has_a_first_order_panel_above_its_meta_attributions_per_family(sums):
    drawn = {axes.get_title(): axes for axes in panels(teaser_figure([*sums[1:3], *sums[4:]]))}
    assert sorted(drawn) == ["IG", "Meta-IG", "Meta-SV", "SV"]
    for first, meta in (("SV", "Meta-SV"), ("IG", "Meta-IG")):
        assert [drawn[each].images[0].get_array().shape for each in (first, meta)] == [(1, 3), (3, 3)]
    ((lowest, highest),) = {limits(axes) for axes in drawn.values()}
    assert lowest == -highest


@pytest.mark.parametrize(("draw", "n_missing"), [(addition_figure, len(EXAMPLES)), (teaser_figure, 1)])
def test_a_missing_panel_says_in_its_place_that_it_was_not_computed(without_first_order, draw, n_missing):
    figure = draw(without_first_order)
    assert [text.get_text() for axes in figure.axes for text in axes.texts].count("not computed") == n_missing
    assert {axes.get_subplotspec().rowspan.start for axes in panels(figure)} == {1}


def test_a_figure_saved_twice_is_the_same_bytes_and_none_is_left_open(tmp_path):
    before, folders = plt.get_fignums(), [tmp_path / name for name in ("first", "second")]
    job = constant_job(tmp_path, 1.0)
    for folder in folders:
        folder.mkdir()
        save_figure(addition_figure([job]), folder)
    first, second = ([(folder / f"figure.{kind}").read_bytes() for kind in ("png", "pdf")] for folder in folders)
    assert first == second
    assert plt.get_fignums() == before


def test_a_benchmark_without_a_report_gets_the_means_of_its_scores_a_row_for_each_job(tmp_path):
    jobs = []
    for seed in (0, 1):
        cfg = stub_config(tmp_path, seed=seed, benchmark={"name": f"b{seed}"})
        scores = [{"value": seed + 1.0, "players": ["p"]}, {"value": seed + 2.0, "players": ["q"]}]
        jobs += made_up(cfg, {f"s{place}": Made(each) for place, each in enumerate(scores)})
    table = scores_table(tell_apart(jobs), "tiny")
    assert table.title == "stub: scores of benchmark b0, b1"
    assert [(row["model"], row["method"], row["value"]["mean"], row["value"]["n"]) for row in table.rows] == [
        ("Model", "Method (benchmark=b0, seed=0)", 1.5, 2), ("Model", "Method (benchmark=b1, seed=1)", 2.5, 2),
    ]  # fmt: skip
    assert column_keys(table) == ["model", "method", "value"]
    assert "1.500 ± 1.000" in markdown(table)


@pytest.mark.parametrize(
    ("lacks", "lacking"), [(0, {"first": None}), (1, {}), (2, {"first": "none"})], ids=["None", "no key", "a text"]
)
def test_a_score_that_a_sample_lacks_is_the_mean_over_the_others_and_a_note_says_so(tmp_path, lacks, lacking):
    scores = [{"size": 1.0} | (lacking if place == lacks else {"first": 2.0}) for place in range(3)]
    job = made_up(stub_config(tmp_path), {f"s{place}": Made(each) for place, each in enumerate(scores)})
    table = scores_table(tell_apart(job), "tiny")
    (row,) = table.rows
    assert [(row[name]["mean"], row[name]["n"]) for name in ("size", "first")] == [(1.0, 3), (2.0, 2)]
    assert set(column_keys(table)) == {"model", "method", "size", "first"}
    assert table.notes == ["Method of Model: first is the mean over the 2 of 3 samples that have this number."]


def test_a_report_has_a_row_for_each_job_that_ran_and_names_the_others(tmp_path):
    once, twice = (job_config(tmp_path, attribution__method__factor=factor) for factor in (1.0, 2.0))
    never = job_config(tmp_path, attribution__name="other", attribution__label="Other")
    run_job(once)
    run_job(twice)
    write_report([once, twice, never])
    methods = [row["method"] for row in read_table(tmp_path).rows]
    assert methods == ["Share (method.factor=1.0)", "Share (method.factor=2.0)"]
    assert read_table(tmp_path).notes == ["Not run yet: Other."]
    write_report([once, job_config(tmp_path, benchmark__name="others")])
    assert read_table(tmp_path).notes == ["Not run yet: Share on others."]


def test_a_sweep_is_its_grid_and_what_the_command_line_adds():
    with shipped_configs():
        for grid, overrides, methods, seeds in (
            (["attribution=sv,ig"], ["attribution=sv"], ("sv", "ig"), (0,)),
            (["attribution=sv,ig"], ["attribution=ih", "seed=1,2"], ("sv", "ig", "ih"), (1, 2)),
            ([], ["attribution=glob(i*)", "seed=range(1,3)"], ("ig", "ih"), (1, 2)),
        ):
            cells = [(cfg.attribution.name, cfg.seed) for cfg in sweep_configs(grid, overrides)]
            assert sorted(cells) == sorted(product(methods, seeds))
        configs = sweep_configs([], ["benchmark.function='(x1+x2)**2','x1*x2'"])
    assert [cfg.benchmark.function for cfg in configs] == ["(x1+x2)**2", "x1*x2"]


def test_a_drawing_is_its_figures_and_caption_and_replaces_an_earlier_one(tmp_path):
    several = Drawing({"acc": Figure(), "map": Figure()}, caption_of("What is shown.", "", "How to read it."))
    for drawing, found in (
        (Drawing.single(Figure(), "One."), {"figure.png", "figure.pdf", "caption.txt"}),
        (several, {"figure_acc.png", "figure_acc.pdf", "figure_map.png", "figure_map.pdf", "caption.txt"}),
        (Drawing.single(Figure()), {"figure.png", "figure.pdf"}),
        (None, set()),
    ):
        save_drawing(drawing, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == found
        if drawing is several:
            assert (tmp_path / "caption.txt").read_text() == "What is shown. How to read it.\n"
            section = read_section(tmp_path)
            assert (len(section.figures), section.caption) == (2, "What is shown. How to read it.")


NAMES = ("A", "B", "C")
TWO_LIMITS = [f"Only the first {each}." for each in ("2 samples of A (limit=2)", "sample of B, C (limit=1)")]


def configs(folder, **changes):
    return [
        job_config(folder, attribution__label=name, attribution__method__factor=float(place), **changes)
        for place, name in enumerate(NAMES)
    ]


def limited(name, limit):
    """A method's job of three samples with a limit."""
    made = {f"{place}": Made() for place in range(min(3, limit or 3))}
    return only(made_up(stub_config("unused", attribution={"name": name, "label": name}, limit=limit), made))


@pytest.mark.parametrize(
    ("limits", "notes"),
    [
        ((2, 2, 2), ["Only the first 2 samples (limit=2)."]),
        ((1, None, None), ["Only the first sample of A (limit=1)."]),
        ((None, 1, 1), ["Only the first sample of B, C (limit=1)."]),
        ((2, 1, 1), TWO_LIMITS),
        ((3, None, None), []),
        ((1000, 1000, 1000), []),
    ],
)
def test_jobs_with_another_limit_are_named(limits, notes):
    assert mixture_notes(list(map(limited, NAMES, limits))) == notes


def test_the_limit_of_the_command_that_writes_the_table_says_nothing_of_jobs_that_ran_before(tmp_path):
    for cfg, limit in zip(configs(tmp_path), (2, 1, 1), strict=True):
        run_job(merged(cfg, {"limit": limit}))
    for last in (1, 2, None):
        write_report(configs(tmp_path, limit=last))
        assert read_table(tmp_path).notes == TWO_LIMITS


def test_jobs_of_other_files_of_the_model_or_with_other_versions_of_libraries_are_told_apart(tmp_path, monkeypatch):
    first, *rest = configs(tmp_path)
    run_job(merged(first, {"limit": 1}))
    versions = {name: version(name) for name in LIBRARIES} | {"torch": "0.1"}
    monkeypatch.setattr("metagame.jobs.environment._version", versions.get)
    for cfg in (first, *rest):
        run_job(cfg)
    write_report([first, *rest])
    (note,) = read_table(tmp_path).notes
    assert f"different versions or devices: torch: {version('torch')} (A), 0.1 (A, B, C). " in note
    monkeypatch.setattr(Plain, "revision", "second")
    run_job(first)
    write_report([first, *rest])
    (note,) = read_table(tmp_path).notes
    assert "different versions of the model's files: A; B, C." in note


def computed(files, **changes):
    """A result for each method with these versions of its samples' files."""
    return [
        only(
            with_records(
                stub_config("unused", attribution={"name": name, "label": name}, **changes),
                [Record(each, each, "done", provenance={"files": version}) for each, version in versions.items()],
            )
        )
        for name, versions in files.items()
    ]


OLD, NEW = {"1": "a", "2": "b"}, {"1": "a", "2": "c"}


def test_jobs_whose_samples_or_their_files_have_changed_are_told_apart_within_a_benchmark():
    assert mixture_notes(computed({"A": OLD, "B": OLD})) == []
    (note,) = mixture_notes(computed({"A": OLD, "B": NEW, "C": OLD}))
    assert "different versions of the samples' files: A, C; B." in note
    (note,) = mixture_notes(computed({"A": OLD, "B": {"1": "a"}}))
    assert "not over the same samples: 2 of A; 1 of B." in note
    others = computed({"B": {"1": "d", "3": "e"}}, benchmark={"name": "other"})
    assert mixture_notes([*computed({"A": OLD}), *others]) == []


def test_a_table_of_any_texts_has_a_row_for_each_in_every_format(tmp_path):
    given = texts(2_000)
    numbers, columns = [str(number) for number in range(len(given))], [Column("text", "a | b", "text")]
    rows = [{"text": text, "n": number} for text, number in zip(given, numbers, strict=True)]
    columns.append(Column("n", "n", "text"))
    write_table(Table("any | text\nat all", "tiny", columns, rows, [{} for _ in rows], n_samples=1), tmp_path)
    assert [row["text"] for row in read_table(tmp_path).rows] == given
    with io.StringIO((tmp_path / "table.csv").read_bytes().decode(), newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == given
    tokens = MarkdownIt("commonmark").enable(["table"]).parse((tmp_path / "table.md").read_text())
    cells = [token.children for token in tokens if token.type == "inline"][-2 * len(given) :]
    assert {each.type for cell in cells for each in cell} <= {"text", "text_special"}
    shown = ["".join(each.content for each in cell) for cell in cells]
    assert shown[::2] == [" ".join(text.split()) for text in given]
    assert shown[1::2] == numbers
    tex = (tmp_path / "table.tex").read_text().split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    assert [line.rsplit(" & ", 1)[1] for line in tex] == [f"{number} \\\\" for number in numbers]


def test_any_text_can_be_drawn_and_what_no_font_has_is_told_once(tmp_path, caplog, monkeypatch, recwarn):
    monkeypatch.setattr(experiment, "FALLBACK_FONTS", ())
    with free_text():
        figure = Figure(figsize=(4, 10))
        for number, text in enumerate([*texts(100, seed=1), "\ue123"]):
            figure.text(0, number / 100, text.replace("\t", " "), fontsize=3)
        save_figure(figure, tmp_path)
    assert (tmp_path / "figure.png").stat().st_size > 0
    (line,) = caplog.messages
    assert "\ue123" in line
    assert "install one that does, such as Noto Sans CJK" in line
    assert [str(each.message) for each in recwarn if "Glyph" in str(each.message)] == []


def test_characters_that_matplotlibs_font_lacks_are_drawn_by_one_that_is_installed(tmp_path, caplog, monkeypatch):
    drawn = []
    for fonts in (["No such font"], ["No such font", "STIXGeneral"]):
        monkeypatch.setattr(experiment, "FALLBACK_FONTS", fonts)
        with free_text():
            figure = Figure(figsize=(2, 1))
            figure.text(0.1, 0.4, "dog ⌚")
            save_figure(figure, tmp_path)
        drawn.append((tmp_path / "figure.png").read_bytes())
    assert drawn[0] != drawn[1]
    (line,) = caplog.messages  # without the font
    assert "⌚" in line


def test_the_page_holds_any_text_as_it_is(tmp_path):
    page_of_texts(tmp_path / "tiny", 100)
