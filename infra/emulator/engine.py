"""An LLM inference engine with continuous batching, in virtual time.

    submit ──▶ arrivals ──▶ queue ──▶ prefill ──▶ decode ──▶ FINISHED
              (tokenising)  FCFS  ◀── PREEMPTED ──┘
                                      (the youngest, when the KV cache is full)

An engine works in iterations. Each makes one token for every decoding sequence and prefills a
chunk of prompts (chunked prefill, mixed with decode). It takes `Performance.iteration_s`.
Requests join, and cancelled ones leave, at the boundary between two iterations. Between two changes
of the batch the iterations are not stepped through: see `iterations`.

A sequence with m tokens made holds prompt + m − 1 tokens of the cache. A waiting request is
admitted while fewer than `sequences_max` run, this iteration's prefill budget is not used up, and
its prompt fits with 1 % of the cache left free, as in vLLM. A preempted one computes all again.

The one rule: what happens depends on the inputs and their times alone, not on how often time is
advanced. What happens at a time happens before that time's inputs, and these before the iteration
that begins then is composed.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Hashable
from heapq import heappop, heappush
from typing import NamedTuple

from infra.emulator.errors import NeverFits
from infra.emulator.iterations import Run
from infra.emulator.performance import Performance
from infra.emulator.power import Power

FIRST_TOKEN, FINISHED, PREEMPTED = "first_token", "finished", "preempted"
WATERMARK = 0.01  # share of the cache that admission leaves free: vLLM's own figure

RequestId = Hashable


class Event(NamedTuple):
    """Something that happened to a request."""

    request_id: RequestId
    kind: str  # FIRST_TOKEN, FINISHED or PREEMPTED
    at_s: float


_WAITING, _PREFILLING, _DECODING, _GONE = range(4)


class _Sequence:
    __slots__ = ("finishes", "id", "made", "output", "prefill_left", "prompt", "ready_s", "state")

    def __init__(
        self, request_id: RequestId, prompt: int, output: int, prefill: int, ready_s: float
    ) -> None:
        self.id, self.prompt, self.output, self.ready_s = request_id, prompt, output, ready_s
        self.prefill_left, self.made, self.state = prefill, 0, _WAITING
        self.finishes = 0  # number of the iteration that makes its last token, while decoding


class Engine:
    """One replica. All times are seconds of one clock that never goes back."""

    def __init__(
        self, performance: Performance, power: Power | None = None, now_s: float = 0.0
    ) -> None:
        """Without `power` no energy is counted."""
        self.performance, self.power = performance, power
        self._now_s = self._began_s = now_s
        self._boundary_s = now_s  # where the next run begins
        self._ready_s = now_s  # of the latest arrival: in the front end nobody overtakes
        self._run: Run | None = None  # None: not composed yet
        self._known: dict[RequestId, _Sequence] = {}  # submitted, not finished or cancelled
        self._arrivals: deque[_Sequence] = deque()  # not ready yet
        self._queue: deque[_Sequence] = deque()  # ready
        self._running: dict[RequestId, _Sequence] = {}  # in order of admission
        self._partial: _Sequence | None = None  # its prefill goes on in the next iteration
        self._completing: list[_Sequence] = []  # their prefill ends with this iteration
        self._leaving: list[tuple[_Sequence, int]] = []  # cancelled in this run, and their state
        self._finishes: list[tuple[int, int, _Sequence]] = []  # heap; entries may be outdated
        self._iteration = self._pushed = 0
        self._n = self._context = 0  # sequences decoding, and their tokens in the cache
        self._kv = 0  # tokens in the cache or reserved
        self._events: list[Event] = []
        self._tokens, self._busy_s, self._prefill_s = 0, 0.0, 0.0

    # --- inputs

    def submit(
        self,
        request_id: RequestId,
        prompt_tokens: int,
        output_tokens: int,
        now_s: float,
        cached_tokens: int = 0,
    ) -> None:
        """Queue a request; `cached_tokens` of its prompt need no prefill. Raises NeverFits."""
        assert prompt_tokens > 0 and output_tokens > 0, "a request has tokens"
        needs = prompt_tokens + output_tokens - 1
        if needs > self.performance.kv_tokens_max:
            raise NeverFits(needs, self.performance.kv_tokens_max)
        assert request_id not in self._known, f"{request_id!r} is here already"
        self._go(now_s)
        ready_s = now_s + self.performance.front_end_s(prompt_tokens, len(self._known) + 1)
        ready_s = self._ready_s = max(ready_s, self._ready_s)
        prefill = max(1, prompt_tokens - cached_tokens)
        sequence = _Sequence(request_id, prompt_tokens, output_tokens, prefill, ready_s)
        self._known[request_id] = sequence
        self._arrivals.append(sequence)
        if self._run is not None and len(self._arrivals) == 1:
            self._stop_for_arrival(self._run)

    def cancel(self, request_id: RequestId, now_s: float) -> None:
        """Forget a request; nothing happens if it is not known (any more)."""
        self._go(now_s)
        sequence = self._known.pop(request_id, None)
        if sequence is None:
            return
        if sequence.state != _WAITING:
            self._leaving.append((sequence, sequence.state))
        sequence.state = _GONE
        if self._run is None:
            self._leave()
        else:
            self._run.stop(now_s)

    def advance(self, to_s: float) -> list[Event]:
        """Everything that happened since the last call, up to and including `to_s`, in order.

        A preemption at `to_s` itself is told with the next call.
        """
        self._go(to_s)
        events, self._events = self._events, []
        return events

    # --- what can be asked

    def next_change_s(self) -> float:
        """No token is first or last before this time; inf when idle.

        Where the next iteration is not composed yet it is the earliest time that it could end:
        advance to it and ask again.
        """
        if self._events:
            return self._now_s
        if self._run is not None:
            return self._run.end_s(self._run.k)
        if self._running or self._queue:
            return self._boundary_s + self.performance.fixed_s
        if self._arrivals:
            return max(self._boundary_s, self._arrivals[0].ready_s) + self.performance.fixed_s
        return math.inf

    def next_token_s(self) -> float:
        """When the next iteration ends, told as `next_change_s` tells it."""
        if self._run is None:
            return self.next_change_s()
        return self._run.end_s(self._done() + 1)

    def tokens_made(self, request_id: RequestId, now_s: float) -> int:
        """Tokens of an unfinished request so far; raises KeyError for any other."""
        self._go(now_s)
        sequence = self._known[request_id]
        if sequence.state != _DECODING:
            return sequence.made
        return sequence.output - (sequence.finishes - self._iteration - self._done())

    @property
    def now_s(self) -> float:
        """The time it has been advanced to."""
        return self._now_s

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._known) - self.running

    @property
    def running(self) -> int:
        """Sequences admitted."""
        return len(self._running) - len(self._leaving)

    @property
    def kv_use(self) -> float:
        """Share of the KV cache in use or reserved."""
        return (self._kv + self._n * self._done()) / self.performance.kv_tokens_max

    @property
    def tokens_made_total(self) -> int:
        """Tokens made since the beginning, those of cancelled requests too."""
        return self._tokens + self._n * self._done()

    @property
    def iterations(self) -> int:
        """Iterations ended since the beginning."""
        return self._iteration + self._done()

    @property
    def waiting_prompt_tokens(self) -> int:
        """Tokens of prompts that nothing has been read of yet, those in the front end too."""
        waiting = itertools.chain(self._arrivals, self._queue)
        return sum(s.prefill_left for s in waiting if s.state != _GONE)

    @property
    def busy_s(self) -> float:
        """Time spent in iterations."""
        return self._busy_s + (0.0 if self._run is None else self._now_s - self._run.begins_s)

    @property
    def energy_j(self) -> float:
        """Energy used since the beginning; 0 without a power model."""
        if self.power is None:
            return 0.0
        prefill_s, run = self._prefill_s, self._run
        if run is not None and run.prompt_tokens:  # the same share of it as of the iteration
            share = (self._now_s - run.begins_s) / run.first_s
            prefill_s += share * run.prompt_tokens * self.performance.per_prompt_token_s
        return self.power.energy_j(self._now_s - self._began_s, self.busy_s, prefill_s)

    # --- the clock

    def _go(self, to_s: float) -> None:
        """Let time pass; an iteration that would begin at `to_s` itself is not composed yet."""
        assert to_s >= self._now_s, f"time only goes on: {to_s} is before {self._now_s}"
        while True:
            run = self._run
            if run is None:
                if self._boundary_s >= to_s:
                    break
                run = self._run = self._compose(to_s)
                if run is None:
                    break
            end_s = run.end_s(run.k)
            if end_s > to_s:
                break
            self._commit(run, end_s)
        self._now_s = to_s

    def _done(self) -> int:
        return 0 if self._run is None else self._run.done(self._now_s)

    # --- composing an iteration

    def _compose(self, to_s: float) -> Run | None:
        """Plan the run that begins at the boundary; None if there is none before `to_s`."""
        arrivals, queue, p = self._arrivals, self._queue, self.performance
        _skip_gone(queue)
        if not self._running and not queue:
            _skip_gone(arrivals)
            if not arrivals or arrivals[0].ready_s >= to_s:
                return None
            self._boundary_s = max(self._boundary_s, arrivals[0].ready_s)
        while arrivals and arrivals[0].ready_s <= self._boundary_s:
            queue.append(arrivals.popleft())
        if self._kv + self._n > p.kv_tokens_max:
            self._make_room()
        prompt = self._chunk() if queue or self._partial else 0
        n = self._n
        assert prompt or n, "there is something to do"
        first_s = p.iteration_s(n, self._context, prompt)
        if prompt:
            return Run(self._boundary_s, 1, first_s, 0.0, prompt)
        k = min(self._next_finish() - self._iteration, (p.kv_tokens_max - self._kv) // n)
        run = Run(self._boundary_s, k, first_s, n * p.per_context_token_s)
        if arrivals:
            self._stop_for_arrival(run)
        return run

    def _stop_for_arrival(self, run: Run) -> None:
        """End the run when the next arrival could join; while others wait, it could not."""
        _skip_gone(self._arrivals)
        _skip_gone(self._queue)
        if self._arrivals and not self._queue and self._fits(self._arrivals[0]):
            run.stop(self._arrivals[0].ready_s)

    def _make_room(self) -> None:
        """Preempt the youngest until every decoding sequence has room for its next token.

        None of them can be admitted at once again: what did not fit without its prefill does not
        with it.
        """
        while self._kv + self._n > self.performance.kv_tokens_max:
            sequence = self._running[next(reversed(self._running))]
            self._release(sequence, sequence.state)
            sequence.state, sequence.prefill_left = _WAITING, sequence.prompt + sequence.made
            self._queue.appendleft(sequence)
            self._events.append(Event(sequence.id, PREEMPTED, self._boundary_s))

    def _chunk(self) -> int:
        """Fill this iteration's prefill budget; returns how many prompt tokens are prefilled."""
        budget = left = self.performance.prefill_tokens_max
        sequence, self._partial = self._partial, None
        while left:
            if sequence is None:
                sequence = self._admit()
                if sequence is None:
                    break
            taken = min(left, sequence.prefill_left)
            left -= taken
            sequence.prefill_left -= taken
            if sequence.prefill_left:
                self._partial = sequence
            else:
                self._completing.append(sequence)
            sequence = None
        return budget - left

    def _admit(self) -> _Sequence | None:
        queue = self._queue
        _skip_gone(queue)
        if not queue or not self._fits(queue[0]):
            return None
        sequence = queue.popleft()
        sequence.state = _PREFILLING
        self._running[sequence.id] = sequence
        self._kv += sequence.prompt + sequence.made
        return sequence

    def _fits(self, sequence: _Sequence) -> bool:
        p = self.performance
        if not self._running:
            return True
        needs = self._kv + self._n + sequence.prompt + sequence.made
        return len(self._running) < p.sequences_max and needs <= p.kv_tokens_max * (1 - WATERMARK)

    def _next_finish(self) -> int:
        """The iteration in which a sequence will be the next to finish."""
        heap = self._finishes
        while heap[0][2].state != _DECODING or heap[0][2].finishes != heap[0][0]:
            heappop(heap)
        return heap[0][0]

    # --- the end of a run

    def _commit(self, run: Run, end_s: float) -> None:
        """Count the run's tokens, tell of first and last ones, let the cancelled leave."""
        made = self._n * run.k
        self._iteration += run.k
        self._tokens += made + len(self._completing)
        self._context += made
        self._kv += made
        self._busy_s += end_s - run.begins_s
        self._boundary_s, self._run = end_s, None
        if run.prompt_tokens:
            self._prefill_s += run.prompt_tokens * self.performance.per_prompt_token_s
            for sequence in self._completing:
                if sequence.state != _GONE:
                    self._begin_to_decode(sequence)
            self._completing.clear()
        heap = self._finishes
        while heap and heap[0][0] <= self._iteration:
            finishes, _, sequence = heappop(heap)
            if sequence.state == _DECODING and sequence.finishes == finishes:
                self._finish(sequence)
        if self._leaving:
            self._leave()

    def _begin_to_decode(self, sequence: _Sequence) -> None:
        self._context += sequence.prompt + sequence.made
        self._n += 1
        sequence.made += 1
        sequence.state = _DECODING
        sequence.finishes = self._iteration + sequence.output - sequence.made
        if sequence.made == 1:
            self._events.append(Event(sequence.id, FIRST_TOKEN, self._boundary_s))
        self._pushed += 1
        heappush(self._finishes, (sequence.finishes, self._pushed, sequence))

    def _finish(self, sequence: _Sequence) -> None:
        self._release(sequence, _DECODING)
        sequence.state = _GONE
        del self._known[sequence.id]
        self._events.append(Event(sequence.id, FINISHED, self._boundary_s))

    def _leave(self) -> None:
        for sequence, state in self._leaving:
            self._release(sequence, state)
        self._leaving.clear()

    def _release(self, sequence: _Sequence, state: int) -> None:
        """Free what a sequence in this state holds."""
        del self._running[sequence.id]
        held = sequence.prompt + sequence.made
        if state == _DECODING:
            sequence.made = sequence.output - (sequence.finishes - self._iteration)
            held = sequence.prompt + sequence.made - 1
            self._context -= held
            self._n -= 1
        elif self._partial is sequence:
            self._partial = None
        self._kv -= held


def _skip_gone(waiting: deque[_Sequence]) -> None:
    while waiting and waiting[0].state == _GONE:
        waiting.popleft()
