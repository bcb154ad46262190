"""How far a contender has come, told on standard error from the process that it runs in.

    Planner or rival ◀─ Told ◀─ simulation, every ten simulated seconds
                          └─ every half minute ─▶ diurnal fairlead: hour 12.5 of 48.0, 14 min left

A bench of two days runs for an hour and more, in several processes. The time left is that of this
run, at the pace that it had so far.

What the scaler says is passed on as it is: nothing that is simulated depends on it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from infra.autoscaling.contract import Observed, Plan, Scaler

SAY_EVERY_S = 30.0
HOUR_S = 3600.0


def on_stderr(text: str) -> None:
    """A line. Workers share their parent's standard error, and have nothing else to say."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Told:
    """A scaler that says now and then how far its run has come."""

    def __init__(
        self,
        scaler: Scaler,
        span_s: float,
        name: str,
        say: Callable[[str], None] = on_stderr,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`span_s` is how long is simulated; `now_s` tells the time that it takes."""
        self._scaler, self._name, self._span_s = scaler, name, span_s
        self._say, self._now_s = say, now_s
        self._began: tuple[float, float] | None = None  # simulated, and real
        self._said_s = now_s()

    def step(self, observed: Observed) -> Plan:
        """What the scaler says."""
        now_s = self._now_s()
        at_s, began_s = self._began = self._began or (observed.at_s, now_s)
        if now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            self._tell(observed.at_s - at_s, now_s - began_s)
        return self._scaler.step(observed)

    def _tell(self, done_s: float, took_s: float) -> None:
        hours, of = done_s / HOUR_S, self._span_s / HOUR_S
        left_min = took_s * max(0.0, self._span_s - done_s) / max(done_s, 1e-9) / 60.0
        self._say(f"{self._name}: hour {hours:.1f} of {of:.1f}, {left_min:.0f} min left")
