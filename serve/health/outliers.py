"""Which endpoints of one pool are out, for how long, and when they are tried again.

              5 failures in a row, or 30 % of the last 20
    healthy ───────────────────────────────────────────────▶ out, 30 s × times
       ▲                                                       │ time is up
       │            one probe at a time                        ▼
       └──────────succeeds────────────────── due ──fails──▶ out for longer

An endpoint that is out is *ejected*, it gets no requests, unless a tenth of the pool is ejected
already: then it goes on serving (Envoy's `max_ejection_percent`, which keeps our suspicion from
emptying a pool), but it still counts as out. So a pool of three whose replicas all fail has one
ejected, and is known to have none healthy. With fewer than half healthy the pool is in *panic*:
health is ignored when an endpoint is chosen, or the few good ones would be overrun.

Numbers of Envoy are from envoyproxy.io/docs, config.cluster.v3.OutlierDetection, and, for what the
documentation leaves open, from its `outlier_detection_impl.cc` (of 1.31 or later).

Where those that are left are full, a pool needs whom it ejected: a second after an ejection, then
two, four, … seconds later, one request goes there as a probe before its time. So a pool of two does
not do half of its work for 30 s because of one bad moment. Such a probe readmits, too; that it
fails lengthens nothing. Who was ejected for its silence is not needed: a request would wait there,
which is worse than to be refused at once.

While an endpoint is out only its probe is judged, and once it is back only what was begun since. So
the end of old attempts neither lengthens an ejection nor brings on the next.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

from learners.option import option
from learners.servers.batch import Batch
from serve.health.first_token import Pace
from serve.health.turns import Turns

logger = logging.getLogger(__name__)

Kind = Literal["ejected", "not ejected", "readmitted", "panic", "panic over", "breaker open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something worth a line in the log."""

    kind: Kind
    pool: str  # "" when it is about all candidates of a request
    endpoint: str = ""  # "" when it is about the pool
    why: str
    out_s: float = 0.0  # for how long the endpoint is out, before a probe; 0: it is not


def log_event(event: Event) -> None:
    """One line, which names what it is about, its cause, and for how long."""
    where = f"pool {event.pool}" if event.pool else "all pools of a request"
    if event.endpoint:
        where += f", endpoint {event.endpoint}"
    until = f"; one request tries it in {event.out_s:.0f} s" if event.out_s else ""
    good = event.kind in ("readmitted", "panic over")
    logger.log(
        logging.INFO if good else logging.WARNING,
        "%s: %s, %s%s", where, event.kind, event.why, until,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierOptions:
    """When an endpoint is out, for how long, and how many may be."""

    # Envoy's consecutive_5xx
    failures_in_a_row: int = option(
        5, "Failures in a row after which an endpoint is ejected.", ge=1, le=1000
    )
    # Half of all requests failing at random makes five in a row only after 62 on average, and
    # Envoy's failure percentage (85 %, off by default) never sees it. Simulated: an endpoint that
    # begins to fail half of its requests is out after 12 of them, one that begins to fail 30 %
    # after 23. Steady failures of 10 % eject wrongly once in 530 requests, of 5 % once in 12,000,
    # of 3 % once in 170,000.
    failure_share: float = option(
        0.30, "Share of failures among the last 20 attempts that ejects, too.", gt=0, le=1
    )
    window: int = 20  # latest attempts the share is of
    window_min: int = 10  # with fewer there is no share
    # Envoy's base_ejection_time …
    ejection_s: float = option(
        30.0, "Seconds out, times the number of ejections, until it is tried again.", gt=0, le=3600
    )
    ejection_s_max: float = 300.0  # … up to its max_ejection_time
    forgive_s: float = 10.0  # Envoy's interval: each of these in good health takes one time off
    needed_s: float = 1.0  # out for so long, it is tried where its pool is full; then after twice …
    # Envoy's max_ejection_percent; and always one, as in Envoy up to 1.30. Since then that is an
    # option (always_eject_one_host, off), without which a pool of nine never has one ejected.
    ejected_share_max: float = option(
        0.10, "Share of a pool's endpoints that may be ejected; one always may.", ge=0, le=1
    )
    # Envoy's healthy_panic_threshold
    panic_below: float = option(
        0.50, "With a smaller share healthy, a pool's health is ignored.", ge=0, le=1
    )
    # Prompts differ in length by ten, but the geometric mean of eight waits hardly by five.
    slow_ratio: float = 5.0
    slow_samples_min: int = 10
    slow_s: float = 30.0  # without waits for this long it is not slow but unknown: try it


class Endpoint:
    """One address of a pool: what is in flight, what became of the rest, and how it stands."""

    __slots__ = (
        "address", "backoff", "batch", "begun", "cancelled", "early", "ejected", "ejections",
        "failed_latest", "failures", "failures_in_a_row", "in_flight", "judged_latest",
        "needed_at_s", "needed_wait_s", "out", "pace", "paused_until_s", "readmitted_s", "silent",
        "stint", "successes", "turns", "until_s",
    )  # fmt: skip

    def __init__(self, address: str) -> None:
        self.address = address
        self.in_flight = self.begun = self.successes = self.cancelled = 0
        self.failures: dict[str, int] = {}  # by kind
        self.pace, self.turns, self.batch = Pace(), Turns(), Batch()
        self.stint = 0  # goes up whenever it comes back or leaves the pool
        self.out = self.ejected = False
        self.until_s = self.readmitted_s = 0.0
        self.paused_until_s = -math.inf  # it said when it wants to be asked again
        self.silent = False  # the last failure was that nothing came
        self.early = False  # its probe was before its time
        self.needed_at_s, self.needed_wait_s = math.inf, 0.0  # when it may be tried before its time
        self.ejections = self.backoff = 0
        self.failures_in_a_row = self.failed_latest = self.judged_latest = 0

    def judge(self, *, failed: bool, window: int) -> None:
        """Take one result into account; `failed_latest` has a bit per attempt, newest lowest."""
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        self.failed_latest = (self.failed_latest << 1 | failed) & ((1 << window) - 1)
        self.judged_latest = min(self.judged_latest + 1, window)

    def complaint(self, options: OutlierOptions) -> str:
        """Why it should go out; "" if it should not."""
        if self.failures_in_a_row >= options.failures_in_a_row:
            return f"{self.failures_in_a_row} failures in a row"
        failed, n = self.failed_latest.bit_count(), self.judged_latest
        if n >= options.window_min and failed >= options.failure_share * n:
            return f"{failed} of the last {n} failed"
        return ""

    def go_out(self, options: OutlierOptions, now_s: float) -> None:
        """Out from now on, for longer each time; good health in between is credited."""
        if not self.out:
            healthy_s = now_s - self.readmitted_s
            self.backoff = max(0, self.backoff - int(healthy_s / options.forgive_s))
            self.needed_wait_s = options.needed_s
            self.needed_at_s = now_s + self.needed_wait_s
        if self.backoff * options.ejection_s < options.ejection_s_max + options.ejection_s:
            self.backoff += 1
        self.until_s = now_s + min(self.backoff * options.ejection_s, options.ejection_s_max)
        self.out = True
        self.ejections += 1

    def come_back(self, now_s: float) -> None:
        """Healthy from now on, with a clean slate, but the times it was out not yet forgiven."""
        self.out = self.ejected = False
        self.until_s, self.readmitted_s = 0.0, now_s
        self.stint += 1
        self.failures_in_a_row = self.failed_latest = self.judged_latest = 0


class Endpoints:
    """The endpoints of one pool."""

    def __init__(
        self, pool: str, options: OutlierOptions, on_event: Callable[[Event], None]
    ) -> None:
        self._pool, self._options, self._on_event = pool, options, on_event
        self.by_address: dict[str, Endpoint] = {}
        self.serving: list[Endpoint] = []  # that requests are shared among
        self.panic = False
        self.probed: Endpoint | None = None  # the one that a probe is in flight to
        self.due_s = math.inf  # when the next probe may go
        self._out: list[Endpoint] = []  # the longest out first

    def set(self, addresses: Sequence[str], now_s: float) -> None:
        """Take up new endpoints and let go of others; those that stay keep their state."""
        kept = {a: self.by_address.get(a) or Endpoint(a) for a in addresses}
        for address, endpoint in self.by_address.items():
            if address not in kept:
                endpoint.stint += 1  # what is still in flight judges nothing any more
        self.by_address = kept
        self._out = [e for e in self._out if e.address in kept]
        if self.probed and self.probed.address not in kept:
            self.probed = None
        self._arrange(now_s, "the pool has changed")

    @property
    def n_healthy(self) -> int:
        """How many are not out."""
        return len(self.by_address) - len(self._out)

    def open(self, now_s: float) -> list[Endpoint]:
        """Those that requests are shared among and that do not want to be left alone."""
        return [e for e in self.serving if e.paused_until_s <= now_s]

    def paused_for_s(self, now_s: float) -> float:
        """Seconds until the first of them wants to be asked again; 0: one does now, or none is."""
        first_s = min((e.paused_until_s for e in self.serving), default=-math.inf)
        return max(0.0, first_s - now_s)

    def needed(self, now_s: float) -> list[Endpoint]:
        """Those that may be tried before their time, because the others are full."""
        if self.probed or self.panic:  # in a panic all are asked anyhow
            return []
        return [
            e
            for e in self._out
            if e.ejected and not e.silent and max(e.needed_at_s, e.paused_until_s) <= now_s
        ]

    def begin_probe(self, now_s: float) -> Endpoint:
        """The endpoint to be probed now; no other is until it is finished. See `due_s`."""
        assert self.due_s <= now_s, "no probe is due"
        return self._probe(min(self._out, key=lambda endpoint: endpoint.until_s), early=False)

    def begin_early_probe(self, now_s: float) -> Endpoint:
        """Likewise, of one that is `needed`."""
        chosen = min(self.needed(now_s), key=lambda endpoint: endpoint.needed_at_s)
        chosen.needed_wait_s *= 2.0
        chosen.needed_at_s = now_s + chosen.needed_wait_s
        return self._probe(chosen, early=True)

    def _probe(self, endpoint: Endpoint, *, early: bool) -> Endpoint:
        self.probed, endpoint.early = endpoint, early
        self.due_s = math.inf
        return endpoint

    def end_probe(self, endpoint: Endpoint) -> None:
        """The probe is over; unless it judges, another may go at once."""
        if self.probed is endpoint:
            self.probed = None
            self.due_s = self._next_due_s()

    def judge(self, endpoint: Endpoint, *, probe: bool, failed: bool, now_s: float) -> None:
        """Draw the consequences of one result that belongs to the endpoint's present stint."""
        if probe:
            self._judge_probe(endpoint, failed, now_s)
        elif not endpoint.out:
            endpoint.judge(failed=failed, window=self._options.window)
            why = endpoint.complaint(self._options) if failed else ""
            if why:
                endpoint.go_out(self._options, now_s)
                self._out.append(endpoint)
                self._arrange(now_s, why)
                if not endpoint.ejected:
                    why += ", but enough are ejected"
                    self._note("not ejected", endpoint, now_s, why)

    def _judge_probe(self, endpoint: Endpoint, failed: bool, now_s: float) -> None:
        if failed:
            if not endpoint.early:
                endpoint.go_out(self._options, now_s)
            self.due_s = self._next_due_s()
            kind: Kind = "ejected" if endpoint.ejected else "not ejected"
            self._note(kind, endpoint, now_s, "probe failed")
        else:
            endpoint.come_back(now_s)
            self._out.remove(endpoint)
            self._note("readmitted", endpoint, now_s, "probe succeeded")
            self._arrange(now_s, "room for one more")

    def _arrange(self, now_s: float, why: str) -> None:
        """From who is out: who is ejected, who serves, and when the next probe is due."""
        everyone = list(self.by_address.values())
        n_ejected_max = max(1, int(self._options.ejected_share_max * len(everyone)))
        for place, endpoint in enumerate(self._out):
            ejected = place < n_ejected_max
            if ejected != endpoint.ejected:
                endpoint.ejected = ejected
                self._note("ejected" if ejected else "not ejected", endpoint, now_s, why)
        panic = self.n_healthy < self._options.panic_below * len(everyone)
        if panic != self.panic:
            self.panic = panic
            share = f"{self.n_healthy} of {len(everyone)} endpoints are healthy"
            self._note("panic" if panic else "panic over", None, now_s, share)
        self.serving = everyone if panic else [e for e in everyone if not e.ejected]
        self.due_s = self._next_due_s()

    def _next_due_s(self) -> float:
        if self.probed:
            return math.inf
        return min((endpoint.until_s for endpoint in self._out), default=math.inf)

    def _note(self, kind: Kind, endpoint: Endpoint | None, now_s: float, why: str) -> None:
        address, out_s = "", 0.0
        if endpoint is not None:
            address, out_s = endpoint.address, endpoint.until_s - now_s if endpoint.out else 0.0
        self._on_event(Event(kind=kind, pool=self._pool, endpoint=address, why=why, out_s=out_s))

    def slow(self, address: str, now_s: float) -> bool:
        """Whether an endpoint's first tokens come far later than they used to, or its peers' do."""
        pace = self.by_address[address].pace
        peers = [e.pace for a, e in self.by_address.items() if a != address]
        known = [p.recent for p in peers if p.n >= self._options.slow_samples_min]
        return slow(pace, self._options, now_s, *([median_low(known)] if known else []))


def slow(pace: Pace, options: OutlierOptions, now_s: float, *others: float) -> bool:
    """Whether recent waits are far above their own past or above `others` (log seconds)."""
    if pace.n < options.slow_samples_min or now_s - pace.last_s > options.slow_s:
        return False
    return pace.recent - min([pace.usual, *others]) >= math.log(options.slow_ratio)
