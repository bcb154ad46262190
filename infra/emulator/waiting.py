"""Requests that an engine has not admitted yet, in the order in which it will.

    add ──▶ front end (tokenising) ──reach──▶ queue ──pop──▶ admitted
            nobody overtakes                  by priority, then arrival
                                                 ▲
                                    put_back ────┘ (preempted: it keeps its place among equals)

The order is that of vLLM with `--scheduling-policy priority`: a lower number goes first. Where all
priorities are equal it is first come, first served.

Who is first depends on priority and arrival alone, and is never one who is gone.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

WAITING, PREFILLING, DECODING, GONE = range(4)


class Sequence:
    """A request in an engine, waiting or admitted."""

    __slots__ = (
        "finishes", "id", "made", "number", "output", "prefill_left", "priority", "prompt",
        "ready_s", "state",
    )  # fmt: skip

    def __init__(
        self,
        request_id: object,
        prompt: int,
        output: int,
        prefill: int,
        ready_s: float,
        priority: int,
        number: int,
    ) -> None:
        self.id, self.prompt, self.output, self.ready_s = request_id, prompt, output, ready_s
        self.priority, self.number = priority, number  # `number` counts arrivals
        self.prefill_left, self.made, self.state = prefill, 0, WAITING
        self.finishes = 0  # number of the iteration that makes its last token, while decoding


class Waiting:
    """See above. Whoever is cancelled is marked as gone, and passed over here."""

    __slots__ = ("arrivals", "queue")

    def __init__(self) -> None:
        self.arrivals: deque[Sequence] = deque()  # in the front end, who leaves it first first
        self.queue: list[tuple[int, int, Sequence]] = []  # heap

    def add(self, sequence: Sequence) -> None:
        """Let one into the front end, which it leaves at its `ready_s`."""
        arrivals, at = self.arrivals, len(self.arrivals)
        while at and arrivals[at - 1].ready_s > sequence.ready_s:
            at -= 1
        arrivals.insert(at, sequence)

    def outranks(self, sequence: Sequence) -> bool:
        """Whether one who comes now may be of `firsts_to_come`."""
        before = self.arrivals[-1] if self.arrivals else self.first()
        if before is None or before.state == GONE or sequence.ready_s < before.ready_s:
            return True
        return sequence.priority < before.priority

    def reach(self, at_s: float) -> None:
        """Queue those that are ready by then."""
        arrivals = self.arrivals
        while arrivals and arrivals[0].ready_s <= at_s:
            self.put_back(arrivals.popleft())

    def put_back(self, sequence: Sequence) -> None:
        """Queue one, in its place."""
        heappush(self.queue, (sequence.priority, sequence.number, sequence))

    def first(self) -> Sequence | None:
        """Who would be admitted next; None if nobody is ready."""
        queue = self.queue
        while queue:
            sequence = queue[0][2]
            if sequence.state != GONE:
                return sequence
            heappop(queue)
        return None

    def pop(self) -> None:
        """Take out the `first`."""
        heappop(self.queue)

    def next_ready_s(self) -> float:
        """When the next one leaves the front end; inf if none is there."""
        arrivals = self.arrivals
        while arrivals and arrivals[0].state == GONE:
            arrivals.popleft()
        return arrivals[0].ready_s if arrivals else math.inf

    def firsts_to_come(self) -> Iterator[Sequence]:
        """Those in the front end that will be the first when they are ready, if nobody is admitted.

        An equal of who is there already is behind it.
        """
        first = self.first()
        best = math.inf if first is None else first.priority
        for sequence in self.arrivals:
            if sequence.priority < best and sequence.state != GONE:
                best = sequence.priority
                yield sequence

    @property
    def prompt_tokens(self) -> int:
        """That are to be prefilled of them all."""
        queued = (sequence for _, _, sequence in self.queue)
        here = itertools.chain(self.arrivals, queued)
        return sum(sequence.prefill_left for sequence in here if sequence.state != GONE)
