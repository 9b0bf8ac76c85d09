"""Lines from words to patches, and maps over a picture."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from metagame.estimators.exact import MAX_PLAYERS
from metagame.report.maps import TOP, EdgeScale, draw_edges, draw_map, edge_scale, heat_scale, word_colors
from tests.conftest import close


def drawn(maps, pieces, scale=None, top=TOP):
    axes = Figure().subplots()
    picture = Image.new("RGB", (64, 64), (40, 90, 160))
    draw_edges(axes, picture, list(pieces), maps.reshape(8, 8, -1), scale or edge_scale([maps]), top)
    return axes


def ends(axes):
    """Of each line the place of the patch it ends at: (row, column) in an 8 x 8 grid."""
    return [tuple(int((line.get_data()[axis][1] + 0.5) // 8) for axis in (1, 0)) for line in axes.lines]


def test_each_word_in_order_has_lines_of_its_colour_to_its_ten_patches_of_largest_size():
    maps = np.random.default_rng(1).normal(size=(64, 4))
    scale = edge_scale([maps, 3 * maps])
    assert scale.largest == np.abs(3 * maps).max()
    axes, colors = drawn(maps, "abcd", scale), word_colors("abcd")
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert list(places) == sorted(places, key=lambda word: places[word][0]) == list("abcd")
    for word, color, values in zip("abcd", colors, maps.T, strict=True):
        lines = {end: line for end, line in zip(ends(axes), axes.lines, strict=True) if line.get_color() == color}
        expected = np.argsort(-np.abs(values))[:TOP]
        assert set(lines) == {divmod(int(patch), 8) for patch in expected}
        assert {(line.get_xdata()[0], line.get_ydata()[0]) for line in lines.values()} == {places[word]}
        assert all(close(lines[divmod(int(at), 8)].get_linewidth(), scale.width(values[at])) for at in expected)
    assert TOP == 10
    assert len(set(colors)) == 4
    assert [len(drawn(maps, "abcd", top=top).lines) for top in (1, 16, 64)] == [4, 64, 256]


def test_values_beyond_the_scale_are_drawn_as_its_largest():
    maps = np.array([[0.5, 1.0, 4.0, -40.0] + 60 * [0.0]]).T
    axes = drawn(maps, ["a"], EdgeScale(1.0))
    assert close(sorted(line.get_linewidth() for line in axes.lines), [0.3 + 3.7 / 2, 4, 4, 4])
    assert max(tint.get_facecolor()[3] for tint in axes.patches) == 0.55
    assert edge_scale([np.zeros((4, 2))]).width(0.0) < edge_scale([]).width(1.0)


def test_lines_of_negative_values_are_dashed_and_those_of_zeros_are_not_there():
    maps = np.zeros((64, 2))
    maps[[3, 20], 0] = 1.0, -0.5
    axes = drawn(maps, ["a", "b"])
    dashed = {end: line.is_dashed() for end, line in zip(ends(axes), axes.lines, strict=True)}
    assert dashed == {(0, 3): False, (2, 4): True}
    assert ends(drawn(np.zeros((64, 2)), ["a", "b"])) == []


def test_as_many_pieces_as_an_exact_metagame_plays_have_colours_of_their_own_and_more_are_drawn_too():
    assert len(set(word_colors("abcdefghijkl"))) == MAX_PLAYERS
    assert [text.get_text() for text in drawn(np.ones((64, 13)), ["one"] * 13).texts] == ["one"] * 13


def test_heat_maps_share_a_scale_with_zero_in_its_middle():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, 64)) * [[1.0], [5.0]]
    shared = heat_scale([first, second]).norm
    assert shared.vmin == -shared.vmax
    assert np.abs(first).max() < shared.vmax <= np.abs(second).max()
    assert heat_scale([-first]).norm.vmax == heat_scale([first]).norm.vmax
    for nothing in ([], [np.zeros(4)]):
        assert heat_scale(nothing).norm.vmin == -heat_scale(nothing).norm.vmax < 0


def tinted(values, scale):
    """The colours of a drawn map at the middle of each patch, ``(P, 3)``."""
    axes = Figure().subplots()
    draw_map(axes, Image.new("RGB", (64, 64), (128, 128, 128)), values.reshape(8, 8), scale)
    return np.asarray(axes.images[-1].get_array())[4::8, 4::8, :3].reshape(64, 3)


def test_a_map_tints_positive_and_negative_patches_as_its_scale_says_and_leaves_the_others_grey():
    values = np.zeros(64)
    values[[9, 50]] = 1.0, -1.0
    scale = heat_scale([values])
    colors = tinted(values, scale)
    assert np.array_equal(tinted(np.full(64, -1.0), scale)[0], colors[50])
    others = np.delete(colors, [9, 50], axis=0)
    assert np.ptp(others, axis=0).max() == 0
    assert np.ptp(others[0]) < 0.05
    assert np.abs(colors[9] - colors[50]).max() > 0.2
    assert np.abs(colors[9] - others[0]).max() > 0.2
