"""Bounds around a client library that lacks them: on time, on connections, on memory.

    within    a call that may never return      ──▶ an end to waiting for it
    Held      a client that breaks now and then ──▶ one that works, for all threads
    Backlog   a buffer that grows in an outage  ──▶ a refusal, at once

`kafka_log` stands on these; nothing here knows Kafka, so they are tested without a broker.

Nothing waits without an end, and no lock is held while something is closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, NamedTuple, Protocol, TypeVar

from streams.errors import LogUnavailable

T = TypeVar("T")


def within(timeout_s: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, if it does so in time; else TimeoutError.

    A call that never ends keeps its thread: better that than ours.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failures.append(error)

    thread = threading.Thread(target=run, name="bounded call", daemon=True)
    thread.start()
    thread.join(max(0.0, timeout_s))
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"no answer within {timeout_s:.1f} s")
    return results[0]


class Held(Generic[T]):
    """One connected client for all threads: made when first needed, made anew after a drop."""

    def __init__(self, connect: Callable[[float], T], close: Callable[[T, float], None]) -> None:
        """`connect(timeout_s)` makes one or raises; `close(client, patience_s)` must not raise."""
        self._connect, self._close_client = connect, close
        self._lock = threading.Lock()
        self._client: T | None = None
        self._closed = False

    def get(self, timeout_s: float) -> T:
        """The client, connected within `timeout_s` if there is none. Raises LogUnavailable."""
        if (client := self._client) is not None:
            return client
        deadline = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=max(0.0, timeout_s)):
            raise LogUnavailable(f"another thread has tried to connect for {timeout_s:.1f} s")
        try:
            if self._closed:
                raise LogUnavailable("this log was closed")
            if self._client is None:
                self._client = self._connect(deadline - time.monotonic())
            return self._client
        finally:
            self._lock.release()

    def drop(self, client: T | None = None) -> None:
        """Let go of the client at once; of `client` only, if given: another may have come since."""
        with self._lock:
            if client is not None and client is not self._client:
                return
            dropped, self._client = self._client, None
        if dropped is not None:
            self._close_client(dropped, 0.0)

    def close(self, patience_s: float) -> None:
        """Let go of the client for good, giving it time to end in order."""
        with self._lock:
            self._closed = True
            closed, self._client = self._client, None
        if closed is not None:
            self._close_client(closed, patience_s)


class Delivery(Protocol):
    """One item on its way."""

    is_done: bool  # it arrived, or never will


class Backlog:
    """How many bytes are on their way, or may still be though nobody waits for them any more."""

    def __init__(self, bytes_max: int) -> None:
        """Admit no more than `bytes_max`, but always one block when there is no other."""
        self._bytes_max, self._lock = bytes_max, threading.Lock()
        self._bytes_awaited = 0
        self._given_up: list[_GivenUp] = []

    def oldest_s(self) -> float:
        """How long ago the oldest was given up that is not done yet; 0 if there is none."""
        with self._lock:
            since_s = [left.since_s for left in self._given_up if not left.is_done()]
        return time.monotonic() - min(since_s) if since_s else 0.0

    @contextmanager
    def holding(self, n_bytes: int, deliveries: Sequence[Delivery]) -> Iterator[None]:
        """Count `n_bytes` until the block ends; if it raises, until all `deliveries` are done.

        Raises LogUnavailable when there is no room.
        """
        with self._lock:
            self._given_up = [left for left in self._given_up if not left.is_done()]
            held = self._bytes_awaited + sum(left.n_bytes for left in self._given_up)
            if held and held + n_bytes > self._bytes_max:
                raise LogUnavailable(
                    f"{held} bytes wait to be acknowledged already, {n_bytes} more would be above "
                    f"{self._bytes_max}: the brokers are away or slow"
                )
            self._bytes_awaited += n_bytes
        try:
            yield
        except BaseException:
            with self._lock:
                self._given_up.append(_GivenUp(n_bytes, deliveries, time.monotonic()))
            raise
        finally:
            with self._lock:
                self._bytes_awaited -= n_bytes


class _GivenUp(NamedTuple):
    """What a block left behind that raised."""

    n_bytes: int
    deliveries: Sequence[Delivery]
    since_s: float  # on the monotonic clock

    def is_done(self) -> bool:
        return all(delivery.is_done for delivery in self.deliveries)
