"""The page that explains what is typed into it, by clicking in a browser."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from metagame.cli import main
from metagame.jobs.run import run_job
from tests.tiny.jobs import ROOT, terminal_free_environment
from tests.tiny.pages import sentence_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    """Of the command's server; it ends without a word on Ctrl-C."""
    folder = tmp_path_factory.mktemp("served")
    run_job(sentence_config(folder / "tiny" / "x", "m", texts=["a b"], entries=[[0, 1, 1.0]]))
    with pytest.raises(SystemExit):
        main(["report", "--outputs", str(folder)])
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from metagame.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "serve", folder / "tiny", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=terminal_free_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line.startswith("Open http://127.0.0.1:"), process.stderr.read()
    yield line.split()[1]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    assert "Traceback" not in process.stderr.read()


@pytest.fixture(scope="module")
def page(browser, address):
    page = browser.open(address)
    yield page
    assert [url for url in page.requests() if not url.startswith((address, "data:"))] == []
    page.close()


def type_into(page, kind, text):
    page.each(f"[data-kind={kind}] textarea", f"node.value = {text!r}")


def explain(page, kind):
    page.press_on(f"[data-kind={kind}] button")


def test_a_prompt_and_a_picture_are_explained(page, address):
    explain(page, "text")
    assert page.texts("#answer") == ["the service was never rude ."]
    shown = "[+node.dataset.player, +node.dataset.target]"
    assert page.each(".pair", shown)[-1] == [3, 4]  # the strongest one is drawn last
    page.each("[data-token='3']", "node.dispatchEvent(new Event('click'))")
    assert all(3 in pair for pair in page.each(".pair", shown))
    page.each("[data-kind=image] [value='four_nine_two_six.png']", "node.click()")
    type_into(page, "image", "four six")
    explain(page, "image")
    assert page.texts("#answer, .large figcaption, .map span") == [
        "four six", "four", "four", "six", "all words", "no word"
    ]  # fmt: skip
    page.press_on("[data-name=six]")
    assert page.texts(".large figcaption") == ["six"]
    assert page.errors() == []


def test_what_is_typed_is_text_and_errors_are_told(page):
    hostile = "<img src=x onerror=alert(1)> rude the"
    type_into(page, "text", hostile)
    explain(page, "text")
    assert page.texts("#answer") == [hostile]
    assert page.texts("#answer img") == []
    assert "onerror" in page.texts("#panels .error")[0]
    type_into(page, "text", "hello world")
    explain(page, "text")
    assert "give more words" in page.texts("#told .error")[0]
    assert page.texts("#answer") == []
    page.each("[data-kind=image] [value=own]", "node.click()")
    explain(page, "image")
    assert "file of your own" in page.texts("#told .error")[0]
    refused = [event["entry"]["text"] for event in page.errors()]
    assert [text for text in refused if "400 (Bad Request)" not in text] == []  # the browser's own words


@pytest.mark.parametrize("width", [1280, 320])
def test_it_fits_the_window_and_leads_to_the_page_of_results(page, address, width):
    explain(page, "text")
    page.resize(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    other = page.browser.open(f"{address}report/", width)
    assert other.texts("[data-panel=a] h3 .name") == ["m"]
    assert other.errors() == []
    other.close()
