"""What a snapshot knew that is gone: learned again from one that is kept, and the feedback since.

    the newest kept version before it ──┐
    or nothing, where the log has all ──┴─ the feedback up to where it had read ─▶ the same bits

What was learned is a function of what was read, in any order and after any crash. That is what
makes this possible, and what it shows, when what comes out is what was logged.
"""

from __future__ import annotations

from dataclasses import dataclass

from learners.estimates.learned import Learned, MemoryOptions
from streams.errors import LogTruncated, SnapshotDamaged
from streams.feedback.feedback import FeedbackOptions, Ingest
from streams.feedback.ticket import Sealer, key_of
from streams.log.contract import FEEDBACK, Log
from streams.log.stretch import Stretch
from streams.training.parts.reached import Reached
from streams.training.snapshots import Store
from streams.training.state import Loader, State

RECORDS, PATIENCE_S = 8192, 30.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lessons:
    """The feedback that a site's only trainer learned, and how it read it."""

    log: Log
    sealer: Sealer
    feedback: FeedbackOptions


class Relearned:
    """States of versions that are gone, asked for in rising order."""

    def __init__(self, store: Store, encoder: str, memory: MemoryOptions, lessons: Lessons) -> None:
        """Raises SnapshotDamaged and LogUnavailable."""
        self._memory, self._encoder, self._log = memory, encoder, lessons.log
        self._loader = Loader(store, encoder, memory)
        self._ingest = Ingest(lessons.sealer, key_of(encoder), lessons.feedback)
        self._topic_id = lessons.log.topic_id(FEEDBACK)
        self._kept, self._reached = set(store.versions()), store.reached()
        self._state: State | None = None
        self._version = 0  # of the state

    def of(self, version: int) -> State | None:
        """What it knew; None where that can't be told. Raises LogUnavailable, SnapshotForeign."""
        wanted = self._reached.get(version)
        if wanted is None or wanted.topic_id != self._topic_id:
            return None
        try:
            state = self._begin(version)
            if state is None:
                return None
            self._learn(state, wanted)
        except LogTruncated:
            self._state = None
            return None
        self._state, self._version = state, version
        return state

    def _begin(self, version: int) -> State | None:
        """A state from before, on a way to this version on which nobody went back to another."""
        back = max(
            (v for v, r in self._reached.items() if v <= version and r.rolled_back_to), default=0
        )
        kept = max((v for v in self._kept if v <= version), default=0)
        if self._state is not None and self._version >= max(back, kept):
            return self._state
        if kept and kept >= back:
            try:
                return self._loader.load(kept)[0]
            except SnapshotDamaged:  # or pruned meanwhile
                self._kept.discard(kept)
                return self._begin(version)
        if back or any(self._log.first_offsets(FEEDBACK).values()):
            return None
        return State(self._encoder, Learned(self._memory, self._memory.landmarks_of(self._encoder)))

    def _learn(self, state: State, wanted: Reached) -> None:
        starts = {p: state.offsets.get(p, 0) for p in wanted.offsets}
        stretch = Stretch(self._log, FEEDBACK, starts, wanted.offsets)
        for records in stretch.batches(RECORDS, PATIENCE_S):
            ingested = self._ingest.take(records)
            state.learn(ingested.outcomes, ingested.bits, ingested.revisions)
        state.offsets = dict(wanted.offsets)
