"""What one server can do, learned from how many requests it finished while it held so many.

    windows: held, seconds, finished ─▶ by how many were held, √2 apart ─▶ x(n) ─▶ Service

A window may be a stretch of time, or one request: one that found n − 1 others and took T seconds
says as much as a window of T / n seconds in which n were held and one was finished.

By Little's law n requests in a server that finishes x of them a second take n / x seconds each.
While there is room x grows with n. Where the server is full more requests only wait: x stays, and
is the capacity. That holds for one that takes four at once and queues the rest, for one with
continuous batching, and for one that lets nobody see its queue; and it takes no more than counts.

It is full where some are seen to wait all the time, or where twice as many held are not finished
nearly twice as fast, and never while it holds less than one: then it is idle at times. Until it was
full there is only a lower bound, and what is stated counts.

All sums are additive: of servers that are alike, and of any windows, in any order.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

# Where buckets of requests held end, in thousandths: from a sixteenth of one to 46,000.
EDGES = [round(1000 * 2 ** (i / 2) / 16) for i in range(40)]
# Of the requests held, those that wait where a server is full; and one at least: a window is some
# seconds, of which a server that is half idle lets some requests wait, too.
WAITED_SHARE = 0.1
# Throughput that grows less than half as fast as what is held (in logarithms) has hit a limit. It
# is believed at 90 %: a limit that is found late costs callers their answers, one that is not there
# costs a moment, until more is seen.
GROWTH_LEAST, DEVIATIONS = 0.5, 1.28
FULL_SHARE = 0.85  # of the highest throughput: from there on a server is full
FINISHED_LEAST = 10  # behind a figure; fewer are chance
# How far one answer is off, relative: a count of answers by as much as it is (Poisson); one whose
# own time is known by what such times vary. That is seen, where their squares are summed; a guess
# counts as five answers of it, and it is not believed to be less than a fifth.
COUNTED, TIMED = 1.0, 0.5
GUESSED_ANSWERS, NOISE_LEAST = 5.0, 0.2
ALONE_OFF_MAX = 0.2  # relative: what is known of it that well is enough
STATED_WEIGHT = 10.0  # finished requests that a stated or derived figure counts for


@dataclass(frozen=True, slots=True)
class Sums:
    """What was seen while about as many requests were held."""

    seconds: float
    held_s: float  # requests × seconds
    waited_s: float  # of it, in the server's queue; 0 where nobody can say
    finished: int
    squared: float = 0.0  # seconds of each answer, squared; 0 where nobody timed them


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What one server can do."""

    capacity_per_s: float  # requests it finishes a second when full; 0: nothing is known
    deviation_per_s: float  # standard deviation of that; infinite where nothing was seen
    alone_s: float  # how long a request takes while there is room; 0: not known
    full: bool  # it was seen to be full, or its capacity is stated: not a lower bound
    finished: int = 0  # requests that this was learned from
    at_once: float = 0.0  # worked on while others waited, mean; 0: nobody saw any wait

    @property
    def concurrency(self) -> float:
        """Requests that it works on at once when it is just full."""
        return self.capacity_per_s * self.alone_s


NOTHING = Service(capacity_per_s=0.0, deviation_per_s=math.inf, alone_s=0.0, full=False)


def bucket_of(held: float) -> int:
    """The bucket of so many requests held."""
    return bisect_right(EDGES, 1000.0 * held)


def service_of(
    ever: Mapping[int, Sums],
    lately: Mapping[int, Sums],
    *,
    stated_per_s: float = 0.0,
    noise: float = COUNTED,
    at_once: int = 0,
) -> Service:
    """What sums by bucket say; `stated_per_s` is what is stated or derived, 0 where nothing is.

    `noise` is what that of one answer is guessed to be. `at_once` is how many it works on while
    others wait, 0 where nobody knows.

    When it is full, and how long a request takes alone, is seen in what it ever did: where more
    come than it can take it is never empty again. How fast it is, is seen in what it did lately.
    """
    if not any(of.finished for of in ever.values()):
        return _stated(stated_per_s)
    sums = _ascending(ever)
    full = _full_from(sums, noise)
    among = [of for bucket, of in lately.items() if full is not None and bucket >= full]
    if sum(of.finished for of in among) < FINISHED_LEAST:
        among = [of for bucket, of in ever.items() if full is not None and bucket >= full]
    fastest = max(_surely(of, noise) for of in _known(_ascending(lately) or sums))
    count = float(sum(of.finished for of in among))
    seconds = sum(_full_s(of, at_once) for of in among)
    if stated_per_s:
        count, seconds = count + STATED_WEIGHT, seconds + STATED_WEIGHT / stated_per_s
    capacity = max(count / seconds if seconds else 0.0, fastest)
    return Service(
        capacity_per_s=capacity,
        deviation_per_s=_noise(among, noise) * capacity / math.sqrt(max(1.0, count)),
        alone_s=_alone_s(sums, noise),
        full=full is not None or stated_per_s > 0.0,
        at_once=_at_once(sums),
        finished=sum(of.finished for of in sums),
    )


def _full_s(of: Sums, at_once: int) -> float:
    """How long it took it, had it been full all the time: in a window it also is not, at times."""
    if not (at_once and of.waited_s):
        return of.seconds
    return min(of.seconds, (of.held_s - of.waited_s) / at_once)


def _noise(sums: list[Sums], guess: float) -> float:
    """How far one answer is off, of those that found about as many there as each other."""
    return sum((Answers.of(one) for one in sums if one.finished), Answers()).noise(guess)


def _stated(stated_per_s: float) -> Service:
    """Where nothing was seen yet."""
    return Service(
        capacity_per_s=stated_per_s,
        deviation_per_s=stated_per_s / math.sqrt(STATED_WEIGHT) if stated_per_s else math.inf,
        alone_s=0.0,
        full=stated_per_s > 0.0,
    )


def _ascending(by_held: Mapping[int, Sums]) -> list[Sums]:
    return [by_held[bucket] for bucket in sorted(by_held) if by_held[bucket].finished]


def _known(sums: list[Sums]) -> list[Sums]:
    """Those with enough behind them; all as one where none has."""
    return [of for of in sums if of.finished >= FINISHED_LEAST] or [_together(sums)]


def _surely(of: Sums, noise: float) -> float:
    """A throughput that it has very likely."""
    return _rate(of) * max(0.0, 1.0 - _noise([of], noise) / math.sqrt(max(1, of.finished)))


def _alone_s(sums: list[Sums], noise: float) -> float:
    """How long an answer takes while there is room: without the wait, or where few were held."""
    if any(of.waited_s for of in sums):
        whole = _together(sums)
        return (whole.held_s - whole.waited_s) / whole.finished
    few = accumulate(sums, _sum)
    enough = 1.0 / (ALONE_OFF_MAX / noise) ** 2
    found = next((of for of in few if of.finished >= enough), _together(sums))
    return found.held_s / found.finished


def _at_once(sums: list[Sums]) -> float:
    """Requests worked on while at least one waited, on average."""
    waited = [of for of in sums if of.waited_s >= of.seconds]
    seconds = sum(of.seconds for of in waited)
    return sum(of.held_s - of.waited_s for of in waited) / seconds if seconds else 0.0


def _full_from(sums: list[Sums], noise: float) -> int | None:
    """The lowest bucket in which the server was full; None: it was not seen to be."""
    waited = [of for of in sums if of.waited_s > max(WAITED_SHARE * of.held_s, of.seconds)]
    if sum(of.finished for of in waited) >= FINISHED_LEAST:
        return bucket_of(waited[0].held_s / waited[0].seconds)
    if not _levels_off(sums, noise):
        return None
    fastest = max(_surely(of, noise) for of in _known(sums))
    busy = (of for of in sums if _never_idle(of) and _at_least(of, FULL_SHARE * fastest))
    first = next(busy, sums[-1])
    return bucket_of(first.held_s / first.seconds)


def _never_idle(of: Sums) -> bool:
    """Whether a server may have been full: who holds less than one request is idle at times."""
    return of.held_s >= of.seconds


def _at_least(of: Sums, per_s: float) -> bool:
    return of.finished >= FINISHED_LEAST and _rate(of) >= per_s


def _levels_off(sums: list[Sums], noise: float) -> bool:
    """Whether throughput grows far less than what is held, somewhere between few and many."""
    answers = [Answers.of(one) for one in sums]
    few = list(accumulate(answers, Answers.__add__))[:-1]
    many = list(accumulate(reversed(answers), Answers.__add__))[-2::-1]
    return any(less.flat(more, noise) for less, more in zip(few, many, strict=True))


class Answers(NamedTuple):
    """Answers to requests that found about as many there, one as good as another.

    Windows count by how long they are. Where each answer is one, those that found many are long
    and few: half a second of a server that has just been asked would outweigh all that it did
    since, and a limit be found when a minute's work waits.
    """

    n: float = 0.0
    took_s: float = 0.0  # all of them
    held: float = 0.0  # of each, summed
    squares: float = 0.0  # of how far each is from the mean of its bucket, relative to that
    freedom: float = 0.0  # answers that these are of, less one for each mean

    @classmethod
    def of(cls, one: Sums) -> Answers:
        """Of one bucket."""
        n, held = one.finished, one.finished * one.held_s / one.seconds
        if not (one.squared and one.held_s):
            return cls(n, one.held_s, held)
        squares = max(0.0, n * n * one.squared / one.held_s**2 - n)
        return cls(n, one.held_s, held, squares, n - 1.0)

    def noise(self, guess: float) -> float:
        """How far one of them is off."""
        squares = GUESSED_ANSWERS * guess**2 + self.squares
        return max(NOISE_LEAST, math.sqrt(squares / (GUESSED_ANSWERS + self.freedom)))

    def __add__(self, other: Answers) -> Answers:  # type: ignore[override]
        return Answers(*(a + b for a, b in zip(self, other, strict=True)))

    def flat(self, more: Answers, noise: float) -> bool:
        """Whether a server that holds as many as `more` finishes hardly more than with these."""
        if min(self.n, more.n) < FINISHED_LEAST * noise or more.held < more.n:
            return False
        if min(self.took_s, self.held) <= 0.0:  # by a clock that is too coarse
            return False
        held = math.log((more.held / more.n) / (self.held / self.n))
        longer = math.log((more.took_s / more.n) / (self.took_s / self.n))
        unsure = math.hypot(*(of.noise(noise) / math.sqrt(of.n) for of in (self, more)))
        return held - longer + DEVIATIONS * unsure < GROWTH_LEAST * held


def _together(sums: list[Sums]) -> Sums:
    *_, whole = accumulate(sums, _sum)
    return whole


def _sum(one: Sums, other: Sums) -> Sums:
    return Sums(
        one.seconds + other.seconds,
        one.held_s + other.held_s,
        one.waited_s + other.waited_s,
        one.finished + other.finished,
        one.squared + other.squared,
    )


def _rate(of: Sums) -> float:
    return of.finished / of.seconds
