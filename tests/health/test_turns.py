"""How many of those that a request found at a server it really waited for."""

from __future__ import annotations

from serve.health import turns
from serve.health.health import Health
from serve.health.turns import Turns


def leased(health: Health):
    return health.pick("p", now_s=1.0, uniform=0.5)


def test_who_leaves_ahead_is_not_waited_for_and_who_leaves_behind_or_is_answered_changes_nothing():
    health = Health()
    health.set_endpoints("p", ["h:1"], now_s=0.0)
    first, second, mine, behind = (leased(health) for _ in range(4))

    assert (mine.found, mine.waited_for) == (3, 3)
    first.succeeded(2.0)
    behind.cancelled(2.0)
    assert mine.waited_for == 3
    second.cancelled(3.0)
    assert (mine.found, mine.waited_for) == (3, 2)
    late = leased(health)
    assert (late.found, late.waited_for) == (2, 2)  # who left before it came was not there


def test_failures_and_refusals_leave_too():
    health = Health()
    health.set_endpoints("p", ["h:1"], now_s=0.0)
    failed, refused, mine = (leased(health) for _ in range(3))
    failed.failed(1.0, "reset")
    refused.overloaded(1.0, "busy", pause_s=1.0)

    assert mine.waited_for == 1


def test_what_is_kept_of_those_that_left_is_bounded(monkeypatch):
    """
    Of a server that is never empty; those that left last are remembered.
    """
    monkeypatch.setattr(turns, "KEPT_MAX", 10)
    of = Turns()
    waiting = of.begin()
    for _ in range(95):
        of.begin().leave()
    ahead, mine = of.begin(), of.begin()
    ahead.leave()

    assert len(of._left) <= 11
    assert (waiting.passed, mine.passed) == (0, 1)
