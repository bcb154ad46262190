"""Bounds on time, connections and memory: they hold, and nothing else gets in the way."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest

from streams.errors import LogUnavailable
from streams.log.bounded import Backlog, Held, within

LONG_S = 30.0


# --- within


def test_within_hands_on_what_the_call_returns_or_raises():
    """
    None is an answer too.
    """
    assert within(LONG_S, lambda: 7) == 7
    assert within(LONG_S, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        within(LONG_S, lambda: 1 // 0)


def test_within_gives_up_in_time():
    """
    However long the call goes on.
    """
    never = threading.Event()
    begin = time.monotonic()

    with pytest.raises(TimeoutError, match=r"0\.1 s"):
        within(0.1, never.wait)

    assert time.monotonic() - begin < LONG_S
    never.set()


# --- Held


@dataclass(eq=False)
class Client:
    """Remembers how patiently it was closed."""

    patience_s: float | None = None

    def close(self, patience_s: float) -> None:
        assert self.patience_s is None, "closed twice"
        self.patience_s = patience_s


def test_all_threads_get_the_same_client():
    """
    One connects, the others wait for it.
    """
    made: list[Client] = []

    def connect(_: float) -> Client:
        time.sleep(0.05)
        made.append(Client())
        return made[-1]

    held = Held(connect, Client.close)
    got: list[Client] = []
    threads = [threading.Thread(target=lambda: got.append(held.get(LONG_S))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(made) == 1
    assert got == made * 8


def test_a_dropped_client_is_closed_at_once_and_another_made():
    """
    Dropping one that was replaced already leaves its successor alone.
    """
    held = Held(lambda _: Client(), Client.close)
    first = held.get(LONG_S)

    held.drop(first)
    second = held.get(LONG_S)
    held.drop(first)

    assert first.patience_s == 0.0
    assert held.get(LONG_S) is second is not first
    held.drop()
    assert second.patience_s == 0.0


def test_waiting_for_another_threads_connection_has_an_end():
    """
    Ten threads that meet a dead broker don't wait ten times as long.
    """
    connecting, release = threading.Event(), threading.Event()

    def connect(_: float) -> Client:
        connecting.set()
        release.wait(LONG_S)
        return Client()

    held = Held(connect, Client.close)
    slow = threading.Thread(target=held.get, args=(LONG_S,))
    slow.start()
    connecting.wait(LONG_S)

    with pytest.raises(LogUnavailable, match=r"another thread.*0\.1 s"):
        held.get(0.1)
    release.set()
    slow.join()


def test_what_was_closed_stays_closed():
    """
    In order, and once.
    """
    held = Held(lambda _: Client(), Client.close)
    client = held.get(LONG_S)

    held.close(2.0)
    held.close(2.0)

    assert client.patience_s == 2.0
    with pytest.raises(LogUnavailable, match="closed"):
        held.get(LONG_S)


# --- Backlog


@dataclass
class Delivery:
    is_done: bool = False


def test_what_is_on_its_way_is_bounded():
    """
    Room comes back when a block ends well.
    """
    backlog = Backlog(100)

    full = pytest.raises(LogUnavailable, match=r"100 bytes wait.*1 more")
    with backlog.holding(60, []), backlog.holding(40, []), full, backlog.holding(1, []):
        pytest.fail("admitted")
    with backlog.holding(100, []):
        pass


def test_one_block_alone_may_be_larger_than_the_bound():
    """
    Else it could never be written at all.
    """
    backlog = Backlog(100)

    with backlog.holding(1000, []), pytest.raises(LogUnavailable), backlog.holding(1, []):
        pytest.fail("admitted")


def test_what_was_given_up_counts_until_it_is_done():
    """
    It is still in the library's memory.
    """
    backlog, deliveries = Backlog(100), [Delivery(is_done=True), Delivery()]
    with pytest.raises(KeyError), backlog.holding(60, deliveries):
        raise KeyError

    with pytest.raises(LogUnavailable, match="60 bytes wait"), backlog.holding(60, []):
        pytest.fail("admitted")
    deliveries[1].is_done = True
    with backlog.holding(60, []):
        pass


def test_the_age_of_what_was_given_up_is_known():
    """
    A client that never lets go of anything shows.
    """
    backlog, delivery = Backlog(100), Delivery()
    assert backlog.oldest_s() == 0.0
    with pytest.raises(KeyError), backlog.holding(1, [delivery]):
        raise KeyError

    time.sleep(0.05)

    assert 0.05 <= backlog.oldest_s() < 40.0  # seconds; the machine may stand still for some
    delivery.is_done = True
    assert backlog.oldest_s() == 0.0
