"""How many answers a server gives at once while one of them comes, as one who calls it sees it.

    first token ─▶ Batch.begin ─▶ Stay ── at the answer's end ──▶ Batch.end ─▶ Beside

How many a request found when it came says little of that: who came to an empty server is joined by
others, and who came to a full one sees them go. A line of the time per token against what was found
is flatter than the server is slow, and says that it does more at a load that it was not seen at.
"""

from __future__ import annotations

from typing import NamedTuple


class Stay(NamedTuple):
    """Of one answer, what had been counted when its first token came."""

    at_s: float
    answers_s: float
    begun: int


class Beside(NamedTuple):
    """What else the server did while one answer came."""

    answers: float  # that came at once, mean over the time, itself one of them
    begun: int  # others whose first token came meanwhile: their prompts were read


class Batch:
    """Of one server. Used from one thread, with times of one clock that never goes back."""

    __slots__ = ("_answers_s", "_at_s", "_begun", "_n")

    def __init__(self) -> None:
        self._n = self._begun = 0
        self._at_s = self._answers_s = 0.0  # answers × seconds, until then

    def begin(self, now_s: float) -> Stay:
        """A first token has come."""
        self._pass(now_s)
        self._n += 1
        self._begun += 1
        return Stay(now_s, self._answers_s, self._begun)

    def end(self, stay: Stay, now_s: float) -> Beside:
        """That answer has ended; each is ended once."""
        self._pass(now_s)
        took_s, n = now_s - stay.at_s, float(self._n)
        self._n -= 1
        mean = (self._answers_s - stay.answers_s) / took_s if took_s > 0.0 else n
        return Beside(max(1.0, mean), self._begun - stay.begun)

    def _pass(self, now_s: float) -> None:
        self._answers_s += self._n * (now_s - self._at_s)
        self._at_s = now_s
