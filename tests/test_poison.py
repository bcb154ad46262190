"""Ten thousand records that nobody can learn from, and a damaged disk: the loop does not notice.

    broken JSON, wrong types, nulls, blobs, forged tickets, NaN ─┐
    a thousand good records ─────────────────────────────────────┼─▶ a real broker ─▶ trainer
    a batch whose checksum fails ────────────────────────────────┘
"""

from __future__ import annotations

import base64
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
from made_up import ENCODER, SEALER, decided, report, reports
from memory_log import MemoryLog, Storage
from test_log import batches

from infra.kafka.broker import Broker
from learners.history import HistoryOptions
from learners.learned import MemoryOptions
from streams.dead_letters import VALUE_BYTES_MAX, came_from
from streams.folder import Folder
from streams.log import DEAD_LETTER, FEEDBACK, Log
from streams.snapshots import Store
from streams.state import State
from streams.ticket import Sealer
from streams.trainer import DEAD, LEARNED, RECORDS, Trainer, TrainerOptions

N_BAD, N_GOOD, N_BLOBS, N_DAMAGED = 10_000, 1_000, 80, 26
BLOB_BYTES = 1 << 20
PATIENCE_S = 60.0  # for what must come; a test that waits this long has failed
STEP_S_MAX = 10.0  # one step, on a busy machine: eighty blobs go through three times each
QUIET_S = 1.0
# Of one core. Ten looks a second at the log take some 3 %; spinning takes 100 %.
IDLE_SHARE_MAX = 0.25
MEMORY = MemoryOptions(history=HistoryOptions(rows_max=10_000))
Place = tuple[int, int]  # partition and offset


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def good_values() -> list[bytes]:
    made = decided(N_GOOD, seed=1, decided_at_ms=now_ms())
    return [parts[0] for parts in reports(made)]


def bad_values() -> list[tuple[bytes | None, str]]:
    """Values nobody can learn from, each with the reason it must be set aside for."""
    rng = random.Random(5)
    tickets = [d.ticket for d in decided(500, seed=2, decided_at_ms=now_ms())]
    forged = [d.ticket for d in decided(500, seed=3, sealer=Sealer([bytes(32)]))]

    def ticket() -> bytes:
        return rng.choice(tickets)

    def one(i: int) -> tuple[bytes | None, str]:
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


def write(log: RenamedLog, values: list[bytes | None]) -> list[Place]:
    """As somebody else's producer does, to any partition; where each record went."""
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
        for i, value in enumerate(values)
    ]
    producer.flush()
    places = [(found.partition, found.offset) for found in (f.get(0) for f in written)]
    producer.close()
    return places


def damage(broker: Broker, log: RenamedLog, place: Place) -> list[Place]:
    """Flip a bit in the batch that holds a record; all the records in that batch."""
    partition, offset = place
    broker.stop()
    path = broker.data / f"{log.prefix}{FEEDBACK}-{partition}" / f"{0:020d}.log"
    raw = bytearray(path.read_bytes())
    (hit,) = [b for b in batches(raw) if b.first <= offset < b.end]
    raw[hit.at + hit.size - 1] ^= 1
    path.write_bytes(raw)
    broker.start()
    return [(partition, o) for o in range(hit.first, hit.end)]


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


def idle_share(one: Trainer, broker: Broker) -> tuple[float, float]:
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
    mixed: list[tuple[bytes | None, str]] = [*bad, *((value, "") for value in good)]
    random.Random(4).shuffle(mixed)
    places = write(log, [value for value, _ in mixed])
    wanted = dict(zip(places, (reason for _, reason in mixed), strict=True))
    originals = dict(zip(places, (value for value, _ in mixed), strict=True))
    doomed = write(log, [report(d.ticket, quality=1) for d in decided(N_DAMAGED, seed=4, decided_at_ms=0)])
    write(log, [good[0]])  # damage is not the last thing in the log
    hit = damage(kafka_broker, log, doomed[0])
    wanted |= dict.fromkeys(hit, "damaged")
    lost = [place for place in doomed if place not in hit]
    quiet = clean(good, tmp_path / "clean")

    one, begin, longest_s = trainer(log, tmp_path / "kafka"), time.monotonic(), 0.0
    ends = log.end_offsets(FEEDBACK)
    while one.state.offsets != ends:
        step = time.monotonic()
        assert step - begin < PATIENCE_S, f"stalled at {one.state.offsets} of {ends}"
        one.step()
        longest_s = max(longest_s, time.monotonic() - step)
    one.publish_if_due(at_once=True)

    letters = letters_of(log)
    wanted |= dict.fromkeys(lost, "too_late")
    found = {place: letter["reason"] for place, letter in letters}
    assert found == {place: reason for place, reason in wanted.items() if reason}
    assert len(letters) == len(found), "a record has two dead letters"
    reasons = Counter(found.values())
    assert {r: one.state.counts[DEAD + r] for r in reasons} == reasons
    assert sum(reasons.values()) == N_BAD + N_DAMAGED
    for place, letter in letters:
        if letter["reason"] != "damaged":
            original = originals.get(place)
            kept = None if letter["value"] is None else base64.b64decode(letter["value"])
            if place in originals:
                assert kept == (None if original is None else original[:VALUE_BYTES_MAX])
    assert one.state.learned.digest() == quiet.learned.digest()
    assert one.state.counts[LEARNED] == N_GOOD
    assert one.state.counts[RECORDS] == N_BAD + N_GOOD + N_DAMAGED + 1 - len(hit)
    assert longest_s < STEP_S_MAX
    one.step()
    ours, brokers = idle_share(one, kafka_broker)
    assert ours < IDLE_SHARE_MAX
    assert brokers < 2 * IDLE_SHARE_MAX
    one.close()
    again = trainer(log, tmp_path / "kafka")
    assert again.step() == 0
    again.close()
    assert sum(log.end_offsets(DEAD_LETTER).values()) == len(letters), "written a second time"
    print(f"longest step {longest_s:.2f} s, idle {ours:.3f} and {brokers:.3f}, {dict(reasons)}")
