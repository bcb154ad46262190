"""One line a minute of what is said again and again, while a broker is away.

    logger ──▶ OncePerMinute ──▶ handlers      "… (37 more in the last minute)"

The first of its kind is said at once; what is left out is counted and said.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

PERIOD_S = 60.0


class OncePerMinute(logging.Filter):
    """Lets one record of each kind pass in a minute; kinds are the texts before arguments."""

    def __init__(
        self,
        kind: Callable[[logging.LogRecord], object] = lambda record: record.msg,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._kind, self._monotonic_s = kind, monotonic_s
        self._said: dict[object, tuple[float, int]] = {}  # when last, and how many since

    def forget(self) -> None:
        """Begin anew: all that comes is said at once."""
        self._said.clear()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to say it."""
        kind, now_s = self._kind(record), self._monotonic_s()
        last_s, n = self._said.get(kind, (-PERIOD_S, 0))
        if now_s - last_s < PERIOD_S:
            self._said[kind] = (last_s, n + 1)
            return False
        self._said[kind] = (now_s, 0)
        if n:
            record.msg, record.args = f"{record.getMessage()} ({n} more since the last time)", ()
        return True


def once_a_minute(logger: logging.Logger) -> logging.Logger:
    """The logger, saying the same text once a minute at most."""
    if not any(isinstance(found, OncePerMinute) for found in logger.filters):
        logger.addFilter(OncePerMinute())
    return logger


class Relay(logging.Handler):
    """Takes what a library's loggers say, and passes on one line a minute of each level."""

    def __init__(self, to: logging.Logger) -> None:
        super().__init__()
        self._to = to
        self.addFilter(OncePerMinute(lambda record: record.levelno))

    def emit(self, record: logging.LogRecord) -> None:
        """To the handlers of the other logger and its parents."""
        self._to.callHandlers(record)


def hush(library: logging.Logger) -> None:
    """Let a library say one line a minute of each level, all of its loggers together."""
    if not any(isinstance(handler, Relay) for handler in library.handlers):
        assert library.parent is not None, "the root logger is nobody's library"
        library.addHandler(Relay(library.parent))
        library.propagate = False
