"""What tests of several files share: a browser, and whether training keeps off the digits that are held out."""

from __future__ import annotations

import pytest

from metagame.benchmarks.digits import Digits
from tests.tiny.pages import Chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def drawn_held_out(monkeypatch):
    """Of each digit that is drawn while the test runs, whether it is of those that are held out."""
    drawn, image = [], Digits.image

    def watched(digits, label, k):
        drawn.append(digits.held_out)
        return image(digits, label, k)

    monkeypatch.setattr(Digits, "image", watched)
    return drawn
