"""Tells people which models have changed, and that settings are refused: log, board, numbers.

    views, refusals of the catalogue ──▶ RouterAlarms ──▶ log, once each
                                                   └──▶ Board ──▶ `fairlead status`, metrics

Where a pool of a model was beyond its capacity, answers took long because they waited there: such a
latency is listed as a change, because estimates do rest on it, but is no alarm about the model.

Every router comes to the same alarms, since they follow from the snapshot alone. So one router's
board is enough, and counts are those of one process. A router that has nothing to say writes
nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from itertools import compress

from learners.drift import Alarm
from serve.routing.live import Live
from streams.alarms import Board, Change

logger = logging.getLogger(__name__)

FRESH_MS = 3_600_000  # so long after it began a change is an alarm; after that it is just listed
FULL = 1.0  # load of a pool that carries what it should
# Answers that were decided while a pool was full come later, and its load is a mean of seconds.
DRAINED_MS = 60_000


class RouterAlarms:
    """Looks at every view; used by the thread that makes them."""

    def __init__(self, board: Board, now_ms: Callable[[], int]) -> None:
        self._board, self._now_ms = board, now_ms
        self._wrote = False
        self._on: set[tuple[str, str]] = set()  # model and target
        self._counts: Counter[tuple[str, str]] = Counter()  # views at which one was found
        self._full_ms: dict[str, int] = {}  # when a pool of a model was last seen beyond capacity

    def look(self, live: Live, refused: str = "") -> None:
        """Say what has changed by this view, and give a sign of life.

        `refused` says why the catalogue as it is now can't be used, and is not.
        """
        names = dict(zip(live.catalogue.keys, live.catalogue.names, strict=True))
        full = [live.load[columns].max() > FULL for columns in live.catalogue.columns_of]
        self._full_ms |= dict.fromkeys(compress(live.catalogue.names, full), self._now_ms())
        on = {(names[alarm.model], alarm.target): alarm for alarm in live.drift}
        for (model, target), alarm in on.items():
            if (model, target) not in self._on:
                self._counts[model, target] += 1
                logger.warning("model %s changed: %s", model, alarm)
        self._on = set(on)
        changes = tuple(self._change(*at, alarm) for at, alarm in sorted(on.items()))
        young = [one for one in changes if self._now_ms() - one.since_ms < FRESH_MS]
        fresh = [one for one in young if not one.by_load]
        self._board.set("model_changed", " ".join(map(str, fresh)) or None)
        self._board.set_changes(changes)
        self._board.set("settings_refused", refused or None)
        bills = [f"{names[one.model]}: {one}." for one in live.overbilled]
        self._board.set("model_overbilled", " ".join(bills) or None)
        if self._counts or refused or bills or self._wrote:
            self._begin()
            self._board.beat()

    def _begin(self) -> None:
        """Take down boards of routers that died, once."""
        if not self._wrote:
            self._board.clear_others()
            self._wrote = True

    def close(self) -> None:
        """The router stops in order."""
        if self._wrote:
            self._board.close()

    def _change(self, model: str, target: str, alarm: Alarm) -> Change:
        return Change(
            model=model,
            target=target,
            since_ms=alarm.since_ms,
            outcomes=alarm.outcomes,
            shift=round(alarm.shift, 3),
            count=self._counts[model, target],
            by_load=target == "latency" and self._was_full(model, alarm.since_ms),
        )

    def _was_full(self, model: str, since_ms: int) -> bool:
        return since_ms <= self._full_ms.get(model, -DRAINED_MS) + DRAINED_MS
