"""Time that no single reading can push ahead, or back, for longer than that reading lasts.

Clocks jump: a host starts before its time was set, a broker's is wrong, a leap is made by hand.
Who keeps the greatest reading ever seen, and saves it, believes the worst of them for ever. So:

    a small step   (up to `step_ms`)  is followed at once, forwards and backwards
    a jump                            is believed once it has lasted for `lasting_ms`

How long a jump has lasted, a process says by its monotonic clock, which does not jump
(`now_ms`); a log says it by the records after the jump, as far as their times go on from
there (`Steady`), each counting for `stride_ms` at most. So what is believed at a place in a log
depends on what stands before it there, and on nothing else: any reader comes to the same, at once
or years later, however often it dies on the way.

    `trusted_ms`  for what can't be undone: forgetting, deleting, the times outcomes are learned at
    `read`        for what can: a jump ahead counts at once, and is taken back when it proves wrong

Nothing that is saved is the greatest of many readings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

STEP_MS = 300_000  # as much as the clocks of hosts may differ: `FeedbackOptions.clock_skew_s_max`
LASTING_MS = 60_000
STRIDE_MS = 20_000  # so a jump needs four readings at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How far time may step at once, and how long a jump has to last to be believed."""

    step_ms: int = STEP_MS
    lasting_ms: int = LASTING_MS
    stride_ms: int = STRIDE_MS


QUICK = Patience()
# For what a wrong belief would destroy: values that were seen, records that are kept.
SLOW = Patience(step_ms=3_600_000, lasting_ms=86_400_000, stride_ms=3_600_000)


class Steady:
    """The time of one log partition, by the times of its records.

    >>> steady = Steady()
    >>> hour = 3_600_000
    >>> [steady.read(hour + 20_000 * i) - hour for i in range(4)]
    [0, 20000, 40000, 60000]
    >>> steady.trusted_ms == hour + 60_000
    True
    >>> steady.read(99 * hour) == 99 * hour, steady.trusted_ms == hour + 60_000
    (True, True)
    >>> steady.read(hour + 80_000) == steady.trusted_ms == hour + 80_000, steady.refuted
    (True, 1)
    """

    __slots__ = ("lasted_ms", "patience", "pending_ms", "refuted", "refuted_at_ms", "trusted_ms")

    def __init__(self, patience: Patience = QUICK, saved: Sequence[int] = (0, 0, 0, 0, 0)) -> None:
        """`saved` is what `as_list` gave."""
        self.patience = patience
        self.trusted_ms, self.pending_ms, self.lasted_ms = saved[:3]  # 0: not known, none
        self.refuted, self.refuted_at_ms = saved[3:]  # jumps that proved wrong, and the last one

    def read(self, reading_ms: int) -> int:
        """The time now, by one more reading; a jump back is not followed before it is believed."""
        near = abs(reading_ms - self.trusted_ms) <= self.patience.step_ms
        if self.trusted_ms and near:
            self._refute(reading_ms)
            self.trusted_ms = reading_ms
            return reading_ms
        self._wait(reading_ms)
        return max(reading_ms, self.trusted_ms)

    def _wait(self, reading_ms: int) -> None:
        """One more reading that is a jump from what is trusted."""
        if not self.pending_ms or reading_ms < self.pending_ms - self.patience.step_ms:
            self._refute(reading_ms)
            self.pending_ms, self.lasted_ms = reading_ms, 0
            return
        went_on_ms, before_ms = max(0, reading_ms - self.pending_ms), self.pending_ms
        self.lasted_ms += min(went_on_ms, self.patience.stride_ms)
        self.pending_ms = max(reading_ms, self.pending_ms)
        if self.lasted_ms >= self.patience.lasting_ms:
            near = went_on_ms <= self.patience.step_ms
            self._believe(self.pending_ms if near else before_ms)  # the other is a jump of its own
            self.pending_ms, self.lasted_ms = (0 if near else reading_ms), 0

    def _believe(self, time_ms: int) -> None:
        if self.trusted_ms > time_ms:  # what was trusted had been wrong
            self.refuted, self.refuted_at_ms = self.refuted + 1, time_ms
        self.trusted_ms = time_ms

    def _refute(self, reading_ms: int) -> None:
        """A jump that is not gone on from was none."""
        if self.pending_ms:
            self.refuted, self.refuted_at_ms = self.refuted + 1, reading_ms
        self.pending_ms = self.lasted_ms = 0

    @property
    def last_ms(self) -> int:
        """The last reading that may be right; 0: there was none."""
        return self.pending_ms or self.trusted_ms

    def as_list(self) -> list[int]:
        """Plain numbers, for a snapshot."""
        return [
            self.trusted_ms,
            self.pending_ms,
            self.lasted_ms,
            self.refuted,
            self.refuted_at_ms,
        ]


class ProcessClock:
    """Unix time in milliseconds within one process: wall clock, less what it jumps."""

    def __init__(
        self,
        wall_ms: Callable[[], int],
        monotonic_ms: Callable[[], int],
        patience: Patience = QUICK,
    ) -> None:
        self._wall_ms, self._monotonic_ms, self._patience = wall_ms, monotonic_ms, patience
        self._offset_ms = wall_ms() - monotonic_ms()
        self._pending: tuple[int, int] | None = None  # another offset, and since when it is seen

    def __call__(self) -> int:
        """The time now."""
        monotonic_ms = self._monotonic_ms()
        offset_ms = self._wall_ms() - monotonic_ms
        if abs(offset_ms - self._offset_ms) <= self._patience.step_ms:
            self._offset_ms, self._pending = offset_ms, None
        else:
            self._wait(offset_ms, monotonic_ms)
        return monotonic_ms + self._offset_ms

    def _wait(self, offset_ms: int, monotonic_ms: int) -> None:
        pending = self._pending
        if pending is None or abs(offset_ms - pending[0]) > self._patience.step_ms:
            self._pending = (offset_ms, monotonic_ms)
        elif monotonic_ms - pending[1] >= self._patience.lasting_ms:
            self._offset_ms, self._pending = offset_ms, None

    @property
    def off_by_ms(self) -> int:
        """By how much the wall clock is off what is believed of it; 0: they agree."""
        return 0 if self._pending is None else self._pending[0] - self._offset_ms


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _awake_or_not_ms() -> int:
    """Monotonic, and going on while the machine sleeps, where there is such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


_process_clock = ProcessClock(_wall_ms, _awake_or_not_ms)


def now_ms() -> int:
    """Unix time in milliseconds: the one clock that the parts are handed. It does not jump."""
    return _process_clock()


@dataclass(slots=True)
class Clocks:
    """The time of each partition of one topic, up to where it was read."""

    patience: Patience = QUICK
    by_partition: dict[int, Steady] = field(default_factory=dict)

    def of(self, partition: int) -> Steady:
        """The clock of a partition; a new one knows nothing yet."""
        if partition not in self.by_partition:
            self.by_partition[partition] = Steady(self.patience)
        return self.by_partition[partition]

    def trusted_ms(self) -> int:
        """The time of the partition that is furthest on; 0 where none is known."""
        return max((steady.trusted_ms for steady in self.by_partition.values()), default=0)

    def as_dict(self) -> dict[int, list[int]]:
        """For a snapshot's manifest."""
        return {p: steady.as_list() for p, steady in sorted(self.by_partition.items())}

    @classmethod
    def from_dict(cls, found: Mapping[str, list[int]], patience: Patience = QUICK) -> Clocks:
        """What `as_dict` gave. Raises TypeError and ValueError."""
        return cls(patience, {int(p): Steady(patience, saved) for p, saved in found.items()})
