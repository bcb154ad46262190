"""What became of one decision's outcomes, looked up beside the request path.

    decision id ─┬─▶ newest snapshot: the part of what was seen that has its issuer ─▶ learned
                 └─▶ the newest records of the feedback topic and the dead letters ──▶ records

Bounded: one part of a snapshot in memory at a time, and so many records of each partition.
"""

from __future__ import annotations

from typing import Any

from streams.errors import SnapshotDamaged
from streams.feedback.ticket import split_ids
from streams.feedback.trace import trace
from streams.log.contract import Log
from streams.training.snapshots import Store
from streams.training.state import load_seen

# Records looked at of each partition: 50 ms of a thread. `fairlead feedback trace` looks at all.
NEWEST = 50_000
LOOKS = 2  # a snapshot may be pruned between looking for the newest and reading it


class Tracer:
    """Of one replica's log and snapshots. Blocks."""

    def __init__(self, log: Log, store: Store) -> None:
        self._log, self._store = log, store

    def __call__(self, decision_id: bytes) -> dict[str, Any]:
        """As `fairlead feedback trace --json`. Raises LogUnavailable, SnapshotDamaged, OSError."""
        for look in range(LOOKS):
            try:
                return self._look(decision_id)
            except (SnapshotDamaged, OSError):
                if look + 1 == LOOKS:
                    raise
        raise AssertionError("the last look returns or raises")

    def _look(self, decision_id: bytes) -> dict[str, Any]:
        newest, seen, offsets = self._store.newest(), None, {}
        if newest:
            manifest, issuer = self._store.load(newest), int(split_ids([decision_id])[0][0])
            seen = load_seen(self._store, manifest, issuer)
            offsets = {int(p): int(o) for p, o in manifest.about["offsets"].items()}
        found = trace(self._log, seen, offsets, decision_id, NEWEST)
        return found | {"snapshot_version": newest}
