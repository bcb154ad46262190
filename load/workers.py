"""Processes that compute for this one, and end when it is told to.

    with workers(2) as pool:        a ProcessPoolExecutor
        pool.submit(run, ...)       Ctrl-C, SIGTERM or an error: what waits is not begun, what runs
                                    is ended, and nothing is left

Ctrl-C comes to all processes of a terminal. The workers leave it to the parent: each would print a
trace of its own. SIGTERM comes to the parent alone.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from typing import Any


@contextlib.contextmanager
def workers(
    n: int, begin: Callable[..., object] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """So many processes, each begun with `begin(*arguments)`, for the length of a `with` block."""
    # Spawned, not forked: gRPC's and BLAS's threads do not survive a fork.
    with ProcessPoolExecutor(n, get_context("spawn"), _begun, (begin, arguments)) as pool:
        try:
            yield pool
        except BaseException:
            end(pool)
            raise


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


def _begun(begin: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if begin is not None:
        begin(*arguments)
