"""Reports of outcomes on their way: usually there at once; late for a time, or never.

    reports ──sent──▶ Mail ──arrived──▶ feedback topic
                        └─ away: lost

What is late is not lost: it comes after what was sent when all was well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

Sent = TypeVar("Sent")


class Mail(Generic[Sent]):
    """Used by one simulation; of one kind of things that are sent."""

    def __init__(self) -> None:
        self._away_until_s = -1.0
        self._late: list[tuple[float, float]] = []  # until when, and how much later
        self._waiting: deque[tuple[float, Sequence[Sent]]] = deque()  # with the time they arrive

    def late(self, *, until_s: float, late_s: float) -> None:
        """What is sent until then arrives so much later, or as late as was said before, if more."""
        self._late.append((until_s, late_s))

    def away(self, *, until_s: float) -> None:
        """What is sent until then never arrives."""
        self._away_until_s = max(self._away_until_s, until_s)

    def send(self, reports: Sequence[Sent], now_s: float) -> None:
        """Send reports off."""
        if now_s < self._away_until_s:
            return
        late_s = max((late_s for until_s, late_s in self._late if now_s < until_s), default=0.0)
        self._waiting.append((now_s + late_s, reports))

    def arrived(self, now_s: float) -> list[Sent]:
        """All that is there by now."""
        there = [reports for at_s, reports in self._waiting if at_s <= now_s]
        self._waiting = deque(one for one in self._waiting if one[0] > now_s)
        return [report for reports in there for report in reports]
