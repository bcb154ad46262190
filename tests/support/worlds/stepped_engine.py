"""The emulated engine, one iteration after the other: slow and obvious, the oracle of the fast one.

It keeps lists of sequences and adds up what they hold each time. It shares no code with the fast
engine but the durations of an iteration and of the front end.

No closed form, no counter that could be computed anew.
"""

from __future__ import annotations

from infra.emulator.performance import Performance


class Request:
    """A request and how far it is."""

    def __init__(self, id, prompt, output, cached, ready_s, order):
        self.id, self.prompt, self.output, self.ready_s = id, prompt, output, ready_s
        self.order = order  # priority, then number
        self.made, self.prefill_left, self.decoding, self.cancelled = (
            0,
            max(1, prompt - cached),
            False,
            False,
        )

    @property
    def held(self) -> int:
        return self.prompt + self.made - (1 if self.decoding else 0)


class SteppedEngine:
    """Same inputs and answers as `Engine`."""

    def __init__(self, performance: Performance):
        self.p = performance
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.chunks: dict[Request, int] = {}  # prompt tokens in the iteration under way
        self.boundary_s, self.end_s = 0.0, None  # end of the iteration under way
        self.ready_s = 0.0  # of the latest arrival
        self.now_s, self.busy, self.prefilled_s, self.tokens = 0.0, 0.0, 0.0, 0
        self.events: list[tuple] = []
        self.submitted = 0

    # --- inputs

    def submit(self, id, prompt, output, now_s, cached=0, priority=0):
        self.advance(now_s)
        here = [r for r in self.waiting + self.running if not r.cancelled]
        front_end_s = self.p.front_end_s(prompt, len(here) + 1)
        self.ready_s = max(self.ready_s, now_s + front_end_s)
        self.submitted += 1
        order = priority, self.submitted
        self.waiting.append(Request(id, prompt, output, cached, self.ready_s, order))

    def cancel(self, id, now_s):
        self.advance(now_s)
        for request in self.waiting + self.running:
            if request.id == id:
                request.cancelled = True
        self.waiting = [r for r in self.waiting if not r.cancelled]
        if self.end_s is None:
            self.running = [r for r in self.running if not r.cancelled]

    def advance(self, to_s):
        while True:
            if self.end_s is None and not (self.boundary_s < to_s and self.compose(to_s)):
                break
            if self.end_s > to_s:
                break
            self.commit()
        self.now_s = to_s

    # --- one iteration

    @property
    def kv(self):
        return sum(r.held for r in self.running)

    @property
    def ready(self):
        return [r for r in self.waiting if r.ready_s <= self.boundary_s]

    @property
    def decoding(self):
        return [r for r in self.running if r.decoding]

    def compose(self, to_s) -> bool:
        if not self.running:
            if not self.waiting or min(r.ready_s for r in self.waiting) >= to_s:
                return False
            self.boundary_s = max(self.boundary_s, min(r.ready_s for r in self.waiting))
        preempted = False
        while self.kv + len(self.decoding) > self.p.kv_tokens_max:
            preempted = True  # then nobody is admitted in this iteration
            last = max(self.running, key=lambda r: r.order)
            self.running.remove(last)
            last.prefill_left, last.decoding = last.prompt + last.made, False
            self.waiting.append(last)
            self.events.append((last.id, "preempted", self.boundary_s))
        left, self.chunks = self.p.prefill_tokens_max, {}
        for request in self.running:
            if not request.decoding:
                self.chunks[request] = min(left, request.prefill_left)
                left -= self.chunks[request]
        while left and not preempted and self.ready:
            first = min(self.ready, key=lambda r: r.order)
            needs = self.kv + len(self.decoding) + first.prompt + first.made
            if self.running and (
                len(self.running) >= self.p.sequences_max or needs > self.p.kv_tokens_max * 0.99
            ):
                break
            self.waiting.remove(first)
            self.running.append(first)
            self.chunks[first] = min(left, first.prefill_left)
            left -= self.chunks[first]
        duration_s = self.p.iteration_s(
            len(self.decoding), sum(r.held for r in self.decoding), sum(self.chunks.values())
        )
        self.end_s = self.boundary_s + duration_s
        return True

    def commit(self):
        was_decoding = self.decoding
        self.busy += self.end_s - self.boundary_s
        self.prefilled_s += sum(self.chunks.values()) * self.p.per_prompt_token_s
        self.boundary_s, self.end_s = self.end_s, None
        for request, chunk in self.chunks.items():
            request.prefill_left -= chunk
            if request.prefill_left == 0:
                self.tokens += 1
                request.made, request.decoding = request.made + 1, True
                if request.made == 1 and not request.cancelled:
                    self.events.append((request.id, "first_token", self.boundary_s))
        for request in was_decoding:
            self.tokens += 1
            request.made += 1
        self.chunks = {}
        for request in list(self.running):
            if request.made == request.output and not request.cancelled:
                self.events.append((request.id, "finished", self.boundary_s))
                self.running.remove(request)
        self.running = [r for r in self.running if not r.cancelled]

    # --- what can be asked

    def made(self, id):
        for request in self.waiting + self.running:
            if request.id == id and not request.cancelled:
                return request.made
        return None

    @property
    def busy_s(self):
        return self.busy + (0.0 if self.end_s is None else self.now_s - self.boundary_s)
