"""What a trainer looks after now and then: new partitions, parts that are gone, old records.

    partitions added to the feedback topic ──▶ are read from their start
    parts of snapshots gone from the store ──▶ are saved again
    records behind the last snapshot ──▶ the log drops them when they are old

The log drops nothing that the last snapshot does not stand behind.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from learners.option import same_as
from streams.log.contract import DEAD_LETTER, DECISIONS, FEEDBACK, TELEMETRY, Log
from streams.training.share import Share
from streams.training.state import Saver, State

logger = logging.getLogger(__name__)

RESAVED = "parts_resaved"  # counter: parts of snapshots that were gone from the store


@dataclass(frozen=True, slots=True, kw_only=True)
class UpkeepOptions:
    """How often to look, and how long records are kept."""

    look_s: float = 10.0  # what is looked for must be found, and said, within a minute
    # Of records that no snapshot needs any more.
    retention_s: float = same_as(7 * 86_400.0, "log.retention_s")


class Upkeep:
    """Used by a trainer's thread."""

    def __init__(
        self, log: Log, saver: Saver, share: Share, options: UpkeepOptions, now_ms: int
    ) -> None:
        self._log, self._saver, self._share, self._options = log, saver, share, options
        self._looked_ms = now_ms
        self._kept_from: dict[str, dict[int, int]] = {}

    def due(self, now_ms: int) -> bool:
        """Whether it is time to look again; if so, it is taken to be done."""
        if 0 <= now_ms - self._looked_ms < self._options.look_s * 1000:
            return False
        self._looked_ms = now_ms
        return True

    def found_partitions(self, state: State) -> bool:
        """Whether there are new partitions to read: added to `state`. Raises LogUnavailable."""
        first = self._log.first_offsets(FEEDBACK)
        new = {p: first[p] for p in set(first) - set(state.offsets) if self._share.owns(p)}
        if new:
            logger.warning("%s has new partitions, which are read, too: %s", FEEDBACK, sorted(new))
            state.offsets.update(new)
        return bool(new)

    def parts_are_gone(self, state: State) -> bool:
        """Whether parts of snapshots are gone, so that saving writes them again. Raises OSError."""
        n_gone = self._saver.forget_missing()
        if n_gone:
            logger.error("%d parts of snapshots are gone from the store: saved again", n_gone)
            state.count(RESAVED, n_gone)
        return n_gone > 0

    def saved(self, state: State) -> None:
        """A snapshot was saved: what lies before its offsets is not needed any more."""
        self._kept_from = {
            FEEDBACK: dict(state.offsets),
            DEAD_LETTER: dict(state.dead_letter_offsets),
            DECISIONS: dict(state.audit_offsets),
            TELEMETRY: dict(state.telemetry_offsets),
        }

    def retain(self, state: State) -> None:
        """Let the log drop what is old and not needed. Raises LogUnavailable.

        Old by the log's clock, and by what of it has been true for a day.
        """
        if not self._share.watches():
            return
        trusted_ms = state.horizons.trusted_ms()
        before_ms = trusted_ms - round(self._options.retention_s * 1000) if trusted_ms else 0
        n_dropped = self._log.retain(self._kept_from, before_ms)
        if n_dropped:
            logger.info("the log dropped %d records that are not needed any more", n_dropped)
