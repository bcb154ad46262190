"""SIGTERM ends a command as Ctrl-C does: processes, Ray, a broker that it has begun end with it.

    SIGTERM ──an event loop runs──▶ its own handler of Ctrl-C: tasks are ended in order ─┐
          └──none does────────────▶ SystemExit, wherever the command is ────────────────┴─▶ code 143

Raised within an event loop, an exception would come up in whatever callback is due.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from functools import partial
from types import FrameType


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
