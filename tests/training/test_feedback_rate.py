"""What keeps the trainer fast: snapshots that rest, and a benchmark that measures what it says."""

from __future__ import annotations

import time
from collections import Counter
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from local_kafka.errors import JarsMissing, JavaMissing, MavenMissing

from load.bench.recovery.crash_child import ENCODER, KEY
from load.bench.recovery.feedback_rate import FeedbackBench, measure
from load.bench.recovery.made_feedback import POISON, Mix, made_feedback
from streams.feedback.ticket import Sealer
from streams.log.contract import FEEDBACK
from streams.log.sqlite_log import SqliteLog
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.trainer import DUPLICATE, LEARNED, RECORDS, Trainer, TrainerOptions

NOW_MS = 1_790_000_000_000
SEALER = Sealer([KEY])


def made(n: int, now_ms: int = NOW_MS, seed: int = 0) -> list[tuple[bytes | None, bytes]]:
    return made_feedback(n, SEALER, ENCODER, now_ms, np.random.default_rng(seed), Mix())


def test_made_feedback_is_the_same_for_the_same_seed():
    assert made(500) == made(500)
    assert made(500) != made(500, seed=1)


def test_made_feedback_has_what_it_is_asked_for(tmp_path):
    """
    Copies are learned once, poison is set aside, all else is learned.
    """
    now_ms = time.time_ns() // 1_000_000
    records = made(2000, now_ms)
    log = SqliteLog(tmp_path / "log.sqlite", lambda: now_ms)
    log.append(FEEDBACK, records)
    store = Store(Folder(str(tmp_path / "state")))
    trainer = Trainer(log, store, SEALER, ENCODER, TrainerOptions(), lambda: now_ms)
    trainer.step()

    assert len(records) == trainer.state.counts[RECORDS] == 2000
    assert trainer.state.counts[LEARNED] == 1900
    assert trainer.state.counts[DUPLICATE] == 60
    assert Counter(value for _, value in records if value in POISON).total() == 40
    parts = [set(msgspec.json.decode(v)) for _, v in records if v not in POISON]
    assert {frozenset(p) for p in parts} == {
        frozenset({"ticket", "quality"}),
        frozenset({"ticket", "cost_usd", "latency_ms", "output_tokens", "error"}),
        frozenset({"ticket", "quality", "cost_usd", "latency_ms", "output_tokens", "error"}),
    }


@pytest.mark.parametrize(("save_ms", "next_ms"), [(0, 250), (10, 250), (1000, 5000)])
def test_a_snapshot_that_takes_long_is_followed_by_a_longer_rest(tmp_path, save_ms, next_ms):
    """
    Four times as long as it took, and never less than `publish_s` from one to the next.
    """
    now = [NOW_MS]
    log = SqliteLog(tmp_path / "log.sqlite", lambda: now[0])
    log.append(FEEDBACK, made(300))
    store = Store(Folder(str(tmp_path / "state")))
    options = TrainerOptions(records_max=1, publish_s=0.25, publish_rest=4.0)
    trainer = Trainer(log, store, SEALER, ENCODER, options, lambda: now[0])
    publish = store.publish

    def slow(*given: object) -> int:
        now[0] += save_ms
        return publish(*given)

    with patch.object(store, "publish", slow):
        trainer.step()
        first = store.newest()
        now[0] = NOW_MS + next_ms - 1
        trainer.step()
        assert store.newest() == first
        now[0] = NOW_MS + next_ms
        trainer.step()
        assert store.newest() == first + 1


@pytest.mark.kafka
def test_the_benchmark_reads_and_learns_every_record():
    """
    On a topic so small that its rates mean nothing.
    """
    try:
        found = measure(FeedbackBench(records=3000), lambda _: None)
    except (JavaMissing, MavenMissing, JarsMissing) as error:
        pytest.skip(str(error))

    assert found["records"] == 3000
    assert found["duplicates"] == 90
    assert min(found["folded_per_s"], found["raw_consumed_per_s"], found["read_per_s"]) > 0
