"""Times how fast one trainer learns feedback from Kafka, beside how fast the same can be read.

    raw_consumed_per_s    kafka-python's own consumer, bytes only
    read_per_s            our reader: the same, as records with known positions
    folded_per_s          the trainer, from nothing to the end of the topic: read, opened,
                          validated, de-duplicated, learned, with dead letters and snapshots

One thread does the work; kafka-python's own thread and the broker share the machine's cores.

All three read one topic, in one run, and each reads every record of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from load.bench.recovery.broker import local_broker
from load.bench.recovery.crash_child import ENCODER, KEY, UNSET, trainer_of
from load.bench.recovery.made_feedback import Mix, made_feedback
from streams.feedback.ticket import Sealer
from streams.log.contract import DEAD_LETTER, DECISIONS, FEEDBACK, TELEMETRY
from streams.log.kafka_log import KafkaLog
from streams.log.kafka_options import KafkaOptions
from streams.training.folder import Folder
from streams.training.snapshots import VERSIONS_PER_TERM, Store
from streams.training.supervision import collect_seldom
from streams.training.trainer import DUPLICATE

PARTITIONS = {FEEDBACK: 4, DEAD_LETTER: 1, DECISIONS: 1, TELEMETRY: 1}
MADE_TOGETHER = 10_000
POLLED_MAX = 8192  # records, as the trainer asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackBench:
    """How much is learned."""

    records: int = 200_000
    seed: int = 0


def measure(options: FeedbackBench, say: Callable[[str], None]) -> dict[str, float]:
    """Fill a topic, read it twice, learn it. Raises what starting a broker raises."""
    with tempfile.TemporaryDirectory() as folder, local_broker(Path(folder) / "kafka") as broker:
        kafka = KafkaOptions(bootstrap_servers=broker.bootstrap_servers, partitions=PARTITIONS)
        log = KafkaLog(kafka)
        say(f"{options.records} records into Kafka …")
        record_bytes = _fill(log, options)
        say("reading …")
        raw_s = _timed(lambda: _consume(broker.bootstrap_servers, log.end_offsets(FEEDBACK)))
        read_s = _timed(lambda: _read(log))
        say("learning …")
        collect_seldom()
        trainer = trainer_of(log, f"{folder}/state", UNSET)
        ends = log.end_offsets(FEEDBACK)
        began_cpu_s = time.thread_time()
        learn_s = _timed(lambda: trainer.run(lambda: trainer.state.offsets == ends))
        learn_cpu_s = time.thread_time() - began_cpu_s
        log.close()
        n = options.records
        return {
            "folded_per_s": round(n / learn_s),
            "raw_consumed_per_s": round(n / raw_s),
            "read_per_s": round(n / read_s),
            "folded_per_cpu_s": round(
                n / learn_cpu_s
            ),  # of the trainer's thread, on a busy machine
            "records": n,
            "record_bytes": round(record_bytes),
            "duplicates": trainer.state.counts[DUPLICATE],
            "snapshots": Store(Folder(f"{folder}/state")).newest() % VERSIONS_PER_TERM,
        }


def _timed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _fill(log: KafkaLog, options: FeedbackBench) -> float:
    """Append all; the mean size of a value."""
    log.ensure_topics()
    rng, sealer = np.random.default_rng(options.seed), Sealer([KEY])
    n_bytes = 0
    for first in range(0, options.records, MADE_TOGETHER):
        n = min(MADE_TOGETHER, options.records - first)
        records = made_feedback(n, sealer, ENCODER, time.time_ns() // 1_000_000, rng, Mix())
        log.append(FEEDBACK, records)
        n_bytes += sum(len(value) for _, value in records)
    return n_bytes / options.records


def _consume(servers: str, ends: dict[int, int]) -> None:
    consumer = KafkaConsumer(
        bootstrap_servers=servers, group_id=None, enable_auto_commit=False, metrics_enabled=False
    )
    places = [TopicPartition(FEEDBACK, partition) for partition in ends]
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    left = sum(ends.values())
    while left:
        left -= sum(len(found) for found in consumer.poll(1000, max_records=POLLED_MAX).values())
    consumer.close(autocommit=False)


def _read(log: KafkaLog) -> None:
    ends = log.end_offsets(FEEDBACK)
    reader, left = log.reader(FEEDBACK, dict.fromkeys(ends, 0)), sum(ends.values())
    while left:
        left -= len(reader.read(POLLED_MAX, 1.0))
    reader.close()
