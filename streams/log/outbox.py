"""Between the request path and the log: takes at once, writes later, never waits, never grows.

    request path ──offer──▶ queue (bounded) ──thread──▶ log.append

One thread drains the queue in batches. While the log is away the queue fills; when it is full new
items are refused and counted, so memory stays bounded and requests go on.

`offer` does no I/O and takes no lock that is held during I/O.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from learners.option import option
from streams.errors import LogUnavailable, OutboxClosed
from streams.log.contract import Log
from streams.quiet import once_a_minute

logger = once_a_minute(logging.getLogger(__name__))

Item = TypeVar("Item")
Pairs = list[tuple[bytes | None, bytes]]
Entry = tuple[Item, Future[None] | None]  # an item and who waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxOptions:
    """How much is held while the log is away."""

    items_max: int = option(
        20_000,
        "Items held in memory while the log is away; more are dropped and counted.",
        key="waiting_max",
        ge=1,
        le=10_000_000,
    )
    batch_max: int = 1000  # items written together
    append_timeout_s: float = 10.0
    # Rest between writes, so that they are few and large; none where somebody waits for the write.
    linger_s: float = 0.0
    retry_s: float = 0.25  # rest after a failed write
    # Who waits for an item is told after so long of failing writes: a full disk may last for hours.
    # Before a caller's own time is over (the client's is 1 s), who would know nothing but that.
    patience_s: float = 0.5
    close_s_max: float = 5.0  # how long closing tries to write what is waiting


@dataclass(slots=True)
class OutboxCounts:
    """What became of everything offered; `offered = written + dropped + waiting`."""

    offered: int = 0
    written: int = 0
    dropped: int = 0


class Outbox(Generic[Item]):
    """One topic's outbox: `encode` turns a batch of items into records, in the writing thread."""

    def __init__(
        self,
        log: Log,
        topic: str,
        encode: Callable[[Sequence[Item]], Pairs],
        options: OutboxOptions,
    ) -> None:
        self._log, self._topic, self._encode, self._options = log, topic, encode, options
        self._queue: queue.SimpleQueue[Entry[Item] | None] = queue.SimpleQueue()  # None: the end
        self._failing = ""  # why writing has failed for longer than anybody is to wait
        self._closing, self._gave_up = threading.Event(), threading.Event()
        self._awaited, self._n_awaited = threading.Event(), 0  # items in the queue, or the end
        self.counts = OutboxCounts()
        self._counting = threading.Lock()  # held for a few additions, never during I/O
        self._thread = threading.Thread(target=self._drain, name=f"outbox {topic}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items not written yet, those being written included."""
        return self.counts.offered - self.counts.written - self.counts.dropped

    def offer(self, item: Item) -> bool:
        """Hand over an item and forget it; False if it was dropped because the queue is full."""
        return self._enqueue(item, None)

    def submit(self, item: Item) -> Future[None]:
        """Hand over an item; the future is done when it is durable.

        It raises LogUnavailable if the queue is full, and OutboxClosed when shutting down. An
        item whose future nobody waits for any more may still be written.
        """
        future: Future[None] = Future()
        if not self._enqueue(item, future):
            future.set_exception(
                LogUnavailable(
                    f"{self._options.items_max} items wait for {self._topic} already: the log has "
                    f"been away or slow; try again later"
                )
            )
        elif self._failing:
            self._tell([future])
        return future

    def _enqueue(self, item: Item, future: Future[None] | None) -> bool:
        with self._counting:  # so that nothing comes after the end that `close` puts
            if self._closing.is_set():
                raise OutboxClosed(f"the outbox of {self._topic} is shutting down")
            self.counts.offered += 1
            if self.waiting > self._options.items_max:
                self.counts.dropped += 1
                return False
            if future is not None:
                self._count_awaited(1)  # before it can be taken
            self._queue.put((item, future))
        return True

    def _drain(self) -> None:
        while batch := self._take():
            with self._counting:
                self._count_awaited(-sum(future is not None for _, future in batch))
            self._write(batch)
            self._awaited.wait(self._options.linger_s)

    def _count_awaited(self, n: int) -> None:
        """So many more items wait with somebody waiting for them; `_counting` is held."""
        self._n_awaited += n
        (self._awaited.set if self._n_awaited else self._awaited.clear)()

    def _take(self) -> list[Entry[Item]]:
        """Wait for an item, then take what else is there; [] when closed and empty."""
        batch: list[Entry[Item]] = []
        while len(batch) < self._options.batch_max:
            try:
                entry = self._queue.get(block=not batch)
            except queue.Empty:
                break
            if entry is None:
                self._queue.put(None)  # write what is taken, then see the end again
                break
            batch.append(entry)
        return batch

    def _write(self, batch: Sequence[Entry[Item]]) -> None:
        """Write until it succeeds, or never will."""
        try:
            self._append(self._encode([item for item, _ in batch]), batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, others must not wait for it
            if len(batch) > 1 and not isinstance(error, OutboxClosed):
                # One of them can't be written, now or later: find it, and spare the others.
                middle = len(batch) // 2
                self._write(batch[:middle])
                self._write(batch[middle:])
                return
            logger.error("%d items of %s are dropped: %s", len(batch), self._topic, error)
            self._settle(batch, error)
        else:
            self._settle(batch, None)

    def _append(self, records: Pairs, batch: Sequence[Entry[Item]]) -> None:
        """Append, again while the log is away. Raises OutboxClosed when there is no more time."""
        began_s = time.monotonic()
        while True:
            try:
                self._log.append(self._topic, records, self._options.append_timeout_s)
            except LogUnavailable as error:
                logger.warning("%d records of %s wait: %s", len(records), self._topic, error)
                if time.monotonic() - began_s >= self._options.patience_s:
                    self._failing = str(error)
                    self._tell([future for _, future in batch])
            else:
                self._failing = ""
                return
            if self._gave_up.wait(self._options.retry_s):
                raise OutboxClosed(f"{self._topic}: stopped before it was written")

    def _tell(self, futures: Sequence[Future[None] | None]) -> None:
        """Let nobody wait any longer; the items are kept, and written when the log takes them."""
        failure = LogUnavailable(
            f"it is kept in memory, and written when the log can be ({self._failing}); sending it "
            f"again does no harm"
        )
        for future in futures:
            if future is not None and self._may_answer(future):
                future.set_exception(failure)

    def _settle(self, batch: Sequence[Entry[Item]], error: Exception | None) -> None:
        """Count what became of a batch, and tell who waits for it."""
        with self._counting:
            if error is None:
                self.counts.written += len(batch)
            else:
                self.counts.dropped += len(batch)
        for _, future in batch:
            if future is None or not self._may_answer(future):
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _may_answer(self, future: Future[None]) -> bool:
        """True for one caller only, and never once it was cancelled; it can't be from then on.

        Whoever submits while writing fails, the writing thread and whoever closes may all want to.
        """
        with self._counting:
            taken = future.running() or future.done()
            return not taken and future.set_running_or_notify_cancel()

    def close(self) -> None:
        """Refuse new items, write what is waiting, give up on it after `close_s_max`.

        What the log has in hand then stays in doubt until the log answers.
        """
        with self._counting:
            self._closing.set()
            self._count_awaited(1)  # the end, which is never taken
            self._queue.put(None)
        self._thread.join(self._options.close_s_max)
        self._gave_up.set()
        left: list[Entry[Item]] = []
        with suppress(queue.Empty):
            while True:
                left += filter(None, [self._queue.get_nowait()])
        self._queue.put(None)
        self._settle(left, OutboxClosed(f"{self._topic}: stopped before it was written"))
