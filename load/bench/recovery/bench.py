"""Kills a trainer again and again, and counts what was lost and what was counted twice.

    made-up feedback ─▶ Kafka ─┬─▶ calm trainer, undisturbed ──────────────▶ state ─┐
                               └─▶ trainer ✗ trainer ✗ … ✗ trainer ─────────▶ state ─┴─▶ compare
                                           kills, broker bounces

The trainer dies at every durable step (see `crash_child`), and at random times; the broker is
killed and brought back under it. Both runs read one topic; each has snapshots and dead letters of
its own.

Equal means equal bits. The hash covers all that was learned, every value seen, every
counter and every offset.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learners.targets import N_TARGETS
from load.bench.recovery.broker import local_broker
from load.bench.recovery.crash_child import (
    ENCODER,
    KEY,
    STARTING,
    STEPPING,
    UNAVAILABLE,
    Point,
    ends_of,
    offsets_of,
    run,
    trainer_of,
)
from load.bench.recovery.made_feedback import Mix, made_feedback
from load.bench.recovery.made_telemetry import made_telemetry
from load.errors import LoopStuck
from streams.feedback.ticket import Sealer
from streams.log.contract import DEAD_LETTER, DECISIONS, FEEDBACK, TELEMETRY
from streams.log.kafka_log import KafkaLog, KafkaReader
from streams.log.kafka_options import KafkaOptions
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Loader, State
from streams.training.trainer import TrainerOptions

if TYPE_CHECKING:
    from local_kafka.broker import Broker

CALM_DEAD_LETTER = f"{DEAD_LETTER}.calm"
PARTITIONS = {FEEDBACK: 4, DEAD_LETTER: 1, CALM_DEAD_LETTER: 1, DECISIONS: 1, TELEMETRY: 2}
TELEMETRY_RECORDS = 600  # about ten minutes of one process's, or a minute of ten
APPENDED_TOGETHER = 5000
LIFE_S_MAX = 600.0  # a life that takes longer is stuck; on busy cores one may take minutes
SOON_S_MAX = 1.5  # random kills come at most this long after a life began to save

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryOptions:
    """How much is learned, and how often it is interrupted."""

    records: int = 100_000
    points: Sequence[Point] = field(default_factory=lambda: every_point(("before", "after"), 5))
    random_kills: int = 10
    bounces: int = 5
    # Small runs and a snapshot after each, so that every life passes every step.
    trainer: TrainerOptions = field(
        default_factory=lambda: TrainerOptions(
            records_max=100,
            publish_s=0.0,
            publish_rest=0.0,
            prune_every=3,
            telemetry_records_max=5,
        )
    )
    # "spawn" is a new interpreter that imports everything, as after a real crash; "forkserver"
    # leaves the imports out, for tests that have no time.
    start: str = "spawn"
    seed: int = 0


def every_point(ends: Sequence[str], nth_max: int) -> tuple[Point, ...]:
    """Every durable step, before it or after it; those that recur, at their first times."""
    starting = [Point(when, step) for step in STARTING for when in ends]
    times = range(1, nth_max + 1)
    stepping = [Point(when, step, n) for step in STEPPING for n in times for when in ends]
    return (*starting, *stepping)


def quick() -> RecoveryOptions:
    """Under a minute: before every durable step once, and a bounce."""
    points = every_point(("before",), 1)
    return RecoveryOptions(records=12_000, points=points, random_kills=2, bounces=1)


def measure(options: RecoveryOptions, say: Say) -> dict[str, float | bool]:
    """Run calm and disturbed, and compare. Raises LoopStuck, and what starting a broker raises."""
    with tempfile.TemporaryDirectory() as folder, local_broker(Path(folder) / "kafka") as broker:
        log = KafkaLog(
            KafkaOptions(bootstrap_servers=broker.bootstrap_servers, partitions=PARTITIONS)
        )
        say(f"{options.records} records into Kafka …")
        _fill(log, options)
        say("the calm run …")
        calm_folder, folder_ = f"{folder}/calm", f"{folder}/disturbed"
        calm = _calm(log, calm_folder)
        disturbed = Disturbed(broker, folder_, options, say)
        disturbed.run()
        found = _compared(calm, _loaded(folder_), log)
        log.close()
    recovery_s = disturbed.recovery_s
    return {
        "kills": disturbed.kills,
        "broker_bounces": disturbed.bounces,
        "records": options.records,
        **found,
        "recovery_p50_s": round(float(np.percentile(recovery_s, 50)), 3),
        "recovery_p99_s": round(float(np.percentile(recovery_s, 99)), 3),
        "points": len({(p.when, p.step) for p in options.points}),
        "lives": disturbed.lives,
    }


def _fill(log: KafkaLog, options: RecoveryOptions) -> None:
    log.ensure_topics()
    now_ms = time.time_ns() // 1_000_000
    rng = np.random.default_rng(options.seed)
    records = made_feedback(options.records, Sealer([KEY]), ENCODER, now_ms, rng, Mix())
    for first in range(0, len(records), APPENDED_TOGETHER):
        log.append(FEEDBACK, records[first : first + APPENDED_TOGETHER])
    log.append(TELEMETRY, made_telemetry(TELEMETRY_RECORDS, now_ms, rng))


class _OwnDeadLetters:
    """The log as another trainer sees it whose dead letters go to a topic of their own."""

    def __init__(self, log: KafkaLog, topic: str) -> None:
        self._log, self._topic = log, topic

    def _name(self, topic: str) -> str:
        return self._topic if topic == DEAD_LETTER else topic

    def append(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        timeout_s: float = 30.0,
        partitions: Sequence[int] | None = None,
    ) -> None:
        self._log.append(self._name(topic), records, timeout_s, partitions)

    def reader(self, topic: str, offsets: Mapping[int, int]) -> KafkaReader:
        return self._log.reader(self._name(topic), offsets)

    def ensure_topics(self) -> None:
        self._log.ensure_topics()

    def close(self) -> None:
        self._log.close()

    def end_offsets(self, topic: str) -> dict[int, int]:
        return self._log.end_offsets(self._name(topic))

    def first_offsets(self, topic: str) -> dict[int, int]:
        return self._log.first_offsets(self._name(topic))

    def topic_id(self, topic: str) -> str:
        return self._log.topic_id(self._name(topic))

    def problems(self) -> list[str]:
        return self._log.problems()

    def retain(self, kept_from: Mapping[str, Mapping[int, int]], before_ms: int) -> int:
        return self._log.retain(kept_from, before_ms)


def _calm(log: KafkaLog, uri: str) -> State:
    """The state of one trainer that nobody disturbs, in large runs."""
    ends = ends_of(log)
    trainer = trainer_of(_OwnDeadLetters(log, CALM_DEAD_LETTER), uri, TrainerOptions())
    trainer.run(lambda: offsets_of(trainer.state) == ends)
    return trainer.state


# --- the disturbed run


class Disturbed:
    """Trainer after trainer on one topic and one snapshot folder, until the topic is learned."""

    def __init__(self, broker: Broker, uri: str, options: RecoveryOptions, say: Say) -> None:
        self._broker, self._uri, self._options, self._say = broker, uri, options, say
        self._context: Any = multiprocessing.get_context(options.start)
        if options.start == "forkserver":
            self._context.set_forkserver_preload(["load.bench.recovery.crash_child"])
        self._rng = np.random.default_rng(options.seed)
        self.kills = self.bounces = self.lives = 0
        self.recovery_s: list[float] = []  # from the start after a kill to the first new snapshot

    def run(self) -> None:
        """Kill at all points, with bounces and kills at random times between; then let it end."""
        options = self._options
        self._kill_at_random()
        extra = [self._bounce] * options.bounces + [self._kill_at_random] * options.random_kills
        at = np.linspace(0, len(options.points), len(extra), endpoint=False).astype(int).tolist()
        for number, point in enumerate(options.points):
            for _ in range(at.count(number)):
                extra.pop(int(self._rng.integers(len(extra))))()
            self._kill_at(point)
            if number % 20 == 0:
                self._say(f"{self.kills} kills, {self.bounces} bounces …")
        self._say("to the end of the topic …")
        self._until_it_ends()

    def _kill_at(self, point: Point) -> None:
        while (status := self._live(point)) == UNAVAILABLE:
            self._say("a trainer gave up on the log; starting another")
        if status != -signal.SIGKILL:
            why = (
                "the topic is too short for so many kills" if status == 0 else "see its error above"
            )
            raise LoopStuck(
                f"the trainer ended with status {status} before it was killed {point.when} "
                f"{point.step} (time {point.nth}): {why}"
            )
        self.kills += 1

    def _kill_at_random(self) -> None:
        def kill(child: BaseProcess, saves: _Saves) -> None:
            saves.wait()
            child.join(self._rng.uniform(0.0, SOON_S_MAX))
            child.kill()

        self._note(self._live(None, kill, self._dawdling()))

    def _bounce(self) -> None:
        """Kill the broker under a trainer that is saving, bring it back, then kill the trainer."""

        def bounce(child: BaseProcess, saves: _Saves) -> None:
            saves.wait()
            self._broker.kill()
            self._broker.start()
            self.bounces += 1
            began_s = time.monotonic()
            while saves.wait() and saves.last_s < began_s:
                pass  # those from before the bounce
            child.kill()

        self._note(self._live(None, bounce, self._dawdling()))

    def _dawdling(self) -> TrainerOptions:
        """Options for lives that end by the clock: however fast the machine, they read little."""
        trainer = self._options.trainer
        return replace(trainer, records_max=max(1, trainer.records_max // 20))

    def _note(self, status: int | None) -> None:
        self.kills += status == -signal.SIGKILL

    def _until_it_ends(self) -> None:
        while (status := self._live(None)) == UNAVAILABLE:
            self._say("a trainer gave up on the log; starting another")
        if status != 0:
            raise LoopStuck(f"the last trainer ended with {status}")

    def _live(
        self,
        point: Point | None,
        meanwhile: Callable[[BaseProcess, _Saves], None] = lambda child, saves: None,
        trainer: TrainerOptions | None = None,
    ) -> int | None:
        """One life of the trainer; how its process ended."""
        ours, theirs = self._context.Pipe(duplex=False)
        servers, trainer = self._broker.bootstrap_servers, trainer or self._options.trainer
        child = self._context.Process(target=run, args=(servers, self._uri, trainer, point, theirs))
        began_s = time.monotonic()
        child.start()
        theirs.close()
        self.lives += 1
        try:
            saves = _Saves(ours)
            meanwhile(child, saves)
            while saves.wait():
                pass
            child.join()
        finally:
            child.kill()
        if saves.first_s is not None and self.lives > 1:
            self.recovery_s.append(saves.first_s - began_s)
        return child.exitcode


class _Saves:
    """When a trainer has saved snapshots, as it reports through a pipe until it ends."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.first_s: float | None = None
        self.last_s = 0.0

    def wait(self) -> bool:
        """Wait for one more; False when the trainer has ended. Raises LoopStuck."""
        if not self._pipe.poll(LIFE_S_MAX):
            raise LoopStuck(f"a trainer has neither saved nor ended in {LIFE_S_MAX:.0f} s")
        try:
            self.last_s = self._pipe.recv()
        except (EOFError, OSError):  # it ended, perhaps in the middle of a report
            return False
        self.first_s = self.first_s or self.last_s
        return True


# --- comparing


def _loaded(uri: str) -> State:
    found = Loader(Store(Folder(uri)), ENCODER, TrainerOptions().memory).load_newest()
    assert found is not None, "the disturbed run has saved"
    return found[0]


def _compared(calm: State, disturbed: State, log: KafkaLog) -> dict[str, float | bool]:
    """What is missing in the disturbed state, and what is in it too often."""
    expected, found = _seen(calm), _seen(disturbed)
    seen, learned = _n_seen(found), disturbed.learned.n_values.tolist()
    unlearned = sum(max(0, s - n) for s, n in zip(seen, learned, strict=True))
    dead, calm_dead = _keys(log, DEAD_LETTER), _keys(log, CALM_DEAD_LETTER)
    return {
        "lost": unlearned
        + sum((bits & ~found.get(at, 0)).bit_count() for at, bits in expected.items()),
        "counted_twice": sum(max(0, n - s) for s, n in zip(seen, learned, strict=True)),
        "hash_equal": state_hash(calm) == state_hash(disturbed),
        "dead_letters": sum(calm_dead.values()),
        "dead_letters_lost": len(calm_dead.keys() - dead.keys()),
        "dead_letters_twice": sum(dead.values()) - len(dead),
    }


def state_hash(state: State) -> str:
    """A hash of all that a state says, equal whatever happened on the way to it."""
    digest = hashlib.sha256(state.learned.digest().encode())
    digest.update(state.fleet.pack())
    for part in (_seen(state), state.counts, state.offsets, state.telemetry_offsets):
        digest.update(repr(sorted(part.items())).encode())
    return digest.hexdigest()


def _seen(state: State) -> dict[tuple[int, int, int], int]:
    """Bits of the values seen, by issuer, page and place in it."""
    found = {}
    for _, group in state.seen.groups():
        if "pages" not in group:
            continue  # imported: there is none
        at = zip(group["issuers"].tolist(), group["pages"].tolist(), group["flags"], strict=True)
        for issuer, page, flags in at:
            places = np.flatnonzero(flags)
            for place, bits in zip(places.tolist(), flags[places].tolist(), strict=True):
                found[issuer, page, place] = bits
    return found


def _n_seen(seen: Mapping[tuple[int, int, int], int]) -> list[int]:
    """How many values of each learned target have been seen: quality, cost, latency."""
    return [sum(bits >> bit & 1 for bits in seen.values()) for bit in range(N_TARGETS)]


def _keys(log: KafkaLog, topic: str) -> Counter[bytes | None]:
    """How often each record key is in a topic."""
    found: Counter[bytes | None] = Counter()
    first, end = log.first_offsets(topic), log.end_offsets(topic)
    reader = log.reader(topic, first)
    while found.total() < sum(end.values()) - sum(first.values()):
        found.update(record.key for record in reader.read(APPENDED_TOGETHER, 1.0))
    reader.close()
    return found
