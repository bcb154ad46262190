"""Planning, step by step: look, let the scaler decide, keep what it said and why.

    observe(now) ─▶ Observed ─▶ Scaler.step ─▶ Plan ─▶ kept, logged, written to the record

A planner that starts again goes on from the record: with the forecast's history, and with the last
plan if that is not too old.

The one rule: the last plan holds. What can't be observed, planned or written changes nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from infra.autoscaling.contract import Observed, Plan, Scaler
from infra.autoscaling.live.plan_record import Line, PlanRecord, read_record, write_record
from infra.settings.scaling_options import AutoscalingOptions

logger = logging.getLogger(__name__)


class RememberingScaler(Scaler, Protocol):
    """A scaler whose memory can be kept."""

    def as_dict(self) -> Mapping[str, Any]:
        """What it remembers, as plain JSON; {} is nothing."""


MakeScaler = Callable[[Mapping[str, Any]], RememberingScaler]  # from what one remembered
Observe = Callable[[int], Observed | None]  # at a Unix time in ms; None: nothing was ever heard


class Planning:
    """Used by one thread; `plan` may be read by any."""

    def __init__(
        self,
        folder: Path,
        make: MakeScaler,
        observe: Observe,
        options: AutoscalingOptions,
        now_ms: int,
    ) -> None:
        """`folder` is where the record is."""
        record = read_record(folder) or PlanRecord(at_ms=0)
        self.plan: Plan | None = None
        if now_ms - record.at_ms <= options.plan_kept_s * 1000:
            self.plan = record.plan
        self._folder, self._observe = folder, observe
        self._lines = deque(record.lines, options.lines_kept)
        self._at_ms = record.at_ms
        self._lead_ms = 0  # of the scaler's time, where the clock was set back
        self._scaler = _restored(make, record.scaler)

    def step(self, now_ms: int) -> None:
        """Look and decide anew. Raises what looking and deciding do."""
        observed = self._observe(now_ms)
        if observed is None:
            return
        at_ms = self._goes_on(now_ms)
        plan = self._scaler.step(replace(observed, at_s=at_ms / 1000.0))
        self.plan, self._at_ms = plan, at_ms
        self.say(now_ms, *plan.lines)
        self._write()

    def _goes_on(self, now_ms: int) -> int:
        """The scaler's time: from where it was, by as much as the clock goes on.

        A forecast's time must not go back, and must not stand still either until a clock that had
        been hours ahead is there again.
        """
        self._lead_ms = max(self._lead_ms, self._at_ms - now_ms)
        return now_ms + self._lead_ms

    def say(self, now_ms: int, *texts: str) -> None:
        """Log and keep lines for people."""
        for text in texts:
            logger.info("%s", text)
            self._lines.append(Line(now_ms, text))

    def _write(self) -> None:
        record = PlanRecord(
            at_ms=self._at_ms,
            plan=self.plan,
            lines=tuple(self._lines),
            scaler=self._scaler.as_dict(),
        )
        try:
            write_record(self._folder, record)
        except OSError as error:
            logger.error("the plan holds, but can't be written to %s: %s", self._folder, error)


def _restored(make: MakeScaler, remembered: Mapping[str, Any]) -> RememberingScaler:
    """The scaler as it was; one that begins anew if it can't make sense of what it remembered."""
    try:
        return make(remembered)
    except Exception:
        if not remembered:
            raise
        logger.exception("what the scaler remembered is left aside")
        return make({})
