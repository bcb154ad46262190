"""An LLM inference engine with continuous batching, in virtual time.

    submit ──▶ front end ──▶ queue ──▶ prefill ──▶ decode ──▶ FINISHED
              (tokenising)   by priority ◀── PREEMPTED ──┘
                             (see `waiting`)  (the last of them, when the KV cache is full)

An engine works in iterations. Each makes one token for every decoding sequence and prefills a
chunk of prompts (chunked prefill, mixed with decode). It takes `Performance.iteration_s`.
Requests join, and cancelled ones leave, at the boundary between two iterations. Between two changes
of the batch the iterations are not stepped through: see `iterations`.

A sequence with m tokens made holds prompt + m − 1 tokens of the cache. A waiting request is
admitted while fewer than `sequences_max` run, this iteration's prefill budget is not used up, and
its prompt fits with 1 % of the cache left free, as in vLLM. A preempted one computes all again.

Order is vLLM's: a lower `priority` first, then who came first (see `waiting`). Nobody is overtaken
by one behind it, and nobody preempted for one that waits: when the cache is full, of the running
the one with the highest number goes back, the youngest of equals.

What happens depends on the inputs and their times alone, not on how often time is
advanced. What happens at a time happens before that time's inputs, and these before the iteration
that begins then is composed.
"""

from __future__ import annotations

from heapq import heappop, heappush
from operator import attrgetter
from typing import Any, NamedTuple

from infra.emulator.errors import NeverFits
from infra.emulator.iterations import Run
from infra.emulator.performance import Performance
from infra.emulator.power import Power
from infra.emulator.waiting import DECODING, GONE, PREFILLING, WAITING, Sequence, Waiting

FIRST_TOKEN, FINISHED, PREEMPTED = "first_token", "finished", "preempted"
WATERMARK = 0.01  # share of the cache that admission leaves free: vLLM's own figure

RequestId = Any  # whatever can be a key: the caller's own
PRIORITY = attrgetter("priority")


class Event(NamedTuple):
    """Something that happened to a request."""

    request_id: RequestId
    kind: str  # FIRST_TOKEN, FINISHED or PREEMPTED
    at_s: float


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
        self._known: dict[RequestId, Sequence] = {}  # submitted, not finished or cancelled
        self._waiting = Waiting()
        self._running: dict[RequestId, Sequence] = {}  # in order of admission
        self._partial: Sequence | None = None  # its prefill goes on in the next iteration
        self._completing: list[Sequence] = []  # their prefill ends with this iteration
        self._leaving: list[tuple[Sequence, int]] = []  # cancelled in this run, and their state
        self._finishes: list[tuple[int, int, Sequence]] = []  # heap; entries may be outdated
        self._iteration = self._pushed = self._submitted = 0
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
        priority: int = 0,
        slow: float = 1.0,
    ) -> None:
        """Queue a request; `cached_tokens` of its prompt need no prefill. Raises NeverFits.

        A lower `priority` is served earlier. Its first token takes `slow` times as long as usual:
        it stays in the front end for longer or shorter, and others may overtake it there.
        """
        assert prompt_tokens > 0 and output_tokens > 0, "a request has tokens"
        needs = prompt_tokens + output_tokens - 1
        if needs > self.performance.kv_tokens_max:
            raise NeverFits(needs, self.performance.kv_tokens_max)
        assert request_id not in self._known, f"{request_id!r} is here already"
        self._go(now_s)
        ready_s = now_s + self.performance.front_end_s(prompt_tokens, len(self._known) + 1)
        ready_s = self._ready_s = max(ready_s, self._ready_s)
        if slow != 1.0:
            usual_s = self.performance.first_token_s(prompt_tokens, len(self._known) + 1)
            ready_s = max(now_s, ready_s + (slow - 1.0) * usual_s)
        prefill = max(1, prompt_tokens - cached_tokens)
        self._submitted += 1
        sequence = self._known[request_id] = Sequence(
            request_id, prompt_tokens, output_tokens, prefill, ready_s, priority, self._submitted
        )
        joins = self._waiting.outranks(sequence)
        self._waiting.add(sequence)
        if self._run is not None and joins:
            self._stop_for_arrival(self._run)

    def cancel(self, request_id: RequestId, now_s: float) -> None:
        """Forget a request; nothing happens if it is not known (any more)."""
        self._go(now_s)
        sequence = self._known.pop(request_id, None)
        if sequence is None:
            return
        if sequence.state != WAITING:
            self._leaving.append((sequence, sequence.state))
        sequence.state = GONE
        if self._run is None:
            self._leave()
        else:
            self._run.stop(now_s)

    def advance(self, to_s: float) -> list[Event]:
        """Everything that happened since the last call, up to and including `to_s`, in order.

        A preemption at `to_s` itself is reported with the next call.
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
        begins_s = self._boundary_s
        if not self._running and self._waiting.first() is None:
            begins_s = max(begins_s, self._waiting.next_ready_s())
        return begins_s + self.performance.fixed_s

    def next_token_s(self) -> float:
        """When the next iteration ends, as `next_change_s` has it."""
        if self._run is None:
            return self.next_change_s()
        return self._run.end_s(self._done() + 1)

    def held(self, now_s: float) -> int:
        """Requests that are here at a time, those that wait too."""
        self._go(now_s)
        return len(self._known)

    def tokens_made(self, request_id: RequestId, now_s: float) -> int:
        """Tokens of an unfinished request so far; raises KeyError for any other."""
        self._go(now_s)
        sequence = self._known[request_id]
        if sequence.state != DECODING:
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
        return self._waiting.prompt_tokens

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
        return self.power.energy_j(
            self._now_s - self._began_s, busy_s=self.busy_s, prefill_s=prefill_s
        )

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
        waiting, p = self._waiting, self.performance
        if not self._running and waiting.first() is None:
            ready_s = waiting.next_ready_s()
            if ready_s >= to_s:
                return None
            self._boundary_s = max(self._boundary_s, ready_s)
        if waiting.arrivals:
            waiting.reach(self._boundary_s)
        full = self._kv + self._n > p.kv_tokens_max
        if full:
            self._make_room()
        prompt = self._chunk(admits=not full) if waiting.queue or self._partial else 0
        n = self._n
        assert prompt or n, "there is something to do"
        first_s = p.iteration_s(n, self._context, prompt)
        if prompt:
            return Run(self._boundary_s, 1, first_s, step_s=0.0, prompt_tokens=prompt)
        k = min(self._next_finish() - self._iteration, (p.kv_tokens_max - self._kv) // n)
        first = waiting.first()
        if full and first is not None and self._fits(first):  # one that was preempted, at least
            k = 1  # the next one admits again
        run = Run(self._boundary_s, k, first_s, step_s=n * p.per_context_token_s)
        if waiting.arrivals:
            self._stop_for_arrival(run)
        return run

    def _stop_for_arrival(self, run: Run) -> None:
        """End the run when an arrival could join: when it outranks all who wait, and fits."""
        for sequence in self._waiting.firsts_to_come():
            if self._fits(sequence):
                run.stop(max(sequence.ready_s, self._now_s))
                return

    def _make_room(self) -> None:
        """Preempt the last in order until every decoding sequence has room for its next token.

        The iteration that does so admits nobody, as in vLLM. Equals are admitted in order of
        arrival, so the youngest of them is the one admitted last.
        """
        running = self._running
        while self._kv + self._n > self.performance.kv_tokens_max:
            sequence = max(reversed(running.values()), key=PRIORITY)
            self._release(sequence, sequence.state)
            sequence.state, sequence.prefill_left = WAITING, sequence.prompt + sequence.made
            self._waiting.put_back(sequence)
            self._events.append(Event(sequence.id, PREEMPTED, self._boundary_s))

    def _chunk(self, *, admits: bool) -> int:
        """Fill this iteration's prefill budget; returns how many prompt tokens are prefilled."""
        budget = left = self.performance.prefill_tokens_max
        sequence, self._partial = self._partial, None
        while left:
            if sequence is None:
                sequence = self._admit() if admits else None
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

    def _admit(self) -> Sequence | None:
        sequence = self._waiting.first()
        if sequence is None or not self._fits(sequence):
            return None
        self._waiting.pop()
        sequence.state = PREFILLING
        self._running[sequence.id] = sequence
        self._kv += sequence.prompt + sequence.made
        return sequence

    def _fits(self, sequence: Sequence) -> bool:
        p = self.performance
        if not self._running:
            return True
        needs = self._kv + self._n + sequence.prompt + sequence.made
        return len(self._running) < p.sequences_max and needs <= p.kv_tokens_max * (1 - WATERMARK)

    def _next_finish(self) -> int:
        """The iteration in which a sequence will be the next to finish."""
        heap = self._finishes
        while heap[0][2].state != DECODING or heap[0][2].finishes != heap[0][0]:
            heappop(heap)
        return heap[0][0]

    # --- the end of a run

    def _commit(self, run: Run, end_s: float) -> None:
        """Count the run's tokens, report first and last ones, let the cancelled leave."""
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
                if sequence.state != GONE:
                    self._begin_to_decode(sequence)
            self._completing.clear()
        heap = self._finishes
        while heap and heap[0][0] <= self._iteration:
            finishes, _, sequence = heappop(heap)
            if sequence.state == DECODING and sequence.finishes == finishes:
                self._finish(sequence)
        if self._leaving:
            self._leave()

    def _begin_to_decode(self, sequence: Sequence) -> None:
        self._context += sequence.prompt + sequence.made
        self._n += 1
        sequence.made += 1
        sequence.state = DECODING
        sequence.finishes = self._iteration + sequence.output - sequence.made
        if sequence.made == 1:
            self._events.append(Event(sequence.id, FIRST_TOKEN, self._boundary_s))
        self._pushed += 1
        heappush(self._finishes, (sequence.finishes, self._pushed, sequence))

    def _finish(self, sequence: Sequence) -> None:
        self._release(sequence, DECODING)
        sequence.state = GONE
        del self._known[sequence.id]
        self._events.append(Event(sequence.id, FINISHED, self._boundary_s))

    def _leave(self) -> None:
        for sequence, state in self._leaving:
            self._release(sequence, state)
        self._leaving.clear()

    def _release(self, sequence: Sequence, state: int) -> None:
        """Free what a sequence in this state holds."""
        del self._running[sequence.id]
        held = sequence.prompt + sequence.made
        if state == DECODING:
            sequence.made = sequence.output - (sequence.finishes - self._iteration)
            held = sequence.prompt + sequence.made - 1
            self._context -= held
            self._n -= 1
        elif self._partial is sequence:
            self._partial = None
        self._kv -= held
