"""Decisions go on while the broker is away: a real replica, a real broker that stops under load."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing

import grpc
import psutil
import pytest
from kafka_topics import PATIENT, RenamedLog
from replicas import replica
from router_bench import embedding

from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from streams.feedback.export import export
from streams.training.folder import Folder
from streams.training.snapshots import Store

PATIENCE_S = 120.0
CALLERS = 8
ANSWER_S_MAX = 30.0  # of a decision, on a busy machine; no call may wait for the broker
GROWTH_MB_MAX = 64  # the outbox holds 50 items, whatever the length of the outage


async def decide_for(stub: router_pb2_grpc.RouterStub, seconds: float) -> int:
    """Ask without pause; any call that fails fails the test. Returns the decisions made."""
    ends_s, made = time.monotonic() + seconds, 0

    async def caller(seed: int) -> None:
        nonlocal made
        while time.monotonic() < ends_s:
            await stub.Route(pb.RouteRequest(embedding_f32=embedding(seed)), timeout=ANSWER_S_MAX)
            made += 1

    await asyncio.gather(*(caller(seed) for seed in range(CALLERS)))
    return made


async def outage(log: RenamedLog, folder, broker, seconds: float) -> None:
    up = replica(log, Store(Folder(str(folder / "snapshots"))))
    await up.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{up.port}") as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        made = await decide_for(stub, 1.0)
        settled = psutil.Process().memory_info().rss
        broker.pause()
        try:
            made += await decide_for(stub, seconds)
            grown_mb = (psutil.Process().memory_info().rss - settled) / 1e6
        finally:
            broker.resume()
        ends_s = time.monotonic() + PATIENCE_S
        while up.decisions.waiting:
            assert time.monotonic() < ends_s, "what waited was not written after the outage"
            await asyncio.sleep(0.05)

    counts = up.decisions.counts
    assert counts.written + counts.dropped == counts.offered > 0
    assert grown_mb < GROWTH_MB_MAX
    assert up.servicer.counts.decisions == made
    assert up.servicer.counts.refused == 0
    # A batch whose first write was in doubt may be written twice: nothing written is missing.
    with closing(RenamedLog(broker.bootstrap_servers, prefix=log.prefix, **PATIENT)) as read:
        exported = export(read, folder / "decisions.parquet", lambda done, total: None)
    assert exported["decisions"] >= counts.written
    await up.stop()


@pytest.mark.kafka
@pytest.mark.parametrize("seconds", [3.0, pytest.param(180.0, marks=pytest.mark.slow)])
def test_every_decision_is_made_while_the_broker_is_frozen(tmp_path, kafka_broker, seconds):
    """
    Not one call fails; memory stays bounded; drops are counted; what was written is in the log.
    """
    kafka_broker.start()
    log = RenamedLog(
        kafka_broker.bootstrap_servers,
        connect_s_min=0.5, request_timeout_s=1.0, delivery_timeout_s=2.0,
    )  # fmt: skip
    log.ensure_topics()

    asyncio.run(outage(log, tmp_path, kafka_broker, seconds))
