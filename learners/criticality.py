"""How much depends on a request being answered: the four classes of Google's SRE book.

Declared here and nowhere else. The proto has the same names, JSON and the client the same in lower
case; its numbers are one higher, because 0 is "not said" there. Imports nothing, so that a client
can use it without the learners' packages.
"""

from __future__ import annotations

from enum import IntEnum


class Criticality(IntEnum):
    """Who is refused first when the fleet is full: the lowest."""

    SHEDDABLE = 0  # background work that will be tried again
    SHEDDABLE_PLUS = 1  # work that may wait
    CRITICAL = 2  # somebody waits for the answer; also what a request is that does not say
    CRITICAL_PLUS = 3  # never refused because the fleet is full

    @classmethod
    def words(cls) -> tuple[str, ...]:
        """The names as people write them, lowest first.

        >>> Criticality.words()
        ('sheddable', 'sheddable_plus', 'critical', 'critical_plus')
        """
        return tuple(level.name.lower() for level in cls)

    @property
    def priority(self) -> int:
        """As servers of models count it: 0 is served first, and 3 last."""
        return int(max(Criticality) - self)
