"""Looks at a trainer while it works, and says what is wrong with it on a board.

What it asks is cheap, or asked rarely; nothing here raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from streams.alarms import Board, shown
from streams.clock import Clocks
from streams.errors import LogUnavailable
from streams.feedback.report import Reason, Report
from streams.log.contract import FEEDBACK, Log
from streams.training.share import Share
from streams.training.state import State
from streams.training.upkeep import RESAVED

LOOK_MS = 5_000
ASK_MS = 15_000  # between questions to the log
REFUSED_MIN, REFUSED_MS = 10, 30_000
STUCK_MS = 60_000
SAID_MS = 3_600_000  # what happens once is said for so long
What = TypeVar("What")


class _Mark(NamedTuple, Generic[What]):
    """How things stood at a time."""

    at_ms: int
    what: What


class Watcher(Protocol):
    """What follows how a trainer is doing."""

    def look(self, state: State, unreadable: str | None) -> None:
        """After each step. `unreadable` is why the log can't be read now; None: it can."""

    def saved(self) -> None:
        """A snapshot was written."""

    def damaged(self, cause: str) -> None:
        """At the start, no snapshot was whole."""

    def learned(self, reports: Sequence[Report]) -> None:
        """These were added to the state, or were in it already."""


class Unwatched:
    """Nobody follows."""

    def look(self, state: State, unreadable: str | None) -> None:
        """Nothing."""

    def saved(self) -> None:
        """Nothing."""

    def damaged(self, cause: str) -> None:
        """Nothing."""

    def learned(self, reports: Sequence[Report]) -> None:
        """Nothing."""


class Watch:
    """Called after each of a trainer's steps; used by its thread."""

    def __init__(
        self,
        board: Board,
        log: Log,
        share: Share,
        now_ms: Callable[[], int],
        traced: Callable[[str], None] | None = None,
    ) -> None:
        """`traced` is told the `traceparent` of each report that was learned and has one."""
        self._traced = traced
        self._board, self._log, self._share, self._now_ms = board, log, share, now_ms
        self._looked_ms = self._asked_ms = 0
        self._accepted: _Mark[tuple[int, int] | None] = _Mark(0, None)
        self._moved_on: _Mark[Mapping[int, int] | None] = _Mark(0, None)
        self._relearning: _Mark[str | None] = _Mark(0, None)
        self._counted: dict[str, _Mark[int]] = {}

    def look(self, state: State, unreadable: str | None) -> None:
        """Look, if it is time to."""
        now_ms = self._now_ms()
        if 0 <= now_ms - self._looked_ms < LOOK_MS:
            return
        self._looked_ms = now_ms
        self._board.set("log_unreachable", unreadable)
        self._board.set("feedback_refused", self._all_refused(state.counts, now_ms))
        self._board.set("feedback_damaged", self._said_damage(state.counts, now_ms))
        self._board.set("store_damaged", self._said_parts(state.counts, now_ms))
        self._board.set("clock_jumped", _jumped(state))
        if not 0 <= now_ms - self._asked_ms < ASK_MS:
            self._asked_ms = now_ms
            self._ask(state, now_ms)
        self._board.beat()

    def learned(self, reports: Sequence[Report]) -> None:
        """Say so in the traces of who reported."""
        if self._traced is not None:
            for report in reports:
                if report.traceparent:
                    self._traced(report.traceparent)

    def _all_refused(self, counts: Mapping[str, int], now_ms: int) -> str | None:
        """Since something was accepted last, or for half a minute."""
        records = counts.get("records", 0)
        accepted = sum(counts.get(name, 0) for name in ("learned", "duplicate", "moved"))
        before = self._accepted
        if before.what is None or before.what[0] != accepted:
            self._accepted = _Mark(now_ms, (accepted, records))
            return None
        refused = records - before.what[1]
        if refused < REFUSED_MIN or now_ms - before.at_ms < REFUSED_MS:
            return None
        most = _reasons(counts)
        return f"All of the last {refused} records became dead letters ({most})."

    def _said_damage(self, counts: Mapping[str, int], now_ms: int) -> str | None:
        n = self._lately(counts, f"dead_letter.{Reason.DAMAGED}", now_ms)
        return f"{n} records of the last hour can't be read." if n else None

    def _said_parts(self, counts: Mapping[str, int], now_ms: int) -> str | None:
        if self._relearning.what and now_ms - self._relearning.at_ms <= SAID_MS:
            return f"What the log holds was learned again at the start: {self._relearning.what}."
        n = self._lately(counts, RESAVED, now_ms)
        return f"{n} parts of snapshots were gone; they were saved again." if n else None

    def _lately(self, counts: Mapping[str, int], name: str, now_ms: int) -> int:
        """By how much a counter has grown in the last hour, or since this trainer began."""
        n, mark = counts.get(name, 0), self._counted.get(name)
        if mark is None or now_ms - mark.at_ms > SAID_MS:
            mark = self._counted[name] = _Mark(now_ms, n)
        return n - mark.what

    def _ask(self, state: State, now_ms: int) -> None:
        try:
            ends = self._log.end_offsets(FEEDBACK)
            problems = self._log.problems()
        except LogUnavailable:
            return  # said already
        self._board.set("topic_unfit", " ".join(problems) or None)
        unread = [p for p in ends if self._share.owns(p) and p not in state.offsets]
        self._board.set(
            "partitions_unread",
            f"{FEEDBACK} has partitions {unread}, not read." if unread else None,
        )
        waiting = {p: end - state.offsets[p] for p, end in ends.items() if p in state.offsets}
        self._board.set("trainer_stuck", self._stuck(dict(state.offsets), waiting, now_ms))

    def _stuck(
        self, offsets: Mapping[int, int], waiting: Mapping[int, int], now_ms: int
    ) -> str | None:
        if offsets != self._moved_on.what or not any(n > 1 for n in waiting.values()):
            self._moved_on = _Mark(now_ms, offsets)
        if now_ms - self._moved_on.at_ms < STUCK_MS:
            return None
        partition = max(waiting, key=lambda p: waiting[p])
        return (
            f"{FEEDBACK}[{partition}] has {waiting[partition]} records after offset "
            f"{offsets[partition]}, where reading has stayed for a minute."
        )

    def damaged(self, cause: str) -> None:
        """At the start, no snapshot was whole."""
        self._relearning = _Mark(self._now_ms(), cause)

    def saved(self) -> None:
        """A snapshot was written: the store takes what it is given."""
        for name in ("disk_full", "trainer_failing", "trainer_fenced", "log_gap"):
            self._board.set(name, None)


def _reasons(counts: Mapping[str, int]) -> str:
    prefix = "dead_letter."
    found = {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)}
    return ", ".join(sorted(found, key=lambda name: -found[name])[:3])


def _jumped(state: State) -> str | None:
    for what, clocks in (("feedback", state.clocks), ("telemetry", state.telemetry_clocks)):
        for partition, at_ms in _refuted(clocks):
            before = f"partition {partition}, before {shown(at_ms)}"
            return f"A record of {what}, {before}, had a wrong time."
    return None


def _refuted(clocks: Clocks) -> list[tuple[int, int]]:
    """Partitions whose clock was recently found wrong, and when."""
    return [
        (partition, steady.refuted_at_ms)
        for partition, steady in clocks.by_partition.items()
        if steady.refuted and abs(steady.last_ms - steady.refuted_at_ms) <= SAID_MS
    ]
