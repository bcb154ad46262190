"""How many replicas there were over time, and what the scaler said about it.

The one rule: it is looked at when the scaler steps, after its plan has been taken up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from load.simulation.loop.results import ReplicaSeries
from load.simulation.machines.fleet import VirtualFleet

STATES = ("ready", "starting", "draining")


class Series:
    """Collects, and gives columns at the end."""

    def __init__(self, fleet: VirtualFleet) -> None:
        self._fleet = fleet
        self._at_s: list[float] = []
        self._counts: list[list[list[int]]] = []  # by time, pool and state
        self._lines: list[str] = []

    def look(self, now_s: float, lines: Sequence[str] = ()) -> None:
        """Note replicas as they are, and a plan's lines with their time."""
        self._at_s.append(now_s)
        self._counts.append([[pool.n(state) for state in STATES] for pool in self._fleet.pools])
        self._lines += [f"{now_s:.0f} s: {line}" for line in lines]

    def columns(self) -> ReplicaSeries:
        """All that was seen."""
        counts = np.array(self._counts, np.int32)
        return ReplicaSeries(
            at_s=np.array(self._at_s),
            pools=tuple(pool.plan.name for pool in self._fleet.pools),
            **{state: counts[:, :, i] for i, state in enumerate(STATES)},
        )

    def lines(self) -> tuple[str, ...]:
        """All that was said."""
        return tuple(self._lines)
