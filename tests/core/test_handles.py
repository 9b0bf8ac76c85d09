"""What can be done with a result: names, pairs, tables, drawings, files, and several games at once."""

import builtins
import json
import zipfile
from dataclasses import fields, replace

import matplotlib
import matplotlib.figure
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagame import AttributionGame, GameError, MetaAttributions, UserError, meta_attributions, progress_bar
from metagame.report.labels import told_apart
from tests.conftest import close, endogenous_games, random_game, unchecked

matplotlib.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore:There are as many targets as players")
WORDS = ("never", "was", "rude")
BITS = 1 << np.arange(3)


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    matplotlib.pyplot.close("all")


def game_of(values, **names):
    return AttributionGame(lambda coalitions: values[coalitions @ BITS], 3, **names)


def words(**settings):
    return meta_attributions(game_of(random_game(3, 3), players=WORDS), **settings)


def patches(order=1):
    game = game_of(random_game(3, 4), players=WORDS, targets=["image"], grid=(2, 2))
    return replace(meta_attributions(game, order=order), method="Map", picture=np.zeros((8, 8, 3), np.uint8))


def pairs_of_patches():
    return patches(order=2)


def undirected():
    values = np.array([[1.0, 3.0, -4.0], [3.0, 2.0, 0.0], [-4.0, 0.0, 5.0]])
    return MetaAttributions(values, directed=False, index="stii", players=WORDS)


def formulas():
    return MetaAttributions(np.array([["x", 0], [0, 1]], dtype=object))


def unknown():
    return MetaAttributions(np.array([[1.0, np.nan], [0.0, 2.0]]))


def test_a_game_names_what_it_plays():
    phi = words(endogenous=True)
    assert phi.players == phi.targets == WORDS
    assert patches().targets == ("image",)
    assert words(endogenous=False).targets is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"players": ["a"]}, "players has 1 names for 3 players: give one for each"),
        ({"targets": ["a", "b"]}, "targets has 2 names, but 4 targets are attributed"),
        ({"targets": ["a", "b"], "grid": (2, 2)}, r"grid=\(2, 2\) has 4 patches, but 4 targets are attributed"),
        ({"grid": (3, 1)}, r"grid=\(3, 1\) has 3 patches, but 4 targets"),
    ],
)
def test_names_of_another_number_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        meta_attributions(game_of(random_game(3, 4), **names), endogenous=False)
    with pytest.raises(UserError, match=message):
        MetaAttributions(np.zeros((4, 3)), **{name: tuple(value) for name, value in names.items()})


@pytest.mark.parametrize(
    ("values", "others", "message"),
    [
        (np.zeros((4, 3)), {"order": 2}, r"values of shape \(4, 3\) do not fit order=2"),
        (np.zeros((4, 3, 3)), {}, r"values of shape \(4, 3, 3\) do not fit order=1"),
        (np.zeros((4, 3)), {"order": "1"}, "do not fit order='1'"),
        ([[1.0]], {}, "values is of type list: give a numpy array"),
        (np.zeros((4, 3)), {"first_order": [0.0] * 4}, "first_order is of type list: give a numpy array"),
        (np.zeros((4, 3)), {"standard_error": np.zeros(4)}, r"standard_error has shape \(4,\), but .* need \(4, 3\)"),
        (np.zeros((4, 3)), {"first_order": np.zeros(3)}, r"first_order has shape \(3,\), but .* need \(4,\)"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused_at_once(values, others, message):
    with unchecked(), pytest.raises(UserError, match=message):
        MetaAttributions(values, **others)


def test_repr_is_short_and_says_what_was_found():
    lines = repr(replace(patches(), method="Grad-ECLIP")).splitlines()
    assert lines[0] == "MetaAttributions(Grad-ECLIP, exogenous, order 1, 3 players, 4 targets, 8 evaluations)"
    assert "evaluations" not in repr(replace(patches(), n_evaluations=0))
    assert lines[1].count("→ image (") == 3
    assert lines[2].startswith("  residual: at most ")
    assert max(map(len, lines)) < 120
    assert repr(formulas()).count("\n") == 0
    assert "some values are NaN or infinite" in repr(unknown())
    assert "strongest: none" in repr(MetaAttributions(np.eye(2)))


@given(values=endogenous_games(st.just(3)), k=st.integers(1, 8))
def test_top_pairs_are_the_largest_influences_on_others(values, k):
    phi = meta_attributions(game_of(values), endogenous=True)
    found = phi.top_pairs(k)
    others = np.abs(phi.values[~np.eye(3, dtype=bool)])
    assert close([abs(pair.value) for pair in found], sorted(others[others > 0], reverse=True)[:k])
    for pair in found:
        (player,) = pair.players
        assert phi.values[int(pair.target[-1]), int(player[-1])] == pair.value


def test_top_pairs_of_an_undirected_matrix_have_each_pair_once():
    assert list(map(str, undirected().top_pairs())) == ["never ↔ rude −4", "never ↔ was +3"]


def test_top_pairs_of_order_two_are_sets_of_players_with_their_error():
    phi = patches(order=2)
    (first,) = phi.top_pairs(1)
    row, column = int(first.target[7]), int(first.target[10])
    places = [WORDS.index(name) for name in first.players] * 2
    assert phi.values[2 * row + column, places[0], places[1]] == first.value
    assert abs(first.value) == np.abs(phi.values).max()
    assert first.standard_error == 0


def test_what_a_concept_does_to_its_own_map_is_no_pair():
    values = np.array([[9.0, 1.0], [8.0, 2.0], [3.0, 7.0], [4.0, 6.0]])
    phi = MetaAttributions(values, players=("one", "two"), targets=("one", "two"), grid=(1, 2))
    of_one, of_two = ["one → two (0, 1) +4", "one → two (0, 0) +3"], ["two → one (0, 1) +2", "two → one (0, 0) +1"]
    assert list(map(str, phi.top_pairs(9))) == of_one + of_two


def test_names_that_occur_twice_are_told_apart_even_from_those_that_look_like_a_place():
    phi = meta_attributions(game_of(random_game(3, 3), players=["so", "so", "good"]), endogenous=True)
    assert set(phi.to_dataframe()["player"]) == {"so (1)", "so (2)", "good"}
    assert told_apart(["a", "a", "b"]) == ["a (1)", "a (2)", "b"]
    assert told_apart(["a", "a", "a (1)"]) == ["a (1)", "a (2)", "a (1) (3)"]


@pytest.mark.parametrize("make", [words, patches, pairs_of_patches, lambda: words(endogenous=True, order=2)])
def test_the_data_frame_has_a_row_for_each_set_of_players_and_target(make):
    phi = make()
    table = phi.to_dataframe()
    keys = ["player"] if phi.order == 1 else ["player_1", "player_2"]
    for row in table.itertuples():
        target = WORDS.index(row.target) if phi.grid is None else 2 * row.row + row.column
        assert row.value == phi.values[target, *(WORDS.index(getattr(row, key)) for key in keys)]
        assert row.standard_error == 0
    assert len(table) == len(phi.values) * (3 if phi.order == 1 else 6)
    assert not table.duplicated([name for name in table if name not in ("value", "standard_error")]).any()


@pytest.mark.parametrize("make", [words, patches, pairs_of_patches, undirected])
def test_the_xarray_dataset_has_the_same_arrays_by_name(make):
    phi = make()
    data = phi.to_xarray()
    assert np.array_equal(data["values"].to_numpy().reshape(phi.values.shape), phi.values)
    assert data.attrs["n_evaluations"] == phi.n_evaluations
    if phi.grid is not None:
        place = (1,) if phi.order == 1 else (1, 2)
        at = {"player": "was"} if phi.order == 1 else {"player_1": "was", "player_2": "rude"}
        assert data["values"].sel(target="image", row=1, column=0, **at) == phi.values[2, *place]
        assert data["first_order"].sel(target="image").shape == (2, 2)


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_dataframe"), ("xarray", "to_xarray")])
def test_a_package_that_is_missing_is_named_in_one_sentence(package, method, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf"{method}\(\) needs {package}, which is not installed: "):
        getattr(words(), method)()


@pytest.mark.parametrize("make", [words, patches, pairs_of_patches, undirected])
def test_a_saved_result_is_the_same_when_loaded_and_nothing_is_pickled(make, tmp_path):
    phi, path = make(), tmp_path / "phi.npz"
    phi.save(path)
    loaded = MetaAttributions.load(path)
    for field in fields(MetaAttributions):
        before, after = getattr(phi, field.name), getattr(loaded, field.name)
        assert np.array_equal(before, after) if isinstance(before, np.ndarray) else before == after, field.name
    assert list(tmp_path.iterdir()) == [path]
    with zipfile.ZipFile(path) as file:
        assert not any(b"|O" in file.read(name)[:128] for name in file.namelist())


def with_about(path, change):
    """The file with another text in it."""
    arrays = dict(np.load(path))
    about = change(json.loads(str(arrays.pop("about"))))
    np.savez(path, about=np.array(json.dumps(about)), **arrays)


DAMAGED = "is damaged, or was not written by"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "does not exist: give the path of a file that"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), DAMAGED),
        (lambda path: path.write_text("no archive"), DAMAGED),
        (lambda path: np.savez(path, values=np.zeros((2, 2))), DAMAGED),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), DAMAGED),
        (lambda path: np.savez(path, a=np.array([{}], dtype=object)), DAMAGED),
        (lambda path: with_about(path, lambda about: about | {"version": 99}), "has version 99, but this"),
        (lambda path: with_about(path, lambda about: about | {"strange": 1}), DAMAGED),
        (lambda path: with_about(path, lambda about: [about]), DAMAGED),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused_in_one_sentence(spoil, message, tmp_path):
    path = tmp_path / "phi.npz"
    words().save(path)
    spoil(path)
    with pytest.raises(UserError, match=message):
        MetaAttributions.load(path)


@pytest.mark.parametrize("make", [words, patches, pairs_of_patches, undirected, formulas, unknown])
def test_a_notebook_shows_a_table(make):
    shown = replace(make(), method="<b>")._repr_html_()
    assert "&lt;b&gt;" in shown
    assert {formulas: "x", unknown: "nan"}.get(make, "never") in shown


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (words, None),
        (words, "arrows"),
        (undirected, "arrows"),
        (patches, None),
        (patches, "matrix"),
        (patches, "arrows"),
        (lambda: replace(patches(), picture=None), "maps"),
        (lambda: meta_attributions(game_of(random_game(3, 5)), endogenous=False), "arrows"),
        (lambda: MetaAttributions(np.ones((8, 4)), endogenous=False, grid=(2, 2)), "maps"),
    ],
)
def test_a_result_is_drawn_on_the_axes_that_are_given(make, kind):
    figure = matplotlib.figure.Figure()
    axes = figure.subplots()
    assert make().plot(axes, kind) is axes
    figure.canvas.draw()
    assert axes.get_title()


def test_drawings_with_one_limit_can_be_compared():
    assert words().plot(limit=7.0).images[0].get_clim() == (-7.0, 7.0)
    axes = patches().plot(kind="arrows", top=4, limit=1e-3)
    assert {line.get_linewidth() for line in axes.lines} == {4.0}
    assert len(axes.lines) == 3 * 4


@pytest.mark.parametrize(
    ("make", "act", "message"),
    [
        (words, lambda phi: phi.plot(kind="pie"), "kind='pie' is unknown: choose one of matrix, arrows, maps"),
        (words, lambda phi: phi.plot(kind="maps"), "kind='maps' needs targets that are patches of an image"),
        (pairs_of_patches, lambda phi: phi.plot(), "but these are values of order 2"),
        (formulas, lambda phi: phi.plot(), "but these are formulas"),
        (formulas, lambda phi: phi.top_pairs(), "formulas, which cannot be ranked"),
        (unknown, lambda phi: phi.top_pairs(), "1 of the values are NaN or infinite, and cannot be ranked"),
        (formulas, lambda phi: phi.save("x"), "formulas, which cannot be saved as arrays"),
        (words, lambda phi: phi.top_pairs(0), "k=0 must be a positive integer"),
        (words, lambda phi: phi.plot(top=0), "top=0 must be a positive integer"),
        (words, lambda phi: phi.plot(top=3), "top=3 would change nothing in kind='matrix'"),
        (words, lambda phi: phi.plot(limit=0), "limit=0 must be a positive number"),
        (words, lambda phi: phi.plot(limit="1"), "limit='1' must be a positive number"),
        (words, lambda phi: phi.save("/nowhere/phi.npz"), "phi.npz cannot be written"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(make, act, message):
    with unchecked(), pytest.raises(UserError, match=message):
        act(make())


def test_a_game_of_torch_is_given_tensors():
    x = torch.arange(1.0, 4.0, dtype=torch.float64)

    def attribute(coalitions):
        masked = torch.where(coalitions, x, 0.0)
        return masked * masked.sum(1, keepdim=True)

    tensors = meta_attributions(AttributionGame.of_torch(attribute, 3, players=WORDS))
    arrays = meta_attributions(AttributionGame(lambda c: attribute(torch.as_tensor(c)), 3))
    assert np.array_equal(tensors.values, arrays.values)
    assert tensors.players == WORDS
    with pytest.raises(GameError, match=r"AttributionGame\.of_torch gives coalitions as tensors"):
        meta_attributions(AttributionGame(attribute, 3))
    with unchecked(), pytest.raises(GameError, match="fn is of type ndarray: give a function"):
        AttributionGame.of_torch(np.zeros(8), 3)


def test_a_list_of_games_is_played_with_the_same_settings_and_one_progress():
    games = [AttributionGame.from_values(random_game(5, 2, seed)) for seed in range(3)]
    settings, seen = {"estimator": "permutation", "endogenous": False, "budget": 20, "seed": 1}, []
    found = meta_attributions(games, **settings, progress=lambda *now: seen.append(now))
    for game, phi in zip(games, found, strict=True):
        assert np.array_equal(phi.values, meta_attributions(game, **settings).values)
    done = sum(phi.n_evaluations for phi in found)
    assert seen[-1] == (done, done)
    assert seen == sorted(seen)
    assert meta_attributions([]) == []


def test_an_error_names_the_game_of_a_list():
    games = [AttributionGame.from_values(random_game(3, 2)), AttributionGame(lambda c: c / 0, 3)]
    with np.errstate(all="ignore"), pytest.raises(GameError, match=r"game\[1\]: fn returned nan"):
        meta_attributions(games, endogenous=False)
    with unchecked(), pytest.raises(GameError, match=r"game\[0\]: game is of type int: give an AttributionGame"):
        meta_attributions([3])


def test_a_progress_bar_is_told_of_what_is_done():
    with progress_bar("inputs") as progress:
        words(progress=progress)
