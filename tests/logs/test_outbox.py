"""The outbox: never waits, never grows, loses nothing unsaid, and survives whatever the log does."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest
from memory_log import MemoryLog

from fairlead import Client
from streams.errors import LogUnavailable, OutboxClosed, RecordTooLarge
from streams.log.outbox import Outbox, OutboxOptions

TOPIC = "topic"
PATIENCE_S = 120.0  # for what must come; a test that waits this long has failed
OPTIONS = {"items_max": 100, "batch_max": 10, "retry_s": 0.001, "close_s_max": PATIENCE_S}


class Gate:
    """A log's append stands before it until it is opened."""

    def __init__(self) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()

    def __call__(self, name: str) -> None:
        if name == "append":
            self.reached.set()
            assert self.opened.wait(PATIENCE_S), "the gate was never opened"


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog(record_bytes_max=1000)


@pytest.fixture
def gate(log) -> Iterator[Gate]:
    """Closed; opened at the end, whatever happens."""
    log.before = gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def start(log):
    """Starts outboxes, and ends them."""
    started: list[Outbox] = []

    def start(encode=list, **options: object) -> Outbox:
        started.append(Outbox(log, TOPIC, encode, OutboxOptions(**{**OPTIONS, **options})))
        return started[-1]

    yield start
    log.before = log.after = lambda _: None
    for outbox in started:
        outbox.close()


def item(number: int) -> tuple[bytes, bytes]:
    return (b"key", b"%d" % number)


def written(log: MemoryLog) -> list[int]:
    return [int(record.value) for record in log.records(TOPIC)]


def settled(outbox: Outbox) -> dict[str, int]:
    """The counts once nothing is waiting; they always add up."""
    deadline = time.monotonic() + PATIENCE_S
    while outbox.waiting:
        assert time.monotonic() < deadline, f"{outbox.waiting} items wait for ever"
        time.sleep(0.001)
    counts = outbox.counts
    assert counts.offered == counts.written + counts.dropped
    return {"written": counts.written, "dropped": counts.dropped}


def failing(times: int, error: Exception | None = None):
    """A hook that makes the next appends fail."""
    left = [times]

    def hook(name: str) -> None:
        if name == "append" and left[0]:
            left[0] -= 1
            raise error or LogUnavailable("away")

    return hook


# --- handing over


def test_what_is_offered_is_written_in_order(log, start):
    """
    In batches, whatever their borders.
    """
    outbox = start(items_max=1000)

    assert all(outbox.offer(item(i)) for i in range(500))

    assert settled(outbox) == {"written": 500, "dropped": 0}
    assert written(log) == list(range(500))


def test_offers_of_several_threads_keep_each_threads_order(log, start):
    """
    And the counts lose none of them.
    """
    outbox = start(items_max=10_000)

    def offer(thread: int) -> None:
        for i in range(300):
            assert outbox.offer(item(1000 * thread + i))

    threads = [threading.Thread(target=offer, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert settled(outbox) == {"written": 1200, "dropped": 0}
    for thread in range(4):
        mine = [number for number in written(log) if number // 1000 == thread]
        assert mine == list(range(1000 * thread, 1000 * thread + 300))


def test_items_are_encoded_together_outside_the_request(log, start, gate):
    """
    Many batches of decisions become one record, in the writing thread, never more than asked for.
    """
    batches = []

    def encode(items):
        batches.append((len(items), threading.current_thread().name))
        return list(items)

    outbox = start(encode)
    outbox.offer(item(0))
    assert gate.reached.wait(PATIENCE_S)
    for i in range(1, 25):
        outbox.offer(item(i))
    gate.opened.set()

    settled(outbox)
    assert batches == [(n, f"outbox {TOPIC}") for n in (1, 10, 10, 4)]


def test_offering_does_not_wait_while_the_log_hangs(log, start, gate):
    """
    Nor does it grow: what is beyond the limit is refused and counted, and what was taken is
    written when the log comes back.
    """
    outbox = start(items_max=100)
    outbox.offer(item(0))
    assert gate.reached.wait(PATIENCE_S), "the thread now hangs in the log"

    taken = [outbox.offer(item(i)) for i in range(1, 300)]

    assert taken == [True] * 99 + [False] * 200
    assert (outbox.waiting, outbox.counts.dropped, written(log)) == (100, 200, [])
    gate.opened.set()
    assert settled(outbox) == {"written": 100, "dropped": 200}
    assert written(log) == list(range(100))
    assert outbox.offer(item(300)), "there is room again"


# --- a log that fails


@pytest.mark.parametrize("times", [1, 7])
def test_a_log_that_is_away_is_tried_until_it_is_back(log, start, times):
    """
    With the same items, before any later ones.
    """
    log.before = failing(times)
    outbox = start()

    for i in range(50):
        outbox.offer(item(i))

    assert settled(outbox) == {"written": 50, "dropped": 0}
    assert written(log) == list(range(50))


def test_an_append_that_failed_after_all_is_repeated(log, start):
    """
    It may or may not be in the log. Twice is harmless for feedback; lost is not.
    """
    log.after = failing(1)
    outbox = start(batch_max=1)

    outbox.submit(item(1)).result(PATIENCE_S)

    assert written(log) == [1, 1]


@pytest.mark.parametrize("where", ["log", "encode"])
def test_an_item_that_can_not_be_written_is_dropped_alone(log, start, gate, where):
    """
    Too large for the log, or not encodable: those beside it are written, it is counted, its future
    says why, and the thread lives.
    """

    def encode(items):
        if where == "encode" and any(number == b"bad" for _, number in items):
            raise ValueError("can't be encoded")
        return [(k, b"x" * 1001 if v == b"bad" else v) for k, v in items]

    outbox = start(encode)
    outbox.offer(item(0))
    assert gate.reached.wait(PATIENCE_S)
    futures = [outbox.submit(item(i)) for i in range(1, 5)]
    bad = outbox.submit((b"key", b"bad"))
    futures += [outbox.submit(item(i)) for i in range(5, 9)]
    gate.opened.set()

    for future in futures:
        future.result(PATIENCE_S)
    with pytest.raises(RecordTooLarge if where == "log" else ValueError):
        bad.result(PATIENCE_S)
    assert settled(outbox) == {"written": 9, "dropped": 1}
    assert written(log) == list(range(9))
    outbox.submit(item(9)).result(PATIENCE_S)


# --- waiting for it


def test_a_future_is_done_when_its_item_is_durable_and_not_before(log, start, gate):
    """
    Whoever was answered can rely on it.
    """
    outbox = start()

    future = outbox.submit(item(1))

    assert gate.reached.wait(PATIENCE_S)
    assert not future.done()
    gate.opened.set()
    assert future.result(PATIENCE_S) is None
    assert written(log) == [1]


def test_a_future_of_a_full_outbox_fails_at_once(log, start, gate):
    """
    With what is wrong and how many wait; the caller tries again later.
    """
    outbox = start(items_max=1)
    first = outbox.submit(item(0))

    refused = outbox.submit(item(1))

    assert refused.done()
    with pytest.raises(LogUnavailable, match=f"1 items wait for {TOPIC}"):
        refused.result()
    gate.opened.set()
    first.result(PATIENCE_S)
    assert settled(outbox) == {"written": 1, "dropped": 1}


def test_a_future_nobody_waits_for_any_more_hurts_nobody(log, start, gate):
    """
    A caller's deadline passed: its item may still be written, and so are those beside it.
    """
    outbox = start()
    futures = [outbox.submit(item(i)) for i in range(5)]

    assert futures[2].cancel()
    gate.opened.set()

    for future in futures[:2] + futures[3:]:
        assert future.result(PATIENCE_S) is None
    with pytest.raises(CancelledError):
        futures[2].result()
    settled(outbox)
    assert outbox.submit(item(9)).result(PATIENCE_S) is None


def test_cancelling_at_the_very_moment_of_success_hurts_nobody(log, start):
    """
    Between the look whether it was cancelled and its result.
    """
    outbox = start()
    future = outbox.submit(item(0))
    future.result(PATIENCE_S)
    racing = type(future)()
    racing.done = lambda: racing.cancel() and False  # the caller is faster, just now

    outbox._queue.put((item(1), racing))

    assert outbox.submit(item(2)).result(PATIENCE_S) is None


def test_who_waits_is_answered_by_one_alone(start):
    """
    While writing fails, whoever submits says so, in the same moment as the writing thread. Answered
    twice, it was the end of that thread.
    """

    class Slow(Future):
        def done(self) -> bool:
            was_done = super().done()
            time.sleep(0.01)  # another one has its turn between the look and the answer
            return was_done

    outbox, future = start(), Slow()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(outbox._tell, [[future]] * 4))

    with pytest.raises(LogUnavailable, match="kept in memory"):
        future.result(PATIENCE_S)


# --- closing


def test_closing_writes_what_waits(log, start, gate):
    """
    All of it, and only then returns.
    """
    outbox = start()
    futures = [outbox.submit(item(i)) for i in range(35)]
    opening = threading.Timer(0.05, gate.opened.set)
    opening.start()

    outbox.close()

    assert written(log) == list(range(35))
    assert all(future.done() and not future.exception() for future in futures)
    assert not outbox._thread.is_alive()
    opening.join()


def test_after_closing_nothing_is_taken(start):
    """
    Neither offered nor submitted: it would never be written.
    """
    outbox = start()
    outbox.close()
    outbox.close()

    for hand_over in (outbox.offer, outbox.submit):
        with pytest.raises(OutboxClosed, match=TOPIC):
            hand_over(item(1))
    assert settled(outbox) == {"written": 0, "dropped": 0}


def test_closing_outlasts_a_log_that_is_away_for_a_moment(log, start):
    """
    It is given the time stated.
    """
    log.before = failing(5)
    outbox = start()
    futures = [outbox.submit(item(i)) for i in range(3)]

    outbox.close()

    assert [future.exception() for future in futures] == [None] * 3
    assert written(log) == [0, 1, 2]


def test_closing_gives_up_on_a_log_that_stays_away(log, start):
    """
    In the time stated; then all that waits is counted as dropped, its futures say so, and the
    thread ends.
    """
    log.before = failing(10**9)
    outbox = start(close_s_max=0.05)
    futures = [outbox.submit(item(i)) for i in range(95)]

    begin = time.monotonic()
    outbox.close()

    assert time.monotonic() - begin < PATIENCE_S
    for future in futures:
        with pytest.raises(OutboxClosed):
            future.result(PATIENCE_S)
    assert settled(outbox) == {"written": 0, "dropped": 95}
    outbox._thread.join(PATIENCE_S)
    assert not outbox._thread.is_alive()


def test_closing_gives_up_on_a_log_that_hangs(log, start, gate):
    """
    What is in the log's hands is in doubt until it answers; all else has failed by then.
    """
    outbox = start(close_s_max=0.05)
    doubtful = outbox.submit(item(0))
    assert gate.reached.wait(PATIENCE_S)
    waiting = [outbox.submit(item(i)) for i in range(1, 30)]

    outbox.close()

    for future in waiting:
        with pytest.raises(OutboxClosed):
            future.result(PATIENCE_S)
    assert not doubtful.done()
    gate.opened.set()
    assert doubtful.result(PATIENCE_S) is None
    assert settled(outbox) == {"written": 1, "dropped": 29}
    outbox._thread.join(PATIENCE_S)
    assert not outbox._thread.is_alive()


def test_an_item_offered_while_closing_is_written_or_refused(log, start):
    """
    Many threads offer while another closes: nothing is taken and then forgotten.
    """
    for _ in range(20):
        outbox = start(items_max=10**6)
        ready, futures = threading.Barrier(4), []

        def offer(outbox: Outbox = outbox, ready=ready, futures=futures) -> None:
            ready.wait()
            try:
                while True:
                    futures.append(outbox.submit(item(1)))
            except OutboxClosed:
                return

        threads = [threading.Thread(target=offer) for _ in range(3)]
        for thread in threads:
            thread.start()
        ready.wait()
        outbox.close()
        for thread in threads:
            thread.join()

        assert all(future.done() for future in futures)
        settled(outbox)


def test_an_item_that_passed_the_door_before_it_closed_is_written(log, start, monkeypatch):
    """
    The worst moment: between the look at the door and the queue, the outbox is closed.
    """
    outbox = start()
    looking = outbox._closing.is_set

    def look_then_close() -> bool:
        seen = looking()
        if not seen and threading.current_thread() is threading.main_thread():
            monkeypatch.undo()
            closing.start()
            closing.join(0.1)
        return seen

    closing = threading.Thread(target=outbox.close)
    monkeypatch.setattr(outbox._closing, "is_set", look_then_close)

    future = outbox.submit(item(1))

    assert future.result(PATIENCE_S) is None
    closing.join()
    assert settled(outbox) == {"written": 1, "dropped": 0}


def test_lingering_gathers_and_closing_does_not_linger(log, start):
    """
    Between writes it waits, so that they are few; closing ends the rest.
    """
    outbox = start(linger_s=3600.0, batch_max=100)
    outbox.submit(item(0)).result(PATIENCE_S)
    for i in range(1, 50):
        outbox.offer(item(i))
    assert written(log) == [0]

    outbox.close()

    assert written(log) == list(range(50))
    assert log.fuse.steps.count("append") == 2


def test_lingering_ends_where_somebody_waits(log, start):
    """
    What was offered before is written with it, and lingering goes on after it.
    """
    outbox, lingers = start(linger_s=3600.0), queue.SimpleQueue()
    wait = outbox._awaited.wait
    outbox._awaited.wait = lambda rest_s: lingers.put(outbox._awaited.is_set()) or wait(rest_s)

    outbox.submit(item(0)).result(PATIENCE_S)
    assert lingers.get(timeout=PATIENCE_S) is False
    outbox.offer(item(1))
    outbox.submit(item(2)).result(PATIENCE_S)
    assert lingers.get(timeout=PATIENCE_S) is False
    outbox.offer(item(3))

    assert written(log) == [0, 1, 2]


def test_who_waits_while_a_disk_is_full_is_told_before_his_own_time_is_over():
    """
    Else all he would know is that nobody answered.
    """
    with Client() as client:
        assert OutboxOptions().patience_s < client.timeout_s


def test_who_waits_while_a_disk_is_full_is_told_that_the_item_is_kept(log, start):
    """
    Not when his patience ends, and also who comes later; all of it is written in the end.
    """

    def full(name: str) -> None:
        if name == "append":
            raise LogUnavailable("database or disk is full")

    log.before = full
    outbox = start(patience_s=0.0)
    first = outbox.submit((b"1", b"x"))
    with pytest.raises(LogUnavailable, match=r"kept in memory.*disk is full"):
        first.result(PATIENCE_S)
    with pytest.raises(LogUnavailable, match="kept in memory"):
        outbox.submit((b"2", b"y")).result(PATIENCE_S)

    log.before = lambda _: None
    outbox.close()
    assert [record.value for record in log.records(TOPIC)] == [b"x", b"y"]
    assert (outbox.counts.written, outbox.counts.dropped) == (2, 0)
