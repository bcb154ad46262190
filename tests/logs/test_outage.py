"""The broker goes away under load: who offers is never kept waiting, and what was promised arrives.

A real broker, an outbox in front of it as in every replica, and somebody who keeps handing over
items: some to be forgotten (`offer`, as decisions are), some with a promise (`submit`, as feedback
through the router is).
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from array import array
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest
from local_kafka.broker import Broker

from streams.errors import LogUnavailable
from streams.log.kafka_log import KafkaLog
from streams.log.kafka_options import KafkaOptions
from streams.log.outbox import Outbox, OutboxOptions

VALUE_BYTES = 600  # a feedback record
TOGETHER = 20  # items every few milliseconds: some thousands a second
TICK_S = 0.004
WAITING_MAX = 2000
# In the outbox, on the way and in kafka-python, several copies of each; and what Python keeps of
# memory it once had.
GROWTH_MB_MAX = 48
APPEND_S = 1.0  # after which an append to a broker that is away gives up
PACE_SHARE_MIN = 0.1  # of the pace before: who waited for an append would hand over one item in it
PATIENCE_S = 120.0


class Appending:
    """A log that notes how long each append took, and how many items were handed over meanwhile."""

    def __init__(self, log: KafkaLog) -> None:
        self.log, self.handed_over = log, lambda: 0
        self.took: list[tuple[float, int]] = []

    def append(self, *arguments: object) -> None:
        began_s, before = time.monotonic(), self.handed_over()
        try:
            self.log.append(*arguments)
        finally:
            self.took.append((time.monotonic() - began_s, self.handed_over() - before))

    def pace(self) -> float | None:
        """Items handed over a second during appends that waited for the broker; None: none did."""
        waited = [(seconds, n) for seconds, n in self.took if seconds >= 0.9 * APPEND_S]
        return sum(n for _, n in waited) / sum(s for s, _ in waited) if waited else None


class Load:
    """Hands over items until told to stop; remembers little, so that memory is the outbox's."""

    def __init__(self, outbox: Outbox[int]) -> None:
        self.outbox = outbox
        self.took_s = array("d")
        self.promised = self.dropped = self.refused = self.kept = 0
        self.acknowledged: set[int] = set()
        self.rss_max = 0

    def run_for(self, seconds: float, until: Callable[[], object] = lambda: True) -> None:
        """For so long, and longer where the machine is so busy that it has not come to that yet."""
        began_s, pace = time.monotonic(), threading.Event()
        while (passed_s := time.monotonic() - began_s) < seconds or not until():
            assert passed_s < seconds + PATIENCE_S, "it did not come to that"
            for _ in range(TOGETHER):
                self._hand_over(len(self.took_s))
            self.rss_max = max(self.rss_max, psutil.Process().memory_info().rss)
            pace.wait(TICK_S)

    def _hand_over(self, item: int) -> None:
        began_s = time.perf_counter()
        if item % 2:
            self.dropped += not self.outbox.offer(item)
            future = None
        else:
            future = self.outbox.submit(item)
        self.took_s.append(time.perf_counter() - began_s)
        if future is not None:
            self.promised += 1
            future.add_done_callback(partial(self._done, item))

    def _done(self, item: int, future: Future[None]) -> None:
        if future.exception() is None:
            self.acknowledged.add(item)
        else:  # its caller is told to try again later, or that it is kept until the log is back
            assert isinstance(future.exception(), LogUnavailable)
            if "kept in memory" in str(future.exception()):
                self.kept += 1
            else:
                self.refused += 1


def encode(items: tuple[int, ...]) -> list[tuple[bytes | None, bytes]]:
    return [(None, str(item).encode().ljust(VALUE_BYTES, b" ")) for item in items]


def arrived(log: KafkaLog, topic: str) -> set[int]:
    found: set[int] = set()
    ends = log.end_offsets(topic)
    reader, left = log.reader(topic, dict.fromkeys(ends, 0)), sum(ends.values())
    while left:
        records = reader.read(5000, 1.0)
        left -= len(records)
        found |= {int(record.value) for record in records}
    reader.close()
    return found


def outage(broker: Broker, seconds: float, *, frozen: bool) -> None:
    topic = f"outage-{uuid.uuid4().hex}"
    patient = KafkaOptions(bootstrap_servers=broker.bootstrap_servers, partitions={topic: 2})
    with contextlib.closing(KafkaLog(patient)) as made:
        made.ensure_topics()
    log = KafkaLog(
        replace(
            patient,
            request_timeout_s=1.0,
            delivery_timeout_s=3.0,
            connect_s_min=1.0,
            buffer_bytes_max=4 << 20,
        )
    )
    options = OutboxOptions(
        items_max=WAITING_MAX,
        batch_max=500,
        append_timeout_s=APPEND_S,
        retry_s=0.05,
        close_s_max=30.0,
    )
    appending = Appending(log)
    outbox: Outbox[int] = Outbox(appending, topic, encode, options)
    load = Load(outbox)
    appending.handed_over = lambda: len(load.took_s)

    began_s = time.monotonic()
    load.run_for(1.0, lambda: outbox.counts.written)
    pace_before = len(load.took_s) / (time.monotonic() - began_s)
    settled_rss = load.rss_max
    if frozen:
        broker.pause()
    else:
        broker.kill()
    before = outbox.counts.written
    load.run_for(seconds, lambda: load.dropped and load.refused and appending.pace() is not None)
    away, pace_away = outbox.counts.written, appending.pace()
    if frozen:
        broker.resume()
    else:
        broker.start()
    load.run_for(1.0)
    ends_s, pace = time.monotonic() + PATIENCE_S, threading.Event()
    while outbox.waiting and time.monotonic() < ends_s:
        pace.wait(0.02)
    outbox.close()

    counts, growth_mb = outbox.counts, (load.rss_max - settled_rss) / 1e6
    print(
        f"{counts.offered} offered, {counts.written} written, {counts.dropped} dropped; memory "
        f"grew by {growth_mb:.1f} MB; offers p99 {np.quantile(load.took_s, 0.99) * 1e3:.3f} ms, "
        f"slowest {max(load.took_s) * 1e3:.1f} ms; {pace_before:.0f} a second before, "
        f"{pace_away:.0f} while appends waited"
    )
    assert before > 0 and away - before < WAITING_MAX, "the broker was away"
    assert counts.offered == len(load.took_s) == counts.written + counts.dropped
    assert counts.dropped == load.dropped + load.refused > 0
    assert pace_away > PACE_SHARE_MIN * pace_before
    assert growth_mb < GROWTH_MB_MAX
    assert len(load.acknowledged) + load.kept + load.refused == load.promised
    found = arrived(log, topic)
    assert load.acknowledged <= found
    assert counts.written <= len(found) <= counts.offered - load.refused
    log.close()


@pytest.mark.kafka
def test_a_frozen_broker_keeps_nobody_waiting(kafka_broker):
    """
    Three seconds in which connections stay open and nothing is answered.
    """
    kafka_broker.start()
    try:
        outage(kafka_broker, 3.0, frozen=True)
    finally:
        kafka_broker.resume()


@pytest.mark.kafka
@pytest.mark.slow
def test_a_broker_that_is_gone_for_three_minutes_keeps_nobody_waiting(kafka_broker):
    """
    Nothing listens on its port for 180 s.
    """
    kafka_broker.start()
    try:
        outage(kafka_broker, 180.0, frozen=False)
    finally:
        kafka_broker.start()
