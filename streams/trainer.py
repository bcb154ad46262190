"""Turns outcomes into snapshots, each outcome exactly once.

    1 read      a run of feedback records from where the state ends
    2 sort      into outcomes and dead letters                          (pure)
    3 set aside the dead letters, in their own topic
    4 learn     the values not seen before, and advance the offsets     (memory only)
    5 save      state and offsets as one snapshot                       (every `publish_s`)

Whatever step it dies at, a new trainer starts from the last snapshot: what was learned after it
was never saved, and is read again. Dead letters written after it are recognised and not written
twice.

The one rule: state and offsets change together in memory (step 4) and on disk (step 5).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from learners.learned import Learned, MemoryOptions
from streams.errors import LogReplaced, LogTruncated, LogUnavailable
from streams.feedback import DeadLetter, FeedbackOptions, Ingest, keep_fresh
from streams.log import DEAD_LETTER, FEEDBACK, Log, Reader, Record
from streams.snapshots import Store
from streams.state import Loader, Saver, State
from streams.ticket import Sealer, key_of

logger = logging.getLogger(__name__)

# Counters kept with the state, so that they are exact across restarts.
RECORDS, LEARNED, DUPLICATE = "records", "learned", "duplicate"
DEAD = "dead_letter."  # followed by a reason
SKIPPED = "skipped"  # records the log lost before they were read, see `on_gap`


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """How the trainer reads and publishes."""

    records_max: int = 8192  # per read; about 0.2 s of work, so stopping is never far away
    wait_s: float = 0.1  # for records, when there are none
    publish_s: float = 0.25  # between snapshots while there is something new
    prune_every: int = 20  # snapshots
    # When the log has lost records not read yet: "stop" (an alarm) or "continue" without them.
    on_gap: str = "stop"
    feedback: FeedbackOptions = field(default_factory=FeedbackOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)


class Trainer:
    """One trainer over all partitions of the feedback topic. Used by one thread."""

    def __init__(
        self,
        log: Log,
        store: Store,
        sealer: Sealer,
        encoder: str,
        options: TrainerOptions,
        now_ms: Callable[[], int],
    ) -> None:
        """Claim the store, recover the newest snapshot, and go to where it ends.

        Raises LogUnavailable, LogReplaced, LogTruncated, SnapshotForeign, SnapshotDamaged.
        """
        self._log, self._store, self._options, self._now_ms = log, store, options, now_ms
        self._ingest = Ingest(sealer, key_of(encoder), options.feedback)
        store.claim()
        self._saver = Saver(store)
        self.state = self._recover(encoder)
        self._already_dead = self._dead_since_snapshot()
        self._watermark_ms: dict[int, int] = {}
        self._dirty = self.state.topic_id == ""
        self._published_at_ms = 0
        self._n_published = 0
        if not self.state.topic_id:
            self.state.topic_id = log.topic_id(FEEDBACK)
        self._reader: Reader = log.reader(FEEDBACK, self.state.offsets)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Step until `stopping()`, then save what is new. Errors other than a silent log raise."""
        try:
            while not stopping():
                self.step()
            self.publish_if_due(at_once=True)
        finally:
            self._reader.close()

    def step(self) -> int:
        """Read, learn and perhaps save once; return how many records were read."""
        try:
            records = self._reader.read(self._options.records_max, self._options.wait_s)
        except LogUnavailable as error:
            logger.warning("feedback can't be read now, will try again: %s", error)
            records = []
        if records:
            self.learn(records)
        self.publish_if_due()
        return len(records)

    def learn(self, records: Sequence[Record]) -> None:
        """Steps 2 to 4 for records that continue where the state ends."""
        ingested = self._ingest.take(records)
        self._set_aside(ingested.dead)
        state, outcomes = self.state, ingested.outcomes
        fresh = state.seen.claim(
            outcomes.issuers, outcomes.sequences, ingested.bits, outcomes.decided_at_ms
        )
        new = keep_fresh(outcomes, fresh)
        state.learned.update(new)
        state.count(RECORDS, len(records))
        state.count(LEARNED, len(new))
        state.count(DUPLICATE, len(outcomes) - len(new))
        for letter in ingested.dead:
            state.count(DEAD + letter.reason)
        for record in records:
            state.offsets[record.partition] = record.offset + 1
            self._watermark_ms[record.partition] = record.appended_at_ms
        self._dirty = True

    def publish_if_due(self, *, at_once: bool = False) -> None:
        """Step 5. Raises SnapshotFenced and OSError."""
        now_ms = self._now_ms()
        due = now_ms - self._published_at_ms >= self._options.publish_s * 1000
        if not self._dirty or not (due or at_once):
            return
        self._forget_seen()
        self.state.dead_letter_offsets = self._log.end_offsets(DEAD_LETTER)
        self._already_dead.clear()
        self._saver.save(self.state, now_ms)
        self._dirty, self._published_at_ms = False, now_ms
        self._n_published += 1
        if self._n_published % self._options.prune_every == 0:
            self._store.prune()

    # --- dead letters

    def _set_aside(self, dead: Sequence[DeadLetter]) -> None:
        """Step 3: write dead letters that a former trainer has not written already."""
        fresh = [d for d in dead if (d.record.partition, d.record.offset) not in self._already_dead]
        if fresh:
            self._log.append(DEAD_LETTER, [_dead_letter(letter) for letter in fresh])
            self._already_dead |= {(d.record.partition, d.record.offset) for d in fresh}

    def _dead_since_snapshot(self) -> set[tuple[int, int]]:
        """Where the dead letters came from that were written after the snapshot was saved."""
        ends = self._log.end_offsets(DEAD_LETTER)
        starts = {p: self.state.dead_letter_offsets.get(p, 0) for p in ends}
        left = sum(max(0, ends[p] - starts[p]) for p in ends)
        found: set[tuple[int, int]] = set()
        reader = self._log.reader(DEAD_LETTER, starts)
        try:
            while left > 0:
                records = reader.read(self._options.records_max, 10.0)
                if not records:
                    raise LogUnavailable(f"{left} dead letters could not be read back in 10 s")
                left -= len(records)
                found |= {_came_from(record) for record in records}
        finally:
            reader.close()
        return found

    # --- recovery

    def _recover(self, encoder: str) -> State:
        """The newest whole snapshot's state, or a new one; its offsets checked against the log."""
        loader = Loader(self._store, encoder, self._options.memory)
        loaded = loader.load_newest()
        state = loaded[0] if loaded else State(encoder, Learned(self._options.memory))
        topic_id = self._log.topic_id(FEEDBACK)
        if state.topic_id and state.topic_id != topic_id:
            self._gap(LogReplaced(FEEDBACK, state.topic_id, topic_id))
            state.topic_id, state.offsets = topic_id, {}
        first, end = self._log.first_offsets(FEEDBACK), self._log.end_offsets(FEEDBACK)
        for partition in end:
            wanted = state.offsets.setdefault(partition, 0 if not loaded else first[partition])
            if not first[partition] <= wanted <= end[partition]:
                self._gap(
                    LogTruncated(FEEDBACK, partition, wanted, first[partition], end[partition])
                )
                state.count(SKIPPED, max(0, first[partition] - wanted))
                state.offsets[partition] = first[partition]
        return state

    def _gap(self, error: LogReplaced | LogTruncated) -> None:
        """The log has lost records: raise, or say so loudly and go on, as the options state."""
        if self._options.on_gap != "continue":
            raise error
        logger.error("%s Continuing without them, as `on_gap` says.", error)

    def _forget_seen(self) -> None:
        """Drop what can't arrive any more: older than the most backward partition would accept."""
        if self._watermark_ms and len(self._watermark_ms) == len(self.state.offsets):
            age_ms = round(self._options.feedback.age_s_max * 1000)
            self.state.seen.forget(min(self._watermark_ms.values()) - age_ms)


def _dead_letter(letter: DeadLetter) -> tuple[bytes, bytes]:
    """Key and value on the dead-letter topic: the key says where it came from."""
    record = letter.record
    value = {
        "reason": letter.reason,
        "detail": letter.detail,
        "partition": record.partition,
        "offset": record.offset,
        "appended_at_ms": record.appended_at_ms,
        "key": record.key,  # bytes become base64 in JSON
        "value": record.value,
    }
    return f"{record.partition}/{record.offset}".encode(), msgspec.json.encode(value)


def _came_from(record: Record) -> tuple[int, int]:
    """Partition and offset of the feedback record a dead letter was made of."""
    assert record.key is not None, "the dead-letter topic is written by trainers alone"
    partition, _, offset = record.key.partition(b"/")
    return int(partition), int(offset)
