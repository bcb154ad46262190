"""One answer, and what it was worth: what `ask` brings home and `report` counts.

    utility = quality − latency weight · seconds

The weight is the router's own (`[preference]` in its settings), so that it is judged
by what it was set to prefer.
"""

from __future__ import annotations

from dataclasses import dataclass

from questions import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question, who answered it, how well and after how many seconds."""

    question: Question
    model: str
    answer: str
    quality: float
    took_s: float

    def utility(self, points_per_s: float) -> float:
        """Quality points, less what the wait is worth: what the router maximises."""
        return self.quality - points_per_s * self.took_s
