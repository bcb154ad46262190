"""Folds the telemetry topic into a state, beside the trainer's real work.

    telemetry ──a few records a step──▶ decode ──▶ FleetState.fold ──▶ state.fleet
                                          └─ malformed: counted by reason, passed over

Telemetry is disposable: what can't be read is counted and done without. A topic that was cut
short, made again or is not there at all is no reason for a trainer to stop.

State and offsets change together, and nothing here raises.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from streams.clock import STEP_MS
from streams.errors import BadTelemetry, LogUnavailable, StreamError
from streams.log.contract import TELEMETRY, Log, Reader, Record
from streams.quiet import once_a_minute
from streams.telemetry.records import decode
from streams.training.budgets import forget
from streams.training.prices import PricingOptions, spent_usd
from streams.training.state import State

logger = once_a_minute(logging.getLogger(__name__))

# Counters kept with the state.
FOLDED, REPEATED = "telemetry.folded", "telemetry.repeated"
LOST = "telemetry.lost"  # records the log had no more, or can't read, when they were to be read
BAD = "telemetry.bad."  # followed by a reason
RETRY_MS = 10_000  # between looks for a topic that is not there; each may wait for the broker


class TelemetryFold:
    """Reads telemetry with offsets of its own, kept in the state. Used by one thread."""

    def __init__(
        self,
        log: Log,
        state: State,
        records_max: int,
        now_ms: int,
        pricing: PricingOptions | None = None,
        counts: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`records_max` is the most that a step folds; `counts` are those of all shards."""
        self._log, self._state, self._records_max = log, state, records_max
        self._pricing, self._counts = pricing or PricingOptions(), counts
        self._reader: Reader | None = None
        self._try_at_ms = 0
        try:
            self._open(now_ms)
        except StreamError as error:
            logger.warning("telemetry will be looked for again: %s", error)

    def step(self, now_ms: int) -> int:
        """Fold what there is, up to the limit; how many records were passed. Never raises."""
        try:
            if self._reader is None and not self._open(now_ms):
                return 0
            assert self._reader is not None
            records = self._reader.read(self._records_max, 0.0)
        except LogUnavailable as error:
            logger.debug("telemetry can't be read now: %s", error)
            return 0
        except StreamError as error:  # cut short or made again: see `_open`
            logger.warning("telemetry goes on elsewhere: %s", error)
            self.close()
            return 0
        for (partition, at_ms), taken in groupby(
            records, lambda r: (r.partition, r.appended_at_ms)
        ):
            self._fold(partition, at_ms, list(taken))
        return len(records) + self._pass_damage()

    def _open(self, now_ms: int) -> bool:
        """Go to where the state ends, or to the nearest there is; whether that is known."""
        if 0 <= self._try_at_ms - now_ms <= RETRY_MS:
            return False
        self._try_at_ms = now_ms + RETRY_MS
        topic_id = self._log.topic_id(TELEMETRY)
        first, end = self._log.first_offsets(TELEMETRY), self._log.end_offsets(TELEMETRY)
        state = self._state
        if state.telemetry_topic_id not in ("", topic_id):
            logger.warning("%s was made again: it is read from its start", TELEMETRY)
            state.telemetry_offsets = {}
        state.telemetry_topic_id = topic_id
        wanted = state.telemetry_offsets
        for partition, offset in wanted.items():
            # Of a partition the state does not know nothing was to be read: no loss.
            state.count(LOST, max(0, first.get(partition, offset) - offset))
        state.telemetry_offsets = {
            partition: min(max(wanted.get(partition, 0), first[partition]), end[partition])
            for partition in end
        }
        self._reader = self._log.reader(TELEMETRY, state.telemetry_offsets)
        self._try_at_ms = 0
        return True

    def _fold(self, partition: int, appended_at_ms: int, records: Sequence[Record]) -> None:
        """Fold records that go on in a partition, and that the log took at one time."""
        state = self._state
        clock = state.telemetry_clocks.of(partition)
        at_ms = clock.read(appended_at_ms)
        if at_ms < state.fleet.received_ms - STEP_MS:
            state.fleet.rewind(at_ms)  # the clock was ahead, and is right again
        if state.prices.due(at_ms):
            counts, key = self._counts(), records[0].key or b""
            state.prices = state.prices.advanced(
                state.fleet,
                spent_usd(counts),
                at_ms,
                self._pricing,
                counts,
                clock.trusted_ms,
                by_known=state.fleet.knows(key.decode(errors="replace")),
            )
            forget(state.counts, clock.trusted_ms)
        for name, n in self._folded(records, at_ms).items():
            state.count(name, n)
        state.telemetry_offsets[partition] = records[-1].offset + 1

    def _folded(self, records: Sequence[Record], at_ms: int) -> Counter[str]:
        """What became of each, as counters of the state."""
        fold, became = self._state.fleet.fold, Counter[str]()
        for record in records:
            try:
                became[FOLDED if fold(decode(record.value), at_ms) else REPEATED] += 1
            except BadTelemetry as error:
                became[BAD + error.reason] += 1
        return became

    def _pass_damage(self) -> int:
        """Count what can't be read, and go on after it; how many records that is."""
        assert self._reader is not None
        lost = 0
        damaged, self._reader.damaged[:] = list(self._reader.damaged), []
        for damage in damaged:
            offsets = self._state.telemetry_offsets
            offsets[damage.partition] = max(offsets[damage.partition], damage.end_offset)
            lost += damage.end_offset - damage.first_offset
        self._state.count(LOST, lost)
        return lost

    def close(self) -> None:
        """Let go of the reader."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
