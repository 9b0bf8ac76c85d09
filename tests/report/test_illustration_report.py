"""Figures 2, 8 and 9 from records that are written here: maps of captions, tokens and pairs."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metagame.benchmarks.digits import Digits
from metagame.benchmarks.illustration import CAPTION, PART
from metagame.digests import file_digest
from metagame.images import composite
from metagame.report.illustration import MOST_PAIRS, illustration_figure, illustration_table
from metagame.report.results import tell_apart
from metagame.report.table import write_table
from tests.conftest import close
from tests.tiny.reports import Made, image_explained, made_up, only, stub_config

KINDS = {
    "first": {"name": "x", "meta": False},
    "meta": {"name": "meta_x", "meta": True},
    "pairs": {"name": "meta_x_pairs", "meta": True, "order": 2, "index": "ksv"},
}
CAPTIONS = ("black dog next to a yellow hydrant", "a cat")
PARTS = (["black dog", "hydrant"], [])
GRID = (4, 4)


@pytest.fixture
def picture(tmp_path):
    """Path of a picture of a three and a seven above a zero and a five."""
    path = tmp_path / "picture.png"
    composite([Digits().image(label, 0) for label in (3, 7, 0, 5)], 32).save(path)
    return str(path)


@pytest.fixture
def wide_picture(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(path)
    return str(path)


def id_of(image, caption):
    """What the sample of an image file with this caption is called."""
    return f"{Path(image).name} ({file_digest(Path(image))[:8]}): {caption}"


def ids(pictures, captions):
    """Of the samples with these pictures and captions."""
    return [id_of(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]


def synthetic(tmp_path, kind, *pictures, captions=CAPTIONS, parts=PARTS, done=(0, 1), failed=(), fill=None, **changes):
    """A job of one kind with random maps, or maps that are ``fill`` everywhere."""
    rng = np.random.default_rng(len(kind))
    examples = [
        {"image": image, "caption": caption, "parts": part}
        for image, caption, part in zip(pictures, captions, parts, strict=True)
    ]
    cfg = stub_config(
        tmp_path,
        name="figure2",
        attribution={"label": "X", "base": "x"} | KINDS[kind],
        benchmark={"name": "illustration", "_target_": "metagame.benchmarks.illustration.Illustration"}
        | {"examples": examples, "side": 32},
        **changes,
    )

    def drawn(*shape):
        return rng.normal(size=shape) if fill is None else np.full(shape, float(fill))

    made = {}
    for place in done:
        tokens = captions[place].split()
        questions = {CAPTION: tokens} | {f"{PART}{part}": part.split() for part in parts[place]}
        explanations = {}
        for question, players in questions.items():
            n = len(players)
            values = {"first": None, "meta": drawn(16, n), "pairs": drawn(16, n, n)}[kind]
            if kind == "pairs":
                values = (values + values.transpose(0, 2, 1)) / 2
            order = 2 if kind == "pairs" else 1
            explanations[question] = image_explained(players, GRID, drawn(16), values, order)
        made[ids(pictures, captions)[place]] = Made({}, explanations)
    return only(made_up(cfg, made, failed=[ids(pictures, captions)[place] for place in failed]))


@pytest.fixture
def jobs(picture, wide_picture, tmp_path):
    """First-order, meta and pairs jobs of two captions, with random maps."""
    return [synthetic(tmp_path, kind, picture, wide_picture) for kind in KINDS]


def values_of(job, place):
    """The second-order values of a caption."""
    (record,) = [record for record in job.done if record.sample == job.sample_ids[place]]
    return job.explanations(record)[CAPTION].meta.values


def strongest(pairs):
    found = combinations(range(pairs.shape[1]), 2)
    return sorted(found, key=lambda pair: -np.abs(pairs[:, pair[0], pair[1]]).sum())[:MOST_PAIRS]


def keys(table):
    return [column.key for column in table.columns]


def test_the_table_has_a_row_for_each_token_and_for_the_strongest_pairs(jobs):
    table = illustration_table(jobs, "tiny")
    expected = []
    for place, caption in enumerate(CAPTIONS):
        tokens, matrix, pairs = caption.split(), values_of(jobs[1], place), values_of(jobs[2], place)
        expected += [(caption, token, values) for token, values in zip(tokens, matrix.T, strict=True)]
        expected += [(caption, f"{tokens[i]} + {tokens[j]}", pairs[:, i, j]) for i, j in strongest(pairs)]
    assert [(row["caption"], row["players"]) for row in table.rows] == [each[:2] for each in expected]
    for row, (_, _, values) in zip(table.rows, expected, strict=True):
        assert close(row["total"], values.sum(), 1e-6)
        assert close(row["largest"], values[np.abs(values).argmax()], 1e-6)
    assert table.n_samples == 2
    assert keys(table) == ["caption", "players", "total", "largest"]
    assert table.notes[0].startswith("Model: Model. Units")


def test_two_pictures_with_one_caption_have_their_own_maps_and_names_in_the_table(picture, wide_picture, tmp_path):
    job = synthetic(tmp_path, "meta", picture, wide_picture, captions=["a cat", "a cat"], parts=[[], []])
    expected = np.concatenate([values_of(job, place).sum(0) for place in range(2)])
    rows = illustration_table([job], "tiny").rows
    assert [(row["caption"], row["players"]) for row in rows] == [("a cat", "a"), ("a cat", "cat")] * 2
    assert [row["sample"] for row in rows[::2]] == job.sample_ids
    assert close(np.array([row["total"] for row in rows]), expected, 1e-6)


def drawn(figure):
    """Draw it coarsely: what cannot be drawn raises."""
    figure.savefig(io.BytesIO(), dpi=20, format="png")


def panels(figure):
    """Title by panel, of the axes that show a picture; the colour bars do not."""
    nested = [title for part in figure.subfigs for title in panels(part)]
    return nested or [axes.get_title() for axes in figure.axes if axes.images]


def headings(figure):
    return [part.get_suptitle() for part in figure.subfigs]


def test_the_figure_has_panels_of_parts_tokens_and_the_strongest_pairs(jobs):
    figure = illustration_figure(jobs)
    drawn(figure)
    tokens = CAPTIONS[0].split()
    joint = [f"{tokens[i]} + {tokens[j]}" for i, j in strongest(values_of(jobs[2], 0))]
    expected = ["", "whole caption", "black dog", "hydrant", *tokens, *joint]
    expected += ["", "whole caption", "a", "cat", "a + cat"]
    assert sorted(panels(figure)) == sorted(expected)


def test_a_part_that_reads_as_the_title_of_the_caption_does_not_replace_its_map(picture, wide_picture, tmp_path):
    chosen = {"captions": ["the whole caption", "a cat"], "parts": [["whole caption"], []]}
    figure = illustration_figure([synthetic(tmp_path, "first", picture, wide_picture, **chosen)])
    assert len([title for title in panels(figure) if title]) == 3  # two captions and a part


def test_the_figure_labels_lines_by_token(jobs):
    labels = [[text.get_text() for text in axes.texts] for axes in illustration_figure(jobs).axes if axes.lines]
    assert labels == [caption.split() for caption in CAPTIONS]


def test_the_figure_says_caption_and_model(jobs):
    assert headings(illustration_figure(jobs)) == [f"“{caption}” (Model)" for caption in CAPTIONS]


@pytest.mark.parametrize("shown", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_a_report_of_some_of_the_jobs_has_what_they_computed(jobs, tmp_path, shown):
    chosen = [jobs[place] for place in shown]
    table = illustration_table(chosen, "tiny")
    write_table(table, tmp_path)
    drawn(illustration_figure(chosen))
    assert any("+" in row["players"] for row in table.rows) is (2 in shown)
    assert any(row["players"] == "dog" for row in table.rows) is (1 in shown)


def test_a_failed_sample_is_named_and_the_others_are_drawn(picture, wide_picture, tmp_path):
    chosen = [
        synthetic(tmp_path, "first", picture, wide_picture),
        synthetic(tmp_path, "meta", picture, wide_picture, done=[1], failed=[0]),
    ]
    table = illustration_table(chosen, "tiny")
    drawn(illustration_figure(chosen))
    assert [row["players"] for row in table.rows] == ["a", "cat"]
    assert table.n_samples == illustration_table(chosen[::-1], "tiny").n_samples == 2
    name = id_of(picture, CAPTIONS[0])
    assert f"Meta-X: sample {name} failed: no memory for {name}" in table.notes


@pytest.mark.parametrize("done", [[0], [1]])
def test_a_sample_that_no_job_finished_is_not_counted_and_does_not_stop_the_figure(
    picture, wide_picture, tmp_path, done
):
    chosen = [synthetic(tmp_path, kind, picture, wide_picture, done=done) for kind in ("first", "meta")]
    drawn(illustration_figure(chosen))
    table = illustration_table(chosen, "tiny")
    assert {row["caption"] for row in table.rows} == {CAPTIONS[done[0]]}
    assert table.n_samples == 1


CAT = {"captions": ["a cat"], "parts": [[]], "done": [0]}
OTHER = {"model__name": "other", "model__label": "Other"}


def sweep(tmp_path, picture, fills, **fixed):
    """All three kinds of job for each change of the config, by the number that their maps have everywhere."""
    jobs = [
        synthetic(tmp_path, kind, picture, **(CAT | fixed | change), fill=fill)
        for kind in KINDS
        for fill, change in fills.items()
    ]
    return tell_apart(jobs)


def numbers(table, *names):
    """The largest patches of each group of rows that these columns tell apart."""
    found = {}
    for row in table.rows:
        found.setdefault(tuple(row[name] for name in names), set()).add(row["largest"])
    return found


def test_jobs_of_two_models_are_not_mixed(picture, tmp_path):
    results = sweep(tmp_path, picture, {1.0: {}, 2.0: OTHER})
    table = illustration_table(results, "tiny")
    assert keys(table)[0] == "model"
    assert numbers(table, "model") == {("Model",): {1.0}, ("Other",): {2.0}}
    assert len(table.rows) == 2 * 3
    assert not any("Model:" in note for note in table.notes)
    figure = illustration_figure(results)
    drawn(figure)
    assert headings(figure) == ["“a cat” (Model)", "“a cat” (Other)"]
    assert [panels(part) for part in figure.subfigs] == [["", "whole caption", "a", "cat", "a + cat"]] * 2


def test_models_of_one_label_are_told_apart(picture, tmp_path):
    results = sweep(tmp_path, picture, {1.0: {}, 2.0: {"model__name": "other"}})
    table = illustration_table(results, "tiny")
    assert numbers(table, "setting") == {("model=model",): {1.0}, ("model=other",): {2.0}}
    assert headings(illustration_figure(results)) == ["“a cat” (Model, model=model)", "“a cat” (Model, model=other)"]


def test_jobs_of_two_seeds_are_not_mixed(picture, tmp_path):
    results = sweep(tmp_path, picture, {1.0: {"seed": 1}, 2.0: {"seed": 2}})
    assert numbers(illustration_table(results, "tiny"), "setting") == {("seed=1",): {1.0}, ("seed=2",): {2.0}}
    assert headings(illustration_figure(results)) == ["“a cat” (Model, seed=1)", "“a cat” (Model, seed=2)"]


def test_a_sweep_over_captions_shows_them_all(picture, tmp_path):
    results = sweep(tmp_path, picture, {1.0: {}, 2.0: {"captions": ["two dogs"]}})
    table = illustration_table(results, "tiny")
    assert keys(table)[0] == "caption"
    assert numbers(table, "caption") == {("a cat",): {1.0}, ("two dogs",): {2.0}}
    assert table.n_samples == 2
    assert headings(illustration_figure(results)) == ["“a cat” (Model)", "“two dogs” (Model)"]


def test_two_methods_have_a_part_each(picture, tmp_path):
    other = {
        "attribution__base": "y",
        "attribution__label": "Y",
        "attribution__method": {"_target_": "builtins.object"},
    }
    results = sweep(tmp_path, picture, {1.0: {}, 2.0: other})
    table = illustration_table(results, "tiny")
    assert numbers(table, "method") == {
        ("Meta-X",): {1.0}, ("Meta-X, pairs",): {1.0}, ("Meta-Y",): {2.0}, ("Meta-Y, pairs",): {2.0},
    }  # fmt: skip
    figure = illustration_figure(results)
    assert headings(figure) == ["“a cat” (Model, X)", "“a cat” (Model, Y)"]
    assert [panels(part) for part in figure.subfigs] == [["", "whole caption", "a", "cat", "a + cat"]] * 2


def test_two_options_of_a_method_have_a_part_each(picture, tmp_path):
    fills = {1.0: {"attribution__method__heads": "one"}, 2.0: {"attribution__method__heads": "all"}}
    results = sweep(tmp_path, picture, fills)
    table = illustration_table(results, "tiny")
    assert numbers(table, "method") == {
        ("Meta-X (method.heads=one)",): {1.0}, ("Meta-X, pairs (method.heads=one)",): {1.0},
        ("Meta-X (method.heads=all)",): {2.0}, ("Meta-X, pairs (method.heads=all)",): {2.0},
    }  # fmt: skip
    figure = illustration_figure(results)
    assert headings(figure) == ["“a cat” (Model, X (method.heads=one))", "“a cat” (Model, X (method.heads=all))"]
    assert [panels(part) for part in figure.subfigs] == [["", "whole caption", "a", "cat", "a + cat"]] * 2


def test_two_estimators_have_a_part_each(picture, tmp_path):
    fills = {1.0: {"estimator__name": "exact"}, 2.0: {"estimator__name": "trees"}}
    jobs = [synthetic(tmp_path, "meta", picture, **(CAT | change), fill=fill) for fill, change in fills.items()]
    results = tell_apart([synthetic(tmp_path, "first", picture, **CAT), *jobs])
    rows = numbers(illustration_table(results, "tiny"), "method")
    assert rows == {("Meta-X (estimator=exact)",): {1.0}, ("Meta-X (estimator=trees)",): {2.0}}
    assert len(headings(illustration_figure(results))) == 3


def test_a_method_with_other_arguments_in_its_metagame_is_one_part(picture, tmp_path):
    first = synthetic(tmp_path, "first", picture, **CAT, attribution__method__steps=32)
    meta = synthetic(tmp_path, "meta", picture, **CAT, attribution__method__steps=16)
    assert headings(illustration_figure([first, meta])) == ["“a cat” (Model)"]


def test_a_picture_that_is_gone_is_left_out_of_the_figure_and_not_of_the_table(picture, wide_picture, tmp_path):
    jobs = [synthetic(tmp_path, "meta", picture, wide_picture)]
    Path(wide_picture).unlink()
    assert headings(illustration_figure(jobs)) == [f"“{CAPTIONS[0]}” (Model)"]
    captions = {row["caption"] for row in illustration_table(jobs, "tiny").rows}
    assert captions == {CAPTIONS[0], jobs[0].sample_ids[1]}
    Path(picture).unlink()
    assert illustration_figure(jobs) is None


def test_a_caption_of_one_token_has_no_pairs(picture, tmp_path):
    job = synthetic(tmp_path, "pairs", picture, captions=["cat"], parts=[[]], done=[0])
    assert illustration_table([job], "tiny").rows == []
    drawn(illustration_figure([job]))
