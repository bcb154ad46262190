"""The loop's accounts: what was accepted, late, unanswered, how far behind, and when to be alarmed."""

from __future__ import annotations

import urllib.request

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up import DAY_MS, ENCODER, MEMORY, NOW_MS, SEALER, decided, report
from memory_log import MemoryLog, Storage
from prometheus_client.parser import text_string_to_metric_families

from infra.pools.ports import free_ports
from infra.status.metrics import serve_metrics
from infra.status.status import look
from learners.context import N_FEATURES
from streams.errors import LogUnavailable
from streams.feedback import decisions
from streams.feedback.export import export
from streams.feedback.said import NOTHING
from streams.log.contract import DECISIONS, FEEDBACK
from streams.training.audit import AuditOptions
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.trainer import Trainer, TrainerOptions

OPTIONS = TrainerOptions(
    memory=MEMORY, wait_s=0.0, publish_s=0.0, audit=AuditOptions(answer_s=3600.0)
)


class Clock:
    def __init__(self) -> None:
        self.ms = NOW_MS

    def __call__(self) -> int:
        return self.ms


class Loop:
    """A log, a store and a trainer, with a clock that the test moves."""

    def __init__(self, folder) -> None:
        self.clock, self.store = Clock(), Store(Folder(str(folder)))
        self.log = MemoryLog(now_ms=self.clock)
        self.trainer = Trainer(self.log, self.store, SEALER, ENCODER, OPTIONS, self.clock)

    def decide(self, ids: list[bytes], model: str) -> None:
        """Log decisions as a replica does."""
        n = len(ids)
        column = np.zeros(n)
        batch = decisions.DecisionBatch(
            ids=ids,
            decided_at_ms=np.full(n, self.clock.ms),
            tenants=[""] * n,
            sessions=[""] * n,
            models=[model],
            pools=[model],
            chosen=np.zeros(n, np.intp),
            pool=np.zeros(n, np.intp),
            propensities=np.ones((n, 1)),
            utility=np.zeros((n, 1)),
            quality=np.zeros((n, 1)),
            cost_usd=np.zeros((n, 1)),
            latency_ms=np.zeros((n, 1)),
            preference=np.zeros((n, 4)),
            prompt_tokens=column,
            snapshot_version=0,
            policy="greedy",
            encoder=ENCODER,
            contexts=np.zeros((n, N_FEATURES), np.int8),
            prompts=[None] * n,
            said=[NOTHING] * n,
        )
        self.log.append(DECISIONS, decisions.encode([batch]))

    def report(self, *values: bytes) -> None:
        self.log.append(FEEDBACK, [(None, value) for value in values])

    def look(self, silence_s: float = 600.0):
        return look(self.store, self.log, self.clock.ms, silence_s)


@pytest.fixture
def loop(tmp_path):
    return Loop(tmp_path / "snapshots")


def test_accepted_duplicate_late_and_dead_are_counted_apart(loop):
    """
    Every record read is in exactly one account.
    """
    new, old = decided(2), decided(1, seed=1, decided_at_ms=NOW_MS - 8 * DAY_MS)
    good = [report(d.ticket, quality=0.5) for d in new]
    loop.report(*good, good[0], report(old[0].ticket, quality=0.5), b"{", b'{"ticket": "x"}')

    loop.trainer.step()

    status = loop.look()
    assert (status.records, status.learned, status.duplicate, status.late) == (6, 2, 1, 1)
    assert status.dead_letter == {"not_json": 1, "nothing_reported": 1, "too_late": 1}
    assert status.records == status.learned + status.duplicate + sum(status.dead_letter.values())


def test_decisions_nobody_answers_are_counted_by_model_once_old_enough(loop):
    """
    A decision is judged `answer_s` after it was logged, whatever was reported of it by then.
    """
    some = decided(10)
    loop.decide([d.decision_id for d in some[:6]], "small")
    loop.decide([d.decision_id for d in some[6:]], "large")
    loop.report(*(report(d.ticket, latency_ms=5.0) for d in some[:5]))
    loop.trainer.step()
    assert loop.look().decided == {}

    loop.clock.ms += 3_600_000
    loop.trainer.step()

    assert loop.look().decided == {"small": 6, "large": 4}
    assert loop.look().unanswered == {"small": 1, "large": 4}


def test_audit_goes_on_after_a_restart_without_judging_twice(loop):
    """
    Its position is saved with its counts.
    """
    some = decided(4)
    loop.decide([d.decision_id for d in some], "small")
    loop.clock.ms += 3_600_000
    loop.trainer.step()

    again = Trainer(loop.log, loop.store, SEALER, ENCODER, OPTIONS, loop.clock)
    again.step()
    again.publish_if_due(at_once=True)

    assert loop.look().decided == {"small": 4}


def test_lag_is_in_records_and_seconds_of_the_oldest(loop):
    loop.trainer.step()
    loop.report(b"one")
    loop.clock.ms += 30_000
    loop.report(b"two")

    assert (loop.look().lag_records, loop.look().lag_s) == (2, 30.0)
    loop.trainer.step()
    assert (loop.look().lag_records, loop.look().lag_s) == (0, 0.0)


@pytest.mark.parametrize("n_partitions", [1, 16])
def test_a_look_opens_as_many_readers_whatever_the_partitions(tmp_path, monkeypatch, n_partitions):
    """
    A scrape looks every few seconds: a consumer for each partition is a burden to the broker.
    """
    log, opened = MemoryLog(Storage(n_partitions), now_ms=lambda: NOW_MS), []
    read = log.reader
    monkeypatch.setattr(log, "reader", lambda *at: opened.append(at) or read(*at))
    for topic in (FEEDBACK, DECISIONS):
        for partition in range(n_partitions):
            log.append(topic, [(None, b"one")], partitions=[partition])

    found = look(Store(Folder(str(tmp_path))), log, NOW_MS, 600.0)

    assert found.lag_records == n_partitions

    assert [topic for topic, _ in opened] == [FEEDBACK, DECISIONS, DECISIONS]


def test_silence_while_decisions_flow_is_an_alarm(loop):
    """
    No learning for longer than allowed, with decisions to learn from: somebody stopped reporting.
    """
    first, *rest = decided(3)
    loop.decide([first.decision_id], "small")
    loop.report(report(first.ticket, quality=1.0))
    loop.trainer.step()
    loop.clock.ms += 601_000
    assert loop.look().alarms == ()  # nothing to learn from, no alarm

    loop.decide([d.decision_id for d in rest], "small")

    (alarm,) = loop.look().alarms
    assert (alarm.name, "10.0 minutes" in alarm.cause) == ("learning_stopped", True)
    loop.report(report(rest[0].ticket, quality=1.0))
    loop.trainer.step()
    assert loop.look().alarms == ()


def test_unreachable_log_is_an_alarm_not_an_error(loop):
    loop.trainer.step()

    def fail(name: str) -> None:
        raise LogUnavailable("no brokers")

    loop.log.before = fail

    status = loop.look()
    assert status.lag_records is None
    (alarm,) = status.alarms
    assert (alarm.name, "no brokers" in alarm.cause) == ("log_unreachable", True)


def test_metrics_say_what_the_status_says(loop):
    """
    Scraped over HTTP and parsed as Prometheus does.
    """
    (decision,) = decided(1)
    loop.report(report(decision.ticket, quality=1.0), b"{")
    loop.trainer.step()
    [port] = free_ports(1)
    stop = serve_metrics("127.0.0.1", port, loop.look)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120.0) as reply:
            text = reply.read().decode()
    finally:
        stop()

    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["fairlead_feedback_learned_total",] == 1
    assert found["fairlead_feedback_dead_letter_total", "not_json"] == 1
    assert found["fairlead_feedback_lag_records",] == 0


def test_export_writes_every_decision_and_says_what_it_could_not_read(loop, tmp_path):
    """
    A record that is no decision batch is counted, and the rest is exported.
    """
    some = decided(5)
    loop.decide([d.decision_id for d in some[:3]], "small")
    loop.log.append(DECISIONS, [(None, b"not arrow")])
    loop.decide([d.decision_id for d in some[3:]], "large")

    found = export(loop.log, tmp_path / "out.parquet", lambda done, total: None)

    assert found == {"decisions": 5, "records": 3, "records_unreadable": 1}
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["decision_id"].to_pylist() == [d.decision_id for d in some]
    assert table["prompt"].null_count == 5
