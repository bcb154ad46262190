"""The log in memory with the fuse that kills whoever uses it at a chosen step.

    MemoryLog ──┐
                ├──step──▶ Fuse ──▶ Crash before the n-th step, and before every one after it
    Disk ───────┘

`Disk` (see `crashing_disk`) blows the same fuse, so that one number enumerates every place a
trainer can die at. tests/logs/test_memory_log.py runs the log's own contract tests over this.

A process that has crashed does nothing more. A blown fuse stays blown, and what its
owner still tries (`finally` blocks) has no effect; a restart is a new handle with a new fuse.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from streams.log import memory_log
from streams.log.memory_log import Storage

__all__ = ["Crash", "Fuse", "MemoryLog", "Storage"]


class Crash(BaseException):
    """The process is gone. Not an Exception: nobody survives by catching it."""


class Fuse:
    """Counts the steps of one process and ends it before the `crash_at`-th (from 1 on).

    >>> fuse = Fuse(crash_at=2)
    >>> fuse.step("read")
    >>> try:
    ...     fuse.step("append")
    ... except Crash as crash:
    ...     print(crash, fuse.steps)
    append ['read']
    """

    def __init__(self, crash_at: int | None = None) -> None:
        self.crash_at = crash_at
        self.steps: list[str] = []  # those that were done

    def step(self, name: str) -> None:
        if self.crash_at is not None and len(self.steps) + 1 >= self.crash_at:
            raise Crash(name)
        self.steps.append(name)


class MemoryLog(memory_log.MemoryLog):
    """One process's handle on a `Storage`, with a fuse, and hooks around every call."""

    def __init__(
        self,
        storage: Storage | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        *,
        crash_at: int | None = None,
        fuse: Fuse | None = None,
        **limits: int,
    ) -> None:
        super().__init__(storage or Storage(), now_ms, **limits)
        self.fuse = fuse or Fuse(crash_at)
        # Called with the call's name before and after it; may raise, as a broker may fail before
        # or after it has done what it was asked.
        self.before: Callable[[str], None] = lambda _: None
        self.after: Callable[[str], None] = lambda _: None

    def _called(self, name: str) -> None:
        self.fuse.step(name)
        super()._called(name)
        self.before(name)

    def _returns(self, name: str) -> None:
        self.after(name)
