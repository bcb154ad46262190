"""What ends a command, and starts `fairlead up` anew where Ray has ended: a few times at most.

SIGTERM ends a command as Ctrl-C does: processes, Ray, a broker that it has begun end with it. While
an event loop runs, it does what the loop makes of Ctrl-C, tasks ended in order: raised in there, an
exception would come up in whatever callback is due.

    Ray's head dies ─▶ what is left of it is ended ─▶ this process executes itself anew

Executing anew (`execv`) keeps the process's number, its terminal and its place under a supervisor,
and leaves nothing of the old Ray in memory. When it was started again is handed on in the
environment; after `RESTARTS_MAX` within `WITHIN_S` something is wrong that starting can't mend, and
the process ends with the reason instead.

The thread that starts and ends everything may be within a call to Ray when its head dies. Such a
call is not answered, and after a minute Ray ends the whole process. So another thread looks on
(`unless_stuck`), and does the same where that thread has not by then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FrameType
from typing import NoReturn

VARIABLE = "FAIRLEAD_RESTARTED_AT_S"
RESTARTS_MAX, WITHIN_S = 3, 600
STUCK_S = 20.0  # of the minute after which Ray ends the process


def restarted_at_s(environment: Mapping[str, str]) -> list[int]:
    """When this process was started again, in seconds of wall time; what isn't ours is left out.

    >>> restarted_at_s({VARIABLE: "1700000000,x,1700000100"})
    [1700000000, 1700000100]
    """
    return [int(at) for at in environment.get(VARIABLE, "").split(",") if at.isdecimal()]


def recent(times_s: list[int], now_s: int) -> list[int]:
    """Those that count; one from the future, after a clock was set back, does not.

    >>> recent([100, 900, 2000], 1000)
    [900]
    """
    return [at for at in times_s if 0 <= now_s - at < WITHIN_S]


def may_restart(times_s: list[int], now_s: int) -> bool:
    """Whether starting again is worth another try."""
    return len(recent(times_s, now_s)) < RESTARTS_MAX


def restart(now_s: int) -> NoReturn:
    """Execute this command line anew, in this process."""
    times = [*recent(restarted_at_s(os.environ), now_s), now_s]
    os.environ[VARIABLE] = ",".join(map(str, times))
    os.execv(sys.executable, [sys.executable, "-m", "fairlead", *sys.argv[1:]])  # noqa: S606 - ourselves


def stop_on_signals(stopping: threading.Event) -> None:
    """Both signals stop us as Ctrl-C does; shells start background jobs with SIGINT ignored."""

    def stop(*_: object) -> NoReturn:
        stopping.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """For all of a command."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, partial(terminated, told))
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        if told:
            sys.exit(128 + told[0])
        raise


def terminated(told: list[int], number: int, frame: FrameType | None) -> None:
    """Note that it came, and do as after Ctrl-C."""
    told.append(number)
    interrupt = signal.getsignal(signal.SIGINT)
    if not callable(interrupt) or interrupt is signal.default_int_handler:
        sys.exit(128 + number)
    interrupt(signal.SIGINT, frame)


@contextlib.contextmanager
def unless_stuck(
    ended: Callable[[], str],
    mend: Callable[[str], object],
    *,
    patience_s: float = STUCK_S,
    every_s: float = 1.0,
) -> Iterator[None]:
    """Meanwhile, `mend` in another thread what `ended` still names after so many seconds."""
    left = threading.Event()

    def watch() -> None:
        while not left.wait(every_s):
            if ended() and not left.wait(patience_s) and (what := ended()):
                mend(what)
                return

    watching = threading.Thread(target=watch, name="unless-stuck", daemon=True)
    watching.start()
    try:
        yield
    finally:
        left.set()
        watching.join()
