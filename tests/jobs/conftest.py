"""What makes many small jobs cheap."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """Each job looks for garbage: let it search its own only."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
