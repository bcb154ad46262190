"""Producers at their worst, on a real broker: what is learned does not depend on them.

Every record ten times, shuffled, a day late, from a Java client that hashes keys with murmur2 and
from a Python one that hashes them otherwise or gives none. The state is that of a quiet day.
"""

from __future__ import annotations

import random
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaProducer
from kafka_topics import RenamedLog
from local_kafka.broker import Broker, find_java
from local_kafka.jars import LIBS
from made_up import ENCODER, SEALER, Decided, decided, report, reports
from memory_log import MemoryLog, Storage

from learners.estimates.history import HistoryOptions
from learners.estimates.learned import MemoryOptions
from streams.log.contract import DEAD_LETTER, FEEDBACK, Log
from streams.training.folder import Folder
from streams.training.shards import Layout, Merger
from streams.training.share import PartitionShare
from streams.training.snapshots import Store
from streams.training.state import Loader, State
from streams.training.trainer import DUPLICATE, LEARNED, RECORDS, Share, Trainer, TrainerOptions

PRODUCER = Path(__file__).parents[2] / "examples" / "feedback" / "Producer.java"
N, TIMES, DAY_S = 300, 10, 86_400
MEMORY = MemoryOptions(history=HistoryOptions(rows_max=10_000))
PATIENCE_S = 120.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def new_log(broker: Broker) -> RenamedLog:
    broker.start()
    log = RenamedLog(broker.bootstrap_servers)
    log.ensure_topics()
    return log


@pytest.fixture
def log(kafka_broker: Broker) -> Iterator[RenamedLog]:
    log = new_log(kafka_broker)
    yield log
    log.close()


@pytest.fixture(scope="module")
def decisions() -> list[Decided]:
    """Made a day ago, give or take an hour, by two routers."""
    rng = np.random.default_rng(7)
    ago_ms = DAY_S * 1000 + rng.integers(-3_600_000, 3_600_000, N)
    at_ms = now_ms() - ago_ms
    half = N // 2
    return [
        *decided(half, seed=1, decided_at_ms=at_ms[:half]),
        *decided(half, seed=2, decided_at_ms=at_ms[half:]),
    ]


def trainer(log: Log, folder: Path, share: Share | None = None) -> Trainer:
    options = TrainerOptions(wait_s=0.2, publish_s=0.5, memory=MEMORY, records_max=500)
    store = Store(Folder(str(folder)))
    return Trainer(log, store, SEALER, ENCODER, options, now_ms, share)


def learn(trainers: list[Trainer], log: Log) -> None:
    """Step until all that is in the log, and what they move within it, has been read."""
    deadline = time.monotonic() + PATIENCE_S
    ends = log.end_offsets(FEEDBACK)
    while {p: o for t in trainers for p, o in t.state.offsets.items()} != ends:
        assert time.monotonic() < deadline, "they never come to the end of the log"
        for one in trainers:
            one.step()
        ends = log.end_offsets(FEEDBACK)
    for one in trainers:
        one.publish_if_due(at_once=True)
        one.close()


def clean(folder: Path, decisions: list[Decided]) -> State:
    """The state of a quiet day: each record once, in order, one trainer, no broker."""
    log = MemoryLog(Storage())
    log.append(FEEDBACK, [(b"", value) for parts in reports(decisions) for value in parts])
    one = trainer(log, folder)
    learn([one], log)
    return one.state


def write_with_java(log: RenamedLog, values: list[bytes], path: Path) -> None:
    """Through the published example, so by Kafka's own client and partitioner."""
    path.write_bytes(b"\n".join(values))
    command = [find_java(), "-cp", f"{LIBS}/*", str(PRODUCER)]
    servers, topic = log.kafka._options.bootstrap_servers, log.prefix + FEEDBACK
    done = subprocess.run(
        [*command, servers, topic, str(path)], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def write_with_python(log: RenamedLog, values: list[bytes]) -> None:
    """By a partitioner that Java's knows nothing of; every third record has no key at all."""
    producer = KafkaProducer(
        bootstrap_servers=log.kafka._options.bootstrap_servers, acks="all", enable_idempotence=True
    )
    n_partitions = len(log.end_offsets(FEEDBACK))
    for i, value in enumerate(values):
        key = None if i % 3 == 0 else b"%d" % zlib.crc32(value)
        partition = zlib.adler32(value) % n_partitions
        producer.send(log.prefix + FEEDBACK, key=key, value=value, partition=partition)
    producer.flush()
    producer.close()


@pytest.fixture(scope="module")
def flooded(
    kafka_broker: Broker, decisions: list[Decided], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RenamedLog]:
    """Topics with every record `TIMES` times, shuffled, half of them by each producer."""
    log = new_log(kafka_broker)
    values = [value for parts in reports(decisions) for value in parts] * TIMES
    random.Random(3).shuffle(values)
    half = len(values) // 2
    write_with_python(log, values[:half])
    write_with_java(log, values[half:], tmp_path_factory.mktemp("java") / "records.ndjson")
    assert sum(log.end_offsets(FEEDBACK).values()) == len(values)
    yield log
    log.close()


@pytest.mark.kafka
def test_records_times_ten_shuffled_and_a_day_late_are_learned_once(flooded, decisions, tmp_path):
    """
    Same digest as clean, nothing set aside, and every record accounted for.
    """
    wanted = clean(tmp_path / "clean", decisions)
    n = sum(flooded.end_offsets(FEEDBACK).values())

    one = trainer(flooded, tmp_path / "kafka")
    learn([one], flooded)

    assert one.state.learned.digest() == wanted.learned.digest()
    counts = one.state.counts
    assert counts[RECORDS] == n
    assert counts[LEARNED] + counts[DUPLICATE] == n
    assert counts[LEARNED] == wanted.counts[LEARNED]
    assert sum(flooded.end_offsets(DEAD_LETTER).values()) == 0


@pytest.mark.kafka
def test_two_trainers_that_share_the_topic_learn_the_same(flooded, decisions, tmp_path):
    """
    Records that are not where their key leads are handed on, once, and counted by one of the two.
    """
    wanted = clean(tmp_path / "clean", decisions)
    n = sum(flooded.end_offsets(FEEDBACK).values())
    uri = str(tmp_path / "kafka")
    n_partitions = len(flooded.end_offsets(FEEDBACK))

    trainers = [
        trainer(
            flooded, tmp_path / f"kafka/shards/1/{shard}", PartitionShare(shard, 2, n_partitions)
        )
        for shard in range(2)
    ]
    learn(trainers, flooded)
    assert Merger(uri, Layout(1, 2, 0), ENCODER, MEMORY, now_ms).step()

    learned = [one.state.counts for one in trainers]
    assert sum(counts[LEARNED] for counts in learned) == wanted.counts[LEARNED]
    moved = sum(counts["moved"] for counts in learned)
    assert 0 < moved < n / 2
    assert sum(counts[RECORDS] for counts in learned) == n + moved
    published = Loader(Store(Folder(uri)), ENCODER, MEMORY).load_newest()
    assert published[0].learned.digest() == wanted.learned.digest()


@pytest.mark.kafka
def test_corrections_and_parts_from_two_producers_count_once(log, decisions, tmp_path):
    """
    A correction that comes second on its partition is a duplicate, whoever sends it.
    """
    values = [report(decision.ticket, quality=0.25) for decision in decisions]
    corrections = [report(decision.ticket, quality=1.0) for decision in decisions]
    wanted = MemoryLog(Storage())
    wanted.append(FEEDBACK, [(b"", value) for value in values])
    quiet = trainer(wanted, tmp_path / "clean")
    learn([quiet], wanted)
    pairs = [(d.decision_id.hex().encode(), v) for d, v in zip(decisions, values, strict=True)]
    log.append(FEEDBACK, pairs)
    one = trainer(log, tmp_path / "kafka")
    while sum(one.state.offsets.values()) < len(pairs):
        one.step()

    write_with_python(log, corrections)
    learn([one], log)

    assert one.state.learned.digest() == quiet.state.learned.digest()
    assert one.state.counts[DUPLICATE] == len(corrections)
