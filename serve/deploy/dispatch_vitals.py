"""Counts what a dispatcher's attempts came to, and reports it once a window.

    attempt settled ──note──▶ by pool: attempts, answers, failures, retries, hedges, reroutes
    health ─────────take──▶ ejections, refusals of the breaker
                            and for pools that nobody else reports on: in flight, waits, pace

Emulated pools report what goes on inside them. Of any other server only its callers can tell, so a
dispatcher reports what it sees of those.

An attempt is counted once, in the window in which it was settled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from learners.servers.first_tokens import FirstTokenCounts
from learners.servers.held import HeldRequests
from learners.servers.speed import AnswerSpeeds
from serve.dispatch.attempt import Attempt
from serve.dispatch.backend import Watched
from serve.dispatch.features import Refusals
from serve.health.health import Health, PoolStatus
from streams.telemetry.pool_reports import FROM
from streams.telemetry.pool_window import DispatchWindow, PoolWindow, ReplicaIdentity
from streams.telemetry.records import PoolState, Telemetry
from streams.telemetry.window import Reporter


class DispatchVitals:
    """The open window of one dispatcher. Used from one event loop."""

    def __init__(
        self,
        health: Health,
        refusals: Refusals,
        watched: Callable[[], Sequence[Watched]],
        count_answer: Callable[[str, int], None],
        source: str,
        now_s: Callable[[], float],
        energy_share: Callable[[str], float],
    ) -> None:
        """`count_answer(tenant, output_tokens)` counts answers by class; `source` is this process.

        `energy_share(pool)` is the part of its servers' energy that is counted here, see
        `PoolReports`.

        Raises nothing later: whoever settles an attempt must not be disturbed.
        """
        self._health, self._refusals = health, refusals
        self._energy_share = energy_share
        self._now_s, self._source = now_s, source
        self._watched = {pool.pool: pool for pool in watched()}  # the settings', so for good
        self._count_answer = count_answer
        self._window = DispatchWindow()
        self._seen: dict[tuple[str, str], _Server] = {}  # watched servers, by pool and address
        self._told: dict[str, tuple[int, int]] = {}  # ejections and refusals, as last reported

    def note(self, attempt: Attempt) -> None:
        """Count an attempt that was settled."""
        assert attempt.settled is not None
        pool, count = attempt.place.pool, self._window.count
        count(pool, "attempts")
        if attempt.kind == "retry":
            count(pool, "retried")
        elif attempt.kind == "hedge":
            count(pool, "hedged")
        elif attempt.kind == "last-resort":
            count(pool, "last_resort")
        match attempt.settled.outcome:
            case "answered" | "compared":
                count(pool, "answered")
                self._count_answer(attempt.tenant, max(attempt.used.output_tokens, 0))
            case "unsure":
                count(pool, "escalated")
            case "cancelled" | "refused":
                count(pool, "cancelled")
            case failure:
                self._window.count_failed(pool, failure)
        if attempt.kind in {"reroute", "retry"} and pool != attempt.decided.pool:
            self._window.count_rerouted(attempt.decided.pool, pool)
        if pool in self._watched:
            self._server(pool, attempt.lease.address).note(attempt)

    def _server(self, pool: str, address: str) -> _Server:
        """A watched server."""
        at = pool, address
        if at not in self._seen:
            watched = self._watched[pool]
            self._seen[at] = _Server(watched, _identity(watched, address, self._source))
        return self._seen[at]

    def take(self, reporter: Reporter, window: tuple[int, int]) -> list[Telemetry]:
        """The records of the window; a new one begins."""
        statuses = {status.pool: status for status in self._health.status(self._now_s())}
        for status in statuses.values():
            self._count_health(status)
        dispatched = self._window.take(reporter, window)
        records: list[Telemetry] = [] if dispatched is None else [dispatched]
        running = {
            (pool, endpoint.address): endpoint.in_flight
            for pool in self._watched.keys() & statuses.keys()
            for endpoint in statuses[pool].endpoints
        }
        refused = self._refusals.status(self._now_s())
        for at in sorted({*running, *self._seen}):
            refuses: list[str] = sorted(refused.get(at[0], ()))
            share = self._energy_share(at[0])
            held = running.get(at, 0)
            records.append(self._server(*at).take(reporter, window, held, refuses, share))
            if at not in running:  # it has gone, and this was its last word
                del self._seen[at]
        return records

    def _count_health(self, status: PoolStatus) -> None:
        ejections = sum(endpoint.ejections for endpoint in status.endpoints)
        before = self._told.get(status.pool, (0, 0))
        self._told[status.pool] = (ejections, status.refusals)
        if ejections > before[0]:  # an endpoint that has gone takes its count with it
            self._window.count(status.pool, "ejections", ejections - before[0])
        if status.refusals > before[1]:
            self._window.count(status.pool, "refusals", status.refusals - before[1])


class _Server:
    """The open window of one watched server: this dispatcher's part of what it does."""

    def __init__(self, watched: Watched, identity: ReplicaIdentity) -> None:
        self._pace, self._held = PoolWindow(identity), HeldRequests(watched.stated)
        self._speeds, self._first_tokens = AnswerSpeeds(), FirstTokenCounts()
        self._counts = [0, 0, 0]  # answers, and tokens of their prompts and of themselves

    def note(self, attempt: Attempt) -> None:
        """Count an attempt that was settled."""
        assert attempt.settled is not None
        _note_pace(self._pace, attempt)
        if attempt.settled.outcome in {"answered", "unsure", "compared"}:
            used = attempt.used
            took_s = max(0.0, attempt.settled.took_ms / 1000.0 - attempt.held_up_s)
            self._held.answer(attempt.lease.waited_for, took_s)
            self._note_speed(attempt, took_s)
            new = (1, max(used.prompt_tokens, 0), max(used.output_tokens, 0))
            self._counts = [a + b for a, b in zip(self._counts, new, strict=True)]

    def take(
        self,
        reporter: Reporter,
        window: tuple[int, int],
        running: int,
        refuses: list[str],
        energy_share: float,
    ) -> PoolState:
        """The record of the window; a new one begins."""
        (finished, prompts, outputs), self._counts = self._counts, [0, 0, 0]
        window_ms = window[1] - window[0]
        self._held.lengths(finished, prompts, outputs)
        held = self._held.answers(running, window_ms)
        power = self._held.power(running, window_ms)
        power |= {"joules": energy_share * power.get("joules", 0.0)}
        fields = self._pace.take(reporter, window) | held | power
        paced, batched = self._speeds.take()
        return PoolState(
            by="callers", running=running, refuses=refuses, prompt_tokens=prompts,
            paced=paced, batched=batched, first_tokens=self._first_tokens.take(), **fields,
        )  # fmt: skip

    def _note_speed(self, attempt: Attempt, took_s: float) -> None:
        """Count how fast an answer was that said how long it and its prompt are."""
        used, beside = attempt.used, attempt.lease.beside
        if attempt.first_s is None or beside is None:
            return
        if used.prompt_tokens < 1 or used.output_tokens < 1:
            return
        first_s = min(attempt.first_s - attempt.began_s, took_s)
        held, prompt = attempt.lease.waited_for, max(1, used.prompt_tokens - used.cached_tokens)
        self._first_tokens.count(held, prompt, first_s)
        self._speeds.count(
            held,
            prompt,
            first_s,
            later_tokens=used.output_tokens - 1,
            later_s=took_s - first_s if used.output_tokens > 1 else 0.0,
            beside=beside,
        )


def _identity(watched: Watched, address: str, source: str) -> ReplicaIdentity:
    return ReplicaIdentity(
        pool=watched.pool,
        model=watched.model,
        # Several dispatchers watch one server: each reports its own share of it.
        replica=f"{address}{FROM}{source}",
        gpu=watched.gpu,
        region=watched.region,
    )


def _note_pace(seen: PoolWindow, attempt: Attempt) -> None:
    """Tokens, the time to the first, and that per further one."""
    if attempt.first_s is None or attempt.settled is None:
        return
    made = max(attempt.used.output_tokens, 0)
    seen.count_tokens(made)
    wait_ms = (attempt.first_s - attempt.began_s) * 1000.0
    seen.count_first_token(wait_ms)
    rest_ms = attempt.settled.took_ms - wait_ms - attempt.held_up_s * 1000.0
    if made > 1 and rest_ms > 0.0:
        seen.count_answer(rest_ms / (made - 1))
