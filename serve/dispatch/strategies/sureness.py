"""How good a cheap answer is likely to be, by what it shows of itself.

    predicted quality, tokens' probabilities ─▶ quality of this answer ─▶ is a better one worth it?

Tokens' probabilities are not probabilities of being right, and each model has its own scale. So a
confidence counts by how far it lies from that model's usual one, in deviations: one deviation is
worth one unit of log odds, up or down from the predicted quality. What is usual is learned from the
answers themselves; until there are some, a confidence says nothing, and the prediction stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

USUAL_MIN = 8  # answers before a confidence counts
MEMORY = 500  # as many answers are averaged
ODDS_MAX = 7.0  # |log odds|: 0.1 % to 99.9 %


@dataclass(slots=True)
class _Usual:
    """Of one model: answers seen, mean and variance of their log odds."""

    n: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def note(self, odds: float) -> None:
        self.n += 1
        share = 1.0 / min(self.n, MEMORY)
        off = odds - self.mean
        self.mean += share * off
        self.variance += share * (off * (odds - self.mean) - self.variance)


@dataclass(slots=True)
class Sureness:
    """Of one dispatcher."""

    _of: dict[str, _Usual] = field(default_factory=dict)

    def quality(self, model: str, *, predicted: float, confidence: float | None) -> float:
        """Of an answer with this confidence, which is remembered; None: its pool gives none.

        >>> Sureness().quality("a", predicted=0.7, confidence=0.99)
        0.7
        """
        if confidence is None:
            return predicted
        usual, odds = self._of.setdefault(model, _Usual()), log_odds(confidence)
        found = predicted
        if usual.n >= USUAL_MIN and usual.variance > 0.0:
            off = (odds - usual.mean) / math.sqrt(usual.variance)
            found = 1.0 / (1.0 + math.exp(-(log_odds(predicted) + off)))
        usual.note(odds)
        return found


def log_odds(p: float) -> float:
    """ln(p / (1 − p)), bounded."""
    least = 1.0 / (1.0 + math.exp(ODDS_MAX))
    p = min(max(p, least), 1.0 - least)
    return math.log(p / (1.0 - p))
