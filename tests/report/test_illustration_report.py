"""Figures 2, 8 and 9 from records that are written here: maps of captions, tokens and pairs."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metagame.benchmarks.digits import Digits
from metagame.benchmarks.illustration import CAPTION, PART
from metagame.contracts import Explanation
from metagame.digests import file_digest
from metagame.images import composite
from metagame.meta import MetaAttributions
from metagame.report import illustration
from metagame.report.illustration import MOST_PAIRS, illustration_table
from metagame.report.maps import edge_scale
from metagame.report.results import tell_apart
from tests.conftest import close
from tests.tiny.reports import Made, column_keys, drawn, figure_of, made_up, only, stub_config

illustration_figure = figure_of(illustration.illustration_figure)
KINDS = {
    "first": {"name": "x", "meta": False},
    "meta": {"name": "meta_x", "meta": True},
    "pairs": {"name": "meta_x_pairs", "meta": True, "order": 2, "index": "ksv"},
}
CAPTIONS = {"black dog next to a yellow hydrant": ["black dog", "hydrant"], "a cat": []}
"""Their parts."""
LONG, CAT = CAPTIONS


@pytest.fixture
def pictures(tmp_path):
    """Paths of a picture of a three and a seven above a zero and a five, and of a wide one."""
    paths = tmp_path / "picture.png", tmp_path / "wide.png"
    composite([Digits().image(label, 0) for label in (3, 7, 0, 5)], 32).save(paths[0])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(paths[1])
    return [str(path) for path in paths]


def job(folder, kind, pictures, captions=CAPTIONS, done=None, failed=(), fill=None, picture=None, **changes):
    """A job of one kind with random maps, or maps that are ``fill`` everywhere."""
    rng = np.random.default_rng(len(kind))
    examples = [
        {"image": image, "caption": caption, "parts": CAPTIONS.get(caption, [])}
        for image, caption in zip(pictures, captions, strict=False)
    ]
    cfg = stub_config(
        folder,
        name="figure2",
        attribution={"label": "X", "base": "x"} | KINDS[kind],
        benchmark={"name": "illustration", "_target_": "metagame.benchmarks.illustration.Illustration"}
        | {"examples": examples, "side": 32},
        **changes,
    )

    def random(*shape):
        return rng.normal(size=shape) if fill is None else np.full(shape, float(fill))

    def explained(text):
        players, meta, order = tuple(text.split()), None, 2 if kind == "pairs" else 1
        about = {"players": players, "targets": ("image",), "grid": (4, 4)}
        if kind != "first":
            values = random(16, *[len(players)] * order)
            values = (values + values.swapaxes(1, -1)) / 2  # of pairs; single players stay as they are
            index = "ksv" if order == 2 else None
            meta = MetaAttributions(values, index=index, endogenous=False, order=order, **about)
        return Explanation(**about, attribution=random(16), meta=meta)

    paths = [Path(each["image"]) for each in examples]
    ids = [f"{path.name} ({file_digest(path)[:8]}): {caption}" for path, caption in zip(paths, captions, strict=False)]
    made = {}
    for place in range(len(examples)) if done is None else done:
        example = examples[place]
        questions = {CAPTION: example["caption"]} | {f"{PART}{part}": part for part in example["parts"]}
        shown = {} if picture is None else dict.fromkeys(questions, picture)
        made[ids[place]] = Made({}, {question: explained(text) for question, text in questions.items()}, shown)
    return only(made_up(cfg, made, failed=[ids[place] for place in failed]))


def values_of(job, place):
    """The second-order values of a caption."""
    (record,) = [record for record in job.done if record.sample == job.sample_ids[place]]
    return job.explanations(record)[CAPTION].meta.values


def strongest(pairs):
    found = combinations(range(pairs.shape[1]), 2)
    return sorted(found, key=lambda pair: -np.abs(pairs[:, pair[0], pair[1]]).sum())[:MOST_PAIRS]


def axes_of(figure, chosen=lambda axes: axes.images):
    """The axes that show a picture; the colour bars do not."""
    parts = [each for part in figure.subfigs for each in axes_of(part, chosen)]
    return parts or [axes for axes in figure.axes if chosen(axes)]


def panels(figure):
    """Titles of the axes that show a picture."""
    return [axes.get_title() for axes in axes_of(figure)]


def headings(figure):
    return [part.get_suptitle() for part in figure.subfigs]


@pytest.fixture
def jobs(pictures, tmp_path):
    """First-order, meta and pairs jobs of two captions, with random maps."""
    return [job(tmp_path, kind, pictures) for kind in KINDS]


def test_the_table_has_a_row_for_each_token_and_for_the_strongest_pairs(jobs):
    table, expected = illustration_table(jobs, "tiny"), []
    for place, caption in enumerate(CAPTIONS):
        tokens, matrix, pairs = caption.split(), values_of(jobs[1], place), values_of(jobs[2], place)
        expected += [(caption, token, values) for token, values in zip(tokens, matrix.T, strict=True)]
        expected += [(caption, f"{tokens[i]} + {tokens[j]}", pairs[:, i, j]) for i, j in strongest(pairs)]
    for row, (caption, players, values) in zip(table.rows, expected, strict=True):
        assert (row["caption"], row["players"]) == (caption, players)
        assert close(row["total"], values.sum(), 1e-6)
        assert close(row["largest"], values[np.abs(values).argmax()], 1e-6)
    assert table.n_samples == 2
    assert column_keys(table) == ["caption", "players", "total", "largest"]
    assert table.notes[0].startswith("Model: Model. Values are in the units")


def test_the_figure_has_panels_of_parts_tokens_and_the_strongest_pairs_on_one_scale(jobs):
    figure = drawn(illustration_figure(jobs))
    tokens = LONG.split()
    joint = [f"{tokens[i]} + {tokens[j]}" for i, j in strongest(values_of(jobs[2], 0))]
    expected = ["", "whole caption", "black dog", "hydrant", *tokens, *joint]
    expected += ["", "whole caption", "a", "cat", "a + cat"]
    assert sorted(panels(figure)) == sorted(expected)
    assert headings(figure) == [f"“{caption}”: X, Model" for caption in CAPTIONS]
    lines = [[text.get_text() for text in axes.texts] for axes in figure.axes if axes.lines]
    assert lines == [caption.split() for caption in CAPTIONS]
    bars = axes_of(figure, lambda axes: axes.get_label() == "<colorbar>")
    assert len({bar.get_ylim() for bar in bars}) == 1
    assert {axes.images[0].get_interpolation() for axes in axes_of(figure)} == {"nearest"}  # small pictures' pixels
    assert "interaction (k-SV)" in {axes.get_ylabel() for axes in axes_of(figure)}
    (left, *_), *_ = [part.subfigs for part in figure.subfigs]
    widest = max(line.get_linewidth() for line in left.axes[0].lines)
    scale = edge_scale([values_of(jobs[1], place) for place in range(2)])
    assert close(widest, scale.width(np.abs(values_of(jobs[1], 0)).max()))


@pytest.mark.parametrize(
    ("counts", "columns"), [([3, 4, 6], 4), ([3, 7, 6], 4), ([6, 6], 6), ([1], 1), ([], 1), ([2, 10, 6], 6)]
)
def test_the_columns_leave_the_fewest_places_empty(counts, columns):
    assert illustration._fewest_gaps(counts) == columns


def test_the_picture_that_the_model_was_given_is_drawn_where_it_is_not_the_samples_own(pictures, tmp_path):
    blue = np.full((16, 16, 3), (0, 0, 255), np.uint8)
    result = job(tmp_path, "meta", pictures, [CAT], picture=blue, benchmark__side=None, benchmark__absent="dropped")
    shown = [axes.images[0].get_array() for axes in axes_of(illustration_figure([result])) if axes.lines]
    assert [each.shape[:2] for each in shown] == [(16, 16)]
    assert illustration_table([result], "tiny").notes[1].endswith("This run has absent=dropped, side=null.")


def test_two_pictures_with_one_caption_have_their_own_maps_and_names_in_the_table(pictures, tmp_path):
    result = job(tmp_path, "meta", pictures, [CAT, CAT])
    rows = illustration_table([result], "tiny").rows
    assert [(row["caption"], row["players"]) for row in rows] == [(CAT, "a"), (CAT, "cat")] * 2
    assert [row["sample"] for row in rows[::2]] == result.sample_ids
    expected = np.concatenate([values_of(result, place).sum(0) for place in range(2)])
    assert close([row["total"] for row in rows], expected, 1e-6)


@pytest.mark.parametrize("shown", [("first",), ("meta",), ("pairs",), ("first", "meta"), ("meta", "pairs")])
def test_a_report_of_some_of_the_jobs_has_what_they_computed(pictures, tmp_path, shown):
    chosen = [job(tmp_path, kind, pictures, [CAT]) for kind in shown]
    players = {"first": [], "meta": ["a", "cat"], "pairs": ["a + cat"]}
    expected = [name for kind in shown for name in players[kind]]
    assert [row["players"] for row in illustration_table(chosen, "tiny").rows] == expected
    titles = ["", *["whole caption"] * ("first" in shown), *expected]
    assert panels(drawn(illustration_figure(chosen))) == titles


def test_a_failed_sample_is_named_and_the_others_are_drawn(pictures, tmp_path):
    chosen = [job(tmp_path, "first", pictures), job(tmp_path, "meta", pictures, done=[1], failed=[0])]
    table = illustration_table(chosen, "tiny")
    assert [row["players"] for row in table.rows] == ["a", "cat"]
    assert table.n_samples == illustration_table(chosen[::-1], "tiny").n_samples == 2
    name = chosen[0].sample_ids[0]
    assert f"Meta-X: sample {name} failed: no memory for {name}" in table.notes
    assert len(headings(illustration_figure(chosen))) == 2


@pytest.mark.parametrize("done", [0, 1])
def test_a_sample_that_no_job_finished_is_not_counted_and_does_not_stop_the_figure(pictures, tmp_path, done):
    chosen = [job(tmp_path, kind, pictures, done=[done]) for kind in ("first", "meta")]
    table, caption = illustration_table(chosen, "tiny"), list(CAPTIONS)[done]
    assert {row["caption"] for row in table.rows} == {caption}
    assert table.n_samples == 1
    assert headings(illustration_figure(chosen)) == [f"“{caption}”: X, Model"]


def numbers(table, column):
    """The largest patches of the rows of each name in a column."""
    names = dict.fromkeys(row[column] for row in table.rows)
    return {name: {row["largest"] for row in table.rows if row[column] == name} for name in names}


HEADS = [{"attribution__method__heads": heads} for heads in ("one", "all")]
Y = {"attribution__base": "y", "attribution__label": "Y", "attribution__method": {"_target_": "builtins.object"}}


@pytest.mark.parametrize(
    ("changes", "column", "names", "titles"),
    [
        ([{}, {"model__name": "o", "model__label": "O"}], "model", ["Model", "O"], ["X, Model", "X, O"]),
        (
            [{}, {"model__name": "other"}], "setting", ["model=model", "model=other"],
            ["X, Model, model=model", "X, Model, model=other"],
        ),
        ([{}, {"captions": ["two dogs"]}], "caption", [CAT, "two dogs"], ["X, Model"] * 2),
        ([{}, Y], "method", ["Meta-X", "Meta-X, pairs", "Meta-Y", "Meta-Y, pairs"], ["X, Model", "Y, Model"]),
        (
            HEADS, "method",
            [f"Meta-X{pairs} (method.heads={heads})" for heads in ("one", "all") for pairs in ("", ", pairs")],
            [f"X (method.heads={heads}), Model" for heads in ("one", "all")],
        ),
    ],
    ids=["model", "model of the same label", "caption", "method", "argument"],
)  # fmt: skip
def test_jobs_of_a_sweep_are_not_mixed(pictures, tmp_path, changes, column, names, titles):
    results = tell_apart([
        job(tmp_path, kind, pictures, **({"captions": [CAT]} | change), fill=fill)
        for kind in KINDS
        for fill, change in zip((1.0, 2.0), changes, strict=True)
    ])  # fmt: skip
    table, figure = illustration_table(results, "tiny"), illustration_figure(results)
    fills = [1.0] * (len(names) // 2) + [2.0] * (len(names) // 2)
    assert numbers(table, column) == {name: {fill} for name, fill in zip(names, fills, strict=True)}
    assert len(table.rows) == 2 * 3
    assert column_keys(table)[0] == column
    assert any("Model:" in note for note in table.notes) == (column != "model")
    captions = names if column == "caption" else [CAT] * 2
    assert headings(figure) == [f"“{caption}”: {title}" for caption, title in zip(captions, titles, strict=True)]
    assert [len(panels(part)) for part in figure.subfigs] == [5, 5]


def test_two_estimators_have_a_part_each_and_a_method_with_other_arguments_in_its_metagame_has_one(pictures, tmp_path):
    first = job(tmp_path, "first", pictures, [CAT], attribution__method__steps=32)
    meta = job(tmp_path, "meta", pictures, [CAT], fill=1.0, attribution__method__steps=16)
    assert headings(illustration_figure([first, meta])) == [f"“{CAT}”: X, Model"]
    trees = job(tmp_path, "meta", pictures, [CAT], fill=2.0, attribution__method__steps=16, estimator__name="trees")
    results = tell_apart([first, meta, trees])
    rows = numbers(illustration_table(results, "tiny"), "method")
    assert rows == {"Meta-X (estimator=exact)": {1.0}, "Meta-X (estimator=trees)": {2.0}}
    assert len(headings(illustration_figure(results))) == 3


def test_a_picture_that_is_gone_is_left_out_of_the_figure_and_not_of_the_table(pictures, tmp_path):
    result = job(tmp_path, "meta", pictures)
    Path(pictures[1]).unlink()
    assert headings(illustration_figure([result])) == [f"“{LONG}”: Meta-X, Model"]
    captions = {row["caption"] for row in illustration_table([result], "tiny").rows}
    assert captions == {LONG, result.sample_ids[1]}
    Path(pictures[0]).unlink()
    assert illustration_figure([result]) is None


def test_a_caption_of_one_token_has_no_pairs(pictures, tmp_path):
    result = job(tmp_path, "pairs", pictures, ["cat"])
    assert illustration_table([result], "tiny").rows == []
    assert drawn(illustration_figure([result]))


def test_a_part_that_reads_as_the_title_of_the_caption_does_not_replace_its_map(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(CAPTIONS, "the whole caption", ["whole caption"])
    figure = illustration_figure([job(tmp_path, "first", pictures, ["the whole caption", CAT])])
    assert len([title for title in panels(figure) if title]) == 3  # two captions and a part
