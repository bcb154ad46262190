"""What an emulated replica reports of one window, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from emulated import PERFORMANCE

from infra.capacity.latency_target import LatencyTarget
from infra.emulator.engine import Engine
from infra.pools.replica_meter import ReplicaMeter
from streams.telemetry.pool_window import ReplicaIdentity
from streams.telemetry.window import Reporter

REPORTER = Reporter("a" * 16, 0)


def test_a_report_has_the_engines_gauges_and_what_it_made_since_the_last_one():
    """
    Of a replica that starts there is no load; power is energy over the time that passed.
    """
    engine = Engine(replace(PERFORMANCE, fixed_s=0.01, kv_tokens_max=10_000))
    meter = ReplicaMeter(ReplicaIdentity(pool="p", model="m", replica="r"), engine, LatencyTarget())
    first = meter.report(REPORTER, REPORTER.window(1000), "starting", 1.0)
    meter.count_request(1000, 500)
    engine.submit("one", 1000, 500, 0.0)
    list(engine.advance(1.0))

    second = meter.report(REPORTER, REPORTER.window(2000), "ready", 2.0)

    assert (first.load, first.tokens, first.running) == (None, 0, 0)
    assert (second.state, second.running, second.queued) == ("ready", 1, 0)
    assert second.tokens == engine.tokens_made_total > 0
    assert second.joules == engine.energy_j and second.watts == second.joules / 2.0
    assert second.kv_use == pytest.approx(engine.kv_use) and 0.0 < second.kv_use <= 1.0
    assert second.load is not None and second.load > 0.0
    assert meter.report(REPORTER, REPORTER.window(3000), "ready", 0.0).watts == 0.0
