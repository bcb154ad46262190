"""The requests of a simulation that are under way, or about to come: a window on a long traffic.

    parts ──read ahead──▶ held ──all have ended──▶ let go
                           ▲ rows of numbers

A request's number is its position in all of the traffic; its row is where it is held now. So
memory is that of a part, and of what has not ended, however many parts there are.

Parts follow each other in time. What is read ahead never changes what happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from load.data.traffic import Traffic, joined
from load.simulation.machines.offered import Ints


class Arrivals:
    """Used by one simulation."""

    def __init__(self, parts: Iterable[Traffic]) -> None:
        """Parts of one traffic; the first says which classes there are."""
        self._parts = iter(parts)
        self.held = next(self._parts)
        self.first = 0  # the number of the first that is held
        self.last_s = math.inf  # of the last of all; inf while there may be more

    def rows(self, numbers: Ints) -> Ints:
        """Where requests of these numbers are held."""
        return numbers - self.first if self.first else numbers

    def until(self, to_s: float) -> int:
        """How many of all come before a time; what is needed to know that has been read."""
        while self.last_s == math.inf and not (len(self.held) and self.held.at_s[-1] >= to_s):
            part = next(self._parts, None)
            if part is None:
                self.last_s = float(self.held.at_s[-1]) if len(self.held) else 0.0
            else:
                self.held = joined(self.held, part)
        return self.first + int(np.searchsorted(self.held.at_s, to_s))

    def at_s(self, number: int) -> float:
        """When a request comes."""
        return float(self.held.at_s[number - self.first])

    def let_go(self, n: int) -> Traffic:
        """Hold the first n no more; returns them."""
        gone, self.held = self.held.rows_of(0, n), self.held.rows_of(n, len(self.held))
        self.first += n
        return gone
