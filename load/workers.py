"""Processes that compute for this one, and end when it is told to.

    with workers(2) as pool:        a ProcessPoolExecutor
        pool.submit(run, ...)       Ctrl-C, SIGTERM or an error: what waits is not begun, what runs
                                    is ended, and nothing is left

Ctrl-C comes to all processes of a terminal. The workers leave it to the parent: each would print a
trace of its own. SIGTERM comes to the parent alone. A parent that is killed says nothing: so each
waits for the end of a pipe whose other end the parent alone has.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.managers import SyncManager
from threading import Thread
from typing import Any


@contextlib.contextmanager
def workers(
    n: int, begin: Callable[..., object] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """So many processes, each begun with `begin(*arguments)`, for the length of a `with` block."""
    # Spawned, not forked: gRPC's and BLAS's threads do not survive a fork.
    with ProcessPoolExecutor(n, get_context("spawn"), begun, (begin, *arguments)) as pool:
        try:
            yield pool
        except BaseException:
            end(pool)
            raise


@contextlib.contextmanager
def shared() -> Iterator[SyncManager]:
    """Makes what workers share, and holds it in a process of its own, which ends like theirs."""
    manager = SyncManager(ctx=get_context("spawn"))
    manager.start(begun)
    with manager:
        yield manager


def end(pool: ProcessPoolExecutor) -> None:
    """End what runs; what waits is not begun."""
    with undisturbed():
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in active_children():
            worker.terminate()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """What ends a command may come twice, from `timeout` or an impatient hand."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def begun(begin: Callable[..., object] | None = None, *arguments: Any) -> None:
    """First of all in a process that computes for its parent; then `begin(*arguments)`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "it is begun in a process that multiprocessing has started"
    parent.join()
    os._exit(1)
