"""The page of results: what it holds, and what a browser shows of it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hydra import compose
from PIL import Image

from metagame.cli import main
from metagame.contracts import WHOLE
from metagame.errors import UserError
from metagame.jobs.run import run_job
from metagame.report.experiment import write_report
from metagame.report.results import read_job
from metagame.report.table import write_table
from metagame.viewer.compare import write_comparison
from metagame.viewer.pack import LARGEST_WEBP, figure_uri, pack, picture_uri
from metagame.viewer.write import write_page
from tests.conftest import unchecked
from tests.tiny.jobs import ROOT, shipped_configs
from tests.tiny.pages import sentence_config
from tests.tiny.reports import TABLE

pytestmark = pytest.mark.slow

HOSTILE = "</script><b>bold</b> <img src=x onerror=alert(1)> &amp; '\" {{ 7 * 7 }}"
RESULTS = replace(TABLE, title="what is known <of> them", notes=["short", HOSTILE])
STUBS = {
    "first": {"attribution": [1.0, -2.0, 0.5, 0.0]},
    "arrow": {"entries": [[1, 2, -2.5]]},
    "many": {"entries": [[0, 1, 4.0], [1, 0, -8.0], [2, 1, 1.0], [1, 1, 3.0], [2, 0, 0.5]]},
    "strange": {"values": [[0.0, 1.5], [-2.0, 3.0], [4.0, 5.0]], "targets": ["u", "v", "w"]},
    "broken": {"error": f"no memory {HOSTILE}"},
}
REAL = {
    "addition": (["model=adder", "benchmark=addition"], ["sv", "meta_sv"]),
    "pointing": (["model=clip_vitb16", "benchmark=pointing_game"], ["grad_eclip", "meta_grad_eclip"]),
    "captions": (["model=clip_vitb16", "benchmark=illustration"], ["meta_grad_eclip_pairs"]),
    "painted": (
        ["model=flux_schnell", "benchmark=concepts", "attribution.method.directional=true"],
        ["meta_concept_attention"],
    ),
}


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """A scale's folder with an experiment of stub jobs, whose arrays are known, and its page."""
    folder = tmp_path_factory.mktemp("stub") / "tiny"
    for name, method in STUBS.items():
        run_job(sentence_config(folder / "sentences", name, **method))
    write_table(RESULTS, folder / "sentences")
    for name, text in (("one", "a b c d"), ("two", "x y z w")):  # one id, two samples
        run_job(sentence_config(folder / "twins", name, texts=[text], entries=[[0, 1, 1.0]]))
    write_page(folder, known=["sentences", "figure2", "table1"])
    return folder


@pytest.fixture
def copied(stub, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(stub, tmp_path / "copy" / "tiny")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A scale's folder with real jobs of every kind of view, and their configs."""
    folder = tmp_path_factory.mktemp("real") / "tiny"
    configs = {}
    with shipped_configs():
        for name, (parts, methods) in REAL.items():
            common = [*parts, "limit=2", f"output_dir={folder / name}"]
            configs[name] = [compose("config", overrides=[*common, f"attribution={each}"]) for each in methods]
            for cfg in configs[name]:
                run_job(cfg)
            write_report(configs[name])
        write_page(folder)
    return folder, configs


@pytest.fixture
def open_page(browser):
    """Open the page of a folder at a fragment; what it must never do is checked at the end."""
    pages = []

    def open_page(folder, fragment="", width=1280):
        page = browser.open((folder / "report" / "index.html").as_uri() + fragment, width)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        assert page.errors() == []
        assert [url for url in page.requests() if not url.startswith(("data:", "file:"))] == []
        local = [url for url in page.requests() if url.startswith("file:")]
        assert [url for url in local[1:] if "/report/samples/" not in url] == []
        page.close()


@pytest.fixture
def show(tmp_path, open_page):
    """Open the page of one stub job."""

    def show(fragment="", pairs=(), **job):
        cfg = sentence_config(tmp_path / "tiny" / "x", "m", **job)
        cfg.benchmark.pairs = list(pairs)
        run_job(cfg)
        write_page(tmp_path / "tiny")
        return open_page(tmp_path / "tiny", fragment)

    return show


def explanation_of(cfg, question=WHOLE):
    """Of a job's first sample."""
    (result,) = read_job(cfg)
    return result.explanations(result.done[0])[question]


def entries(page, panel):
    """The matrix that a panel shows."""
    data = "[+node.dataset.row, +node.dataset.column, +node.dataset.value]"
    cells = page.each(f"[data-panel={panel}] .matrix [data-row]", data)
    matrix = np.full([max(cell[axis] for cell in cells) + 1 for axis in (0, 1)], np.nan)
    for row, column, value in cells:
        matrix[row, column] = value
    return matrix


def arrows(page, panel):
    """Player, target, value and whether it is dashed, of each arrow."""
    data = "+node.dataset.player, +node.dataset.target, +node.dataset.value"
    dashed = "!!node.querySelector('.line').getAttribute('stroke-dasharray')"
    return sorted(page.each(f"[data-panel={panel}] .pair", f"[{data}, {dashed}]"))


def point_at(page, panel, row, column, grid):
    """Move the pointer over a patch of a large map; what both panels then say."""
    large = f"[data-panel={panel}] .large canvas"
    page.each(large, "node.scrollIntoView({block: 'center'})")
    left, right, top, bottom = page.box(large)
    x, y = left + (right - left) * (column + 0.5) / grid[1], top + (bottom - top) * (row + 0.5) / grid[0]
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    return page.texts(".large .readout")


def number(text):
    return float(text.rpartition(": ")[2].replace("−", "-"))


def as_shown(value):
    """To the three digits that the page writes."""
    return float(f"{value:.2e}")


def embedded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def focus(page, selector):
    page.each(selector, "node.focus()")


def go_to(page, fragment):
    """Change the address of a page that is open."""
    page.evaluate(f"location.hash = '{fragment}'")
    page.evaluate("new Promise((done) => setTimeout(done, 50))")


def click(page, panel, text):
    """Click the button of a panel that says so."""
    buttons = f"[...document.querySelectorAll('[data-panel={panel}] button')]"
    page.evaluate(f"{buttons}.find((node) => node.textContent === '{text}').click()")


def copied_rows(page, panel):
    """What the button to copy a panel gives."""
    page.evaluate("navigator.clipboard.writeText = async (text) => { globalThis.copied = text; }; 0")
    click(page, panel, "Copy as CSV")
    return pd.read_csv(io.StringIO(page.evaluate("globalThis.copied")))


def saved(folder, name):
    """The file that the browser saves there, once it is whole."""
    limit = time.monotonic() + 10
    while not (folder / name).exists():
        assert time.monotonic() < limit, [path.name for path in folder.iterdir()]
        time.sleep(0.02)
    return (folder / name).read_bytes()


# What every view has


@pytest.mark.parametrize("width", [1280, 320])
def test_every_view_of_real_jobs_is_drawn_without_an_error_and_within_the_window(real, open_page, width):
    page = open_page(real[0], width=width)
    shown = page.each("#experiment option", "node.value")
    assert set(shown) == set(REAL)
    for experiment in shown:
        page.choose("experiment", experiment)
        assert len(page.texts(".panel h3")) == min(2, len(page.texts("#a option")))
        assert "undefined" not in page.evaluate("document.body.innerText")
        for other in (3 * width, width):
            page.resize(other)
            assert page.evaluate("document.documentElement.scrollWidth") <= other


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(real, open_page):
    page = open_page(real[0], "#experiment=painted")
    found = page.each("#controls select, #controls input", "node.labels.length === 1 && node.tabIndex === 0")
    assert len(found) > 5
    assert all(found)


def test_the_page_is_dark_or_light_zooms_its_figures_prints_and_shares_only_what_is_shown(real, open_page):
    page = open_page(real[0], "#experiment=painted&question=all+players&patch=0.6,0.6")
    assert page.evaluate("Math.abs(document.getElementById('browser').getBoundingClientRect().top)") < 5
    keys = "[...new URLSearchParams(location.hash.slice(1)).keys()]"
    page.choose("pairs", 4)
    assert {"question", "item", "patch", "pairs"} <= set(page.evaluate(keys))
    page.choose("pairs", 10)
    page.choose("experiment", "addition")
    assert page.evaluate(keys) == ["experiment", "group", "sample", "a", "b"]
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    colors = [page.evaluate(paper)]
    for _ in range(2):
        page.press_on("#theme")
        colors.append(page.evaluate(paper))
    assert colors == ["rgb(255, 255, 255)", "rgb(22, 24, 27)", "rgb(255, 255, 255)"]
    page.press_on(".plot img")
    assert page.each("dialog img", "node.clientWidth === node.naturalWidth") == [True]
    page.press_on("dialog button")
    assert page.each("dialog img", "node.clientWidth > 1.2 * node.naturalWidth") == [True]
    page.press_on("dialog button:last-child")
    assert not any(page.each("dialog", "node.open"))
    page.call("Emulation.setEmulatedMedia", media="print")
    assert set(page.each("#controls, .panel .actions, #theme", "getComputedStyle(node).display")) == {"none"}


def luminance(color):
    """As WCAG 2 defines it, of ``#rrggbb``."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


BEHIND = {
    "paper": "ink faint link positive negative truth", "soft": "ink faint link truth", "chosen": "ink faint",
    "holds-back": "holds", "fails-back": "fails", "error-back": "error",
}  # fmt: skip


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("back", BEHIND)
def test_texts_have_the_contrast_with_what_is_behind_them_that_wcag_aa_asks_for(back, scheme):
    style = (ROOT / "src/metagame/viewer/assets/page.css").read_text(encoding="utf-8")
    colors = {name: pair[scheme] for name, *pair in re.findall(r"--([a-z-]+): light-dark\((#\w+), (#\w+)\)", style)}
    for text in BEHIND[back].split():
        light, dark = sorted((luminance(colors[text]), luminance(colors[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, text


# Maps


def test_another_sample_question_word_or_method_is_another_picture(real, open_page):
    page = open_page(real[0], "#experiment=pointing")
    seen, sample = [page.pixels("[data-panel=b] .large canvas")], page.each("[data-sample]", "node.dataset.sample")[1]
    for control, value in (("item", "one"), ("question", "2"), ("sample", sample)):
        page.choose(control, value)
        seen.append(page.pixels("[data-panel=b] .large canvas"))
    assert len({*seen, page.pixels("[data-panel=a] .large canvas")}) == 5
    page.choose("b", "Grad-ECLIP")
    assert "the same method" in page.texts("[data-panel=b] .hint")[0]


def test_a_map_has_the_value_of_the_array_at_every_patch_that_is_pointed_at(real, open_page):
    folder, configs = real
    first, meta = (explanation_of(cfg, "4") for cfg in configs["pointing"])
    page = open_page(folder, "#experiment=pointing&question=4&item=three")
    _, columns = first.grid
    for row, column in ((0, 0), (2, 1), (3, 3)):
        said = point_at(page, "b", row, column, first.grid)
        assert number(said[0]) == as_shown(first.attribution[columns * row + column])
        assert number(said[1]) == as_shown(meta.meta.values[columns * row + column, 2])
        assert said[1].startswith(f"three, row {row}, column {column}")


def test_pairs_of_words_have_maps_of_their_own(real, open_page):
    folder, configs = real
    explained = explanation_of(configs["captions"][0], "caption")
    page = open_page(folder, "#experiment=captions&question=caption")
    chosen = next(name for name in page.texts("[data-panel=a] .map span") if " + " in name)
    page.choose("item", chosen)
    said = point_at(page, "a", 1, 1, explained.grid)
    assert said[0].startswith(chosen)
    assert number(said[0]) == as_shown(explained.meta.values[explained.grid[1] + 1, 0, 1])


def test_what_is_known_to_be_right_is_beside_the_map_and_opened_first(real, open_page):
    page = open_page(real[0], "#experiment=pointing&question=4&item=three")
    truth = "[data-panel=a] .truth"
    assert page.texts(f"{truth} figcaption") == ["annotated: three"]
    drawn = np.asarray(embedded(page.pixels(f"{truth} canvas")).convert("RGB"), float)[[5, 160]][:, [5, 160]]
    greenish = drawn[..., 0] < 0.7 * drawn[..., 1]
    assert greenish.tolist() == [[False, False], [True, False]]  # three is the lower left quadrant
    page.choose("experiment", "painted")
    assert page.texts("[data-panel=a] .map.present span") == ["zero"]
    assert page.evaluate("document.getElementById('item').value") == "zero"


GRID = {"texts": ["a b"], "values": np.arange(12.0).reshape(6, 2).tolist(), "targets": ["image"], "grid": [2, 3]}


def test_a_grid_may_have_fewer_rows_than_columns(show):
    page = show("#item=b", **GRID, attribution=np.arange(1.0, 25, 4).tolist())
    assert page.texts("[data-panel=a] .map span") == ["a", "b", "all words"]
    assert point_at(page, "a", 1, 2, grid=(2, 3))[0] == "b, row 1, column 2: +11.0"


def test_the_focus_and_what_is_unfolded_stay_where_they_are_when_a_panel_is_drawn_anew(show):
    page = show(**GRID)
    page.evaluate("document.querySelector('details.source').open = true")
    page.evaluate("document.querySelectorAll('.map')[1].focus()")
    page.press_on(".map:not(.chosen)")
    assert page.evaluate("document.activeElement.dataset.name") == page.texts(".map.chosen span")[0] == "b"
    assert page.each("details.source", "node.open") == [True]
    assert "Enter" not in page.each(".large canvas", "node.ariaLabel")[0]


def test_influence_of_concepts_is_the_mean_over_patches_or_that_of_the_chosen_one(real, open_page):
    folder, configs = real
    explanation = explanation_of(configs["painted"][0], "all players")
    n, (rows, side) = len(explanation.players), explanation.grid
    directional = explanation.meta.values.reshape(n, rows * side, n).transpose(0, 2, 1)
    page = open_page(folder, "#experiment=painted&question=all+players")
    tolerance = float(np.abs(directional).max()) / 32767
    assert np.allclose(entries(page, "a"), directional.mean(2), rtol=0, atol=tolerance)
    focus(page, "[data-panel=a] .large canvas")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):  # the first step is to column 2
        page.press(key)
    page.settle()
    heading = page.texts("[data-panel=a] .influence h4")[0]
    row, column = (int(place) for place in re.search(r"row (\d+), column (\d+)", heading).groups())
    assert row * side + column > 0
    assert np.allclose(entries(page, "a"), directional[:, :, row * side + column], rtol=0, atol=tolerance)


# Matrices and arrows


def test_an_adders_matrix_and_first_order_bars_are_those_of_its_arrays(real, open_page):
    folder, configs = real
    explanation = explanation_of(configs["addition"][1])
    page = open_page(folder, "#experiment=addition")
    assert np.allclose(entries(page, "b"), explanation.meta.values, rtol=1e-6, atol=1e-6)
    bars = page.each("[data-panel=b] .value", "+node.dataset.value")
    assert np.allclose(bars, explanation.attribution, rtol=1e-6)


def test_annotated_pairs_are_framed_in_the_matrix(show):
    page = show(texts=["not so bad"], pairs=[["not", "bad"]], entries=[[0, 2, 1.0]])
    assert page.each("[data-panel=a] .token.annotated", "+node.dataset.token") == [0, 2]
    corner = "[+node.getAttribute('x'), +node.getAttribute('y')]"
    cells = "[data-row='0'][data-column='2'], [data-row='2'][data-column='0']"
    assert page.each("[data-panel=a] rect.annotated", corner) == page.each(f"[data-panel=a] :is({cells})", corner)
    assert "not + bad" in page.texts("#subject")[0]


def test_one_entry_is_one_arrow_from_its_player_to_its_target(stub, open_page):
    page = open_page(stub, "#experiment=sentences&sample=s0&a=first&b=arrow")
    assert (arrows(page, "a"), arrows(page, "b")) == ([], [[2, 1, -2.5, True]])
    head, line, player, target = (
        page.box(f"[data-panel=b] {part}") for part in (".head", ".line", "[data-token='2']", "[data-token='1']")
    )
    assert target[0] < head[0] < head[1] < target[1]
    assert head[2] >= target[3] - 1  # it comes from below: the target is the earlier token
    assert player[0] < line[1] < player[1]
    assert "c → b: −2.50" in page.texts("[data-panel=b] .pairs li")


def test_pairs_without_a_direction_are_lines_and_nothing_is_said_of_single_tokens(show):
    entries = [[0, 2, -2.0], [2, 0, -2.0], [0, 1, 1.0], [1, 0, 1.0], [1, 1, 9.0]]
    page = show(texts=["a b c"], entries=entries, directed=False)
    assert page.texts(".pairs li") == ["a ↔ c: −2.00", "a ↔ b: +1.00"]
    assert page.texts(".pair .head, .matrix .value") == []
    rows = copied_rows(page, "a")
    assert (set(rows.what), list(rows.value)) == ({"interaction of the pair"}, [0, 1, -2, 9, 0, 0])


def test_the_number_of_arrows_and_a_chosen_token_leave_the_strongest_that_touch_it(stub, open_page):
    page = open_page(stub, "#experiment=sentences&sample=s1&a=arrow&b=many")
    assert arrows(page, "b") == [[0, 1, -8.0, True], [0, 2, 0.5, False], [1, 0, 4.0, False], [1, 2, 1.0, False]]
    page.choose("pairs", 2)
    assert [pair[:2] for pair in arrows(page, "b")] == [[0, 1], [1, 0]]
    page.choose("pairs", 9)
    focus(page, "[data-panel=b] [data-token='2']")
    page.press("Enter")
    assert [pair[:2] for pair in arrows(page, "b")] == [[0, 2], [1, 2]]
    assert page.evaluate("document.activeElement.closest('[data-panel=b] [data-token]').dataset.token") == "2"


def test_two_methods_share_a_scale_unless_each_is_to_have_its_own_and_other_arrays_are_heat_maps(stub, open_page):
    page = open_page(stub, "#experiment=sentences&sample=s1&a=arrow&b=many")
    limits = ".panel", "+node.querySelector('.legend').dataset.limit"
    shared = page.each(*limits)
    page.evaluate("document.getElementById('scale-own').click()")
    own = page.each(*limits)
    assert shared[0] == shared[1]
    assert own[0] < own[1]
    assert "scale=own" in page.evaluate("location.hash")
    page.choose("a", "strange")
    assert page.each("[name=scale]", "[node.value, node.disabled]") == [["shared", True], ["own", False]]
    assert page.texts("[data-panel=a] h4") == ["influence of players on targets (3 × 2)"]


@pytest.mark.parametrize(
    ("method", "pointed", "told"),
    [
        ({"entries": [[0, 1, 4.0]]}, ".matrix", ["0", "2.00"]),
        ({"values": [[4.0, 1.0], [1.0, 2.0]], "targets": ["image"], "grid": [1, 2]}, ".large canvas", ["0", "1.00"]),
    ],
)
def test_two_standard_errors_are_said_of_each_value_also_where_they_are_none(show, method, pointed, told):
    page, said = show(texts=["a b"], standard_error=[[0.0, 1.0], [0.5, 0.0]], **method), []
    focus(page, pointed)
    for _ in range(2):
        page.press("ArrowRight")
        said += page.texts(".readout")
    assert [text.partition(" ± ")[2] for text in said] == told
    assert sorted(copied_rows(page, "a").standard_error.dropna()) == [0, 0, 0.5, 1]


# What leaves the page, and ways back to it


def test_a_view_leaves_the_page_as_csv_json_and_png_with_what_made_it(real, open_page, tmp_path):
    folder, configs = real
    first, meta = (explanation_of(cfg, "4") for cfg in configs["pointing"])
    page = open_page(folder, "#experiment=pointing&question=4&a=Meta-Grad-ECLIP&b=Grad-ECLIP")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    rows = copied_rows(page, "a")
    words = rows[rows.what == "influence of each word"].pivot(index=["row", "column"], columns="map", values="value")
    assert np.allclose(words[list(meta.meta.players)], meta.meta.values, rtol=1e-6)
    (result,) = read_job(configs["pointing"][0])
    record, stem = result.done[0], "pointing-zero-one-three-six_0-Grad-ECLIP-4"
    click(page, "b", "Save JSON")
    content = json.loads(saved(tmp_path, f"{stem}.json"))
    assert content["view"]["layers"][0]["values"] == [pytest.approx(first.attribution.tolist(), rel=1e-6)]
    assert (folder / "report" / content["exact_arrays"]).resolve().exists()
    scores = {f"recognition, {m} object{'s' * (m > 1)}": record.scores[f"objects_{m}"] for m in (1, 2, 3, 4)}
    assert (content["key"], content["scores"]) == (record.key, pytest.approx(scores, rel=1e-5))
    click(page, "b", "Save PNG")
    drawn = Image.open(io.BytesIO(saved(tmp_path, f"{stem}.png")))
    assert len(drawn.convert("RGB").getcolors(1 << 20)) > 100
    assert page.each("[data-panel=b] .source a", "new URL(node.href).pathname") == [f"{result.folder}/"]
    assert f"recognition, 1 object {record.scores['objects_1']:.3g}" in page.texts("[data-panel=b] .scores")[0]


def test_a_view_that_is_too_wide_for_a_browser_s_canvas_is_saved_with_fewer_pixels(stub, open_page, tmp_path):
    page = open_page(stub, "#sample=s1&a=many")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.evaluate("document.querySelector('[data-panel=a]').style.width = '40000px'; 0")
    click(page, "a", "Save PNG")
    drawn = Image.open(io.BytesIO(saved(tmp_path, "sentences-s1-many.png")))
    assert drawn.width == 16384
    assert drawn.convert("RGB").getcolors(1 << 20)[1:]


def test_values_that_are_rounded_are_called_so_and_those_of_tokens_are_not(tmp_path, open_page):
    names = [f"w{place}" for place in range(70)]
    for name, method in {"rounded": {"values": np.eye(70).tolist(), "targets": names}, "exact": {}}.items():
        run_job(sentence_config(tmp_path / "x", name, texts=[" ".join(names)], **method))
    write_page(tmp_path)
    page = open_page(tmp_path, "#a=rounded&b=exact")
    assert [text for text in page.texts(".panel > .hint") if "rounded to steps of 0.000031" in text]
    assert ["rounded_to" in copied_rows(page, panel) for panel in "ab"] == [True, False]


def test_the_address_of_a_page_leads_back_to_the_same_view(stub, open_page):
    page = open_page(stub)
    for control, value in {"sample": "s1", "a": "many", "b": "arrow"}.items():
        page.choose(control, value)
    again = open_page(stub, page.evaluate("location.hash"))
    assert again.each("#panels", "node.innerHTML") == page.each("#panels", "node.innerHTML")


@pytest.fixture(scope="module")
def shared_ids(tmp_path_factory):
    """Experiments (and in one of them two benchmarks) whose samples have the same ids, and not all the same texts."""
    folder = tmp_path_factory.mktemp("shared") / "tiny"
    groups = {"first": ["a b", "c d e", "f g"], "same": ["x y", "c d e"], "other": ["a b", "p q r"]}
    for name, texts in groups.items():
        run_job(sentence_config(folder / name, "m", texts=texts, entries=[[0, 1, 1.0]]))
    cfg = sentence_config(folder / "same", "m", texts=["x y", "c c c"], entries=[[0, 1, 1.0]])
    cfg.benchmark.name = "words"
    run_job(cfg)
    write_page(folder)
    return folder


@pytest.mark.parametrize(
    ("first", "control", "value", "sample"),
    [
        ("first", "experiment", "same", "s1"), ("first", "experiment", "other", "s0"),
        ("same", "group", "Reader, words", "s0"), ("first", "sample", "s2", "s2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by_link", [False, True])
def test_a_choice_is_kept_in_another_experiment_only_where_the_sample_has_the_same_text(
    shared_ids, open_page, first, control, value, sample, by_link
):
    page = open_page(shared_ids, f"#experiment={first}&group=Reader,+sentences&sample=s1&token=2")
    assert page.each(".focused", "node.dataset.token")
    if by_link:
        go_to(page, f"#{control}={value.replace(' ', '+')}")
    else:
        page.choose(control, value)
    kept = value == "same"
    assert page.each(".picker tr.chosen [data-sample]", "node.dataset.sample") == [sample]
    assert ("c d e" in page.texts("#subject")[0]) == kept
    assert bool(page.texts(".focused")) == kept


def test_a_link_to_a_sample_leads_there_from_any_other(shared_ids, open_page):
    page = open_page(shared_ids, "#experiment=first&sample=s1&token=2")
    go_to(page, "#experiment=other&sample=s1&token=1")
    assert "p q r" in page.texts("#subject")[0]
    assert page.each("[data-panel=a] .focused", "node.dataset.token") == ["1"]


# Samples


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An experiment of 20 sentences, scored by their first-order attribution of two methods, and its page."""
    folder = tmp_path_factory.mktemp("many") / "tiny"
    sentences = [f"word{place} b c d" for place in range(20)]
    for name, size in (("up", 1.0), ("down", -1.0)):
        cfg = sentence_config(folder / "many", name, texts=sentences, entries=[[0, 1, size]])
        cfg.benchmark.lengths = [7 * place % 20 * size for place in range(20)]
        run_job(cfg)
    write_page(folder)
    return folder


def test_samples_are_found_by_text_sorted_by_score_and_loaded_when_they_are_chosen(many, open_page):
    page, samples = open_page(many, "#experiment=many&a=up&b=down"), "[data-sample]"
    assert page.texts(samples) == [f"word{place} b c d" for place in range(8)]
    assert len(page.requests()) == 1
    page.press_on("#page1")
    page.press_on("[data-sample=s9]")
    assert page.texts("[data-panel=a] .token text")[0] == "word9"
    assert len([url for url in page.requests() if "/samples/" in url]) == 1
    page.choose("search", "WORD1")
    assert page.texts(samples) == [f"word{place} b c d" for place in (1, *range(10, 17))]
    page.choose("search", "")
    page.press_on("#order-a")
    assert page.texts("#samples td:nth-child(2)") == [f"{value}.0" for value in range(19, 11, -1)]
    assert page.texts("#samples td:nth-child(4)")[0] == "−38.0"
    page.choose("to", "3")
    assert page.texts("#samples td:nth-child(2)") == ["3.00", "2.00", "1.00", "0"]
    again = open_page(many, page.evaluate("location.hash"))
    assert again.texts("#samples td") == page.texts("#samples td")
    assert again.texts("[data-panel=a] .token text")[0] == "word9"


def test_a_sample_whose_file_is_gone_says_so(many, browser, tmp_path):
    folder = shutil.copytree(many, tmp_path / "tiny")
    shutil.rmtree(folder / "report" / "samples")
    page = browser.open((folder / "report" / "index.html").as_uri() + "#experiment=many&sample=s9")
    assert "Keep the folder samples beside the page" in page.texts("#panels .error")[0]
    page.close()


def test_what_two_jobs_mean_by_one_id_is_not_mixed(stub, open_page):
    page, texts = open_page(stub, "#experiment=twins"), []
    for sample in page.each("[data-sample]", "node.dataset.sample"):
        page.choose("sample", sample)
        texts += page.texts("#subject")
        assert len(page.texts("#a option")) == 1
    assert [[words in text for text in texts] for words in ("a b c d", "x y z w")] == [[True, False], [False, True]]


def samples_of(folder, **settings):
    """What the browser of samples is given, by group."""
    text = write_page(folder, **settings).read_text(encoding="utf-8")
    groups = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["groups"]
    return [group["samples"] for group in groups]


@pytest.mark.parametrize(("n_samples", "ids"), [(1, ["s0", "s0", "s0"]), (2, ["s0", "s1", "s0", "s0"])])
def test_only_the_first_samples_are_embedded(copied, n_samples, ids):
    assert [sample["id"] for group in samples_of(copied, n_samples=n_samples) for sample in group] == ids


def test_jobs_that_are_shown_together_are_told_apart_by_what_differs(tmp_path):
    for benchmark, text, value in (("sentences", "a b", 1.0), ("sentences", "a b", 2.0), ("words", "a", 1.0)):
        cfg = sentence_config(tmp_path / "two", "m", texts=[text], label="M", entries=[[0, 0, value]])
        cfg.benchmark.name = benchmark
        run_job(cfg)
    labels = [[method["label"] for method in samples[0]["methods"]] for samples in samples_of(tmp_path)]
    assert labels == [[f"M (method.entries=[[0, 0, {value}]])" for value in (1.0, 2.0)], ["M"]]


def test_variants_of_a_job_are_methods_of_one_sample_also_where_one_fails(tmp_path):
    cfg = sentence_config(tmp_path / "both", "both", texts=["a b"])
    methods = {"good": {"entries": [[0, 1, 1.0]]}, "bad": {"error": "no memory"}}
    variants = {name: sentence_config(tmp_path, name, **method).attribution for name, method in methods.items()}
    cfg.attribution = {**cfg.attribution, "method": None, "variants": variants}
    run_job(cfg)
    ((sample,),) = samples_of(tmp_path)
    found = [(method["label"], bool(method["views"]), method["error"]) for method in sample["methods"]]
    assert found == [("bad", False, "This sample failed: no memory"), ("good", True, None)]


# Two runs


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """The page of two runs of an experiment that differ in scores and arrays of some of its 12 sentences."""
    folder = tmp_path_factory.mktemp("two")
    for run, changed, size in (("first", {}, 1.0), ("second", {4: 3.0, 10: 30.0}, 1.5)):
        texts = [f"word{place} b c" for place in range(12)]
        cfg = sentence_config(folder / run / "x", "m", texts=texts, entries=[[0, 1, size]])
        cfg.benchmark.lengths = [changed.get(place, float(place)) for place in range(12)]
        run_job(cfg)
        write_table(RESULTS, folder / run / "x")
    main(["diff", str(folder / "first" / "x"), str(folder / "second" / "x"), "--page", str(folder / "report")])
    return folder


def test_two_runs_are_side_by_side_the_sample_that_changed_most_first(two_runs, open_page):
    page = open_page(two_runs)
    assert page.texts("[data-sample]")[:2] == ["word10 b c", "word4 b c"]
    assert page.texts("#samples tr:first-child td.number") == ["10.0", "30.0", "+20.0"]
    assert page.texts("#subject .title") == ["word10 b c"]
    assert page.texts(".panel .name") == ["m, first run", "m, second run"]
    assert [arrows(page, panel)[0][2] for panel in "ab"] == [1.0, 1.5]
    summaries = page.texts(".experiment summary")
    assert [each.partition(". ")[0] for each in summaries] == [
        "Reader, m: length differs in 2 of 12 samples",
        "Reader, m: largest difference between values of the arrays differs in 12 of 12 samples",
    ]
    change = np.array([0.0] * 10 + [-1.0, 20.0])
    error = 2 * change.std(ddof=1) / np.sqrt(12)
    assert f"Mean change +{change.mean():.3g} ± {error:.2g} (two standard errors): not decided." in summaries[0]
    assert page.texts(".experiment details:first-of-type tbody td") == ["s10", "10", "30", "+20", "s4", "4", "3", "-1"]
    assert "None of them differs" in page.texts("#results-x")[0]


def test_runs_of_scales_are_compared_by_experiment_and_those_without_one_in_common_are_refused(two_runs, tmp_path):
    page = write_comparison(two_runs / "first", two_runs / "second", tmp_path / "page", n_samples=1)
    assert page.read_text(encoding="utf-8").count("length</strong> differs in 2 of 12") == 1
    first = shutil.copytree(two_runs / "first", tmp_path / "first")
    for run, name in ((first, "y"), (tmp_path / "second", "z")):
        write_table(RESULTS, run / name)
        write_page(run)
    with pytest.raises(UserError, match="have no experiment in common"):
        write_comparison(first, tmp_path / "second", tmp_path / "page")
    write_table(RESULTS, first / "z")
    text = write_comparison(first, tmp_path / "second", tmp_path / "page").read_text(encoding="utf-8")
    assert "Only the first run has x, y." in text
    assert re.findall('<section id="results-(\\w*)', text) == ["z"]


def test_a_page_takes_the_place_of_an_earlier_one_and_of_no_file_of_others(two_runs, tmp_path):
    (tmp_path / "samples").mkdir()
    own, old = (tmp_path / "samples" / name for name in ("mine.js", f"{'0a' * 8}.js"))
    for path in (own, old):
        path.write_text("")
    runs = [two_runs / name / "x" for name in ("first", "second")]
    write_comparison(*runs, write_comparison(*runs, tmp_path).parent)
    assert (own.exists(), old.exists()) == (True, False)
    (tmp_path / "index.html").write_text("<title>mine</title>")
    with pytest.raises(UserError, match="would be lost: choose another folder"):
        write_comparison(*runs, tmp_path)


# Texts, tables, and what is broken


def test_texts_of_results_stay_texts(tmp_path, open_page):
    run_job(sentence_config(tmp_path / "x", "m", texts=[HOSTILE], label="<i>m</i>", entries=[[0, 1, 1.0]]))
    write_table(RESULTS, tmp_path / "x")
    write_page(tmp_path)
    page = open_page(tmp_path)
    assert HOSTILE in page.texts("#subject")[0]
    assert page.texts("#a option") == ["<i>m</i>"]
    assert HOSTILE in page.texts("details li")
    assert page.evaluate("document.querySelectorAll('b, #panels i, img[src=x]').length") == 0
    assert page.texts("#results-x h2") == ["x: what is known <of> them"]


def test_a_table_has_published_values_claims_and_notes_beside_its_cells(stub, open_page):
    page = open_page(stub)
    assert [" ".join(text.split()) for text in page.texts(".experiment tbody td")] == [
        "SV", "x1*x2**2/2 I/2", "0.250 0.200", "0.500 ± 0.125 0.400", "yes",
        "IG", "–", "–", "–", "no", "GI", "–", "–", "–", "–",
    ]  # fmt: skip
    assert page.texts("td .published[title]") == ["I/2", "0.200", "0.400"]
    assert page.texts(".badge") == ["✓ holds", "✗ does not hold", "? not decided"]
    assert page.texts(".missing code") == ["make table1", "make figure2"]


def test_a_sample_that_failed_says_why(stub, open_page):
    page = open_page(stub, "#experiment=sentences&sample=s1&a=broken")
    assert HOSTILE in page.texts("[data-panel=a] .error")[0]


def test_without_its_picture_a_sample_is_shown_with_the_reason(tmp_path, open_page):
    image = shutil.copy(ROOT / "data/tiny/images/two_six.png", tmp_path / "two.png")
    parts = ["model=clip_vitb16", "benchmark=illustration", "attribution=meta_grad_eclip"]
    parts += [f"benchmark.image={image}", "benchmark.caption='two six'", f"output_dir={tmp_path / 'tiny' / 'own'}"]
    with shipped_configs():
        run_job(compose("config", overrides=parts))
        image.unlink()
        write_page(tmp_path / "tiny")
    page = open_page(tmp_path / "tiny")
    assert "its text and picture are missing" in " ".join(page.texts("#subject .error"))
    assert page.texts("[data-panel=a] .map span")[:2] == ["two", "six"]


def test_files_that_are_broken_are_told_and_the_others_are_shown(copied, open_page):
    for path in copied.glob("sentences/jobs/*many*/arrays/*.npz"):
        content = path.read_bytes()
        path.write_bytes(content[:60] + bytes(40) + content[100:])
    for path in copied.glob("sentences/jobs/*first*/arrays/*.npz"):
        path.write_bytes(path.read_bytes()[:40])
    (next(copied.glob("sentences/jobs/*strange*")) / "records.jsonl").write_text("{}\n")
    (copied / "sentences" / "figure.png").write_bytes(b"no picture")
    table = copied / "sentences" / "table.json"
    table.write_text(table.read_text()[:100])
    write_page(copied)
    page = open_page(copied, "#experiment=sentences&sample=s1&a=many&b=arrow")
    told = " ".join(page.texts(".error"))
    assert "cannot be read" in page.texts("[data-panel=a] .error")[0]
    assert "first of Reader: 2 of 2 samples are missing" in told
    assert all(reason in told for reason in ("is not a record", "figure.png", "is not a table"))
    assert page.texts("[data-panel=b] .matrix")


@pytest.mark.parametrize(
    ("file", "damage", "told"),
    [
        ("table.json", lambda text: re.sub(r'("published": \[)', r"\1{}, ", text), "published values for 4"),
        ("table.json", lambda text: text.replace('"mean": 0.5', '"mean": "x"'), "is no number"),
        ("table.json", lambda text: text.replace('"mean": 0.5,', ""), "table.json is not a table"),
        ("table.json", lambda text: text.replace('"holds": true', '"holds": []'), "unhashable"),
        ("runs.jsonl", lambda _: '{"command": "x"}\nbroken\n', "runs.jsonl cannot be read"),
        ("runs.jsonl", lambda _: "3\n", "runs.jsonl cannot be read"),
        ("caption.txt", lambda _: "\udcff", "caption.txt cannot be read"),
    ],
)
def test_a_damaged_file_of_an_experiment_is_told_in_its_section(copied, file, damage, told):
    path = copied / "sentences" / file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(damage(text), encoding="utf-8", errors="surrogateescape")
    assert told in write_page(copied).read_text(encoding="utf-8")
    write_comparison(copied / "sentences", copied / "sentences", copied.parent / "page")


@pytest.mark.parametrize("odd", [np.ones((2, 2)), np.ones(9)])
def test_arrays_of_another_shape_than_their_names_make_are_told(copied, odd):
    file = next(copied.glob("sentences/jobs/*-many-*/arrays/*.npz"))
    with np.load(file) as stored:
        arrays = dict(stored)
    np.savez(file, **{**arrays, "values": odd})
    with unchecked():
        groups = samples_of(copied)
    errors = [method["error"] for group in groups for sample in group for method in sample["methods"]]
    assert len([error for error in errors if error is not None and "no memory" not in error]) == 1


def test_results_of_an_earlier_version_are_named_in_one_sentence(copied):
    shutil.rmtree(copied / "sentences" / "samples")
    page = write_page(copied).read_text(encoding="utf-8")
    assert page.count("sentences contains results of an earlier version, which cannot be read") == 1
    assert "claim True" in page
    assert '"experiment":"twins"' in page


# What is written


def test_equal_results_are_equal_bytes_wherever_they_lie_and_whatever_jobs_are_shared(copied, tmp_path):
    moved = shutil.copytree(copied, tmp_path / "elsewhere" / "tiny")
    (moved / "jobs" / "reader-many-sentences-0").mkdir(parents=True)
    assert write_page(copied).read_bytes() == write_page(moved).read_bytes() == write_page(moved).read_bytes()


def test_a_page_names_no_address_and_lets_only_its_own_script_run(stub):
    text = (stub / "report" / "index.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert re.search(r"script-src 'sha256-\S+' 'strict-dynamic';", policy)
    assert "unsafe" not in policy
    assert set(re.findall(r"https?://[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert str(stub.parent) not in text


def test_the_command_writes_the_page_and_refuses_in_one_line_where_there_is_nothing(copied, tmp_path, caplog):
    (copied / "report" / "index.html").unlink()
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--outputs", str(copied.parent), "--samples", "1", "--page-only"])
    assert (copied / "report" / "index.html").exists()
    caplog.clear()
    with pytest.raises(SystemExit, match="1"):
        main(["report", "--outputs", str(tmp_path), "--page-only"])
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path / 'tiny'} has no results: run an experiment first")
    with pytest.raises(UserError, match=r"small has no results: run .* with 'make table2 SCALE=small'\."):
        write_page(tmp_path / "small", known=["table2", "table4"])
    with pytest.raises(UserError, match="--samples 0 must be a positive integer"):
        write_page(copied, n_samples=0)


@pytest.mark.parametrize(
    ("size", "exact", "kind", "tolerance"),
    [(50, False, "<f4", 1e-7), (5000, False, "<i2", 1 / 32767), (5000, True, "<f4", 1e-7)],
)
def test_a_packed_array_is_read_back_within_its_digits_and_refused_with_nan(size, exact, kind, tolerance):
    values = np.random.default_rng(0).normal(size=(size, 1)) * 7
    packed = pack(values, exact=exact)
    stored = np.frombuffer(base64.b64decode(packed["data"]), kind)
    assert packed["type"] == np.dtype(kind).name
    assert np.abs(stored * packed["scale"] - values.ravel()).max() <= tolerance * np.abs(values).max()
    with pytest.raises(UserError, match="contains NaN or inf"):
        pack(np.append(values, np.nan), exact=exact)


def test_a_small_picture_is_embedded_without_loss_and_a_figure_too_wide_for_its_format_made_smaller():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(embedded(picture_uri(image))), np.asarray(image))
    drawn = io.BytesIO()
    Image.new("RGB", (LARGEST_WEBP + 1000, 40)).save(drawn, "PNG")
    assert embedded(figure_uri(drawn.getvalue())).width == LARGEST_WEBP
