"""Ten thousand records that nobody can learn from, and a damaged disk: the loop does not notice.

broken JSON, wrong types, nulls, blobs, forged tickets, NaN ─┐
a thousand good records ─────────────────────────────────────┼─▶ a real broker ─▶ trainer
a batch whose checksum fails ────────────────────────────────┘
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaProducer
from kafka_topics import RenamedLog
from local_kafka.broker import Broker
from log_benches import batches
from made_up import ENCODER, SEALER, decided, report, reports
from memory_log import MemoryLog, Storage
from waiting import until

from learners.estimates.history import HistoryOptions
from learners.estimates.learned import MemoryOptions
from streams.errors import LogUnavailable
from streams.feedback.dead_letters import VALUE_BYTES_MAX, came_from
from streams.feedback.ticket import Sealer
from streams.log.contract import DEAD_LETTER, FEEDBACK, Log
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import State
from streams.training.trainer import DEAD, LEARNED, RECORDS, Trainer, TrainerOptions

N_BAD, N_GOOD, N_BLOBS, N_DAMAGED = 10_000, 1_000, 80, 26
BLOB_BYTES = 1 << 20
PATIENCE_S = 120.0  # for what must come; a test that waits this long has failed
STEP_S_MAX = 60.0  # one step, on a busy machine
QUIET_S = 1.0
# Of one core. Ten looks a second at the log take some 3 %; spinning takes 100 %.
IDLE_SHARE_MAX = 0.25
MEMORY = MemoryOptions(history=HistoryOptions(rows_max=10_000))
Place = tuple[int, int]  # partition and offset
Bad = tuple[bytes | None, str]  # a value, and the reason it must be set aside for; "" if it is good


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def good_values() -> list[bytes]:
    made = decided(N_GOOD, seed=1, decided_at_ms=now_ms())
    return [parts[0] for parts in reports(made)]


def bad_values() -> list[Bad]:
    """Values nobody can learn from."""
    rng = random.Random(5)
    tickets = [d.ticket for d in decided(500, seed=2, decided_at_ms=now_ms())]
    forged = [d.ticket for d in decided(500, seed=3, sealer=Sealer([bytes(32)]))]

    def ticket() -> bytes:
        return rng.choice(tickets)

    def one(i: int) -> Bad:
        whole = report(ticket(), quality=0.5, latency_ms=100)
        kind = i % 10
        if kind < 2:
            return whole[: rng.randrange(1, len(whole))], "not_json"
        if kind < 4:
            wrong = rng.choice(["0.5", [0.5], {"quality": 1}, True, 1.5, -1, 1e9])
            return report(ticket(), quality=wrong), "bad_field"
        if kind == 4:
            return report(ticket(), latency_ms="fast"), "bad_field"
        if kind == 5:
            return None, "empty"
        if kind < 8:
            return report(rng.choice(forged), quality=1), "bad_ticket"
        text = base64.urlsafe_b64encode(ticket()).decode()
        word = rng.choice(["NaN", "Infinity", "-Infinity", "nan"])
        return f'{{"ticket":"{text}","quality":{word}}}'.encode(), "not_json"

    blobs = [(rng.randbytes(64) * (BLOB_BYTES // 64), "too_large") for _ in range(N_BLOBS)]
    return [one(i) for i in range(N_BAD - N_BLOBS)] + blobs


def write(log: RenamedLog, pairs: list[Bad]) -> dict[Place, Bad]:
    """As somebody else's producer does, to any partition; what went where."""
    producer = KafkaProducer(
        bootstrap_servers=log.kafka._options.bootstrap_servers,
        enable_idempotence=True,
        acks="all",
        compression_type="zstd",
        max_request_size=4 * BLOB_BYTES,
        linger_ms=20,
    )
    n_partitions = len(log.end_offsets(FEEDBACK))
    topic = log.prefix + FEEDBACK
    written = [
        producer.send(topic, value, b"%d" % i, partition=i % n_partitions)
        for i, (value, _) in enumerate(pairs)
    ]
    producer.flush()
    found = [one.get(0) for one in written]
    producer.close()
    return {(at.partition, at.offset): pair for at, pair in zip(found, pairs, strict=True)}


def damage(broker: Broker, log: RenamedLog, place: Place) -> set[Place]:
    """Flip a bit in the batch that holds a record; all the records in that batch."""
    partition, offset = place
    broker.stop()
    path = broker.data / f"{log.prefix}{FEEDBACK}-{partition}" / f"{0:020d}.log"
    raw = bytearray(path.read_bytes())
    (hit,) = [b for b in batches(raw) if b.first <= offset < b.end]
    raw[hit.at + hit.size - 1] ^= 1
    path.write_bytes(raw)
    broker.start()
    until(lambda: answers(log), "the broker to be found again")
    return {(partition, o) for o in range(hit.first, hit.end)}


def answers(log: RenamedLog) -> bool:
    with contextlib.suppress(LogUnavailable):
        return bool(log.end_offsets(FEEDBACK))
    return False


def trainer(log: Log, folder: Path) -> Trainer:
    options = TrainerOptions(wait_s=0.1, memory=MEMORY)
    return Trainer(log, Store(Folder(str(folder))), SEALER, ENCODER, options, now_ms)


def clean(values: list[bytes], folder: Path) -> State:
    """The state after the good records alone, without a broker."""
    log = MemoryLog(Storage())
    log.append(FEEDBACK, [(b"", value) for value in values])
    one = trainer(log, folder)
    while one.step():
        pass
    one.close()
    return one.state


@pytest.fixture
def log(kafka_broker: Broker) -> Iterator[RenamedLog]:
    kafka_broker.start()
    log = RenamedLog(kafka_broker.bootstrap_servers)
    log.ensure_topics()
    yield log
    log.close()


def letters_of(log: RenamedLog) -> list[tuple[Place, dict]]:
    return [(came_from(r), json.loads(r.value)) for r in log.read_all(DEAD_LETTER)]


def read_to(ends: dict[int, int], one: Trainer) -> float:
    """Step until there, and publish; the longest step's seconds."""
    begin, longest_s = time.monotonic(), 0.0
    while one.state.offsets != ends:
        step = time.monotonic()
        assert step - begin < PATIENCE_S, f"stalled at {one.state.offsets} of {ends}"
        one.step()
        longest_s = max(longest_s, time.monotonic() - step)
    one.publish_if_due(at_once=True)
    return longest_s


def idle_shares(one: Trainer, broker: Broker) -> tuple[float, float]:
    """Shares of a core that we and the broker take while nothing happens."""
    processes = (psutil.Process(), psutil.Process(broker.pid))
    begin, used = time.monotonic(), [sum(p.cpu_times()[:2]) for p in processes]
    while (passed := time.monotonic() - begin) < QUIET_S:
        assert one.step() == 0
    now = [sum(p.cpu_times()[:2]) for p in processes]
    ours, brokers = ((after - before) / passed for after, before in zip(now, used, strict=True))
    return ours, brokers


@pytest.mark.kafka
def test_poison_is_set_aside_exactly_and_the_rest_is_learned(log, kafka_broker, tmp_path):
    """
    One dead letter per bad record, from where it is, for its reason; the digest is that of the good
    records alone; no step hangs; afterwards there is quiet.
    """
    good, bad = good_values(), bad_values()
    mixed: list[Bad] = [*bad, *((value, "") for value in good)]
    random.Random(4).shuffle(mixed)
    # Too late, all of them; those that share a batch on disk will be unreadable.
    doomed = [report(d.ticket, quality=1) for d in decided(N_DAMAGED, seed=4, decided_at_ms=0)]
    values = write(log, mixed) | write(log, [(value, "too_late") for value in doomed])
    hit = damage(kafka_broker, log, max(values))
    write(log, [(good[0], "")] * 4)  # so that damage is not the last thing in the log
    reasons = {place: reason for place, (_, reason) in values.items() if reason}
    reasons |= dict.fromkeys(hit, "damaged")
    assert 1 <= len(hit) < N_DAMAGED
    quiet = clean(good, tmp_path / "clean")

    one, ends = trainer(log, tmp_path / "kafka"), log.end_offsets(FEEDBACK)
    longest_s = read_to(ends, one)

    letters = letters_of(log)
    found = {(place, letter["reason"]) for place, letter in letters}
    assert sorted(found ^ set(reasons.items()))[:5] == [], "the first that are missing or wrong"
    assert len(letters) == len(reasons) == N_BAD + N_DAMAGED, "a record has two dead letters"
    for reason, n in Counter(reasons.values()).items():
        assert one.state.counts[DEAD + reason] == n, reason
    for place, letter in letters:
        original = None if place in hit else values[place][0]
        kept = letter["value"] and base64.b64decode(letter["value"])
        assert kept == (original and original[:VALUE_BYTES_MAX])
    assert one.state.learned.digest() == quiet.learned.digest()
    assert one.state.counts[LEARNED] == N_GOOD
    assert one.state.counts[RECORDS] == sum(ends.values()) - len(hit)
    assert longest_s < STEP_S_MAX

    # The broker may have something to finish first; who spins never has such a second.
    until(lambda: max(idle_shares(one, kafka_broker)) < IDLE_SHARE_MAX, "quiet")

    one.close()
    again = trainer(log, tmp_path / "kafka")
    assert again.step() == 0
    again.close()
    assert sum(log.end_offsets(DEAD_LETTER).values()) == len(letters), "written a second time"
