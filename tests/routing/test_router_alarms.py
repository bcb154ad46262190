"""A model that changed is said in the log, on the board, in the status and in the metrics."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from infra.status.metrics import LoopCollector
from infra.status.status import look
from learners.drift import Alarm
from learners.estimates.billing import Overbilled
from serve.deploy.router_alarms import FRESH_MS, RouterAlarms
from streams.alarms import ROUTER_ROLE, Board
from streams.log.memory_log import MemoryLog, Storage
from streams.training.folder import Folder
from streams.training.snapshots import Store

NOON_MS = 1_760_000_000_000
SMALL = 7  # its key
FELL = Alarm(SMALL, "quality", NOON_MS - 60_000, 40, -1.9)


def seen(*alarms: Alarm, load: tuple[float, ...] = (0.5, 0.9, 0.0)) -> SimpleNamespace:
    """A view with these drift alarms; `small` has two pools."""
    pools = [np.array([0, 1]), np.array([2])]
    catalogue = SimpleNamespace(keys=[SMALL, 8], names=("small", "large"), columns_of=pools)
    return SimpleNamespace(catalogue=catalogue, drift=alarms, overbilled=[], load=np.array(load))


@pytest.fixture
def router(tmp_path):
    now = SimpleNamespace(ms=NOON_MS)
    store = Store(Folder(str(tmp_path)))
    alarms = RouterAlarms(Board(store.folder, ROUTER_ROLE, "a", lambda: now.ms), lambda: now.ms)
    log = MemoryLog(Storage(), lambda: now.ms)
    log.ensure_topics()
    status = lambda: look(store, log, now.ms, 1e9)  # noqa: E731
    return SimpleNamespace(now=now, alarms=alarms, status=status, folder=tmp_path)


def test_a_change_is_an_alarm_for_an_hour_and_listed_while_it_is_in_force(router):
    """
    Then it is neither.
    """
    router.alarms.look(seen(FELL))
    fresh = router.status()
    router.now.ms += FRESH_MS
    router.alarms.look(seen(FELL))
    old = router.status()
    router.now.ms += 1000
    router.alarms.look(seen())
    over = router.status()

    (alarm,) = fresh.alarms
    assert alarm.name == "model_changed"
    assert "quality of small moved by -1.90 over 40 outcomes" in alarm.cause
    assert fresh.json()["changes"] == [
        {
            "model": "small",
            "target": "quality",
            "since_ms": NOON_MS - 60_000,
            "since": "2025-10-09T08:52:20+00:00",
            "outcomes": 40,
            "shift": -1.9,
            "count": 1,
            "by_load": False,
        }
    ]
    assert (old.alarms, len(old.changes)) == ((), 1)
    assert (over.alarms, over.changes) == ((), ())


SLOWED = Alarm(SMALL, "latency", NOON_MS - 60_000, 40, 3.0)


def test_latency_of_a_full_pool_is_no_change_of_the_model(router):
    """
    It is listed, as estimates rest on it, also when the pool has drained before it was noticed.
    """
    router.alarms.look(seen(load=(0.5, 1.2, 0.0)))
    router.now.ms += 30_000
    router.alarms.look(seen(SLOWED, FELL))
    full = router.status()
    (alarm,) = full.alarms

    assert {one["target"]: one["by_load"] for one in full.json()["changes"]} == {
        "latency": True,
        "quality": False,
    }
    assert "quality of small" in alarm.cause and "latency" not in alarm.cause


@pytest.mark.parametrize("load", [(0.9, 1.0, 5.0), (0.0, 0.0, 0.0)])
def test_latency_of_a_pool_with_room_is_an_alarm_whatever_other_models_have(router, load):
    router.alarms.look(seen(SLOWED, load=load))
    (alarm,) = router.status().alarms
    assert "latency of small moved" in alarm.cause


def test_latency_that_moves_long_after_a_pool_was_full_is_an_alarm(router):
    router.alarms.look(seen(load=(2.0, 2.0, 0.0)))
    router.now.ms += 600_000
    late = replace(SLOWED, since_ms=NOON_MS + 300_000)
    router.alarms.look(seen(late))
    assert [one.name for one in router.status().alarms] == ["model_changed"]


def test_changes_are_logged_once_and_counted(router, caplog):
    """
    A model that changes, is as expected again, and changes once more: two.
    """
    with caplog.at_level(logging.WARNING, "serve.deploy.router_alarms"):
        for alarms in ((FELL,), (FELL,), (), (FELL,)):
            router.now.ms += 1000
            router.alarms.look(seen(*alarms))

    said = [r for r in caplog.records if r.name == "serve.deploy.router_alarms"]
    assert [r.getMessage() for r in said] == ["model small changed: " + str(FELL)] * 2
    registry = CollectorRegistry()
    registry.register(LoopCollector(router.status))
    metrics = generate_latest(registry).decode()
    assert 'fairlead_model_changes_total{model="small",target="quality"} 2.0' in metrics
    assert 'fairlead_model_changed{model="small",target="quality"} 1.0' in metrics
    assert 'fairlead_alarm{name="model_changed"} 1.0' in metrics


def test_a_router_to_whom_no_model_changed_writes_nothing(router):
    """
    And one that stops takes its board down.
    """
    router.alarms.look(seen())
    assert list(router.folder.rglob("alarms/*")) == []

    router.alarms.look(seen(FELL))
    assert len(list(router.folder.rglob("alarms/*"))) == 1
    router.alarms.close()
    assert list(router.folder.rglob("alarms/*")) == []


def test_settings_that_are_refused_are_an_alarm_until_they_are_mended(router):
    """
    Routers go on with what the file said before; nobody reads their logs meanwhile.
    """
    router.alarms.look(seen(), "listener.port is 70000")
    (alarm,) = router.status().alarms
    router.now.ms += 1000
    router.alarms.look(seen(), "")

    assert (alarm.name, alarm.cause) == ("settings_refused", "listener.port is 70000")
    assert router.status().alarms == ()


def test_bills_that_are_too_high_are_an_alarm_with_their_model(router):
    """
    It names the model and how much, and goes off when the bills are as predicted again.
    """
    view = seen()
    view.overbilled = [
        Overbilled(model=view.catalogue.keys[0], since_ms=0, outcomes=90, ratio=1.7, chance=1e-5)
    ]
    router.alarms.look(view)
    (alarm,) = router.status().alarms
    router.alarms.look(seen())

    assert alarm.name == "model_overbilled"
    assert f"{view.catalogue.names[0]}: 90 bills were 1.70 times" in alarm.cause
    assert router.status().alarms == ()
