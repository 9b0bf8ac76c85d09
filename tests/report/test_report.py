from __future__ import annotations

import io
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hydra import compose
from matplotlib.figure import Figure

from metagame.contracts import WHOLE
from metagame.errors import UserError
from metagame.jobs.grid import sweep_configs
from metagame.jobs.records import Record
from metagame.jobs.run import run_job
from metagame.jobs.spec import job_identity, variants
from metagame.report.addition import PLAYERS, addition_figure, addition_table, teaser_figure
from metagame.report.experiment import save_figure, write_report
from metagame.report.groups import by_setting, stacked
from metagame.report.published import published
from metagame.report.results import JobResult, failure_notes, read_job, tell_apart
from metagame.report.scores import scores_table
from metagame.report.separation import separation_table
from metagame.report.table import Column, Table, markdown, write_table
from tests.tiny.jobs import job_config, shipped_configs
from tests.tiny.reports import Made, made_up, only, stub_config, tokens_explained

EXAMPLES = ["3 - (-5)", "4 + (-4)"]
METHODS = ["attention", "sv", "meta_sv", "stii", "ig", "meta_ig"]

COLUMNS = [
    Column("method", "method", "text"),
    Column("phi_1", "phi_1", "expression"),
    Column("effect", "a→b", "number"),
    Column("accuracy", "accuracy", "mean"),
    Column("matches", "matches", "flag"),
]
TABLE = Table(
    title="A table",
    scale="tiny",
    columns=COLUMNS,
    rows=[
        {
            "method": "SV",
            "phi_1": "x1*x2**2/2",
            "effect": 0.25,
            "accuracy": {"mean": 0.5, "two_se": 0.125, "n": 16},
            "matches": True,
        },
        {"method": "IG", "phi_1": None, "effect": None, "accuracy": None, "matches": False},
        {"method": "GI"},
    ],
    published=[{"phi_1": "I/2", "effect": 0.2, "accuracy": 0.4}, {}, {}],
    n_samples=16,
    claims=[{"claim": f"claim {holds}", "holds": holds} for holds in (True, False, None)],
    notes=["a→b: influence of a on b."],
)


@pytest.fixture
def written(tmp_path):
    return {path.suffix: path.read_text(encoding="utf-8") for path in write_table(TABLE, tmp_path)}


def in_text(label, *cells):
    """A table of one text-like column, for what its cells become."""
    return replace(
        TABLE, columns=[Column("c", label, "text")], rows=[{"c": cell} for cell in cells], published=[{}] * len(cells)
    )


def test_the_json_of_a_table_is_its_fields_and_nothing_else(written):
    assert json.loads(written[".json"]) == asdict(TABLE)
    assert list(json.loads(written[".json"])) == [field.name for field in fields(Table)]


def test_equal_tables_are_equal_bytes_wherever_they_are_written(tmp_path):
    first, second = (write_table(TABLE, tmp_path / name) for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_csv_has_every_number_in_full_with_the_published_one_beside_it(written):
    frame = pd.read_csv(io.StringIO(written[".csv"]))
    assert list(frame.columns) == [
        "method", "phi_1", "phi_1_published", "effect", "effect_published",
        "accuracy_mean", "accuracy_two_se", "accuracy_n", "accuracy_published", "matches",
    ]  # fmt: skip
    assert frame.iloc[0].tolist() == ["SV", "x1*x2**2/2", "I/2", 0.25, 0.2, 0.5, 0.125, 16, 0.4, True]
    assert frame.iloc[2, 1:].isna().all()


def test_the_markdown_shows_ours_the_published_value_the_error_and_what_is_not_known(written):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in written[".md"].splitlines() if "|" in line
    ]
    ours = dict(zip(rows[0], rows[2], strict=True))
    assert (ours["a→b"], ours["accuracy"]) == ("0.250 (0.200)", "0.500 ± 0.125 (0.400)")
    assert (ours["method"], ours["matches"]) == ("SV", "yes")
    assert rows[3] == ["IG", "–", "–", "–", "no"]
    assert rows[4] == ["GI", "–", "–", "–", "–"]


def test_the_markdown_says_scale_samples_claims_and_notes(written):
    assert "# A table" in written[".md"]
    assert "Scale: tiny; samples: 16; published values in brackets." in written[".md"]
    assert written[".md"].endswith(
        "- yes: claim True\n- no: claim False\n- not decided: claim None\n- a→b: influence of a on b.\n"
    )


def test_a_table_without_published_values_does_not_speak_of_them():
    assert "published" not in markdown(replace(TABLE, published=[{}, {}, {}]))


def test_numbers_keep_their_three_decimals_in_markdown():
    table = replace(
        TABLE, columns=[Column("c", "c", "number")], rows=[{"c": 0.5}, {"c": 8.0}], published=[{}, {}], notes=[]
    )
    assert "0.500" in markdown(table)
    assert "8.000" in markdown(table)


def test_texts_that_look_like_numbers_stay_as_they_are_in_markdown():
    text = markdown(in_text("sample", "007", "1e5"))
    assert "007" in text
    assert "1e5" in text


def test_expressions_and_symbols_are_typeset_in_latex(written):
    assert r"$\frac{x_{1} x_{2}^{2}}{2}$ ($\frac{I}{2}$)" in written[".tex"]
    assert r"$\phi_{1}$ & a$\to$b" in written[".tex"]
    assert r"0.500 $\pm$ 0.125 (0.400)" in written[".tex"]
    assert "GI & -- & -- & -- & -- " in written[".tex"]


@pytest.mark.parametrize(
    ("text", "tex"),
    [("pair_12", r"pair\_12"), ("50%", r"50\%"), ("a & b", r"a \& b"), ("#1", r"\#1"), ("f(∅)", r"f($\emptyset$)")],
)
def test_characters_that_latex_would_read_are_escaped(tmp_path, text, tex):
    write_table(in_text(text, text), tmp_path)
    body = [line for line in (tmp_path / "table.tex").read_text().splitlines() if not line.startswith("%")]
    assert sum(line == f"{tex} \\\\" for line in body) == 2


def test_a_note_of_several_lines_stays_a_comment_in_latex(tmp_path):
    write_table(replace(TABLE, notes=["SV: sample 1 failed: first line\nsecond line"]), tmp_path)
    before = (tmp_path / "table.tex").read_text().split(r"\begin{tabular}")[0]
    assert all(line.startswith("%") for line in before.splitlines())


def test_table_1_is_published_with_its_eight_rows():
    rows = published("table1")["rows"]
    assert list(rows) == ["serial_sv", "ih", "moebius", "shapley", "sop", "meta_gi", "meta_ig", "meta_sv"]
    assert rows["meta_ig"]["phi_12"] == "2*I/3"


def job_result(*records, samples=("s1",), model=None, function=None, **attribution):
    config = stub_config(
        "unused",
        attribution={"name": "meta_sv", "label": "SV", "family": "symbolic", "meta": True} | attribution,
        benchmark={"name": "separation", "function": function or published("table1")["function"]},
    )
    config.model = model or {"name": "polynomial"}
    (variant,) = variants(config)
    return JobResult(
        config, variant, Path("unused"), job_identity(config), list(samples), list(records), 0, variant.label
    )


def test_failed_and_missing_samples_are_named_in_the_notes():
    failed = Record("k1", "s1", "failed", error="no memory")
    done = Record("k2", "s2", "done")
    assert failure_notes([job_result(failed, done, samples=("s1", "s2", "s3"))]) == [
        "Meta-SV: sample s1 failed: no memory",
        "Meta-SV: 1 of 3 samples not computed yet.",
    ]


def test_the_notes_of_a_table_name_the_model_where_its_jobs_have_several():
    failed = Record("k1", "s1", "failed", error="no memory")
    labelled = job_result(failed, model={"name": "m1", "label": "Model 1"})
    plain = job_result(failed, samples=("s1", "s2"), model={"name": "m2"})
    ours = {
        "Meta-SV of Model 1: sample s1 failed: no memory",
        "Meta-SV of m2: sample s1 failed: no memory",
        "Meta-SV of m2: 1 of 2 samples not computed yet.",
    }
    assert {note for note in separation_table([labelled, plain], "tiny").notes if "Meta-SV" in note} == ours
    for model in (labelled, plain):
        other = job_result(failed, model=model.config.model, name="ih", label="IH", meta=False)
        notes = separation_table([model, other], "tiny").notes
        assert {"Meta-SV: sample s1 failed: no memory", "IH: sample s1 failed: no memory"} <= set(notes)
        assert not any(name in note for note in notes for name in (" of m2", "Model 1"))


def test_a_complete_job_has_no_notes():
    assert failure_notes([job_result(Record("k1", "s1", "done"))]) == []


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
    table = separation_table([job_result(derived(entries))], "tiny")
    assert table.rows[0]["matches"] is matches
    assert (table.rows[0]["type"], table.rows[0]["method"]) == ("Directional", "Meta-SV")


def test_the_first_order_attributions_of_a_row_are_not_measured_by_its_metagame():
    first_order = {key: META_SV[key] for key in ("phi_1", "phi_2", "sum")}
    table = separation_table([job_result(derived(first_order, "First-Order"), meta=False)], "tiny")
    assert table.published == [{}]
    assert table.rows == [{"type": "First-Order", "method": "SV", "phi_1": "x1 + I/2", "phi_2": "I/2", "sum": "x1 + I"}]


def test_the_row_of_a_failed_method_stays_in_table_1_without_entries():
    failed = Record("k", "s1", "failed", error="no memory")
    table = separation_table(
        [job_result(derived(META_SV)), job_result(failed, name="ih", label="IH", meta=False)], "tiny"
    )
    assert table.rows[1] == {"method": "IH"}
    assert "IH: sample s1 failed: no memory" in table.notes


def test_another_function_has_no_published_counterpart():
    result = job_result(derived({"phi_11": "x1", "phi_1": "x1", "sum": "x1"}), function="x1")
    table = separation_table([result], "tiny")
    assert table.published == [{}]
    assert "matches" not in [column.key for column in table.columns]


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """The adder's jobs, computed once."""
    folder = tmp_path_factory.mktemp("sums")
    with shipped_configs():
        examples = ",".join(f"'{example}'" for example in EXAMPLES)
        overrides = ["model=adder", "benchmark=addition", f"benchmark.examples=[{examples}]", f"output_dir={folder}"]
        configs = [compose("config", overrides=[*overrides, f"attribution={method}"]) for method in METHODS]
        for cfg in configs:
            run_job(cfg)
    return [only(read_job(cfg)) for cfg in configs]


@pytest.fixture
def without_first_order(sums):
    """SV and Meta-SV, where SV failed on every sample."""
    failed = [Record(record.key, record.sample, "failed", error="no memory") for record in sums[1].records]
    return [replace(sums[1], records=failed), sums[2]]


def rows_of(results):
    """(row of the table, its job, its record), in the table's order."""
    rows = iter(addition_table(results, "tiny").rows)
    return [
        (next(rows), result, record) for n in range(len(EXAMPLES)) for result in results for record in [result.done[n]]
    ]


def test_the_rows_of_the_addition_table_are_examples_by_methods(sums):
    rows = addition_table(sums, "tiny").rows
    labels = [result.label for result in sums]
    assert [(row["example"], row["method"]) for row in rows] == [(e, m) for e in EXAMPLES for m in labels]


def test_the_first_order_cells_of_the_addition_table_are_the_arrays(sums):
    for row, result, record in rows_of([sums[1], sums[4]]):
        first_order = result.explanations(record)[WHOLE].attribution
        assert [row[f"phi_{player}"] for player in PLAYERS] == pytest.approx(first_order, abs=5.1e-7)


def test_the_second_order_cells_of_the_addition_table_are_the_arrays(sums):
    for row, result, record in rows_of([sums[0], *sums[2:4], sums[5]]):
        matrix = result.explanations(record)[WHOLE].meta.values[:3, :3]
        ours = [[row[f"{j}_to_{i}"] for j in PLAYERS] for i in PLAYERS]
        assert np.allclose(ours, matrix, rtol=0, atol=5.1e-7)


def test_a_failed_sample_keeps_its_row_in_the_addition_table(without_first_order):
    table = addition_table(without_first_order, "tiny")
    assert table.rows[0] == {"example": EXAMPLES[0], "method": "SV"}
    assert f"SV: sample {EXAMPLES[0]} failed: no memory" in table.notes


def adder_job(folder, value, examples=("3 - (-5)",), meta=False, **changes):
    """IG of sums whose numbers are all ``value``."""
    cfg = stub_config(
        folder, model={"name": "adder", "label": "Adder"}, benchmark={"name": "addition", "examples": list(examples)},
        attribution={"name": "meta_ig" if meta else "ig", "base": "ig", "label": "IG", "meta": meta,
                     "family": "gradient", "method": {"steps": 8}},
        **changes,
    )  # fmt: skip
    explained = tokens_explained("abc", [value] * 3, [[value] * 3] * 3 if meta else None)
    made = Made({"output": value, "empty_output": -value}, {WHOLE: explained})
    return only(made_up(cfg, dict.fromkeys(examples, made)))


SWEPT = [
    ({"seed": 1}, ("method", ["IG (seed=0)", "IG (seed=1)"])),
    ({"attribution__method__steps": 32}, ("method", ["IG (method.steps=8)", "IG (method.steps=32)"])),
    ({"model__name": "other", "model__label": "Other"}, ("model", ["Adder", "Other"])),
    ({"model__name": "other"}, ("method", ["IG (model=adder)", "IG (model=other)"])),
]


@pytest.mark.parametrize(("change", "shown"), SWEPT)
def test_rows_of_jobs_of_a_sweep_have_their_own_numbers_and_names(tmp_path, change, shown):
    results = tell_apart([adder_job(tmp_path, 1.0), adder_job(tmp_path, 2.0, **change)])
    rows = addition_table(results, "tiny").rows
    assert [(row["output"], row["phi_op"]) for row in rows] == [(1, 1), (2, 2)]
    key, names = shown
    assert [row[key] for row in rows] == names


def test_a_job_has_rows_of_its_own_examples_only(tmp_path):
    other = adder_job(tmp_path, 2.0, ["4 + (-4)"])
    rows = addition_table(tell_apart([adder_job(tmp_path, 1.0), other]), "tiny").rows
    assert [(row["example"], row["phi_a"]) for row in rows] == [("3 - (-5)", 1), ("4 + (-4)", 2)]


@pytest.mark.parametrize("draw", [addition_figure, teaser_figure])
@pytest.mark.parametrize(("change", "shown"), SWEPT)
def test_panels_of_jobs_of_a_sweep_have_their_own_numbers_and_headings(tmp_path, draw, change, shown):
    figure = draw(tell_apart([adder_job(tmp_path, 1.0), adder_job(tmp_path, 2.0, **change)]))
    assert [axes.images[0].get_array().max() for axes in panels(figure)] == [1, 2]
    if "attribution__method__steps" in change:
        assert len(figure.subfigs) == 0
        return
    names = [part.get_suptitle() for part in figure.subfigs]
    assert len(set(names)) == 2
    for part, value in zip(figure.subfigs, (1, 2), strict=True):
        headings = [axes.get_title() for axes in part.axes] + [part.get_suptitle()]
        assert any(f"f(x) = {value}.00" in text for text in headings)
        assert not any(f"f(x) = {3 - value}.00" in text for text in headings)


def test_a_metagame_and_its_method_of_each_of_two_seeds_stand_together(tmp_path):
    jobs = [adder_job(tmp_path, 1.0 + seed, meta=meta, seed=seed) for meta in (False, True) for seed in (0, 1)]
    parts = teaser_figure(tell_apart(jobs)).subfigs
    titles = [[axes.get_title() for axes in panels(part)] for part in parts]
    assert titles == [["IG", "Meta-IG"]] * 2
    assert [{axes.images[0].get_array().max() for axes in panels(part)} for part in parts] == [{1}, {2}]


def test_jobs_of_one_setting_are_a_group_with_labels_of_its_own(tmp_path):
    jobs = [adder_job(tmp_path, 0, meta=meta, seed=seed) for seed in (0, 1) for meta in (False, True)]
    groups = by_setting(tell_apart(jobs))
    assert [[result.label for result in group.results] for group in groups] == [["IG", "Meta-IG"]] * 2
    assert [group.name for group in groups] == ["Adder (seed=0)", "Adder (seed=1)"]
    assert [group.name for group in by_setting(jobs[:2])] == ["Adder"]


def test_models_of_one_label_are_told_apart_by_their_names(tmp_path):
    jobs = [adder_job(tmp_path, 0), adder_job(tmp_path, 0, model__name="other")]
    assert [group.name for group in by_setting(jobs)] == ["Adder (model=adder)", "Adder (model=other)"]
    assert [result.label for result in tell_apart(jobs)] == ["IG (model=adder)", "IG (model=other)"]


def test_a_part_alone_is_the_figure_itself():
    figure = Figure()
    assert stacked(figure, [1.0]) == [figure]
    assert len(stacked(figure, [1.0, 2.0])) == len(figure.subfigs) == 2


def test_failures_of_variants_name_the_job_and_what_sets_it_apart(tmp_path):
    variants_of = {name: {"name": name, "label": name, "method": {}} for name in ("one", "two")}
    results = []
    for benchmark in ("voc", "coco"):
        cfg = stub_config(
            tmp_path, attribution={"label": "Both", "variants": variants_of}, benchmark={"name": benchmark}
        )
        results += made_up(cfg, {"one": {}, "two": {}}, failed=["s"])
    results = tell_apart(results)
    assert failure_notes(results[:2]) == ["Both: sample s failed: no memory for s"]
    assert failure_notes(results) == [
        "Both (benchmark=voc): sample s failed: no memory for s",
        "Both (benchmark=coco): sample s failed: no memory for s",
    ]


def test_scores_of_jobs_of_a_sweep_have_a_row_each(tmp_path):
    jobs = [
        only(
            made_up(
                stub_config(tmp_path, seed=seed, benchmark={"name": f"b{seed}"}), {"s": Made({"value": 1.0 + seed})}
            )
        )
        for seed in (0, 1)
    ]
    table = scores_table(tell_apart(jobs), "tiny")
    assert table.title == "stub: scores of benchmark b0, b1"
    assert [(row["method"], row["value"]["mean"]) for row in table.rows] == [
        ("Method (benchmark=b0, seed=0)", 1.0), ("Method (benchmark=b1, seed=1)", 2.0),
    ]  # fmt: skip


def panels(figure):
    """The axes that show a matrix; colour bars do not."""
    return [axes for axes in figure.axes if axes.images]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def limits(axes):
    return axes.images[0].norm.vmin, axes.images[0].norm.vmax


def test_the_addition_figure_has_a_panel_per_method_and_example(sums):
    shown = [axes.images[0].get_array().shape for axes in panels(addition_figure(sums))]
    shapes = {"attention": (4, 4), "sv": (1, 3), "ig": (1, 3)}
    assert shown == [shapes.get(method, (3, 3)) for method in METHODS for _ in EXAMPLES]


def test_the_colour_limits_of_a_family_are_shared_and_symmetric(sums):
    drawn = panels(addition_figure(sums))
    shapley, gradient = drawn[2:8], drawn[8:]
    for family in (shapley, gradient):
        largest = max(np.abs(axes.images[0].get_array()).max() for axes in family)
        assert {limits(axes) for axes in family} == {(-largest, largest)}


def test_attention_weights_have_the_scale_from_0_to_1(sums):
    assert {limits(axes) for axes in panels(addition_figure(sums))[:2]} == {(0, 1)}


def test_the_teaser_has_a_first_order_panel_above_its_meta_attributions_per_family(sums):
    pairs = [sums[1], sums[2], sums[4], sums[5]]
    drawn = panels(teaser_figure(pairs))
    titles = [axes.get_title() for axes in drawn]
    by_label = dict(zip(titles, drawn, strict=True))
    assert sorted(titles) == ["IG", "Meta-IG", "Meta-SV", "SV"]
    for first, meta in (("SV", "Meta-SV"), ("IG", "Meta-IG")):
        assert by_label[first].images[0].get_array().shape == (1, 3)
        assert by_label[meta].images[0].get_array().shape == (3, 3)
        low, high = limits(by_label[first])
        assert (low, high) == limits(by_label[meta])
        assert low == -high


@pytest.mark.parametrize(("draw", "n_missing"), [(addition_figure, len(EXAMPLES)), (teaser_figure, 1)])
def test_a_missing_panel_says_that_it_was_not_computed(without_first_order, draw, n_missing):
    assert texts(draw(without_first_order)).count("not computed") == n_missing


def test_the_teaser_keeps_the_place_of_a_missing_panel(without_first_order):
    (meta,) = panels(teaser_figure(without_first_order))
    assert meta.get_title() == "Meta-SV"
    assert meta.get_subplotspec().rowspan.start == 1


@pytest.mark.parametrize("draw", [addition_figure, teaser_figure])
def test_a_figure_saved_twice_is_the_same_bytes(sums, tmp_path, draw):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_figure(draw(sums[1:3]), tmp_path / name)
    for name in ("figure.png", "figure.pdf"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_drawing_leaves_no_figure_open(sums, tmp_path):
    save_figure(addition_figure(sums[1:2]), tmp_path)
    assert plt.get_fignums() == []


def test_jobs_that_differ_in_an_argument_have_a_row_each(tmp_path):
    configs = [job_config(tmp_path, attribution__method__factor=factor) for factor in (1.0, 2.0)]
    for cfg in configs:
        run_job(cfg)
    write_report(configs)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["Share (method.factor=1.0)", "Share (method.factor=2.0)"]


def test_a_job_that_never_ran_is_named_in_the_notes(tmp_path):
    ran, never = job_config(tmp_path), job_config(tmp_path, attribution__name="other", attribution__label="Other")
    run_job(ran)
    write_report([ran, never])
    assert json.loads((tmp_path / "table.json").read_text())["notes"] == ["Not run yet: Other."]


def test_a_report_of_jobs_that_never_ran_is_refused(tmp_path):
    with pytest.raises(UserError, match="numbers: no sample was computed, so no table is written"):
        write_report([job_config(tmp_path)])
    assert list(tmp_path.iterdir()) == []


GRID = ["attribution=sv,ig"]


@pytest.mark.parametrize(
    ("grid", "overrides", "cells"),
    [
        (GRID, [], [("sv", 0), ("ig", 0)]),
        (GRID, ["attribution=sv"], [("sv", 0), ("ig", 0)]),
        (GRID, ["attribution=ih"], [("sv", 0), ("ig", 0), ("ih", 0)]),
        (GRID, ["seed=1"], [("sv", 1), ("ig", 1)]),
        (GRID, ["seed=1,2"], [("sv", 1), ("sv", 2), ("ig", 1), ("ig", 2)]),
        ([], ["attribution=sv,ig"], [("sv", 0), ("ig", 0)]),
        ([], ["seed=range(1,3)"], [("meta_sv", 1), ("meta_sv", 2)]),
        ([], ["attribution=glob(i*)"], [("ig", 0), ("ih", 0)]),
    ],
)
def test_a_sweep_is_its_grid_and_what_the_command_line_adds(grid, overrides, cells):
    with shipped_configs():
        configs = sweep_configs(grid, overrides)
    assert sorted((cfg.attribution.name, cfg.seed) for cfg in configs) == sorted(cells)


def test_quoted_values_of_a_sweep_stay_quoted():
    with shipped_configs():
        configs = sweep_configs([], ["benchmark.function='(x1+x2)**2','x1*x2'"])
    assert [cfg.benchmark.function for cfg in configs] == ["(x1+x2)**2", "x1*x2"]


def test_a_benchmark_without_a_report_gets_the_means_of_its_scores(tmp_path):
    with shipped_configs():
        cfg = compose("config", overrides=["model=adder", "attribution=sv", "benchmark=addition", "report=scores"])
    cfg.output_dir = str(tmp_path)
    run_job(cfg)
    table = scores_table(read_job(cfg), scale="tiny")
    (row,) = table.rows
    assert (row["model"], row["method"]) == ("adder", "SV")
    assert row["value"]["mean"] == (8 + 12 + 0 + 2) / 4
    assert row["value"]["n"] == 4
    assert "players" not in row
    assert "± " in markdown(table)


def test_the_metagame_of_a_first_order_method_is_labelled_as_such():
    with shipped_configs():
        overrides = ["model=adder", "benchmark=addition"]
        plain = compose("config", overrides=[*overrides, "attribution=ig"])
        switched = compose("config", overrides=[*overrides, "attribution=ig", "attribution.meta=true"])
        shipped = compose("config", overrides=[*overrides, "attribution=meta_ig"])
    assert [variants(cfg)[0].label for cfg in (plain, switched, shipped)] == ["IG", "Meta-IG", "Meta-IG"]
