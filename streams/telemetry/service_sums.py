"""What is known of each pool's servers: how many requests they finished while holding how many.

    pool's record ──fold──▶ pool ─▶ identity ─▶ half minute ─▶ bucket of requests held ─▶ sums
                                                              `learners.servers` ◀─┘

An identity is what the figures depend on: model, GPU, the server's version, and who says so (a
server's own page, or its callers, who see their own part of it alone). Under another one it is
learned anew, and of many the ones that reported last are kept. So are, of each, the last forty half
minutes in which it did something.

All sums are integers, and what is kept is the greatest by time: no order of records matters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import msgspec
from msgspec import structs

from learners.servers.first_tokens import Cell, FirstTokens, first_tokens
from learners.servers.service import COUNTED, NOTHING, TIMED, Service, Sums, service_of
from learners.servers.speed import Paced, Speed, fields_of, speed_of
from streams.telemetry.records import POOLS_MAX, PoolState
from streams.telemetry.tally import BETWEEN, Summed

EPOCH_MS = 30_000
EPOCHS_MAX = 40  # twenty minutes of work, however long ago
# First tokens are counted in many buckets: half minutes of them would be as long as all else.
LONG_EPOCH_MS, LONG_EPOCHS_MAX = 300_000, 4
LOOKS_LEAST = 5  # at a page that says that some wait, to know how many there is room for
LATELY = 300  # answers, or the epochs that have as many: how fast a server is now, within 6 %
IDENTITIES_MAX = 4  # of a pool: two versions at once while one takes over from the other
RECENT_MS = 60_000  # a page that was silent for longer is not what the pool is like now


class Served(Summed, frozen=True):
    """What happened in windows of one bucket."""

    window_us: int = 0
    held_us: int = 0
    waited_us: int = 0
    finished: int = 0
    squared: int = 0  # milliseconds of each answer


class Lengths(Summed, frozen=True):
    """Tokens of what was finished."""

    finished: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


class Pace(Summed, frozen=True):
    """How fast answers were, see `learners.servers.speed.Paced`."""

    answers: int = 0
    held: int = 0
    prompt_tokens: int = 0
    squared: int = 0
    first_us: int = 0
    prompt_first_us: int = 0
    later_tokens: int = 0
    later_us: int = 0
    batch_us: int = 0
    begun: int = 0

    def of_first_tokens(self) -> Pace:
        """The same without what came after them."""
        return structs.replace(self, later_tokens=0, later_us=0, batch_us=0, begun=0)


class Looks(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Looks at a page that says how many requests run and how many wait."""

    most: int = 0  # that were ever seen to run
    at_most: int = 0  # looks while some waited and as many ran
    waited: int = 0  # all looks while some waited

    def __add__(self, other: Looks) -> Looks:
        most = max(self.most, other.most)
        at_most = sum(one.at_most for one in (self, other) if one.most == most)
        return Looks(most, at_most, self.waited + other.waited)

    @property
    def at_once(self) -> int:
        """Requests that run while others wait; 0: that was hardly seen, or is no one number.

        In a server that has room some wait for a moment, too: then as many run as happen to.
        """
        return self.most if self.at_most >= max(LOOKS_LEAST, self.waited / 2) else 0


class Servers(msgspec.Struct):
    """The servers of one identity."""

    received_ms: int = 0
    stated_per_s: float = 0.0  # as last reported
    held_max: int = 0
    epochs: dict[int, dict[int, Served]] = {}
    lengths: dict[int, Lengths] = {}  # by epoch, too
    paces: dict[int, dict[int, Pace]] = {}  # by epoch and bucket
    first_tokens: dict[int, dict[int, int]] = {}  # by long epoch and packed cell: answers
    looks: dict[int, Looks] = {}  # by long epoch

    def together(self, finished_least: float = math.inf) -> dict[int, Served]:
        """The newest epochs as one: as many as have so many answers, or all."""
        found: dict[int, Served] = {}
        for epoch in sorted(self.epochs, reverse=True):
            for bucket, served in self.epochs[epoch].items():
                found[bucket] = found.get(bucket, Served()) + served  # type: ignore[assignment]
            if sum(of.finished for of in found.values()) >= finished_least:
                break
        return found


ServiceTable = dict[str, dict[str, Servers]]  # by pool and identity


def note(table: ServiceTable, record: PoolState, at_ms: int, received_ms: int) -> None:
    """Add a window that ended at a time, in a record that the log took at another."""
    if not record.served and not record.stated_per_s and not record.held_max and not _read(record):
        return
    if record.pool not in table and len(table) >= POOLS_MAX:
        return
    of_pool = dict(table.get(record.pool, {}))
    key = BETWEEN.join((record.model, record.gpu, record.version, record.by))
    before = of_pool.get(key, Servers())
    said = (before.received_ms, before.stated_per_s, before.held_max)
    newest = max(said, (received_ms, record.stated_per_s, record.held_max))
    of_pool[key] = Servers(
        received_ms=newest[0],
        stated_per_s=newest[1],
        held_max=newest[2],
        epochs=_newest(before.epochs, at_ms // EPOCH_MS, _noted, record),
        lengths=_newest(
            before.lengths, at_ms // EPOCH_MS, _lengthened, record, counts=_read(record)
        ),
        paces=_newest(before.paces, at_ms // EPOCH_MS, _paced, record),
        first_tokens=_first_tokens(before.first_tokens, at_ms // LONG_EPOCH_MS, record),
        looks=_looked(before.looks, at_ms // LONG_EPOCH_MS, record),
    )
    while len(of_pool) > IDENTITIES_MAX:
        del of_pool[min(of_pool, key=lambda k: (of_pool[k].received_ms, k))]
    table[record.pool] = of_pool


Kept = TypeVar("Kept")


def _newest(
    epochs: dict[int, Kept],
    epoch: int,
    add: Callable[[Kept | None, PoolState], Kept],
    record: PoolState,
    *,
    counts: bool = False,
) -> dict[int, Kept]:
    """With one more record, the newest epochs of them."""
    if not record.served and not counts:
        return epochs
    found = {**epochs, epoch: add(epochs.get(epoch), record)}
    return {number: found[number] for number in sorted(found)[-EPOCHS_MAX:]}


def _noted(before: dict[int, Served] | None, record: PoolState) -> dict[int, Served]:
    found, squared = dict(before or {}), dict(record.squared)
    for bucket, window_us, held_us, waited_us, finished in record.served:
        waited = min(waited_us, held_us)
        served = Served(window_us, held_us, waited, finished, squared.get(bucket, 0))
        found[bucket] = found.get(bucket, Served()) + served  # type: ignore[assignment]
    return found


def _paced(before: dict[int, Pace] | None, record: PoolState) -> dict[int, Pace]:
    found = dict(before or {})
    for bucket, of in fields_of(record.paced, record.batched):
        found[bucket] = found.get(bucket, Pace()) + Pace(*of)  # type: ignore[assignment]
    return found


def _first_tokens(
    before: dict[int, dict[int, int]], epoch: int, record: PoolState
) -> dict[int, dict[int, int]]:
    if not record.first_tokens:
        return before
    counts = dict(before.get(epoch, {}))
    for held, prompt, time, n in record.first_tokens:
        cell = _packed(Cell(held, prompt, time))
        counts[cell] = counts.get(cell, 0) + n
    found = {**before, epoch: counts}
    return {number: found[number] for number in sorted(found)[-LONG_EPOCHS_MAX:]}


def _looked(before: dict[int, Looks], epoch: int, record: PoolState) -> dict[int, Looks]:
    if record.by != "page":
        return before
    waits = int(record.queued > 0)
    look = Looks(record.running, waits, waits)
    found = {**before, epoch: before.get(epoch, Looks()) + look}
    return {number: found[number] for number in sorted(found)[-LONG_EPOCHS_MAX:]}


def _packed(cell: Cell) -> int:
    """A byte for each: keys of what is stored are numbers."""
    return cell.held << 16 | cell.prompt << 8 | cell.time


def _unpacked(cell: int) -> Cell:
    return Cell(cell >> 16, cell >> 8 & 255, cell & 255)


def _read(record: PoolState) -> bool:
    """Whether a page has counted tokens: it does so in each window, finished requests in some."""
    tokens = record.tokens or record.prompt_tokens or record.cached_tokens
    return record.by == "page" and bool(tokens)


def _lengthened(before: Lengths | None, record: PoolState) -> Lengths:
    finished = sum(one[-1] for one in record.served)
    new = Lengths(finished, record.prompt_tokens + record.cached_tokens, record.tokens)
    return (before or Lengths()) + new  # type: ignore[return-value]


class PoolService(msgspec.Struct, frozen=True, kw_only=True):
    """What one server of a pool can do, and for requests of which lengths that was learned."""

    service: Service = NOTHING
    held_max: int = 0  # requests at once, as stated; 0: not stated
    at_once: int = 0  # requests that run while others wait, as its page says; 0: not seen
    prompt_tokens: float = 0.0  # mean; 0: nothing was finished
    output_tokens: float = 0.0
    by: str = ""  # who says so; "": nobody
    speed: Speed | None = None  # as callers saw its answers; None: nothing is known

    @property
    def room(self) -> float:
        """Requests at once of which none waits: those say how soon its first tokens come."""
        return self.at_once or self.held_max or self.service.concurrency


def _recent(of_pool: dict[str, Servers]) -> list[tuple[str, Servers]]:
    """Identities that somebody reported on lately, with who says so."""
    newest = max((servers.received_ms for servers in of_pool.values()), default=0)
    return [
        (key.rsplit(BETWEEN, 1)[1], servers)
        for key, servers in sorted(of_pool.items())
        if newest - servers.received_ms <= RECENT_MS
    ]


def learned(of_pool: dict[str, Servers], n_callers: int) -> PoolService:
    """From whoever sees most: the servers' own pages, or else all that call them."""
    recent = _recent(of_pool)
    pages = [one for one in recent if one[0] != "callers" and one[1].epochs]
    among = pages or [one for one in recent if one[0] == "callers"] or recent
    if not among:
        return PoolService()
    by, servers = max(among, key=lambda one: one[1].received_ms)
    parts = max(1, n_callers)
    found = _learned(by, servers, parts if by == "callers" else 1)
    last = _last_callers(recent)
    return found if last is None else structs.replace(found, speed=_speed(last, found.room, parts))


def first_tokens_of(of_pool: dict[str, Servers], n_callers: int) -> FirstTokens | None:
    """How long first tokens take, and how much that varies; None: too little is known.

    Apart from `learned`, which is asked for by every router with every snapshot: this is fitted.
    """
    last = _last_callers(_recent(of_pool))
    if last is None:
        return None
    counts = Counter[Cell]()
    for of_epoch in last.first_tokens.values():
        counts.update({_unpacked(cell): n for cell, n in of_epoch.items()})
    return first_tokens(counts, learned(of_pool, n_callers).room, max(1, n_callers))


def _last_callers(recent: list[tuple[str, Servers]]) -> Servers | None:
    """What whoever called last saw of how fast they are."""
    callers = [servers for by, servers in recent if by == "callers" and servers.paces]
    return max(callers, key=lambda one: one.received_ms) if callers else None


def _speed(servers: Servers, at_once: float, parts: int) -> Speed | None:
    each = [one for of_epoch in servers.paces.values() for one in of_epoch.items()]
    # What came at once was not always counted: time of such tokens is better than none, no more.
    counted, together = any(pace.batch_us for _, pace in each), dict[int, Pace]()
    for bucket, pace in each:
        known = pace if pace.batch_us or not counted else pace.of_first_tokens()
        together[bucket] = together.get(bucket, Pace()) + known  # type: ignore[assignment]
    sums = (Paced(*structs.astuple(together[bucket])) for bucket in sorted(together))
    return speed_of(sums, at_once, parts)


def _learned(by: str, servers: Servers, parts: int) -> PoolService:
    """Of sums in which each of `parts` callers has its own part of what one server does."""
    ever, lately = (
        {bucket: _sums(served) for bucket, served in together.items()}
        for together in (servers.together(), servers.together(LATELY))
    )
    noise = TIMED if by == "callers" else COUNTED
    at_once = sum(servers.looks.values(), Looks()).at_once
    stated_per_s = servers.stated_per_s / parts
    found = service_of(ever, lately, stated_per_s=stated_per_s, noise=noise, at_once=at_once)
    lengths = Lengths()
    for epoch in sorted(servers.lengths):
        lengths = lengths + servers.lengths[epoch]  # type: ignore[assignment]
    n = max(1, lengths.finished)
    return PoolService(
        service=_times(found, parts),
        held_max=servers.held_max,
        at_once=at_once,
        prompt_tokens=lengths.prompt_tokens / n,
        output_tokens=lengths.output_tokens / n,
        by=by,
    )


def rewind(table: ServiceTable, to_ms: int) -> None:
    """Take back what was noted at times later than `to_ms`: the clock had been ahead."""
    for pool, of_pool in table.items():
        table[pool] = {
            key: Servers(
                received_ms=min(servers.received_ms, to_ms),
                stated_per_s=servers.stated_per_s,
                held_max=servers.held_max,
                epochs={n: of for n, of in servers.epochs.items() if n <= to_ms // EPOCH_MS},
                lengths={n: of for n, of in servers.lengths.items() if n <= to_ms // EPOCH_MS},
                paces={n: of for n, of in servers.paces.items() if n <= to_ms // EPOCH_MS},
                first_tokens={
                    n: of for n, of in servers.first_tokens.items() if n <= to_ms // LONG_EPOCH_MS
                },
                looks={n: of for n, of in servers.looks.items() if n <= to_ms // LONG_EPOCH_MS},
            )
            for key, servers in of_pool.items()
        }


def _sums(served: Served) -> Sums:
    seconds, held_s = served.window_us / 1e6, served.held_us / 1e6
    return Sums(seconds, held_s, served.waited_us / 1e6, served.finished, served.squared / 1e6)


def _times(one: Service, parts: int) -> Service:
    return replace(
        one,
        capacity_per_s=parts * one.capacity_per_s,
        deviation_per_s=parts * one.deviation_per_s,
    )
