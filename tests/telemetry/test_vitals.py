"""A router's own telemetry, from its decisions to what people and Prometheus are shown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from io import StringIO

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from router_bench import PATIENCE_S, Router, catalogue, embedding, router

from fairlead.commands.fleet_tables import print_fleet
from infra.status.metrics import LoopCollector
from infra.status.status import Status, look
from learners.policies.greedy import EpsilonGreedy
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.errors import OutboxClosed
from streams.log.contract import TELEMETRY
from streams.log.sqlite_log import SqliteLog
from streams.telemetry.histogram import LATENCY_MS
from streams.telemetry.pool_window import DispatchWindow, PoolWindow, ReplicaIdentity
from streams.telemetry.records import (
    CLASS_COUNTS,
    AnyTelemetry,
    PoolState,
    RouterState,
    Workload,
    decode,
)


@pytest.fixture
def up(tmp_path) -> Iterator[Router]:
    with router(tmp_path) as found:
        yield found


def on_topic(up: Router) -> list[AnyTelemetry]:
    """All records that the replica's outbox has written."""
    until_s = time.monotonic() + PATIENCE_S
    while up.replica.telemetry.waiting:
        assert time.monotonic() < until_s, "telemetry was not written"
        time.sleep(0.01)
    reader = up.log.reader(TELEMETRY, up.log.first_offsets(TELEMETRY))
    try:
        return [decode(record.value) for record in reader.read(1000, 0.0)]
    finally:
        reader.close()


def report(up: Router) -> None:
    """End the window now."""

    async def now() -> None:
        up.replica.vitals.report()

    up.run(now())


def seen(up: Router) -> Status:
    """What is known once the trainer has folded what was reported."""
    on_topic(up)
    while up.trainer.step():
        pass
    up.trainer.publish_if_due(at_once=True)
    return look(up.store, up.log, up.clock.now_ms, 600.0)


def test_what_is_decided_is_shown(up):
    """
    By class, by model and pool; refusals, and the snapshot that was decided with.
    """
    for tenant in ("", "acme", "acme"):
        up.route(tenant=tenant, embedding_f32=embedding(), prompt_tokens=100)
    with pytest.raises(grpc.RpcError) as refused:
        up.route(allowed_models=["nobody"])
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    report(up)
    report(up)

    status = seen(up)

    assert {name: view.counts["arrivals"] for name, view in status.workload.items()} == {
        "default": 1, "acme": 2,
    }  # fmt: skip
    assert status.workload["acme"].prompt_tokens_mean == 100.0
    assert sum(mix.decisions for mix in status.router.mix) == 3
    assert {mix.pool for mix in status.router.mix} <= {pool.name for pool in catalogue().pools}
    assert (status.router.replicas, status.router.refused) == (1, 1)
    assert status.telemetry["folded"] >= 2


def test_explored_are_the_decisions_for_another_than_the_best(tmp_path):
    """
    Counted from the replies: the chosen model's utility is below an eligible candidate's.
    """
    with router(tmp_path, policy=EpsilonGreedy(epsilon=0.5)) as up:
        replies = [up.route() for _ in range(60)]
        explanations = [
            up.stub.Explain(pb.ExplainRequest(ticket=r.ticket), timeout=PATIENCE_S) for r in replies
        ]
        expected = 0
        for explained in explanations:
            (chosen,) = [one for one in explained.models if one.chosen]
            expected += chosen.utility < max(one.utility for one in explained.models)
        report(up)

        mix = [one for r in on_topic(up) if isinstance(r, RouterState) for one in r.mix]

        assert sum(one.decisions for one in mix) == 60
        assert 0 < sum(one.explored for one in mix) == expected


def test_decisions_for_a_dispatcher_of_this_process_are_timed_too(up):
    """
    They are no calls of `Route`: a site whose callers all dispatch had no time to decide.
    """
    up.run(up.replica.servicer.decide(pb.RouteRequest(embedding_f32=embedding())))
    report(up)

    records = [one for one in on_topic(up) if isinstance(one, RouterState)]
    assert max(one.latency_ms_p50 or 0 for one in records) > 0  # a window may have ended by itself


def test_limit_that_rules_out_the_best_makes_no_exploration(up):
    """
    Among what a request allows, the best was chosen.
    """
    for _ in range(10):
        up.route(allowed_models=["small"])
    report(up)

    mix = [one for r in on_topic(up) if isinstance(r, RouterState) for one in r.mix]

    assert {one.model for one in mix} == {"small"}
    assert (sum(one.decisions for one in mix), sum(one.explored for one in mix)) == (10, 0)


def test_a_stopping_router_reports_what_it_decided_last(tmp_path):
    with router(tmp_path) as up:
        up.route(tenant="acme")

    log = SqliteLog(tmp_path / "log.sqlite", up.clock)
    reader = log.reader(TELEMETRY, log.first_offsets(TELEMETRY))
    workload = [r for r in map(decode, (x.value for x in reader.read(100, 0.0)))
                if isinstance(r, Workload)]  # fmt: skip

    assert sum(one.arrivals for record in workload for one in record.classes) == 1


def test_reports_come_by_themselves(up):
    """
    Every period, each with the next numbers of one source.
    """
    until_s = time.monotonic() + PATIENCE_S
    while len(found := on_topic(up)) < 2:
        assert time.monotonic() < until_s
        time.sleep(0.05)

    assert len({record.source for record in found}) == 1
    assert [record.sequence for record in found] == list(range(len(found)))
    assert all(record.loop_busy_share > 0 for record in found if isinstance(record, RouterState))


def test_others_of_the_process_report_under_its_source(up):
    """
    A dispatcher's window and a watched pool's, in the same run of numbers.
    """
    dispatched, pool = (
        DispatchWindow(),
        PoolWindow(ReplicaIdentity(pool="p", model="m", replica="r")),
    )
    dispatched.count("p", "attempts", 2)
    pool.count_first_token(40.0)
    up.replica.vitals.add(
        lambda reporter, window: [
            PoolState(queued=3, **pool.take(reporter, window)),
            *filter(None, [dispatched.take(reporter, window)]),
        ]
    )
    report(up)

    view = seen(up).pools["p"]

    assert (view.queued, view.attempts, view.model) == (3, 2, "m")
    assert view.ttft_ms["p50"] == LATENCY_MS.typical(LATENCY_MS.index(40.0))
    assert len({record.source for record in on_topic(up)}) == 1


@pytest.mark.parametrize("error", [OutboxClosed("stopping"), ValueError("our bug")])
def test_report_that_fails_is_felt_by_nobody(up, caplog, error):
    """
    Decisions go on; a bug is said, a closed outbox is not worth a word.
    """

    def fail(*_: object) -> list:
        raise error

    up.replica.vitals.add(fail)
    with caplog.at_level(logging.ERROR):
        report(up)

    assert up.route().model
    assert ("a window of telemetry is lost" in caplog.text) == isinstance(error, ValueError)


def test_the_event_loops_lag_is_measured(up):
    """
    Whoever holds it up for so long is seen in the report.
    """

    async def hold_up() -> None:
        await asyncio.sleep(0)
        time.sleep(0.25)  # noqa: ASYNC251 - this is the offence

    up.run(hold_up())
    until_s = time.monotonic() + PATIENCE_S
    while not any(r.loop_lag_ms_max >= 100 for r in on_topic(up) if isinstance(r, RouterState)):
        assert time.monotonic() < until_s
        report(up)
        time.sleep(0.05)


# --- what is shown


@pytest.fixture
def status(up) -> Status:
    """Something in every section."""
    dispatched = DispatchWindow()
    dispatched.count_failed("p", "late")
    dispatched.count_rerouted("p", "q")
    pool = PoolWindow(ReplicaIdentity(pool="p", model="m[x]", replica="r", derived=True))
    pool.count_first_token(40.0)
    pool.count_joules(12.5)
    up.replica.vitals.add(
        lambda reporter, window: [
            PoolState(queued=3, watts=70.0, **pool.take(reporter, window)),
            *filter(None, [dispatched.take(reporter, window)]),
        ]
    )
    up.route(tenant="acme", prompt_tokens=100)
    report(up)
    return seen(up)


def test_metrics_say_what_the_status_says(status):
    registry = CollectorRegistry()
    registry.register(LoopCollector(lambda: status))

    found = {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for s in family.samples
    }

    ttft_ms = status.pools["p"].ttft_ms["p99"]
    assert found["fairlead_arrivals_total", "acme"] == 1
    assert found["fairlead_arrivals_per_second", "10s", "acme"] == 0.1
    (mix,) = status.router.mix
    assert found["fairlead_router_decisions_total", *sorted((mix.model, mix.pool))] == 1
    assert found["fairlead_router_replicas",] == 1
    assert found["fairlead_pool_queued", "m[x]", "p"] == 3
    assert found["fairlead_pool_watts", "m[x]", "p"] == 70.0
    assert found["fairlead_pool_watts_measured", "m[x]", "p"] == 1
    assert found["fairlead_pool_derived", "m[x]", "p"] == 1
    assert found["fairlead_pool_joules_total", "m[x]", "p"] == 12.5
    assert found["fairlead_pool_replicas", "m[x]", "p", "ready"] == 1
    assert found["fairlead_pool_ttft_seconds", "m[x]", "p", "p99"] == ttft_ms / 1000
    assert ("fairlead_pool_tpot_seconds", "m[x]", "p", "p99") not in found
    assert found["fairlead_pool_failed_total", "late", "m[x]", "p"] == 1
    assert found["fairlead_pool_rerouted_total", "m[x]", "p", "q"] == 1
    assert found["fairlead_telemetry_records_total", "folded"] == status.telemetry["folded"]


def test_status_is_plain_json_with_the_sections(status):
    found = status.json()

    assert set(found["workload"]["acme"]["arrivals_per_s"]) == {"10s", "1m", "5m"}
    assert {name: found["workload"]["acme"][name] for name in CLASS_COUNTS} == (
        status.workload["acme"].counts
    )
    assert found["router"]["replicas"] == 1
    pool = found["pools"]["p"]
    assert pool["replicas"] == {"ready": 1}
    assert {"queued", "running", "kv_use", "tokens_per_s", "watts", "joules", "derived",
            "silent_s", "ttft_ms", "tpot_ms"} <= set(pool)  # fmt: skip


def test_tables_name_every_class_model_and_pool(status):
    """
    As they are called, brackets and all.
    """
    text = StringIO()

    print_fleet(status.json() | {"scaling": []}, Console(file=text, width=160))

    for name in ("acme", "p (derived)", status.router.mix[0].model, "1 ready", "12"):
        assert name in text.getvalue()


def test_what_was_shed_is_in_the_table_of_its_class(status):
    """
    Beside what came in all, of which it is a part.
    """
    found = status.json() | {"scaling": []}
    found["workload"]["acme"] |= {"arrivals": 987, "shed": 654}
    text = StringIO()

    print_fleet(found, Console(file=text, width=160))

    head, row = (next(line for line in text.getvalue().splitlines() if word in line).split()
                 for word in ("shed", "acme"))  # fmt: skip
    assert row.index("654") == row.index("987") + 1
    assert head.index("shed") == head.index("all") + 1


def test_sections_are_empty_where_nobody_reports(tmp_path):
    """
    No telemetry, no tables, and no metrics of it.
    """
    with router(tmp_path) as up:
        up.trainer.publish_if_due(at_once=True)
        status = look(up.store, up.log, up.clock.now_ms, 600.0)
    text = StringIO()
    print_fleet(status.json() | {"scaling": []}, Console(file=text))

    assert (status.workload, status.router, status.pools) == ({}, None, {})
    assert text.getvalue() == ""
