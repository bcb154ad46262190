"""Once a replica is up, its event loop comes before what runs beside it."""

from __future__ import annotations

import gc
import sys

import pytest

from serve.deploy.replica import settle


@pytest.fixture
def as_before():
    interval_s = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval_s)
    gc.unfreeze()


@pytest.mark.usefixtures("as_before")
def test_threads_that_compute_give_way_soon_and_garbage_is_looked_for_in_what_is_new():
    """
    A call would else wait 5 ms for each of them, and 50 ms for a collection.
    """
    settle()

    assert sys.getswitchinterval() <= 0.001
    assert gc.get_freeze_count() > 10_000
