"""Free text, 10,000 times: through the page and back, and through the command line."""

from __future__ import annotations

import pytest

from tests.tiny.pages import Chromium, needs_chromium, page_of_texts
from tests.tiny.texts import read_whole, texts

pytestmark = pytest.mark.slow

COUNT = 10_000


def test_the_page_holds_every_text_as_it_is(tmp_path):
    page_of_texts(tmp_path / "tiny", COUNT)


def test_the_command_line_reads_every_text_as_it_is_or_says_why_not():
    read_whole(COUNT, seed=1)


@needs_chromium
def test_a_browser_shows_texts_as_they_are(tmp_path):
    count = 12
    folder = page_of_texts(tmp_path / "tiny", count)
    browser = Chromium(tmp_path / "profile")
    try:
        page = browser.open((folder / "report" / "index.html").as_uri())
        shown = []
        for sample in (f"s{place}" for place in range(count)):
            if sample not in page.each("[data-sample]", "node.dataset.sample"):
                page.press_on("#page1")
            page.choose("sample", sample)
            shown.append(page.each("#subject p", "node.lastChild.textContent")[::2])
        assert shown == [[text, text] for text in texts(count)]
        cells = page.texts(".experiment tbody td")
        assert cells == [text.replace("\r", "\n") for text in texts(count)]
        assert page.errors() == []
        assert page.evaluate("document.querySelectorAll('main script, main b').length") == 0
    finally:
        browser.close()
