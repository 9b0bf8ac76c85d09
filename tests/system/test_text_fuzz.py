"""Free text, 10,000 times: through the page and back, and through the command line."""

from __future__ import annotations

import pytest

from tests.tiny.pages import page_of_texts
from tests.tiny.texts import read_whole, texts

pytestmark = pytest.mark.slow

COUNT = 10_000


def test_the_page_holds_every_text_as_it_is(tmp_path):
    page_of_texts(tmp_path / "tiny", COUNT)


def test_the_command_line_reads_every_text_as_it_is_or_says_why_not():
    read_whole(COUNT, seed=1)


def test_a_browser_shows_texts_as_they_are(browser, tmp_path):
    given, shown = texts(12), []
    folder = page_of_texts(tmp_path / "tiny", len(given))
    page = browser.open((folder / "report" / "index.html").as_uri())
    for place in range(len(given)):
        if f"s{place}" not in page.each("[data-sample]", "node.dataset.sample"):
            page.press_on("#page1")
        page.choose("sample", f"s{place}")
        shown.append(page.each("#subject p", "node.lastChild.textContent")[::2])
    assert shown == [[text, text] for text in given]
    assert page.texts(".experiment tbody td") == [text.replace("\r", "\n") for text in given]
    assert page.errors() == []
    assert page.evaluate("document.querySelectorAll('main script, main b').length") == 0
    page.close()
