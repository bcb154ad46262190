"""Keeps a trainer going: started again after errors, waiting while another one has the store.

Whatever ends a trainer is an alarm until the next one has saved something.
"""

from __future__ import annotations

import errno
import gc
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from streams.alarms import Board
from streams.errors import (
    LogReplaced,
    LogTruncated,
    LogUnavailable,
    SnapshotFenced,
    StreamError,
    TopicUnfit,
)
from streams.quiet import once_a_minute
from streams.training.snapshots import Store

logger = once_a_minute(logging.getLogger(__name__))

REST_S_MIN, REST_S_MAX = 0.1, 5.0  # between attempts of a trainer that keeps failing
TURN_LOOK_S = 2.0
OBJECTS_MIN = 50_000
# Another trainer that has saved nothing, and has shown no board, for so long is gone.
GONE_S = 45.0
# Alarms for what ends a trainer. One is on at a time: what ended the one before is over.
ENDINGS = {
    "disk_full",
    "log_gap",
    "log_unreachable",
    "topic_unfit",
    "trainer_failing",
    "trainer_fenced",
}
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class Worker(Protocol):
    """What a supervised thread runs: a trainer, or the merger of several."""

    def run(self, stopping: Callable[[], bool]) -> None:
        """Work until `stopping()`."""


def supervise(
    make: Callable[[], Worker],
    stopping: threading.Event,
    board: Board,
    store: Store,
    gone_s: float = GONE_S,
) -> None:
    """Run workers, each recovered from the last snapshot of `store`, until told to stop."""
    rest_s = REST_S_MIN
    collect_seldom()
    board.clear_others()
    while not stopping.is_set():
        started_s = time.monotonic()
        board.beat()
        try:
            make().run(stopping.is_set)
        except SnapshotFenced as error:
            # Taking the store back would only fence the other one in turn.
            _say(board, error)
            _await_turn(stopping, board, store, gone_s)
            continue
        except (StreamError, OSError) as error:
            logger.error("the trainer stopped and will start again: %s", error)
            _say(board, error)
        except Exception as error:
            logger.exception("an internal error ended the trainer; it will start again")
            _say(board, error)
        # A trainer that ran for a while had recovered: its next failure is a new one.
        ran_s = time.monotonic() - started_s
        rest_s = REST_S_MIN if ran_s > 10 else min(2 * rest_s, REST_S_MAX)
        stopping.wait(rest_s)
    board.close()


def collect_seldom() -> None:
    """Let the garbage collector look only after as many objects as a step of a trainer makes.

    Records are no cycles and are gone after their step, yet by default they are walked through
    every 700 of them: a tenth of all that a trainer does.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_MIN, *gc.get_threshold()[1:])


def alarm_of(error: Exception) -> str:
    """The alarm that stands for what ended a trainer."""
    if isinstance(error, SnapshotFenced):
        return "trainer_fenced"
    if isinstance(error, LogReplaced | LogTruncated):
        return "log_gap"
    if isinstance(error, LogUnavailable):
        return "log_unreachable"
    if isinstance(error, TopicUnfit):
        return "topic_unfit"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return "disk_full"
    return "trainer_failing"


def _say(board: Board, error: Exception) -> None:
    found = alarm_of(error)
    for name in sorted(ENDINGS - {found}):
        board.set(name, None)
    board.set(found, str(error) or repr(error))
    board.beat()


def _await_turn(stopping: threading.Event, board: Board, store: Store, gone_s: float) -> None:
    """Wait until the trainer that has taken over is gone: then this one may."""
    newest, since_s = -1, time.monotonic()
    while not stopping.wait(min(TURN_LOOK_S, gone_s / 4)):
        board.beat()
        try:
            version = store.newest()
        except OSError as error:
            logger.warning("the snapshot store can't be read: %s", error)
            continue
        if version != newest or board.others():
            newest, since_s = version, time.monotonic()
        elif time.monotonic() - since_s >= gone_s:
            logger.warning("the other trainer is gone: this one goes on from its last snapshot")
            return
