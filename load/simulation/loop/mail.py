"""Reports of outcomes on their way: usually there at once; late for a time, or never.

    reports ──sent──▶ Mail ──arrived──▶ feedback topic
                        └─ away: lost

What is late is not lost: it comes after what was sent when all was well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

Report = tuple[bytes | None, bytes]  # key and value


class Mail:
    """Used by one simulation."""

    def __init__(self) -> None:
        self.away_until_s = -1.0
        self._late_until_s, self._late_s = -1.0, 0.0
        self._waiting: deque[tuple[float, Sequence[Report]]] = deque()  # with the time they arrive

    def late(self, *, until_s: float, late_s: float) -> None:
        """What is sent until then arrives so much later."""
        self._late_until_s, self._late_s = until_s, late_s

    def send(self, reports: Sequence[Report], now_s: float) -> None:
        """Send reports off."""
        if now_s < self.away_until_s:
            return
        late_s = self._late_s if now_s < self._late_until_s else 0.0
        self._waiting.append((now_s + late_s, reports))

    def arrived(self, now_s: float) -> list[Report]:
        """All that is there by now."""
        there = [reports for at_s, reports in self._waiting if at_s <= now_s]
        self._waiting = deque(one for one in self._waiting if one[0] > now_s)
        return [report for reports in there for report in reports]
