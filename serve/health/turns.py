"""Whose turn it is at a server: how many of those that a request found there it really waited for.

    request begins ─▶ Turns.begin ─▶ Turn ── at its end ──▶ turn.passed: those ahead that left
    another leaves unanswered ─▶ Turns.leave

A server works off what it holds in about the order in which it came. Who gives up waiting, or is
answered elsewhere, takes no time of it: those behind him have one less before them. So an answer
tells what the server does by those it found *less* those of them that left.
"""

from __future__ import annotations

KEPT_MAX = 4096  # that left last, of one server: more than it may hold at once, several times


class Turns:
    """Of one server. Used from one event loop."""

    __slots__ = ("_begun", "_forgotten", "_left")

    def __init__(self) -> None:
        self._begun = self._forgotten = 0
        self._left: list[int] = []  # the numbers of those that left, in the order in which they did

    def begin(self) -> Turn:
        """The next one."""
        self._begun += 1
        return Turn(self, self._begun, self._forgotten + len(self._left))

    def leave(self, number: int) -> None:
        """That one has left, and was not answered."""
        self._left.append(number)
        if len(self._left) > KEPT_MAX:
            half = KEPT_MAX // 2
            del self._left[:half]
            self._forgotten += half

    def passed(self, number: int, since: int) -> int:
        """How many left that had begun before that one, since so many had left."""
        return sum(left < number for left in self._left[max(0, since - self._forgotten) :])


class Turn:
    """One request's."""

    __slots__ = ("_before", "_number", "_of")

    def __init__(self, of: Turns, number: int, before: int) -> None:
        self._of, self._number, self._before = of, number, before

    def leave(self) -> None:
        """It has left, and was not answered."""
        self._of.leave(self._number)

    @property
    def passed(self) -> int:
        """Those ahead of it that have left."""
        return self._of.passed(self._number, self._before)
