"""Planning, step by step: look, let the scaler decide, keep what it said and why.

    observe(now) ─▶ Observed ─▶ Scaler.step ─▶ Plan ─▶ kept, logged, written to autoscaling.json
                                                             ├─▶ planner, when it starts again
                                                             └─▶ `fairlead status`

A planner that starts again goes on from the record: with the forecast's history, and with the last
plan if that is not too old. The file is whole, old or new; one that can't be read is as good as
none.

The last plan holds. What can't be observed, planned or written changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from infra.autoscaling.contract import Observed, Plan, Scaler
from infra.settings.scaling_options import AutoscalingOptions

logger = logging.getLogger(__name__)

FILE = "autoscaling.json"
FORMAT = 1


class Line(NamedTuple):
    """What changed and why, for people."""

    at_ms: int  # Unix time
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """All that outlives the planner's process."""

    at_ms: int  # of the last plan, Unix time; 0: there is none
    plan: Plan | None = None
    lines: tuple[Line, ...] = ()  # oldest first
    scaler: Mapping[str, Any] = field(default_factory=dict)  # as it says of itself, plain JSON


class RememberingScaler(Scaler, Protocol):
    """A scaler whose memory can be kept."""

    def as_dict(self) -> Mapping[str, Any]:
        """What it remembers, as plain JSON; {} is nothing."""


MakeScaler = Callable[[Mapping[str, Any]], RememberingScaler]  # from what one remembered
Observe = Callable[[int], Observed | None]  # at a Unix time in ms; None: nothing was ever reported


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


def write_record(folder: Path, record: PlanRecord) -> None:
    """Replace the record. Raises OSError."""
    plan = record.plan and {"replicas": dict(record.plan.replicas), "routers": record.plan.routers}
    content = {
        "format": FORMAT,
        "at_ms": record.at_ms,
        "plan": plan,
        "lines": record.lines,
        "scaler": record.scaler,
    }
    partial = folder / f".{FILE}.partial"  # there is one planner, so one name is enough
    with partial.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FILE)


def read_record(folder: Path) -> PlanRecord | None:
    """The record; None where there is none, or none that can be read (which is logged)."""
    try:
        return _record(json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s in %s can't be read and is left aside: %r", FILE, folder, error)
        return None


def _record(content: Mapping[str, Any]) -> PlanRecord:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, this program reads {FORMAT}")
    plan = content["plan"]
    return PlanRecord(
        at_ms=int(content["at_ms"]),
        plan=plan
        and Plan(
            replicas={str(pool): int(n) for pool, n in plan["replicas"].items()},
            routers=int(plan["routers"]),
        ),
        lines=tuple(Line(int(at_ms), str(text)) for at_ms, text in content["lines"]),
        scaler=dict(content["scaler"]),
    )
