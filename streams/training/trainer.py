"""Turns outcomes into snapshots, each outcome exactly once.

    1 read      a run of feedback records from where the state ends
    2 sort      into outcomes and dead letters                          (pure)
    3 set aside the dead letters, in their own topic; move what belongs to another shard
    4 learn     the values not seen before, and advance the offsets     (memory only)
    5 save      state and offsets as one snapshot                       (every `publish_s`)

Whatever step it dies at, a new trainer starts from the last snapshot: what was learned after it
was never saved, and is read again. Dead letters written after it are recognised and not written
twice.

State and offsets change together in memory (step 4) and on disk (step 5).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.estimates.learned import Learned, MemoryOptions
from learners.option import option
from streams.clock import SLOW, STEP_MS
from streams.errors import LogReplaced, LogTruncated, LogUnavailable, SnapshotDamaged
from streams.feedback.dead_letters import came_from, dead_letter, unreadable
from streams.feedback.feedback import DeadLetter, FeedbackOptions, Ingest, Ingested
from streams.feedback.report import COST_BIT, LEARNED_BITS, PAID_BIT
from streams.feedback.ticket import Sealer, join_ids, key_of
from streams.log.contract import (
    DEAD_LETTER,
    FEEDBACK,
    Damage,
    Log,
    Reader,
    Record,
)
from streams.log.stretch import Stretch
from streams.quiet import once_a_minute
from streams.training import change
from streams.training.audit import Audit, AuditOptions
from streams.training.budgets import RELEASED, settled
from streams.training.change import ChangeOptions
from streams.training.prices import SPENT, WASTED, PricingOptions
from streams.training.share import Share, SoleShard
from streams.training.snapshots import Store
from streams.training.state import Loader, Saver, State
from streams.training.telemetry_fold import TelemetryFold
from streams.training.upkeep import Upkeep, UpkeepOptions
from streams.training.watch import Unwatched, Watcher

logger = once_a_minute(logging.getLogger(__name__))

# Counters kept with the state, so that they are exact across restarts.
RECORDS, LEARNED, DUPLICATE, MOVED = "records", "learned", "duplicate", "moved"
DEAD = "dead_letter."  # followed by a reason
PROBED = "probed_nano_usd."  # as SPENT, for answers that were bought to learn from
CORRECTED = "corrected"  # qualities that a later revision replaced
SKIPPED = "skipped"  # records the log lost before they were read, see `on_gap`

# Brokers' clocks differ: a partition read to its end may get a record stamped a little earlier, and
# a step that is followed at once may be taken back.
CLOCK_MARGIN_MS = 2 * SLOW.step_ms
LETTERS_S = 10.0  # without a dead letter read back, a start is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """How the trainer reads and publishes."""

    records_max: int = 8192  # per read; about 0.2 s of work, so stopping is never far away
    wait_s: float = 0.1  # for records, when there are none
    publish_s: float = option(
        0.25, "Seconds between snapshots: how soon an outcome has effect.", ge=0.05, le=3600
    )
    # Rest after a snapshot, in units of the time it took: so at most a fifth of the time goes into
    # snapshots, however fast feedback comes, and four fifths into learning it.
    publish_rest: float = 4.0
    prune_every: int = 20  # snapshots
    # Between snapshots that only telemetry asks for: it comes all the time.
    publish_fleet_s: float = 1.0
    # Telemetry records per step: about 15 ms beside the 200 ms of feedback that a step learns.
    telemetry_records_max: int = 256
    on_gap: str = option(
        "stop",
        "What to do when the log has lost feedback that was not read yet.",
        key="feedback.on_gap",
        choices=("stop", "continue"),
    )
    feedback: FeedbackOptions = field(default_factory=FeedbackOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    audit: AuditOptions = field(default_factory=AuditOptions)
    pricing: PricingOptions = field(default_factory=PricingOptions)
    upkeep: UpkeepOptions = field(default_factory=UpkeepOptions)
    change: ChangeOptions = field(default_factory=ChangeOptions)


class Trainer:
    """One trainer over its share of the feedback topic. Used by one thread."""

    def __init__(
        self,
        log: Log,
        store: Store,
        sealer: Sealer,
        encoder: str,
        options: TrainerOptions,
        now_ms: Callable[[], int],
        share: Share | None = None,
        start: Callable[[], State | None] = lambda: None,
        watch: Watcher | None = None,
        counts_elsewhere: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Claim the store, recover the newest snapshot, and go to where it ends.

        `start` gives the state to begin with where the store has no snapshot; None: from nothing.
        Where all snapshots are damaged, what the log holds is learned again. `watch` is told how
        it goes; `counts_elsewhere` are those of other shards. Raises LogUnavailable,
        LogReplaced, LogTruncated, SnapshotForeign.
        """
        self._log, self._store, self._options, self._now_ms = log, store, options, now_ms
        self._share, self._watch = share or SoleShard(), watch or Unwatched()
        self._counts_elsewhere = counts_elsewhere
        self._unreadable: str | None = None  # why the log can't be read now
        self._ingest = Ingest(sealer, key_of(encoder), options.feedback)
        store.claim()
        self._saver = Saver(store)
        loaded = self._load_newest(encoder)
        # A first snapshot is saved at once: whoever merges or watches then knows of this trainer.
        self._dirty, self._fleet_dirty = loaded is None, False
        self._passed_gap = False
        self.state = self._positioned(encoder, loaded or start())
        self._already_dead = self._dead_since_snapshot()
        never = math.isinf(options.publish_s)  # not even a first snapshot: nobody reads it
        self._saved_at_ms, self._publish_next_ms = 0, math.inf if never else 0.0
        self._n_published = 0
        self._upkeep = Upkeep(log, self._saver, self._share, options.upkeep, now_ms())
        if not self.state.topic_id:
            self.state.topic_id = log.topic_id(FEEDBACK)
        self._reader: Reader = log.reader(FEEDBACK, self.state.offsets)
        self._audit = Audit(log, self.state, self._share, options.audit)
        self._fold: TelemetryFold | None = None
        if self._share.watches():
            most = options.telemetry_records_max
            self._fold = TelemetryFold(
                log, self.state, most, now_ms(), options.pricing, self._counts
            )
        if self._passed_gap:
            # At once, so that no dead letter of a new topic precedes the snapshot that knows it.
            self.publish_if_due(at_once=True)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Step until `stopping()`, then save what is new. Errors other than a silent log raise."""
        try:
            self._watch.look(self.state, None)
            while not stopping():
                self.step()
                self._watch.look(self.state, self._unreadable)
            self.publish_if_due(at_once=True)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the log's readers."""
        self._reader.close()
        self._audit.close()
        if self._fold is not None:
            self._fold.close()

    def step(self) -> int:
        """Read, learn and perhaps save once; return how many records were read."""
        records: list[Record] = []
        n_telemetry = 0
        try:
            records = self._reader.read(self._options.records_max, self._options.wait_s)
            self._dirty |= self._audit.step(self._now_ms())
            if self._fold is not None:
                n_telemetry = self._fold.step(self._now_ms())
                self._fleet_dirty |= n_telemetry > 0
            self._look_around()
            self._unreadable = None
        except LogUnavailable as error:
            logger.warning("the log can't be read now, will try again: %s", error)
            self._unreadable = str(error)
        self._note_passed()
        damaged, self._reader.damaged[:] = list(self._reader.damaged), []
        if records or damaged:
            self.learn(records, damaged)
            self._take_steps()
        self.publish_if_due()
        return len(records) + n_telemetry

    def _take_steps(self) -> None:
        """Promote a change under trial, or take it back."""
        step = change.next_step(self._options.change, self._counts, self._now_ms())
        if step is not None and self._share.watches():
            change.keep(self._store.folder, step)
            self.state.count(f"{change.PREFIX}{step.change}.{step.step}", step.at_unix_ms)

    def _note_passed(self) -> None:
        """Go on behind what is no record, so that it is not taken for something to be learned."""
        passed, offsets = self._reader.passed, self.state.offsets
        for partition, offset in passed.items():
            self._dirty |= offset > offsets[partition]
            offsets[partition] = max(offset, offsets[partition])
        passed.clear()

    def _look_around(self) -> None:
        """Now and then: read partitions that were added, save parts again that are gone."""
        if not self._upkeep.due(self._now_ms()):
            return
        if self._upkeep.found_partitions(self.state):
            self._reader.close()
            self._reader = self._log.reader(FEEDBACK, self.state.offsets)
            self._dirty = True
        self._audit.refresh()
        self._dirty |= self._upkeep.parts_are_gone(self.state)
        self._upkeep.retain(self.state)

    def learn(self, records: Sequence[Record], damaged: Sequence[Damage] = ()) -> None:
        """Steps 2 to 4 for records, and unreadable stretches, that go on where the state ends."""
        ingested = self._ingest.take(records)
        dead = ingested.dead + [letter for damage in damaged for letter in unreadable(damage)]
        self._set_aside(dead)
        found = ingested.outcomes
        home = self._share.keeps(found.issuers, found.sequences)
        self._move(ingested, home)
        state, outcomes = self.state, found.take(home)
        revisions = ingested.revisions[home]
        fresh, corrected = state.learn(outcomes, ingested.bits[home], revisions)
        self._keep_time(records)
        if (fresh & LEARNED_BITS).any() or corrected.any():
            state.learned_at_ms = self._now_ms()
        # A record of several decisions counts once for each.
        state.count(RECORDS, len(ingested.records) + len(ingested.dead))
        n_fresh = int(np.count_nonzero((fresh > 0) | corrected))
        state.count(CORRECTED, int(corrected.sum()))
        state.count_sources(ingested.reports[i].source for i in np.flatnonzero(home)[fresh > 0])
        state.count(LEARNED, n_fresh)
        state.count(DUPLICATE, len(outcomes) - n_fresh)
        nano_usd = ingested.spent_nano_usd[home]
        self._count_money(SPENT, outcomes.pools, fresh & COST_BIT, nano_usd[:, 0])
        self._count_money(WASTED, outcomes.pools, fresh & PAID_BIT, nano_usd[:, 1])
        for bit, column in ((COST_BIT, 2), (PAID_BIT, 3)):
            self._count_money(PROBED, outcomes.pools, fresh & bit, nano_usd[:, column])
        for window, released in settled(ingested, fresh, home, self._options.pricing.budgets):
            state.count(RELEASED + window, released)
        for name, more in change.counted(ingested, fresh, home, self._options.change):
            state.count(name, more)
        state.count(MOVED, int((~home).sum()))
        self._watch.learned([ingested.reports[i] for i in np.flatnonzero(home)])
        for letter in dead:
            state.count(DEAD + letter.reason)
        for record in records:
            state.offsets[record.partition] = record.offset + 1
        for damage in damaged:
            end = max(state.offsets[damage.partition], damage.end_offset)
            state.offsets[damage.partition] = end
        self._dirty = True

    def _keep_time(self, records: Sequence[Record]) -> None:
        """Let the records' partitions know the time, and read what was learned as of it."""
        clocks, horizons = self.state.clocks, self.state.horizons
        # Records of one batch have one time, and reading it again would change nothing.
        for (partition, at_ms), _ in groupby(records, lambda r: (r.partition, r.appended_at_ms)):
            clocks.of(partition).read(at_ms)
            horizons.of(partition).read(at_ms)
        learned, trusted_ms = self.state.learned, clocks.trusted_ms()
        if trusted_ms:
            learned.as_of_ms = min(learned.as_of_ms, trusted_ms + STEP_MS)

    def _count_money(
        self,
        kind: str,
        pools: NDArray[np.uint64],
        fresh: NDArray[np.integer[Any]],
        nano_usd: NDArray[np.int64],
    ) -> None:
        """Add up the money (n,) of rows where `fresh` (n,) is not zero, by pool."""
        rows = np.flatnonzero(fresh)
        found, which = np.unique(pools[rows], return_inverse=True)
        totals = np.zeros(len(found), np.int64)
        np.add.at(totals, which, nano_usd[rows])
        for pool, total in zip(found.tolist(), totals.tolist(), strict=True):
            self.state.count(f"{kind}{pool:016x}", total)

    def publish_if_due(self, *, at_once: bool = False) -> None:
        """Step 5. Raises LogReplaced, SnapshotFenced, OSError; a silent log only puts it off."""
        now_ms = self._now_ms()
        # A clock that was set back must not put it off.
        set_back = now_ms < self._saved_at_ms
        due = set_back or now_ms >= self._publish_next_ms
        fleet_due = set_back or now_ms >= self._saved_at_ms + self._options.publish_fleet_s * 1000
        if not (at_once or (due and (self._dirty or fleet_due))):
            return
        if not (self._dirty or self._fleet_dirty):
            return
        try:
            self._check_same_topic()
            self._forget_seen()
            self._forget_dead()
        except LogUnavailable as error:
            logger.warning("the snapshot waits for the log: %s", error)
            return
        self._saver.save(self.state, now_ms)
        self._saved_at_ms = saved_at_ms = self._now_ms()
        rest_ms = (saved_at_ms - now_ms) * self._options.publish_rest
        self._publish_next_ms = max(now_ms + self._options.publish_s * 1000, saved_at_ms + rest_ms)
        self._dirty = self._fleet_dirty = False
        self._upkeep.saved(self.state)
        self._watch.saved()
        self._n_published += 1
        if self._n_published % self._options.prune_every == 0:
            self._store.prune()

    def _move(self, ingested: Ingested, home: NDArray[np.bool_]) -> None:
        """Append what belongs to another trainer again, under the key that leads there.

        A crash may move a record twice: its second copy is a duplicate there.
        """
        away = np.flatnonzero(~home)
        if len(away):
            outcomes = ingested.outcomes
            ids = join_ids(outcomes.issuers[away], outcomes.sequences[away])
            moved = [ingested.records[row].value or b"" for row in away.tolist()]
            keys = [decision_id.hex().encode() for decision_id in ids]
            homes = self._share.homes(outcomes.issuers[away], outcomes.sequences[away]).tolist()
            pairs = list(zip(keys, moved, strict=True))
            self._log.append(FEEDBACK, pairs, partitions=homes)

    # --- dead letters

    def _set_aside(self, dead: Sequence[DeadLetter]) -> None:
        """Step 3: write dead letters that a former trainer has not written already."""
        fresh = [d for d in dead if (d.record.partition, d.record.offset) not in self._already_dead]
        if fresh:
            self._store.check_fence()  # who has taken over writes them, too
            self._log.append(DEAD_LETTER, [dead_letter(letter) for letter in fresh])
            self._already_dead |= {(d.record.partition, d.record.offset) for d in fresh}

    def _forget_dead(self) -> None:
        """Keep account of dead letters until the state is past where they came from.

        A former trainer may have written them far ahead of the snapshot this one began with.
        """
        offsets = self.state.offsets
        self._already_dead = {(p, o) for p, o in self._already_dead if o >= offsets.get(p, o + 1)}
        if not self._already_dead:
            self.state.dead_letter_offsets = self._log.end_offsets(DEAD_LETTER)

    def _dead_since_snapshot(self) -> set[tuple[int, int]]:
        """Where the dead letters came from that were written after the snapshot was saved."""
        ends = self._log.end_offsets(DEAD_LETTER)
        firsts = self._log.first_offsets(DEAD_LETTER)
        starts = {p: max(firsts[p], self.state.dead_letter_offsets.get(p, 0)) for p in ends}
        # Of damaged letters nobody knows where they came from: they may be written again.
        letters = Stretch(self._log, DEAD_LETTER, starts, ends)
        batches = letters.batches(self._options.records_max, LETTERS_S)
        return {came_from(record) for records in batches for record in records}

    def _counts(self) -> Mapping[str, int]:
        """The counters of all shards."""
        total = Counter(self.state.counts)
        total.update(self._counts_elsewhere())
        return total

    # --- recovery

    def _load_newest(self, encoder: str) -> State | None:
        """The newest whole snapshot; None where there is none, or none that is whole."""
        try:
            loaded = Loader(self._store, encoder, self._options.memory).load_newest()
        except SnapshotDamaged as error:
            logger.error("no snapshot is whole: what the log holds is learned again (%s)", error)
            self._watch.damaged(str(error))
            return None
        return loaded[0] if loaded else None

    def _positioned(self, encoder: str, known: State | None) -> State:
        """A known state, or a new one, its offsets checked against the log."""
        memory = self._options.memory
        state = known or State(encoder, Learned(memory, memory.landmarks_of(encoder)))
        topic_id = self._log.topic_id(FEEDBACK)
        if state.topic_id and state.topic_id != topic_id:
            self._gap(LogReplaced(FEEDBACK, state.topic_id, topic_id))
            state.topic_id, state.offsets = topic_id, {}
            # Those there are came from the former topic.
            state.dead_letter_offsets = self._log.end_offsets(DEAD_LETTER)
        first, end = self._log.first_offsets(FEEDBACK), self._log.end_offsets(FEEDBACK)
        owned = {p for p in end if self._share.owns(p)}
        state.offsets = {p: o for p, o in state.offsets.items() if p in owned}
        for partition in owned:
            # A partition the snapshot does not know is new; nothing of it was learned.
            wanted = state.offsets.setdefault(partition, first[partition] if not known else 0)
            if not first[partition] <= wanted <= end[partition]:
                self._gap(
                    LogTruncated(FEEDBACK, partition, wanted, first[partition], end[partition])
                )
                state.count(SKIPPED, max(0, first[partition] - wanted))
                state.offsets[partition] = first[partition]
        return state

    def _check_same_topic(self) -> None:
        """Raise LogReplaced if the topic was made again under the reader.

        If it has grown past our offsets since, reading went on in it without a complaint. Asked
        after reading and before saving, so that nothing read there is ever saved.
        """
        found = self._log.topic_id(FEEDBACK)
        if found != self.state.topic_id:
            raise LogReplaced(FEEDBACK, self.state.topic_id, found)

    def _gap(self, error: LogReplaced | LogTruncated) -> None:
        """The log has lost records: raise, or say so loudly and go on, as the options state."""
        if self._options.on_gap != "continue":
            raise error
        self._dirty = self._passed_gap = True
        logger.error("%s Continuing without them, as `on_gap` says.", error)

    def _forget_seen(self) -> None:
        """Drop what can't arrive any more: older than the most backward partition would accept.

        By the log's clock, which judges lateness, and what of it has been true for a day: a value
        that is forgotten too early would count twice.
        """
        state, ends = self.state, self._log.end_offsets(FEEDBACK)
        horizon_ms = state.horizons.trusted_ms()
        for partition, offset in state.offsets.items():
            if offset < ends.get(partition, 0):
                horizon_ms = min(horizon_ms, state.horizons.of(partition).trusted_ms)
        age_ms = round(self._options.feedback.age_s_max * 1000)
        state.seen.forget(horizon_ms - CLOCK_MARGIN_MS - age_ms)
